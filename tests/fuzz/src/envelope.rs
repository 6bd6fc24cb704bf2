//! Signed texts: nothing but what the key signed is ever taken, and a changed byte is never taken for something else.

use passerelle_protocol::{AgentToken, Envelope, Receipt, SigningKey, Ticket, VerifyingKey};
use serde::de::DeserializeOwned;
use std::sync::LazyLock;

/// A key whose private half only this target has.
static KEY: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::generate().expect("a key").0);

const ENVELOPE: &str = include_str!("../../../protocol/fixtures/v1/claims.envelope.drop.json");

/// Reads the bytes as a signed text; then changes a good one as the bytes say.
pub fn run(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        refused::<Envelope>(Envelope::TYP, text);
        refused::<Ticket>(Ticket::TYP, text);
        refused::<AgentToken>(AgentToken::TYP, text);
        refused::<Receipt>(Receipt::TYP, text);
    }
    let claims: Envelope = serde_json::from_str(ENVELOPE).expect("the fixture");
    let signed = claims.sign(&KEY).expect("a signature");
    let mut changed = signed.clone().into_bytes();
    // Pairs of a place and a byte to put there.
    for pair in data.chunks_exact(3).take(8) {
        let at = usize::from(u16::from_be_bytes([pair[0], pair[1]])) % changed.len();
        changed[at] = pair[2];
    }
    let Ok(changed) = String::from_utf8(changed) else { return };
    match Envelope::verify([KEY.public()], &changed) {
        Ok(taken) => assert!(changed == signed && taken == claims, "a changed envelope was taken"),
        Err(_) => assert_ne!(changed, signed, "a good envelope was refused"),
    }
    // One kind of signed text is never taken for another.
    assert!(Ticket::verify([KEY.public()], &changed).is_err());
}

fn refused<T: DeserializeOwned>(typ: &'static str, text: &str) {
    let taken = VerifyingKey::verify_any::<T>([KEY.public()], typ, text);
    assert!(taken.is_err(), "a text that the key never signed was taken");
}
