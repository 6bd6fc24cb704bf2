//! The example messages of `fixtures/v1`: each decodes, encodes to the same JSON, and fits the others.

#![expect(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

use base64::{Engine as _, engine::general_purpose::STANDARD};
use passerelle_protocol::{
    AgentKey, AgentToken, ChangeEvent, Envelope, FileEvent, HubKey, JwsError, NotificationEvent,
    PayloadSource, Receipt, Sha256, SigningKey, Ticket, ToAgent, ToHub, VerifyingKey, decode_to_agent,
    decode_to_hub,
    http::{EnrolRequest, EnrolResponse, KeyRequest, KeyResponse, Problem},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::{collections::BTreeMap, fs, path::Path};

/// The private keys of the examples: PKCS#8 around the seeds of RFC 8037 appendix A.1 and RFC 8032 §7.1 test 2.
const HUB_SEED: &str = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
const AGENT_SEED: &str = "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb";
/// Those that follow them: RFC 8032 §7.1 test 3 for the hub, test 1024 for the agent.
const NEXT_HUB_SEED: &str = "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7";
const NEXT_AGENT_SEED: &str = "f5e5767cf153319517630f226876b86c8160cc583bc013744c6bf255f5cc0ee5";
const PKCS8: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

fn fixtures() -> BTreeMap<String, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/v1");
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            (path.file_stem().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(path).unwrap())
        })
        .collect()
}

fn read<T: DeserializeOwned>(name: &str) -> T {
    serde_json::from_str(&fixtures()[name]).unwrap()
}

fn again<T: DeserializeOwned + Serialize>(text: &str) -> Value {
    serde_json::to_value(serde_json::from_str::<T>(text).unwrap()).unwrap()
}

fn key(seed: &str) -> SigningKey {
    let seed: Sha256 = seed.parse().unwrap();
    SigningKey::from_pkcs8(&[&PKCS8[..], seed.bytes()].concat()).unwrap()
}

#[test]
fn every_fixture_reads_and_writes_back_the_same() {
    for (name, text) in fixtures() {
        let value: Value = serde_json::from_str(&text).unwrap();
        let kind: Vec<&str> = name.split('.').collect();
        let back = match kind[..] {
            ["to_hub", tag, ..] => {
                assert_eq!(value["type"], tag, "{name}");
                serde_json::from_str(&decode_to_hub(&text).unwrap().encode().unwrap()).unwrap()
            }
            ["to_agent", tag, ..] => {
                assert_eq!(value["type"], tag, "{name}");
                serde_json::from_str(&decode_to_agent(&text).unwrap().encode().unwrap()).unwrap()
            }
            ["http", "enrol_request", ..] => again::<EnrolRequest>(&text),
            ["http", "enrol_response", ..] => again::<EnrolResponse>(&text),
            ["http", "key_request", ..] => again::<KeyRequest>(&text),
            ["http", "key_response", ..] => again::<KeyResponse>(&text),
            ["http", "problem", ..] => again::<Problem>(&text),
            ["claims", "envelope", ..] => again::<Envelope>(&text),
            ["claims", "ticket", ..] => again::<Ticket>(&text),
            ["claims", "agent_token", ..] => again::<AgentToken>(&text),
            ["claims", "agent_key", ..] => again::<AgentKey>(&text),
            ["claims", "hub_key", ..] => again::<HubKey>(&text),
            ["claims", "receipt", ..] => again::<Receipt>(&text),
            _ => panic!("nothing reads {name}.json"),
        };
        assert_eq!(back, value, "{name}");
    }
}

#[test]
fn every_message_and_claim_has_a_fixture() {
    let names: Vec<String> = fixtures().into_keys().collect();
    let others = [
        "http.enrol_request",
        "http.enrol_response",
        "http.key_request",
        "http.key_response",
        "http.problem",
        "claims.agent_key",
        "claims.hub_key",
        "claims.envelope",
        "claims.ticket",
        "claims.agent_token",
        "claims.receipt",
    ];
    let to_hub = ToHub::TYPES.iter().map(|tag| format!("to_hub.{tag}"));
    let to_agent = ToAgent::TYPES.iter().map(|tag| format!("to_agent.{tag}"));
    for wanted in to_hub.chain(to_agent).chain(others.map(str::to_owned)) {
        assert!(names.iter().any(|name| name.starts_with(&wanted)), "{wanted} has no fixture");
    }
}

#[test]
fn the_keys_are_those_of_the_enrolment() {
    let request: EnrolRequest = read("http.enrol_request");
    let response: EnrolResponse = read("http.enrol_response");
    assert_eq!(request.public_key, *key(AGENT_SEED).public());
    assert_eq!(response.job_keys, [key(HUB_SEED).public().clone()]);
    // RFC 8037 appendix A.3.
    assert_eq!(response.job_keys[0].id().0, "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    let token: AgentToken = read("claims.agent_token");
    assert_eq!((token.sub, token.check(&response.audience, token.iat)), (response.agent, Ok(())));
}

#[test]
fn the_next_keys_are_vouched_for_by_those_before() {
    let response: EnrolResponse = read("http.enrol_response");
    let Ok(ToAgent::HubKeys(keys)) = decode_to_agent(&fixtures()["to_agent.hub_keys"]) else {
        panic!("no keys")
    };
    let (said, signer) = HubKey::verify(&response.job_keys, &keys.statements[0]).unwrap();
    assert_eq!((&said, &signer), (&read("claims.hub_key"), &response.job_keys[0]));
    assert_eq!((&said.public_key, &said.aud), (key(NEXT_HUB_SEED).public(), &response.audience));

    let request: KeyRequest = read("http.key_request");
    let said = AgentKey::verify([key(AGENT_SEED).public()], &request.by_old).unwrap();
    assert_eq!(said, read("claims.agent_key"));
    assert_eq!(said.public_key, *key(NEXT_AGENT_SEED).public());
    assert_eq!(AgentKey::verify([&said.public_key], &request.by_new), Ok(said.clone()));
    assert_eq!(said.check(&response.audience, said.iat), Ok(()));
    assert_eq!(read::<KeyResponse>("http.key_response").key, *said.public_key.id());

    let again: EnrolRequest = read("http.enrol_request.replaces");
    let said = AgentKey::verify([key(AGENT_SEED).public()], again.replaces.as_deref().unwrap()).unwrap();
    assert_eq!((said.agent, said.public_key), (response.agent, again.public_key));
    assert_eq!(read::<EnrolResponse>("http.enrol_response.replaced").replaced, Some(response.agent));
}

#[test]
fn the_ids_of_the_events_are_those_of_their_files() {
    let response: EnrolResponse = read("http.enrol_response");
    for name in ["event", "event.hub"] {
        let Ok(ToHub::Event(event)) = decode_to_hub(&fixtures()[&format!("to_hub.{name}")]) else {
            panic!("no event")
        };
        let file: FileEvent = serde_json::from_value(event.data.clone()).unwrap();
        assert_eq!(file.id(&response.site, &event.resource, &event.kind), event.id, "{name}");
        let payload = event.payload.unwrap();
        assert_eq!((payload.size, payload.sha256), (file.size, file.sha256));
        if let PayloadSource::Inline { data } = payload.source {
            let content = STANDARD.decode(data).unwrap();
            assert_eq!((content.len() as u64, Sha256::of(&content)), (file.size, file.sha256));
        }
    }
}

#[test]
fn the_ids_of_notifications_and_changes_are_those_of_their_data() {
    let response: EnrolResponse = read("http.enrol_response");
    let event = |name: &str| match decode_to_hub(&fixtures()[&format!("to_hub.event.{name}")]) {
        Ok(ToHub::Event(event)) => event,
        other => panic!("no event: {other:?}"),
    };
    let posted = event("notification");
    let data: NotificationEvent = serde_json::from_value(posted.data.clone()).unwrap();
    assert_eq!(data.id(&response.site, &posted.resource), posted.id);
    let change = event("change");
    let data: ChangeEvent = serde_json::from_value(change.data.clone()).unwrap();
    assert_eq!(data.event_id(&response.site, &change.resource, &change.trigger), change.id);
}

#[test]
fn every_offer_verifies_with_the_pinned_keys() {
    let keys: Vec<VerifyingKey> = read::<EnrolResponse>("http.enrol_response").job_keys;
    for (offer, claims) in [("hub", "drop"), ("inline", "notify"), ("minimal", "minimal")] {
        let Ok(ToAgent::Offer(offer)) = decode_to_agent(&fixtures()[&format!("to_agent.offer.{offer}")])
        else {
            panic!("no offer")
        };
        let envelope = Envelope::verify(&keys, &offer.envelope).unwrap();
        assert_eq!(envelope, read(&format!("claims.envelope.{claims}")));
        let ticket = Ticket::verify(&keys, &offer.ticket).unwrap();
        assert_eq!((ticket.job, ticket.attempt), (offer.job, offer.attempt));
        assert_eq!((envelope.job, ticket.envelope), (offer.job, Sha256::of(offer.envelope.as_bytes())));
        assert!(envelope.is_current(envelope.iat) && ticket.is_current(ticket.iat));
        assert!(!envelope.is_current(envelope.exp + 61) && !ticket.is_current(ticket.exp + 61));
        if let (Some(PayloadSource::Inline { data }), Some(payload)) = (&offer.payload, &envelope.payload) {
            let content = STANDARD.decode(data).unwrap();
            assert_eq!((content.len() as u64, Sha256::of(&content)), (payload.size, payload.sha256));
        }
        assert_eq!(
            Ticket::verify(&keys, &offer.envelope),
            Err(JwsError::WrongKind { expected: Ticket::TYP })
        );
        assert_eq!(Envelope::verify([key(AGENT_SEED).public()], &offer.envelope), Err(JwsError::UnknownKey));
    }
}

#[test]
fn every_call_verifies_as_a_call_and_as_nothing_else() {
    let keys: Vec<VerifyingKey> = read::<EnrolResponse>("http.enrol_response").job_keys;
    for (call, claims) in [("minimal", "call"), ("inline", "call_payload")] {
        let Ok(ToAgent::Call(call)) = decode_to_agent(&fixtures()[&format!("to_agent.call.{call}")]) else {
            panic!("no call")
        };
        let envelope = Envelope::verify_call(&keys, &call.envelope).unwrap();
        assert_eq!(envelope, read(&format!("claims.envelope.{claims}")));
        assert_eq!(
            (envelope.job, envelope.sign_call(&key(HUB_SEED)).unwrap()),
            (call.call, call.envelope.clone())
        );
        let ticket = Ticket::verify(&keys, &call.ticket).unwrap();
        assert_eq!((ticket.job, ticket.attempt), (call.call, 1));
        assert_eq!(ticket.envelope, Sha256::of(call.envelope.as_bytes()));
        assert_eq!(
            Envelope::verify(&keys, &call.envelope),
            Err(JwsError::WrongKind { expected: Envelope::TYP })
        );
        if let (Some(PayloadSource::Inline { data }), Some(payload)) = (&call.payload, &envelope.payload) {
            assert_eq!(Sha256::of(&STANDARD.decode(data).unwrap()), payload.sha256);
        }
    }
}

#[test]
fn the_receipts_of_the_reports_verify_with_the_agents_key() {
    let public_key = read::<EnrolRequest>("http.enrol_request").public_key;
    for name in ["drop", "fetch"] {
        let report: Value = read(&format!("to_hub.report.{name}"));
        let receipt = report["outcome"]["receipt"].as_str().unwrap();
        let receipt: Receipt = public_key.verify(Receipt::TYP, receipt).unwrap();
        assert_eq!(receipt.result, report["outcome"]["result"]);
        assert_eq!(receipt.job.to_string(), report["job"].as_str().unwrap());
    }
}
