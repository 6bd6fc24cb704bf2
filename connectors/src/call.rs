//! One attempt of one operation, as a connector sees it.

use crate::Failure;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// One attempt: who asks, how long it may take, and how it asks for its final effect.
#[derive(Clone)]
pub struct Call {
    /// The job; also the idempotency key that targets see.
    pub job: Uuid,
    /// The attempt, counted from 1.
    pub attempt: u32,
    /// An attempt without progress for this long ends. Connectors use it for each wait on their target;
    /// the runner also watches [`Progress`].
    pub timeout: Duration,
    /// Fires when the attempt shall stop: before its effect if still possible. A connector that has begun its final
    /// effect finishes it.
    pub cancel: CancellationToken,
    /// Told how far the attempt is.
    pub progress: Progress,
    /// Asked just before the final effect.
    pub gate: Arc<dyn Gate>,
    /// The intent that an earlier run of the same job journalled before it was cut off: the connector decides from
    /// what it finds at the target whether that effect happened.
    pub prior_intent: Option<Intent>,
    /// W3C trace context to pass on.
    pub traceparent: Option<String>,
    /// The names that a listing may show.
    pub visible: Visible,
}

/// Which paths may be named in a result: what the rule allows, where a listing asks for more than that.
#[derive(Clone, Default)]
pub struct Visible(Option<Arc<Shows>>);

/// Says whether a path may be named.
type Shows = dyn Fn(&str) -> bool + Send + Sync;

impl Visible {
    /// Only the paths that pass.
    pub fn only(shows: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(shows)))
    }

    /// Whether a path, relative to the resource's root, may be named.
    #[must_use]
    pub fn shows(&self, path: &str) -> bool {
        self.0.as_ref().is_none_or(|shows| shows(path))
    }

    /// Whether every path may be named.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.0.is_none()
    }
}

impl fmt::Debug for Visible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_everything() { "everything" } else { "some" })
    }
}

/// What a final effect will be. Journalled by the agent before it happens; `state` is the connector's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// The part beside the target, relative to the resource's root.
    pub part: Option<String>,
    /// The final path, relative to the resource's root.
    pub target: Option<String>,
    /// Size of the content in bytes.
    pub size: Option<u64>,
    /// SHA-256 of the content.
    pub sha256: Option<[u8; 32]>,
    /// What the connector needs to recognise the place again (the folder's identity as a digest, whether the part was
    /// synced, …). It may reach another agent of the site through the hub: never a host, a path outside the root, a secret.
    pub state: Value,
}

/// Who may have gone on with a prior intent beside the one that looks at it. Where somebody may have, that what was prepared is
/// gone proves less: the other one may have found the effect impossible, and taken it away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Company {
    /// Nobody: the site had one agent.
    Alone,
    /// Other agents of the site, one after the other, each ended before the next.
    Possible,
    /// Another agent was told to.
    Certain,
}

/// The right to the final effect.
pub trait Gate: Send + Sync {
    /// Journals the intent and, where the hub wants to be asked, waits for its grant. Only after `Ok` may the effect
    /// happen; on `Err` nothing may, and the failure is the attempt's.
    fn pass<'a>(
        &'a self,
        intent: &'a Intent,
    ) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>>;

    /// Who else may have gone on with the prior intent.
    fn company(&self) -> Company {
        Company::Alone
    }

    /// Says that the prior intent certainly had no effect and is given up. Only after `Ok` may the connector take away
    /// what shows so: cut off after that, the attempt begins afresh instead of taking what is gone for done.
    fn withdraw(&self) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + '_>> {
        Box::pin(async { Ok(()) })
    }
}

/// How far an attempt is: shared by connector and runner.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    done: AtomicU64,
    total: AtomicU64,
    beats: AtomicU64,
}

impl Progress {
    /// Says how many bytes there are to move.
    pub fn set_total(&self, bytes: u64) {
        self.0.total.store(bytes, Ordering::Relaxed);
    }

    /// Adds bytes moved; also a sign of life.
    pub fn add(&self, bytes: u64) {
        self.0.done.fetch_add(bytes, Ordering::Relaxed);
        self.beat();
    }

    /// A sign of life without bytes (a page listed, a round trip done).
    pub fn beat(&self) {
        self.0.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes moved so far.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.0.done.load(Ordering::Relaxed)
    }

    /// Bytes to move; 0 if not known.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.total.load(Ordering::Relaxed)
    }

    /// Changes whenever there was a sign of life.
    #[must_use]
    pub fn beats(&self) -> u64 {
        self.0.beats.load(Ordering::Relaxed)
    }
}

/// A success.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The operation's JSON result, a JSON object.
    pub result: Value,
    /// `Some(true)`: the target synced the content to disk; `Some(false)`: it offers no sync; `None`: no meaning here.
    pub synced: Option<bool>,
    /// Whether what [`Connector::leftover`](crate::Connector::leftover) names may still be at the target, to be cleaned up.
    pub leaves: bool,
}
