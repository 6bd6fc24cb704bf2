//! What the live sessions announce, as the API shows it.

use super::{QueueKey, Registry};
use crate::model::{AgentPause, LimitsView, Live, PauseView, ResourceView};
use jiff::Timestamp;
use passerelle_protocol::{AgentId, Name, Pause};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::Ordering,
    time::Instant,
};

impl Registry {
    pub(crate) fn online_at(&self, tenant: &Name, site: &Name) -> u64 {
        self.state().at(tenant, site).count() as u64
    }

    pub(crate) fn online(&self, agent: AgentId) -> Option<Live> {
        let state = self.state();
        let session = state.sessions.get(&agent)?;
        let seen = Timestamp::from_millisecond(session.arrival.heard.unix_ms.load(Ordering::Relaxed));
        Some(Live {
            connected_at: session.connected_at,
            last_seen_at: seen.unwrap_or(session.connected_at),
            jobs_running: session.attempts.len() as u64,
        })
    }

    /// What the agents of a site announce: operations joined, the strictest limits.
    pub(crate) fn resources(&self, tenant: &Name, site: &Name) -> Vec<ResourceView> {
        let state = self.state();
        let now = Instant::now();
        let breaker = |resource: &Name| {
            let key = QueueKey { tenant: tenant.clone(), site: site.clone(), resource: resource.clone() };
            state.flows.get(&key).map_or("closed", |flow| flow.breaker.as_str(now)).to_owned()
        };
        let mut views: BTreeMap<Name, ResourceView> = BTreeMap::new();
        let mut taking: BTreeSet<&Name> = BTreeSet::new();
        let announced = state.at(tenant, site).flat_map(|session| {
            let agent = session.arrival.agent;
            session.resources.values().map(move |of| (agent, of))
        });
        for (agent, of) in announced {
            let pauses: Vec<AgentPause> = of
                .announced
                .paused
                .iter()
                .map(|pause| AgentPause { agent, pause: PauseView::from(pause) })
                .collect();
            if pauses.is_empty() {
                taking.insert(&of.announced.name);
            }
            let limits = LimitsView {
                max_concurrent: of.announced.max_concurrent,
                rate_per_minute: of.announced.rate_per_minute,
            };
            match views.get_mut(&of.announced.name) {
                Some(view) => {
                    view.limits.max_concurrent = view.limits.max_concurrent.min(limits.max_concurrent);
                    let rates = [view.limits.rate_per_minute, limits.rate_per_minute];
                    view.limits.rate_per_minute = rates.into_iter().flatten().min();
                    view.pauses.extend(pauses);
                    for operation in &of.operations {
                        if !view.operations.iter().any(|known| known.name == operation.name) {
                            view.operations.push(operation.clone());
                        }
                    }
                }
                None => {
                    let view = ResourceView {
                        name: of.announced.name.clone(),
                        connector: of.announced.connector.clone(),
                        operations: of.operations.clone(),
                        limits,
                        paused: None,
                        pauses,
                        breaker: breaker(&of.announced.name),
                    };
                    views.insert(view.name.clone(), view);
                }
            }
        }
        for view in views.values_mut().filter(|view| !taking.contains(&view.name)) {
            // The one that ends first; one that the operator has to end comes last.
            let ends = |of: &&AgentPause| (of.pause.until.is_none(), of.pause.until);
            view.paused = view.pauses.iter().min_by_key(ends).map(|of| of.pause.clone());
        }
        views.into_values().collect()
    }
}

impl From<&Pause> for PauseView {
    fn from(pause: &Pause) -> Self {
        Self { until: pause.until, reason: pause.reason.clone(), by: pause.by.clone() }
    }
}
