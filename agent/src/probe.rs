//! Looks whether resources can be reached, for the status page: at the start, and those that a reload changed.
//!
//! Some at once, and none for longer than its time: a target that hangs does not keep the others from being looked at.

use crate::agent::Agent;
use futures_util::{StreamExt as _, stream};
use passerelle_connectors::{Code, DynConnector, Failure};
use passerelle_protocol::Name;
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::time::timeout;
use tracing::warn;

/// How long a probe of a resource may take.
const PROBE: Duration = Duration::from_secs(10);
/// How much sooner each wait in it ends, so that the connector itself can say what it has waited for.
const LAST_WORD: Duration = Duration::from_secs(1);
/// How many resources are looked at at once.
const AT_ONCE: usize = 4;

/// Probes every resource.
pub async fn all(agent: Arc<Agent>) {
    let names = agent.settings().resources.keys().cloned().collect();
    resources(agent, names).await;
}

/// Probes these, a few at once.
pub async fn resources(agent: Arc<Agent>, names: BTreeSet<Name>) {
    each(names, |name| one(Arc::clone(&agent), name)).await;
}

async fn each<F: Future<Output = ()>>(names: BTreeSet<Name>, probe: impl Fn(Name) -> F) {
    stream::iter(names).for_each_concurrent(AT_ONCE, probe).await;
}

async fn one(agent: Arc<Agent>, name: Name) {
    let Some(resource) = agent.settings().resources.get(&name).cloned() else { return };
    let problem = look(resource.connector.as_ref(), PROBE).await.err();
    if let Some(failure) = &problem {
        warn!(resource = %name, code = crate::translate::code(failure.code).as_str(), error = %failure, "A resource cannot be used just now");
    }
    agent.status.probed(&name, problem.map(|failure| failure.message));
}

/// One look, which takes `limit` at most.
async fn look(connector: &dyn DynConnector, limit: Duration) -> Result<(), Failure> {
    match timeout(limit, connector.probe(limit.saturating_sub(LAST_WORD))).await {
        Ok(found) => found,
        Err(_) => {
            let message =
                "the target did not let itself be looked at in time; check its name, and that it answers";
            Err(Failure::retry(Code::TargetTimeout, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use passerelle_connectors::{Call, Capabilities, Connector, Demands, Input, Outcome, Output};
    use serde_json::Value;
    use std::future::pending;
    use tokio::sync::Barrier;

    /// A target that never answers.
    struct Silent;

    impl Connector for Silent {
        fn capabilities(&self) -> Capabilities {
            Capabilities { kind: "silent", operations: Vec::new() }
        }

        fn demands(&self, operation: &str, _params: &Value) -> Result<Demands, Failure> {
            unreachable!("{operation}")
        }

        async fn probe(&self, _timeout: Duration) -> Result<(), Failure> {
            pending().await
        }

        async fn execute(
            &self,
            _call: &Call,
            operation: &str,
            _params: &Value,
            _input: Option<Input>,
            _output: &mut Output,
        ) -> Result<Outcome, Failure> {
            unreachable!("{operation}")
        }
    }

    #[tokio::test]
    async fn a_target_that_never_answers_takes_no_longer_than_a_probe_may() {
        let failure = look(&Silent, Duration::from_millis(1)).await.unwrap_err();
        assert_eq!(failure.code, Code::TargetTimeout);
    }

    #[tokio::test]
    async fn one_that_waits_keeps_no_other_waiting() {
        // Each waits for the others: one after the other, nobody would ever come.
        let together = Barrier::new(AT_ONCE);
        let names = (0..2 * AT_ONCE).map(|n| format!("r{n}").parse().unwrap()).collect();
        let meet = async |_| {
            together.wait().await;
        };
        timeout(Duration::from_secs(60), each(names, meet)).await.unwrap();
    }
}
