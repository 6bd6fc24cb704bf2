//! Runs that the engine has to look at: told after the commit that made them ready.

use crate::mediations::ids::DefinitionId;
use passerelle_protocol::Name;
use std::sync::{Mutex, PoisonError};
use tokio::sync::Notify;

/// A run that is to go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OpenRun {
    pub(crate) seq: i64,
    pub(crate) tenant: Name,
    pub(crate) definition: DefinitionId,
    /// Whether it may run beside others of its definition.
    pub(crate) parallel: bool,
}

/// What was committed since the engine looked last. The store bounds the open runs of a tenant.
#[derive(Debug, Default)]
pub(crate) struct RunQueue {
    ready: Mutex<Vec<OpenRun>>,
    told: Notify,
}

impl RunQueue {
    pub(crate) fn push(&self, runs: Vec<OpenRun>) {
        if !runs.is_empty() {
            self.ready.lock().unwrap_or_else(PoisonError::into_inner).extend(runs);
            self.told.notify_one();
        }
    }

    pub(crate) fn take(&self) -> Vec<OpenRun> {
        std::mem::take(&mut *self.ready.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until something was told.
    pub(crate) async fn told(&self) {
        self.told.notified().await;
    }
}
