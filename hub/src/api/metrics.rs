//! The hub's own figures for Prometheus; labels come from closed sets only.

use crate::{blobs::Collected, store::Stats};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

/// The labels of a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    method: &'static str,
    route: String,
    status: u16,
}

/// The label of a call.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Called {
    code: &'static str,
}

/// The label of what the retention removed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Removed {
    what: &'static str,
}

/// Counters and gauges of one hub.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    requests: Family<Request, Counter>,
    seconds: Histogram,
    submitted: Counter,
    repeated: Counter,
    called: Family<Called, Counter>,
    enrolments: Counter,
    refused_agents: Counter,
    agent_clones: Counter,
    agents_online: Gauge,
    event_streams: Gauge,
    events: EventMetrics,
    store: StoreMetrics,
}

/// What became of the events of agents.
#[derive(Clone, Default)]
struct EventMetrics {
    received: Counter,
    repeated: Counter,
    refused: Counter,
}

/// How the store stands.
#[derive(Clone, Default)]
struct StoreMetrics {
    commits: Counter,
    writes: Counter,
    queued: Gauge,
    database_bytes: Gauge,
    blob_bytes: Gauge,
    removed: Family<Removed, Counter>,
    removed_bytes: Counter,
}

impl StoreMetrics {
    fn register(&self, registry: &mut Registry) {
        registry.register(
            "store_commits",
            "Transactions committed, each with one sync",
            self.commits.clone(),
        );
        registry.register("store_writes", "Writes that these transactions carried", self.writes.clone());
        registry.register("store_queued_writes", "Writes that wait for the writer", self.queued.clone());
        registry.register("store_database_bytes", "The database with its log", self.database_bytes.clone());
        registry.register("store_blob_bytes", "Files of payloads and outputs", self.blob_bytes.clone());
        registry.register("store_removed", "What the retention removed", self.removed.clone());
        registry.register("store_removed_bytes", "Bytes of files it removed", self.removed_bytes.clone());
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("passerelle_hub");
        let metrics = Self {
            requests: Family::default(),
            // 1 ms to about 65 s: a submission up to a long wait.
            seconds: Histogram::new(exponential_buckets(0.001, 2.0, 17)),
            submitted: Counter::default(),
            repeated: Counter::default(),
            called: Family::default(),
            enrolments: Counter::default(),
            refused_agents: Counter::default(),
            agent_clones: Counter::default(),
            agents_online: Gauge::default(),
            event_streams: Gauge::default(),
            events: EventMetrics::default(),
            store: StoreMetrics::default(),
            registry: Arc::default(),
        };
        let m = &metrics;
        registry.register("http_requests", "HTTP requests answered", m.requests.clone());
        registry.register("http_request_seconds", "Time to the head of the answer", m.seconds.clone());
        registry.register("jobs_submitted", "Jobs stored on submission", m.submitted.clone());
        registry.register("jobs_repeated", "Submissions answered by an idempotency key", m.repeated.clone());
        registry.register("calls", "Real-time calls answered, by code", m.called.clone());
        registry.register("enrolments", "Agents enrolled", m.enrolments.clone());
        registry.register("agents_refused", "Refused enrolments and tunnels", m.refused_agents.clone());
        registry.register(
            "agent_clones",
            "Times that a second live process with an agent's identity fenced the first",
            m.agent_clones.clone(),
        );
        registry.register("agents_online", "Agents with an open tunnel", m.agents_online.clone());
        registry.register("event_streams", "Clients following the events", m.event_streams.clone());
        let e = &m.events;
        registry.register("events_received", "Events of triggers stored", e.received.clone());
        registry.register("events_repeated", "Events that were stored before", e.repeated.clone());
        registry.register("events_refused", "Events of triggers refused", e.refused.clone());
        m.store.register(&mut registry);
        Self { registry: Arc::new(registry), ..metrics }
    }
}

impl Metrics {
    /// An answered request. `route` is the route's template, never the path.
    pub fn request(&self, method: &http::Method, route: &str, status: u16, took: Duration) {
        let labels = Request { method: known(method), route: route.to_owned(), status };
        self.requests.get_or_create(&labels).inc();
        self.seconds.observe(took.as_secs_f64());
    }

    /// A submission was answered; `created` unless its idempotency key was seen.
    pub fn submission(&self, created: bool) {
        if created { &self.submitted } else { &self.repeated }.inc();
    }

    /// A call was answered: `ok`, or the code of its problem document.
    pub fn called(&self, code: &'static str) {
        self.called.get_or_create(&Called { code }).inc();
    }

    /// An agent enrolled.
    pub fn enrolment(&self) {
        self.enrolments.inc();
    }

    /// An enrolment or a tunnel was refused.
    pub fn agent_refused(&self) {
        self.refused_agents.inc();
    }

    /// An event stream opened; it counts until the guard is dropped.
    #[must_use]
    pub fn event_stream(&self) -> StreamGuard {
        self.event_streams.inc();
        StreamGuard(self.event_streams.clone())
    }

    /// How the store stands now.
    pub fn store(&self, stats: &Stats) {
        let whole = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        self.store.commits.inner().store(stats.commits, Ordering::Relaxed);
        self.store.writes.inner().store(stats.writes, Ordering::Relaxed);
        self.agent_clones.inner().store(stats.clones, Ordering::Relaxed);
        self.events.received.inner().store(stats.events, Ordering::Relaxed);
        self.events.repeated.inner().store(stats.events_repeated, Ordering::Relaxed);
        self.events.refused.inner().store(stats.events_refused, Ordering::Relaxed);
        self.store.queued.set(whole(stats.queued));
        self.store.database_bytes.set(whole(stats.database_bytes));
        self.store.blob_bytes.set(whole(stats.blob_bytes));
    }

    /// The retention removed something.
    pub fn collected(&self, done: &Collected) {
        let Collected { jobs, blobs, outputs, uploads, events, runs, files, bytes } = *done;
        let all = [
            ("jobs", jobs),
            ("blobs", blobs),
            ("outputs", outputs),
            ("uploads", uploads),
            ("events", events),
            ("runs", runs),
            ("files", files),
        ];
        for (what, count) in all {
            self.store.removed.get_or_create(&Removed { what }).inc_by(count);
        }
        self.store.removed_bytes.inc_by(bytes);
    }

    /// The text format (OpenMetrics 1.0).
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn render(&self, agents_online: usize) -> Result<String, fmt::Error> {
        self.agents_online.set(i64::try_from(agents_online).unwrap_or(i64::MAX));
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// Counts an open event stream.
pub struct StreamGuard(Gauge);

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn known(method: &http::Method) -> &'static str {
    match *method {
        http::Method::GET => "GET",
        http::Method::HEAD => "HEAD",
        http::Method::POST => "POST",
        http::Method::PATCH => "PATCH",
        http::Method::PUT => "PUT",
        http::Method::DELETE => "DELETE",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_rendered_and_unknown_methods_share_a_label() {
        let metrics = Metrics::default();
        metrics.request(&http::Method::GET, "/v1/jobs/{id}", 200, Duration::from_millis(3));
        metrics.request(&"BREW".parse().unwrap(), "none", 405, Duration::ZERO);
        let stream = metrics.event_stream();
        let text = metrics.render(2).unwrap();
        assert!(text.contains(
            r#"passerelle_hub_http_requests_total{method="GET",route="/v1/jobs/{id}",status="200"} 1"#
        ));
        assert!(text.contains(r#"method="other""#));
        assert!(text.contains("passerelle_hub_agents_online 2"));
        assert!(text.contains("passerelle_hub_event_streams 1"));
        metrics.store(&Stats {
            commits: 3,
            writes: 9,
            queued: 2,
            database_bytes: 4096,
            blob_bytes: 77,
            clones: 5,
            events: 6,
            events_repeated: 8,
            events_refused: 10,
        });
        metrics.collected(&Collected { blobs: 4, bytes: 50, ..Collected::default() });
        let text = format!("{text}{}", metrics.render(2).unwrap());
        for figure in [
            "agent_clones_total 5",
            "events_received_total 6",
            "events_repeated_total 8",
            "events_refused_total 10",
            "store_commits_total 3",
            "store_writes_total 9",
            "store_queued_writes 2",
            "store_database_bytes 4096",
            "store_blob_bytes 77",
            r#"store_removed_total{what="blobs"} 4"#,
            "store_removed_bytes_total 50",
        ] {
            assert!(text.contains(&format!("passerelle_hub_{figure}\n")), "{figure}: {text}");
        }
        drop(stream);
        assert!(metrics.render(2).unwrap().contains("passerelle_hub_event_streams 0"));
    }
}
