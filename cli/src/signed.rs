//! Signing a job on this side: the envelope of a submission, and a new one for a retry.

use crate::{
    Failure,
    args::{Retry, Submit, call::Call},
    client::Client,
    keys, submission,
};
use passerelle_protocol::{Envelope, JobId, Name, PayloadDigest, SigningKey, limits::CALL_LIFE};
use serde_json::{Map, Value, json};
use std::{
    fmt::Display,
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// As the hub's default.
const DEADLINE: Duration = Duration::from_secs(24 * 3600);
const TIMEOUT_S: u32 = 300;
const ATTEMPTS: u32 = 5;

fn now() -> Result<Duration, Failure> {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_err(|_| Failure::usage("this machine's clock stands before 1970: set it"))
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

fn read<T: FromStr<Err: Display>>(flag: &str, text: &str) -> Result<T, Failure> {
    text.parse().map_err(|e| Failure::usage(format!("--{flag}: {e}")))
}

fn sign(claims: &Envelope, key: &SigningKey) -> Result<String, Failure> {
    claims.sign(key).map_err(|e| Failure::usage(format!("--sign-key: {e}")))
}

/// The body of a signed submission: the envelope, and beside it what does not decide the effect.
///
/// # Errors
/// A usage failure for what cannot be signed; a hub failure if the tenant has to be asked for and is not told.
pub(crate) async fn body(
    client: &Client,
    submit: &Submit,
    mut body: Map<String, Value>,
    payload: Option<PayloadDigest>,
    key: &SigningKey,
) -> Result<Map<String, Value>, Failure> {
    let tenant = match &submit.tenant {
        Some(tenant) => read("tenant", tenant)?,
        None => tenant(client).await?,
    };
    let now = now()?;
    let agents = submit.agents.iter().map(|id| read("agent", id)).collect::<Result<Vec<_>, _>>()?;
    let deadline = seconds(now.saturating_add(submit.deadline.unwrap_or(DEADLINE)));
    let timeout_s = submit.timeout.map(|timeout| u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX));
    let claims = Envelope {
        job: new_id(now)?,
        tenant,
        site: read("site", &submit.site)?,
        resource: read("resource", &submit.resource)?,
        operation: read("operation", &submit.operation)?,
        params: body.remove("params").unwrap_or_else(|| json!({})),
        payload,
        timeout_s: timeout_s.unwrap_or(TIMEOUT_S),
        deadline,
        max_attempts: submit.max_attempts.unwrap_or(ATTEMPTS),
        repeat: None,
        order_key: submit.order_key.clone(),
        agents: if agents.is_empty() { None } else { Some(agents) },
        iat: seconds(now),
        nbf: seconds(now),
        exp: deadline,
    };
    let mut signed = Map::from_iter([("envelope".to_owned(), json!(sign(&claims, key)?))]);
    for beside in ["priority", "labels"] {
        if let Some(value) = body.remove(beside) {
            signed.insert(beside.to_owned(), value);
        }
    }
    Ok(signed)
}

/// The body of a signed call: the envelope alone.
///
/// # Errors
/// As [`body`].
pub(crate) async fn call(
    client: &Client,
    command: &Call,
    payload: Option<PayloadDigest>,
    key: &SigningKey,
) -> Result<Map<String, Value>, Failure> {
    let tenant = match &command.tenant {
        Some(tenant) => read("tenant", tenant)?,
        None => tenant(client).await?,
    };
    let params = submission::params(command.params.as_deref(), &command.param)?;
    let agents = command.agents.iter().map(|id| read("agent", id)).collect::<Result<Vec<_>, _>>()?;
    // The last thing before it is sent: it lives for a minute.
    let now = now()?;
    let iat = seconds(now);
    let claims = Envelope {
        job: new_id(now)?,
        tenant,
        site: read("site", &command.site)?,
        resource: read("resource", &command.resource)?,
        operation: read("operation", &command.operation)?,
        params: Value::Object(params),
        payload,
        timeout_s: u32::try_from(command.timeout.as_secs()).unwrap_or(u32::MAX),
        deadline: iat.saturating_add(seconds(command.timeout)),
        max_attempts: 1,
        repeat: None,
        order_key: None,
        agents: if agents.is_empty() { None } else { Some(agents) },
        iat,
        nbf: iat,
        exp: iat.saturating_add(seconds(CALL_LIFE)),
    };
    let envelope = claims.sign_call(key).map_err(|e| Failure::usage(format!("--sign-key: {e}")))?;
    Ok(Map::from_iter([("envelope".to_owned(), json!(envelope))]))
}

fn new_id(now: Duration) -> Result<JobId, Failure> {
    let mut random = [0; 10];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| Failure::usage("the system's random source failed"))?;
    Ok(JobId::new(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), &random))
}

/// The tenant of the API key, as the hub says. An agent refuses what was signed for another tenant than its own.
async fn tenant(client: &Client) -> Result<Name, Failure> {
    let told = client.header("v1/sites", "passerelle-tenant").await.map_err(|failure| {
        Failure::hub(format!("the tenant cannot be asked for ({}): give --tenant", failure.message))
    })?;
    let told = told.and_then(|name| name.parse().ok());
    told.ok_or_else(|| Failure::hub("the hub does not tell the tenant of this API key: give --tenant"))
}

/// The body of a retry; with a key it is signed anew: the same effect, new times. What the job does is taken from the
/// envelope that this key signed before, never from the hub's word.
///
/// # Errors
/// A usage failure if this key did not sign the job.
pub(crate) async fn renewed(client: &Client, retry: &Retry) -> Result<Value, Failure> {
    let Some(file) = &retry.sign_key else { return Ok(json!({})) };
    let key = keys::read(file)?;
    let id: JobId = retry.id.parse().map_err(|_| Failure::usage(format!("{:?} is no job id", retry.id)))?;
    let job = client.job(&retry.id).await?;
    let told = client.get(&format!("v1/jobs/{id}/envelope"), &[]).await?;
    let text = told.get("envelope").and_then(Value::as_str).unwrap_or_default();
    let before = Envelope::verify([key.public()], text).map_err(|e| {
        Failure::usage(format!("--sign-key: the job's envelope was not signed with this key: {e}"))
    })?;
    if before.job != id {
        return Err(Failure::hub("the hub told the envelope of another job"));
    }
    let made = job.get("attempts").and_then(Value::as_array).map_or(0, Vec::len);
    let now = now()?;
    let had = u64::try_from(before.deadline.saturating_sub(before.iat)).unwrap_or(DEADLINE.as_secs());
    let deadline = seconds(now.saturating_add(retry.deadline.unwrap_or(Duration::from_secs(had))));
    let claims = Envelope {
        max_attempts: u32::try_from(made)
            .unwrap_or(u32::MAX)
            .saturating_add(retry.max_attempts.unwrap_or(ATTEMPTS)),
        deadline,
        iat: seconds(now),
        nbf: seconds(now),
        exp: deadline,
        ..before
    };
    Ok(json!({ "envelope": sign(&claims, &key)? }))
}
