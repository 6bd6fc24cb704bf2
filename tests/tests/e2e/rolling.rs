//! A rolling restart of a site of two agents, as an update makes it: nothing is lost, repeated, put out of order or kept
//! waiting.
#![expect(clippy::unwrap_used, reason = "what cannot be set up fails the test")]

use crate::common::{SITE, drop_into, files_below, notify_job, with};
use passerelle_tests::{Agent, Api, App, Hub, Reply, resources};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

/// No job of this test waits for it to run out: one that is left with an agent that went away would never end.
const LEASE: Duration = Duration::from_secs(24 * 3600);
/// How long a job may take while agents come and go.
const SOON: Duration = Duration::from_secs(30);
/// Who submits at the same time, each with an order key of its own.
const LANES: usize = 4;
/// How many jobs of a lane are under way at the same time.
const DEPTH: usize = 3;
/// How many jobs end between one restart and the next.
const BETWEEN: usize = 40;

/// Submits notifications in order and drops beside them until told to stop; gives the ended jobs.
async fn submit(api: &Api, lane: usize, stop: &AtomicBool, ended: &AtomicUsize) -> Vec<Value> {
    let (mut under_way, mut done) = (VecDeque::new(), Vec::new());
    for number in 0.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let order = json!({"order_key": format!("lane-{lane}"), "deadline_s": 3600});
        under_way.push_back(api.submit(&with(notify_job(&format!("orders/{lane}/{number}")), order)).await);
        let path = format!("{lane}-{number}.csv");
        under_way.push_back(api.submit(&drop_into("compta", &path, json!({"text": path}))).await);
        while under_way.len() > 2 * DEPTH {
            done.push(api.end_of(&under_way.pop_front().unwrap(), SOON).await);
            ended.fetch_add(1, Ordering::SeqCst);
        }
    }
    for id in under_way {
        done.push(api.end_of(&id, SOON).await);
    }
    done
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_of_two_agents_loses_repeats_and_delays_nothing() {
    let hub = Hub::start_with_lease(LEASE).await;
    // Long enough for a notification to be under way when its agent is told to stop.
    let app = App::with(|_, _| Reply::status(200).after(Duration::from_millis(20))).await;
    let files = tempfile::tempdir().unwrap();
    let mut agents = ["paris-1", "paris-2"].map(|name| {
        let agent = Agent::new(&hub, SITE, name);
        agent.resource("compta", &resources::folder("compta", files.path()));
        agent.resource("orders-app", &resources::application("orders-app", &app.url));
        agent
    });
    for agent in &mut agents {
        agent.start().await;
    }
    let (stop, ended) = (AtomicBool::new(false), AtomicUsize::new(0));
    let some_ended = async || {
        let before = ended.load(Ordering::SeqCst);
        let more = async || (ended.load(Ordering::SeqCst) >= before + BETWEEN).then_some(());
        passerelle_tests::until("jobs to end between restarts", SOON * 2, more).await;
    };
    let restarts = async {
        some_ended().await;
        for agent in &mut agents {
            agent.process().signal(Signal::TERM);
            assert_eq!(agent.process().exit_code(SOON).await, Some(0));
            // The other one carries on alone.
            some_ended().await;
            agent.start().await;
            hub.api.agents_online(SITE, 2).await;
            some_ended().await;
        }
        stop.store(true, Ordering::SeqCst);
    };
    let lanes: [usize; LANES] = std::array::from_fn(|lane| lane);
    let submitted = futures_util::future::join_all(lanes.map(|lane| submit(&hub.api, lane, &stop, &ended)));
    let ((), done) = tokio::join!(restarts, submitted);

    let mut by = BTreeMap::new();
    for job in done.iter().flatten() {
        assert_eq!(job["state"], "succeeded", "{job:#}");
        let attempts = job["attempts"].as_array().unwrap();
        // Handed back at most: never cut off, never tried twice.
        for earlier in &attempts[..attempts.len() - 1] {
            assert_eq!(
                (&earlier["code"], &earlier["effect"]),
                (&json!("busy"), &json!("not_applied")),
                "{job:#}"
            );
        }
        *by.entry(attempts.last().unwrap()["agent"].as_str().unwrap().to_owned()).or_insert(0) += 1;
    }
    assert_eq!(by.len(), 2, "only one agent worked: {by:?}");
    let notified: usize =
        done.iter().map(|jobs| jobs.iter().filter(|job| job["operation"] == "notify").count()).sum();
    let told = app.requests();
    assert_eq!(told.len(), notified, "a notification was lost or repeated");
    for lane in 0..LANES {
        let of_lane: Vec<&str> =
            told.iter().filter_map(|request| request.uri.strip_prefix(&format!("/orders/{lane}/"))).collect();
        let expected: Vec<String> = (0..of_lane.len()).map(|number| number.to_string()).collect();
        assert_eq!(of_lane, expected, "lane {lane} is out of order");
    }
    assert_eq!(files_below(files.path()).len(), done.iter().flatten().count() - notified);
}
