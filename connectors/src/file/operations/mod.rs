//! The operations, written once over any backend.
//!
//! Those with an effect (drop, move, delete, what follows a fetch) ask the call's gate right before it, and after a crash decide from what
//! they find under their intent whether it happened.

mod delete;
mod drop;
mod fetch;
mod finish;
pub(super) mod list;
mod moving;
mod refusal;
mod then;

use super::{
    backend::{Backend, FsError, Links, Problem, Stat},
    params::{Fetch, OnConflict, Params},
    place::Place,
    pool::Pool,
};
use crate::{Call, Code, Failure, Input, Intent, Outcome, Output};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// How many names `on_conflict: "suffix"` tries.
const MAX_SUFFIX: u32 = 1000;

/// Performs one attempt.
pub(super) async fn execute(
    pool: &Pool,
    call: &Call,
    params: Params,
    input: Option<Input>,
    output: &mut Output,
) -> Result<Outcome, Failure> {
    match params {
        Params::Drop(params) => drop::drop(pool, call, &params, input).await,
        Params::Fetch(Fetch { place, then: None }) => fetch::fetch(pool, call, place, output).await,
        Params::Fetch(Fetch { place, then: Some(after) }) => {
            then::fetch(pool, call, place, after, output).await
        }
        Params::List(params) => list::list(pool, call, params).await,
        Params::Stat(place) => list::stat(pool, call, place).await,
        Params::Move(params) => moving::move_file(pool, call, &params).await,
        Params::Delete(place) => delete::delete(pool, call, &place).await,
    }
}

/// What recognises a file again: inode where there is one, size and time everywhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Fingerprint {
    size: u64,
    modified: Option<String>,
    inode: Option<(u64, u64)>,
}

impl Fingerprint {
    /// Whether that is the file. The device's number does not count: it changes with each mount, and from agent to agent.
    fn matches(&self, stat: Stat) -> bool {
        let there = Self::from(stat);
        let number = |of: &Self| of.inode.map(|(_, number)| number);
        self.size == there.size && self.modified == there.modified && number(self) == number(&there)
    }
}

impl From<Stat> for Fingerprint {
    fn from(stat: Stat) -> Self {
        let Stat { kind: _, size, modified, inode } = stat;
        Self { size, modified: modified.map(|time| time.to_string()), inode }
    }
}

/// A result that knows of no content to sync.
fn plain(result: Value) -> Outcome {
    Outcome { result, synced: None, leaves: false }
}

/// An item as `list` and `stat` show it.
fn item(path: &str, stat: Stat) -> Value {
    let Stat { kind, size, modified, inode: _ } = stat;
    json!({ "path": path, "kind": kind.as_str(), "size": size, "modified_at": modified.map(|time| time.to_string()) })
}

/// What is at a place, if anything is.
fn look(fs: &mut dyn Backend, place: &Place, links: Links) -> Result<Option<Stat>, FsError> {
    match fs.stat(place.as_str(), links) {
        Ok(stat) => Ok(Some(stat)),
        Err(error) if error.problem == Problem::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The connector's own part of an intent.
fn state<T: DeserializeOwned>(intent: &Intent) -> Result<T, Failure> {
    T::deserialize(&intent.state).map_err(|error| {
        Failure::permanent(
            Code::Internal,
            "what an earlier attempt intended cannot be read, so nothing is done",
        )
        .effect_unknown()
        .detail(error)
    })
}

/// The place that an intent names for what goes to `place`. The intent may be the hub's word for what another agent was
/// granted: whatever this job could not have chosen by its own parameters, which the policy has allowed, is refused.
fn intended(place: &Place, on_conflict: OnConflict, named: &str) -> Result<Place, Failure> {
    let names = if on_conflict == OnConflict::Suffix { MAX_SUFFIX } else { 1 };
    place.own_name(named, names).ok_or_else(of_another_job)
}

/// Of no attempt of this job.
fn of_another_job() -> Failure {
    let message = "what an earlier attempt is said to have intended is not of this job, so nothing is done";
    Failure::permanent(Code::PathInvalid, message).effect_unknown()
}

/// A failed effect: lost on the way, it may have happened.
fn effect_failure(error: FsError) -> Failure {
    let broken = error.is_broken();
    let failure = Failure::from(error);
    if broken { failure.effect_unknown() } else { failure }
}

/// No name is left for `on_conflict: "suffix"`.
fn no_free_name() -> Failure {
    Failure::permanent(
        Code::TargetConflict,
        format!("the name and {MAX_SUFFIX} names with a suffix are taken"),
    )
}
