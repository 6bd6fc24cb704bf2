//! Takes one file: into the spool with its digest, and then, with its row of the audit, into the journal.

use crate::{
    agent::Agent,
    audit::{Entry, Kind},
    clock,
    journal::events::{Content, Follow, Key, Taken, file_event},
    pressure,
    runner::spool::{OutputSpool, Stored},
    settings::Resource,
};
use passerelle_connectors::{Code, Failure, Output, Patience, Seen, Verdict};
use passerelle_protocol::{EventId, JobId, Name, Sha256, session::Attempt};
use std::{sync::Arc, time::Duration};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

/// How long one wait on the target may take.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// What is to be taken, and for whom.
pub struct What {
    /// The trigger.
    pub key: Key,
    /// Its kind.
    pub kind: Name,
    /// Its lease.
    pub lease: u64,
    /// The file.
    pub seen: Seen,
    /// The file that says it is whole.
    pub marker: Option<Seen>,
    /// What follows.
    pub follow: Follow,
    /// The largest that is taken.
    pub max_size: Option<u64>,
    /// The content that was sent last, of a watched file.
    pub before: Option<Sha256>,
}

/// What came of it.
#[derive(Debug)]
pub enum Outcome {
    /// It is in the journal.
    Taken,
    /// Another trigger, or an earlier run, had taken it; or its content is the one that was sent last.
    Known,
    /// It is another one by now, or gone: look again.
    Changed,
    /// There is no room in the spool for it now.
    NoRoom,
    /// It cannot be taken as it is.
    Left {
        /// Why, in a public sentence.
        why: String,
        /// Whether that may change while the file does not: its rights, say.
        may_change: bool,
    },
    /// The target or this machine fails: try again later.
    Later(Failure),
}

/// The spool's word for a content.
pub fn spooled(id: Uuid) -> Attempt {
    // Attempts of jobs count from 1.
    Attempt::new(JobId::from(id), 0)
}

/// Takes it.
pub async fn take(agent: &Agent, resource: &Resource, what: What, stop: &CancellationToken) -> Outcome {
    let Some(triggers) = resource.connector.triggers() else {
        return Outcome::Left { why: "the connector has no triggers".to_owned(), may_change: false };
    };
    let size = what.seen.size;
    let most = what.max_size.unwrap_or(u64::MAX).min(agent.spool.quota());
    if size > most {
        let why = format!("{size} bytes are more than the {most} allowed");
        return Outcome::Left { why, may_change: false };
    }
    let token = Uuid::now_v7();
    if !agent.spool.promise_input(spooled(token), size) {
        return Outcome::NoRoom;
    }
    let patience = Patience { timeout: TIMEOUT, cancel: stop.clone() };
    let spool = OutputSpool::new(&agent.spool, spooled(token));
    let mut output = Output::new(Box::new(spool.clone()), size);
    let read = {
        let _turn = tokio::select! {
            turn = resource.limits.turn() => turn,
            () = stop.cancelled() => {
                agent.spool.release_input(spooled(token));
                return Outcome::Changed;
            }
        };
        // What goes to a file is counted there, as it comes.
        agent.spool.release_input(spooled(token));
        triggers.read(&what.seen, &mut output, &patience).await
    };
    let produced = match read {
        Ok(()) => output.produced().cloned(),
        Err(failure) => {
            drop(output);
            let full = spool.was_refused();
            spool.discard();
            return if full { Outcome::NoRoom } else { failed(failure) };
        }
    };
    drop(output);
    let Some(produced) = produced else {
        spool.discard();
        return Outcome::Changed;
    };
    let sha256 = Sha256::from(produced.sha256);
    if what.before == Some(sha256) {
        spool.discard();
        let remembered = agent.journal.remember(what.key, what.kind, &what.seen, sha256).await;
        return match remembered {
            Ok(()) => Outcome::Known,
            Err(error) => Outcome::Later(here(error)),
        };
    }
    let kept = spool.clone();
    let stored = match spawn_blocking(move || kept.store()).await {
        Ok(Ok(stored)) => stored,
        Ok(Err(error)) => {
            spool.discard();
            return Outcome::Later(here(error));
        }
        Err(error) => return Outcome::Later(here(error)),
    };
    let outcome = write(agent, what, sha256, token, stored).await;
    if !matches!(outcome, Outcome::Taken) {
        spool.discard();
    }
    outcome
}

async fn write(agent: &Agent, what: What, sha256: Sha256, token: Uuid, stored: Stored) -> Outcome {
    let What { key, kind, lease, seen, marker, follow, before: _, max_size: _ } = what;
    let id = file_event(&seen, sha256).id(&agent.identity.enrolled.site, &key.resource, &kind);
    let content = match stored {
        Stored::Memory(bytes) | Stored::Held(bytes) => Content::Row(bytes),
        Stored::File => Content::Spool(token),
        // Only jobs recall what an earlier run had stored.
        Stored::AtHub => {
            return Outcome::Later(here("a file that was read just now is said to be at the hub"));
        }
    };
    let in_row = matches!(content, Content::Row(_));
    let entry = entry(Kind::FileTaken, &key, &kind, &seen.path, id, None);
    let remember = kind.as_str() == passerelle_protocol::WATCH;
    let (size, path) = (seen.size, seen.path.clone());
    let taken = Taken {
        id,
        key: key.clone(),
        kind,
        lease,
        occurred_at: clock::now(),
        seen,
        sha256,
        content,
        marker,
        follow,
        told: None,
    };
    let Some(_room) = pressure::promise(agent, 1, taken.row_bytes() as u64).await else {
        return Outcome::Later(Failure::retry(Code::Internal, pressure::ALMOST_FULL));
    };
    match agent.journal.take(taken, remember, entry).await {
        Ok(true) => {
            if in_row {
                agent.spool.resume_input(spooled(id.uuid()), size);
            }
            agent.triggers.board.taken(&key, size);
            agent.triggers.filled.notify_waiters();
            agent.metrics.files_taken.inc();
            info!(event_id = %id, resource = %key.resource, trigger = %key.trigger, bytes = size, "Took a file");
            tracing::debug!(event_id = %id, path, "This is the file");
            Outcome::Taken
        }
        Ok(false) => Outcome::Known,
        Err(error) => {
            warn!(%error, "A file that was read cannot be written to the journal; it is taken later");
            Outcome::Later(here(error))
        }
    }
}

fn here(error: impl std::fmt::Display) -> Failure {
    Failure::retry(Code::Internal, "the agent's disk or journal cannot be written").detail(error)
}

/// What a failed read means for the file.
fn failed(failure: Failure) -> Outcome {
    match (failure.code, failure.verdict) {
        // It grew past what it was, shrank, was replaced, or is gone.
        (Code::TargetConflict | Code::TooLarge | Code::TargetNotFound | Code::Cancelled, _) => {
            Outcome::Changed
        }
        (_, Verdict::Permanent | Verdict::Denied) if failure.code != Code::TargetAuth => {
            Outcome::Left { why: failure.to_string(), may_change: true }
        }
        _ => Outcome::Later(failure),
    }
}

/// A row of the audit about a file.
pub fn entry(kind: Kind, key: &Key, of: &Name, path: &str, id: EventId, more: Option<String>) -> Entry {
    let more = more.map_or(String::new(), |more| format!(" {more}"));
    let row = Entry {
        resource: Some(key.resource.to_string()),
        operation: Some(of.to_string()),
        rule: Some(format!("{}/{}", key.resource, key.trigger)),
        ..Entry::new(kind)
    };
    row.detail(&format!("event {id} path {path:?}{more}"))
}

/// A resource that is shared by the tasks of its triggers.
pub type Shared = Arc<Resource>;
