//! Control messages: whatever comes is a message, or is refused with a short reason; a message survives the way back.

use passerelle_protocol::{DecodeError, decode_to_agent, decode_to_hub, limits::MAX_TEXT};

/// Reads the bytes as a frame, both ways.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match decode_to_agent(text) {
        Ok(message) => {
            // What was taken can be said again, and then means the same.
            let again = message.encode().expect("a message that was taken can be sent");
            assert_eq!(decode_to_agent(&again), Ok(message));
        }
        Err(error) => check(&error),
    }
    match decode_to_hub(text) {
        Ok(message) => {
            let again = message.encode().expect("a message that was taken can be sent");
            assert_eq!(decode_to_hub(&again), Ok(message));
        }
        Err(error) => check(&error),
    }
}

/// A reason goes into logs and to the peer: it must not carry the frame with it.
fn check(error: &DecodeError) {
    let longest = 4 * MAX_TEXT + 256;
    assert!(error.to_string().len() <= longest, "the reason is as long as the frame: {error}");
}
