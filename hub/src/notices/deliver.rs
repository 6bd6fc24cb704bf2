//! Sends deliveries: at least once, in order within a line, until the subscriber takes them or they are given up.
//!
//! What is due is read from the outbox alone, so that a hub that was killed goes on where it was. A delivery whose answer
//! was lost goes out again with the same `webhook-id`. Subscribers cannot hold each other up, nor can tenants: each has a few
//! requests under way at most, and who has the fewest comes first (`store/due.rs`).

use super::{settings::Settings, sign};
use crate::{
    api::App,
    clock,
    model::{DeliveryAuth, DeliveryTarget, DueDelivery, Notice},
    outbound::{self, Outbound, Refusal},
    store::{
        due::{Places, UnderWay},
        subscriptions::Failed,
    },
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use jiff::Timestamp;
use std::time::Duration;
use tokio::task::JoinSet;
use uuid::Uuid;

/// How many requests may be under way.
const PLACES: Places = Places { per_subscription: 4, per_tenant: 16, in_all: 256 };
/// How long the task waits when the store fails.
const STORE_FAILED: Duration = Duration::from_secs(1);
/// The task looks by itself after this long, whatever it knows.
const LOOK: Duration = Duration::from_secs(60);

const ID: HeaderName = HeaderName::from_static("webhook-id");
const TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempted {
    /// Whether the subscriber took it.
    pub delivered: bool,
    /// The HTTP status, if there was an answer.
    pub status: Option<u16>,
    /// Why it was not taken: one public sentence.
    pub failure: Option<String>,
    /// When the subscriber wants it again.
    retry_after: Option<Duration>,
}

impl Attempted {
    fn failed(status: Option<u16>, failure: impl Into<String>) -> Self {
        Self { delivered: false, status, failure: Some(failure.into()), retry_after: None }
    }
}

/// Delivers for ever. Cut at any point, it leaves what it has not noted to the next run.
pub(super) async fn run(app: &App, settings: &Settings) {
    let mut running: JoinSet<(Uuid, i64)> = JoinSet::new();
    let mut under_way = UnderWay::new();
    let shared = app.store.shared_handle();
    loop {
        let bell = shared.outbox.bell.notified();
        let wait = match app.store.due_deliveries(clock::now(), under_way.clone(), PLACES).await {
            Ok((due, next)) => {
                for due in due {
                    let (subscription, seq) = (due.subscription, due.seq);
                    let busy =
                        under_way.entry(subscription).or_insert_with(|| (due.tenant.clone(), Vec::new()));
                    busy.1.push(seq);
                    let (app, settings) = (app.clone(), settings.clone());
                    running.spawn(async move {
                        one(&app, &settings, due).await;
                        (subscription, seq)
                    });
                }
                next.map_or(LOOK, until)
            }
            Err(error) => {
                tracing::error!(%error, "Could not read what is to be delivered");
                STORE_FAILED
            }
        };
        tokio::select! {
            () = bell => {}
            () = tokio::time::sleep(wait.min(LOOK)) => {}
            Some(done) = running.join_next() => {
                if let Ok((subscription, seq)) = done {
                    if let Some((_, busy)) = under_way.get_mut(&subscription) {
                        busy.retain(|other| *other != seq);
                        if busy.is_empty() {
                            under_way.remove(&subscription);
                        }
                    }
                } else {
                    // A fault in an attempt: all that is not running any more may be tried again.
                    tracing::error!("An attempt of a delivery ended by a fault");
                    running.abort_all();
                    while running.join_next().await.is_some() {}
                    under_way.clear();
                    tokio::time::sleep(STORE_FAILED).await;
                }
            }
        }
    }
}

fn until(at: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(clock::now())).unwrap_or_default()
}

async fn one(app: &App, settings: &Settings, due: DueDelivery) {
    let attempted = attempt(&app.outbound, settings.timeout, &due.target, &due.notice).await;
    let noted = if attempted.delivered {
        app.store.delivered(due.seq).await
    } else {
        let again_at = again_at(settings, &due, attempted.retry_after, clock::now(), random());
        let failure = attempted.failure.unwrap_or_default();
        tracing::info!(
            subscription = %due.subscription, notice = %due.notice.id, kind = due.notice.kind.as_str(),
            attempts = due.attempts + 1, failure, given_up = again_at.is_none(), "A delivery failed"
        );
        app.store.not_delivered(due.seq, Failed { status: attempted.status, failure, again_at }).await
    };
    if let Err(error) = noted {
        tracing::error!(%error, "Could not note how a delivery ended: it is tried again");
        tokio::time::sleep(STORE_FAILED).await;
    }
}

/// When a delivery that failed is tried again; `None`: it is given up. `random` is 0 to 1.
fn again_at(
    settings: &Settings,
    due: &DueDelivery,
    retry_after: Option<Duration>,
    now: Timestamp,
    random: f64,
) -> Option<Timestamp> {
    let doubled = settings.first_retry.saturating_mul(1 << due.attempts.min(20));
    let wait = doubled.min(settings.longest_retry).mul_f64(0.8 + 0.4 * random.clamp(0.0, 1.0));
    let wait = retry_after.map_or(wait, |asked| asked.min(settings.longest_retry).max(wait));
    let again = now.checked_add(wait).ok()?;
    let end = due.queued_at.checked_add(settings.give_up).ok()?;
    (again <= end).then_some(again)
}

/// Sends a notice once.
pub async fn attempt(
    outbound: &Outbound,
    timeout: Duration,
    target: &DeliveryTarget,
    notice: &Notice,
) -> Attempted {
    let url = match outbound::read(&target.url) {
        Ok(url) => url,
        Err(refusal) => return Attempted::failed(None, refusal.to_string()),
    };
    let headers = match headers(target, notice) {
        Ok((headers, body)) => (headers, body),
        Err(wrong) => return Attempted::failed(None, wrong),
    };
    let (headers, body) = headers;
    let sent = async {
        let request = outbound.request(Method::POST, &url).await.map_err(Ok)?;
        request.headers(headers).body(body).send().await.map_err(Err)
    };
    match tokio::time::timeout(timeout, sent).await {
        Err(_) => {
            Attempted::failed(None, format!("the subscriber did not answer within {} s", timeout.as_secs()))
        }
        Ok(Err(Ok(refusal))) => Attempted::failed(None, forbidden(&refusal)),
        Ok(Err(Err(error))) => {
            let failure = format!("the subscriber {}", outbound::trouble::of(&error));
            tracing::debug!(error = %error.without_url(), "A subscriber was not reached");
            Attempted::failed(None, failure)
        }
        Ok(Ok(answer)) => judged(answer.status(), answer.headers()),
    }
}

fn forbidden(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Malformed(why) | Refusal::Forbidden(why) => why.clone(),
        Refusal::NotResolved => refusal.to_string(),
    }
}

fn judged(status: StatusCode, headers: &HeaderMap) -> Attempted {
    if status.is_success() {
        return Attempted {
            delivered: true,
            status: Some(status.as_u16()),
            failure: None,
            retry_after: None,
        };
    }
    let said = if status.is_redirection() {
        format!("the subscriber answered {}: redirections are not followed", status.as_u16())
    } else {
        format!("the subscriber answered {}", status.as_u16())
    };
    Attempted {
        retry_after: outbound::retry_after(headers),
        ..Attempted::failed(Some(status.as_u16()), said)
    }
}

fn headers(target: &DeliveryTarget, notice: &Notice) -> Result<(HeaderMap, Vec<u8>), String> {
    let body = serde_json::to_vec(&notice.envelope()).map_err(|error| format!("no JSON: {error}"))?;
    let key = sign::key(&target.secret).map_err(|why| format!("secret: {why}"))?;
    let (id, now) = (notice.id.hyphenated().to_string(), clock::unix());
    let signature = sign::signature(&key, &id, now, &body);
    let mut headers = HeaderMap::new();
    let mut put = |name: HeaderName, value: &str, secret: bool| -> Result<(), String> {
        let mut value =
            HeaderValue::from_str(value).map_err(|_| format!("{name}: its value fits no header"))?;
        value.set_sensitive(secret);
        headers.insert(name, value);
        Ok(())
    };
    put(header::CONTENT_TYPE, "application/json; charset=utf-8", false)?;
    put(ID, &id, false)?;
    put(TIMESTAMP, &now.to_string(), false)?;
    put(SIGNATURE, &signature, false)?;
    match &target.auth {
        DeliveryAuth::None => {}
        DeliveryAuth::Basic { username, password } => {
            use base64::{Engine as _, engine::general_purpose::STANDARD};
            let pair = STANDARD.encode(format!("{username}:{password}"));
            put(header::AUTHORIZATION, &format!("Basic {pair}"), true)?;
        }
        DeliveryAuth::Bearer { token } => put(header::AUTHORIZATION, &format!("Bearer {token}"), true)?,
    }
    Ok((headers, body))
}

fn random() -> f64 {
    let mut bytes = [0; 4];
    match aws_lc_rs::rand::fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 0.5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::NoticeKind;
    use serde_json::json;

    fn due(attempts: u32, queued_at: Timestamp) -> DueDelivery {
        DueDelivery {
            seq: 1,
            subscription: Uuid::nil(),
            tenant: "acme".parse().unwrap(),
            notice: Notice { id: Uuid::nil(), kind: NoticeKind::Test, at: queued_at, data: json!({}) },
            target: DeliveryTarget {
                url: "https://hooks.example.com/".to_owned(),
                auth: DeliveryAuth::None,
                secret: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned(),
            },
            attempts,
            queued_at,
        }
    }

    #[test]
    fn waits_double_up_to_the_longest_and_end() {
        let settings = Settings::default();
        let start: Timestamp = "2026-11-21T06:00:00Z".parse().unwrap();
        let wait = |attempts, asked: Option<u64>, now: Timestamp| {
            let asked = asked.map(Duration::from_secs);
            again_at(&settings, &due(attempts, start), asked, now, 0.5)
                .map(|at| at.duration_since(now).as_secs())
        };
        assert_eq!(wait(0, None, start), Some(5));
        assert_eq!(wait(1, None, start), Some(10));
        assert_eq!(wait(6, None, start), Some(320));
        assert_eq!(wait(12, None, start), Some(900));
        assert_eq!(wait(4_000_000_000, None, start), Some(900));
        // The subscriber may ask for more, within the longest, never for less.
        assert_eq!(wait(0, Some(60), start), Some(60));
        assert_eq!(wait(0, Some(1), start), Some(5));
        assert_eq!(wait(0, Some(1_000_000), start), Some(900));
        let late = start.checked_add(settings.give_up).unwrap();
        assert_eq!(wait(3, None, late), None);
    }

    #[test]
    fn only_success_counts_as_taken() {
        for (status, taken) in
            [(200, true), (204, true), (301, false), (400, false), (410, false), (503, false)]
        {
            let judged = judged(StatusCode::from_u16(status).unwrap(), &HeaderMap::new());
            assert_eq!(judged.delivered, taken, "{status}");
        }
    }

    #[test]
    fn credentials_and_signature_go_into_the_headers() {
        let now = "2026-11-21T06:00:00Z".parse().unwrap();
        let mut due = due(0, now);
        due.target.auth =
            DeliveryAuth::Basic { username: "svc".to_owned(), password: "p\u{e4}ss".to_owned() };
        let (fields, body) = headers(&due.target, &due.notice).unwrap();
        assert_eq!(fields["authorization"], "Basic c3ZjOnDDpHNz");
        let envelope: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(envelope, json!({"EventKind": "Test", "EventCategory": "passerelle", "Data": {}}));
        let at: i64 = fields["webhook-timestamp"].to_str().unwrap().parse().unwrap();
        let key = sign::key(&due.target.secret).unwrap();
        let expected = sign::signature(&key, fields["webhook-id"].to_str().unwrap(), at, &body);
        assert_eq!(fields["webhook-signature"], expected);
        assert!(!format!("{:?} {fields:?}", due.target).contains("c3Zj"));
    }
}
