//! The local policy: what the cloud may do with a resource. Deny by default, pure, and in the operator's file only.
//!
//! - A resource without a rule allows nothing; its rules are alternatives (OR).
//! - A rule allows a call only if it allows everything the call demands (AND): operation, every path, method, every
//!   query key, every header, every right, size; of a request that the operator wrote its name. Two rules never add up.
//! - A message names what is not allowed in the job's own words, and nothing of the rules or of the private network.

pub mod command;
mod compile;
#[cfg(test)]
mod crm_tests;
mod explain;
mod judge;
#[cfg(test)]
mod judge_tests;
mod paths;
#[cfg(test)]
mod reference_tests;
#[cfg(test)]
mod tests;
pub mod volume;

pub use judge::{Question, Refused};
use passerelle_config::Finding;
use passerelle_connectors::{Code, Demands, Right};
use paths::PathRule;
pub use volume::{Daily, Spent};

/// The compiled allow rules of one resource.
#[derive(Debug)]
pub struct ResourcePolicy {
    rules: Vec<Rule>,
    operations: Vec<Operation>,
}

/// What the policy must know of one operation of the connector.
#[derive(Debug)]
struct Operation {
    name: String,
    needs_paths: bool,
}

/// One allow rule.
#[derive(Debug)]
struct Rule {
    operations: Vec<String>,
    paths: Vec<PathRule>,
    methods: Vec<String>,
    query: Vec<String>,
    headers: Vec<String>,
    requests: Vec<Named>,
    entities: Vec<String>,
    fields: Vec<String>,
    calls: Vec<String>,
    max_size: Option<u64>,
    may: Option<Vec<Right>>,
    daily: Daily,
    /// Where it stands.
    at: Finding,
}

/// A request that the operator wrote.
#[derive(Debug)]
struct Named {
    name: String,
    /// Method and path, as they are written.
    does: String,
}

/// A call may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowed {
    /// The rule that allows it, counted from 1 as in receipts (`compta#1`).
    pub rule: usize,
    /// The largest payload or output that the rule allows, in bytes.
    pub max_size: Option<u64>,
    /// What the rule allows per day.
    pub daily: Daily,
    /// A listing asks for more than the rule allows: only what the rule allows may be shown.
    pub filtered: bool,
}

/// A call may not go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    /// `too_large` if a smaller payload were allowed, else `policy_denied`.
    pub code: Code,
    /// One public sentence that names what is not allowed.
    pub message: String,
    /// The rule that came nearest, counted from 1, for the local log and `policy test`.
    pub nearest: Option<usize>,
    /// Only what the rule allows per day is used up: another day it is allowed.
    pub another_day: bool,
}

/// The first demand that a rule does not allow. In the order of the checks: the later one comes nearer.
#[derive(Debug, Clone, Copy)]
enum Refusal<'d> {
    Path(&'d str),
    Method(&'d str),
    Query(&'d str),
    Header(&'d str),
    Request(&'d str),
    Entity(&'d str),
    Field(&'d str),
    Call(&'d str),
    Right(Right),
    Size { size: u64, max: u64 },
    Daily,
}

impl ResourcePolicy {
    /// The operations that at least one rule allows, in the connector's order.
    #[must_use]
    pub fn allowed_operations(&self) -> Vec<String> {
        let allowed = |name: &String| self.rules.iter().any(|rule| rule.operations.contains(name));
        self.operations
            .iter()
            .map(|operation| &operation.name)
            .filter(|name| allowed(name))
            .cloned()
            .collect()
    }

    /// Decides one call on a day on which nothing happened yet.
    ///
    /// # Errors
    /// As [`Self::decide_after`].
    #[cfg(test)]
    pub fn decide(
        &self,
        operation: &str,
        demands: &Demands,
        payload_size: Option<u64>,
    ) -> Result<Allowed, Denied> {
        self.decide_after(operation, demands, payload_size, &Spent::new())
    }

    /// Whether a rule, counted from 1, lets a listing show a name.
    #[must_use]
    pub fn shows(&self, rule: usize, path: &str) -> bool {
        let rule = rule.checked_sub(1).and_then(|index| self.rules.get(index));
        rule.is_some_and(|rule| rule.paths.iter().any(|glob| glob.allows_name(path)))
    }

    /// Whether a rule, counted from 1, lets a record's field be shown.
    #[must_use]
    pub fn shows_field(&self, rule: usize, field: &str) -> bool {
        let rule = rule.checked_sub(1).and_then(|index| self.rules.get(index));
        rule.is_some_and(|rule| rule.allows_field(field))
    }

    /// Where a rule stands, counted from 1.
    #[must_use]
    pub fn place(&self, rule: usize) -> Option<&Finding> {
        self.rules.get(rule.checked_sub(1)?).map(|rule| &rule.at)
    }

    /// Decides one call. The first rule that allows it, and has not been used up today, counts.
    ///
    /// # Errors
    /// [`Denied`], naming what is not allowed.
    pub fn decide_after(
        &self,
        operation: &str,
        demands: &Demands,
        payload_size: Option<u64>,
        spent: &Spent,
    ) -> Result<Allowed, Denied> {
        let needs_paths = self.operations.iter().any(|known| known.name == operation && known.needs_paths);
        // An operation on a place that names none acts on the resource's root.
        let root = [String::new()];
        let on_root = needs_paths && demands.paths.is_empty() && demands.request.is_none();
        let paths = if on_root { &root[..] } else { &demands.paths };
        let mut nearest: Option<(Refusal<'_>, usize)> = None;
        let mut filtered = None;
        for (index, rule) in self.rules.iter().enumerate() {
            if !rule.operations.iter().any(|name| name == operation) {
                continue;
            }
            let used = spent.get(&(index + 1)).copied().unwrap_or_default();
            let refusal = rule.refusal(operation, paths, demands, payload_size).or_else(|| {
                let fits = rule.daily.leave_room(used, payload_size.unwrap_or(0));
                (!fits).then_some(Refusal::Daily)
            });
            match refusal {
                None => {
                    let Rule { max_size, daily, .. } = *rule;
                    return Ok(Allowed { rule: index + 1, max_size, daily, filtered: false });
                }
                // Shown are only the names that this one rule allows.
                Some(Refusal::Path(_)) if filtered.is_none() && rule.lists(operation, demands, used) => {
                    let Rule { max_size, daily, .. } = *rule;
                    filtered = Some(Allowed { rule: index + 1, max_size, daily, filtered: true });
                }
                Some(refusal) if nearest.is_none_or(|(best, _)| refusal.stage() > best.stage()) => {
                    nearest = Some((refusal, index + 1));
                }
                Some(_) => {}
            }
        }
        if let Some(filtered) = filtered {
            return Ok(filtered);
        }
        Err(match nearest {
            Some((refusal, rule)) => Denied {
                code: refusal.code(),
                message: refusal.message(operation),
                nearest: Some(rule),
                another_day: matches!(refusal, Refusal::Daily),
            },
            None => Denied {
                code: Code::PolicyDenied,
                message: format!("operation {operation:?} is not allowed on this resource"),
                nearest: None,
                another_day: false,
            },
        })
    }
}

impl Rule {
    /// The first demand that this rule does not allow; its operations are checked already.
    fn refusal<'d>(
        &self,
        operation: &str,
        paths: &'d [String],
        demands: &'d Demands,
        payload_size: Option<u64>,
    ) -> Option<Refusal<'d>> {
        if let Some(path) = paths.iter().find(|path| !self.allows_path(operation, path)) {
            return Some(Refusal::Path(path));
        }
        if let Some(method) =
            demands.method.as_deref().filter(|method| !self.allows_method(operation, method))
        {
            return Some(Refusal::Method(method));
        }
        if let Some(key) = demands.query.iter().find(|key| !self.query.contains(key)) {
            return Some(Refusal::Query(key));
        }
        let listed = |name: &str| self.headers.iter().any(|header| header.eq_ignore_ascii_case(name));
        if let Some(name) = demands.headers.iter().find(|name| !listed(name)) {
            return Some(Refusal::Header(name));
        }
        if let Some(name) = demands.request.as_deref().filter(|name| !self.has_request(name)) {
            return Some(Refusal::Request(name));
        }
        if let Some(entity) = demands.entities.iter().find(|entity| !self.entities.contains(entity)) {
            return Some(Refusal::Entity(entity));
        }
        if let Some(field) = demands.fields.iter().find(|field| !self.allows_field(field)) {
            return Some(Refusal::Field(field));
        }
        if let Some(call) = demands.calls.iter().find(|call| !self.calls.contains(call)) {
            return Some(Refusal::Call(call));
        }
        if let Some(right) = demands.rights.iter().find(|right| !self.gives(operation, **right)) {
            return Some(Refusal::Right(*right));
        }
        // What is more than a day's worth fits on no day.
        match (payload_size, self.max_size.into_iter().chain(self.daily.bytes).min()) {
            (Some(size), Some(max)) if size > max => Some(Refusal::Size { size, max }),
            _ => None,
        }
    }

    /// Whether a listing, of which the rule does not allow every name, may show those that it does.
    fn lists(&self, operation: &str, demands: &Demands, used: volume::Used) -> bool {
        let Demands { paths, method: None, query, headers, rights, .. } = demands else { return false };
        if !demands.entities.is_empty() || !demands.calls.is_empty() {
            return false;
        }
        // `folder/PATTERN`, and the same below it: patterns have no slash.
        let folder = paths.first().map_or("", |path| path.rsplit_once('/').map_or("", |(folder, _)| folder));
        operation == paths::LISTING
            && [query.is_empty(), headers.is_empty(), rights.is_empty()].iter().all(|empty| *empty)
            && self.daily.leave_room(used, 0)
            && self.paths.iter().any(|glob| glob.leads_below(folder))
    }

    fn has_request(&self, name: &str) -> bool {
        self.requests.iter().any(|request| request.name == name)
    }

    fn allows_field(&self, field: &str) -> bool {
        self.fields.iter().any(|listed| listed == "*" || listed == field)
    }

    fn allows_path(&self, operation: &str, path: &str) -> bool {
        self.paths.iter().any(|glob| glob.allows(operation, path))
    }

    /// A rule that lists no methods allows those that only read, and for a notification the one it is sent with.
    fn allows_method(&self, operation: &str, method: &str) -> bool {
        if !self.methods.is_empty() {
            return self.methods.iter().any(|listed| listed == method);
        }
        default_methods(operation).contains(&method)
    }

    /// Without `may` a drop may replace and create folders: that is what drops are for. Deleting is always said.
    fn gives(&self, operation: &str, right: Right) -> bool {
        match &self.may {
            Some(rights) => rights.contains(&right),
            None => default_rights(operation).contains(&right),
        }
    }
}

/// The methods that an operation may use under a rule without `methods`.
fn default_methods(operation: &str) -> &'static [&'static str] {
    match operation {
        "request" => &["GET", "HEAD"],
        "notify" => &["POST"],
        _ => &[],
    }
}

/// The rights that an operation has under a rule without `may`.
fn default_rights(operation: &str) -> &'static [Right] {
    match operation {
        "drop" => &[Right::Replace, Right::CreateDirs],
        _ => &[],
    }
}

impl Refusal<'_> {
    /// How far the rule's checks came.
    fn stage(self) -> u8 {
        match self {
            Self::Path(_) | Self::Request(_) => 0,
            Self::Method(_) => 1,
            Self::Query(_) => 2,
            Self::Header(_) => 3,
            Self::Entity(_) => 4,
            Self::Field(_) | Self::Call(_) => 5,
            Self::Right(_) => 6,
            Self::Size { .. } => 7,
            Self::Daily => 8,
        }
    }

    fn code(self) -> Code {
        match self {
            Self::Size { .. } => Code::TooLarge,
            Self::Path(_)
            | Self::Method(_)
            | Self::Query(_)
            | Self::Header(_)
            | Self::Request(_)
            | Self::Entity(_)
            | Self::Field(_)
            | Self::Call(_)
            | Self::Right(_)
            | Self::Daily => Code::PolicyDenied,
        }
    }

    /// The public sentence. What the job wrote is quoted, so that its control characters do no harm in a log.
    fn message(self, operation: &str) -> String {
        match self {
            Self::Path("") => {
                format!("operation {operation:?} is not allowed on the root folder of this resource")
            }
            Self::Path(path) => format!("operation {operation:?} is not allowed on path {path:?}"),
            Self::Method(method) => {
                format!("method {method:?} is not allowed for operation {operation:?} here")
            }
            Self::Query(key) => format!("query key {key:?} is not allowed for operation {operation:?} here"),
            Self::Header(name) => format!("header {name:?} is not allowed for operation {operation:?} here"),
            Self::Request(name) => {
                format!("request {name:?} is not allowed for operation {operation:?} here")
            }
            Self::Entity(name) => format!("operation {operation:?} is not allowed on entity {name:?} here"),
            Self::Field(name) => format!("field {name:?} is not allowed for operation {operation:?} here"),
            Self::Call(name) => format!("call {name:?} is not allowed here"),
            Self::Right(right) => {
                let what = match right {
                    Right::Replace => "replace what is there",
                    Right::CreateDirs => "create folders",
                    Right::DeleteAfterFetch => "delete or move away what it fetched",
                };
                let way_out = match right {
                    Right::Replace => "; a job with on_conflict \"fail\" or \"suffix\" needs no such right",
                    Right::CreateDirs | Right::DeleteAfterFetch => "",
                };
                format!("operation {operation:?} may not {what} here (right {:?}){way_out}", right.as_str())
            }
            Self::Size { size, max } => {
                format!("the payload of {size} bytes is larger than the {max} bytes allowed here")
            }
            Self::Daily => volume::used_up(operation),
        }
    }
}
