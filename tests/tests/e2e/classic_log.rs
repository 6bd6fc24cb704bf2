//! The classic log files beside the running agent's own log.

use crate::common::{Site, drop_job};
use passerelle_tests::{Agent, Reply};
use rustix::process::Signal;
use std::{fs, path::Path, time::Duration};

const SOON: Duration = Duration::from_secs(30);

/// All lines of the files with this prefix, as the five parts of a classic line.
fn lines(logs: &Path, prefix: &str) -> Vec<[String; 5]> {
    let mut names: Vec<_> = fs::read_dir(logs)
        .expect("the folder of the classic log")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)))
        .collect();
    names.sort();
    let text: String = names.iter().map(|path| fs::read_to_string(path).expect("a log file")).collect();
    let parts = |line: &str| {
        let body = line.strip_suffix('|').unwrap_or_else(|| panic!("{line:?} does not end with '|'"));
        let parts: Vec<String> = body.splitn(5, '|').map(str::to_owned).collect();
        <[String; 5]>::try_from(parts).unwrap_or_else(|parts| panic!("{parts:?}"))
    };
    text.lines().map(parts).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_and_the_errors_stand_in_files_of_their_own() {
    let mut site = Site::prepared(|_, _| Reply::status(200)).await;
    site.agent.log_key("classic_dir = \"logs\"").start().await;
    let api = &site.hub.api;
    let done = api.run(&drop_job("export.csv", "1;2\r\n")).await;
    let denied = api.run(&drop_job("../outside.csv", "x")).await;
    assert_eq!((&done["state"], &denied["state"]), (&"succeeded".into(), &"denied".into()));
    let process = site.agent.process();
    let pid = format!("pid:{}", process.id());
    process.signal(Signal::TERM);
    assert_eq!(process.exit_code(SOON).await, Some(0));

    let everything = lines(&site.agent.folder().join("logs"), "infos_");
    assert!(everything.iter().all(|[_, _, process, _, _]| *process == pid));
    let of_job = |id: &str| {
        everything.iter().filter(|[_, _, _, zone, message]| zone == "runner" && message.contains(id)).count()
    };
    for job in [&done, &denied] {
        assert!(of_job(job["id"].as_str().expect("an id")) > 0, "{everything:#?}");
    }
    assert!(
        everything.iter().any(|[_, level, _, _, message]| level == "info" && message.starts_with("Starting"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn why_an_agent_ended_is_the_last_line_of_both_files() {
    let mut agent = Agent::at("http://127.0.0.1:1", "paris-1");
    agent.log_key("classic_dir = \"logs\"").agent_key("state_dir = \"agent.toml\"").spawn();
    let process = agent.process();
    assert_eq!(process.exit_code(SOON).await, Some(64), "{}", process.log());
    for prefix in ["infos_", "err_"] {
        let lines = lines(&agent.folder().join("logs"), prefix);
        let [_, level, _, zone, message] = lines.last().expect("a line");
        assert_eq!((level.as_str(), zone.as_str()), ("critique", "agent"));
        assert!(message.contains("agent.toml"), "{message}");
    }
}
