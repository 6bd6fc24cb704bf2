//! What the attacker is after: a folder with ways out of it, files beside it, and applications that are none of its business.

use super::Outcome;
use passerelle_tests::{Agent, App, Draft, FakeHub, Reply, Session, resources};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::Value;
use std::{collections::BTreeMap, fs, os::unix::fs::symlink, path::Path, process::Command};
use tempfile::TempDir;

/// What must never be seen at the hub.
const SECRET: &str = "the board's salaries";
/// How large the answer of the application is that never ends.
const ENDLESS: usize = 8 << 20;

pub(super) struct World {
    pub(super) agent: Agent,
    pub(super) hub: FakeHub,
    /// The application that the rules allow.
    pub(super) app: App,
    /// Another one in the same network, which no resource names.
    pub(super) forbidden: App,
    home: TempDir,
    /// What was there before, below the home.
    before: BTreeMap<String, Vec<u8>>,
    told: usize,
}

/// The files below a folder; links are not followed, pipes not opened.
fn content(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                let name = entry.path().strip_prefix(root).unwrap().to_string_lossy().into_owned();
                found.insert(name, fs::read(entry.path()).unwrap());
            }
        }
    }
    found
}

impl World {
    pub(super) async fn start() -> (Self, Session) {
        let mut hub = FakeHub::start().await;
        let forbidden = App::with(|_, _| Reply::status(200).body(SECRET)).await;
        let target = forbidden.url.clone();
        let app = App::with(move |request, _| match request.uri.rsplit('/').next() {
            Some("away") => Reply::status(302).header("location", format!("{target}admin")),
            Some("bomb") => Reply::status(200).header("content-encoding", "gzip").body(bomb()),
            Some("endless") => Reply::status(200).body(vec![b'x'; ENDLESS]),
            _ => Reply::status(200),
        })
        .await;
        let home = tempfile::tempdir().expect("a temporary folder");
        let root = home.path().join("root");
        let outside = home.path().join("outside");
        fs::create_dir_all(root.join("in/folder.csv")).unwrap();
        fs::create_dir_all(root.join("private")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(root.join("in/there.csv"), "there").unwrap();
        fs::write(root.join("private/secret.csv"), SECRET).unwrap();
        fs::write(outside.join("secret.csv"), SECRET).unwrap();
        symlink(outside.join("secret.csv"), root.join("in/out.csv")).unwrap();
        symlink("../../outside/secret.csv", root.join("in/relative.csv")).unwrap();
        symlink("../private/secret.csv", root.join("in/sideways.csv")).unwrap();
        symlink(&outside, root.join("in/link")).unwrap();
        symlink("/proc/self/root", root.join("in/proc")).unwrap();
        symlink("loop.csv", root.join("in/loop.csv")).unwrap();
        mknodat(CWD, root.join("in/pipe.csv"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();

        let mut agent = Agent::at(&hub.url, "paris-1");
        let rule = "operations = [\"drop\", \"fetch\", \"list\", \"stat\", \"move\", \"delete\"]\n\
                    paths = [\"in/**/*.csv\", \"in/*.csv\"]\nmax_size = \"1KiB\"\nmay = []\n";
        agent.resource("compta", &resources::folder_with("compta", &root, "", rule));
        let app_text = format!(
            "[resources.orders-app]\nconnector = \"http\"\nurl = \"{}api/\"\n[[resources.orders-app.allow]]\n\
             operations = [\"notify\"]\nmethods = [\"POST\"]\npaths = [\"orders/*/validated\"]\n\
             [[resources.orders-app.allow]]\noperations = [\"request\"]\nmethods = [\"GET\"]\npaths = [\"orders/*\"]\n\
             query = [\"page\"]\nheaders = [\"x-origin\"]\nmax_size = \"1MiB\"\n",
            app.url
        );
        agent.resource("orders-app", &app_text);
        agent.spawn();
        let session = hub.welcomed().await;
        let before = content(home.path());
        (Self { agent, hub, app, forbidden, home, before, told: 0 }, session)
    }

    /// An honest drop, to be spoilt.
    pub(super) fn drop(&self, path: &str) -> Draft {
        // Not to replace anything: that the rules do not give.
        let params = serde_json::json!({"path": path, "on_conflict": "fail"});
        self.hub.draft("compta", "drop", params).with_payload(b"x")
    }

    /// Looks at everything that the attack could have reached.
    pub(super) fn check(&mut self, name: &str, outcome: Outcome, answer: &Value) {
        assert!(self.agent.process().is_running(), "{name}: the agent ended");
        assert!(self.forbidden.requests().is_empty(), "{name}: another application was reached");
        assert!(!answer.to_string().contains(SECRET), "{name}: a secret was read: {answer:#}");
        let root = self.home.path().to_string_lossy().into_owned();
        assert!(!answer.to_string().contains(&root), "{name}: the root leaks: {answer:#}");
        let result = answer["outcome"]["result"].to_string();
        assert!(!result.contains("private"), "{name}: a name outside the rule: {answer:#}");
        let now = content(self.home.path());
        // The agent itself looks with HEAD whether the application is there.
        let told: Vec<String> = self
            .app
            .requests()
            .into_iter()
            .filter(|asked| asked.method != "HEAD")
            .map(|asked| asked.uri)
            .collect();
        match outcome {
            Outcome::Declined(_) | Outcome::Refused(_) | Outcome::Undecided(_) => {
                assert_eq!(now, self.before, "{name}: files changed");
                assert_eq!(told.len(), self.told, "{name}: the application was asked: {told:?}");
            }
            Outcome::Contained => {
                // Within the rule's folder something may have come, but nothing else changed.
                let inside = |path: &&String| path.starts_with("root/in/");
                let others = |all: &BTreeMap<String, Vec<u8>>| -> BTreeMap<String, Vec<u8>> {
                    all.iter()
                        .filter(|(path, _)| !inside(path))
                        .map(|(p, c)| (p.clone(), c.clone()))
                        .collect()
                };
                assert_eq!(others(&now), others(&self.before), "{name}: files outside the rule changed");
                for uri in &told[self.told..] {
                    assert!(uri.starts_with("/api/orders/"), "{name}: {uri} was asked");
                }
                for path in now.keys().filter(|path| !self.before.contains_key(*path)) {
                    fs::remove_file(self.home.path().join(path)).unwrap();
                }
                self.told = told.len();
            }
        }
    }
}

/// Ten megabytes of nothing in some kilobytes.
fn bomb() -> Vec<u8> {
    let packed = Command::new("sh").args(["-c", "head -c 10485760 /dev/zero | gzip -9"]).output();
    packed.expect("gzip").stdout
}
