//! What is verified of an offer or a call before anything in it is believed: signatures, audience and times.

use passerelle_protocol::{
    AgentId, Call, Code, CommitMode, Envelope, JobId, JwsError, KeyId, Name, Offer, Sha256, Ticket,
    VerifyingKey,
    limits::{CALL_LIFE, MAX_JSON},
};

/// Whose jobs the agent takes, and who it is.
pub struct Trust<'a> {
    /// The keys that may sign envelopes.
    pub job_keys: &'a [VerifyingKey],
    /// Whether the operator chose them (`[trust] job_keys`): then the hub's own are not among them.
    pub pinned: bool,
    /// The hub's keys, which sign tickets.
    pub ticket_keys: &'a [VerifyingKey],
    /// The agent.
    pub agent: AgentId,
    /// Its tenant.
    pub tenant: &'a Name,
    /// Its site.
    pub site: &'a Name,
    /// The epoch of the connection that the offer came on.
    pub epoch: u64,
}

/// Why an offer is not even looked into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// The stable code.
    pub code: Code,
    /// Why, in a public sentence.
    pub message: String,
}

fn rejected(code: Code, message: impl Into<String>) -> Rejected {
    Rejected { code, message: message.into() }
}

/// What came of an offer or a call, as far as both are verified alike.
pub struct Signed<'a> {
    typ: &'static str,
    job: JobId,
    attempt: u32,
    envelope: &'a str,
    ticket: &'a str,
}

impl<'a> From<&'a Offer> for Signed<'a> {
    fn from(offer: &'a Offer) -> Self {
        let Offer { job, attempt, envelope, ticket, .. } = offer;
        Self { typ: Envelope::TYP, job: *job, attempt: *attempt, envelope, ticket }
    }
}

impl<'a> From<&'a Call> for Signed<'a> {
    fn from(call: &'a Call) -> Self {
        let Call { call: job, envelope, ticket, .. } = call;
        Self { typ: Envelope::CALL_TYP, job: *job, attempt: 1, envelope, ticket }
    }
}

/// What was verified.
#[derive(Debug, Clone, PartialEq)]
pub struct Verified {
    /// What is to be done.
    pub envelope: Envelope,
    /// The key that signed it.
    pub signer: KeyId,
    /// The hub's word on the attempt.
    pub ticket: Ticket,
}

/// Checks signatures, audience and times of a call. Pure.
///
/// # Errors
/// As [`verify`], and for one that lives too long, or asks for what only a job can have.
pub fn verify_call(call: &Call, trust: &Trust<'_>, now: i64) -> Result<Verified, Rejected> {
    let verified = verify(call, trust, now)?;
    let Verified { envelope, ticket, .. } = &verified;
    let most = CALL_LIFE.as_secs().cast_signed();
    for (what, iat, exp) in [("envelope", envelope.iat, envelope.exp), ("ticket", ticket.iat, ticket.exp)] {
        if !(1..=most).contains(&exp.saturating_sub(iat)) {
            let message = format!("the {what} of a call lives 1 to {most} s");
            return Err(rejected(Code::EnvelopeExpired, message));
        }
    }
    if u64::from(envelope.timeout_s) > CALL_LIFE.as_secs() {
        return Err(rejected(Code::SignatureInvalid, format!("a call may take {most} s at most")));
    }
    if ticket.commit != CommitMode::Free || ticket.granted.is_some() || envelope.order_key.is_some() {
        let message = "a call neither waits for leave nor stands in a line";
        return Err(rejected(Code::SignatureInvalid, message));
    }
    Ok(verified)
}

/// Checks signatures, audience and times of an offer or a call. Pure.
///
/// # Errors
/// `signature_invalid`, `envelope_expired` or `replayed`.
pub fn verify<'a>(signed: impl Into<Signed<'a>>, trust: &Trust<'_>, now: i64) -> Result<Verified, Rejected> {
    let offer: Signed<'_> = signed.into();
    let signature = |what: &str, e: &JwsError| rejected(Code::SignatureInvalid, format!("the {what}: {e}"));
    let verified = VerifyingKey::verify_telling::<Envelope>(trust.job_keys, offer.typ, offer.envelope);
    let (envelope, signer) = verified.map_err(|e| match e {
        JwsError::UnknownKey if trust.pinned => rejected(
            Code::SignatureInvalid,
            "the envelope: signed with an unknown key: this agent takes only jobs signed with the keys that its operator \
             pinned (trust.job_keys)",
        ),
        e => signature("envelope", &e),
    })?;
    let ticket = Ticket::verify(trust.ticket_keys, offer.ticket).map_err(|e| signature("ticket", &e))?;
    let wrong = |message: &str| Err(rejected(Code::SignatureInvalid, message));
    if envelope.job != offer.job || ticket.job != offer.job || ticket.attempt != offer.attempt {
        return wrong("offer, ticket and envelope are not of the same job and attempt");
    }
    if ticket.envelope != Sha256::of(offer.envelope.as_bytes()) {
        return wrong("the ticket is for another envelope");
    }
    if ticket.agent != trust.agent {
        return wrong("the ticket is for another agent");
    }
    if &envelope.tenant != trust.tenant || &envelope.site != trust.site {
        return wrong("the envelope is for another tenant or site");
    }
    if envelope.agents.as_ref().is_some_and(|agents| !agents.contains(&trust.agent)) {
        return wrong("the envelope is for other agents of the site");
    }
    if !envelope.params.is_object() || envelope.params.to_string().len() > MAX_JSON {
        return wrong("the parameters are not a JSON object of the allowed size");
    }
    for (what, current, at) in
        [("envelope", envelope.is_current(now), envelope.iat), ("ticket", ticket.is_current(now), ticket.iat)]
    {
        if !current {
            let age = now.saturating_sub(at);
            let message =
                format!("the {what} is not valid now: by the agent's clock it was signed {age} s ago");
            return Err(rejected(Code::EnvelopeExpired, message));
        }
    }
    if ticket.epoch != trust.epoch {
        return Err(rejected(Code::Replayed, "the ticket is of another connection of this agent"));
    }
    Ok(Verified { envelope, signer: signer.id().clone(), ticket })
}
