//! Creating or changing the record of a key, once for all dialects.
//!
//! Where the target does it in one atomic step, that step is taken. Else: one attempt per key at a time in this process; look
//! for the key; none: create, then look again; one: change what differs, on condition that nobody else changed it
//! meanwhile; more than one: a conflict that names them, never a choice.
//!
//! - **A race with another agent or a person** shows when the key is looked for after creating. The record with the lowest
//!   id stays; ours, which is seconds old and nobody's yet, goes if it is not that one, and surely ours ([`own`]).
//! - **A lost reply**: whether a write happened is found out by the key before anything is written again.
//! - **A repeated attempt** (a crash after the intent was journalled): the intent holds a digest of each field as it
//!   was. A field that is neither as it was nor as wanted has been written by somebody later; it is left alone and
//!   named in the result. So an older job that comes back does not overwrite a newer one.
//! - **A field that the target dropped** shows when the record is read back, and is named.

mod create;
pub(super) mod dry_run;
mod intent;
mod own;
mod update;

use super::{
    Crm,
    dialect::{Done, Written},
    error::{Clash, CrmError, FieldError, Problem},
    exchange::Talk,
    key::{conflict, look},
    params::{Pair, given},
    vocabulary::{Entity, Field, Given, Record},
};
use crate::{Call, Code, Failure, Intent, Outcome};
use serde_json::{Value, json};
use std::time::Duration;

/// How often a race is met with another try before the attempt gives up.
const TRIES: usize = 4;
/// How long, and how often, the other one of a race is given to withdraw its record.
const WITHDRAWAL: Duration = Duration::from_millis(300);
const WITHDRAWALS: usize = 4;

/// What an upsert is to do.
pub(super) struct Upsert<'e> {
    pub(super) entity: &'e Entity,
    pub(super) key: Pair<'e>,
    pub(super) fields: Vec<Pair<'e>>,
    pub(super) if_version: Option<String>,
}

/// What was done.
struct Finished {
    written: Written,
    done: Done,
    superseded: Vec<String>,
}

impl Finished {
    fn new(written: Written, done: Done) -> Self {
        Self { written, done, superseded: Vec::new() }
    }
}

/// Performs it.
pub(super) async fn run(crm: &Crm, call: &Call, upsert: &Upsert<'_>) -> Result<Outcome, Failure> {
    let talk = Talk::from(call);
    let _turn = tokio::select! {
        biased;
        () = call.cancel.cancelled() => return Err(Failure::cancelled()),
        turn = crm.turn(upsert.entity, &upsert.key.1) => turn,
    };
    let given_fields = given(&upsert.fields);
    let described = crm.described(&talk, upsert.entity).await?;
    let errors = described.writable(upsert.key.0, &given_fields);
    if !errors.is_empty() {
        return Err(described.refusal(errors));
    }
    let engine = Engine { crm, call, talk, upsert, fields: given_fields, trusted: described.is_complete() };
    let done = if crm.dialect.abilities().native_upsert && upsert.if_version.is_none() {
        engine.native().await?
    } else {
        engine.searching().await?
    };
    let mut result = json!({ "id": done.written.id, "outcome": outcome(done.done) });
    if let Some(version) = done.written.version {
        result["version"] = Value::String(version);
    }
    if !done.superseded.is_empty() {
        result["superseded"] = json!(done.superseded);
    }
    Ok(Outcome { result, synced: None, leaves: false })
}

pub(super) fn outcome(done: Done) -> &'static str {
    match done {
        Done::Created => "created",
        Done::Updated => "updated",
        Done::Unchanged => "unchanged",
    }
}

struct Engine<'a> {
    crm: &'a Crm,
    call: &'a Call,
    talk: Talk,
    upsert: &'a Upsert<'a>,
    fields: Vec<Given<'a>>,
    /// The target's own description says that every field exists and can be written, so nothing needs to be read back.
    trusted: bool,
}

impl<'a> Engine<'a> {
    fn entity(&self) -> &'a Entity {
        self.upsert.entity
    }

    fn key(&self) -> Given<'a> {
        Given { field: self.upsert.key.0, value: &self.upsert.key.1 }
    }

    /// Key and fields.
    fn all(&self) -> Vec<Given<'a>> {
        std::iter::once(self.key()).chain(self.fields.iter().copied()).collect()
    }

    fn wanted(&self) -> Vec<&'a Field> {
        self.all().iter().map(|given| given.field).collect()
    }

    async fn native(&self) -> Result<Finished, Failure> {
        self.pass(None).await?;
        let dialect = &self.crm.dialect;
        let mut refused = 0;
        let (written, done) = loop {
            match dialect.upsert_native(&self.talk, self.entity(), self.key(), &self.fields).await {
                Ok(done) => break done,
                // Atomic, so that doing it again is doing it once.
                Err(error)
                    if refused < TRIES
                        && matches!(error.problem, Problem::Conflict { clash: Clash::Duplicate, .. }) =>
                {
                    refused += 1;
                    tokio::time::sleep(WITHDRAWAL).await;
                }
                Err(error) => return Err(error.into()),
            }
        };
        if !self.trusted && done != Done::Unchanged {
            let record = dialect
                .get(&self.talk, self.entity(), &written.id, &self.wanted())
                .await
                .map_err(after_write)?;
            self.look_for_lost(None, &record)?;
            return Ok(Finished::new(
                Written { version: record.version.or(written.version), ..written },
                done,
            ));
        }
        Ok(Finished::new(written, done))
    }

    async fn searching(&self) -> Result<Finished, Failure> {
        let mut passed = false;
        let mut duplicate = None;
        for _ in 0..TRIES {
            let found = self.settled().await?;
            let record = match found.as_slice() {
                [] => None,
                [one] => Some(one),
                several => return Err(conflict(several)),
            };
            if let (Some(version), None) = (&self.upsert.if_version, record) {
                let reason = format!("version {version:?} was named, and there is no record of this key");
                return Err(CrmError::new(Problem::NotFound).reason(&reason).into());
            }
            let step = match record {
                None => {
                    if !passed {
                        self.pass(None).await?;
                        passed = true;
                    }
                    self.create(&mut duplicate).await?
                }
                Some(record) => {
                    // Who was quicker shows: what clashes from now on are versions, which is worth another try.
                    duplicate = None;
                    self.update(record, &mut passed).await?
                }
            };
            if let Some(done) = step {
                return Ok(done);
            }
        }
        Err(match duplicate {
            Some(error) => Failure::from(error),
            None => Failure::retry(
                Code::TargetConflict,
                "the record kept changing while it was written; try again, or use an order_key",
            ),
        })
    }

    async fn find(&self) -> Result<Vec<Record>, CrmError> {
        look(self.crm, &self.talk, self.entity(), &self.wanted(), self.key()).await
    }

    /// What the key finds. More than one may be a race of others that is just being settled, which takes them longer than
    /// [`WITHDRAWALS`] where the one to withdraw is not the one that was expected to.
    async fn settled(&self) -> Result<Vec<Record>, CrmError> {
        let mut found = self.find().await?;
        for _ in 0..3 * WITHDRAWALS {
            if found.len() < 2 || self.crm.dialect.abilities().unique_keys {
                break;
            }
            tokio::time::sleep(WITHDRAWAL).await;
            found = self.find().await?;
        }
        Ok(found)
    }

    /// The fields that are not as wanted.
    fn differing(&self, record: &Record) -> Vec<Given<'a>> {
        let differs = |given: &Given<'_>| {
            let found = record.fields.get(&given.field.name).unwrap_or(&Value::Null);
            !given.field.kind.same(found, given.value)
        };
        self.fields.iter().copied().filter(differs).collect()
    }

    /// Whether the target dropped a field: it is not as wanted, and either nothing, or what it was before. A field
    /// that the target writes in its own way (a telephone number without spaces) is neither.
    fn look_for_lost(&self, before: Option<(&Record, &[Given<'_>])>, now: &Record) -> Result<(), Failure> {
        let written = before.map_or(&self.fields[..], |(_, changed)| changed);
        let lost: Vec<FieldError> = written
            .iter()
            .filter(|given| {
                let found = now.fields.get(&given.field.name).unwrap_or(&Value::Null);
                let empty = given.field.kind.same(found, &Value::Null);
                let as_before = before.is_some_and(|(record, _)| {
                    let old = record.fields.get(&given.field.name).unwrap_or(&Value::Null);
                    given.field.kind.same(found, old)
                });
                !given.field.kind.same(found, given.value) && (empty || as_before)
            })
            .map(|given| {
                FieldError::new(
                    given.field.name.clone(),
                    "the target dropped it: is it misspelt in the mapping",
                )
            })
            .collect();
        if lost.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = lost.iter().map(|error| error.field.clone()).collect();
        let id = &now.id;
        let failure = Failure::from(CrmError::invalid(lost)).effect_unknown();
        Err(failure.detail(format!("record {id} was written, but not its fields {}", names.join(", "))))
    }
}

/// Journals an intent, unless the attempt is cancelled.
pub(super) async fn pass(call: &Call, state: Value) -> Result<(), Failure> {
    let intent = Intent { part: None, target: None, size: None, sha256: None, state };
    tokio::select! {
        biased;
        () = call.cancel.cancelled() => Err(Failure::cancelled()),
        passed = call.gate.pass(&intent) => passed,
    }
}

fn written(record: &Record) -> Written {
    Written { id: record.id.clone(), version: record.version.clone() }
}

/// A failure that came after something was written: doing it all again is safe, by the key.
fn after_write(error: CrmError) -> Failure {
    Failure::from(error).effect_unknown()
}
