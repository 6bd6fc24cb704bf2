//! How a CRM refuses: one closed set for all dialects, mapped onto the codes of jobs in one place.
//!
//! A [`CrmError`]'s `reason` is public: it goes through [`clean`], which lets no markup, SQL, traceback or address pass.
//! `detail` is for the local log, without bodies.

use crate::{Code, Failure};
use std::{fmt::Write as _, time::Duration};

/// The longest public reason, in characters.
const MAX_REASON: usize = 200;

/// A field that the target refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FieldError {
    /// Its name: ours, where the target's is known to be one of ours.
    pub(crate) field: String,
    /// Why, cleaned; may be empty.
    pub(crate) reason: String,
}

impl FieldError {
    /// A refused field; `reason` is the target's text, which is cleaned here.
    pub(crate) fn new(field: impl Into<String>, reason: &str) -> Self {
        Self { field: field.into(), reason: clean(reason).unwrap_or_default() }
    }
}

/// What a conflict is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clash {
    /// The record is no longer at the version that was named.
    Version,
    /// There is another record that must be the only one (of this key, say).
    Duplicate,
}

/// What went wrong: the closed set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Problem {
    /// The target does not take these values.
    Invalid {
        /// The fields it named.
        fields: Vec<FieldError>,
    },
    /// There is no such record.
    NotFound,
    /// It clashes with what is there.
    Conflict {
        /// How.
        clash: Clash,
        /// The ids of the records in question.
        candidates: Vec<String>,
    },
    /// The credentials are refused: nothing more may be tried with them for now.
    Auth,
    /// The account may not do this.
    Forbidden,
    /// The target wants to be asked later.
    Throttled {
        /// When.
        retry_after: Option<Duration>,
    },
    /// No connection, or the target is down: certainly nothing happened.
    Unavailable,
    /// The target, or this dialect, cannot do this.
    Unsupported,
    /// A write was sent and nobody knows what became of it.
    Ambiguous,
    /// The target answered what no rule explains, and certainly nothing happened (a read, or a refusal).
    Protocol,
    /// A failure that is none of the target's (a forbidden address, a cancelled attempt).
    Ours(Code),
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CrmError {
    /// What.
    pub(crate) problem: Problem,
    /// The public reason, cleaned.
    pub(crate) reason: Option<String>,
    /// For the local log.
    pub(crate) detail: Option<String>,
}

impl CrmError {
    /// A refusal without a reason.
    pub(crate) fn new(problem: Problem) -> Self {
        Self { problem, reason: None, detail: None }
    }

    /// Fields that the target, or the mapping, refuses.
    pub(crate) fn invalid(fields: Vec<FieldError>) -> Self {
        Self::new(Problem::Invalid { fields })
    }

    /// A conflict.
    pub(crate) fn conflict(clash: Clash, candidates: Vec<String>) -> Self {
        Self::new(Problem::Conflict { clash, candidates })
    }

    /// Adds the public reason: the target's own words, which are cleaned here, or ours.
    pub(crate) fn reason(mut self, text: &str) -> Self {
        self.reason = clean(text);
        self
    }

    /// Adds the detail for the local log. Never a body.
    pub(crate) fn detail(mut self, detail: impl std::fmt::Display) -> Self {
        self.detail = Some(detail.to_string());
        self
    }

    /// Of a request that names no record: that there is none says that the collection is not where it is looked for.
    pub(crate) fn of_collection(self, entity: &str) -> Self {
        if self.problem != Problem::NotFound {
            return self;
        }
        let reason = format!(
            "the target has no such collection: check entities.{entity}.target and the path of the resource's url"
        );
        Self { problem: Problem::Ours(Code::TargetNotFound), reason: Some(reason), ..self }
    }

    /// Whether a write may have happened.
    pub(crate) fn is_ambiguous(&self) -> bool {
        self.problem == Problem::Ambiguous
    }
}

impl From<Problem> for CrmError {
    fn from(problem: Problem) -> Self {
        Self::new(problem)
    }
}

impl From<CrmError> for Failure {
    fn from(error: CrmError) -> Self {
        let CrmError { problem, reason, detail } = error;
        let with = |sentence: &str| match &reason {
            Some(reason) => format!("{sentence}: {reason}"),
            None => sentence.to_owned(),
        };
        let failure = match problem {
            Problem::Invalid { fields } if fields.is_empty() => {
                Self::permanent(Code::InvalidParams, with("the target refused the values"))
            }
            Problem::Invalid { fields } => {
                Self::permanent(Code::InvalidParams, with(&refused_fields(&fields)))
            }
            Problem::NotFound => Self::permanent(Code::TargetNotFound, with("the target has no such record")),
            Problem::Conflict { clash, candidates } => {
                Self::permanent(Code::TargetConflict, with(&conflict(clash, &candidates)))
            }
            Problem::Auth => Self::permanent(
                Code::TargetAuth,
                with("the target refused the resource's credentials; check auth, then reload the agent"),
            ),
            Problem::Forbidden => Self::permanent(
                Code::TargetAuth,
                with("the resource's account lacks the right for this at the target"),
            ),
            Problem::Throttled { retry_after } => {
                Self::retry(Code::TargetThrottled, with("the target asks to come back later"))
                    .retry_after(retry_after)
            }
            Problem::Unavailable => {
                Self::retry(Code::TargetUnreachable, with("the target cannot be reached"))
            }
            Problem::Unsupported => {
                Self::permanent(Code::TargetUnsupported, with("the target cannot do this"))
            }
            Problem::Ambiguous => {
                Self::retry(Code::TargetProtocol, with("the target did not say what became of a write"))
                    .effect_unknown()
            }
            Problem::Protocol => Self::retry(
                Code::TargetProtocol,
                with("the target gave an answer that is none of its interface"),
            ),
            Problem::Ours(code) => {
                let sentence = reason.unwrap_or_else(|| "the attempt could not go on".to_owned());
                match code {
                    Code::Cancelled => Self::cancelled(),
                    Code::PolicyDenied | Code::PathInvalid => Self::denied(code, sentence),
                    Code::TargetTimeout | Code::Internal => Self::retry(code, sentence),
                    _ => Self::permanent(code, sentence),
                }
            }
        };
        match detail {
            Some(detail) => failure.detail(detail),
            None => failure,
        }
    }
}

/// Names at most ten fields.
fn refused_fields(fields: &[FieldError]) -> String {
    let mut text = "the target refused ".to_owned();
    for (index, FieldError { field, reason }) in fields.iter().take(10).enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        let name: String = field.chars().filter(|c| !c.is_control()).take(64).collect();
        let written = match reason.as_str() {
            "" => write!(text, "{comma}fields.{name}"),
            reason => write!(text, "{comma}fields.{name} ({reason})"),
        };
        written.ok();
    }
    text
}

fn conflict(clash: Clash, candidates: &[String]) -> String {
    let what = match clash {
        Clash::Version => "the record has changed since the version that was named",
        Clash::Duplicate => "there is more than one record, or another one, of this key",
    };
    let shown: Vec<String> = candidates.iter().take(10).map(|id| id.chars().take(64).collect()).collect();
    if shown.is_empty() { what.to_owned() } else { format!("{what} (ids {})", shown.join(", ")) }
}

/// A target's text for the public: one line of at most 200 characters; `None` if it is markup, SQL, a traceback, JSON, or
/// names an address or a path, since nobody can tell what else it says.
pub(crate) fn clean(text: &str) -> Option<String> {
    const TELLTALE: &[&str] = &[
        "traceback",
        "<html",
        "<!doctype",
        "<body",
        "select ",
        "insert into",
        "update ",
        "delete from",
        "sqlstate",
        "syntax error",
        "file \"",
        "stack trace",
        "exception in",
        "://",
        ".py",
        ".php",
        "password",
        "/var/",
        "/usr/",
        "/home/",
        "/opt/",
        "c:\\",
        "localhost",
        "127.0.0.1",
    ];
    let line: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_REASON * 4).collect();
    let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
    let lower = line.to_lowercase();
    let telling = TELLTALE.iter().any(|telltale| lower.contains(telltale));
    let markup = line.contains('<') && line.contains('>');
    let structured = line.starts_with(['{', '[']);
    if line.is_empty() || telling || markup || structured || has_address(&line) || has_place(&line) {
        return None;
    }
    let short: String = line.chars().take(MAX_REASON).collect();
    Some(short.trim_end_matches(['.', ' ']).to_owned()).filter(|short| !short.is_empty())
}

/// Whether a text names an IP address.
fn has_address(text: &str) -> bool {
    let four = text
        .split(|c: char| !c.is_ascii_digit() && c != '.')
        .any(|word| word.trim_matches('.').parse::<std::net::Ipv4Addr>().is_ok());
    let six = text
        .split(|c: char| !c.is_ascii_hexdigit() && c != ':')
        .any(|word| word.contains(':') && word.parse::<std::net::Ipv6Addr>().is_ok());
    four || six
}

/// Whether a text names a host, or a path on one: `db01:3306`, `crm.intra.local`, `\\\\srv\\share`, `/srv/crm/x`.
fn has_place(text: &str) -> bool {
    let inner = |c: char| c.is_alphanumeric() || matches!(c, '.' | ':' | '/' | '-' | '_' | '@');
    text.contains('\\') || text.split(|c| !inner(c)).any(|word| is_host(word) || is_path(word))
}

/// A name and its port, or three names with dots between them.
fn is_host(word: &str) -> bool {
    let port = word.split('/').next().and_then(|word| word.rsplit_once(':'));
    let with_port = port.is_some_and(|(host, port)| {
        (2..=5).contains(&port.len())
            && port.chars().all(|c| c.is_ascii_digit())
            && host.contains(|c: char| c.is_alphabetic())
    });
    let dotted = word.split([':', '/', '@']).any(|part| {
        let names: Vec<&str> = part.split('.').filter(|name| !name.is_empty()).collect();
        names.len() > 2 && names.last().is_some_and(|last| last.contains(|c: char| c.is_alphabetic()))
    });
    with_port || dotted
}

/// A path from the root: a day such as `dd/mm/yyyy` is none.
fn is_path(word: &str) -> bool {
    word.match_indices('/').any(|(at, _)| {
        let (before, after) = word.split_at(at);
        let (name, rest) = after.get(1..).and_then(|after| after.split_once('/')).unwrap_or_default();
        !before.ends_with(char::is_alphanumeric) && !name.is_empty() && !rest.is_empty()
    })
}

#[cfg(test)]
mod tests {
    use super::{Clash, CrmError, FieldError, Problem, clean};
    use crate::{Code, Effect, Failure, Verdict};

    #[test]
    fn only_plain_short_reasons_reach_the_public() {
        assert_eq!(
            clean("  The code on party\nmust be unique. ").as_deref(),
            Some("The code on party must be unique")
        );
        assert_eq!(clean(&"é".repeat(500)).unwrap().chars().count(), 200);
        for hidden in [
            "",
            "<html><body>boom</body></html>",
            "Traceback (most recent call last): File \"x.py\"",
            "SQLSTATE[42S22]: Unknown column",
            "error in SELECT rowid FROM llx_socpeople",
            "{\"debug\":1}",
            "see https://crm.intra/x",
            "connect to 10.0.0.5 failed",
            "<b>x</b>",
            "Unknown database host db01.intra.local:3306",
            "cannot reach db01:3306",
            "no route to crm.intra.local",
            "open \\\\srv\\share failed",
            "cannot write /srv/crm/data",
            "cannot write (/data/x)",
            "connect to fe80::1 failed",
            "connect to [2001:db8::7]:443 failed",
        ] {
            assert_eq!(clean(hidden), None, "{hidden}");
        }
        for told in [
            "The date must look like dd/mm/yyyy, e.g. 03/04/2026 at 10:30:15",
            "Enter a valid e-mail address and/or a telephone number",
            "expected: 12 digits (1.5 or 2.5)",
            "see options.utc_offset",
        ] {
            assert_eq!(clean(told).as_deref(), Some(told));
        }
    }

    #[test]
    fn each_problem_becomes_its_code() {
        for (problem, verdict, effect, code) in [
            (
                Problem::Invalid { fields: vec![] },
                Verdict::Permanent,
                Effect::NotApplied,
                Code::InvalidParams,
            ),
            (Problem::NotFound, Verdict::Permanent, Effect::NotApplied, Code::TargetNotFound),
            (
                Problem::Conflict { clash: Clash::Version, candidates: vec![] },
                Verdict::Permanent,
                Effect::NotApplied,
                Code::TargetConflict,
            ),
            (Problem::Auth, Verdict::Permanent, Effect::NotApplied, Code::TargetAuth),
            (Problem::Forbidden, Verdict::Permanent, Effect::NotApplied, Code::TargetAuth),
            (
                Problem::Throttled { retry_after: None },
                Verdict::Retry,
                Effect::NotApplied,
                Code::TargetThrottled,
            ),
            (Problem::Unavailable, Verdict::Retry, Effect::NotApplied, Code::TargetUnreachable),
            (Problem::Unsupported, Verdict::Permanent, Effect::NotApplied, Code::TargetUnsupported),
            (Problem::Ambiguous, Verdict::Retry, Effect::Unknown, Code::TargetProtocol),
            (Problem::Protocol, Verdict::Retry, Effect::NotApplied, Code::TargetProtocol),
            (Problem::Ours(Code::Cancelled), Verdict::Cancelled, Effect::NotApplied, Code::Cancelled),
            (Problem::Ours(Code::PolicyDenied), Verdict::Denied, Effect::NotApplied, Code::PolicyDenied),
        ] {
            let failure = Failure::from(CrmError::new(problem.clone()));
            assert_eq!(
                (failure.verdict, failure.effect, failure.code),
                (verdict, effect, code),
                "{problem:?}"
            );
        }
        let fields = vec![FieldError::new("email", "Invalid e-mail."), FieldError::new("nom", "<b>")];
        assert_eq!(
            Failure::from(CrmError::invalid(fields)).message,
            "the target refused fields.email (Invalid e-mail), fields.nom"
        );
        let two = CrmError::conflict(Clash::Duplicate, vec!["7".to_owned(), "9".to_owned()]);
        assert!(Failure::from(two).message.ends_with("of this key (ids 7, 9)"));
    }
}
