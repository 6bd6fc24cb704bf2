//! The cases of the contract suite, by what they are about.

pub mod changing;
pub mod crash;
pub mod dropping;
pub mod jail;
pub mod reading;
pub mod then;
pub mod trigger;

use passerelle_connectors::{Code, Effect, Failure, Verdict};
use std::fmt::Debug;

/// Checks how an attempt failed.
pub fn failed<T: Debug>(result: Result<T, Failure>, verdict: Verdict, code: Code, effect: Effect) -> Failure {
    let failure = result.expect_err("the attempt should fail");
    assert_eq!((failure.verdict, failure.code, failure.effect), (verdict, code, effect), "{failure}");
    let message = &failure.message;
    assert!(
        !message.contains('/') && !message.contains("127.0.0.1"),
        "the public sentence says too much: {message}"
    );
    assert!(!message.ends_with('.') && !message.starts_with(char::is_uppercase), "{message}");
    failure
}
