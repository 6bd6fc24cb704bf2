//! Looks at a report's output before the report goes to the store's writer.

use crate::store::attempts::CheckedReport;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use passerelle_protocol::{
    Code, Effect, Failure, Outcome, OutputPayload, Report, Sha256, Verdict, limits::MAX_INLINE_PAYLOAD,
};

/// Looks at an inline output before it goes to the writer. A wrong one makes the attempt's end a failure: the effect is
/// there, the output is not.
pub(super) fn check_report(mut report: Report) -> CheckedReport {
    let mut data = None;
    if let Outcome::Succeeded { output: Some(output), .. } = &mut report.outcome
        && let Some(text) = output.data.take()
    {
        match decode_output(output, &text) {
            Some(bytes) => data = Some(bytes),
            None => {
                report.outcome = Outcome::Failed(Failure::new(
                    Verdict::Retry,
                    Effect::Unknown,
                    Code::DigestMismatch,
                    "the agent reported an output that does not have the size or digest it should have",
                ));
            }
        }
    }
    CheckedReport { report, data }
}

fn decode_output(output: &OutputPayload, text: &str) -> Option<Bytes> {
    let bytes = STANDARD.decode(text).ok()?;
    let right = bytes.len() as u64 == output.size
        && bytes.len() <= MAX_INLINE_PAYLOAD
        && Sha256::of(&bytes) == output.sha256;
    right.then(|| bytes.into())
}
