//! A site under load: a hub, an application, agents, and many clients at once.

use crate::line::Sorted;
use futures_util::future::join_all;
use passerelle_tests::{Agent, App, Hub, Reply, cpu_time, resources};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// What each notification carries.
pub const PAYLOAD: &str = r#"{"EventKind":"CommandeValidee","Data":{"CommandeNumero":"CMD-2026-000042"}}"#;

/// The running things.
pub struct Site {
    /// The agents.
    pub agents: Vec<Agent>,
    /// Their processes.
    processes: Vec<u32>,
    /// The hub.
    pub hub: Hub,
    /// The application.
    pub app: App,
}

impl Site {
    /// Starts so many agents that take so many jobs at once, and an application that answers 200 and forgets.
    pub async fn start(agents: usize, at_once: usize) -> Self {
        Self::with_app(agents, at_once, App::forgetful().await).await
    }

    /// The same with an application that remembers what it was asked.
    pub async fn remembering(agents: usize, at_once: usize) -> Self {
        Self::with_app(agents, at_once, App::start().await).await
    }

    /// The same with an application that answers only when it is released.
    pub async fn held(agents: usize, at_once: usize) -> Self {
        Self::with_app(agents, at_once, App::with(|_, _| Reply::status(200).held()).await).await
    }

    async fn with_app(agents: usize, at_once: usize, app: App) -> Self {
        let hub = Hub::start().await;
        let limits = format!("limits = {{ max_concurrent = {at_once} }}");
        let (mut started, mut processes) = (Vec::new(), Vec::new());
        for number in 1..=agents {
            let mut agent = Agent::new(&hub, "paris", &format!("paris-{number}"));
            agent.resource("orders-app", &resources::application_with("orders-app", &app.url, &limits));
            agent.agent_key(&format!("max_jobs = {at_once}")).start().await;
            processes.push(agent.process().id());
            started.push(agent);
        }
        hub.api.agents_online("paris", agents).await;
        Self { agents: started, processes, hub, app }
    }

    /// Submits a job and waits for its stored outcome.
    pub fn submit_and_wait(&self) -> impl Future<Output = ()> + use<> {
        let request = self.hub.api.request(reqwest::Method::POST, "/v1/jobs?wait=60").json(&job("42"));
        async move {
            let answer: Value = request.send().await.expect("an answer").json().await.expect("a job");
            assert_eq!(answer["state"], "succeeded", "{answer:#}");
        }
    }

    /// The processor time that hub and agents have taken so far.
    pub fn cpu(&self) -> (Duration, Duration) {
        (cpu_time(self.hub.process.id()), self.processes.iter().copied().map(cpu_time).sum())
    }

    /// Durable jobs a second, from submission to stored outcome, with so many clients.
    pub async fn rate(&self, clients: usize, jobs: usize) -> f64 {
        let (_, took) = many(clients, jobs, &|| self.submit_and_wait()).await;
        (jobs / clients * clients) as f64 / took.as_secs_f64()
    }
}

/// A notification of this order.
pub fn job(order: &str) -> Value {
    json!({
        "site": "paris", "resource": "orders-app", "operation": "notify",
        "params": {"path": format!("orders/{order}/validated")},
        "payload": {"text": PAYLOAD, "media_type": "application/json"},
    })
}

/// Calls `call` `count` times, `at_once` at a time; gives the times of each and of all.
pub async fn many<F: Future<Output = ()>>(
    at_once: usize,
    count: usize,
    call: &impl Fn() -> F,
) -> (Sorted, Duration) {
    let start = Instant::now();
    let workers = (0..at_once).map(|_| async {
        let mut times = Vec::with_capacity(count / at_once);
        for _ in 0..count / at_once {
            let start = Instant::now();
            call().await;
            times.push(start.elapsed());
        }
        times
    });
    let times = join_all(workers).await;
    (Sorted::new(times.into_iter().flatten()), start.elapsed())
}
