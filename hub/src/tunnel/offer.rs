//! Makes an offer: the signed envelope, the ticket that binds it to the attempt, and the payload.

use crate::{
    clock,
    model::{AttemptToOffer, NewJob, PayloadRef},
    store::{Content, Error, Store},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use passerelle_protocol::{
    AgentId, Envelope, JwsError, Offer, PayloadDigest, PayloadSource, Sha256, SigningKey, Ticket,
    limits::{ENVELOPE_LIFE, MAX_INLINE_PAYLOAD},
};

/// Signs, with the hub's key that the agent was told of, the offer of an attempt to an agent, over its connection `epoch`.
pub(super) async fn make(
    store: &Store,
    key: &SigningKey,
    agent: AgentId,
    epoch: u64,
    to_offer: AttemptToOffer,
) -> Result<Offer, Error> {
    let AttemptToOffer { job, attempt, commit, granted } = to_offer;
    let (id, traceparent) = (job.id, job.traceparent.clone());
    let payload = match &job.payload {
        Some(payload) => Some(source(store, payload).await?),
        None => None,
    };
    let iat = clock::unix();
    let exp = iat.saturating_add(ENVELOPE_LIFE.as_secs().cast_signed());
    let unsigned = |e: JwsError| Error::Internal(format!("cannot sign: {e}"));
    let envelope = match &job.envelope {
        // The client's word, to the letter: the agent verifies it with a key that the hub does not have.
        Some(signed) => signed.text.to_string(),
        None => envelope(job, iat, exp).sign(key).map_err(unsigned)?,
    };
    let ticket = Ticket {
        job: id,
        attempt,
        agent,
        epoch,
        commit,
        envelope: Sha256::of(envelope.as_bytes()),
        granted,
        iat,
        exp,
    };
    let ticket = ticket.sign(key).map_err(unsigned)?;
    Ok(Offer { job: id, attempt, envelope, ticket, payload, traceparent })
}

fn envelope(job: NewJob, iat: i64, exp: i64) -> Envelope {
    Envelope {
        job: job.id,
        tenant: job.tenant,
        site: job.site,
        resource: job.resource,
        operation: job.operation,
        params: job.params,
        payload: job.payload.map(|payload| PayloadDigest {
            size: payload.size,
            sha256: payload.sha256,
            media_type: payload.media_type,
        }),
        timeout_s: job.timeout_s,
        deadline: job.deadline.as_second(),
        max_attempts: job.max_attempts,
        repeat: None,
        order_key: job.order_key,
        agents: None,
        iat,
        nbf: iat,
        exp,
    }
}

/// Small payloads go with the offer, larger ones are fetched beside the tunnel.
async fn source(store: &Store, payload: &PayloadRef) -> Result<PayloadSource, Error> {
    if let Some(data) = &payload.data {
        return Ok(PayloadSource::Inline { data: STANDARD.encode(data) });
    }
    if payload.size > MAX_INLINE_PAYLOAD as u64 {
        return Ok(PayloadSource::Hub);
    }
    // Small content that came with an event is in the database.
    let (files, blob) = (store.files().clone(), payload.blob);
    let (_, content) = store.read(move |conn| files.find(conn, blob, None)).await?;
    let data = match content {
        Content::Bytes(bytes) => STANDARD.encode(bytes),
        Content::File(path) => STANDARD.encode(tokio::fs::read(path).await?),
    };
    Ok(PayloadSource::Inline { data })
}
