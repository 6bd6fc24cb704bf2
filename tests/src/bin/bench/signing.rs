//! What signatures cost: envelope and ticket signed and verified, beside the round trip of a small durable job.

use crate::{
    Effort,
    line::{Line, Sorted, Target},
    load::{Site, many},
};
use jiff::Timestamp;
use passerelle_protocol::{
    AgentId, CommitMode, Envelope, JobId, PayloadDigest, Sha256, SigningKey, Ticket, VerifyingKey,
};
use serde_json::json;
use std::{hint::black_box, time::Instant};

/// The largest share of a job's round trip that its signatures may take, in percent.
const MOST_PERCENT: f64 = 10.0;

fn claims() -> (Envelope, Ticket) {
    let (now, job) = (Timestamp::now().as_second(), JobId::new(1, &[1; 10]));
    let name = |text: &str| text.parse().expect("a name");
    let envelope = Envelope {
        job,
        tenant: name("acme"),
        site: name("paris"),
        resource: name("orders-app"),
        operation: name("notify"),
        params: json!({"path": "orders/42/validated"}),
        payload: Some(PayloadDigest {
            size: 500,
            sha256: Sha256::of(b"x"),
            media_type: "application/json".to_owned(),
        }),
        timeout_s: 300,
        deadline: now + 86_400,
        max_attempts: 5,
        repeat: None,
        order_key: None,
        agents: None,
        iat: now,
        nbf: now,
        exp: now + 900,
    };
    let ticket = Ticket {
        job,
        attempt: 1,
        agent: AgentId::new(1, &[2; 10]),
        epoch: 1,
        commit: CommitMode::Free,
        envelope: Sha256::of(b"x"),
        granted: None,
        iat: now,
        exp: now + 900,
    };
    (envelope, ticket)
}

/// The median of so many repetitions, in microseconds.
fn median_us<T>(repetitions: usize, mut act: impl FnMut() -> T) -> f64 {
    let times = (0..repetitions).map(|_| {
        let started = Instant::now();
        black_box(act());
        started.elapsed()
    });
    Sorted::new(times.collect::<Vec<_>>()).p50() * 1000.0
}

/// Measures on one core, then a round trip on real processes.
pub async fn measure(effort: Effort) -> Vec<Line> {
    let (key, _) = SigningKey::generate().expect("a key");
    let keys: Vec<VerifyingKey> = vec![key.public().clone()];
    let (envelope, ticket) = claims();
    let (text, bound) = (envelope.sign(&key).expect("signed"), ticket.sign(&key).expect("signed"));
    let repetitions = effort.repetitions * 5;
    let sign = median_us(repetitions, || (envelope.sign(&key), ticket.sign(&key)));
    let verify = median_us(repetitions, || (Envelope::verify(&keys, &text), Ticket::verify(&keys, &bound)));
    // What the hub does with an envelope that a client signed: it reads it, and signs the ticket alone.
    let hand_on = median_us(repetitions, || (Envelope::read_unverified(&text), ticket.sign(&key)));

    let site = Site::start(1, 2).await;
    let submit = || site.submit_and_wait();
    many(1, 50, &submit).await;
    let (alone, _) = many(1, effort.repetitions, &submit).await;
    let round_trip = alone.p50() * 1000.0;
    let share = (sign + verify) / round_trip * 100.0;
    let line = |name: &str, value, target| Line {
        name: name.to_owned(),
        value,
        baseline: ("notify_p50_us_at_1".to_owned(), round_trip),
        target,
        more: json!({}),
    };
    let rule = format!("{MOST_PERCENT} % of the round trip");
    vec![
        line("sign_envelope_and_ticket_us", sign, None),
        line("verify_envelope_and_ticket_us", verify, None),
        line("hand_on_client_envelope_us", hand_on, None),
        line("signatures_percent_of_notify", share, Some((Target::AtMost(MOST_PERCENT), rule))),
    ]
}
