//! How long an exchange waits for its target: for a sign of life, for the first byte of the answer, for the whole.

use super::settings::Timeouts;
use crate::{Call, Code, Failure, connecting};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// In how many steps a silence is measured: it ends the wait at most one step late.
const STEPS: u32 = 8;

/// The limits of one attempt's waits.
pub(super) struct Waits<'a> {
    pub(super) call: &'a Call,
    first_byte: Option<Duration>,
    /// When the whole exchange has to be over.
    end: Option<Instant>,
    /// Whether the request only reads.
    reading: bool,
}

/// Why waiting ended without what was waited for.
enum Stopped {
    Cancelled,
    Silent,
    NothingYet,
    Late,
}

impl<'a> Waits<'a> {
    /// From now on.
    pub(super) fn new(call: &'a Call, timeouts: &Timeouts, reading: bool) -> Self {
        let end = timeouts.whole.map(|whole| Instant::now() + whole);
        Self { call, first_byte: timeouts.first_byte, end, reading }
    }

    /// Waits for something that comes before the request and has no effect.
    pub(super) async fn before<T>(&self, future: impl Future<Output = T>) -> Result<T, Failure> {
        self.alive(self.call.timeout, false, future).await.map_err(|stopped| stopped.failure(true))
    }

    /// Sends the request and waits for the head of its answer.
    pub(super) async fn head<T>(&self, future: impl Future<Output = T>) -> Result<T, Failure> {
        let (limit, is_first) = match self.first_byte {
            Some(limit) if limit < self.call.timeout => (limit, true),
            Some(_) | None => (self.call.timeout, false),
        };
        let left = self.end.map_or(limit, |end| limit.min(end.saturating_duration_since(Instant::now())));
        let future = connecting::within(left, future);
        self.alive(limit, is_first, future).await.map_err(|stopped| stopped.failure(self.reading))
    }

    /// Waits for more of the answer.
    pub(super) async fn more<T>(&self, future: impl Future<Output = T>) -> Result<T, Failure> {
        self.alive(self.call.timeout, false, future).await.map_err(|stopped| stopped.failure(self.reading))
    }

    /// Waits until the attempt is cancelled, the exchange is late, or there was no sign of life for `limit`.
    async fn alive<T>(
        &self,
        limit: Duration,
        is_first: bool,
        future: impl Future<Output = T>,
    ) -> Result<T, Stopped> {
        let Self { call, end, .. } = self;
        let mut future = std::pin::pin!(future);
        let (mut beats, mut silent) = (call.progress.beats(), 0);
        loop {
            let step = Instant::now() + limit / STEPS;
            let wake = end.map_or(step, |end| end.min(step));
            tokio::select! {
                biased;
                () = call.cancel.cancelled() => return Err(Stopped::Cancelled),
                done = &mut future => return Ok(done),
                () = sleep_until(wake) => {
                    if end.is_some_and(|end| end <= wake) {
                        return Err(Stopped::Late);
                    }
                    let now = call.progress.beats();
                    silent = if now == beats { silent + 1 } else { 0 };
                    beats = now;
                    if silent >= STEPS {
                        return Err(if is_first { Stopped::NothingYet } else { Stopped::Silent });
                    }
                }
            }
        }
    }
}

impl Stopped {
    fn failure(&self, reading: bool) -> Failure {
        let failure = match self {
            Self::Cancelled if reading => return Failure::cancelled(),
            Self::Cancelled => {
                let message = "cancelled while the target was working on it".to_owned();
                Failure { message, ..Failure::cancelled() }
            }
            Self::Silent => Failure::retry(Code::TargetTimeout, "the target did not answer in time"),
            Self::NothingYet => Failure::retry(
                Code::TargetTimeout,
                "the target did not begin to answer within the resource's timeouts.first_byte",
            ),
            Self::Late => Failure::retry(
                Code::TargetTimeout,
                "the exchange with the target was not over within the resource's timeouts.whole",
            ),
        };
        if reading { failure } else { failure.effect_unknown() }
    }
}
