//! One live session: what its agent announced, and the places that are taken.

use super::{Arrival, QueueKey};
use crate::model::OperationView;
use jiff::Timestamp;
use passerelle_protocol::{Name, ResourceAnnouncement, session::Attempt};
use std::{
    collections::{BTreeMap, HashMap},
    time::Instant,
};

#[derive(Debug)]
pub(super) struct Session {
    pub(super) arrival: Arrival,
    pub(super) epoch: u64,
    pub(super) connected_at: Timestamp,
    pub(super) max_jobs: usize,
    pub(super) resources: BTreeMap<Name, Resource>,
    pub(super) attempts: HashMap<Attempt, Name>,
    pub(super) draining: bool,
}

#[derive(Debug)]
pub(super) struct Resource {
    pub(super) announced: ResourceAnnouncement,
    pub(super) operations: Vec<OperationView>,
    pub(super) in_flight: usize,
    /// Offer nothing before: the agent declined.
    pub(super) hold: Option<Instant>,
}

impl Session {
    pub(super) fn free(&self, resource: &Name) -> usize {
        let takes = |of: &&Resource| of.hold.is_none() && of.announced.paused.is_none() && !self.draining;
        let Some(of) = self.resources.get(resource).filter(takes) else { return 0 };
        let left = (of.announced.max_concurrent as usize).saturating_sub(of.in_flight);
        left.min(self.max_jobs.saturating_sub(self.attempts.len()))
    }

    pub(super) fn take(&mut self, attempt: Attempt, resource: &Name) {
        if self.attempts.insert(attempt, resource.clone()).is_none()
            && let Some(of) = self.resources.get_mut(resource)
        {
            of.in_flight += 1;
        }
    }

    pub(super) fn key(&self, resource: &Name) -> QueueKey {
        QueueKey {
            tenant: self.arrival.tenant.clone(),
            site: self.arrival.site.clone(),
            resource: resource.clone(),
        }
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = QueueKey> {
        self.resources.keys().map(|resource| self.key(resource))
    }
}
