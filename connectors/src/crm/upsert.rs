//! Creating or changing the record of a key, once for all dialects.
//!
//! Where the target does it in one atomic step, that step is taken. Else: one attempt per key at a time in this process; look
//! for the key; none: create, then look again; one: change what differs, on condition that nobody else changed it
//! meanwhile; more than one: a conflict that names them, never a choice.
//!
//! - **A race with another agent or a person** shows when the key is looked for after creating. The record with the lowest
//!   id stays; ours, which is seconds old and nobody's yet, goes if it is not that one.
//! - **A lost reply**: whether a write happened is found out by the key before anything is written again.
//! - **A repeated attempt** (a crash after the intent was journalled): the intent holds a digest of each field as it
//!   was. A field that is neither as it was nor as wanted has been written by somebody later; it is left alone and
//!   named in the result. So an older job that comes back does not overwrite a newer one.
//! - **A field that the target dropped** shows when the record is read back, and is named.

use super::{
    Crm,
    dialect::{Done, Page, Written},
    error::{Clash, CrmError, FieldError, Problem},
    exchange::Talk,
    key::{conflict, hold_to_key, shows},
    params::{Pair, given},
    vocabulary::{Entity, Field, Given, Record},
};
use crate::{Call, Code, Failure, Intent, Outcome};
use aws_lc_rs::digest;
use serde_json::{Map, Value, json};
use std::{cmp::Ordering, time::Duration};

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
        let page = Page { limit: 2, cursor: None };
        let listed =
            self.crm.dialect.find(&self.talk, self.entity(), &self.wanted(), &[self.key()], page).await?;
        hold_to_key(&listed.records, self.key())?;
        Ok(listed.records)
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

    /// Creates the record. `None`: look again.
    async fn create(&self, duplicate: &mut Option<CrmError>) -> Result<Option<Finished>, Failure> {
        let all = self.all();
        let created = match self.crm.dialect.create(&self.talk, self.entity(), &all).await {
            Ok(created) => created,
            // Somebody else was quicker.
            Err(error) if matches!(error.problem, Problem::Conflict { clash: Clash::Duplicate, .. }) => {
                *duplicate = Some(error);
                return Ok(None);
            }
            Err(error) if error.is_ambiguous() => {
                // A look that fails leaves the doubt.
                let found = self.find().await.map_err(after_write)?;
                return match found.as_slice() {
                    [one] if self.differing(one).is_empty() => {
                        Ok(Some(Finished::new(written(one), Done::Created)))
                    }
                    [_, _, ..] => Err(conflict(&found).effect_unknown()),
                    _ => Err(error.into()),
                };
            }
            Err(error) => return Err(error.into()),
        };
        if self.crm.dialect.abilities().unique_keys {
            if self.trusted {
                return Ok(Some(Finished::new(created, Done::Created)));
            }
            let record = self
                .crm
                .dialect
                .get(&self.talk, self.entity(), &created.id, &self.wanted())
                .await
                .map_err(after_write)?;
            // A key that stands in the id shows by its search alone.
            if !shows(&record, self.key()) {
                match self.find().await {
                    Ok(found) if found.iter().any(|found| found.id == created.id) => {}
                    Ok(_) => return Err(self.without_key(&created, &record).await),
                    Err(error) if error.problem == Problem::Protocol => {
                        return Err(self.without_key(&created, &record).await);
                    }
                    Err(error) => return Err(after_write(error)),
                }
            }
            self.look_for_lost(None, &record)?;
            return Ok(Some(Finished::new(written(&record), Done::Created)));
        }
        self.after_creating(created).await
    }

    /// Looks again for the key after creating: is ours the only one?
    async fn after_creating(&self, created: Written) -> Result<Option<Finished>, Failure> {
        // Ours as it was read back first: a target may write values in its own way.
        let mut first = None;
        for _ in 0..=WITHDRAWALS {
            let found = match self.find().await {
                Ok(found) => found,
                // Records without the key: is it ours that has lost it?
                Err(error) if error.problem == Problem::Protocol => {
                    return self.not_found_again(&created, Some(error)).await;
                }
                Err(error) => return Err(after_write(error)),
            };
            if first.is_none() {
                first = found.iter().find(|record| record.id == created.id).cloned();
            }
            match found.as_slice() {
                [one] if one.id == created.id => {
                    self.look_for_lost(None, one)?;
                    return Ok(Some(Finished::new(written(one), Done::Created)));
                }
                // Ours went (the other side of a race took it for the later one): begin again with what is there.
                [_] => return Ok(None),
                [] => return self.not_found_again(&created, None).await,
                several => {
                    let lowest = several.iter().map(|record| record.id.as_str()).min_by(|a, b| by_id(a, b));
                    if lowest != Some(created.id.as_str()) {
                        self.take_back(&created, first.as_ref(), several).await?;
                        return Ok(None);
                    }
                    // Ours stays; the other one's owner sees the same and withdraws it.
                    tokio::time::sleep(WITHDRAWAL).await;
                }
            }
        }
        // Nobody withdrew: the other record is no agent's. It was there first in all but its number.
        let found = self.find().await.map_err(after_write)?;
        if found.len() > 1 && found.iter().any(|record| record.id == created.id) {
            self.take_back(&created, first.as_ref(), &found).await?;
        }
        Ok(None)
    }

    /// The record was created and its key does not find it, or the search failed: the target dropped the key, or shows
    /// new records late.
    async fn not_found_again(
        &self,
        created: &Written,
        search: Option<CrmError>,
    ) -> Result<Option<Finished>, Failure> {
        let dialect = &self.crm.dialect;
        let record = match dialect.get(&self.talk, self.entity(), &created.id, &self.wanted()).await {
            Ok(record) => record,
            Err(error) if error.problem == Problem::NotFound => return Ok(None),
            Err(error) => return Err(after_write(error)),
        };
        let Given { field, value } = self.key();
        if record.fields.get(&field.name).is_some_and(|kept| field.kind.same(kept, value)) {
            if let Some(error) = search {
                return Err(after_write(error));
            }
            self.look_for_lost(None, &record)?;
            return Ok(Some(Finished::new(written(&record), Done::Created)));
        }
        Err(self.without_key(created, &record).await)
    }

    /// Takes back the record that we have just made, which came without its key: every repetition would make another one.
    async fn without_key(&self, created: &Written, record: &Record) -> Failure {
        if let Err(failure) = self.take_back(created, Some(record), &[]).await {
            return failure;
        }
        let name = self.key().field.name.clone();
        CrmError::invalid(vec![FieldError::new(name, "the target dropped it: is it misspelt in the mapping")])
            .into()
    }

    /// Deletes the record that we have just made, unless somebody has written into it since it was read first.
    async fn take_back(
        &self,
        created: &Written,
        first: Option<&Record>,
        several: &[Record],
    ) -> Result<(), Failure> {
        let ours = several.iter().find(|record| record.id == created.id);
        let changed =
            |now: &Record, first: &Record| now.fields != first.fields || now.version != first.version;
        if ours.zip(first).is_some_and(|(now, first)| changed(now, first)) {
            return Err(conflict(several).effect_unknown());
        }
        match self.crm.dialect.delete(&self.talk, self.entity(), &created.id, None).await {
            Ok(()) => Ok(()),
            Err(error) if error.problem == Problem::NotFound => Ok(()),
            Err(error) => {
                let ids = several.iter().map(|record| record.id.clone()).collect();
                let failure = Failure::from(CrmError::conflict(Clash::Duplicate, ids));
                Err(failure.effect_unknown().detail(format!("the later one could not be deleted: {error:?}")))
            }
        }
    }

    /// Changes what differs. `None`: somebody else changed or deleted it meanwhile, look again.
    async fn update(&self, record: &Record, passed: &mut bool) -> Result<Option<Finished>, Failure> {
        let versions = self.crm.dialect.abilities().versions;
        if let Some(version) = &self.upsert.if_version {
            if !versions {
                let reason = "its records have no versions; leave if_version out";
                return Err(CrmError::new(Problem::Unsupported).reason(reason).into());
            }
            if record.version.as_deref() != Some(version) && !self.already_done(record) {
                return Err(CrmError::conflict(Clash::Version, vec![record.id.clone()]).into());
            }
        }
        let (changed, superseded) = self.to_write(record);
        if changed.is_empty() {
            return Ok(Some(Finished { written: written(record), done: Done::Unchanged, superseded }));
        }
        if !*passed {
            self.pass(Some(record)).await?;
            *passed = true;
        }
        let if_version = if versions { record.version.as_deref() } else { None };
        let dialect = &self.crm.dialect;
        let updated = match dialect.update(&self.talk, self.entity(), &record.id, &changed, if_version).await
        {
            Ok(updated) => updated,
            Err(error) if error.problem == Problem::NotFound => return Ok(None),
            Err(error) if matches!(error.problem, Problem::Conflict { clash: Clash::Version, .. }) => {
                return if self.upsert.if_version.is_some() { Err(error.into()) } else { Ok(None) };
            }
            Err(error) if error.is_ambiguous() => {
                let now = dialect.get(&self.talk, self.entity(), &record.id, &self.wanted()).await;
                return match now {
                    Ok(now) if self.differing(&now).is_empty() => {
                        Ok(Some(Finished { written: written(&now), done: Done::Updated, superseded }))
                    }
                    Ok(_) | Err(_) => Err(error.into()),
                };
            }
            Err(error) => return Err(error.into()),
        };
        if self.trusted && (updated.version.is_some() || !versions) {
            let id = record.id.clone();
            return Ok(Some(Finished {
                written: Written { id, ..updated },
                done: Done::Updated,
                superseded,
            }));
        }
        let now =
            dialect.get(&self.talk, self.entity(), &record.id, &self.wanted()).await.map_err(after_write)?;
        self.look_for_lost(Some((record, &changed)), &now)?;
        Ok(Some(Finished { written: written(&now), done: Done::Updated, superseded }))
    }

    /// A repeated attempt that finds all as wanted has done its work, whatever the version is by now.
    fn already_done(&self, record: &Record) -> bool {
        self.call.prior_intent.is_some() && self.differing(record).is_empty()
    }

    /// The fields that are not as wanted.
    fn differing(&self, record: &Record) -> Vec<Given<'a>> {
        let differs = |given: &Given<'_>| {
            let found = record.fields.get(&given.field.name).unwrap_or(&Value::Null);
            !given.field.kind.same(found, given.value)
        };
        self.fields.iter().copied().filter(differs).collect()
    }

    /// The fields to write; and those that somebody wrote after an earlier run of this job began.
    fn to_write(&self, record: &Record) -> (Vec<Given<'a>>, Vec<String>) {
        let differing = self.differing(record);
        let Some(base) = self.base() else { return (differing, Vec::new()) };
        let (mut write, mut superseded) = (Vec::new(), Vec::new());
        for given in differing {
            let name = &given.field.name;
            let found = record.fields.get(name).unwrap_or(&Value::Null);
            match base.get(name).and_then(Value::as_str) {
                Some(was) if was != self.print(given.field, found) => superseded.push(name.clone()),
                Some(_) | None => write.push(given),
            }
        }
        (write, superseded)
    }

    /// What the fields were before an earlier run of this job wrote; only if there was a record then.
    fn base(&self) -> Option<&Map<String, Value>> {
        self.call.prior_intent.as_ref()?.state.get("base")?.as_object()
    }

    /// A short digest of a value, which tells nothing of it.
    fn print(&self, field: &Field, value: &Value) -> String {
        let value = field.kind.read(value);
        let value = if value.as_str() == Some("") { Value::Null } else { value };
        let text = format!("{} {} {value}", self.call.job, field.name);
        let digest = digest::digest(&digest::SHA256, text.as_bytes());
        digest.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    /// Journals what is about to be written.
    async fn pass(&self, record: Option<&Record>) -> Result<(), Failure> {
        let base = match (record, self.base()) {
            // The first run's view counts: what changed since is somebody's.
            (_, Some(base)) => Some(base.clone()),
            (Some(record), None) => Some(
                self.fields
                    .iter()
                    .map(|given| {
                        let found = record.fields.get(&given.field.name).unwrap_or(&Value::Null);
                        (given.field.name.clone(), Value::String(self.print(given.field, found)))
                    })
                    .collect(),
            ),
            (None, None) => None,
        };
        let state = match base {
            Some(base) => json!({ "crm": "upsert", "base": base }),
            None => json!({ "crm": "upsert" }),
        };
        pass(self.call, state).await
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

/// Numbers by their value, everything else by its bytes.
fn by_id(a: &str, b: &str) -> Ordering {
    match (a.parse::<u64>(), b.parse::<u64>()) {
        (Ok(a), Ok(b)) => a.cmp(&b),
        _ => a.cmp(b),
    }
}

fn written(record: &Record) -> Written {
    Written { id: record.id.clone(), version: record.version.clone() }
}

/// A failure that came after something was written: doing it all again is safe, by the key.
fn after_write(error: CrmError) -> Failure {
    Failure::from(error).effect_unknown()
}

/// The dry run: what would be done, and what the target would say against it.
pub(super) async fn dry_run(crm: &Crm, talk: &Talk, upsert: &Upsert<'_>) -> Result<Outcome, Failure> {
    let fields = given(&upsert.fields);
    let described = crm.described(talk, upsert.entity).await?;
    let mut errors = described.writable(upsert.key.0, &fields);
    let key = [Given { field: upsert.key.0, value: &upsert.key.1 }];
    let wanted: Vec<&Field> =
        fields.iter().map(|given| given.field).filter(|field| !described.is_missing(field)).collect();
    let wanted = [&[upsert.key.0][..], &wanted].concat();
    let page = Page { limit: 2, cursor: None };
    let found = crm.dialect.find(talk, upsert.entity, &wanted, &key, page).await?.records;
    hold_to_key(&found, Given { field: upsert.key.0, value: &upsert.key.1 })?;
    let mut result = json!({ "dry_run": true });
    let would = match found.as_slice() {
        [] if upsert.if_version.is_some() => "conflict",
        [] => {
            errors.extend(described.required_missing(upsert.entity, upsert.key.0, &fields));
            "created"
        }
        [one] => {
            result["id"] = Value::String(one.id.clone());
            let same = fields.iter().all(|given| {
                let found = one.fields.get(&given.field.name).unwrap_or(&Value::Null);
                given.field.kind.same(found, given.value)
            });
            let stale = upsert.if_version.is_some() && one.version != upsert.if_version;
            if stale {
                "conflict"
            } else if same {
                "unchanged"
            } else {
                "updated"
            }
        }
        several => {
            result["candidates"] = several.iter().map(|record| json!(record.id)).collect();
            "conflict"
        }
    };
    result["would"] = json!(if errors.is_empty() { would } else { "refused" });
    result["errors"] =
        errors.iter().map(|error| json!({ "field": error.field, "reason": error.reason })).collect();
    Ok(Outcome { result, synced: None, leaves: false })
}
