//! What follows a fetch, seen from outside: nothing is lost between the share and the hub, whoever else is at work.
#![expect(clippy::unwrap_used, reason = "what cannot be set up fails the test")]

use crate::common::{SITE, Site, files_below, job};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use passerelle_tests::{Agent, Hub, Proxy, code, ended, resources, until};
use serde_json::{Value, json};
use std::{fs, path::Path, time::Duration};

/// More messages than a fetch has.
const MOST_MESSAGES: u64 = 40;
const PATIENCE: Duration = Duration::from_secs(60);

fn fetch(path: &str, then: Value) -> Value {
    job("compta", "fetch", json!({"path": path, "then": then}))
}

fn id(job: &Value) -> &str {
    job["id"].as_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_fetched_is_deleted_or_moved_and_the_receipt_says_so() {
    let site = Site::start().await;
    fs::create_dir(site.files.path().join("done")).unwrap();
    let large = "journal;date;montant\n".repeat(40_000);
    for content in ["", "small", large.as_str()] {
        fs::write(site.files.path().join("a.csv"), content).unwrap();
        let done = site.hub.api.succeed(&fetch("a.csv", json!("delete"))).await;
        assert_eq!(done["result"]["then"], "deleted", "{done:#}");
        assert_eq!(site.hub.api.output(id(&done)).await, content.as_bytes());
        let to = format!("done/{}.csv", content.len());
        fs::write(site.files.path().join("a.csv"), content).unwrap();
        let done = site.hub.api.succeed(&fetch("a.csv", json!({"move_to": to}))).await;
        assert_eq!((&done["result"]["then"], &done["result"]["moved_to"]), (&json!("moved"), &json!(to)));
        assert_eq!(site.hub.api.output(id(&done)).await, content.as_bytes());
        assert_eq!(site.read(&to), content);
        let receipt = done["receipt"].as_str().unwrap().split('.').nth(1).unwrap();
        let receipt = URL_SAFE_NO_PAD.decode(receipt).unwrap();
        let receipt: Value = serde_json::from_slice(&receipt).unwrap();
        assert_eq!(receipt["result"]["then"], "moved", "{receipt:#}");
    }
    assert_eq!(files_below(site.files.path()), ["done/0.csv", "done/5.csv", "done/840000.csv"]);
    let spool = site.agent.folder().join("state/spool");
    until("the spool to be empty", PATIENCE, async || files_below(&spool).is_empty().then_some(())).await;
    // A second one of the same name does not replace the first.
    fs::write(site.files.path().join("a.csv"), "other").unwrap();
    let failed = site.hub.api.run(&fetch("a.csv", json!({"move_to": "done/5.csv"}))).await;
    assert_eq!((failed["state"].as_str(), code(&failed)), (Some("failed"), "target_conflict"), "{failed:#}");
    assert_eq!((site.read("a.csv"), site.read("done/5.csv")), ("other".to_owned(), "small".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_after_a_fetch_is_a_right_of_its_own() {
    let mut site = Site::prepared(|_, _| passerelle_tests::Reply::status(200)).await;
    let rule = "operations = [\"fetch\", \"delete\"]\npaths = [\"**/*\"]\n";
    site.agent.resource("compta", &resources::folder_with("compta", site.files.path(), "", rule));
    site.agent.start().await;
    fs::write(site.files.path().join("a.csv"), "content").unwrap();
    for then in [json!("delete"), json!({"move_to": "b.csv"})] {
        let denied = site.hub.api.run(&fetch("a.csv", then)).await;
        assert_eq!(
            (denied["state"].as_str(), code(&denied)),
            (Some("denied"), "policy_denied"),
            "{denied:#}"
        );
    }
    site.hub.api.succeed(&fetch("a.csv", json!("keep"))).await;
    assert_eq!(site.read("a.csv"), "content");
}

fn replace(share: &Path, name: &str, content: &str) {
    fs::write(share.join("new"), content).unwrap();
    fs::rename(share.join("new"), share.join(name)).unwrap();
}

/// A producer replaces the file at each message between agent and hub: each of its versions ends up at the hub or stays on
/// the share, but for one that the producer itself replaced before it was read.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_replaced_at_any_message_is_never_lost() {
    for answers in [false, true] {
        let hub = Hub::start().await;
        let (tunnel, share) = (Proxy::start(hub.port()).await, tempfile::tempdir().unwrap());
        let mut agent = Agent::new(&hub, SITE, "paris-1");
        agent.resource("compta", &resources::folder("compta", share.path()));
        agent.through(&tunnel.url()).start().await;
        let mut spared = 0;
        for number in 0..=MOST_MESSAGES {
            assert!(number < MOST_MESSAGES, "a fetch has more than {MOST_MESSAGES} messages");
            let (name, old, newer) = (format!("{number}.csv"), "old".repeat(9), "new".repeat(9));
            replace(share.path(), &name, &old);
            match answers {
                true => tunnel.hold_answers_after(Some(number)),
                false => tunnel.hold_after(Some(number)),
            }
            let job = hub.api.submit(&fetch(&name, json!("delete"))).await;
            let held = until("the job to end or be held", PATIENCE, async || {
                let ended = ended(&hub.api.job(&job).await);
                (ended || tunnel.is_holding()).then_some(!ended)
            })
            .await;
            replace(share.path(), &name, &newer);
            tunnel.heal();
            let done = hub.api.end_of(&job, PATIENCE).await;
            assert_eq!(done["state"], "succeeded", "message {number}: {done:#}");
            let left = fs::read_to_string(share.path().join(&name)).ok();
            let got = String::from_utf8(hub.api.output(&job).await).unwrap();
            match got {
                // Replaced before it was read.
                got if got == newer => assert_eq!(left, None, "message {number}: {done:#}"),
                got => {
                    assert_eq!((got, left), (old, Some(newer)), "message {number}: {done:#}");
                    spared += u32::from(done["result"]["then"] == "changed");
                }
            }
            if !held {
                break;
            }
        }
        assert_eq!(files_below(share.path()).iter().filter(|name| name.starts_with('.')).count(), 0);
        assert!(spared > 0, "it was never replaced between reading and deleting");
    }
}
