//! What a hostile or confused hub may send, and what becomes of it.

use super::*;
use passerelle_protocol::{AgentId, Call, CommitMode, JobId, Name, PayloadDigest, SigningKey, Ticket};
use serde_json::json;

struct Case {
    hub: SigningKey,
    other: SigningKey,
    envelope: Envelope,
    ticket: Ticket,
}

const NOW: i64 = 1_790_000_000;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn agent(n: u8) -> AgentId {
    AgentId::new(1, &[n; 10])
}

impl Case {
    fn new() -> Self {
        let job = JobId::new(1, &[1; 10]);
        let envelope = Envelope {
            job,
            tenant: name("acme"),
            site: name("paris"),
            resource: name("compta"),
            operation: name("drop"),
            params: json!({"path": "a.csv"}),
            payload: None,
            timeout_s: 300,
            deadline: NOW + 3600,
            max_attempts: 5,
            repeat: None,
            order_key: None,
            agents: None,
            iat: NOW,
            nbf: NOW,
            exp: NOW + 900,
        };
        let ticket = Ticket {
            job,
            attempt: 1,
            agent: agent(1),
            epoch: 7,
            commit: CommitMode::Free,
            granted: None,
            envelope: Sha256::of(b""),
            iat: NOW,
            exp: NOW + 900,
        };
        let key = || SigningKey::generate().unwrap().0;
        Self { hub: key(), other: key(), envelope, ticket }
    }

    /// An offer as an honest hub makes it.
    fn offer(&self) -> Offer {
        self.signed(&self.hub, &self.hub)
    }

    fn signed(&self, envelope_key: &SigningKey, ticket_key: &SigningKey) -> Offer {
        let envelope = self.envelope.sign(envelope_key).unwrap();
        let ticket = Ticket { envelope: Sha256::of(envelope.as_bytes()), ..self.ticket.clone() };
        Offer {
            job: self.envelope.job,
            attempt: self.ticket.attempt,
            envelope,
            ticket: ticket.sign(ticket_key).unwrap(),
            payload: None,
            traceparent: None,
        }
    }

    fn verify(&self, offer: &Offer, now: i64) -> Result<Verified, Rejected> {
        let keys = [self.hub.public().clone()];
        let (tenant, site) = (name("acme"), name("paris"));
        let trust = Trust {
            job_keys: &keys,
            pinned: false,
            ticket_keys: &keys,
            agent: agent(1),
            tenant: &tenant,
            site: &site,
            epoch: 7,
        };
        verify(offer, &trust, now)
    }

    fn check(&self, offer: &Offer, code: Code, message: &str) {
        let rejected = self.verify(offer, NOW).unwrap_err();
        assert_eq!(rejected.code, code, "{}", rejected.message);
        assert!(rejected.message.contains(message), "{}", rejected.message);
    }
}

#[test]
fn an_honest_offer_passes() {
    let case = Case::new();
    assert_eq!(case.verify(&case.offer(), NOW).unwrap().envelope, case.envelope);
    let mut named = Case::new();
    named.envelope.agents = Some(vec![agent(2), agent(1)]);
    assert!(named.verify(&named.offer(), NOW).is_ok());
}

#[test]
fn forged_signatures_are_refused() {
    let case = Case::new();
    case.check(
        &case.signed(&case.other, &case.hub),
        Code::SignatureInvalid,
        "the envelope: signed with an unknown key",
    );
    case.check(
        &case.signed(&case.hub, &case.other),
        Code::SignatureInvalid,
        "the ticket: signed with an unknown key",
    );
    let mut offer = case.offer();
    let mut widened = case.envelope.clone();
    widened.params = json!({"path": "b.csv"});
    let theirs = widened.sign(&case.other).unwrap();
    let (header, _) = offer.envelope.split_once('.').unwrap();
    let (_, rest) = theirs.split_once('.').unwrap();
    offer.envelope = format!("{header}.{rest}");
    case.check(&offer, Code::SignatureInvalid, "the signature does not fit");
    let mut offer = case.offer();
    offer.envelope = "nothing".into();
    case.check(&offer, Code::SignatureInvalid, "malformed");
    // A ticket in the envelope's place has the wrong kind.
    let mut offer = case.offer();
    offer.envelope = offer.ticket.clone();
    case.check(&offer, Code::SignatureInvalid, "wrong kind of token");
}

#[test]
fn mixed_parts_are_refused() {
    let mut case = Case::new();
    let first = case.offer();
    case.envelope.params = json!({"path": "b.csv"});
    let second = case.offer();
    case.check(
        &Offer { envelope: second.envelope, ..first.clone() },
        Code::SignatureInvalid,
        "another envelope",
    );
    case.check(&Offer { attempt: 2, ..first.clone() }, Code::SignatureInvalid, "same job and attempt");
    let job = JobId::new(1, &[2; 10]);
    case.check(&Offer { job, ..first }, Code::SignatureInvalid, "same job and attempt");
}

#[test]
fn what_is_for_others_is_refused() {
    let mut case = Case::new();
    case.envelope.site = name("lyon");
    case.check(&case.offer(), Code::SignatureInvalid, "another tenant or site");
    let mut case = Case::new();
    case.envelope.tenant = name("globex");
    case.check(&case.offer(), Code::SignatureInvalid, "another tenant or site");
    let mut case = Case::new();
    case.envelope.agents = Some(vec![agent(2)]);
    case.check(&case.offer(), Code::SignatureInvalid, "other agents of the site");
    let mut case = Case::new();
    case.ticket.agent = agent(2);
    case.check(&case.offer(), Code::SignatureInvalid, "another agent");
    let mut case = Case::new();
    case.ticket.epoch = 6;
    case.check(&case.offer(), Code::Replayed, "another connection");
    let mut case = Case::new();
    case.envelope.params = json!(["a.csv"]);
    case.check(&case.offer(), Code::SignatureInvalid, "not a JSON object");
}

#[test]
fn expired_and_future_offers_are_refused_within_the_tolerated_skew() {
    let case = Case::new();
    let offer = case.offer();
    for ok in [NOW - 60, NOW, NOW + 960] {
        assert!(case.verify(&offer, ok).is_ok(), "{ok}");
    }
    for late in [NOW - 61, NOW + 961, NOW + 86_400] {
        assert_eq!(case.verify(&offer, late).unwrap_err().code, Code::EnvelopeExpired, "{late}");
    }
    let mut case = Case::new();
    case.ticket.exp = NOW - 100;
    case.check(&case.offer(), Code::EnvelopeExpired, "the ticket is not valid now");
}

#[test]
fn an_inline_payload_must_be_the_announced_one() {
    let mut case = Case::new();
    let inline = |bytes: &[u8]| Some(PayloadSource::Inline { data: STANDARD.encode(bytes) });
    assert_eq!(payload(&case.envelope, inline(b"ignored")).unwrap(), Payload::None);
    case.envelope.payload =
        Some(PayloadDigest { size: 3, sha256: Sha256::of(b"abc"), media_type: "text/csv".into() });
    assert_eq!(payload(&case.envelope, inline(b"abc")).unwrap(), Payload::Inline(b"abc".as_slice().into()));
    assert_eq!(payload(&case.envelope, Some(PayloadSource::Hub)).unwrap(), Payload::AtHub);
    for wrong in
        [inline(b"abd"), inline(b"abcd"), inline(b""), None, Some(PayloadSource::Inline { data: "!".into() })]
    {
        assert_eq!(payload(&case.envelope, wrong).unwrap_err().code, Code::DigestMismatch);
    }
}

/// The same as a call.
fn as_call(case: &Case) -> Call {
    let envelope = case.envelope.sign_call(&case.hub).unwrap();
    let ticket = Ticket { envelope: Sha256::of(envelope.as_bytes()), ..case.ticket.clone() };
    let ticket = ticket.sign(&case.hub).unwrap();
    Call { call: case.envelope.job, envelope, ticket, payload: None, traceparent: None }
}

fn verified(case: &Case, call: &Call) -> Result<Verified, Rejected> {
    let keys = [case.hub.public().clone()];
    let (tenant, site) = (name("acme"), name("paris"));
    let trust = Trust {
        job_keys: &keys,
        pinned: false,
        ticket_keys: &keys,
        agent: agent(1),
        tenant: &tenant,
        site: &site,
        epoch: 7,
    };
    verify_call(call, &trust, NOW)
}

fn short_lived() -> Case {
    let mut case = Case::new();
    case.envelope.exp = NOW + 60;
    case.envelope.timeout_s = 60;
    case.ticket.exp = NOW + 60;
    case
}

#[test]
fn a_call_is_short_lived_and_no_job_and_a_job_is_no_call() {
    let case = short_lived();
    let call = as_call(&case);
    assert_eq!(verified(&case, &call).unwrap().envelope, case.envelope);
    let offer = case.offer();
    let job = Call { envelope: offer.envelope, ticket: offer.ticket, ..call.clone() };
    assert_eq!(verified(&case, &job).unwrap_err().code, Code::SignatureInvalid);
    let call = Offer {
        job: call.call,
        attempt: 1,
        envelope: call.envelope,
        ticket: call.ticket,
        payload: None,
        traceparent: None,
    };
    case.check(&call, Code::SignatureInvalid, "wrong kind of token");
    let spoilt = |spoil: &dyn Fn(&mut Case)| {
        let mut case = short_lived();
        spoil(&mut case);
        verified(&case, &as_call(&case)).unwrap_err().code
    };
    assert_eq!(spoilt(&|case| case.envelope.exp += 1), Code::EnvelopeExpired);
    assert_eq!(spoilt(&|case| case.ticket.exp += 1), Code::EnvelopeExpired);
    assert_eq!(spoilt(&|case| case.envelope.iat = i64::MIN), Code::EnvelopeExpired);
    assert_eq!(spoilt(&|case| case.envelope.timeout_s = 61), Code::SignatureInvalid);
    assert_eq!(spoilt(&|case| case.ticket.commit = CommitMode::Ask), Code::SignatureInvalid);
    assert_eq!(spoilt(&|case| case.ticket.attempt = 2), Code::SignatureInvalid);
    assert_eq!(spoilt(&|case| case.ticket.epoch = 8), Code::Replayed);
}
