//! Whether credentials may be tried: not again for a quarter of an hour once they were refused twice, as some products lock
//! the account, or the whole address, after a few wrong passwords.

use crate::crm::error::{CrmError, Problem};
use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How often credentials may be refused before they rest.
const MAX_REFUSALS: u32 = 2;
/// How long they rest; a reload of the configuration ends it.
const REST: Duration = Duration::from_secs(15 * 60);

/// Whether the credentials may be tried.
#[derive(Debug, Default)]
pub(crate) struct Credentials {
    state: Mutex<Trust>,
    /// Held while credentials that have not yet proved right are tried, so that no crowd tries wrong ones at once.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Trust {
    proven: bool,
    refusals: u32,
    resting_until: Option<Instant>,
}

impl Credentials {
    /// Makes a request that uses the credentials. Until they have proved right, one at a time; once they were refused
    /// twice, none for a while.
    ///
    /// # Errors
    /// What the request meets; [`Problem::Auth`] while they rest. Every [`Problem::Auth`] of the request counts.
    pub(crate) async fn try_with<T>(
        &self,
        request: impl Future<Output = Result<T, CrmError>>,
    ) -> Result<T, CrmError> {
        let turn = if self.trust(|trust| trust.proven) { None } else { Some(self.turn.lock().await) };
        if self.trust(|trust| trust.resting_until.is_some_and(|until| Instant::now() < until)) {
            let reason = "refused twice, so not tried again for 15 minutes or until a reload, lest the target locks the account";
            return Err(CrmError::new(Problem::Auth).reason(reason));
        }
        let done = request.await;
        match &done {
            Ok(_) => self.trust(|trust| *trust = Trust { proven: true, ..Trust::default() }),
            Err(error) if error.problem == Problem::Auth => self.trust(|trust| {
                trust.proven = false;
                trust.refusals += 1;
                if trust.refusals >= MAX_REFUSALS {
                    trust.refusals = 0;
                    trust.resting_until = Instant::now().checked_add(REST);
                }
            }),
            Err(_) => {}
        }
        drop(turn);
        done
    }

    fn trust<T>(&self, with: impl FnOnce(&mut Trust) -> T) -> T {
        with(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
