//! What the live sessions announce, as the API shows it.

use super::{QueueKey, Registry};
use crate::model::{LimitsView, ResourceView};
use passerelle_protocol::Name;
use std::{collections::BTreeMap, time::Instant};

impl Registry {
    /// What the agents of a site announce: operations joined, the strictest limits.
    pub(crate) fn resources(&self, tenant: &Name, site: &Name) -> Vec<ResourceView> {
        let state = self.state();
        let now = Instant::now();
        let breaker = |resource: &Name| {
            let key = QueueKey { tenant: tenant.clone(), site: site.clone(), resource: resource.clone() };
            state.flows.get(&key).map_or("closed", |flow| flow.breaker.as_str(now)).to_owned()
        };
        let mut views: BTreeMap<Name, ResourceView> = BTreeMap::new();
        for of in state.at(tenant, site).flat_map(|session| session.resources.values()) {
            let limits = LimitsView {
                max_concurrent: of.announced.max_concurrent,
                rate_per_minute: of.announced.rate_per_minute,
            };
            match views.get_mut(&of.announced.name) {
                Some(view) => {
                    view.limits.max_concurrent = view.limits.max_concurrent.min(limits.max_concurrent);
                    let rates = [view.limits.rate_per_minute, limits.rate_per_minute];
                    view.limits.rate_per_minute = rates.into_iter().flatten().min();
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
                        breaker: breaker(&of.announced.name),
                    };
                    views.insert(view.name.clone(), view);
                }
            }
        }
        views.into_values().collect()
    }
}
