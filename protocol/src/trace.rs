//! The trace context of W3C (Trace Context, section 3.2), which is handed from the client's request to the target's.

/// Whether a `traceparent` is well-formed: four fields of lower-case hex, ids that are not zero, a version that is not `ff`.
/// Nobody signs it, so what is anything else is left out wherever it arrives.
#[must_use]
pub fn is_traceparent(text: &str) -> bool {
    let hex = |part: &str, length: usize| {
        part.len() == length && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let id = |part: &str, length: usize| hex(part, length) && part.bytes().any(|b| b != b'0');
    let parts: Vec<&str> = text.splitn(5, '-').collect();
    match parts.as_slice() {
        [version, trace, parent, flags] => {
            hex(version, 2) && *version != "ff" && id(trace, 32) && id(parent, 16) && hex(flags, 2)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_form_of_the_recommendation_is_taken() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert!(is_traceparent(good));
        for bad in [
            String::new(),
            "x".repeat(100),
            good.to_uppercase(),
            good.replacen("00", "ff", 1),
            good.replace("00f067aa0ba902b7", "0000000000000000"),
            good.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            format!("{good}-00"),
            format!("{good}\r\nx: y"),
            format!(" {good}"),
        ] {
            assert!(!is_traceparent(&bad), "{bad}");
        }
    }
}
