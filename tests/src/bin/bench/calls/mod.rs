//! Real-time calls through hub and agent over TLS, relaying `http request GET` to nginx, beside `snyk-broker` (plain, on
//! loopback) relaying to the same nginx.

mod broker;

use crate::{
    Effort,
    line::{Line, Sorted, Target},
    load::{PAYLOAD, many},
};
use broker::Broker;
use passerelle_tests::{Agent, Api, Hub, Nginx, Process, cpu_time, http_client, resources};
use reqwest::Method;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const CONCURRENT: usize = 32;
/// How many large bodies are on their way at once.
const LARGE_AT_ONCE: usize = 8;
const LARGE: usize = 1 << 20;
const STARTS: usize = 5;

/// What was measured of one way.
struct Figures {
    alone: Sorted,
    crowd: Sorted,
    per_s: f64,
    cpu_us: f64,
    idle_mib: f64,
    loaded_mib: f64,
    first_ms: Sorted,
    large_mb_per_s: f64,
}

/// Hub and agent over TLS.
struct Ours {
    hub: Hub,
    agent: Agent,
}

/// Measures both, one after the other, and durable notifications at last.
pub async fn measure(effort: Effort) -> Vec<Line> {
    let nginx = Nginx::start().await;
    nginx.publish("small.json", br#"{"client":"4711","name":"Durand","points":117}"#);
    nginx.publish("large.bin", &vec![7; LARGE]);
    let Some(broker) = Broker::start(&nginx.url).await else {
        eprintln!(
            "calls: left out, since PASSERELLE_BENCH_BROKER names no folder with snyk-broker; tests/bench installs it"
        );
        return Vec::new();
    };
    let theirs = of_broker(broker, effort).await;
    let mut site = Ours::start(&nginx).await;
    let ours = of_calls(&mut site, effort).await;
    let jobs = durable(&site, effort).await;
    let client = http_client();
    let url = format!("{}static/small.json", nginx.url);
    let direct = || fetched(client.get(&url));
    many(CONCURRENT, CONCURRENT * 4, &direct).await;
    let (_, took) = many(CONCURRENT, effort.repetitions * 8, &direct).await;
    let direct_per_s = (effort.repetitions * 8) as f64 / took.as_secs_f64();
    lines(&ours, &theirs, jobs, direct_per_s)
}

impl Ours {
    async fn start(nginx: &Nginx) -> Self {
        let hub = Hub::start_tls().await;
        let mut agent = Agent::new(&hub, "paris", "paris-1");
        agent.file("hub-ca.pem", hub.certificate().expect("a hub with TLS"));
        agent.hub_key("ca_file = \"hub-ca.pem\"");
        let limits = format!("limits = {{ max_concurrent = {} }}", 2 * CONCURRENT);
        agent.resource("catalogue", &resources::application_with("catalogue", &nginx.url, &limits));
        agent.start().await;
        Self { hub, agent }
    }

    /// Starts the agent anew; the time until a call goes through.
    async fn restart(&mut self) -> Duration {
        self.agent.process().kill();
        let start = Instant::now();
        self.agent.spawn_as_it_is();
        let asked = || call(&self.hub.api, "static/small.json").timeout(Duration::from_millis(500)).send();
        while !asked().await.is_ok_and(|answer| answer.status() == 200) {
            assert!(start.elapsed() < Duration::from_secs(60), "no call goes through");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        start.elapsed()
    }
}

fn call(api: &Api, path: &str) -> reqwest::RequestBuilder {
    let params = json!({"method": "GET", "path": path});
    let body = json!({"site": "paris", "resource": "catalogue", "operation": "request", "params": params});
    api.request(Method::POST, "/v1/calls").json(&body)
}

/// A large body: the call, and its output.
async fn large(api: Api) {
    let answer = call(&api, "static/large.bin").send().await.expect("an answer");
    let answer: Value = answer.json().await.expect("JSON");
    let blob = answer["output"]["blob"].as_str().unwrap_or_else(|| panic!("no blob: {answer:#}"));
    let output = api.request(Method::GET, &format!("/v1/blobs/{blob}")).send().await.expect("an output");
    assert_eq!(output.bytes().await.expect("the output").len(), LARGE);
}

async fn fetched(request: reqwest::RequestBuilder) {
    let answer = request.send().await.expect("an answer");
    let status = answer.status();
    let body = answer.bytes().await.expect("a body");
    assert!(status == 200, "{status}: {}", String::from_utf8_lossy(&body));
}

fn rss(process: &Process) -> f64 {
    process.memory_kib("VmRSS") as f64 / 1024.0
}

/// One way under load: `small` and `large` ask through it, `process` is its half in the private network.
async fn load<S, L>(
    effort: Effort,
    process: &Process,
    small: &impl Fn() -> S,
    large: &impl Fn() -> L,
) -> Figures
where
    S: Future<Output = ()>,
    L: Future<Output = ()>,
{
    // Idle is meant: what the start needed may be given back first.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let idle_mib = rss(process);
    // Connections are made and caches filled before anything counts.
    many(CONCURRENT, CONCURRENT * 16, small).await;
    let (alone, _) = many(1, effort.repetitions, small).await;
    let count = effort.repetitions * 8;
    let before = cpu_time(process.id());
    let (crowd, took) = many(CONCURRENT, count, small).await;
    let cpu = cpu_time(process.id()) - before;
    let loaded_mib = rss(process);
    let bodies = (effort.repetitions / 8).max(LARGE_AT_ONCE * 4);
    many(LARGE_AT_ONCE, LARGE_AT_ONCE * 2, large).await;
    let (_, large_took) = many(LARGE_AT_ONCE, bodies, large).await;
    let moved = (bodies / LARGE_AT_ONCE * LARGE_AT_ONCE * LARGE) as f64 / 1e6;
    Figures {
        alone,
        crowd,
        per_s: count as f64 / took.as_secs_f64(),
        cpu_us: cpu.as_secs_f64() * 1e6 / count as f64,
        idle_mib,
        loaded_mib,
        first_ms: Sorted::new([]),
        large_mb_per_s: moved / large_took.as_secs_f64(),
    }
}

async fn of_broker(mut broker: Broker, effort: Effort) -> Figures {
    let mut starts = Vec::new();
    for _ in 0..STARTS {
        starts.push(broker.restart().await);
    }
    let client = http_client();
    let (small, large) =
        (format!("{}static/small.json", broker.url), format!("{}static/large.bin", broker.url));
    let (ask_small, ask_large) = (|| fetched(client.get(&small)), || fetched(client.get(&large)));
    let figures = load(effort, broker.client(), &ask_small, &ask_large).await;
    Figures { first_ms: Sorted::new(starts), ..figures }
}

async fn of_calls(site: &mut Ours, effort: Effort) -> Figures {
    let mut starts = Vec::new();
    for _ in 0..STARTS {
        starts.push(site.restart().await);
    }
    site.agent.ready().await;
    let api = site.hub.api.clone();
    let small = || fetched(call(&api, "static/small.json"));
    let figures = load(effort, site.agent.process(), &small, &|| large(api.clone())).await;
    Figures { first_ms: Sorted::new(starts), ..figures }
}

/// Durable notifications a second, from submission to stored outcome, to the same nginx.
async fn durable(site: &Ours, effort: Effort) -> f64 {
    let body = json!({
        "site": "paris", "resource": "catalogue", "operation": "notify",
        "params": {"path": "orders/42/validated"}, "payload": {"text": PAYLOAD, "media_type": "application/json"},
    });
    let submit = || {
        let request = site.hub.api.request(Method::POST, "/v1/jobs?wait=60").json(&body);
        async move {
            let answer: Value = request.send().await.expect("an answer").json().await.expect("a job");
            assert_eq!(answer["state"], "succeeded", "{answer:#}");
        }
    };
    many(CONCURRENT, CONCURRENT * 4, &submit).await;
    let count = effort.repetitions * 4;
    let (_, took) = many(CONCURRENT, count, &submit).await;
    count as f64 / took.as_secs_f64()
}

fn lines(ours: &Figures, theirs: &Figures, jobs: f64, direct_per_s: f64) -> Vec<Line> {
    let line = |name: &str, value: f64, theirs: f64, (least, factor): (bool, f64), more: Value| Line {
        name: name.to_owned(),
        value,
        baseline: ("snyk_broker".to_owned(), theirs),
        target: Some(match least {
            true => (Target::AtLeast(theirs * factor), format!("{factor} × snyk-broker")),
            false => (Target::AtMost(theirs / factor), format!("1/{factor} of snyk-broker")),
        }),
        more,
    };
    let (least, most) = (true, false);
    let stretch = json!({"stretch_at_least": 6.0 * theirs.per_s, "direct_per_s": direct_per_s});
    vec![
        line("calls_per_s_at_32", ours.per_s, theirs.per_s, (least, 4.0), stretch),
        line("calls_p50_ms_at_1", ours.alone.p50(), theirs.alone.p50(), (most, 3.0), json!({})),
        line("calls_p99_ms_at_32", ours.crowd.p99(), theirs.crowd.p99(), (most, 5.0), json!({})),
        line("calls_agent_cpu_us", ours.cpu_us, theirs.cpu_us, (most, 4.0), json!({})),
        line("calls_agent_idle_rss_mib", ours.idle_mib, theirs.idle_mib, (most, 5.0), json!({})),
        line("calls_agent_loaded_rss_mib", ours.loaded_mib, theirs.loaded_mib, (most, 8.0), json!({})),
        line(
            "calls_start_to_first_ms",
            ours.first_ms.p50(),
            theirs.first_ms.p50(),
            (most, 5.0),
            json!({"starts": STARTS}),
        ),
        line("calls_1mib_mb_per_s", ours.large_mb_per_s, theirs.large_mb_per_s, (least, 2.0), json!({})),
        line("durable_notify_jobs_per_s", jobs, theirs.per_s, (least, 1.5), json!({})),
    ]
}
