//! Concurrency, rate, and several agents in one site.

use crate::common::{SITE, Site, drop_into, files_below, job, notify_job, with};
use passerelle_tests::{Agent, App, FakeIdentity, Hub, Reply, resources};
use serde_json::{Value, json};
use std::{collections::BTreeSet, time::Duration};

#[tokio::test(flavor = "multi_thread")]
async fn no_more_jobs_than_allowed_run_on_a_resource_at_once() {
    let mut site = Site::prepared(|_, _| Reply::status(200).held()).await;
    let limited = resources::application_with("orders-app", &site.app.url, "limits = { max_concurrent = 2 }");
    site.agent.resource("orders-app", &limited);
    site.agent.start().await;
    let mut ids = Vec::new();
    for n in 0..8 {
        ids.push(site.hub.api.submit(&notify_job(&format!("orders/{n}"))).await);
    }
    site.app.received(2).await;
    // Another resource is not held up by the full one, and by the time it is done a third request would have come.
    for n in 0..5 {
        site.hub.api.succeed(&crate::common::drop_job(&format!("{n}.csv"), "x")).await;
    }
    assert_eq!(site.app.requests().len(), 2);
    site.app.release();
    for id in &ids {
        site.hub.api.reach(id, &["succeeded"]).await;
    }
    assert_eq!(site.app.most_at_once(), 2);
    assert_eq!(site.app.requests().len(), 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_holds_no_more_jobs_than_it_is_allowed() {
    let mut site = Site::prepared(|_, _| Reply::status(200).held()).await;
    site.agent.agent_key("max_jobs = 3").start().await;
    let mut ids = Vec::new();
    for n in 0..9 {
        ids.push(site.hub.api.submit(&notify_job(&format!("orders/{n}"))).await);
    }
    site.app.received(3).await;
    let held = async |state: &str| {
        site.hub.api.get(&format!("/v1/jobs?state={state}")).await.body["items"]
            .as_array()
            .map_or(0, Vec::len)
    };
    assert!(held("offered").await + held("running").await <= 3);
    assert!(held("queued").await >= 6);
    site.app.release();
    for id in &ids {
        site.hub.api.reach(id, &["succeeded"]).await;
    }
    assert_eq!(site.app.most_at_once(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_start_no_faster_than_the_rate() {
    let mut site = Site::prepared(|_, _| Reply::status(200)).await;
    let limited =
        resources::application_with("orders-app", &site.app.url, "limits = { rate_per_minute = 60 }");
    site.agent.resource("orders-app", &limited);
    site.agent.start().await;
    let mut ids = Vec::new();
    for n in 0..8 {
        ids.push(site.hub.api.submit(&notify_job(&format!("orders/{n}"))).await);
    }
    for id in &ids {
        let done = site.hub.api.reach(id, &["succeeded"]).await;
        assert_eq!(
            done["attempts"].as_array().unwrap().len(),
            1,
            "waiting for its turn is no attempt: {done:#}"
        );
    }
    let seen = site.app.requests();
    assert_eq!(seen.len(), 8);
    let spread = seen.last().unwrap().at - seen[0].at;
    assert!(spread >= Duration::from_millis(6500), "8 attempts within {spread:?} at one a second");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_agents_of_a_site_share_its_work_and_each_job_happens_once() {
    let hub = Hub::start().await;
    let app = App::with(|_, _| Reply::status(200).held()).await;
    let files = tempfile::tempdir().unwrap();
    let mut agents = Vec::new();
    for name in ["paris-1", "paris-2"] {
        let mut agent = Agent::new(&hub, SITE, name);
        agent.resource("compta", &resources::folder("compta", files.path()));
        // A limit holds across the site: room for both.
        let two = resources::application_with("orders-app", &app.url, "limits = { max_concurrent = 2 }");
        agent.resource("orders-app", &two);
        agent.start().await;
        agents.push(agent);
    }
    hub.api.agents_online(SITE, 2).await;
    let first = hub.api.submit(&notify_job("orders/1")).await;
    let second = hub.api.submit(&notify_job("orders/2")).await;
    app.received(2).await;
    app.release();
    let mut workers = BTreeSet::new();
    for id in [first, second] {
        let done = hub.api.reach(&id, &["succeeded"]).await;
        workers.insert(done["attempts"][0]["agent"].as_str().unwrap().to_owned());
    }
    assert_eq!(workers.len(), 2, "one agent did all the work");
    let mut ids = Vec::new();
    for n in 0..40 {
        ids.push(hub.api.submit(&drop_into("compta", &format!("{n}.csv"), json!({"text": "x"}))).await);
    }
    for id in &ids {
        hub.api.reach(id, &["succeeded"]).await;
    }
    assert_eq!(files_below(files.path()).len(), 40);
    // One goes; the other takes over what comes.
    agents[0].kill();
    for n in 40..50 {
        let done = hub.api.succeed(&drop_into("compta", &format!("{n}.csv"), json!({"text": "x"}))).await;
        assert_eq!(done["attempts"].as_array().unwrap().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offer_says_ask_as_soon_as_a_site_has_two_agents() {
    let hub = Hub::start().await;
    let first = FakeIdentity::enrol(&hub, SITE).await;
    let mut tunnel = first.session(json!([])).await;
    let drop = || drop_into("compta", "a.csv", json!({"text": "x"}));
    let alone = hub.api.submit(&drop()).await;
    let offer = tunnel.receive(&["offer"]).await;
    assert_eq!(offer["job"], json!(alone));
    assert_eq!(claims(&offer["ticket"])["commit"], "free");
    let _second = FakeIdentity::enrol(&hub, SITE).await;
    let shared = hub.api.submit(&drop()).await;
    let offer = tunnel.receive(&["offer"]).await;
    assert_eq!(offer["job"], json!(shared));
    assert_eq!(claims(&offer["ticket"])["commit"], "ask");
    let attempt = json!({"job": shared, "attempt": 1});
    let message = |kind: &str, more: Value| with(with(attempt.clone(), json!({"type": kind})), more);
    tunnel.send(&message("accept", json!({}))).await;
    tunnel.send(&message("commit", json!({"intent": {"target": "a.csv"}}))).await;
    let granted = tunnel.receive(&["commit_granted"]).await;
    assert_eq!(granted["job"], json!(shared));
}

fn claims(token: &Value) -> Value {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    let middle = token.as_str().and_then(|t| t.split('.').nth(1)).expect("a compact JWS");
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(middle).expect("base64url")).expect("claims")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_nests_too_deeply_fails_its_own_job_alone() {
    let mut site = Site::prepared(|request, _| {
        let depth: usize = request.uri.rsplit('/').next().and_then(|word| word.parse().ok()).unwrap_or(0);
        let body = format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
        Reply::status(200).header("content-type", "application/json").body(body)
    })
    .await;
    let crm = format!(
        "[resources.crm]\nconnector = \"crm\"\ndialect = \"rest\"\nurl = \"{}\"\n\
         [resources.crm.entities.contact]\ntarget = \"contacts/\"\nkey = [\"external_id\"]\n\
         fields = {{ external_id = \"guid\", last_name = \"nom\" }}\n\
         [resources.crm.calls.deep]\nmethod = \"GET\"\npath = \"deep/{{n}}\"\nargs = {{ n = \"text\" }}\n\
         [[resources.crm.allow]]\noperations = [\"call\"]\ncalls = [\"deep\"]\n",
        site.app.url
    );
    site.agent.resource("crm", &crm);
    site.agent.start().await;
    let ask = |depth: usize| job("crm", "call", json!({"name": "deep", "args": {"n": depth.to_string()}}));
    site.hub.api.succeed(&ask(64)).await;
    let sessions = || {
        let rows = site.agent.output(&["audit", "show", "--json"]).stdout;
        String::from_utf8(rows).unwrap().lines().filter(|row| row.contains("\"connected\"")).count()
    };
    let before = sessions();
    for depth in [65, 120, 126, 2000] {
        let told = site.hub.api.run(&with(ask(depth), json!({"max_attempts": 1}))).await;
        let code = told["error"]["code"].as_str().unwrap();
        assert!(["too_large", "target_protocol"].contains(&code) && told["state"] != "succeeded", "{told:#}");
        // As a call it is answered too, and ends nobody's session.
        let call = site.hub.api.post("/v1/calls", &ask(depth)).await;
        assert!([413, 502, 504].contains(&call.status), "{depth}: {} {:#}", call.status, call.body);
    }
    site.hub.api.succeed(&crate::common::drop_job("after.csv", "x")).await;
    assert_eq!(sessions(), before, "the session was ended");
}
