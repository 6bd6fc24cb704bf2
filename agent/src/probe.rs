//! Looks whether resources can be reached, for the status page: at the start, and those that a reload changed.

use crate::agent::Agent;
use passerelle_protocol::Name;
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tracing::warn;

/// How long a probe of a resource may take.
const PROBE: Duration = Duration::from_secs(10);

/// Probes every resource.
pub async fn all(agent: Arc<Agent>) {
    let names = agent.settings().resources.keys().cloned().collect();
    resources(agent, names).await;
}

/// Probes these, one after the other.
pub async fn resources(agent: Arc<Agent>, names: BTreeSet<Name>) {
    for name in names {
        let Some(resource) = agent.settings().resources.get(&name).cloned() else { continue };
        let problem = resource.connector.probe(PROBE).await.err();
        if let Some(failure) = &problem {
            warn!(resource = %name, code = crate::translate::code(failure.code).as_str(), error = %failure, "A resource cannot be used just now");
        }
        agent.status.probed(&name, problem.map(|failure| failure.message));
    }
}
