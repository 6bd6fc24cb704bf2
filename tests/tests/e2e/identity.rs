//! Identities over their life: revoked, replaced, copied, with keys that change on both sides while jobs run.

use crate::common::{SITE, Site, drop_job, files_below, notify_job};
use passerelle_protocol::{HubKey, Receipt, SigningKey, VerifyingKey};
use passerelle_tests::{
    Agent, FakeHub, FakeIdentity, Hub, PATIENCE, Reply, binary, http_client, resources, until,
};
use serde_json::{Value, json};
use std::{
    fs,
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

const SOON: Duration = Duration::from_secs(30);
/// From the call that revokes to the end of the connection.
const AT_ONCE: Duration = Duration::from_secs(1);

async fn agents(hub: &Hub) -> Vec<Value> {
    hub.api.get("/v1/agents").await.body["items"].as_array().expect("a list").clone()
}

async fn agent_id(hub: &Hub) -> String {
    agents(hub).await[0]["id"].as_str().expect("an id").to_owned()
}

fn copy_state(from: &Path, to: &Path) {
    let to = to.join("state");
    fs::create_dir_all(&to).expect("a state folder");
    for entry in fs::read_dir(from.join("state")).expect("the state folder") {
        let entry = entry.expect("an entry");
        if entry.file_type().expect("its type").is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
        }
    }
}

/// Whether a receipt is by one of the keys that the hub shows of the agent.
fn is_receipt_of(agent: &Value, receipt: &str) -> bool {
    let keys: Vec<VerifyingKey> = agent["keys"]
        .as_array()
        .expect("keys")
        .iter()
        .map(|key| serde_json::from_value(key["public_key"].clone()).expect("a public key"))
        .collect();
    VerifyingKey::verify_any::<Receipt>(&keys, Receipt::TYP, receipt).is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_agent_is_disconnected_within_a_second_whichever_way_it_is_revoked() {
    let hub = Hub::start().await;
    let by_api: &dyn Fn(&Hub, &str) = &|_, _| {};
    let by_admin: &dyn Fn(&Hub, &str) = &|hub, id| drop(hub.admin(&["agent", "revoke", id]));
    let by_client: &dyn Fn(&Hub, &str) = &|hub, id| {
        let mut command = Command::new(binary("passerelle"));
        command.args(["agents", "revoke", id, "--json", "--url", &hub.url, "--api-key", hub.api.key()]);
        let said = passerelle_tests::run(&mut command);
        assert!(said.status.success(), "{said:?}");
        let shown: Value = serde_json::from_slice(&said.stdout).unwrap();
        assert!(shown["revoked_at"].is_string(), "{shown}");
    };
    for (way, revoke) in [("api", by_api), ("admin", by_admin), ("client", by_client)] {
        let identity = FakeIdentity::enrol(&hub, SITE).await;
        let id = identity.agent.to_string();
        let mut tunnel = identity.session(json!([])).await;
        let started = Instant::now();
        revoke(&hub, &id);
        if way == "api" {
            let answer = hub.api.post(&format!("/v1/agents/{id}/revoke"), &json!({})).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            assert!(answer.body["revoked_at"].is_string(), "{answer:?}");
        }
        let called = started.elapsed();
        tunnel.closed().await;
        let after = started.elapsed().saturating_sub(called);
        assert!(after <= AT_ONCE, "{way}: disconnected {after:?} after the call, which took {called:?}");
        let again = hub.api.post(&format!("/v1/agents/{id}/revoke"), &json!({})).await;
        assert_eq!(again.status, 200, "a second time is no error: {again:?}");
        let refused = identity.tunnel(&identity.token(0)).await.err().expect("no tunnel");
        assert_eq!((refused.0, &refused.1["code"]), (403, &json!("forbidden")), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_agent_ends_and_one_enrolled_in_its_place_tells_what_became_of_its_jobs() {
    let mut site = Site::with_app(|_, _| Reply::status(200).held()).await;
    let id = agent_id(&site.hub).await;
    let job = site.hub.api.submit(&notify_job("orders/1/validated")).await;
    site.app.received(1).await;
    site.hub.api.reach(&job, &["running"]).await;
    let running = site.agent.output(&["re-enrol"]);
    assert_eq!(running.status.code(), Some(64), "{running:?}");
    assert!(
        String::from_utf8_lossy(&running.stderr).contains("another passerelle-agent is running"),
        "{running:?}"
    );

    assert_eq!(site.hub.api.post(&format!("/v1/agents/{id}/revoke"), &json!({})).await.status, 200);
    let lost = site.hub.api.end_of(&job, PATIENCE).await;
    assert_eq!(
        (&lost["state"], &lost["error"]["code"]),
        (&json!("unknown"), &json!("agent_lost")),
        "{lost:#}"
    );
    site.agent.process().logged("re-enrol", SOON).await;
    // What runs may still end; its report waits in the journal.
    site.app.release();
    assert_eq!(site.agent.process().exit_code(PATIENCE).await, Some(69), "{}", site.agent.process().log());

    let token = site.agent.folder().join("token.txt");
    fs::write(&token, site.hub.enrolment_token(SITE, &[])).unwrap();
    let done = site.agent.output(&["re-enrol", "--json", "--token-file", token.to_str().unwrap()]);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    let done: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!((&done["before"], &done["replaced"]), (&json!(id), &json!(true)), "{done}");
    // At once: the refusal was of the old identity.
    site.agent.start().await;
    site.hub.api.job_where(&job, "has succeeded", PATIENCE, |job| job["state"] == "succeeded").await;
    site.hub.api.succeed(&drop_job("after.csv", "x")).await;
    assert_eq!(site.app.requests().len(), 1, "the job was done once");
    let listed = agents(&site.hub).await;
    assert_eq!(listed[0]["replaced_by"], listed[1]["id"], "{listed:#?}");
    assert_eq!((&listed[0]["online"], &listed[1]["online"]), (&json!(false), &json!(true)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_that_is_damaged_is_repaired() {
    let mut site = Site::start().await;
    site.agent.kill();
    site.agent.file("state/identity.json", "{");
    site.agent.secret("enrolment-token", &site.hub.enrolment_token(SITE, &[]));
    let done = site.agent.output(&["re-enrol"]);
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success() && said.contains("revoke the old agent"), "{done:?}");
    site.agent.start().await;
    site.hub.api.succeed(&drop_job("a.csv", "x")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_state_folder_is_noticed_on_both_sides_and_the_two_do_not_fight() {
    let mut site = Site::start().await;
    site.agent.kill();
    let mut copy = Agent::new(&site.hub, SITE, "paris-copy");
    copy_state(site.agent.folder(), copy.folder());
    site.agent.start().await;
    copy.start().await;
    let said = site.agent.process().logged("two processes use one identity", SOON).await;
    assert!(said.contains("re-enrol"), "{said}");
    site.hub.process.logged("Two live processes use this agent's identity", SOON).await;
    let seen = until("the clone to be listed", SOON, async || {
        agents(&site.hub).await.into_iter().find(|agent| agent["clones"]["times"] == 1)
    })
    .await;
    assert!(seen["clones"]["last_at"].is_string(), "{seen}");
    let figures =
        http_client().get(format!("{}/metrics", site.hub.url)).send().await.unwrap().text().await.unwrap();
    assert!(figures.contains("passerelle_hub_agent_clones_total 1"), "{figures}");
    // The fenced one waits at least half a minute before it fences the other in turn.
    let log = site.agent.process().logged("retry_in_ms", SOON).await;
    let wait: u64 = log
        .split("retry_in_ms=")
        .nth(1)
        .and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).find(|digits| !digits.is_empty()))
        .and_then(|digits| digits.parse().ok())
        .unwrap_or_else(|| panic!("no wait in {log}"));
    assert!(wait >= 30_000, "{wait}");
    assert_eq!(copy.metric("passerelle_agent_fenced_total").await, 0.0);
    site.hub.api.agents_online(SITE, 1).await;

    // An identity of its own ends it.
    site.agent.kill();
    site.agent.secret("enrolment-token", &site.hub.enrolment_token(SITE, &[]));
    copy.kill();
    assert!(site.agent.output(&["re-enrol"]).status.success());
    site.agent.start().await;
    site.hub.api.succeed(&drop_job("a.csv", "x")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_started_anew_is_no_clone() {
    let mut site = Site::start().await;
    for _ in 0..3 {
        site.agent.restart().await;
    }
    site.hub.api.succeed(&drop_job("a.csv", "x")).await;
    assert_eq!(agents(&site.hub).await[0]["clones"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_the_agents_key_during_a_thousand_jobs_disturbs_none() {
    const JOBS: usize = 1000;
    let mut site = Site::prepared(|_, _| Reply::status(200)).await;
    site.agent.agent_key("key_rotation = \"1s\"");
    site.agent.start().await;
    let mut lines = Vec::new();
    for line in 0..8 {
        let api = site.hub.api.clone();
        lines.push(tokio::spawn(async move {
            let mut ids = Vec::new();
            for n in (line..JOBS).step_by(8) {
                ids.push(api.submit(&drop_job(&format!("{n}.csv"), &format!("content {n}"))).await);
            }
            ids
        }));
    }
    let mut ids = Vec::new();
    for line in lines {
        ids.extend(line.await.unwrap());
    }
    let mut receipts = Vec::new();
    for id in &ids {
        let job = site.hub.api.end_of(id, PATIENCE * 2).await;
        assert_eq!(job["state"], "succeeded", "{job:#}");
        assert_eq!(job["attempts"].as_array().unwrap().len(), 1, "{job:#}");
        receipts.push(job["receipt"].as_str().unwrap().to_owned());
    }
    site.agent.counted("passerelle_agent_key_rotations_total", 3.0).await;
    let files = files_below(site.files.path());
    assert_eq!(files.len(), JOBS);
    for n in [0, 1, JOBS / 2, JOBS - 1] {
        assert_eq!(site.read(&format!("{n}.csv")), format!("content {n}"));
    }
    // Whatever key signed them, the hub has it.
    let agent = agents(&site.hub).await.remove(0);
    let keys = agent["keys"].as_array().unwrap();
    assert!(keys.len() > 3 && keys.iter().filter(|key| key["ends_at"].is_null()).count() <= 2, "{agent:#}");
    for receipt in &receipts {
        assert!(is_receipt_of(&agent, receipt), "{receipt}");
    }
    // And nobody was asked to do anything when it is killed and comes back.
    site.agent.restart().await;
    site.hub.api.succeed(&drop_job("after.csv", "x")).await;
    let pending = fs::read_dir(site.agent.folder().join("state")).unwrap();
    let keys = pending.filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with("agent-key"));
    assert!(keys.count() <= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hubs_signing_key_changes_while_jobs_run_and_while_agents_are_away() {
    let mut site = Site::start().await;
    let api = site.hub.api.clone();
    let jobs = tokio::spawn(async move {
        for n in 0..120 {
            let done = api.run(&drop_job(&format!("{n}.csv"), "x")).await;
            assert_eq!(
                (&done["state"], done["attempts"].as_array().unwrap().len()),
                (&json!("succeeded"), 1),
                "{done:#}"
            );
        }
    });
    let first = site.hub.admin(&["signing-key", "list"]);
    let mut made = Vec::new();
    for n in 1..=3 {
        made.push(site.hub.admin(&["signing-key", "rotate"])["id"].clone());
        site.agent.counted("passerelle_agent_hub_keys_followed_total", f64::from(n)).await;
    }
    jobs.await.unwrap();
    // Twice while the agent is away, and the hub is started anew.
    site.agent.kill();
    for _ in 0..2 {
        made.push(site.hub.admin(&["signing-key", "rotate"])["id"].clone());
    }
    site.hub.restart().await;
    site.agent.start().await;
    site.hub.api.succeed(&drop_job("away.csv", "x")).await;
    // An agent that enrols now knows the newest alone.
    let listed = site.hub.admin(&["signing-key", "list"])["items"].as_array().unwrap().clone();
    assert_eq!((first["items"].as_array().unwrap().len(), listed.len()), (1, 6));
    assert_eq!(listed[5]["id"], made[4]);
    assert_eq!(listed.iter().filter(|key| key["signs"] == true).count(), 1);
    let newcomer = FakeIdentity::try_enrol(&site.hub, &site.hub.enrolment_token(SITE, &[])).await.0;
    assert_eq!(newcomer.body["job_keys"], json!([listed[5]["public_key"]]));

    // A backup holds the key; a restore of an older one keeps what came after it.
    let home = tempfile::tempdir().unwrap();
    let backup = home.path().join("hub.backup");
    site.hub.admin(&["backup", backup.to_str().unwrap()]);
    let last = site.hub.admin(&["signing-key", "rotate"])["id"].clone();
    site.agent.counted("passerelle_agent_hub_keys_followed_total", 3.0).await;
    site.hub.process.kill();
    let restored = site.hub.admin(&["restore", backup.to_str().unwrap()]);
    assert_eq!(restored["kept_keys"], 1, "{restored}");
    site.hub.restart().await;
    site.agent.ready().await;
    site.hub.api.agents_online(SITE, 1).await;
    site.hub.api.succeed(&drop_job("restored.csv", "x")).await;
    let listed = site.hub.admin(&["signing-key", "list"])["items"].as_array().unwrap().clone();
    assert_eq!(listed.last().unwrap()["id"], last);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_signing_key_of_the_hub_is_refused() {
    let mut hub = FakeHub::start().await;
    let files = tempfile::tempdir().unwrap();
    let mut agent = Agent::at(&hub.url, "paris-1");
    agent.resource("compta", &resources::folder("compta", files.path()));
    agent.spawn();
    let mut session = hub.welcomed().await;
    let draft = hub.draft("compta", "drop", json!({"path": "a.csv"})).with_payload(b"x");
    let known = Arc::clone(&draft.envelope_key);
    assert_eq!(session.hello["hub_keys"], json!([known.public().id()]));
    let stranger = Arc::new(SigningKey::generate().unwrap().0);
    let said = |by: &SigningKey, key: &SigningKey, aud: &str| {
        let iat = jiff::Timestamp::now().as_second();
        HubKey { aud: aud.to_owned(), public_key: key.public().clone(), iat }.sign(by).unwrap()
    };
    let by_itself = said(&stranger, &stranger, &hub.url);
    let elsewhere = said(&known, &stranger, "urn:another-hub");
    session.send(&json!({"type": "hub_keys", "statements": [by_itself, elsewhere, "x"]})).await;
    let mut forged = draft.clone();
    (forged.envelope_key, forged.ticket_key) = (Arc::clone(&stranger), Arc::clone(&stranger));
    session.send(&forged.message()).await;
    let answer = session.receive(&["decline", "accept"]).await;
    assert_eq!(
        (&answer["type"], &answer["code"]),
        (&json!("decline"), &json!("signature_invalid")),
        "{answer}"
    );
    agent.counted("passerelle_agent_hub_keys_refused_total", 3.0).await;
    until("the refused keys in the audit", PATIENCE, async || {
        let rows = crate::audit::rows(&agent);
        let told = rows.iter().filter(|row| row["kind"] == "message_refused" && row["code"] == "hub_key");
        (told.count() == 3).then_some(())
    })
    .await;
    assert_eq!(files_below(files.path()), Vec::<String>::new());

    // The same key by the word of the one before is taken, at once and over a restart.
    let good = said(&known, &stranger, &hub.url);
    session.send(&json!({"type": "hub_keys", "statements": [good]})).await;
    let mut next = hub.draft("compta", "drop", json!({"path": "b.csv"})).with_payload(b"x");
    (next.envelope_key, next.ticket_key) = (Arc::clone(&stranger), Arc::clone(&stranger));
    session.send(&next.message()).await;
    let report = session.receive(&["decline", "report"]).await;
    assert_eq!(report["outcome"]["outcome"], "succeeded", "{report:#}");
    session.send(&json!({"type": "report_ack", "job": report["job"], "attempt": 1})).await;
    agent.restart_without_waiting();
    let session = hub.welcomed().await;
    assert_eq!(session.hello["hub_keys"], json!([stranger.public().id()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_captured_token_is_of_no_use_after_a_restart_of_the_hub() {
    let mut hub = Hub::start().await;
    let identity = FakeIdentity::enrol(&hub, SITE).await;
    let captured = identity.token(0);
    drop(identity.tunnel(&captured).await.expect("a tunnel"));
    hub.restart().await;
    let (status, problem) = identity.tunnel(&captured).await.err().expect("no tunnel");
    assert_eq!((status, &problem["code"]), (401, &json!("unauthorized")), "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("used before"), "{problem}");
    drop(identity.tunnel(&identity.token(0)).await.expect("a fresh one is taken"));
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_of_a_tenant_that_loses_its_tier_are_disconnected_and_come_back_with_it() {
    let mut site = Site::start().await;
    site.hub.admin(&["tenant", "set-tier", "acme", "standard"]);
    let started = Instant::now();
    assert_eq!(site.agent.process().exit_code(SOON).await, Some(69), "{}", site.agent.process().log());
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    let log = site.agent.process().log();
    assert!(log.contains("tier_required") && log.contains("Enterprise"), "{log}");
    site.hub.api.agents_online(SITE, 0).await;
    let job = site.hub.api.submit(&drop_job("later.csv", "x")).await;
    assert_eq!(site.hub.api.job(&job).await["state"], "queued");
    site.hub.admin(&["tenant", "set-tier", "acme", "enterprise"]);
    fs::remove_file(site.agent.folder().join("state/refused.json")).unwrap();
    site.agent.start().await;
    site.hub.api.job_where(&job, "has succeeded", PATIENCE, |job| job["state"] == "succeeded").await;
}
