//! The program itself: serving, administration beside it, bootstrap, refusals and exit codes.

use crate::support::PATIENCE;
use reqwest::{Certificate, Client};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};
use tokio::time::timeout;

const HUB: &str = env!("CARGO_BIN_EXE_passerelle-hub");

pub struct Serving {
    child: Child,
    pub url: String,
    log: std::thread::JoinHandle<String>,
}

impl Serving {
    /// Starts `serve` and waits until it says where it listens.
    pub fn start(data: &Path, args: &[&str]) -> Self {
        let listen: &[&str] = if args.contains(&"--listen") { &[] } else { &["--listen", "127.0.0.1:0"] };
        let mut child = Command::new(HUB)
            .args(["serve", "--data"])
            .arg(data)
            .args(listen)
            .args(args)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = String::new();
        let url = loop {
            let line = lines.next().unwrap_or_else(|| panic!("it ended: {said}")).unwrap();
            if let Some((_, rest)) = line.split_once("listening on ") {
                break rest.split_whitespace().next().unwrap().to_owned();
            }
            said.push_str(&line);
        };
        let log = std::thread::spawn(move || lines.map_while(Result::ok).collect::<Vec<_>>().join("\n"));
        Self { child, url, log }
    }

    /// Ends it by SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends it by SIGTERM; returns its exit code and the rest of its log.
    pub fn end(mut self) -> (Option<i32>, String) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let code = self.child.wait().unwrap().code();
        (code, self.log.join().unwrap())
    }
}

fn run(args: &[&str]) -> Output {
    Command::new(HUB).args(args).env_remove("RUST_LOG").output().unwrap()
}

/// An admin command on `data` that succeeds.
fn admin(data: &Path, args: &[&str]) -> Output {
    let output = Command::new(HUB).arg("admin").args(args).arg("--data").arg(data).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

pub fn admin_json(data: &Path, args: &[&str]) -> Value {
    serde_json::from_slice(&admin(data, &[args, &["--json"]].concat()).stdout).unwrap()
}

/// A command that is refused with this exit code; returns what it said.
#[track_caller]
fn refused(args: &[&str], code: i32) -> String {
    let output = run(args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    said
}

pub fn client() -> Client {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    Client::new()
}

async fn status(client: &Client, url: &str, key: &str) -> u16 {
    let sent = client.get(url).bearer_auth(key).send();
    timeout(PATIENCE, sent).await.unwrap().unwrap().status().as_u16()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_mistyped_folder_is_not_taken_for_a_hub_without_anything() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("typo");
    let typo = data.to_str().unwrap();
    for command in [&["tenant", "list"][..], &["api-key", "list"], &["backup", "b"], &["agent", "list"]] {
        let said = refused(&[&["admin"], command, &["--data", typo]].concat(), 64);
        assert!(said.contains(typo) && said.contains("--data"), "{said}");
        assert!(!data.exists(), "{command:?} made it");
    }
    admin(&data, &["tenant", "create", "acme", "--tier", "enterprise"]);
    admin(&data, &["tenant", "list"]);
    let token = ["enrolment-token", "create", "--tenant", "acme", "--site", "paris", "--application", "hub"];
    let said = refused(&[&["admin"], &token[..], &["--ttl", "0s", "--data", typo]].concat(), 64);
    assert!(said.contains("never taken"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn administration_works_beside_a_serving_hub() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let hub = Serving::start(&data, &[]);
    let jobs = format!("{}/v1/jobs", hub.url);
    let client = client();

    assert_eq!(admin_json(&data, &["tenant", "create", "acme", "--tier", "enterprise"])["id"], "acme");
    let made =
        admin_json(&data, &["api-key", "create", "--tenant", "acme", "--scopes", "jobs:read,jobs:write"]);
    let (id, key) = (made["id"].as_str().unwrap(), made["key"].as_str().unwrap());
    assert_eq!(status(&client, &jobs, key).await, 200);
    assert_eq!(status(&client, &format!("{}/v1/sites", hub.url), key).await, 403);

    let plain = admin(&data, &["api-key", "create", "--tenant", "acme", "--scopes", "all"]);
    let plain = String::from_utf8(plain.stdout).unwrap();
    assert_eq!(status(&client, &format!("{}/v1/sites", hub.url), plain.trim()).await, 200);

    admin(&data, &["api-key", "revoke", id]);
    let revoked = Instant::now();
    while status(&client, &jobs, key).await != 401 {
        // The hub looks every 250 ms; the rest is for a busy machine.
        assert!(revoked.elapsed() < Duration::from_secs(10), "the revoked key still works");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let listed = admin_json(&data, &["api-key", "list", "--tenant", "acme"]);
    let entry = listed["items"].as_array().unwrap().iter().find(|entry| entry["id"] == id).unwrap();
    assert!(entry["revoked_at"].is_string(), "{entry}");
    assert!(!listed.to_string().contains(key.rsplit('_').next().unwrap()), "a secret is listed");

    let create = ["enrolment-token", "create", "--tenant", "acme", "--site", "paris", "--application", "hub"];
    let token = admin_json(&data, &[&create[..], &["--ttl", "2h", "--uses", "3"]].concat());
    assert!(token["token"].as_str().is_some_and(|token| token.len() > 30), "{token}");
    let listed = admin_json(&data, &["enrolment-token", "list"]);
    assert_eq!((&listed["items"][0]["site"], &listed["items"][0]["uses_left"]), (&json!("paris"), &json!(3)));
    admin(&data, &["enrolment-token", "revoke", token["id"].as_str().unwrap()]);
    assert_eq!(admin_json(&data, &["agent", "list"]), json!({"items": []}));
    admin(&data, &["tenant", "set-tier", "acme", "professional"]);
    let table = String::from_utf8(admin(&data, &["tenant", "list"]).stdout).unwrap();
    assert!(table.starts_with("NAME  TIER") && table.contains("acme  professional"), "{table}");

    let copy = folder.path().join("copy.sqlite");
    let wrote = admin_json(&data, &["backup", copy.to_str().unwrap()]);
    assert_eq!(wrote["size"], fs::metadata(&copy).unwrap().len());
    assert_eq!(mode(&copy), 0o600);
    let database = rusqlite::Connection::open(&copy).unwrap();
    let sound: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(sound, "ok");
    let data_text = data.to_str().unwrap();
    let twice = refused(&["admin", "backup", copy.to_str().unwrap(), "--data", data_text], 64);
    assert!(twice.contains("copy.sqlite"), "{twice}");

    let (code, log) = hub.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("Ended"), "{log}");
}

#[test]
fn the_documented_tiers_and_applications_are_refused_with_their_reason() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().to_str().unwrap();
    admin(folder.path(), &["tenant", "create", "acme", "--tier", "enterprise"]);
    for tier in ["professional", "standard"] {
        admin(folder.path(), &["tenant", "create", tier, "--tier", tier]);
        let said = refused(
            &[
                "admin",
                "--data",
                data,
                "enrolment-token",
                "create",
                "--tenant",
                tier,
                "--site",
                "paris",
                "--application",
                "orchestrator",
            ],
            64,
        );
        assert!(said.contains("Enterprise tier"), "{said}");
    }
    for application in ["office", "commerce", "store", "signage", "fax"] {
        let said = refused(
            &[
                "admin",
                "--data",
                data,
                "enrolment-token",
                "create",
                "--tenant",
                "acme",
                "--site",
                "paris",
                "--application",
                application,
            ],
            64,
        );
        assert!(said.contains(application) && said.contains("orchestrator"), "{said}");
    }
    for (args, says) in [
        (&["tenant", "create", "acme", "--tier", "enterprise"][..], "acme"),
        (&["tenant", "create", "Acme", "--tier", "enterprise"], "a name is"),
        (&["tenant", "create", "b", "--tier", "gold"], "enterprise, professional or standard"),
        (&["tenant", "set-tier", "nobody", "standard"], "nobody"),
        (&["api-key", "create", "--tenant", "acme", "--scopes", "jobs:all"], "jobs:read"),
        (&["api-key", "create", "--tenant", "nobody", "--scopes", "all"], "nobody"),
        (&["api-key", "revoke", "x"], "x"),
        (&["enrolment-token", "revoke", "x"], "x"),
        (&["agent", "revoke", "01936b0c-7e6a-7000-8000-000000000001"], "01936b0c"),
        (&["backup", "/nowhere/at/all.sqlite"], "all.sqlite"),
    ] {
        let said = refused(&[&["admin", "--data", data], args].concat(), 64);
        assert!(said.contains(says), "{args:?}: {said}");
    }
}

#[test]
fn a_second_hub_on_the_same_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let hub = Serving::start(folder.path(), &[]);
    let data = folder.path().to_str().unwrap();
    let said = refused(&["serve", "--listen", "127.0.0.1:0", "--data", data], 64);
    assert!(said.contains("another") || said.contains("lock"), "{said}");
    let port = hub.url.rsplit(':').next().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let taken = format!("127.0.0.1:{port}");
    let said = refused(&["serve", "--listen", &taken, "--data", elsewhere.path().to_str().unwrap()], 64);
    assert!(said.contains(&taken) && said.contains("--listen"), "{said}");
    assert_eq!(hub.end().0, Some(0));
}

#[test]
fn wrong_use_and_configuration_exit_64_and_say_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let data = data.to_str().unwrap();
    let said = refused(&["serve", "--data", data, "--listen", "0.0.0.0:0"], 64);
    assert!(said.contains("--tls-cert") && said.contains("--behind-proxy"), "{said}");
    let said = refused(&["serve", "--data", data, "--listen", "nonsense"], 64);
    assert!(said.contains("nonsense"), "{said}");
    let said = refused(&["serve", "--data", data, "--tls-cert", "x.pem"], 64);
    assert!(said.contains("--tls-key"), "{said}");
    let missing = ["serve", "--data", data, "--tls-cert", "no.pem", "--tls-key", "no-key.pem"];
    assert!(refused(&missing, 64).contains("no.pem"));
    let file = folder.path().join("hub.toml");
    fs::write(&file, "listen = \"127.0.0.1:0\"\n[limits]\nmax_blob = \"lots\"\n").unwrap();
    let said = refused(&["serve", "--config", file.to_str().unwrap()], 64);
    assert!(said.contains("hub.toml:3:12: limits.max_blob: "), "{said}");
    fs::write(&file, "[log]\nlevel = \"[[\"\n").unwrap();
    assert!(refused(&["serve", "--config", file.to_str().unwrap()], 64).contains("log.level"));
    let blocked = folder.path().join("file");
    fs::write(&blocked, "").unwrap();
    let said = refused(&["serve", "--data", blocked.to_str().unwrap(), "--listen", "127.0.0.1:0"], 64);
    assert!(said.contains("file"), "{said}");
    for wrong in [&["serve", "--colour"][..], &[], &["admin"], &["admin", "tenant", "create", "x"], &["fly"]]
    {
        refused(wrong, 64);
    }
    for right in [
        &["--help"][..],
        &["--version"],
        &["serve", "--help"],
        &["admin", "--help"],
        &["completions", "bash"],
    ] {
        let output = run(right);
        assert!(output.status.success() && !output.stdout.is_empty(), "{right:?}");
    }
    assert!(String::from_utf8(run(&["admin", "--help"]).stdout).unwrap().contains("Examples:"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_file_is_enough_to_serve() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("hub.toml");
    fs::write(&file, "data = \"inside\"\n[log]\nformat = \"json\"\n[limits]\nmax_blob = \"1KiB\"\n").unwrap();
    let hub = {
        // JSON lines: the address stands in a field, so it is read from there.
        let mut child = Command::new(HUB)
            .args(["serve", "--listen", "127.0.0.1:0", "--config"])
            .arg(&file)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let line: Value = loop {
            let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
            if line["fields"]["message"].as_str().unwrap_or_default().starts_with("listening on ") {
                break line;
            }
        };
        let url = line["fields"]["message"].as_str().unwrap()["listening on ".len()..].to_owned();
        let log = std::thread::spawn(move || lines.map_while(Result::ok).collect::<Vec<_>>().join("\n"));
        Serving { child, url, log }
    };
    assert!(folder.path().join("inside").is_dir());
    let answer = client().get(format!("{}/readyz", hub.url)).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(hub.end().0, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn bootstrap_makes_a_working_hub_once() {
    let folder = tempfile::tempdir().unwrap();
    let (data, dir) = (folder.path().join("data"), folder.path().join("bootstrap"));
    let dir_text = dir.to_str().unwrap();
    let args = ["--bootstrap", dir_text, "--bootstrap-site", "paris"];
    let names = ["ca.pem", "server.pem", "server-key.pem", "tenant", "site", "api-key", "enrolment-token"];
    let read = || names.map(|name| fs::read_to_string(dir.join(name)).unwrap());

    let hub = Serving::start(&data, &args);
    let first = read();
    assert_eq!((first[3].trim(), first[4].trim()), ("dev", "paris"));
    assert_eq!(fs::read_to_string(dir.join("hub.url")).unwrap().trim(), hub.url);
    for name in ["server-key.pem", "api-key", "enrolment-token"] {
        assert_eq!(mode(&dir.join(name)), 0o600, "{name}");
    }
    let client = client();
    assert_eq!(status(&client, &format!("{}/v1/sites", hub.url), first[5].trim()).await, 200);
    assert_eq!(hub.end().0, Some(0));
    let left: Vec<PathBuf> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left.len(), names.len() + 1, "{left:?}");

    // Again, now for other machines: nothing changes, and the development certificate serves.
    let hub = Serving::start(&data, &[&args[..], &["--listen", "0.0.0.0:0"]].concat());
    assert_eq!(read(), first);
    assert!(hub.url.starts_with("https://localhost:"), "{}", hub.url);
    let ca = Certificate::from_pem(first[0].as_bytes()).unwrap();
    let trusting = Client::builder().tls_certs_only([ca]).build().unwrap();
    assert_eq!(status(&trusting, &format!("{}/v1/sites", hub.url), first[5].trim()).await, 200);
    assert!(client.get(format!("{}/healthz", hub.url)).send().await.is_err(), "an unknown CA is trusted");
    assert_eq!(hub.end().0, Some(0));

    // A new data folder does not know the old key: key and token are made anew.
    let hub = Serving::start(&folder.path().join("other"), &args);
    let renewed = read();
    assert_ne!((&renewed[5], &renewed[6]), (&first[5], &first[6]));
    assert_eq!(renewed[..3], first[..3]);
    assert_eq!(status(&client, &format!("{}/v1/jobs", hub.url), renewed[5].trim()).await, 200);
    assert_eq!(status(&client, &format!("{}/v1/jobs", hub.url), first[5].trim()).await, 401);
    assert_eq!(hub.end().0, Some(0));
}

#[test]
fn slow_and_broken_clients_do_not_keep_the_hub_from_ending() {
    let folder = tempfile::tempdir().unwrap();
    let hub = Serving::start(folder.path(), &[]);
    let address = hub.url.strip_prefix("http://").unwrap().to_owned();
    let mut idle = std::net::TcpStream::connect(&address).unwrap();
    let mut broken = std::net::TcpStream::connect(&address).unwrap();
    std::io::Write::write_all(&mut broken, b"\x16\x03\x01 not http\r\n\r\n").unwrap();
    let mut answer = String::new();
    broken.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    let started = Instant::now();
    assert_eq!(hub.end().0, Some(0));
    // Far less than the time a request's head may take.
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    assert_eq!(idle.read(&mut [0; 1]).unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_serving_hub_removes_what_its_configuration_keeps_no_longer() {
    let folder = tempfile::tempdir().unwrap();
    let (data, config) = (folder.path().join("data"), folder.path().join("hub.toml"));
    fs::write(&config, "[retention]\nblobs = \"1s\"\n").unwrap();
    let hub = Serving::start(&data, &["--config", config.to_str().unwrap()]);
    admin(&data, &["tenant", "create", "acme", "--tier", "enterprise"]);
    let made = admin_json(&data, &["api-key", "create", "--tenant", "acme", "--scopes", "all"]);
    let (key, client) = (made["key"].as_str().unwrap(), client());
    let sent = client.post(format!("{}/v1/blobs", hub.url)).bearer_auth(key).body("content").send();
    let stored = timeout(PATIENCE, sent).await.unwrap().unwrap().json::<Value>().await.unwrap();
    let digest = stored["sha256"].as_str().unwrap();
    let file = data.join("blobs").join(&digest[..2]).join(digest);
    assert!(file.exists());
    let blob = format!("{}/v1/blobs/{}", hub.url, stored["id"].as_str().unwrap());
    let uploaded = Instant::now();
    while status(&client, &blob, key).await != 404 || file.exists() {
        assert!(uploaded.elapsed() < PATIENCE, "it is still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(uploaded.elapsed() >= Duration::from_secs(1), "removed before its time");
    let figures = loop {
        let sent = client.get(format!("{}/metrics", hub.url)).send();
        let figures = timeout(PATIENCE, sent).await.unwrap().unwrap().text().await.unwrap();
        // Counted after the pass.
        if figures.contains(r#"passerelle_hub_store_removed_total{what="blobs"} 1"#) {
            break figures;
        }
        assert!(uploaded.elapsed() < PATIENCE, "{figures}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    for figure in ["removed_bytes_total 7\n", "blob_bytes 0\n", "queued_writes 0\n"] {
        assert!(figures.contains(&format!("passerelle_hub_store_{figure}")), "{figure}: {figures}");
    }
    assert!(!figures.contains("passerelle_hub_store_database_bytes 0\n"), "{figures}");
    let (code, log) = hub.end();
    assert_eq!(code, Some(0), "{log}");
}

#[test]
fn a_damaged_database_ends_serve_and_a_backup_brings_it_back() {
    let folder = tempfile::tempdir().unwrap();
    let (data, copy) = (folder.path().join("data"), folder.path().join("hub.backup"));
    let data_text = data.to_str().unwrap();
    let copy = copy.to_str().unwrap();
    admin(&data, &["tenant", "create", "acme", "--tier", "enterprise"]);
    admin(&data, &["backup", copy]);
    let database = data.join("hub.sqlite");
    rusqlite::Connection::open(&database)
        .unwrap()
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .unwrap();
    let mut bytes = fs::read(&database).unwrap();
    let half = bytes.len() / 2;
    bytes[4096..half].fill(0xa5);
    fs::write(&database, bytes).unwrap();
    let said = refused(&["serve", "--data", data_text, "--listen", "127.0.0.1:0"], 64);
    assert!(said.contains("hub.sqlite: the database is damaged") && said.contains("admin restore"), "{said}");
    let restored = admin_json(&data, &["restore", copy]);
    assert_eq!((&restored["jobs"], &restored["missing_files"]), (&json!(0), &json!(0)), "{restored}");
    assert!(restored["made_at"].is_string() && restored["kept"][0].is_string(), "{restored}");
    let hub = Serving::start(&data, &[]);
    assert_eq!(admin_json(&data, &["tenant", "list"])["items"][0]["name"], "acme");
    let served = refused(&["admin", "restore", copy, "--data", data_text], 64);
    assert!(served.contains("another hub serves"), "{served}");
    assert_eq!(hub.end().0, Some(0));
}
