//! The commands that people type.

use crate::common::{SITE, Site, drop_job};
use passerelle_tests::{Content, Hub, Process, binary, http_client, run, until};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{
    process::{Command, Output},
    time::Duration,
};

const SOON: Duration = Duration::from_secs(60);

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs the developer's client against a hub.
fn client(hub: &Hub, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary("passerelle"));
    run(command.args(arguments).env("PASSERELLE_URL", &hub.url).env("PASSERELLE_API_KEY", hub.api.key()))
}

#[test]
fn dev_once_shows_what_arrived_and_exits_0() {
    let folder = tempfile::tempdir().unwrap();
    let text =
        stdout(&run(Command::new(binary("passerelle")).args(["dev", "--once", "--dir"]).arg(folder.path())));
    let digests = text.split(|c: char| !c.is_ascii_hexdigit()).filter(|word| word.len() == 64).count();
    assert!(digests >= 3, "{digests} SHA-256 digests in:\n{text}");
    assert!(text.contains("FEC"), "the accounting export is not named:\n{text}");
    assert!(text.contains("Customer in the CRM"), "the customer is not named:\n{text}");
    assert!(
        text.contains("CommandeValidee") || text.contains("validated") || text.contains("orders"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_stays_and_its_curl_works() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(binary("passerelle"));
    let listen = format!("127.0.0.1:{}", passerelle_tests::free_port());
    command.args(["dev", "--listen", &listen, "--dir"]).arg(folder.path().join("dev"));
    let mut dev = Process::spawn("dev", &mut command, &folder.path().join("dev.log"));
    dev.logged("curl", SOON).await;
    let script = until("the whole curl command", SOON, async || {
        let log = dev.log();
        let start = log.find("curl ")?;
        let mut script = String::new();
        for line in log[start..].lines() {
            script.push_str(line.trim_end());
            script.push('\n');
            if !line.trim_end().ends_with('\\') && script.matches('\'').count().is_multiple_of(2) {
                return Some(script);
            }
        }
        None
    })
    .await;
    let answer = stdout(&run(Command::new("bash").args(["-c", &script])));
    let start = answer.find('{').unwrap_or_else(|| panic!("{script} printed {answer}"));
    let job: Value = serde_json::from_str(&answer[start..]).unwrap_or_else(|e| panic!("{e}: {answer}"));
    assert!(job["id"].is_string(), "{job:#}");
    dev.signal(Signal::INT);
    assert_eq!(dev.exit_code(SOON).await, Some(0));
}

/// What a pipeline sees: `set -o pipefail` makes the first command's exit code count.
fn shell(hub: &Hub, script: &str) -> Output {
    let mut command = Command::new("bash");
    command.args(["-c", &format!("set -o pipefail; {script}")]);
    command.env("CLIENT", binary("passerelle")).env("HUB", binary("passerelle-hub")).env("DATA", hub.data());
    run(command.env("PASSERELLE_URL", &hub.url).env("PASSERELLE_API_KEY", hub.api.key()))
}

#[tokio::test(flavor = "multi_thread")]
async fn output_that_is_lost_fails_and_output_that_nobody_reads_does_not() {
    let hub = Hub::start().await;
    for (script, code, says) in [
        ("\"$CLIENT\" sites > /dev/full", 1, "the output could not be written"),
        ("\"$CLIENT\" completions bash | true", 0, ""),
        ("\"$HUB\" admin api-key list --data \"$DATA\" > /dev/full", 70, "No space left"),
        ("\"$HUB\" completions bash | true", 0, ""),
    ] {
        let output = shell(&hub, script);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{script}: {stderr}");
        assert!(stderr.contains(says) && stderr.is_empty() == says.is_empty(), "{script}: {stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_submits_shows_lists_cancels_and_retries() {
    let mut site = Site::start().await;
    let source = tempfile::tempdir().unwrap();
    let content = Content::write(source.path(), 900_000);
    let path = content.path.to_string_lossy().into_owned();
    let submitted = stdout(&client(
        &site.hub,
        &[
            "jobs",
            "submit",
            "--site",
            SITE,
            "--resource",
            "compta",
            "--operation",
            "drop",
            "--param",
            "path=export.bin",
            "--payload",
            &path,
            "--wait",
            "30",
            "--json",
        ],
    ));
    let job: Value = serde_json::from_str(&submitted).unwrap_or_else(|e| panic!("{e}: {submitted}"));
    assert_eq!(
        (&job["state"], &job["result"]["sha256"]),
        (&json!("succeeded"), &json!(content.sha256)),
        "{job:#}"
    );
    let id = job["id"].as_str().unwrap();
    let shown: Value =
        serde_json::from_str(&stdout(&client(&site.hub, &["jobs", "show", id, "--json"]))).unwrap();
    assert_eq!(shown, site.hub.api.job(id).await);
    assert!(stdout(&client(&site.hub, &["jobs", "show", id])).contains("succeeded"));
    assert!(stdout(&client(&site.hub, &["jobs", "list"])).contains(id));
    assert!(stdout(&client(&site.hub, &["sites"])).contains(SITE));
    assert!(stdout(&client(&site.hub, &["agents"])).contains("paris-1"));
    site.agent.kill();
    // Else the hub may offer it to an agent that it has not missed yet.
    site.hub.api.agents_online(SITE, 0).await;
    let queued = site.hub.api.submit(&drop_job("a.csv", "x")).await;
    stdout(&client(&site.hub, &["jobs", "cancel", &queued]));
    assert_eq!(site.hub.api.job(&queued).await["state"], "cancelled");
    stdout(&client(&site.hub, &["jobs", "retry", &queued]));
    site.agent.start().await;
    site.hub.api.reach(&queued, &["succeeded"]).await;
    let unknown = client(&site.hub, &["jobs", "show", "01936b0c-7e6a-7000-8000-000000000001"]);
    assert!(!unknown.status.success());
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("not_found"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agents_own_commands_tell_its_state() {
    let site = Site::start().await;
    assert!(site.agent.output(&["health"]).status.success());
    let status = stdout(&site.agent.output(&["status"]));
    assert!(status.contains("paris-1") && status.contains("compta"), "{status}");
    let check = site.agent.output(&["check"]);
    let text = stdout(&check);
    assert!(text.contains("compta") && text.contains("orders-app"), "{text}");
    let mut stopped = site;
    stopped.hub.process.kill();
    until("the agent to miss its hub", SOON, async || {
        (stopped.agent.readiness().await == Some(503)).then_some(())
    })
    .await;
    assert!(!stopped.agent.output(&["health"]).status.success(), "an agent without its hub is ready");
    // Nothing to restart it for.
    assert_eq!(stdout(&stopped.agent.output(&["health", "--live"])), "alive\n");
    stopped.agent.kill();
    for command in ["health", "status"] {
        let mut typo = Command::new(binary("passerelle-agent"));
        typo.env("PASSERELLE_LISTEN", format!("127.0.0.1:{}", passerelle_tests::free_port()));
        let typo = run(typo.args(["--config", "/nowhere/at/all", command]));
        let said = String::from_utf8_lossy(&typo.stderr);
        assert!(!typo.status.success() && said.contains("/nowhere/at/all has no agent.toml"), "{said}");
    }
    for health in [&["health"][..], &["health", "--live"]] {
        assert!(!stopped.agent.output(health).status.success(), "a dead agent is healthy");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_init_wrote_is_all_an_agent_needs() {
    let hub = Hub::start().await;
    let home = tempfile::tempdir().unwrap();
    let (folder, token) = (home.path().join("config"), home.path().join("token"));
    std::fs::write(&token, hub.enrolment_token(SITE, &[])).unwrap();
    let agent = |arguments: &[&str]| {
        let mut command = Command::new(binary("passerelle-agent"));
        command.arg("--config").arg(&folder).args(arguments).env("PASSERELLE_LISTEN", "127.0.0.1:0");
        command
    };
    let token = token.display().to_string();
    let words = ["init", "--hub", &hub.url, "--name", "new-1", "--token-file", &token];
    let said = stdout(&run(&mut agent(&words)));
    assert!(said.contains("agent.toml") && said.contains("policy explain"), "{said}");
    assert!(!run(&mut agent(&words)).status.success());
    let explained = stdout(&run(&mut agent(&["policy", "explain"])));
    assert!(explained.contains("no resource"), "{explained}");
    let enrolled = stdout(&run(&mut agent(&["enrol"])));
    assert!(enrolled.starts_with("enrolled as agent ") && enrolled.lines().count() == 1, "{enrolled}");
    let again = stdout(&run(&mut agent(&["enrol"])));
    assert_eq!(again.lines().next(), enrolled.lines().next());
    assert!(again.contains("it was enrolled before") && again.contains("`re-enrol`"), "{again}");
    let mut process = Process::spawn("agent", &mut agent(&["run"]), &home.path().join("log"));
    hub.api.agents_online(SITE, 1).await;
    process.signal(Signal::TERM);
    assert_eq!(process.exit_code(SOON).await, Some(0), "{}", process.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn check_names_the_broken_resource_and_fails() {
    let site = Site::start().await;
    site.agent.resource(
        "gone",
        &passerelle_tests::resources::folder("gone", std::path::Path::new("/no/such/folder")),
    );
    let check = site.agent.output(&["check"]);
    let text =
        format!("{}{}", String::from_utf8_lossy(&check.stdout), String::from_utf8_lossy(&check.stderr));
    assert!(!check.status.success(), "{text}");
    assert!(text.contains("gone") && text.contains("/no/such/folder"), "{text}");
}

#[test]
fn every_program_has_help_with_examples_and_a_version() {
    for (program, commands) in [
        ("passerelle", vec![vec![], vec!["dev"], vec!["jobs"], vec!["jobs", "submit"]]),
        ("passerelle-hub", vec![vec![], vec!["serve"], vec!["admin"]]),
        ("passerelle-agent", vec![vec![], vec!["run"], vec!["check"], vec!["enrol"]]),
    ] {
        let version = stdout(&run(Command::new(binary(program)).arg("--version")));
        assert!(version.contains("0.1.0"), "{version}");
        for command in commands {
            let help = stdout(&run(Command::new(binary(program)).args(&command).arg("--help")));
            assert!(help.contains("Usage"), "{program} {command:?}: {help}");
            if command.is_empty() {
                assert!(help.to_lowercase().contains("example"), "{program} has no examples: {help}");
            }
        }
        let completions = stdout(&run(Command::new(binary(program)).args(["completions", "bash"])));
        assert!(completions.contains(program), "{completions}");
        let wrong = run(Command::new(binary(program)).arg("--no-such-option"));
        assert!(!wrong.status.success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hub_is_administered_while_it_serves() {
    let hub = Hub::start().await;
    for wrong in [
        vec!["tenant", "create", "acme", "--tier", "enterprise"],
        vec!["tenant", "create", "No Name", "--tier", "enterprise"],
        vec!["api-key", "create", "--tenant", "nobody", "--scopes", "jobs:read"],
        vec!["api-key", "create", "--tenant", "acme", "--scopes", "jobs:fly"],
    ] {
        let output = hub.admin_output(&wrong);
        assert!(!output.status.success(), "{wrong:?} was taken");
        assert!(!output.stderr.is_empty(), "{wrong:?} failed without a word");
    }
    let agents = hub.admin(&["agent", "list"]);
    assert!(agents.is_array() || agents["items"].is_array(), "{agents}");
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy.db");
    let job = hub.api.post("/v1/jobs", &drop_job("a.csv", "x")).await;
    assert_eq!(job.status, 404, "the site is not known yet");
    let backup = hub.admin_output(&["backup", &copy.to_string_lossy()]);
    assert!(backup.status.success(), "{}", String::from_utf8_lossy(&backup.stderr));
    assert!(copy.exists());
    let health = http_client().get(format!("{}/healthz", hub.url)).send().await.unwrap();
    assert_eq!(health.status(), 200);
}
