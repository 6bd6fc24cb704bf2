//! An update: today's programs on what a hub and an agent of an earlier commit left when both were killed in the middle of
//! work. `tests/upgrade/make` made it, and says what each job is.
//!
//! Everything sees the time at which it was made, so that what has a deadline does not grow too old.

use crate::common::files_below;
use passerelle_tests::{Agent, App, Hub, PATIENCE, Reply, code, run, shifted_clock, until};
use serde_json::Value;
use std::{
    fs,
    path::Path,
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};
use tempfile::TempDir;

/// The earlier commit: the last one before listeners and change feeds, whose journal has format 4.
const COMMIT: &str = "f16a1dd";

/// What the earlier programs left.
struct Left {
    home: TempDir,
    facts: Value,
}

impl Left {
    fn unpack() -> Self {
        let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("upgrade").join(format!("{COMMIT}.tar.gz"));
        let home = tempfile::tempdir().expect("a temporary folder");
        let done = run(Command::new("tar").arg("-C").arg(home.path()).arg("-xzf").arg(archive));
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        for folder in ["files", "inbox", "archive"] {
            fs::create_dir(home.path().join(folder)).expect("a folder of a resource");
        }
        let facts = fs::read(home.path().join("fixture.json")).expect("what is to be known of it");
        let facts = serde_json::from_slice(&facts).expect("JSON");
        Self { home, facts }
    }

    fn fact(&self, name: &str) -> &str {
        self.facts[name].as_str().unwrap_or_else(|| panic!("no {name} in {}", self.facts))
    }

    fn job(&self, name: &str) -> &str {
        self.facts["jobs"][name].as_str().unwrap_or_else(|| panic!("no job {name} in {}", self.facts))
    }

    /// How far back the clocks go.
    fn shift(&self) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970").as_secs();
        format!("-{}", now.saturating_sub(self.facts["made_at"].as_u64().expect("when it was made")))
    }

    /// Puts the agent's folder where `agent` has its own: the very files, but for addresses and folders of this machine.
    fn give_to(&self, agent: &Agent, hub: &Hub, app: &App) {
        let (from, to) = (self.home.path().join("config"), agent.folder());
        let copied = run(Command::new("cp").arg("-a").arg(from.join(".")).arg(to));
        assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
        let port = format!(":{}\"", self.facts["agent_port"]);
        let home = self.home.path().to_str().expect("a path in UTF-8");
        let own_port = agent.url("").rsplit_once(':').map(|(_, port)| format!(":{port}\"")).expect("a port");
        for file in ["agent.toml", "resources.d/all.toml"] {
            let text = fs::read_to_string(to.join(file)).expect("a file of the configuration");
            let text = text
                .replace(self.fact("hub"), &hub.url)
                .replace(self.fact("application"), app.url.trim_end_matches('/'))
                .replace(self.fact("folder"), home)
                .replace(&port, &own_port);
            agent.file(file, text);
        }
    }
}

/// The version that a database says of itself.
fn format_of(database: &Path) -> i64 {
    let opened = rusqlite::Connection::open(database).expect("a database");
    opened.query_row("PRAGMA user_version", [], |row| row.get(0)).expect("its version")
}

#[tokio::test(flavor = "multi_thread")]
async fn todays_programs_go_on_where_those_of_an_earlier_commit_were_killed() {
    let left = Left::unpack();
    let (data, shift) = (left.home.path().join("hub"), left.shift());
    let journal = left.home.path().join("config/state/journal.db");
    // Looked at in copies: opening a database takes up its log.
    let copies = tempfile::tempdir().expect("a temporary folder");
    for (file, name) in [(data.join("hub.sqlite"), "hub"), (journal, "journal")] {
        for (suffix, to) in [("", name.to_owned()), ("-wal", format!("{name}-wal"))] {
            let from = format!("{}{suffix}", file.display());
            fs::copy(from, copies.path().join(to)).expect("a copy");
        }
    }
    let (hub_before, journal_before) =
        (format_of(&copies.path().join("hub")), format_of(&copies.path().join("journal")));
    assert_eq!((hub_before, journal_before), (2, 4), "the formats of {COMMIT}");

    // Only the hub first: what it knows by itself.
    let hub = Hub::start_on(&data, left.fact("api_key"), &shifted_clock(&shift)).await;
    for (name, state, error) in [
        ("succeeded", "succeeded", "(no code)"),
        ("fetched", "succeeded", "(no code)"),
        ("denied", "denied", "policy_denied"),
        ("failed", "failed", "target_refused"),
        ("cancelled", "cancelled", "cancelled"),
        ("queued", "queued", "(no code)"),
        ("paused", "queued", "(no code)"),
        ("behind", "queued", "(no code)"),
    ] {
        let job = hub.api.job(left.job(name)).await;
        assert_eq!((job["state"].as_str(), code(&job)), (Some(state), error), "{name}: {job:#}");
    }
    let delivered = hub.api.job(left.job("succeeded")).await;
    assert!(delivered["receipt"].as_str().is_some_and(|receipt| receipt.matches('.').count() == 2));
    assert_eq!(hub.api.output(left.job("fetched")).await, b"journal;date;montant\nVE;2026-11-22;120.00\n");
    let agents = hub.api.get("/v1/agents").await.body;
    let id = agents["items"][0]["id"].clone();

    // The agent, with the identity, journal, spool, audit and pauses that it had.
    let app = App::with(|_, _| Reply::status(200)).await;
    let mut agent = Agent::at(&hub.url, "paris-1");
    left.give_to(&agent, &hub, &app);
    agent.shift_clock(&shift).spawn_as_it_is();
    agent.ready().await;
    let agents = hub.api.get("/v1/agents").await.body;
    assert_eq!(agents["items"].as_array().map(Vec::len), Some(1), "{agents:#}");
    assert_eq!((&agents["items"][0]["id"], &agents["items"][0]["online"]), (&id, &true.into()), "{agents:#}");

    // What had ended, and what was under way, with the one behind it in its line.
    hub.api.reach(left.job("unreported"), &["succeeded"]).await;
    hub.api.reach(left.job("running"), &["succeeded"]).await;
    hub.api.reach(left.job("behind"), &["succeeded"]).await;
    let asked: Vec<(String, String)> = app
        .requests()
        .iter()
        .map(|request| (request.uri.clone(), request.header("idempotency-key").to_owned()))
        .collect();
    let expected = [("/held/1", "running"), ("/after/held", "behind")];
    assert_eq!(asked, expected.map(|(path, job)| (path.to_owned(), left.job(job).to_owned())));

    // A file that was taken while the hub was away.
    let event = until("the event of the file that was taken", PATIENCE, async || {
        let events = hub.api.get("/v1/events/received").await.body;
        events["items"].as_array().and_then(|items| items.first().cloned())
    })
    .await;
    assert_eq!(
        (&event["resource"], &event["data"]["path"]),
        (&"inbox".into(), &"stock.csv".into()),
        "{event:#}"
    );
    let path = format!("/v1/events/received/{}/payload", event["id"].as_str().expect("an id"));
    let request = hub.api.request(reqwest::Method::GET, &path);
    let payload = request.send().await.expect("an answer").bytes().await.expect("a payload");
    assert_eq!(&payload[..], b"stock;42\n");

    // A pause that somebody had set, and the job that waits for its end.
    let resources = hub.api.get("/v1/sites/paris/resources").await.body;
    let archive =
        resources["items"].as_array().and_then(|all| all.iter().find(|item| item["name"] == "archive"));
    assert_eq!(archive.expect("the resource")["paused"]["reason"], "stock-taking", "{resources:#}");
    let resumed = agent.output(&["resume", "archive"]);
    assert!(resumed.status.success(), "{}", String::from_utf8_lossy(&resumed.stderr));
    hub.api.reach(left.job("paused"), &["succeeded"]).await;
    assert_eq!(files_below(&left.home.path().join("archive")), ["paused.csv"]);

    // The audit goes on in the chain that the earlier agent began.
    let audit = agent.output(&["audit", "verify"]);
    assert!(audit.status.success(), "{}", String::from_utf8_lossy(&audit.stderr));

    // A token that was made and not used: another site, and the job that waits for it.
    let mut lyon = Agent::at(&hub.url, "lyon-1");
    lyon.secret("enrolment-token", left.fact("lyon_token"));
    let folder = left.home.path().join("lyon");
    fs::create_dir(&folder).expect("a folder");
    lyon.resource("compta", &passerelle_tests::resources::folder("compta", &folder));
    lyon.shift_clock(&shift).start().await;
    hub.api.reach(left.job("queued"), &["succeeded"]).await;
    assert_eq!(files_below(&folder), ["lyon.csv"]);

    assert!(
        format_of(&data.join("hub.sqlite")) > hub_before,
        "the hub's database was not brought up to date"
    );
    let journal = agent.folder().join("state/journal.db");
    agent.kill();
    assert!(format_of(&journal) > journal_before, "the journal was not brought up to date");
}
