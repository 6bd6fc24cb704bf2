//! What Prometheus reads at `/metrics`. Labels come from closed lists alone.

use crate::{journal::events::Counts, registry::Load};
use passerelle_protocol::Code;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};
use std::sync::atomic::AtomicU64;

/// Labels of a finished attempt.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Finished {
    connector: String,
    outcome: &'static str,
}

/// Labels of an ended call.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Called {
    connector: String,
    outcome: &'static str,
}

/// Labels of a declined offer, or of a refused post.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Declined {
    code: &'static str,
}

/// Labels of a reload of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reloaded {
    result: &'static str,
}

/// Labels of a copy of the audit.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Export {
    export: &'static str,
}

/// What is looked at when Prometheus asks.
#[derive(Debug, Clone, Copy, Default)]
pub struct Gauges {
    /// How full the agent is.
    pub load: Load,
    /// Whether the hub has welcomed it.
    pub connected: bool,
    /// Whether the journal takes writes.
    pub journal_writable: bool,
    /// Bytes of the journal in use.
    pub journal_bytes: u64,
    /// Calls that wait for the journal.
    pub journal_queue: usize,
    /// Bytes that the spool holds or has promised.
    pub spool_bytes: u64,
    /// Messages that wait for the tunnel.
    pub outbox: usize,
    /// Free bytes on the disk of the state folder, where known.
    pub disk_free: Option<u64>,
    /// What triggers have under way.
    pub events: Counts,
}

/// The counters.
pub struct Metrics {
    registry: Registry,
    /// Offers that came.
    pub offers: Counter,
    /// Attempts that were accepted.
    pub accepted: Counter,
    /// Changes of the agent's own key.
    pub key_rotations: Counter,
    /// Changes of the hub's signing key that were followed.
    pub hub_keys_followed: Counter,
    /// Statements about the hub's keys that were not believed.
    pub hub_keys_refused: Counter,
    /// Times that another process with this identity took the connection over.
    pub fenced: Counter,
    /// Reports that the hub acknowledged.
    pub reports_acknowledged: Counter,
    /// Times that the connection was lost or did not come about.
    pub reconnects: Counter,
    /// Messages of unknown type.
    pub unsupported: Counter,
    /// Bytes of payloads downloaded.
    pub payload_bytes_in: Counter,
    /// Bytes of outputs uploaded.
    pub payload_bytes_out: Counter,
    /// Seconds from acceptance to outcome.
    pub job_seconds: Histogram,
    /// Parts of ended attempts removed from targets.
    pub leftovers_removed: Counter,
    /// Files that triggers took.
    pub files_taken: Counter,
    /// Files that triggers left where they are.
    pub files_left: Counter,
    /// Changes of records that triggers took.
    pub changes_taken: Counter,
    /// Posts that listeners took.
    pub posts_taken: Counter,
    /// Events that the hub stored.
    pub events_acknowledged: Counter,
    /// Events that the hub refused for good.
    pub events_refused: Counter,
    /// Times that a corrupt journal was set aside at the start.
    pub journal_set_aside: Counter,
    /// Rows of the audit that were written.
    pub audit_rows: Counter,
    /// The time that the journal spent on them.
    pub audit_seconds: Counter<f64, AtomicU64>,
    /// The number of the newest row in a file.
    pub audit_filed: Gauge,
    /// What the audit's files take.
    pub audit_bytes: Gauge,
    audit_behind: Family<Export, Gauge>,
    /// Seconds from a call's receipt to its answer.
    pub call_seconds: Histogram,
    finished: Family<Finished, Counter>,
    declined: Family<Declined, Counter>,
    called: Family<Called, Counter>,
    calls_declined: Family<Declined, Counter>,
    posts_refused: Family<Declined, Counter>,
    reloads: Family<Reloaded, Counter>,
    held: Gauge,
    running: Gauge,
    unreported: Gauge,
    connected: Gauge,
    journal_writable: Gauge,
    waiting: Gauge,
    journal_bytes: Gauge,
    journal_queue: Gauge,
    spool_bytes: Gauge,
    outbox: Gauge,
    disk_free: Gauge,
    events_waiting: Gauge,
    events_waiting_bytes: Gauge,
    files_unsettled: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        // A millisecond to about a quarter of an hour.
        let buckets =
            [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0];
        let mut metrics = Self {
            registry: Registry::with_prefix("passerelle_agent"),
            offers: Counter::default(),
            accepted: Counter::default(),
            key_rotations: Counter::default(),
            hub_keys_followed: Counter::default(),
            hub_keys_refused: Counter::default(),
            fenced: Counter::default(),
            reports_acknowledged: Counter::default(),
            reconnects: Counter::default(),
            unsupported: Counter::default(),
            payload_bytes_in: Counter::default(),
            payload_bytes_out: Counter::default(),
            job_seconds: Histogram::new(buckets),
            leftovers_removed: Counter::default(),
            files_taken: Counter::default(),
            files_left: Counter::default(),
            changes_taken: Counter::default(),
            posts_taken: Counter::default(),
            posts_refused: Family::default(),
            events_acknowledged: Counter::default(),
            events_refused: Counter::default(),
            journal_set_aside: Counter::default(),
            audit_rows: Counter::default(),
            audit_seconds: Counter::default(),
            audit_filed: Gauge::default(),
            audit_bytes: Gauge::default(),
            audit_behind: Family::default(),
            call_seconds: Histogram::new(exponential_buckets(0.000_25, 2.0, 18)),
            called: Family::default(),
            calls_declined: Family::default(),
            finished: Family::default(),
            declined: Family::default(),
            reloads: Family::default(),
            held: Gauge::default(),
            running: Gauge::default(),
            unreported: Gauge::default(),
            connected: Gauge::default(),
            journal_writable: Gauge::default(),
            waiting: Gauge::default(),
            journal_bytes: Gauge::default(),
            journal_queue: Gauge::default(),
            spool_bytes: Gauge::default(),
            outbox: Gauge::default(),
            disk_free: Gauge::default(),
            events_waiting: Gauge::default(),
            events_waiting_bytes: Gauge::default(),
            files_unsettled: Gauge::default(),
        };
        let m = &mut metrics;
        let r = &mut m.registry;
        r.register("offers", "Offers that came", m.offers.clone());
        r.register("jobs_accepted", "Attempts written to the journal", m.accepted.clone());
        r.register("jobs_finished", "Attempts that ended, by connector and outcome", m.finished.clone());
        r.register("offers_declined", "Offers not taken, by code", m.declined.clone());
        r.register("calls", "Calls that ended, by connector and outcome", m.called.clone());
        r.register("calls_declined", "Calls not taken, by code", m.calls_declined.clone());
        let seconds = m.call_seconds.clone();
        r.register_with_unit("call_duration", "From a call to its answer", Unit::Seconds, seconds);
        r.register("config_reloads", "Changed configurations, by result", m.reloads.clone());
        r.register("key_rotations", "Changes of the agent's own key", m.key_rotations.clone());
        r.register("hub_keys_followed", "New signing keys of the hub", m.hub_keys_followed.clone());
        r.register(
            "hub_keys_refused",
            "Signing keys that nobody trusted vouched for",
            m.hub_keys_refused.clone(),
        );
        r.register("fenced", "Times that another connection of this identity took over", m.fenced.clone());
        r.register("reports_acknowledged", "Reports that the hub stored", m.reports_acknowledged.clone());
        r.register("tunnel_reconnects", "Connections lost or not come about", m.reconnects.clone());
        r.register("messages_unsupported", "Messages of unknown type", m.unsupported.clone());
        r.register_with_unit("payload_in", "Payloads downloaded", Unit::Bytes, m.payload_bytes_in.clone());
        r.register_with_unit("payload_out", "Outputs uploaded", Unit::Bytes, m.payload_bytes_out.clone());
        r.register_with_unit(
            "job_duration",
            "From acceptance to outcome",
            Unit::Seconds,
            m.job_seconds.clone(),
        );
        let removed = m.leftovers_removed.clone();
        r.register("leftovers_removed", "Parts of ended attempts removed from targets", removed);
        r.register("files_taken", "Files that triggers took", m.files_taken.clone());
        r.register("files_left", "Files that triggers left where they are", m.files_left.clone());
        r.register("changes_taken", "Changes of records that triggers took", m.changes_taken.clone());
        r.register("posts_taken", "Posts that listeners took", m.posts_taken.clone());
        r.register("posts_refused", "Posts that listeners refused, by code", m.posts_refused.clone());
        r.register("events_acknowledged", "Events that the hub stored", m.events_acknowledged.clone());
        r.register("events_refused", "Events that the hub refused for good", m.events_refused.clone());
        r.register("events_waiting", "Events that wait for the hub", m.events_waiting.clone());
        let bytes = m.events_waiting_bytes.clone();
        r.register_with_unit("events_waiting", "Files that wait for the hub", Unit::Bytes, bytes);
        let unsettled = m.files_unsettled.clone();
        r.register("files_unsettled", "Files that the hub has, to be deleted or moved", unsettled);
        r.register("journal_set_aside", "Corrupt journals set aside", m.journal_set_aside.clone());
        r.register("audit_rows", "Rows of the audit written", m.audit_rows.clone());
        let seconds = m.audit_seconds.clone();
        r.register_with_unit("audit_write", "Spent on the audit's rows", Unit::Seconds, seconds);
        r.register("audit_filed", "The newest row that is in a file", m.audit_filed.clone());
        r.register_with_unit("audit", "The audit's files", Unit::Bytes, m.audit_bytes.clone());
        r.register("audit_export_behind", "Rows that a copy lacks", m.audit_behind.clone());
        r.register("jobs_held", "Attempts accepted and not finished", m.held.clone());
        r.register("jobs_running", "Attempts whose connector has started", m.running.clone());
        r.register("jobs_unreported", "Attempts finished and not acknowledged", m.unreported.clone());
        r.register("tunnel_connected", "1 if the hub has welcomed the agent", m.connected.clone());
        r.register("journal_writable", "1 if the last write succeeded", m.journal_writable.clone());
        r.register("jobs_waiting", "Attempts that wait for their turn or payload", m.waiting.clone());
        r.register("journal_queue", "Calls that wait for the journal", m.journal_queue.clone());
        r.register("outbox_queue", "Messages that wait for the tunnel", m.outbox.clone());
        r.register_with_unit("journal", "The journal in use", Unit::Bytes, m.journal_bytes.clone());
        r.register_with_unit("spool", "Payloads held or promised room", Unit::Bytes, m.spool_bytes.clone());
        r.register_with_unit(
            "disk_free",
            "Free on the state folder's disk",
            Unit::Bytes,
            m.disk_free.clone(),
        );
        metrics
    }
}

impl Metrics {
    /// Counts an ended attempt.
    pub fn job_finished(&self, connector: Option<String>, outcome: &'static str) {
        let connector = connector.unwrap_or_else(|| "none".to_owned());
        self.finished.get_or_create(&Finished { connector, outcome }).inc();
    }

    /// Counts a declined offer.
    pub fn declined(&self, code: Code) {
        self.declined.get_or_create(&Declined { code: code.as_str() }).inc();
    }

    /// Counts an ended call.
    pub fn call_finished(&self, connector: Option<String>, outcome: &'static str) {
        let connector = connector.unwrap_or_else(|| "none".to_owned());
        self.called.get_or_create(&Called { connector, outcome }).inc();
    }

    /// Counts a declined call.
    pub fn call_declined(&self, code: Code) {
        self.calls_declined.get_or_create(&Declined { code: code.as_str() }).inc();
    }

    /// How many rows a copy of the audit lacks.
    pub fn audit_behind(&self, export: &'static str, rows: i64) {
        self.audit_behind.get_or_create(&Export { export }).set(rows);
    }

    /// Counts a post that was refused, by its code.
    pub fn post_refused(&self, code: &'static str) {
        self.posts_refused.get_or_create(&Declined { code }).inc();
    }

    /// Counts a changed configuration: `applied` or `refused`.
    pub fn config_reload(&self, result: &'static str) {
        self.reloads.get_or_create(&Reloaded { result }).inc();
    }

    /// The text that Prometheus reads.
    pub fn encode(&self, now: Gauges) -> Result<String, std::fmt::Error> {
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let bytes = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        self.held.set(number(now.load.active));
        self.running.set(number(now.load.running));
        self.waiting.set(number(now.load.active.saturating_sub(now.load.running)));
        self.unreported.set(number(now.load.finished));
        self.connected.set(i64::from(now.connected));
        self.journal_writable.set(i64::from(now.journal_writable));
        self.journal_bytes.set(bytes(now.journal_bytes));
        self.journal_queue.set(number(now.journal_queue));
        self.spool_bytes.set(bytes(now.spool_bytes));
        self.outbox.set(number(now.outbox));
        self.events_waiting.set(bytes(now.events.waiting));
        self.events_waiting_bytes.set(bytes(now.events.bytes));
        self.files_unsettled.set(bytes(now.events.unsettled));
        self.disk_free.set(now.disk_free.map_or(-1, bytes));
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_labels_are_those_of_the_operators_page() {
        let metrics = Metrics::default();
        metrics.job_finished(Some("file".into()), "succeeded");
        metrics.declined(Code::Busy);
        metrics.config_reload("refused");
        let now = Gauges {
            load: Load { active: 3, finished: 1, running: 1 },
            connected: true,
            spool_bytes: 7,
            journal_queue: 4,
            ..Gauges::default()
        };
        let text = metrics.encode(now).unwrap();
        for line in [
            r#"passerelle_agent_jobs_finished_total{connector="file",outcome="succeeded"} 1"#,
            r#"passerelle_agent_offers_declined_total{code="busy"} 1"#,
            r#"passerelle_agent_config_reloads_total{result="refused"} 1"#,
            "passerelle_agent_jobs_held 3",
            "passerelle_agent_jobs_waiting 2",
            "passerelle_agent_spool_bytes 7",
            "passerelle_agent_journal_queue 4",
            "passerelle_agent_jobs_running 1",
            "passerelle_agent_jobs_unreported 1",
            "passerelle_agent_tunnel_connected 1",
            "passerelle_agent_payload_in_bytes_total 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
        let page = include_str!("../../docs/agent.md");
        for name in text.lines().filter_map(|l| l.strip_prefix("# TYPE ")).filter_map(|l| l.split(' ').next())
        {
            assert!(page.contains(name), "docs/agent.md does not tell of {name}");
        }
    }
}
