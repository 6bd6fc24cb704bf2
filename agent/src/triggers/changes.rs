//! One trigger on changes: reads the change feed of its resource page by page in its rhythm, and journals each page's
//! changes with the cursor after it. A page that is read twice makes the same events.
//!
//! Under its own lease it goes on from its own cursor; under a new one from the hub's, which is that of whoever had the
//! trigger before. The hub is told a cursor once it has acknowledged all events up to there.

use super::{
    gate,
    take::{Shared, TIMEOUT, entry, spooled},
};
use crate::{
    agent::Agent,
    audit::Kind,
    clock,
    journal::{
        events::{Content, Follow, Key, Taken, Told},
        told::Read,
    },
    pressure,
    runner::spool::{OutputSpool, Stored},
};
use bytes::Bytes;
use passerelle_config::{Changes as Rule, ChangesStart};
use passerelle_connectors::{Change, Code, Failure, Feeds, Patience, Seen, Start, Verdict};
use passerelle_protocol::{
    CHANGE, ChangeEvent, EventId, Name, Sha256, TriggerCursor,
    limits::{MAX_CURSOR, MAX_EVENT_DATA},
};
use serde_json::{Map, Value};
use std::{sync::Arc, time::Duration};
use tokio::{
    io::AsyncWriteExt as _,
    task::spawn_blocking,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use uuid::Uuid;

/// The longest wait after a failure, in turns.
const MOST_TURNS: u32 = 10;
/// The longest that the target itself may ask for.
const MOST_WAIT: Duration = Duration::from_secs(3600);
/// How soon a cursor is told again that the hub does not show.
const TELL_AGAIN: Duration = Duration::from_secs(15);
/// How often it is looked whether the operator has resumed a trigger that was given up.
const LOOK: Duration = Duration::from_millis(500);
/// What the fields are that are too large for the event itself.
const MEDIA_TYPE: &str = "application/json";

/// One trigger that runs.
pub struct Running {
    agent: Arc<Agent>,
    resource: Shared,
    rule: Rule,
    key: Key,
    kind: Name,
    /// How far the journal says that it was read here.
    read: Option<Read>,
    told: Option<(String, Instant)>,
    stop: CancellationToken,
}

/// What is journalled of one change, and what the spool keeps of it until then.
struct Row {
    taken: Taken,
    spool: Option<OutputSpool>,
}

impl Running {
    /// A trigger of a resource.
    pub fn new(
        agent: Arc<Agent>,
        resource: Shared,
        rule: Rule,
        key: Key,
        kind: Name,
        stop: CancellationToken,
    ) -> Self {
        Self { agent, resource, rule, key, kind, read: None, told: None, stop }
    }

    /// Runs until it is stopped.
    pub async fn run(mut self) {
        let connector = Arc::clone(&self.resource.connector);
        let Some(feeds) = connector.feeds() else { return };
        let mut failures = 0;
        while let Some(lease) = gate::wait(&self.agent, &self.key, &self.stop).await {
            let begun = Instant::now();
            let due = match self.turn(feeds, lease).await {
                Ok(more) => {
                    failures = 0;
                    self.agent.triggers.board.looked(&self.key, Some(0), None);
                    if more { begun } else { begun + self.rule.every }
                }
                Err(_) if self.stop.is_cancelled() => return,
                Err(failure) if failure.code == Code::TargetAuth => {
                    self.give_up(&failure).await;
                    continue;
                }
                Err(failure) => {
                    failures = (failures + 1).min(MOST_TURNS);
                    self.problem(&failure);
                    let asked = failure.retry_after.unwrap_or_default().min(MOST_WAIT);
                    begun + (self.rule.every * failures).max(asked)
                }
            };
            self.rest(due, lease).await;
        }
    }

    fn problem(&self, failure: &Failure) {
        if self.agent.triggers.board.looked(&self.key, None, Some(failure.message.clone())) {
            warn!(
                resource = %self.key.resource, trigger = %self.key.trigger, error = %failure,
                "A change feed cannot be read; trying again"
            );
        }
    }

    /// Waits for new credentials: whoever tries wrong ones again and again is locked out, with the right ones too. A changed
    /// configuration or secret starts the trigger anew; so does the operator by `pause` and `resume`.
    async fn give_up(&self, failure: &Failure) {
        let resource = &self.key.resource;
        let why = format!(
            "{}: it is not read any more, so that the account is not locked; mend the credentials, or run `passerelle-agent \
             pause {resource}` and `resume {resource}`",
            failure.message
        );
        error!(
            resource = %self.key.resource, trigger = %self.key.trigger, error = %failure,
            "A change feed refuses the credentials: it is not read until they change or the resource is resumed"
        );
        self.agent.triggers.board.looked(&self.key, None, Some(why));
        let mut paused = false;
        while !self.stop.is_cancelled() {
            let now = self.agent.pauses.of(resource).is_some();
            if paused && !now {
                info!(resource = %self.key.resource, trigger = %self.key.trigger, "A change feed is tried again");
                return;
            }
            if now && !paused {
                gate::tell(&self.agent, &self.key, gate::pass(&self.agent, &self.key).err().as_ref());
            }
            paused = now;
            tokio::select! {
                () = sleep(LOOK) => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    /// Waits until it is time; tells the hub of the cursor once it may know.
    async fn rest(&mut self, due: Instant, lease: u64) {
        loop {
            let agent = Arc::clone(&self.agent);
            let stirred = agent.triggers.stirred.notified();
            self.tell(lease);
            tokio::select! {
                () = sleep_until(due) => return,
                () = self.stop.cancelled() => return,
                () = stirred => {}
            }
        }
    }

    /// Tells the hub how far the feed was read, if it has all up to there and does not show that it knows.
    fn tell(&mut self, lease: u64) {
        let Some(read) = self.read.as_ref().filter(|read| read.lease == lease) else { return };
        let triggers = &self.agent.triggers;
        let known = triggers.leases.cursor(&self.key).as_ref() == Some(&read.cursor);
        let lately = self
            .told
            .as_ref()
            .is_some_and(|(cursor, at)| *cursor == read.cursor && at.elapsed() < TELL_AGAIN);
        if known || lately || triggers.board.has_waiting(&self.key) {
            return;
        }
        self.told = Some((read.cursor.clone(), Instant::now()));
        let Key { resource, trigger } = self.key.clone();
        self.agent.outbox.cursor(TriggerCursor { resource, trigger, lease, cursor: read.cursor.clone() });
    }

    /// Where to go on under this lease.
    async fn place(&mut self, lease: u64) -> Result<Option<String>, Failure> {
        if self.read.is_none() {
            self.read = self.agent.journal.cursor(self.key.clone()).await.map_err(|error| {
                Failure::retry(Code::Internal, "the agent's journal cannot be read").detail(error)
            })?;
        }
        let own = self.read.as_ref();
        if let Some(own) = own.filter(|own| own.lease == lease) {
            return Ok(Some(own.cursor.clone()));
        }
        Ok(self.agent.triggers.leases.cursor(&self.key).or_else(|| own.map(|own| own.cursor.clone())))
    }

    /// Reads one page and journals it; whether there is more at once.
    async fn turn(&mut self, feeds: &dyn Feeds, lease: u64) -> Result<bool, Failure> {
        let place = self.place(lease).await?;
        let start = match (&place, self.rule.start) {
            (Some(cursor), _) => Start::Cursor(cursor),
            (None, ChangesStart::Now) => Start::Now,
            (None, ChangesStart::Beginning) => Start::Beginning,
            (None, ChangesStart::Since(time)) => Start::Since(time),
        };
        let patience = Patience { timeout: TIMEOUT, cancel: self.stop.clone() };
        let page = {
            let _turn = tokio::select! {
                turn = self.resource.limits.turn() => turn,
                () = self.stop.cancelled() => return Err(Failure::cancelled()),
            };
            let size = self.rule.page_size as usize;
            feeds
                .changes(&self.rule.entity, start, size, &patience)
                .await
                .map_err(|failure| named(failure, place.is_some()))?
        };
        if page.next_cursor.len() > MAX_CURSOR {
            return Err(Failure::permanent(
                Code::TargetProtocol,
                "the cursor of the change feed is too long",
            ));
        }
        // Meanwhile the trigger may have gone to another agent, or the spool may be full: then it is read again.
        if gate::pass(&self.agent, &self.key) != Ok(lease) {
            return Ok(false);
        }
        let unmoved = place.as_ref() == Some(&page.next_cursor);
        let (more, empty) = (page.more, page.items.is_empty());
        if empty && unmoved && self.read.as_ref().is_some_and(|read| read.lease == lease) {
            return Ok(false);
        }
        let read = Read { lease, cursor: page.next_cursor.clone() };
        let mut rows = Vec::with_capacity(page.items.len());
        for change in page.items {
            match self.row(change, lease).await {
                Ok(row) => rows.push(row),
                Err(failure) => {
                    // What was spooled of this page counts no more: all of it is read again.
                    rows.iter().filter_map(|row| row.spool.as_ref()).for_each(OutputSpool::discard);
                    return Err(failure);
                }
            }
        }
        // In a task of its own: what is journalled has to be counted and sent, even if this trigger is stopped just now.
        let (agent, key, kind, keep) =
            (Arc::clone(&self.agent), self.key.clone(), self.kind.clone(), read.clone());
        let tasks = agent.tasks.clone();
        let written = tasks.spawn(async move { journal(&agent, key, &kind, rows, keep).await }).await;
        written.map_err(here)??;
        self.read = Some(read);
        // A feed that says that there is more, but does not get on, is asked in its rhythm.
        Ok(more && !(empty && unmoved))
    }

    async fn row(&self, change: Change, lease: u64) -> Result<Row, Failure> {
        let told = told(change, &self.rule)?;
        let site = &self.agent.identity.enrolled.site;
        let id = told.event.event_id(site, &self.key.resource, &self.key.trigger);
        let path = format!("{}/{}", told.event.entity, told.event.id);
        let data = serde_json::to_string(&told.event).map_err(here)?;
        let payload = told.payload.unwrap_or_default();
        let size = payload.len() as u64;
        let (sha256, media_type) = (Sha256::of(&payload), (size > 0).then(|| MEDIA_TYPE.to_owned()));
        let (content, spool) = self.keep(payload).await?;
        let taken = Taken {
            id,
            key: self.key.clone(),
            kind: self.kind.clone(),
            lease,
            occurred_at: clock::now(),
            seen: Seen { path, size, modified: None, inode: None },
            sha256,
            content,
            marker: None,
            follow: Follow::Keep,
            told: Some(Told { data, media_type }),
        };
        Ok(Row { taken, spool })
    }

    /// Small contents go with their row, larger ones into the spool.
    async fn keep(&self, payload: Bytes) -> Result<(Content, Option<OutputSpool>), Failure> {
        let token = Uuid::now_v7();
        let spool = OutputSpool::new(&self.agent.spool, spooled(token));
        let mut writer = spool.clone();
        let written = async {
            writer.write_all(&payload).await?;
            writer.shutdown().await
        };
        if let Err(error) = written.await {
            spool.discard();
            return Err(here(error));
        }
        let kept = spool.clone();
        match spawn_blocking(move || kept.store()).await.map_err(here)?.map_err(here)? {
            Stored::Memory(bytes) | Stored::Held(bytes) => Ok((Content::Row(bytes), None)),
            Stored::File | Stored::AtHub => Ok((Content::Spool(token), Some(spool))),
        }
    }
}

/// Writes a page, and has it sent.
async fn journal(agent: &Agent, key: Key, kind: &Name, rows: Vec<Row>, read: Read) -> Result<(), Failure> {
    let mut kept: Vec<(EventId, u64, bool, Option<OutputSpool>)> = Vec::with_capacity(rows.len());
    let mut page = Vec::with_capacity(rows.len());
    for Row { taken, spool } in rows {
        kept.push((taken.id, taken.seen.size, spool.is_none(), spool));
        let audit = entry(Kind::ChangeTaken, &key, kind, &taken.seen.path, taken.id, None);
        page.push((taken, audit));
    }
    let bytes = page.iter().map(|(taken, _)| taken.row_bytes() as u64).sum();
    let Some(_room) = pressure::promise(agent, page.len(), bytes).await else {
        kept.iter().filter_map(|(.., spool)| spool.as_ref()).for_each(OutputSpool::discard);
        return Err(Failure::retry(Code::Internal, pressure::ALMOST_FULL));
    };
    let new = match agent.journal.changes(key.clone(), page, read).await {
        Ok(new) => new,
        Err(error) => {
            kept.iter().filter_map(|(.., spool)| spool.as_ref()).for_each(OutputSpool::discard);
            return Err(here(error));
        }
    };
    let count = new.len();
    let mut new: std::collections::BTreeSet<EventId> = new.into_iter().collect();
    for (id, size, in_row, spool) in kept {
        if !new.remove(&id) {
            spool.iter().for_each(OutputSpool::discard);
            continue;
        }
        if in_row && size > 0 {
            agent.spool.resume_input(spooled(id.uuid()), size);
        }
        agent.triggers.journalled(&key, size);
        agent.metrics.changes_taken.inc();
    }
    if count > 0 {
        info!(resource = %key.resource, trigger = %key.trigger, count, "Took changes");
    }
    Ok(())
}

/// An event, and its fields if they are too large for it.
struct ToTell {
    event: ChangeEvent,
    payload: Option<Bytes>,
}

/// What is told of a change.
fn told(change: Change, rule: &Rule) -> Result<ToTell, Failure> {
    let digest = digest(&change);
    let Change { op, id, key, version, fields, stamp: _ } = change;
    let fields = fields.map(|fields| match &rule.fields {
        Some(wanted) => fields.into_iter().filter(|(name, _)| wanted.contains(name)).collect(),
        None => fields,
    });
    let entity = rule.entity.clone();
    let mut event = ChangeEvent { entity, op: op.as_str().to_owned(), id, key, version, fields, digest };
    let fits = |event: &ChangeEvent| {
        Ok::<_, Failure>(serde_json::to_string(event).map_err(here)?.len() <= MAX_EVENT_DATA)
    };
    if fits(&event)? {
        return Ok(ToTell { event, payload: None });
    }
    let fields = event.fields.take().map(Value::Object).unwrap_or_else(|| Value::Object(Map::new()));
    if !fits(&event)? {
        let message = "a record of the change feed has an id, key or version that is too long to be told";
        return Err(Failure::permanent(Code::TargetProtocol, message));
    }
    Ok(ToTell { event, payload: Some(serde_json::to_vec(&fields).map_err(here)?.into()) })
}

/// Tells a change from the others of its record: by what the feed gives, whatever of it is sent on.
fn digest(change: &Change) -> Sha256 {
    let content = Value::Array(vec![
        Value::from(change.stamp.as_str()),
        change.version.as_deref().map_or(Value::Null, Value::from),
        change.key.clone().map_or(Value::Null, Value::Object),
        change.fields.clone().map_or(Value::Null, Value::Object),
    ]);
    Sha256::of(content.to_string().as_bytes())
}

/// What to do about a feed that does not know its own cursor.
fn named(failure: Failure, by_cursor: bool) -> Failure {
    if by_cursor && failure.code == Code::InvalidParams && failure.verdict == Verdict::Permanent {
        let message = format!("{}: to read the feed anew, give the trigger another `name`", failure.message);
        return Failure { message, ..failure };
    }
    failure
}

fn here(error: impl std::fmt::Display) -> Failure {
    Failure::retry(Code::Internal, "the agent's disk or journal cannot be written").detail(error)
}

/// The kind's name.
pub fn kind() -> Option<Name> {
    CHANGE.parse().ok()
}

#[cfg(test)]
#[path = "changes_tests.rs"]
mod tests;
