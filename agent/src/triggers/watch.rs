//! One watch: looks at its file in its rhythm, or when the system hints that something changed, and tells of each new
//! content once. That the file is gone is no event, nor that it is back with the content that was told of last.

use super::{
    gate,
    steady::{Judgement, Steady},
    take::{Outcome, Shared, TIMEOUT, What, take},
};
use crate::{
    agent::Agent,
    journal::events::{Follow, Key},
};
use passerelle_config::{HumanDuration, Stable, Watch};
use passerelle_connectors::{Code, Failure, Notices, Patience, Seen, Triggers};
use passerelle_protocol::{Name, WATCH};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// How long the file must not have changed: whoever writes it has finished by then, mostly.
const QUIET: Duration = Duration::from_secs(2);
/// The least time between two looks.
const GAP: Duration = Duration::from_millis(250);

/// One watch that runs.
pub struct Running {
    agent: Arc<Agent>,
    resource: Shared,
    rule: Watch,
    key: Key,
    kind: Name,
    steady: Steady,
    /// A content that cannot be taken as it is.
    left: Option<Seen>,
    stop: CancellationToken,
}

impl Running {
    /// A watch of a resource.
    pub fn new(
        agent: Arc<Agent>,
        resource: Shared,
        rule: Watch,
        key: Key,
        kind: Name,
        stop: CancellationToken,
    ) -> Self {
        let steady = Steady::new(Stable::Quiet(HumanDuration(QUIET)), rule.every);
        Self { agent, resource, rule, key, kind, steady, left: None, stop }
    }

    /// Runs until it is stopped.
    pub async fn run(mut self) {
        let connector = Arc::clone(&self.resource.connector);
        let Some(triggers) = connector.triggers() else { return };
        let folder = self.rule.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let mut notices = triggers.notices(folder);
        while let Some(lease) = gate::wait(&self.agent, &self.key, &self.stop).await {
            let begun = Instant::now();
            let turn = begun + self.rule.every;
            let (due, problem) = match self.turn(triggers, lease).await {
                Ok(due) => (due.map_or(turn, |due| due.min(turn)), None),
                Err(failure) => {
                    let message = failure.message.clone();
                    (turn, Some((message, failure)))
                }
            };
            let message = problem.as_ref().map(|(message, _)| message.clone());
            if self.agent.triggers.board.looked(&self.key, Some(0), message)
                && let Some((_, failure)) = problem
            {
                warn!(
                    resource = %self.key.resource, trigger = %self.key.trigger, error = %failure,
                    "A watched file cannot be looked at; trying again"
                );
            }
            self.rest(due, &mut notices).await;
        }
    }

    async fn rest(&self, due: Instant, notices: &mut Option<Box<dyn Notices>>) {
        let earliest = Instant::now() + GAP;
        let changed = async {
            match notices {
                Some(notices) => notices.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = sleep_until(due.max(earliest)) => {}
            () = changed => tokio::select! {
                () = sleep_until(earliest) => {}
                () = self.stop.cancelled() => {}
            },
            () = self.stop.cancelled() => {}
        }
    }

    /// One look, and what follows from it; when to look again, if before the next turn.
    async fn turn(&mut self, triggers: &dyn Triggers, lease: u64) -> Result<Option<Instant>, Failure> {
        let patience = Patience { timeout: TIMEOUT, cancel: self.stop.clone() };
        let Some(seen) = triggers.look(&self.rule.path, &patience).await? else {
            self.steady.keep(&[]);
            return Ok(None);
        };
        let before = self.agent.journal.remembered(
            self.key.resource.clone(),
            self.kind.clone(),
            self.rule.path.clone(),
        );
        let before = before.await.map_err(|error| {
            Failure::retry(Code::Internal, "the agent's journal cannot be read").detail(error)
        })?;
        if before.as_ref().is_some_and(|(before, _)| *before == seen) || self.left.as_ref() == Some(&seen) {
            self.steady.keep(&[]);
            return Ok(None);
        }
        let now = Instant::now();
        self.steady.note(&seen, now);
        match self.steady.judge(&seen, false, now) {
            Judgement::Whole => {}
            Judgement::Wait(at) => return Ok(Some(at)),
            Judgement::LookAgain => return Ok(None),
        }
        let what = What {
            key: self.key.clone(),
            kind: self.kind.clone(),
            lease,
            seen: seen.clone(),
            marker: None,
            follow: Follow::Keep,
            max_size: self.rule.max_size.map(|size| size.0),
            before: before.map(|(_, sha256)| sha256),
        };
        let outcome = take(&self.agent, &self.resource, what, &self.stop).await;
        self.steady.forget(&seen.path);
        match outcome {
            Outcome::Taken | Outcome::Known => {
                self.agent.triggers.board.keep_left(&self.key, |path| path != seen.path);
                Ok(None)
            }
            Outcome::Changed => Ok(Some(Instant::now())),
            Outcome::NoRoom => {
                gate::tell(&self.agent, &self.key, Some(&gate::Blocked::NoRoom));
                gate::wait_for_room(&self.agent, seen.size, &self.stop).await;
                Ok(Some(Instant::now()))
            }
            Outcome::Left { why, may_change: _ } => {
                warn!(resource = %self.key.resource, trigger = %self.key.trigger, why, "A watched file is not told of until it changes");
                self.agent.metrics.files_left.inc();
                self.agent.triggers.board.left(&self.key, &seen.path, &why);
                self.left = Some(seen);
                Ok(None)
            }
            Outcome::Later(failure) => Err(failure),
        }
    }
}

/// The kind's name.
pub fn kind() -> Option<Name> {
    WATCH.parse().ok()
}
