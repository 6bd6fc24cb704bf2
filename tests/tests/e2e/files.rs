//! Files on local folders and on a real SFTP server.

use crate::common::{SITE, Site, drop_into, files_below, job, with};
use passerelle_tests::{Agent, Content, Hub, SshServer, code, resources};
use reqwest::Method;
use serde_json::{Value, json};
use std::{fs, io::Write as _, os::unix::ffi::OsStrExt as _, time::Duration};

/// A hub and an agent with the resource `sftp` on a real SFTP server and `local` on a folder.
struct Files {
    agent: Agent,
    hub: Hub,
    ssh: SshServer,
    local: tempfile::TempDir,
}

impl Files {
    async fn start() -> Self {
        let (hub, ssh) = (Hub::start().await, SshServer::start());
        let local = tempfile::tempdir().expect("a temporary folder");
        let mut agent = Agent::new(&hub, SITE, "paris-1");
        ssh.serve_to(&agent, "sftp");
        agent.resource("local", &resources::folder("local", local.path()));
        agent.start().await;
        Self { agent, hub, ssh, local }
    }

    fn roots(&self) -> [(&'static str, &std::path::Path); 2] {
        [("sftp", self.ssh.root()), ("local", self.local.path())]
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_any_size_arrives_byte_for_byte() {
    let all = Files::start().await;
    let source = tempfile::tempdir().unwrap();
    for size in [0, 1, 256 * 1024, 256 * 1024 + 1, 5_000_000] {
        let content = Content::write(source.path(), size);
        let blob = all.hub.api.upload(&content).await;
        for (resource, root) in all.roots() {
            let path = format!("file-{size}.bin");
            let done = all.hub.api.succeed(&drop_into(resource, &path, json!({"blob": blob["id"]}))).await;
            assert_eq!(done["result"]["path"], json!(path));
            assert_eq!(done["result"]["size"], json!(size));
            assert_eq!(done["result"]["sha256"], json!(content.sha256));
            assert_eq!(done["attempts"][0]["effect"], "applied");
            assert!(done["receipt"].as_str().is_some_and(|r| r.split('.').count() == 3), "{done:#}");
            let arrived = Content::of_file(&root.join(&path));
            assert_eq!((arrived.size, arrived.sha256), (size, content.sha256.clone()), "{resource} {size}");
        }
    }
    for (resource, root) in all.roots() {
        assert_eq!(files_below(root).len(), 5, "{resource} holds leftovers: {:?}", files_below(root));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gibibyte_drops_over_sftp_in_constant_memory() {
    let mut all = Files::start().await;
    let source = tempfile::tempdir().unwrap();
    let content = Content::write(source.path(), 1 << 30);
    let blob = all.hub.api.upload(&content).await;
    fs::remove_file(&content.path).unwrap();
    let started = std::time::Instant::now();
    let id = all.hub.api.submit(&drop_into("sftp", "grand.bin", json!({"blob": blob["id"]}))).await;
    let done = all.hub.api.end_of(&id, Duration::from_secs(300)).await;
    let took = started.elapsed();
    assert_eq!(done["state"], "succeeded", "{done:#}");
    let arrived = Content::of_file(&all.ssh.root().join("grand.bin"));
    assert_eq!((arrived.size, arrived.sha256), (content.size, content.sha256));
    let hub = all.hub.process.memory_kib("VmHWM");
    let agent = all.agent.process().memory_kib("VmHWM");
    // Past the capturing of the test runner: the figures belong into every log.
    writeln!(std::io::stderr(), "1 GiB over SFTP in {took:.1?}: VmHWM hub {hub} KiB, agent {agent} KiB")
        .unwrap();
    assert!(hub < 64 * 1024, "the hub's memory peaked at {hub} KiB");
    assert!(agent < 64 * 1024, "the agent's memory peaked at {agent} KiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn file_names_of_every_kind_arrive() {
    let all = Files::start().await;
    let longest = format!("{}.csv", "é".repeat(125)) + "x";
    assert_eq!(longest.len(), 255);
    let names = [
        "two  spaces.csv",
        " leading and trailing ",
        "écritures d'août – Œuvre.csv",
        "combining e\u{301}.csv",
        "quotes \" ' ` $HOME ; | & * ?.csv",
        "back\\slash.csv",
        "line\nbreak.csv",
        "tab\tstop.csv",
        ".hidden",
        "-rf",
        "日本語.csv",
        "🙂.csv",
        longest.as_str(),
    ];
    for (resource, root) in all.roots() {
        for name in names {
            let done = all.hub.api.succeed(&drop_into(resource, name, json!({"text": name}))).await;
            assert_eq!(done["result"]["path"], json!(name));
            let found = fs::read(root.join(name)).unwrap_or_else(|e| panic!("{resource} {name:?}: {e}"));
            assert_eq!(found, name.as_bytes());
        }
        let mut present: Vec<Vec<u8>> =
            fs::read_dir(root).unwrap().map(|e| e.unwrap().file_name().as_bytes().to_vec()).collect();
        let mut expected: Vec<Vec<u8>> = names.iter().map(|n| n.as_bytes().to_vec()).collect();
        present.sort();
        expected.sort();
        assert_eq!(present, expected, "{resource}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn forbidden_paths_are_denied_with_a_sentence_and_touch_nothing() {
    let all = Files::start().await;
    let outside = tempfile::tempdir().unwrap();
    let too_long = "x".repeat(256);
    for (resource, root) in all.roots() {
        std::os::unix::fs::symlink(outside.path(), root.join("way-out")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("new.csv"), root.join("link.csv")).unwrap();
        let before = files_below(root);
        for path in [
            "../escape.csv",
            "a/../../escape.csv",
            "..",
            "/etc/escape.csv",
            "//escape.csv",
            "a//b.csv",
            "./a.csv",
            "a/./b.csv",
            "folder/",
            "",
            "nul\0byte.csv",
            "way-out/escape.csv",
        ] {
            let done = all.hub.api.run(&drop_into(resource, path, json!({"text": "x"}))).await;
            assert_eq!(done["state"], "denied", "{resource} {path:?}: {done:#}");
            assert_eq!(code(&done), "path_invalid", "{resource} {path:?}: {done:#}");
            assert_eq!(done["error"]["effect"], "not_applied");
            let message = done["error"]["message"].as_str().unwrap();
            assert!(message.split(' ').count() >= 3, "no sentence: {message:?}");
            assert!(!message.contains(&*root.to_string_lossy()), "the root leaks: {message:?}");
            let outside = outside.path().to_string_lossy().into_owned();
            assert!(!message.contains(&outside), "the link's target leaks: {message:?}");
        }
        let long = all
            .hub
            .api
            .run(&with(drop_into(resource, &too_long, json!({"text": "x"})), json!({"max_attempts": 1})))
            .await;
        assert!(["denied", "failed"].contains(&long["state"].as_str().unwrap()), "{long:#}");
        assert_eq!(files_below(root), before, "{resource}");
    }
    assert_eq!(files_below(outside.path()), Vec::<String>::new());
    for resource in ["sftp", "local"] {
        // A link in the place of the file itself: replaced or refused, never followed.
        let _either = all.hub.api.run(&drop_into(resource, "link.csv", json!({"text": "x"}))).await;
        let read = all.hub.api.run(&job(resource, "fetch", json!({"path": "way-out/secret"}))).await;
        assert_eq!(code(&read), "path_invalid", "{read:#}");
    }
    assert_eq!(files_below(outside.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_policy_does_not_list_is_denied() {
    let hub = Hub::start().await;
    let root = tempfile::tempdir().unwrap();
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    let rule = "operations = [\"drop\", \"list\"]\npaths = [\"2026/*.csv\"]\nmax_size = \"1KiB\"\nmay = []\n";
    agent.resource("compta", &resources::folder_with("compta", root.path(), "", rule));
    agent.start().await;
    fs::create_dir(root.path().join("2026")).unwrap();
    // Without the right to replace, a drop has to say what else it wants.
    let drop = |path: &str, text: &str| {
        let params = json!({"params": {"path": path, "on_conflict": "fail"}});
        with(drop_into("compta", path, json!({"text": text})), params)
    };
    let replace = drop_into("compta", "2026/b.csv", json!({"text": "x"}));
    hub.api.succeed(&drop("2026/a.csv", "x")).await;
    let refused = [
        drop("2026/a.txt", "x"),
        drop("2027/a.csv", "x"),
        drop("2026/deep/a.csv", "x"),
        drop("2026/A.CSV", "x"),
        drop("2026/big.csv", &"x".repeat(1025)),
        replace,
        job("compta", "fetch", json!({"path": "2026/a.csv"})),
        job("compta", "delete", json!({"path": "2026/a.csv"})),
        job("compta", "move", json!({"from": "2026/a.csv", "to": "2026/b.csv"})),
        job("compta", "stat", json!({"path": "2026/a.csv"})),
    ];
    for refused in refused {
        let done = hub.api.run(&refused).await;
        assert_eq!(done["state"], "denied", "{refused} gave {done:#}");
        assert!(["policy_denied", "too_large"].contains(&code(&done)), "{refused} gave {done:#}");
        assert_eq!(done["error"]["effect"], "not_applied");
        assert!(done["error"]["message"].as_str().unwrap().contains(' '), "{done:#}");
    }
    assert_eq!(files_below(root.path()), ["2026/a.csv"]);
    assert_eq!(fs::read_to_string(root.path().join("2026/a.csv")).unwrap(), "x");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_fetched_whole_whatever_its_size() {
    let all = Files::start().await;
    let source = tempfile::tempdir().unwrap();
    for size in [0, 256 * 1024, 256 * 1024 + 1, 5_000_000] {
        let content = Content::write(source.path(), size);
        for (resource, root) in all.roots() {
            fs::copy(&content.path, root.join("export.bin")).unwrap();
            let done = all.hub.api.succeed(&job(resource, "fetch", json!({"path": "export.bin"}))).await;
            assert_eq!(done["output"]["size"], json!(size), "{done:#}");
            assert_eq!(done["output"]["sha256"], json!(content.sha256));
            assert_eq!(done["result"]["sha256"], json!(content.sha256));
            assert!(done["result"]["modified_at"].as_str().is_some_and(|t| t.ends_with('Z')), "{done:#}");
            let id = done["id"].as_str().unwrap();
            let output = all.hub.api.output(id).await;
            assert_eq!(Content::digest(&output), content.sha256, "{resource} {size}");
            if size > 20 {
                let request = all.hub.api.request(Method::GET, &format!("/v1/jobs/{id}/output"));
                let part = request.header("range", "bytes=10-19").send().await.unwrap();
                assert_eq!(part.status(), 206);
                assert_eq!(part.bytes().await.unwrap(), output[10..20]);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_listed_looked_at_moved_and_deleted() {
    let all = Files::start().await;
    let api = &all.hub.api;
    for (resource, root) in all.roots() {
        fs::create_dir(root.join("2026")).unwrap();
        for name in ["2026/a.csv", "2026/b.csv", "2026/c.txt"] {
            fs::write(root.join(name), name).unwrap();
        }
        let listed = api.succeed(&job(resource, "list", json!({"path": "2026", "pattern": "*.csv"}))).await;
        let mut paths: Vec<&str> = listed["result"]["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|i| i["path"].as_str().unwrap())
            .collect();
        paths.sort_unstable();
        assert_eq!(paths, ["2026/a.csv", "2026/b.csv"], "{resource}: {listed:#}");
        let seen = api.succeed(&job(resource, "stat", json!({"path": "2026/a.csv"}))).await;
        assert_eq!(seen["result"]["size"], json!(10));
        assert_eq!(seen["result"]["kind"], "file");
        fs::write(root.join("2026/taken.csv"), resource).unwrap();
        let then = json!({"path": "2026/taken.csv", "then": "delete"});
        let fetched = api.succeed(&job(resource, "fetch", then)).await;
        assert_eq!(fetched["result"]["then"], "deleted", "{fetched:#}");
        assert!(!root.join("2026/taken.csv").exists());
        let missing = api.run(&job(resource, "stat", json!({"path": "2026/none.csv"}))).await;
        assert_eq!(
            (missing["state"].as_str(), code(&missing)),
            (Some("failed"), "target_not_found"),
            "{missing:#}"
        );
        api.succeed(&job(resource, "move", json!({"from": "2026/a.csv", "to": "2026/z.csv"}))).await;
        assert_eq!(fs::read_to_string(root.join("2026/z.csv")).unwrap(), "2026/a.csv");
        for expected in [true, false] {
            let deleted = api.succeed(&job(resource, "delete", json!({"path": "2026/z.csv"}))).await;
            assert_eq!(deleted["result"], json!({"deleted": expected}), "{resource}");
        }
        assert_eq!(files_below(root), ["2026/b.csv", "2026/c.txt"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drop_replaces_refuses_or_steps_aside_as_asked() {
    let all = Files::start().await;
    let api = &all.hub.api;
    for (resource, root) in all.roots() {
        let drop = |text: &str, params: Value| {
            with(drop_into(resource, "a.csv", json!({"text": text})), json!({"params": params}))
        };
        api.succeed(&drop("first", json!({"path": "a.csv"}))).await;
        api.succeed(&drop("second", json!({"path": "a.csv", "on_conflict": "replace"}))).await;
        let kept = api.run(&drop("third", json!({"path": "a.csv", "on_conflict": "fail"}))).await;
        assert_eq!((kept["state"].as_str(), code(&kept)), (Some("failed"), "target_conflict"), "{kept:#}");
        assert_eq!(fs::read_to_string(root.join("a.csv")).unwrap(), "second", "{resource}");
        let beside = api.succeed(&drop("fourth", json!({"path": "a.csv", "on_conflict": "suffix"}))).await;
        let name = beside["result"]["path"].as_str().unwrap();
        assert_ne!(name, "a.csv");
        assert_eq!(fs::read_to_string(root.join(name)).unwrap(), "fourth");
        let homeless = api.run(&drop("x", json!({"path": "no/such/folder.csv"}))).await;
        assert_eq!(code(&homeless), "target_not_found", "{homeless:#}");
        api.succeed(&drop("x", json!({"path": "new/folder/made.csv", "create_dirs": true}))).await;
        assert_eq!(fs::read_to_string(root.join("new/folder/made.csv")).unwrap(), "x");
        assert_eq!(files_below(root).len(), 3, "{:?}", files_below(root));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_server_with_an_unknown_or_changed_host_key_gets_nothing() {
    let (hub, ssh, other) = (Hub::start().await, SshServer::start(), SshServer::start());
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    ssh.serve_to(&agent, "sftp");
    agent.file("known_hosts", "");
    agent.start().await;
    let drop = with(drop_into("sftp", "a.csv", json!({"text": "x"})), json!({"max_attempts": 1}));
    for known in ["", &other.known_hosts(ssh.port())] {
        agent.file("known_hosts", known);
        agent.restart().await;
        let done = hub.api.run(&drop).await;
        assert_eq!((done["state"].as_str(), code(&done)), (Some("failed"), "target_unreachable"), "{done:#}");
        let message = done["error"]["message"].as_str().unwrap();
        assert!(message.contains("host key"), "{message}");
        assert!(!message.contains("127.0.0.1"), "the host leaks: {message}");
    }
    assert_eq!(files_below(ssh.root()), Vec::<String>::new());
    // The local log tells the operator what to do, with host and key.
    agent.process().logged("known_hosts", Duration::from_secs(10)).await;
    agent.file("known_hosts", ssh.known_hosts(ssh.port()));
    agent.restart().await;
    hub.api.succeed(&drop).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_key_at_the_file_server_is_told_as_such() {
    let (hub, ssh) = (Hub::start().await, SshServer::start());
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    ssh.serve_to(&agent, "sftp");
    let stranger = SshServer::start();
    agent.secret("ssh_key", &fs::read_to_string(stranger.user_key()).unwrap());
    agent.start().await;
    let done = hub
        .api
        .run(&with(drop_into("sftp", "a.csv", json!({"text": "x"})), json!({"max_attempts": 1})))
        .await;
    assert_eq!((done["state"].as_str(), code(&done)), (Some("failed"), "target_auth"), "{done:#}");
    assert_eq!(files_below(ssh.root()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_of_another_tenant_cannot_be_dropped() {
    let site = Site::start().await;
    site.hub.admin(&["tenant", "create", "other", "--tier", "enterprise"]);
    let key = site.hub.api_key("other", "jobs:write,blobs:write");
    let source = tempfile::tempdir().unwrap();
    let blob = site.hub.api.with_key(&key).upload(&Content::write(source.path(), 10)).await;
    let answer =
        site.hub.api.post("/v1/jobs", &drop_into("compta", "a.csv", json!({"blob": blob["id"]}))).await;
    assert!((400..500).contains(&answer.status), "{answer:?}");
    assert_eq!(files_below(site.files.path()), Vec::<String>::new());
}
