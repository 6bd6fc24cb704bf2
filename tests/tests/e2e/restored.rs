//! A hub or an agent put back from an older backup: nothing is done twice, and what is not known is said.

use crate::common::{SITE, Site, drop_job, files_below, notify_job};
use passerelle_tests::{Agent, PATIENCE, Reply, code, resources, until};
use rustix::process::Signal;
use std::{fs, path::Path, process::Command, time::Duration};

/// The consumer takes a file away.
fn take(site: &Site, path: &str) {
    fs::remove_file(site.files.path().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
}

fn copy(from: &Path, to: &Path) {
    let done = passerelle_tests::run(Command::new("cp").arg("-a").arg(from).arg(to));
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

async fn stop_hub(site: &mut Site) {
    site.hub.process.signal(Signal::TERM);
    assert_eq!(site.hub.process.exit_code(Duration::from_secs(20)).await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_restored_from_an_older_backup_has_nothing_done_twice() {
    let mut site = Site::with_app(|_, _| Reply::status(200).held()).await;
    let finished = site.hub.api.succeed(&drop_job("finished.csv", "x")).await;
    take(&site, "finished.csv");
    site.agent.kill();
    site.hub.api.agents_online(SITE, 0).await;
    let queued = site.hub.api.submit(&drop_job("queued.csv", "x")).await;
    let backups = tempfile::tempdir().unwrap();
    let backup = backups.path().join("hub.backup");
    let backup = backup.to_str().unwrap();
    site.hub.admin(&["backup", backup]);

    // All of this the restored hub will not know.
    site.agent.start().await;
    site.hub.api.reach(&queued, &["succeeded"]).await;
    take(&site, "queued.csv");
    let later = site.hub.api.succeed(&drop_job("later.csv", "x")).await;
    take(&site, "later.csv");
    let running = site.hub.api.submit(&notify_job("orders/1")).await;
    site.app.received(1).await;
    site.hub.api.reach(&running, &["running"]).await;
    let served = site.hub.admin_output(&["restore", backup]);
    assert_eq!(served.status.code(), Some(64));
    stop_hub(&mut site).await;
    let restored = site.hub.admin(&["restore", backup]);
    assert_eq!((&restored["jobs"], &restored["missing_files"]), (&2.into(), &0.into()), "{restored}");
    site.hub.restart().await;
    site.agent.ready().await;

    let again = site.hub.api.reach(&queued, &["succeeded"]).await;
    assert_eq!(again["result"]["path"], "queued.csv", "the outcome that the agent kept");
    assert_eq!(site.hub.api.job(finished["id"].as_str().unwrap()).await, finished);
    for id in [later["id"].as_str().unwrap(), &running] {
        let answer = site.hub.api.get(&format!("/v1/jobs/{id}")).await;
        assert_eq!((answer.status, code(&answer.body)), (404, "not_found"), "{answer:?}");
    }
    site.app.release();
    // A job after all that: whatever was to be repeated would have been before it.
    site.hub.api.succeed(&drop_job("after.csv", "x")).await;
    assert_eq!(site.app.requests().len(), 1, "the job that the hub does not know was run again");
    assert_eq!(files_below(site.files.path()), ["after.csv"], "a file was delivered twice");
    // The agent holds nothing that nobody asks for any more.
    until("the agent to be idle", PATIENCE, async || {
        let agents = site.hub.api.get("/v1/agents").await;
        (agents.body["items"][0]["jobs_running"] == 0).then_some(())
    })
    .await;
}

/// The agent that gets the offer need not be the one that did it: so nobody knows.
#[tokio::test(flavor = "multi_thread")]
async fn a_hub_restored_at_a_site_of_two_agents_says_what_it_cannot_know() {
    let mut site = Site::start().await;
    let mut second = Agent::new(&site.hub, SITE, "paris-2");
    second.resource("compta", &resources::folder("compta", site.files.path()));
    second.start().await;
    site.agent.kill();
    second.kill();
    site.hub.api.agents_online(SITE, 0).await;
    let mut suffixed = drop_job("queued.csv", "x");
    suffixed["params"]["on_conflict"] = "suffix".into();
    let queued = site.hub.api.submit(&suffixed).await;
    let backups = tempfile::tempdir().unwrap();
    let backup = backups.path().join("hub.backup");
    let backup = backup.to_str().unwrap();
    site.hub.admin(&["backup", backup]);
    site.agent.start().await;
    site.hub.api.reach(&queued, &["succeeded"]).await;

    stop_hub(&mut site).await;
    assert_eq!(site.hub.admin(&["restore", backup])["doubtful_jobs"], 1);
    site.hub.restart().await;
    second.start().await;
    site.agent.ready().await;
    site.hub.api.agents_online(SITE, 2).await;
    let told = site.hub.api.job(&queued).await;
    assert_eq!((told["state"].as_str(), code(&told["error"])), (Some("unknown"), "agent_lost"), "{told:#}");
    assert_eq!(told["error"]["effect"], "unknown");
    assert!(told["error"]["message"].as_str().unwrap().contains("restored from a backup of "), "{told:#}");
    site.hub.api.succeed(&drop_job("after.csv", "x")).await;
    assert_eq!(files_below(site.files.path()), ["after.csv", "queued.csv"], "a file was delivered twice");
    // Once and for all: a job that is open when the hub starts again stays so.
    site.agent.kill();
    second.kill();
    site.hub.api.agents_online(SITE, 0).await;
    let open = site.hub.api.submit(&drop_job("open.csv", "x")).await;
    site.hub.restart().await;
    assert_eq!(site.hub.api.job(&open).await["state"], "queued");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_restored_from_an_older_backup_has_lost_the_hub_says() {
    let mut site = Site::with_app(|_, _| Reply::status(200).held()).await;
    site.hub.api.succeed(&drop_job("first.csv", "x")).await;
    take(&site, "first.csv");
    site.agent.kill();
    let backups = tempfile::tempdir().unwrap();
    let (state, backup) = (site.agent.folder().join("state"), backups.path().join("state"));
    copy(&state, &backup);
    site.agent.start().await;
    let second = site.hub.api.succeed(&drop_job("second.csv", "x")).await;
    take(&site, "second.csv");
    let running = site.hub.api.submit(&notify_job("orders/1")).await;
    site.app.received(1).await;
    site.hub.api.reach(&running, &["running"]).await;
    site.agent.kill();
    fs::remove_dir_all(&state).unwrap();
    copy(&backup, &state);
    site.agent.start().await;

    let lost = site.hub.api.end_of(&running, Duration::from_secs(60)).await;
    assert_eq!((lost["state"].as_str(), code(&lost["error"])), (Some("unknown"), "agent_lost"), "{lost:#}");
    assert_eq!(lost["error"]["effect"], "unknown");
    assert_eq!(site.hub.api.job(second["id"].as_str().unwrap()).await, second);
    site.app.release();
    site.hub.api.succeed(&drop_job("third.csv", "x")).await;
    assert_eq!(files_below(site.files.path()), ["third.csv"], "a file was delivered twice");
    assert_eq!(site.app.requests().len(), 1);
}
