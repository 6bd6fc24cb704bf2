//! Enrolment: a one-time token and a new public key for an identity. The key is on disk before the hub is asked, so
//! a lost answer is repeated with the same key, which the hub takes as the same enrolment.

use crate::{
    VERSION,
    exit::Stop,
    hub::{Hub, Refused, body, retry_after},
    identity::{Identity, fingerprint, load_or_make_key},
    settings::Settings,
    state::StateDir,
};
use passerelle_protocol::{
    SigningKey,
    http::{ENROL_PATH, EnrolRequest, EnrolResponse},
};
use std::time::Duration;

/// Why the agent could not enrol.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// Worth another try: the hub is away, busy, or something else answers in its place.
    #[error("{message}")]
    Later {
        /// What happened.
        message: String,
        /// When to come back, if the hub said so.
        after: Option<Duration>,
    },
    /// The hub refused for good, or something here is wrong.
    #[error("{0}")]
    Stop(#[from] Stop),
}

/// What the hub is asked with.
pub struct Request<'a> {
    /// The one-time token.
    pub token: String,
    /// The new key.
    pub key: &'a SigningKey,
    /// The statement about the identity that ends with this one.
    pub replaces: Option<String>,
}

/// Enrols once.
///
/// # Errors
/// See [`EnrolError`].
pub async fn enrol(settings: &Settings, state: &StateDir, hub: &Hub) -> Result<Identity, EnrolError> {
    let token = token(settings)?;
    let key = load_or_make_key(state)?;
    let answer = ask(settings, hub, Request { token, key: &key.0, replaces: None }).await?;
    Ok(Identity::create(state, answer, hub.url.to_string(), key)?)
}

/// The configured token.
pub fn token(settings: &Settings) -> Result<String, Stop> {
    let Some(reference) = &settings.config.hub.enrolment_token else {
        return Err(Stop::Configuration(format!(
            "an enrolment token is needed and hub.enrolment_token is not set: {}",
            how_to_get_a_token()
        )));
    };
    let token = reference
        .read(&settings.config.dir)
        .map_err(|e| Stop::Configuration(format!("hub.enrolment_token: {e}: {}", how_to_get_a_token())))?;
    Ok(token.expose().to_owned())
}

/// Asks the hub for an identity.
///
/// # Errors
/// See [`EnrolError`].
pub async fn ask(settings: &Settings, hub: &Hub, request: Request<'_>) -> Result<EnrolResponse, EnrolError> {
    let request = EnrolRequest {
        token: request.token,
        public_key: request.key.public().clone(),
        replaces: request.replaces,
        name: settings.name.clone(),
        agent_version: VERSION.to_owned(),
    };
    let later = |message: String| EnrolError::Later { message, after: None };
    let response = match hub.request(reqwest::Method::POST, ENROL_PATH).json(&request).send().await {
        Ok(response) => response,
        Err(e) => {
            return Err(later(format!("the hub {} cannot be reached: {}", hub.url, hub.diagnose(&e).await)));
        }
    };
    let (status, headers) = (response.status(), response.headers().clone());
    let body = body(response)
        .await
        .map_err(|e| later(format!("the hub's answer broke off: {}", hub.explain(&e))))?;
    if status.is_success() {
        let answer: EnrolResponse =
            serde_json::from_slice(&body).map_err(|_| later(not_a_hub(hub, status)))?;
        if answer.job_keys.is_empty() || answer.audience.is_empty() {
            let lacks = if answer.audience.is_empty() { "an audience" } else { "a key that signs jobs" };
            return Err(later(format!(
                "{} answered without {lacks}: have whoever runs the hub look",
                hub.url
            )));
        }
        if let Some(clock) = crate::clock::difference(answer.server_time, 30) {
            tracing::warn!("{clock}");
        }
        tracing::info!(
            agent_id = %answer.agent, tenant = %answer.tenant, site = %answer.site,
            application = answer.application, job_keys = fingerprint(&answer.job_keys), "Enrolled"
        );
        return Ok(answer);
    }
    let Some(refused) = Refused::read(status, &headers, &body) else {
        return Err(EnrolError::Later { message: not_a_hub(hub, status), after: retry_after(&headers) });
    };
    if status.is_server_error() || status.as_u16() == 429 || status.as_u16() == 408 {
        return Err(EnrolError::Later {
            message: format!("the hub cannot enrol just now: {refused}"),
            after: refused.retry_after,
        });
    }
    Err(Stop::Refused(format!("the hub refused the enrolment: {refused}; {}", how_to_get_a_token())).into())
}

fn not_a_hub(hub: &Hub, status: reqwest::StatusCode) -> String {
    format!(
        "{} does not answer as a Passerelle hub (HTTP status {status}): check hub.url, and whether a proxy or login \
         page answers in its place",
        hub.url
    )
}

/// What to do without a usable token.
pub fn how_to_get_a_token() -> &'static str {
    "make a new token at the hub with `passerelle-hub admin enrolment-token create --tenant NAME --site SITE \
     --application orchestrator|hub` and put it where hub.enrolment_token says"
}
