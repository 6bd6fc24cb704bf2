//! One live session: what its agent announced, and the places that are taken.

use super::{Arrival, QueueKey};
use crate::model::OperationView;
use jiff::Timestamp;
use passerelle_protocol::{
    CallsAnnouncement, JobId, Name, ResourceAnnouncement, limits::MAX_CALLS, session::Attempt,
};
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
    /// Nothing for an agent that takes no calls.
    pub(super) calls: Option<Calls>,
    pub(super) draining: bool,
}

/// Of an agent that takes calls.
#[derive(Debug)]
pub(super) struct Calls {
    pub(super) announced: CallsAnnouncement,
    /// Those under way, and their resources.
    pub(super) open: HashMap<JobId, Name>,
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

    /// How many more calls it takes.
    pub(super) fn free_calls(&self) -> usize {
        match &self.calls {
            Some(calls) if !self.draining => {
                (calls.announced.max.min(MAX_CALLS) as usize).saturating_sub(calls.open.len())
            }
            Some(_) | None => 0,
        }
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
