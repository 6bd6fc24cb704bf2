//! What a job says: the parameters of each operation, their JSON Schema, and what they demand of the local policy.

use super::place::{Place, join};
use crate::{Code, Demands, Failure, OperationSpec, Repeat, Right};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use globset::{Glob, GlobBuilder};
use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

const MAX_LIMIT: u32 = 10_000;
const MAX_PATTERN: usize = 1024;

/// What to do when the target is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum OnConflict {
    /// Replace it, in one step where the target can.
    Replace,
    /// Fail with `target_conflict`.
    Fail,
    /// Take the next free name: `report (2).csv`.
    Suffix,
}

/// What to do with the source once its content is safe.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Then {
    /// Leave it where it is.
    Keep,
    /// Delete it.
    Delete,
    /// Move it to another path.
    MoveTo(String),
}

/// Parameters of `drop`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct DropParams {
    /// Where the file shall be: relative to the resource's folder, `/` between names.
    path: String,
    /// If there is one already.
    #[serde(default = "replace")]
    on_conflict: OnConflict,
    /// Whether missing folders are made.
    #[serde(default)]
    create_dirs: bool,
}

/// Parameters of `fetch`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct FetchParams {
    /// The file.
    path: String,
    /// What happens to it once its content is stored at the hub: `keep`, `delete`, or `{"move_to": PATH}` to a free place
    /// in a folder that is there. Only the very file that was read is deleted or moved.
    #[serde(default = "keep")]
    then: Then,
}

/// Parameters of `list`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ListParams {
    /// The folder; without it the resource's own.
    #[serde(default)]
    path: String,
    /// Only names that match: `*`, `?`, `[a-z]`, `{a,b}`.
    #[serde(default)]
    pattern: Option<String>,
    /// Whether folders below are listed too.
    #[serde(default)]
    recursive: bool,
    /// At most so many items. A page whose JSON would be too long for a result has fewer.
    #[serde(default = "limit")]
    #[schemars(range(min = 1, max = 10_000))]
    limit: u32,
    /// The `next_cursor` of the page before.
    #[serde(default)]
    cursor: Option<String>,
}

/// Parameters of `stat` and `delete`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct PathParams {
    /// The file or folder.
    path: String,
}

/// Parameters of `move`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct MoveParams {
    /// The file.
    from: String,
    /// Where it shall be.
    to: String,
    /// If there is one already.
    #[serde(default = "fail")]
    on_conflict: OnConflict,
}

fn replace() -> OnConflict {
    OnConflict::Replace
}

fn fail() -> OnConflict {
    OnConflict::Fail
}

fn keep() -> Then {
    Then::Keep
}

fn limit() -> u32 {
    1000
}

/// Where a listing goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cursor {
    /// The last item shown, relative to the listed folder.
    pub(super) last: String,
    /// Whether it was a folder, whose own content comes next.
    pub(super) inside: bool,
}

impl Cursor {
    /// As clients carry it.
    pub(super) fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(format!("{}{}", if self.inside { '+' } else { '-' }, self.last))
    }

    fn decode(text: &str) -> Option<Self> {
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        let (inside, last) = text
            .strip_prefix('+')
            .map(|last| (true, last))
            .or(text.strip_prefix('-').map(|last| (false, last)))?;
        Place::new(last).ok()?;
        Some(Self { last: last.to_owned(), inside })
    }
}

/// Checked parameters of `drop`.
#[derive(Debug)]
pub(super) struct Drop {
    pub(super) place: Place,
    pub(super) on_conflict: OnConflict,
    pub(super) create_dirs: bool,
}

/// What follows a fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum After {
    Delete,
    MoveTo(Place),
}

/// Checked parameters of `fetch`.
#[derive(Debug)]
pub(super) struct Fetch {
    pub(super) place: Place,
    /// `None`: the file stays where it is.
    pub(super) then: Option<After>,
}

/// Checked parameters of `list`.
#[derive(Debug)]
pub(super) struct List {
    /// The folder, `""` for the root.
    pub(super) folder: String,
    pub(super) pattern: Option<Glob>,
    pub(super) recursive: bool,
    pub(super) limit: usize,
    pub(super) cursor: Option<Cursor>,
}

/// Checked parameters of `move`.
#[derive(Debug)]
pub(super) struct Move {
    pub(super) from: Place,
    pub(super) to: Place,
    pub(super) on_conflict: OnConflict,
}

/// The checked parameters of an operation.
#[derive(Debug)]
pub(super) enum Params {
    Drop(Drop),
    Fetch(Fetch),
    List(List),
    Stat(Place),
    Move(Move),
    Delete(Place),
}

impl Params {
    /// Reads and checks.
    pub(super) fn read(operation: &str, params: &Value) -> Result<Self, Failure> {
        match operation {
            "drop" => {
                let DropParams { path, on_conflict, create_dirs } = typed(operation, params)?;
                Ok(Self::Drop(Drop { place: Place::new(&path)?, on_conflict, create_dirs }))
            }
            "fetch" => {
                let FetchParams { path, then } = typed(operation, params)?;
                let place = Place::new(&path)?;
                let then = match then {
                    Then::Keep => None,
                    Then::Delete => Some(After::Delete),
                    Then::MoveTo(to) if to == path => {
                        return Err(invalid("move_to is the path itself; name another place".to_owned()));
                    }
                    Then::MoveTo(to) => Some(After::MoveTo(Place::new(&to)?)),
                };
                Ok(Self::Fetch(Fetch { place, then }))
            }
            "list" => list(typed(operation, params)?).map(Self::List),
            "stat" => {
                typed(operation, params).and_then(|PathParams { path }| Place::new(&path).map(Self::Stat))
            }
            "move" => {
                let MoveParams { from, to, on_conflict } = typed(operation, params)?;
                Ok(Self::Move(Move { from: Place::new(&from)?, to: Place::new(&to)?, on_conflict }))
            }
            "delete" => {
                typed(operation, params).and_then(|PathParams { path }| Place::new(&path).map(Self::Delete))
            }
            _ => Err(invalid(format!("the file connector has no operation `{operation}`"))),
        }
    }

    /// What the policy must allow.
    pub(super) fn demands(&self) -> Demands {
        let mut rights = Vec::new();
        let paths = match self {
            Self::Drop(Drop { place, on_conflict, create_dirs }) => {
                rights.extend((*on_conflict == OnConflict::Replace).then_some(Right::Replace));
                rights.extend(create_dirs.then_some(Right::CreateDirs));
                vec![place.to_string()]
            }
            Self::Fetch(Fetch { place, then }) => {
                rights.extend(then.is_some().then_some(Right::DeleteAfterFetch));
                let mut paths = vec![place.to_string()];
                if let Some(After::MoveTo(to)) = then {
                    paths.push(to.to_string());
                }
                paths
            }
            Self::List(list) => list.demanded_paths(),
            Self::Stat(place) | Self::Delete(place) => vec![place.to_string()],
            Self::Move(Move { from, to, on_conflict }) => {
                rights.extend((*on_conflict == OnConflict::Replace).then_some(Right::Replace));
                vec![from.to_string(), to.to_string()]
            }
        };
        Demands { paths, rights, ..Demands::default() }
    }
}

impl List {
    /// What a listing may reveal, written as paths: `folder/PATTERN`, and `folder/**/PATTERN` for the folders below.
    /// As patterns are made of ordinary characters to a rule's glob, the rule `**/*.csv` allows all that `list` with the
    /// pattern `*.csv` may show in any folder. Without a pattern it would show other names: the policy leaves those out.
    fn demanded_paths(&self) -> Vec<String> {
        let pattern = self.pattern.as_ref().map_or("*", Glob::glob);
        let mut paths = vec![join(&self.folder, pattern)];
        if self.recursive {
            paths.push(join(&self.folder, &format!("**/{pattern}")));
        }
        paths
    }
}

fn list(params: ListParams) -> Result<List, Failure> {
    let ListParams { path, pattern, recursive, limit, cursor } = params;
    if !path.is_empty() {
        Place::new(&path)?;
    }
    let pattern = pattern.map(|pattern| glob(&pattern)).transpose()?;
    if limit == 0 || limit > MAX_LIMIT {
        return Err(invalid(format!("limit is {limit}; it must be from 1 to {MAX_LIMIT}")));
    }
    let cursor = match cursor {
        // Of a listing that does not descend, no item lies deeper: one that says so would lead where no rule was asked.
        Some(text) => Some(
            Cursor::decode(&text)
                .filter(|cursor| recursive || !cursor.last.contains('/'))
                .ok_or_else(|| invalid("cursor is not one that list gave; start without it".to_owned()))?,
        ),
        None => None,
    };
    Ok(List { folder: path, pattern, recursive, limit: limit as usize, cursor })
}

fn glob(pattern: &str) -> Result<Glob, Failure> {
    if pattern.is_empty() || pattern.len() > MAX_PATTERN || pattern.contains(['/', '\0']) {
        return Err(invalid(
            "pattern must be a name of 1 to 1024 bytes without a slash, as *.csv".to_owned(),
        ));
    }
    GlobBuilder::new(pattern)
        .literal_separator(true)
        .backslash_escape(true)
        .build()
        .map_err(|e| invalid(format!("pattern is not a glob: {}", e.kind())))
}

fn typed<T: DeserializeOwned>(operation: &str, params: &Value) -> Result<T, Failure> {
    T::deserialize(params).map_err(|e| invalid(format!("the parameters do not fit {operation}: {e}")))
}

fn invalid(message: String) -> Failure {
    Failure::permanent(Code::InvalidParams, message)
}

/// The operations. All of them may be repeated: drop, move, delete, and what follows a fetch decide under their intent what
/// an earlier attempt did, the others change nothing.
pub(super) fn operations() -> Vec<OperationSpec> {
    let spec = |name, params_schema: schemars::Schema| OperationSpec {
        name,
        repeat: Repeat::Safe,
        params_schema: params_schema.into(),
        takes_payload: name == "drop",
        makes_output: name == "fetch",
        needs_paths: true,
    };
    vec![
        spec("drop", schema_for!(DropParams)),
        spec("fetch", schema_for!(FetchParams)),
        spec("list", schema_for!(ListParams)),
        spec("stat", schema_for!(PathParams)),
        spec("move", schema_for!(MoveParams)),
        spec("delete", schema_for!(PathParams)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Verdict;
    use serde_json::json;

    fn demands(operation: &str, params: Value) -> Demands {
        Params::read(operation, &params).unwrap().demands()
    }

    fn refused(operation: &str, params: Value) -> (Verdict, Code, String) {
        let failure = Params::read(operation, &params).unwrap_err();
        (failure.verdict, failure.code, failure.message)
    }

    #[test]
    fn demands_name_paths_and_rights() {
        let check = |operation, params, paths: &[&str], rights: &[Right]| {
            let demands = demands(operation, params);
            assert_eq!(demands.paths, paths);
            assert_eq!(demands.rights, rights);
            assert_eq!(demands.method, None);
        };
        check("drop", json!({"path": "a/b.csv"}), &["a/b.csv"], &[Right::Replace]);
        check("drop", json!({"path": "a", "on_conflict": "fail"}), &["a"], &[]);
        let both = [Right::Replace, Right::CreateDirs];
        check("drop", json!({"path": "a", "create_dirs": true}), &["a"], &both);
        check("fetch", json!({"path": "a"}), &["a"], &[]);
        check("fetch", json!({"path": "a", "then": "delete"}), &["a"], &[Right::DeleteAfterFetch]);
        let moved = json!({"path": "a", "then": {"move_to": "done/a"}});
        check("fetch", moved, &["a", "done/a"], &[Right::DeleteAfterFetch]);
        check("move", json!({"from": "a", "to": "b"}), &["a", "b"], &[]);
        let replacing = json!({"from": "a", "to": "b", "on_conflict": "replace"});
        check("move", replacing, &["a", "b"], &[Right::Replace]);
        check("stat", json!({"path": "a"}), &["a"], &[]);
        check("delete", json!({"path": "a"}), &["a"], &[]);
    }

    #[test]
    fn a_list_demands_the_names_it_may_reveal() {
        let rule = |glob| GlobBuilder::new(glob).literal_separator(true).build().unwrap().compile_matcher();
        let allowed =
            |glob, params| demands("list", params).paths.iter().all(|path| rule(glob).is_match(path));
        assert!(allowed("**/*.csv", json!({"pattern": "*.csv"})));
        assert!(allowed("**/*.csv", json!({"path": "in", "pattern": "*.csv", "recursive": true})));
        assert!(!allowed("**/*.csv", json!({"path": "in"})));
        assert!(allowed("in/**", json!({"path": "in", "recursive": true})));
        assert!(allowed("in/*", json!({"path": "in"})));
        assert!(!allowed("in/*", json!({"path": "in", "recursive": true})));
        assert!(!allowed("in/**", json!({})));
        assert!(allowed("**", json!({})));
    }

    #[test]
    fn bad_parameters_say_what_is_wrong() {
        let invalid = |operation, params, word: &str| {
            let (verdict, code, message) = refused(operation, params);
            assert_eq!((verdict, code), (Verdict::Permanent, Code::InvalidParams));
            assert!(message.contains(word), "{message}");
        };
        invalid("drop", json!({}), "missing field `path`");
        invalid("drop", json!({"path": "a", "mode": 1}), "unknown field `mode`");
        invalid("drop", json!({"path": "a", "on_conflict": "merge"}), "unknown variant `merge`");
        invalid("drop", json!({"path": 7}), "invalid type");
        invalid("list", json!({"limit": 0}), "from 1 to 10000");
        invalid("list", json!({"limit": 10_001}), "from 1 to 10000");
        invalid("list", json!({"pattern": "a/*.csv"}), "without a slash");
        invalid("list", json!({"pattern": "[a"}), "not a glob");
        invalid("list", json!({"cursor": "!"}), "start without it");
        invalid(
            "list",
            json!({"cursor": Cursor { last: "../a".into(), inside: false }.encode()}),
            "start without",
        );
        let deeper = Cursor { last: "sub/a".into(), inside: false }.encode();
        invalid("list", json!({"cursor": deeper}), "start without");
        assert!(Params::read("list", &json!({"cursor": deeper, "recursive": true})).is_ok());
        invalid("rename", json!({}), "no operation `rename`");
        for params in [json!({"path": "../a"}), json!({"path": "/a"})] {
            assert_eq!(refused("stat", params).1, Code::PathInvalid);
        }
        assert_eq!(refused("fetch", json!({"path": "a", "then": {"move_to": "../b"}})).1, Code::PathInvalid);
        invalid("fetch", json!({"path": "a", "then": {"move_to": "a"}}), "another place");
        invalid("fetch", json!({"path": "a", "then": "burn"}), "unknown variant `burn`");
        assert_eq!(refused("move", json!({"from": "a", "to": ""})).1, Code::PathInvalid);
    }

    #[test]
    fn cursors_come_back_as_they_were() {
        for cursor in
            [Cursor { last: "a/é\nb".into(), inside: true }, Cursor { last: "+x".into(), inside: false }]
        {
            assert_eq!(Cursor::decode(&cursor.encode()), Some(cursor));
        }
    }

    #[test]
    fn schemas_are_closed_and_name_their_parameters() {
        for operation in operations() {
            assert_eq!(operation.params_schema["additionalProperties"], json!(false), "{}", operation.name);
            assert!(operation.params_schema["properties"].is_object(), "{}", operation.name);
        }
    }
}
