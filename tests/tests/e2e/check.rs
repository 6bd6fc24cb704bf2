//! `passerelle-agent check`: what an operator is told, while the agent runs and while it does not.

use crate::common::{SITE, Site, drop_job, files_below};
use passerelle_tests::{
    Agent, Front, FrontOptions, Hub, SmallDisk, SshServer, is_root, resources, run, until,
};
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    process::{Command, Output},
    time::Duration,
};

const SOON: Duration = Duration::from_secs(60);

/// The report of `check --json` and the exit code.
fn report(agent: &Agent, arguments: &[&str]) -> (Option<i32>, Value) {
    let output = agent.output(&[&["check", "--json"], arguments].concat());
    let report = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code(), report)
}

fn item<'a>(report: &'a Value, link: &str) -> &'a Value {
    let items = report["items"].as_array().expect("items");
    items.iter().find(|item| item["link"] == link).unwrap_or_else(|| panic!("no {link} in {report:#}"))
}

fn links(report: &Value) -> Vec<&str> {
    report["items"].as_array().expect("items").iter().filter_map(|item| item["link"].as_str()).collect()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_looked_at_beside_the_running_agent_and_nothing_is_disturbed() {
    let mut site = Site::start().await;
    let sessions = site.agent.metric("passerelle_agent_tunnel_reconnects_total").await;
    for running in [true, false] {
        if !running {
            site.agent.kill();
        }
        // The probe at the agent's start has asked the application; `check` asks it nothing but the same HEAD of its URL.
        let asked = site.app.requests().len();
        let (code, report) = report(&site.agent, &[]);
        assert_eq!((code, &report["ok"]), (Some(0), &json!(true)), "{report:#}");
        let expected = [
            "configuration",
            "state folder",
            "identity",
            "disk",
            "hub name",
            "hub connection",
            "hub",
            "clock",
            "tunnel",
            "resource compta: folder",
            "resource compta: writing",
            "resource orders-app: name",
            "resource orders-app: connection",
            "resource orders-app: answer",
        ];
        assert_eq!(links(&report), expected);
        for item in report["items"].as_array().unwrap() {
            assert_eq!((&item["status"], &item["fix"]), (&json!("ok"), &Value::Null), "{item}");
        }
        let version = item(&report, "hub")["detail"].as_str().unwrap();
        assert!(version.contains("is a Passerelle hub of version 0.1.0, and healthy"), "{version}");
        assert_eq!(
            item(&report, "tunnel")["detail"],
            "the hub takes this agent's identity, and WebSocket upgrades come through"
        );
        assert_eq!(site.app.requests().len(), asked, "check asked the application for more");
        assert!(files_below(site.files.path()).is_empty(), "{:?}", files_below(site.files.path()));
        if running {
            assert_eq!(site.agent.readiness().await, Some(200));
            assert_eq!(
                site.agent.metric("passerelle_agent_tunnel_reconnects_total").await,
                sessions,
                "it was fenced"
            );
        }
    }
    // A table for people, without colours where nobody looks.
    let text = said(&site.agent.output(&["check"]));
    assert!(text.contains("ok    hub connection") && !text.contains('\x1b'), "{text}");
    site.agent.start().await;
    site.hub.api.succeed(&drop_job("a.csv", "x")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn named_resources_alone_are_looked_at_and_writing_can_be_left_out() {
    let site = Site::start().await;
    let (code, found) = report(&site.agent, &["compta", "--no-write"]);
    assert_eq!(code, Some(0));
    assert_eq!(links(&found), ["resource compta: folder", "resource compta: writing"]);
    assert_eq!(item(&found, "resource compta: writing")["detail"], "skipped because of --no-write");
    let unknown = site.agent.output(&["check", "nothing"]);
    assert_eq!(unknown.status.code(), Some(64));
    assert!(said(&unknown).contains("there is no resource \"nothing\"") && said(&unknown).contains("compta"));
    // A rule for reading only: nothing is written.
    let rule = "operations = [\"list\", \"stat\"]\npaths = [\"**/*\"]\n";
    site.agent.resource("reading", &resources::folder_with("reading", site.files.path(), "", rule));
    assert_eq!(links(&report(&site.agent, &["reading"]).1), ["resource reading: folder"]);
    // A rule about a folder: there, and nowhere else.
    fs::create_dir(site.files.path().join("in")).unwrap();
    let rule = "operations = [\"drop\"]\npaths = [\"in/*.csv\"]\n";
    site.agent.resource("below", &resources::folder_with("below", site.files.path(), "", rule));
    let (_, found) = report(&site.agent, &["below"]);
    let expected = "a file was written, renamed and deleted in in";
    assert_eq!(item(&found, "resource below: writing")["detail"], expected);
    assert!(files_below(site.files.path()).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_takes_no_files_is_found_before_a_job_finds_it() {
    if !is_root() {
        eprintln!("not root: the read-only disk is left out");
        return;
    }
    let disk = SmallDisk::mount("1m");
    let site = Site::start().await;
    disk.read_only(true);
    site.agent.resource("compta", &resources::folder("compta", disk.path()));
    let (code, found) = report(&site.agent, &["compta"]);
    assert_eq!(code, Some(1));
    let writing = item(&found, "resource compta: writing");
    assert_eq!(writing["status"], "fail");
    let detail = writing["detail"].as_str().unwrap();
    assert!(
        detail.starts_with(
            "target_refused: the target is read-only (creating a file in the root folder failed: "
        ),
        "{detail}"
    );
    assert!(
        writing["fix"].as_str().unwrap().contains("right to create, rename and delete files"),
        "{writing}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_server_is_looked_at_link_by_link_with_the_line_for_known_hosts() {
    let (site, mut ssh) = (Site::start().await, SshServer::start());
    ssh.serve_to(&site.agent, "sftp");
    let (code, found) = report(&site.agent, &["sftp"]);
    assert_eq!(code, Some(0), "{found:#}");
    let all = ["name", "connection", "host key", "log-in", "SFTP", "folder", "writing"]
        .map(|link| format!("resource sftp: {link}"));
    assert_eq!(links(&found), all);
    assert!(files_below(ssh.root()).is_empty());
    // An unknown key: the very line to add.
    let line = ssh.known_hosts(ssh.port()).trim().to_owned();
    site.agent.file("known_hosts", "");
    let (code, found) = report(&site.agent, &["sftp"]);
    assert_eq!(code, Some(1));
    let key = item(&found, "resource sftp: host key");
    let fix = key["fix"].as_str().unwrap();
    assert_eq!(key["status"], "fail");
    assert!(
        fix.starts_with("compare that with the server's owner, then add this line to ")
            && fix.ends_with(&line),
        "{fix}"
    );
    assert!(key["detail"].as_str().unwrap().contains("ssh-ed25519 SHA256:"), "{key}");
    assert_eq!(item(&found, "resource sftp: log-in")["detail"], "skipped because host key failed");
    assert_eq!(item(&found, "resource sftp: writing")["status"], "skipped");
    // The line is right.
    site.agent.file("known_hosts", format!("{line}\n"));
    assert_eq!(report(&site.agent, &["sftp"]).0, Some(0));
    // A key that the server does not take, and a server that is away.
    let other = tempfile::tempdir().unwrap();
    passerelle_tests::sshd::keygen(&other.path().join("key"), "ed25519", &[]);
    site.agent.secret("ssh_key", &fs::read_to_string(other.path().join("key")).unwrap());
    let (_, found) = report(&site.agent, &["sftp"]);
    let login = item(&found, "resource sftp: log-in");
    assert!(login["detail"].as_str().unwrap().starts_with("target_auth: "), "{login}");
    assert_eq!(login["fix"], "check user name and password or key, and that the account is not locked");
    site.agent.secret("ssh_key", "no key at all");
    let (_, found) = report(&site.agent, &["sftp"]);
    let fix = item(&found, "resource sftp: log-in")["fix"].as_str().unwrap();
    assert!(fix.contains("passphrase"), "{fix}");
    ssh.stop();
    let (_, found) = report(&site.agent, &["sftp"]);
    assert_eq!(item(&found, "resource sftp: connection")["status"], "fail");
    assert_eq!(item(&found, "resource sftp: folder")["detail"], "skipped because connection failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_behind_tls_is_looked_at_without_any_request_but_a_head() {
    let site = Site::start().await;
    let app_port = site.app.url.trim_end_matches('/').rsplit(':').next().unwrap().parse().unwrap();
    let front = Front::start(app_port, FrontOptions::default()).await;
    site.agent.file("front-ca.pem", &front.ca);
    let asked = site.app.requests().len();
    let url = format!("{}/", front.url("localhost"));
    site.agent.resource("safe", &resources::application_with("safe", &url, "ca_file = \"front-ca.pem\""));
    let (code, found) = report(&site.agent, &["safe"]);
    assert_eq!(code, Some(0), "{found:#}");
    assert_eq!(item(&found, "resource safe: TLS")["detail"], "TLSv1.3");
    site.agent.resource("safe", &resources::application("safe", &url));
    let (code, found) = report(&site.agent, &["safe"]);
    assert_eq!(code, Some(1));
    let tls = item(&found, "resource safe: TLS")["detail"].as_str().unwrap();
    assert!(
        tls.contains("is signed by an unknown CA; put that CA's certificate into the resource's ca_file"),
        "{tls}"
    );
    assert_eq!(site.app.requests().len(), asked, "check sent a request other than HEAD");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_one_hour_off_is_told_with_the_hour() {
    let mut site = Site::start().await;
    site.agent.kill();
    for (shift, direction) in [("+1h", "ahead of"), ("-1h", "behind")] {
        site.agent.shift_clock(shift);
        let (code, found) = report(&site.agent, &[]);
        assert_eq!(code, Some(1));
        let clock = item(&found, "clock");
        // The hub's `Date` has whole seconds.
        let told =
            [3599, 3600, 3601].map(|s| json!(format!("this machine's clock is {s} s {direction} the hub's")));
        assert!(told.contains(&clock["detail"]), "{clock}");
        assert_eq!(clock["fix"], "run an NTP client on this machine's host");
        assert_eq!(item(&found, "tunnel")["status"], "skipped");
        // The agent itself says it in the same words.
        site.agent.spawn();
        let line =
            site.agent.process().logged(&format!(" s {direction} the hub's; set it right (NTP)"), SOON).await;
        let told = [3599, 3600, 3601]
            .map(|s| format!("this machine's clock is {s} s {direction} the hub's; set it right (NTP)"));
        assert!(told.iter().any(|told| line.contains(told)), "{line}");
        site.agent.kill();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_is_away_and_an_agent_that_it_revoked_are_told() {
    let mut site = Site::start().await;
    let id = site.hub.api.get("/v1/agents").await.body["items"][0]["id"].as_str().unwrap().to_owned();
    site.agent.kill();
    site.hub.admin(&["agent", "revoke", &id]);
    // The hub looks at what an admin command changed a few times a second.
    let found = until("the hub to refuse the agent", SOON, async || {
        let (code, found) = report(&site.agent, &[]);
        (code == Some(1)).then_some(found)
    })
    .await;
    let tunnel = item(&found, "tunnel");
    assert!(
        tunnel["detail"].as_str().unwrap().starts_with("the hub refuses this agent: revoked"),
        "{tunnel}"
    );
    site.hub.process.kill();
    let (code, found) = report(&site.agent, &[]);
    assert_eq!(code, Some(1));
    assert_eq!(
        item(&found, "hub connection"),
        &json!({
            "link": "hub connection", "status": "fail",
            "detail": format!("127.0.0.1:{} cannot be reached: the connection was refused", site.hub.port()),
            "fix": "check host and port, and that a firewall lets this machine out to it",
        })
    );
    for link in ["hub", "clock", "tunnel"] {
        assert_eq!(item(&found, link)["detail"], "skipped because hub connection failed");
    }
    // Resources do not depend on it.
    assert_eq!(item(&found, "resource compta: writing")["status"], "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_told_with_its_days_and_a_state_folder_of_another_user_with_the_way_out() {
    let hub = Hub::start().await;
    let front = Front::start(hub.port(), FrontOptions::default()).await;
    let mut agent = Agent::new(&hub, SITE, "paris-1");
    agent.file("ca.pem", &front.ca);
    agent.hub_key("ca_file = \"ca.pem\"");
    agent.through(&front.url("localhost")).write();
    let (code, found) = report(&agent, &[]);
    assert_eq!(code, Some(0), "{found:#}");
    let tls = item(&found, "hub TLS")["detail"].as_str().unwrap();
    let days = tls.rsplit_once("expires in ").and_then(|(_, rest)| rest.strip_suffix(" days"));
    assert!(days.is_some_and(|days| days.parse::<u32>().is_ok_and(|days| days > 10_000)), "{tls}");
    assert!(tls.contains(&format!("issued by \"{}\"", Front::CA_NAME)), "{tls}");
    assert_eq!(item(&found, "tunnel")["detail"], "skipped because this agent is not enrolled yet");
    let soon = FrontOptions { expires_in_days: Some(5), ..FrontOptions::default() };
    let soon = Front::start(hub.port(), soon).await;
    agent.file("ca.pem", &soon.ca);
    agent.through(&soon.url("localhost")).write();
    let (code, found) = report(&agent, &[]);
    let tls = item(&found, "hub TLS");
    assert_eq!((code, &tls["status"]), (Some(0), &json!("warn")), "{tls}");
    assert!(tls["detail"].as_str().unwrap().ends_with("expires in 4 days"), "{tls}");
    assert!(!agent.folder().join("state").exists(), "check made the state folder");
    if is_root() {
        fs::create_dir(agent.folder().join("state")).unwrap();
        std::os::unix::fs::chown(agent.folder().join("state"), Some(4711), Some(4711)).unwrap();
        let (_, found) = report(&agent, &[]);
        let state = item(&found, "state folder");
        assert_eq!(state["status"], "warn");
        assert!(state["fix"].as_str().unwrap().contains("docker exec -u 4711"), "{state}");
        assert_eq!(fs::read_dir(agent.folder().join("state")).unwrap().count(), 0, "root left a file there");
    } else {
        eprintln!("not root: the state folder of another user is left out");
    }
}

/// Secrets that an operator has, each in its own way.
const PLANTED: [&str; 5] = [
    "planted-token-1",
    "planted-password-2",
    "planted-bearer-3",
    "planted-in-a-comment-4",
    "planted-proxy-5",
];

#[tokio::test(flavor = "multi_thread")]
async fn the_support_bundle_has_what_helps_and_no_secret() {
    let mut site = Site::start().await;
    let ssh = SshServer::start();
    ssh.serve_to(&site.agent, "sftp");
    site.agent
        .secret("enrolment-token", PLANTED[0])
        .secret("password", PLANTED[1])
        .secret("bearer", PLANTED[2]);
    let settings = format!(
        "# {}\nauth = {{ kind = \"bearer\", token = {{ file = \"secrets/bearer\" }} }}\n",
        PLANTED[3]
    );
    site.agent.resource("orders-app", &resources::application_with("orders-app", &site.app.url, &settings));
    site.agent.env("NO_PROXY", "*").env("HTTPS_PROXY", format!("http://u:{}@proxy.test:1", PLANTED[4]));
    site.hub.api.succeed(&drop_job("a.csv", "content-of-a-payload")).await;
    let bundles = tempfile::tempdir().unwrap();
    for running in [true, false] {
        if !running {
            site.agent.kill();
        }
        let path = bundles.path().join(format!("{running}.tar.gz"));
        let output = site.agent.output(&["check", "--support-bundle", &path.to_string_lossy()]);
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let unpacked = bundles.path().join(format!("{running}"));
        fs::create_dir(&unpacked).unwrap();
        assert!(run(Command::new("tar").arg("-xzf").arg(&path).arg("-C").arg(&unpacked)).status.success());
        let root = unpacked.join("passerelle-support");
        let names = files_below(&root);
        for name in [
            "README.txt",
            "check.json",
            "check.txt",
            "config.json",
            "journal.json",
            "machine.json",
            "metrics.txt",
            "status.json",
            "version.json",
        ] {
            assert!(names.iter().any(|there| there == name), "{name} is not in {names:?}");
            assert!(
                name == "README.txt" || said(&output).contains(name),
                "{name} is not listed: {}",
                said(&output)
            );
        }
        let read = |name: &str| fs::read_to_string(root.join(name)).unwrap();
        let everything: String = names.iter().map(|name| read(name)).collect();
        let key = fs::read_to_string(ssh.user_key()).unwrap();
        let key = key.lines().nth(1).unwrap();
        for secret in PLANTED.iter().copied().chain([key, "content-of-a-payload"]) {
            assert!(!everything.contains(secret), "{secret} is in the bundle");
        }
        let json = |name: &str| serde_json::from_str::<Value>(&read(name)).unwrap();
        // References stay, so that one sees where a secret comes from.
        let reference =
            &json("config.json")["resources.d/orders-app.toml"]["resources"]["orders-app"]["auth"]["token"];
        assert_eq!(reference, &json!({"file": "secrets/bearer"}));
        assert_eq!(json("check.json")["ok"], json!(true));
        assert!(
            json("machine.json")["proxy_variables"]["HTTPS_PROXY"]
                .as_str()
                .unwrap()
                .contains("with credentials")
        );
        if running {
            assert_eq!(json("status.json")["name"], "paris-1");
            assert!(read("metrics.txt").contains("passerelle_agent_tunnel_connected 1"));
        } else {
            // Counts alone; whether the hub's acknowledgement was written before the kill is left to chance.
            let counts = json("journal.json")["attempts_by_state"].clone();
            let all: u64 = counts.as_object().unwrap().values().filter_map(Value::as_u64).sum();
            assert_eq!(all, 1, "{counts}");
        }
        let again = site.agent.output(&["check", "--support-bundle", &path.to_string_lossy()]);
        assert_eq!(again.status.code(), Some(1));
        assert!(said(&again).contains("never overwritten"), "{}", said(&again));
    }
    // With a wrong configuration: what is wrong, and not the file, which may hold a secret in the wrong place.
    site.agent.resource("wrong", &format!("[resources.wrong]\npassword = \"{}\"\n", PLANTED[1]));
    let path = bundles.path().join("wrong.tar.gz");
    let output = site.agent.output(&["check", "--support-bundle", &path.to_string_lossy()]);
    assert_eq!(output.status.code(), Some(64), "{}", said(&output));
    let listed = run(Command::new("tar").arg("-xzOf").arg(&path));
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(text.contains("resources.wrong") && !text.contains(PLANTED[1]), "{text}");
    site.agent.file("resources.d/wrong.toml", "");
    site.agent.start().await;
}
