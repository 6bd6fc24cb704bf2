//! Offers whose signatures, audience, times or numbers are not what they must be.

use super::{Attack, Outcome, world::World};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use passerelle_protocol::{AgentId, AgentToken, Envelope, Sha256, SigningKey, Ticket};
use passerelle_tests::Draft;
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::Arc;

const SIGNATURE: Outcome = Outcome::Declined("signature_invalid");
const EXPIRED: Outcome = Outcome::Declined("envelope_expired");
const REPLAYED: Outcome = Outcome::Declined("replayed");

pub(super) fn attacks(world: &World) -> Vec<Attack> {
    let stranger = Arc::new(SigningKey::generate().unwrap().0);
    let someone = AgentId::new(1, &[9; 10]);
    let spoilt = |change: &dyn Fn(&mut Draft)| {
        let mut draft = world.drop("in/a.csv");
        change(&mut draft);
        draft.message()
    };
    let mut all = vec![
        Attack::new(
            "an envelope of a stranger",
            spoilt(&|d| d.envelope_key = Arc::clone(&stranger)),
            SIGNATURE,
        ),
        Attack::new("a ticket of a stranger", spoilt(&|d| d.ticket_key = Arc::clone(&stranger)), SIGNATURE),
        Attack::new("a ticket for another envelope", spoilt(&|d| d.of_other_envelope = true), SIGNATURE),
        Attack::new("a ticket for another agent", spoilt(&|d| d.agent = someone), SIGNATURE),
        Attack::new("another site", spoilt(&|d| d.envelope.site = "lyon".parse().unwrap()), SIGNATURE),
        Attack::new("another tenant", spoilt(&|d| d.envelope.tenant = "other".parse().unwrap()), SIGNATURE),
        Attack::new(
            "for other agents of the site",
            spoilt(&|d| d.envelope.agents = Some(vec![someone])),
            SIGNATURE,
        ),
        Attack::new("for no agent at all", spoilt(&|d| d.envelope.agents = Some(Vec::new())), SIGNATURE),
        Attack::new("parameters that are a list", spoilt(&|d| d.envelope.params = json!([])), SIGNATURE),
        Attack::new(
            "parameters of half a megabyte",
            spoilt(&|d| d.envelope.params = json!({"path": "x".repeat(500_000)})),
            SIGNATURE,
        ),
        Attack::new(
            "an envelope of last hour",
            spoilt(&|d| {
                d.envelope.iat -= 3600;
                d.envelope.nbf -= 3600;
                d.envelope.exp = d.envelope.iat + 900;
            }),
            EXPIRED,
        ),
        Attack::new("a ticket of last hour", spoilt(&|d| d.life = -3600), EXPIRED),
        Attack::new("an envelope for later", spoilt(&|d| d.envelope.nbf += 3600), EXPIRED),
        Attack::new("times at the end of all time", spoilt(&|d| d.envelope.nbf = i64::MAX), EXPIRED),
        Attack::new("times before all time", spoilt(&|d| d.envelope.exp = i64::MIN), EXPIRED),
        Attack::new("a ticket of a later connection", spoilt(&|d| d.epoch = u64::MAX), REPLAYED),
        Attack::new("a ticket of no connection", spoilt(&|d| d.epoch = 0), REPLAYED),
    ];
    let draft = || world.drop("in/a.csv");
    let with_envelope = |change: &dyn Fn(&Draft) -> String| {
        let draft = draft();
        let envelope = change(&draft);
        let mut offer = draft.message();
        // Bound to the changed text, so that it is the envelope itself that is refused.
        offer["ticket"] = json!(ticket(&draft, &envelope).sign(&draft.ticket_key).unwrap());
        offer["envelope"] = json!(envelope);
        offer
    };
    let signed = |draft: &Draft| draft.envelope.sign(&draft.envelope_key).unwrap();
    let own = |change: &dyn Fn(String) -> String| with_envelope(&|draft| change(signed(draft)));
    let part = |token: &str, number: usize| token.split('.').nth(number).unwrap().to_owned();
    for (name, offer) in [
        ("no signature at all", own(&|token| format!("{}.{}.", part(&token, 0), part(&token, 1)))),
        (
            "algorithm none",
            own(&|token| crafted(&json!({"alg": "none", "typ": Envelope::TYP}), &part(&token, 1), "")),
        ),
        (
            "algorithm none in capitals",
            own(&|token| crafted(&json!({"alg": "NONE"}), &part(&token, 1), &part(&token, 2))),
        ),
        (
            "the public key as a shared secret",
            with_envelope(&|draft| {
                let claims = part(&signed(draft), 1);
                let header =
                    json!({"alg": "HS256", "typ": Envelope::TYP, "kid": draft.envelope_key.public().id()});
                let text = format!("{}.{claims}", BASE64.encode(header.to_string()));
                let key = aws_lc_rs::hmac::Key::new(
                    aws_lc_rs::hmac::HMAC_SHA256,
                    draft.envelope_key.public().bytes(),
                );
                format!("{text}.{}", BASE64.encode(aws_lc_rs::hmac::sign(&key, text.as_bytes())))
            }),
        ),
        (
            "a key that comes with the token",
            with_envelope(&|draft| {
                let pair = Ed25519KeyPair::generate().unwrap();
                let x = BASE64.encode(pair.public_key().as_ref());
                let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": x});
                let kid = draft.envelope_key.public().id();
                signed_by(
                    &pair,
                    &json!({"alg": "EdDSA", "typ": Envelope::TYP, "kid": kid, "jwk": jwk}),
                    &draft.envelope,
                )
            }),
        ),
        (
            "a key by address",
            with_envelope(&|draft| {
                let pair = Ed25519KeyPair::generate().unwrap();
                let header = json!({"alg": "EdDSA", "typ": Envelope::TYP, "jku": "http://127.0.0.1:9/keys"});
                signed_by(&pair, &header, &draft.envelope)
            }),
        ),
        (
            "a ticket in the place of the envelope",
            with_envelope(&|draft| ticket(draft, "x").sign(&draft.ticket_key).unwrap()),
        ),
        (
            "an agent's token in the place of the envelope",
            with_envelope(&|draft| {
                let now = draft.envelope.iat;
                let token = AgentToken {
                    sub: draft.agent,
                    aud: "x".to_owned(),
                    iat: now,
                    exp: now + 60,
                    jti: "x".to_owned(),
                };
                draft.envelope_key.sign(AgentToken::TYP, &token).unwrap()
            }),
        ),
        (
            "a changed claim under the old signature",
            own(&|token| {
                let claims = String::from_utf8(BASE64.decode(part(&token, 1)).unwrap()).unwrap();
                let claims = BASE64.encode(claims.replace("in/a.csv", "in/b.csv"));
                format!("{}.{claims}.{}", part(&token, 0), part(&token, 2))
            }),
        ),
        (
            "the signature of another envelope",
            with_envelope(&|draft| {
                let other = signed(&world.drop("in/b.csv"));
                let own = signed(draft);
                format!("{}.{}.{}", part(&own, 0), part(&own, 1), part(&other, 2))
            }),
        ),
        ("a signature cut short", own(&|token| token[..token.len() - 4].to_owned())),
        ("a fourth part", own(&|token| format!("{token}.e30"))),
        ("padding at the end", own(&|token| format!("{token}=="))),
        ("white space around", own(&|token| format!(" {token}\n"))),
        (
            "a signature of zeros",
            own(&|token| format!("{}.{}.{}", part(&token, 0), part(&token, 1), BASE64.encode([0u8; 64]))),
        ),
        (
            "claims of another shape",
            with_envelope(&|draft| {
                draft.envelope_key.sign(Envelope::TYP, &json!({"job": draft.job(), "params": {}})).unwrap()
            }),
        ),
        (
            "claims nested ten thousand deep",
            with_envelope(&|draft| {
                let pair = Ed25519KeyPair::generate().unwrap();
                let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
                let header =
                    json!({"alg": "EdDSA", "typ": Envelope::TYP, "kid": draft.envelope_key.public().id()});
                let text = format!("{}.{}", BASE64.encode(header.to_string()), BASE64.encode(deep));
                format!("{text}.{}", BASE64.encode(pair.sign(text.as_bytes())))
            }),
        ),
        ("nothing as an envelope", own(&|_| String::new())),
    ] {
        all.push(Attack::new(name, offer, SIGNATURE));
    }
    let mut swapped = draft().message();
    swapped["job"] = json!(draft().job());
    all.push(Attack::new("an offer under another job's name", swapped, SIGNATURE));
    let mut raised = draft().message();
    raised["attempt"] = json!(2);
    all.push(Attack::new("an offer under a later attempt's number", raised, SIGNATURE));
    all
}

/// The ticket that the draft would get with this envelope.
fn ticket(draft: &Draft, envelope: &str) -> Ticket {
    Ticket {
        job: draft.job(),
        attempt: draft.attempt,
        agent: draft.agent,
        epoch: draft.epoch,
        commit: draft.commit,
        envelope: Sha256::of(envelope.as_bytes()),
        granted: draft.granted.clone(),
        iat: draft.envelope.iat,
        exp: draft.envelope.iat + draft.life,
    }
}

fn crafted(header: &Value, claims: &str, signature: &str) -> String {
    format!("{}.{claims}.{signature}", BASE64.encode(header.to_string()))
}

fn signed_by(pair: &Ed25519KeyPair, header: &Value, claims: &impl Serialize) -> String {
    let claims = BASE64.encode(serde_json::to_vec(claims).unwrap());
    let text = format!("{}.{claims}", BASE64.encode(header.to_string()));
    format!("{text}.{}", BASE64.encode(pair.sign(text.as_bytes())))
}
