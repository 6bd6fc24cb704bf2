//! Pickup and watch: each file is one event at the hub, whole, whatever dies meanwhile.

use crate::common::{SITE, drop_into, files_below};
use passerelle_tests::{Agent, Hub, PATIENCE, Proxy, Random, SshServer, resources, until};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write as _,
    path::Path,
    time::{Duration, Instant, SystemTime},
};
use tempfile::TempDir;

/// A local folder with triggers and nothing that a job may do but drop.
fn folder(name: &str, root: &Path, triggers: &str) -> String {
    let rule = "operations = [\"drop\"]\npaths = [\"**\"]\n";
    format!("{}{triggers}", resources::folder_with(name, root, "", rule))
}

fn pickup(name: &str, lines: &str) -> String {
    format!("[[resources.compta.pickup]]\nname = \"{name}\"\nevery = \"1s\"\n{lines}\n")
}

/// All events that the hub has, oldest first.
async fn received(hub: &Hub, query: &str) -> Vec<Value> {
    let (mut items, mut cursor) = (Vec::new(), String::new());
    loop {
        let answer = hub.api.get(&format!("/v1/events/received?limit=200{query}{cursor}")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        items.extend(answer.body["items"].as_array().expect("items").iter().cloned());
        match answer.body["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    // The hub shows the newest first.
    items.reverse();
    items
}

/// Waits until the hub has so many.
async fn received_all(hub: &Hub, query: &str, count: usize, within: Duration) -> Vec<Value> {
    until(&format!("{count} events"), within, async || {
        let items = received(hub, query).await;
        assert!(items.len() <= count, "{} events instead of {count}", items.len());
        (items.len() == count).then_some(items)
    })
    .await
}

fn path(item: &Value) -> &str {
    item["data"]["path"].as_str().expect("a path")
}

/// Waits until a folder holds just these files.
async fn left(root: &Path, expected: &[&str]) {
    until(&format!("{expected:?} to be left"), PATIENCE, async || {
        (files_below(root) == expected).then_some(())
    })
    .await;
}

async fn payload(hub: &Hub, item: &Value) -> Vec<u8> {
    let id = item["id"].as_str().expect("an id");
    let request = hub.api.request(reqwest::Method::GET, &format!("/v1/events/received/{id}/payload"));
    let answer = request.send().await.expect("an answer").error_for_status().expect("the payload");
    answer.bytes().await.expect("all of it").to_vec()
}

async fn site(root: &TempDir, triggers: &str) -> (Hub, Agent) {
    let hub = Hub::start().await;
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    agent.resource("compta", &folder("compta", root.path(), triggers));
    agent.start().await;
    (hub, agent)
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_every_size_become_events_and_what_follows_is_as_the_operator_said() {
    let root = tempfile::tempdir().unwrap();
    for name in ["gone", "moved", "kept"] {
        fs::create_dir(root.path().join(name)).unwrap();
    }
    let triggers = pickup(
        "gone",
        "folder = \"gone\"\npattern = \"**/*.csv\"\nstable = \"rename\"\nafter = \"delete\"\nmax_size = \"2MiB\"",
    ) + &pickup(
        "moved",
        "folder = \"moved\"\npattern = \"*\"\nstable = { done_marker = \"{name}.ok\" }\nafter = { move_to = \"done\" }",
    ) + &pickup(
        "kept",
        "folder = \"kept\"\npattern = \"*\"\nstable = { quiet = \"200ms\" }\nafter = \"keep\"",
    );
    let (hub, mut agent) = site(&root, &triggers).await;
    let contents = [vec![], b"accounting".to_vec(), vec![7; 1_000_000]];
    for (n, content) in contents.iter().enumerate() {
        for name in ["gone", "moved", "kept"] {
            let part = root.path().join(format!("part-{n}"));
            fs::write(&part, content).unwrap();
            fs::rename(part, root.path().join(format!("{name}/{n}.csv"))).unwrap();
        }
        fs::write(root.path().join(format!("moved/{n}.csv.ok")), "").unwrap();
    }
    fs::write(root.path().join("gone/large.csv"), vec![1; 3_000_000]).unwrap();
    fs::write(root.path().join("gone/other.txt"), "x").unwrap();
    let items = received_all(&hub, "", 9, PATIENCE).await;
    for item in &items {
        let n: usize = path(item).split(['/', '.']).nth(1).unwrap().parse().unwrap();
        assert!(payload(&hub, item).await == contents[n], "{item:#}");
        assert_eq!(item["data"]["size"], contents[n].len());
        assert_eq!(item["kind"], "pickup");
    }
    let expected = [
        "done/0.csv",
        "done/1.csv",
        "done/2.csv",
        "gone/large.csv",
        "gone/other.txt",
        "kept/0.csv",
        "kept/1.csv",
        "kept/2.csv",
    ];
    left(root.path(), &expected).await;
    let status = agent.status().await;
    let gone = status["triggers"].as_array().unwrap().iter().find(|t| t["trigger"] == "gone").unwrap();
    assert_eq!(gone["left"][0]["path"], "gone/large.csv", "{status:#}");
    assert_eq!(agent.metric("passerelle_agent_files_left_total").await, 1.0);
    // What is kept is remembered over a restart; only what changed is told again.
    agent.restart().await;
    fs::write(root.path().join("kept/1.csv"), "changed").unwrap();
    let items = received_all(&hub, "&trigger=kept", 4, PATIENCE).await;
    assert_eq!(path(items.last().unwrap()), "kept/1.csv");
    // A job is started from an event, and the audit tells of all.
    let mut job = drop_into("compta", "copy.csv", json!({"event": items[1]["id"]}));
    job["timeout_s"] = 30.into();
    hub.api.succeed(&job).await;
    agent.kill();
    let shown = agent.output(&["audit", "show", "--kind", "file_deleted", "--json"]);
    assert_eq!(String::from_utf8_lossy(&shown.stdout).lines().count(), 3, "{shown:?}");
    assert!(agent.output(&["audit", "verify"]).status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watched_file_is_told_of_when_its_content_changes_and_only_then() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("prices.csv");
    let triggers = "[[resources.compta.watch]]\npath = \"prices.csv\"\nevery = \"1s\"\n";
    let (hub, agent) = site(&root, triggers).await;
    fs::write(&file, "1").unwrap();
    received_all(&hub, "", 1, PATIENCE).await;
    // Touched, gone, and back as it was: nothing to tell.
    File::options().append(true).open(&file).unwrap().set_modified(SystemTime::now()).unwrap();
    fs::remove_file(&file).unwrap();
    fs::write(&file, "1").unwrap();
    fs::write(&file, "2").unwrap();
    let items = received_all(&hub, "", 2, PATIENCE).await;
    assert_eq!((payload(&hub, &items[1]).await, items[1]["kind"].as_str()), (b"2".to_vec(), Some("watch")));
    assert_eq!(agent.metric("passerelle_agent_files_taken_total").await, 2.0);
    assert!(file.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_hub_is_away_files_are_spooled_up_to_the_quota_and_no_further() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("in")).unwrap();
    let mut hub = Hub::start().await;
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    agent.agent_key("spool_quota = \"1MiB\"");
    let triggers = pickup(
        "in",
        "folder = \"in\"\npattern = \"*\"\nstable = \"rename\"\norder = \"name\"\nafter = \"delete\"",
    );
    agent.resource("compta", &folder("compta", root.path(), &triggers));
    agent.start().await;
    until("the trigger to run", PATIENCE, async || {
        agent.status().await["triggers"][0]["looked_at"].is_string().then_some(())
    })
    .await;
    hub.process.kill();
    for n in 0..40_u8 {
        let part = root.path().join("part");
        fs::write(&part, vec![n; 64 * 1024]).unwrap();
        fs::rename(part, root.path().join(format!("in/{n:02}"))).unwrap();
    }
    let status = until("the trigger to pause", PATIENCE, async || {
        let status = agent.status().await;
        let paused = status["triggers"][0]["paused"].as_str().is_some_and(|why| why.contains("spool_quota"));
        paused.then_some(status)
    })
    .await;
    assert_eq!(status["triggers"][0]["waiting"], 16, "{status:#}");
    assert_eq!(agent.metric("passerelle_agent_events_waiting_bytes").await, 16.0 * 65536.0);
    assert_eq!(files_below(root.path()).len(), 40, "a file was put away that the hub does not have");
    hub.restart().await;
    let items = received_all(&hub, "", 40, Duration::from_secs(60)).await;
    let order: Vec<&str> = items.iter().map(path).collect();
    assert!(order.is_sorted(), "{order:?}");
    left(root.path(), &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_agents_of_a_site_take_each_file_once_and_one_goes_on_for_the_other() {
    let root = tempfile::tempdir().unwrap();
    let hub = Hub::start_with_lease(Duration::from_secs(2)).await;
    let triggers = pickup("in", "pattern = \"*.csv\"\nstable = \"rename\"\nafter = \"delete\"");
    let mut agents: Vec<Agent> = ["paris-1", "paris-2"].map(|name| Agent::new(&hub, SITE, name)).into();
    for agent in &mut agents {
        agent.resource("compta", &folder("compta", root.path(), &triggers));
        agent.start().await;
    }
    let put = |from: u32, to: u32| {
        for n in from..to {
            let part = root.path().join("part");
            fs::write(&part, n.to_string()).unwrap();
            fs::rename(part, root.path().join(format!("{n}.csv"))).unwrap();
        }
    };
    put(0, 20);
    received_all(&hub, "", 20, PATIENCE).await;
    let mut took = None;
    for (n, agent) in agents.iter().enumerate() {
        if agent.metric("passerelle_agent_files_taken_total").await > 0.0 {
            assert!(took.replace(n).is_none(), "both have taken files");
        }
    }
    agents[took.unwrap()].kill();
    put(20, 40);
    received_all(&hub, "", 40, Duration::from_secs(90)).await;
    left(root.path(), &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_remote_folder_is_polled_paused_and_changed_while_the_agent_runs() {
    let (hub, ssh) = (Hub::start().await, SshServer::start());
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    ssh.serve_to(&agent, "compta");
    let written = fs::read_to_string(agent.folder().join("resources.d/compta.toml")).unwrap();
    agent.start().await;
    let put = |name: &str| fs::write(ssh.root().join(name), name).unwrap();
    put("a.csv");
    // A trigger that is added while the agent runs.
    let trigger =
        |after: &str| pickup("in", &format!("pattern = \"*.csv\"\nstable = \"rename\"\nafter = {after}"));
    agent.resource("compta", &format!("{written}{}", trigger("\"delete\"")));
    received_all(&hub, "", 1, PATIENCE).await;
    left(ssh.root(), &[]).await;
    // A paused resource is left alone.
    assert!(agent.output(&["pause", "compta"]).status.success());
    put("b.csv");
    until("the trigger to say that it is paused", PATIENCE, async || {
        agent.status().await["triggers"][0]["paused"]
            .as_str()
            .is_some_and(|why| why.contains("paused"))
            .then_some(())
    })
    .await;
    // What follows is another thing from here on.
    agent.resource("compta", &format!("{written}{}", trigger("{ move_to = \"done\" }")));
    agent.counted("passerelle_agent_config_reloads_total{result=\"applied\"}", 2.0).await;
    assert_eq!(received(&hub, "").await.len(), 1);
    assert!(agent.output(&["resume", "compta"]).status.success());
    received_all(&hub, "", 2, PATIENCE).await;
    left(ssh.root(), &["done/b.csv"]).await;
    // And one that is taken away.
    agent.resource("compta", &written);
    agent.counted("passerelle_agent_config_reloads_total{result=\"applied\"}", 3.0).await;
    put("c.csv");
    until("the trigger to be gone", PATIENCE, async || {
        agent.status().await["triggers"].as_array().unwrap().is_empty().then_some(())
    })
    .await;
    assert_eq!(files_below(ssh.root()), ["c.csv", "done/b.csv"]);
}

/// Producers that rename and producers that write slowly, while agent and hub are killed and the tunnel is cut.
#[tokio::test(flavor = "multi_thread")]
async fn killed_at_random_every_file_is_one_event_and_whole() {
    const FILES: u64 = 2000;
    const SLOW: u64 = 40;
    const FAULTS: u64 = 10;
    let mut random = Random::from_environment();
    let root = tempfile::tempdir().unwrap();
    for name in ["renamed", "slow", "parts"] {
        fs::create_dir(root.path().join(name)).unwrap();
    }
    let mut hub = Hub::start().await;
    let port: u16 = hub.url.rsplit(':').next().unwrap().trim_end_matches('/').parse().unwrap();
    let proxy = Proxy::start(port).await;
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    agent.through(&format!("http://127.0.0.1:{}", proxy.port()));
    let triggers = pickup(
        "renamed",
        "folder = \"renamed\"\npattern = \"*.csv\"\nstable = \"rename\"\norder = \"name\"\nafter = \"delete\"",
    ) + &pickup(
        "slow",
        "folder = \"slow\"\npattern = \"**/*.csv\"\nstable = { quiet = \"2s\" }\nafter = { move_to = \"done\" }",
    );
    agent.resource("compta", &folder("compta", root.path(), &triggers));
    agent.start().await;
    let seed = random.number();
    let folder = root.path().to_owned();
    let producers = std::thread::spawn(move || {
        let mut random = Random::new(seed);
        let mut expected = BTreeMap::new();
        let mut slow: Vec<(File, String, String, u32)> = Vec::new();
        for n in 0..FILES {
            let text = format!("{n:04}:").repeat(usize::try_from(1 + random.below(2000)).unwrap());
            let part = folder.join("parts").join(n.to_string());
            fs::write(&part, &text).unwrap();
            let path = format!("renamed/{n:04}.csv");
            fs::rename(part, folder.join(&path)).unwrap();
            expected.insert(path, text);
            if n % (FILES / SLOW) == 0 {
                let path = format!("slow/{n:04}.csv");
                slow.push((File::create(folder.join(&path)).unwrap(), path, String::new(), 400));
            }
            // Slow ones grow a little at each of their turns, for some seconds.
            for (file, _, text, turns) in &mut slow {
                let piece = format!("{n:04};");
                file.write_all(piece.as_bytes()).unwrap();
                text.push_str(&piece);
                *turns -= 1;
            }
            let (ended, going): (Vec<_>, Vec<_>) = slow.into_iter().partition(|(.., turns)| *turns == 0);
            expected.extend(ended.into_iter().map(|(_, path, text, _)| (path, text)));
            slow = going;
            std::thread::sleep(Duration::from_millis(if n % 4 == 0 { 20 } else { 1 }));
        }
        expected.extend(slow.into_iter().map(|(_, path, text, _)| (path, text)));
        expected
    });
    for _ in 0..FAULTS {
        let rest = Instant::now() + Duration::from_millis(300 + random.below(1200));
        tokio::time::sleep_until(rest.into()).await;
        match random.below(4) {
            0 => {
                hub.process.kill();
                hub.restart().await;
            }
            1 => proxy.cut(),
            _ => drop(agent.restart_without_waiting()),
        }
    }
    let expected = tokio::task::spawn_blocking(|| producers.join().unwrap()).await.unwrap();
    agent.ready().await;
    let items = received_all(&hub, "", expected.len(), Duration::from_secs(60)).await;
    let mut found = BTreeMap::new();
    for item in &items {
        let text = &expected[path(item)];
        let digest = passerelle_protocol::Sha256::of(text.as_bytes()).to_string();
        assert_eq!(item["payload"]["sha256"], digest, "{} is not whole", path(item));
        assert!(found.insert(path(item), ()).is_none(), "{} is there twice", path(item));
    }
    let renamed: Vec<&str> = items.iter().map(path).filter(|path| path.starts_with("renamed")).collect();
    assert!(renamed.is_sorted(), "not in the order of their names");
    let moved: Vec<String> =
        expected.keys().filter_map(|path| Some(format!("done/{}", path.strip_prefix("slow/")?))).collect();
    left(root.path(), &moved.iter().map(String::as_str).collect::<Vec<_>>()).await;
}

/// What the status page says of files of a trigger that stay where they are.
async fn shown(agent: &Agent, trigger: &str) -> Vec<Value> {
    let status = agent.status().await;
    let all = status["triggers"].as_array().expect("triggers");
    let found = all.iter().find(|one| one["trigger"] == trigger);
    found.and_then(|one| one["left"].as_array()).cloned().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_put_away_is_named_and_holds_up_no_other() {
    let root = tempfile::tempdir().unwrap();
    for folder in ["p1/sub", "p2", "done"] {
        fs::create_dir_all(root.path().join(folder)).unwrap();
    }
    // A file where the folder would have to be.
    fs::write(root.path().join("done/sub"), "in the way").unwrap();
    let lines = |folder: &str, after: &str| {
        format!("folder = \"{folder}\"\npattern = \"**/*.csv\"\nstable = \"rename\"\nafter = {after}")
    };
    let triggers =
        pickup("p1", &lines("p1", "{ move_to = \"done\" }")) + &pickup("p2", &lines("p2", "\"delete\""));
    let (hub, mut agent) = site(&root, &triggers).await;
    let put = |path: &str| {
        fs::write(root.path().join("part"), path).unwrap();
        fs::rename(root.path().join("part"), root.path().join(path)).unwrap();
    };
    let there = |path: &str| root.path().join(path).exists();
    put("p1/sub/stuck.csv");
    let left = until("the file to be named", PATIENCE, async || shown(&agent, "p1").await.pop()).await;
    assert_eq!(left["path"], "p1/sub/stuck.csv");
    assert!(left["why"].as_str().unwrap().contains("not a folder"), "{left}");
    // The others have their turn, of the same trigger and of another one, now and after a restart, when all are tried anew.
    for turn in 0..2 {
        put(&format!("p1/free-{turn}.csv"));
        put(&format!("p2/free-{turn}.csv"));
        until("the others to be put away", PATIENCE, async || {
            let done = there(&format!("done/free-{turn}.csv")) && !there(&format!("p2/free-{turn}.csv"));
            done.then_some(())
        })
        .await;
        assert!(shown(&agent, "p2").await.is_empty());
        if turn == 0 {
            agent.restart().await;
        }
    }
    until("the file to be named again", PATIENCE, async || shown(&agent, "p1").await.pop()).await;
    assert_eq!(received(&hub, "").await.len(), 5);
    // Once it can be put away it is, and nothing is said of it any more.
    fs::remove_file(root.path().join("done/sub")).unwrap();
    until("nothing to be left", Duration::from_secs(90), async || {
        (there("done/sub/stuck.csv") && shown(&agent, "p1").await.is_empty()).then_some(())
    })
    .await;
    let expected = ["done/free-0.csv", "done/free-1.csv", "done/sub/stuck.csv"];
    assert_eq!(files_below(root.path()), expected);
}
