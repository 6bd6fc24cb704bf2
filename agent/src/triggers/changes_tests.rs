//! The reading of change feeds, against a feed in memory and a whole agent: over pages, restarts, and agents of a site.

use super::*;
use crate::{
    daemon::assemble,
    hub::Hub,
    identity::{Identity, load_or_make_key},
    journal::Journal,
    local::Local,
    metrics::Metrics,
    pause::{Paused, Pauses},
    pressure::Pressure,
    settings::Settings,
    state::StateDir,
    status::Status,
    triggers::send,
};
use passerelle_config::Finding;
use passerelle_connectors::{
    Call, Capabilities, ChangeOp, Changes, Connector, Demands, Input, Outcome, Output,
};
use passerelle_protocol::{AgentId, EventAck, SigningKey, TriggerLease, http::EnrolResponse};
use serde_json::json;
use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    pin::Pin,
    sync::{Mutex, MutexGuard},
};

/// Records in the order of their change; a cursor is how many were read.
#[derive(Default)]
struct Feed {
    records: Mutex<Vec<Change>>,
    /// Where pages were asked for.
    asked: Mutex<Vec<String>>,
    refuses: Mutex<bool>,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap()
}

impl Feed {
    fn add(&self, id: u32) {
        lock(&self.records).push(change(json!({ "name": id }), &id.to_string(), &id.to_string()));
    }

    fn page(&self, start: Start<'_>, limit: usize) -> Result<Changes, Failure> {
        lock(&self.asked).push(format!("{start:?}"));
        if *lock(&self.refuses) {
            return Err(Failure::permanent(Code::TargetAuth, "the target refuses the credentials"));
        }
        let records = lock(&self.records);
        let from = match start {
            Start::Now => records.len(),
            Start::Beginning | Start::Since(_) => 0,
            Start::Cursor(text) => text.parse().unwrap(),
        };
        let items: Vec<Change> = records.iter().skip(from).take(limit).cloned().collect();
        let next = from + items.len();
        Ok(Changes {
            items,
            next_cursor: next.to_string(),
            more: next < records.len(),
            complete_deletes: true,
        })
    }
}

struct Crm(Arc<Feed>);

impl Feeds for Crm {
    fn changes<'a>(
        &'a self,
        entity: &'a str,
        start: Start<'a>,
        limit: usize,
        _patience: &'a Patience,
    ) -> Pin<Box<dyn Future<Output = Result<Changes, Failure>> + Send + 'a>> {
        assert_eq!(entity, "contact");
        Box::pin(async move { self.0.page(start, limit) })
    }
}

impl Connector for Crm {
    fn capabilities(&self) -> Capabilities {
        Capabilities { kind: "memory", operations: Vec::new() }
    }

    fn demands(&self, operation: &str, _params: &Value) -> Result<Demands, Failure> {
        unreachable!("{operation}")
    }

    async fn probe(&self, _timeout: Duration) -> Result<(), Failure> {
        Ok(())
    }

    fn feeds(&self) -> Option<&dyn Feeds> {
        Some(self)
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

fn change(fields: Value, id: &str, stamp: &str) -> Change {
    let Value::Object(fields) = fields else { panic!() };
    let (id, stamp) = (id.to_owned(), stamp.to_owned());
    Change { op: ChangeOp::Upsert, id, key: None, version: None, fields: Some(fields), stamp }
}

fn rule(start: ChangesStart, fields: Option<&[&str]>) -> Rule {
    let at = Finding { file: "x".into(), line: 1, column: 1, path: String::new(), message: String::new() };
    Rule {
        name: "contacts".to_owned(),
        entity: "contact".to_owned(),
        start,
        page_size: 2,
        fields: fields.map(|fields| fields.iter().map(|&field| field.to_owned()).collect()),
        every: Duration::from_millis(20),
        at,
    }
}

fn key() -> Key {
    Key { resource: "crm".parse().unwrap(), trigger: "contacts".parse().unwrap() }
}

/// An agent of the site `paris` that knows the feed as the resource `crm`.
struct World {
    agent: Arc<Agent>,
    resource: Shared,
    _dir: tempfile::TempDir,
}

impl World {
    fn new(feed: &Arc<Feed>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        let root = dir.path().join("root");
        let text = format!(
            "[hub]\nurl = \"http://127.0.0.1:9/\"\n[resources.crm]\nconnector = \"file\"\nurl = \"file://{}\"\n",
            root.display()
        );
        fs::write(dir.path().join("agent.toml"), text).unwrap();
        let mut settings = Settings::load(dir.path()).unwrap();
        let name: Name = "crm".parse().unwrap();
        let resource = settings.resources.get_mut(&name).unwrap();
        Arc::get_mut(resource).unwrap().connector = Arc::new(Crm(Arc::clone(feed)));
        let (resource, agent) = (Arc::clone(resource), build(settings, dir.path()));
        Self { agent, resource, _dir: dir }
    }

    /// The hub says that the trigger runs here.
    fn lease(&self, number: u64, cursor: Option<&str>) {
        let Key { resource, trigger } = key();
        let cursor = cursor.map(str::to_owned);
        self.agent.triggers.leased(vec![TriggerLease {
            resource,
            trigger,
            lease: number,
            ttl_s: None,
            cursor,
        }]);
    }

    fn run(&self, start: ChangesStart) -> Runs {
        let stop = CancellationToken::new();
        let (agent, resource) = (Arc::clone(&self.agent), Arc::clone(&self.resource));
        let running = Running::new(agent, resource, rule(start, None), key(), kind().unwrap(), stop.clone());
        Runs { stop, task: tokio::spawn(running.run()) }
    }

    /// The records whose changes wait for the hub.
    async fn waiting(&self) -> Vec<(String, EventId)> {
        let rows = self.agent.journal.waiting(key(), 0, 100).await.unwrap();
        rows.into_iter().map(|row| (row.taken.seen.path, row.taken.id)).collect()
    }

    async fn waits_for(&self, count: usize) -> Vec<(String, EventId)> {
        until(async || Some(self.waiting().await).filter(|rows| rows.len() == count)).await
    }

    /// The hub has them.
    async fn acknowledge(&self) {
        for (_, id) in self.waiting().await {
            send::acked(&self.agent, EventAck { id, duplicate: false }).await;
        }
    }

    /// What the hub is told of the cursor next.
    async fn cursor_told(&self) -> (u64, String) {
        let cursor = until(async || self.agent.outbox.take().cursors.pop()).await;
        (cursor.lease, cursor.cursor)
    }
}

struct Runs {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Runs {
    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

fn build(settings: Settings, dir: &Path) -> Arc<Agent> {
    let state = Arc::new(StateDir::open(&dir.join("state")).unwrap());
    let (hub_key, _) = SigningKey::generate().unwrap();
    let answer = EnrolResponse {
        agent: AgentId::new(1, &[7; 10]),
        tenant: "acme".parse().unwrap(),
        site: "paris".parse().unwrap(),
        application: "hub".into(),
        audience: "urn:hub".into(),
        job_keys: vec![hub_key.public().clone()],
        replaced: None,
        server_time: clock::now(),
    };
    let own = load_or_make_key(&state).unwrap();
    let identity = Identity::create(&state, answer, "http://127.0.0.1:9/".into(), own).unwrap();
    // Another test may have installed it already.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let hub = Hub::new(&settings).unwrap();
    let journal = Journal::open(state.path()).unwrap().journal;
    let settings = Arc::new(settings);
    let local = Local::new(
        Arc::clone(&settings),
        Arc::new(Status::new(BTreeMap::new())),
        Arc::new(Metrics::default()),
        Arc::new(Pressure::new(1 << 30)),
        Arc::new(Pauses::open(Arc::clone(&state)).unwrap()),
    );
    assemble(settings, state, identity, hub, journal, &local).unwrap()
}

async fn until<T>(mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "waited in vain");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn every_change_is_journalled_in_order_and_the_cursor_told_once_the_hub_has_them() {
    let feed = Arc::<Feed>::default();
    (0..5).for_each(|id| feed.add(id));
    let world = World::new(&feed);
    let runs = world.run(ChangesStart::Beginning);
    world.lease(1, None);
    let rows = world.waits_for(5).await;
    let paths: Vec<&str> = rows.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(paths, ["contact/0", "contact/1", "contact/2", "contact/3", "contact/4"]);
    assert!(world.agent.outbox.take().cursors.is_empty(), "the hub has nothing of it yet");
    world.acknowledge().await;
    assert_eq!(world.cursor_told().await, (1, "5".to_owned()));
    // The hub shows that it knows: it is not told again. What changes later is.
    world.lease(1, Some("5"));
    feed.add(5);
    world.waits_for(1).await;
    runs.end().await;
    // The process dies and comes back under its lease, with an older cursor at the hub: its own counts.
    world.lease(1, Some("2"));
    let runs = world.run(ChangesStart::Beginning);
    feed.add(6);
    let rows = world.waits_for(2).await;
    assert_eq!(rows[1].0, "contact/6");
    assert!(lock(&feed.asked).iter().filter(|asked| *asked == "Beginning").count() == 1);
    runs.end().await;
}

#[tokio::test]
async fn whoever_takes_the_trigger_over_goes_on_from_the_hubs_cursor_and_makes_the_same_events() {
    let feed = Arc::<Feed>::default();
    (0..4).for_each(|id| feed.add(id));
    let (first, second) = (World::new(&feed), World::new(&feed));
    let runs = first.run(ChangesStart::Beginning);
    first.lease(1, None);
    let told = first.waits_for(4).await;
    runs.end().await;
    // The first is gone before the hub had all of it: what the second reads again are the same events.
    second.lease(2, Some("2"));
    let runs = second.run(ChangesStart::Beginning);
    assert_eq!(second.waits_for(2).await, told[2..]);
    assert_eq!(lock(&feed.asked).iter().filter(|asked| *asked == "Beginning").count(), 1);
    second.acknowledge().await;
    assert_eq!(second.cursor_told().await, (2, "4".to_owned()));
    runs.end().await;
    // Back to the first, under a new lease: the hub's cursor counts, not its own older one.
    feed.add(4);
    first.acknowledge().await;
    first.lease(3, Some("5"));
    let runs = first.run(ChangesStart::Beginning);
    feed.add(5);
    assert_eq!(first.waits_for(1).await[0].0, "contact/5");
    runs.end().await;
}

#[tokio::test]
async fn a_feed_that_starts_now_tells_its_first_cursor_though_nothing_has_changed() {
    let feed = Arc::<Feed>::default();
    (0..3).for_each(|id| feed.add(id));
    let world = World::new(&feed);
    let runs = world.run(ChangesStart::Now);
    world.lease(1, None);
    assert_eq!(world.cursor_told().await, (1, "3".to_owned()));
    feed.add(3);
    assert_eq!(world.waits_for(1).await[0].0, "contact/3");
    runs.end().await;
}

#[tokio::test]
async fn wrong_credentials_are_tried_once_until_the_operator_resumes_the_resource() {
    let feed = Arc::<Feed>::default();
    feed.add(0);
    *lock(&feed.refuses) = true;
    let world = World::new(&feed);
    let runs = world.run(ChangesStart::Beginning);
    world.lease(1, None);
    world.agent.triggers.board.configured(&BTreeMap::from([(key(), CHANGE)]));
    let problem = || {
        let shown = world.agent.triggers.board.snapshot();
        shown.into_iter().find_map(|one| one.problem)
    };
    let why = until(async || problem()).await;
    assert!(why.contains("not read any more") && why.contains("pause crm"), "{why}");
    world.lease(1, None);
    let name: Name = "crm".parse().unwrap();
    let paused = Paused { since: clock::now(), until: None, reason: None, by: "test".to_owned() };
    world.agent.pauses.pause(name.clone(), paused).unwrap();
    *lock(&feed.refuses) = false;
    until(async || world.agent.triggers.board.snapshot()[0].paused.clone()).await;
    assert_eq!(lock(&feed.asked).len(), 1, "it was read again with the same credentials");
    world.agent.pauses.resume(&name).unwrap();
    world.waits_for(1).await;
    until(async || problem().is_none().then_some(())).await;
    runs.end().await;
}

#[test]
fn only_the_named_fields_are_told_and_the_digest_is_of_all_of_them() {
    let named = rule(ChangesStart::Now, Some(&["name"]));
    let one = told(change(json!({"name": "A", "iban": "FR"}), "7", "1"), &named).unwrap();
    assert_eq!(one.event.fields, json!({"name": "A"}).as_object().cloned());
    let all = rule(ChangesStart::Now, None);
    let same = told(change(json!({"iban": "FR", "name": "A"}), "7", "1"), &all).unwrap();
    assert_eq!(one.event.digest, same.event.digest, "the same change, whatever is told of it");
    let others = [
        change(json!({"name": "A", "iban": "DE"}), "7", "1"),
        change(json!({"name": "A", "iban": "FR"}), "7", "2"),
    ];
    for other in others {
        assert_ne!(told(other, &named).unwrap().event.digest, one.event.digest);
    }
}

#[test]
fn fields_that_are_too_large_for_the_event_become_its_payload() {
    let (large, all) = (json!({"note": "x".repeat(MAX_EVENT_DATA)}), rule(ChangesStart::Now, None));
    let one = told(change(large.clone(), "7", "1"), &all).unwrap();
    assert_eq!(one.event.fields, None);
    assert_eq!(serde_json::from_slice::<Value>(&one.payload.unwrap()).unwrap(), large);
    let endless = change(json!({}), &"x".repeat(MAX_EVENT_DATA), "1");
    assert_eq!(told(endless, &all).err().unwrap().code, Code::TargetProtocol);
}

#[test]
fn a_cursor_that_the_feed_does_not_know_is_said_to_need_another_name() {
    let failure = || Failure::permanent(Code::InvalidParams, "not a cursor of this feed");
    assert!(named(failure(), true).message.contains("another `name`"));
    assert_eq!(named(failure(), false).message, "not a cursor of this feed");
}
