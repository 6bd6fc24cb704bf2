//! `webhook`: tells the cloud side, through a subscription of the tenant.
//!
//! Where to, how the hub proves itself and the key of the signature are the subscription's, so no definition holds a secret,
//! and the rules against requests into the hub's own network are those of all deliveries (`outbound.rs`). What is sent has
//! an id made of run, step and item: a request whose answer was lost goes out again under the same id.

use super::{StepContext, StepDone, StepFailure};
use crate::{
    clock,
    mediations::{
        runs::{Flow, MessageKind},
        sandbox::Filled,
        template::{self, Wanted},
    },
    model::{DeliveryAuth, DeliveryTarget},
    notices::sign,
    outbound::{self, Refusal},
};
use bytes::Bytes;
use http::{Method, StatusCode, header};
use passerelle_config::{Diagnostics, Section};
use passerelle_protocol::Sha256;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::time::Duration;
use uuid::Uuid;

/// The most that one request carries.
const MAX_BODY: u64 = 8 * 1024 * 1024;
/// How long the endpoint may take to answer.
const TIMEOUT_S: u32 = 30;
const MAX_TIMEOUT_S: u32 = 300;
/// The longest event kind or category.
const MAX_WORD: usize = 100;

/// A step that sends requests to a subscription's endpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookStep {
    /// The subscription whose endpoint is told, by its id.
    pub subscription: Uuid,
    /// The kind of event in the vendor's envelope; where nothing is said, each flow is sent as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    /// Its category.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<String>,
    /// Its data; texts are templates.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub data: Map<String, Value>,
    /// How long the endpoint may take to answer, in seconds.
    #[serde(default = "timeout")]
    pub timeout_s: u32,
}

fn timeout() -> u32 {
    TIMEOUT_S
}

impl WebhookStep {
    pub(super) fn read(section: Section, diagnostics: &mut Diagnostics) -> Option<Self> {
        let step: Self = section.parse(diagnostics)?;
        let before = diagnostics.findings().len();
        for (key, word) in [("event", &step.event), ("category", &step.category)] {
            let fits =
                |word: &String| (1..=MAX_WORD).contains(&word.len()) && !word.chars().any(char::is_control);
            if word.as_ref().is_some_and(|word| !fits(word)) {
                diagnostics.push(section.finding(key, format!("must be 1 to {MAX_WORD} bytes on one line")));
            }
        }
        if step.event.is_none() && (step.category.is_some() || !step.data.is_empty()) {
            let key = if step.data.is_empty() { "category" } else { "data" };
            diagnostics.push(section.finding(key, "only with an event: name its kind, or leave this out"));
        }
        if step.timeout_s == 0 || step.timeout_s > MAX_TIMEOUT_S {
            diagnostics.push(
                section
                    .finding("timeout_s", format!("must be 1 to {MAX_TIMEOUT_S}, found {}", step.timeout_s)),
            );
        }
        for (path, why) in template::check_all(&step.data, "data") {
            diagnostics.push(section.finding(&path, why));
        }
        (diagnostics.findings().len() == before).then_some(step)
    }

    pub(super) async fn run(&self, context: &StepContext) -> Result<StepDone, StepFailure> {
        let mut sent = 0;
        if self.event.is_some() {
            let filled = self.fill(context, &context.names(), &[Map::new()]).await?;
            for data in filled {
                self.tell(context, "event", data?).await?;
                sent += 1;
            }
        } else {
            for flow in &context.inputs {
                self.send_flow(context, flow).await?;
                sent += 1;
            }
        }
        Ok(StepDone {
            messages: vec![(MessageKind::Information, format!("{sent} requests taken by the endpoint"))],
            result: Some(json!({ "sent": sent })),
            ..StepDone::default()
        })
    }

    /// The event's data for each of `items`, whose names are put over `names`, or what does not fit.
    ///
    /// # Errors
    /// What ended all of it.
    pub(super) async fn fill(
        &self,
        context: &StepContext,
        names: &Map<String, Value>,
        items: &[Map<String, Value>],
    ) -> Result<Vec<Result<Value, StepFailure>>, StepFailure> {
        let wanted = [Wanted::Value(Value::Object(self.data.clone()))];
        let data = |filled: Filled| match filled {
            Ok(values) => Ok(values.into_iter().next().flatten().unwrap_or_default()),
            Err((_, why)) => Err(StepFailure::permanent(format!("the event could not be made: data.{why}"))),
        };
        let filled = context.fill("the event could not be made: ", names, items, &wanted).await?;
        Ok(filled.into_iter().map(data).collect())
    }

    /// Sends the event.
    pub(super) async fn tell(
        &self,
        context: &StepContext,
        key: &str,
        data: Value,
    ) -> Result<(), StepFailure> {
        let envelope = json!({ "EventKind": self.event, "EventCategory": self.category, "Data": data });
        let body =
            serde_json::to_vec(&envelope).map_err(|error| StepFailure::permanent(error.to_string()))?;
        self.send(context, key, "application/json; charset=utf-8", body.into()).await
    }

    async fn send_flow(&self, context: &StepContext, flow: &Flow) -> Result<(), StepFailure> {
        let body = context.read(flow, MAX_BODY).await?;
        self.send(context, &flow.blob.to_string(), &flow.media_type, body).await
    }

    async fn send(
        &self,
        context: &StepContext,
        key: &str,
        media_type: &str,
        body: Bytes,
    ) -> Result<(), StepFailure> {
        let note = format!("sent/{key}");
        if context.noted(&note).await?.is_some() {
            return Ok(());
        }
        if body.len() as u64 > MAX_BODY {
            return Err(StepFailure::permanent(format!(
                "a request carries at most {} MiB",
                MAX_BODY / 1024 / 1024
            )));
        }
        let target =
            context.app.store.subscription_target(context.run.tenant.clone(), self.subscription).await?;
        let url = outbound::read(&target.url).map_err(refused)?;
        let id = format!("{}/{}/{key}", context.run.guid, context.unit);
        let id: String = Sha256::of(id.as_bytes()).to_string().chars().take(32).collect();
        let limit = Duration::from_secs(self.timeout_s.into());
        let sending = async {
            let request = context.app.outbound.request(Method::POST, &url).await.map_err(refused)?;
            let request = signed(request, &target, &format!("msg_{id}"), &body)?
                .header(header::CONTENT_TYPE, media_type)
                .body(body);
            request.send().await.map_err(|error| {
                tracing::debug!(error = %error.without_url(), run = %context.run.guid, "A webhook's endpoint was not reached");
                StepFailure::retryable("the subscription's endpoint could not be reached")
            })
        };
        let answer = tokio::select! {
            answer = tokio::time::timeout(limit, sending) => answer,
            () = context.app.stop.cancelled() => return Err(StepFailure::stopped()),
        };
        let late = || {
            StepFailure::retryable(format!(
                "the subscription's endpoint did not answer within {} s",
                limit.as_secs()
            ))
        };
        let answer = answer.map_err(|_| late())??;
        judge(answer.status())
            .map_err(|failure| StepFailure { after: outbound::retry_after(answer.headers()), ..failure })?;
        context.note(&note, json!(true)).await
    }
}

fn refused(refusal: Refusal) -> StepFailure {
    match refusal {
        Refusal::NotResolved => StepFailure::retryable(refusal.to_string()),
        Refusal::Malformed(_) | Refusal::Forbidden(_) => StepFailure::permanent(refusal.to_string()),
    }
}

/// Adds the signature of Standard Webhooks, and what the subscription says beside it.
fn signed(
    request: reqwest::RequestBuilder,
    target: &DeliveryTarget,
    id: &str,
    body: &[u8],
) -> Result<reqwest::RequestBuilder, StepFailure> {
    let key = sign::key(&target.secret)
        .map_err(|why| StepFailure::permanent(format!("the subscription's secret: {why}")))?;
    let now = clock::unix();
    let request = request
        .header("webhook-id", id)
        .header("webhook-timestamp", now)
        .header("webhook-signature", sign::signature(&key, id, now, body));
    Ok(match &target.auth {
        DeliveryAuth::None => request,
        DeliveryAuth::Basic { username, password } => request.basic_auth(username, Some(password)),
        DeliveryAuth::Bearer { token } => request.bearer_auth(token),
    })
}

/// As with notices to the in-house applications: what may pass is tried again, another refusal is final.
fn judge(status: StatusCode) -> Result<(), StepFailure> {
    let said = format!("the subscription's endpoint answered {}", status.as_u16());
    match status.as_u16() {
        200..=299 => Ok(()),
        300..=399 => Err(StepFailure::permanent(format!("{said}: redirections are not followed"))),
        408 | 425 | 429 | 500..=599 => Err(StepFailure::retryable(said)),
        _ => Err(StepFailure::permanent(said)),
    }
}
