//! The object-safe twin of [`Connector`]: authors write plain `async fn`, the agent holds `Arc<dyn DynConnector>`.

use crate::{
    Call, Capabilities, Connector, Demands, Examine, Failure, Feeds, Input, Link, Outcome, Output, Triggers,
};
use serde_json::Value;
use std::{future::Future, pin::Pin, time::Duration};
use uuid::Uuid;

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// [`Connector`], erased. Implemented for every connector.
pub trait DynConnector: Send + Sync {
    /// See [`Connector::capabilities`].
    fn capabilities(&self) -> Capabilities;

    /// See [`Connector::demands`].
    ///
    /// # Errors
    /// As there.
    fn demands(&self, operation: &str, params: &Value) -> Result<Demands, Failure>;

    /// See [`Connector::leftover`].
    fn leftover(&self, operation: &str, params: &Value, job: Uuid, attempt: u32) -> Option<String>;

    /// See [`Connector::clean_up`].
    fn clean_up<'a>(&'a self, leftover: &'a str, timeout: Duration) -> Boxed<'a, Result<bool, Failure>>;

    /// See [`Connector::probe`].
    fn probe(&self, timeout: Duration) -> Boxed<'_, Result<(), Failure>>;

    /// See [`Connector::examine`].
    fn examine(&self, what: Examine) -> Boxed<'_, Vec<Link>>;

    /// See [`Connector::triggers`].
    fn triggers(&self) -> Option<&dyn Triggers>;

    /// See [`Connector::feeds`].
    fn feeds(&self) -> Option<&dyn Feeds>;

    /// See [`Connector::execute`].
    fn execute<'a>(
        &'a self,
        call: &'a Call,
        operation: &'a str,
        params: &'a Value,
        input: Option<Input>,
        output: &'a mut Output,
    ) -> Boxed<'a, Result<Outcome, Failure>>;
}

impl<C: Connector> DynConnector for C {
    fn capabilities(&self) -> Capabilities {
        Connector::capabilities(self)
    }

    fn demands(&self, operation: &str, params: &Value) -> Result<Demands, Failure> {
        Connector::demands(self, operation, params)
    }

    fn leftover(&self, operation: &str, params: &Value, job: Uuid, attempt: u32) -> Option<String> {
        Connector::leftover(self, operation, params, job, attempt)
    }

    fn clean_up<'a>(&'a self, leftover: &'a str, timeout: Duration) -> Boxed<'a, Result<bool, Failure>> {
        Box::pin(Connector::clean_up(self, leftover, timeout))
    }

    fn probe(&self, timeout: Duration) -> Boxed<'_, Result<(), Failure>> {
        Box::pin(Connector::probe(self, timeout))
    }

    fn examine(&self, what: Examine) -> Boxed<'_, Vec<Link>> {
        Box::pin(Connector::examine(self, what))
    }

    fn triggers(&self) -> Option<&dyn Triggers> {
        Connector::triggers(self)
    }

    fn feeds(&self) -> Option<&dyn Feeds> {
        Connector::feeds(self)
    }

    fn execute<'a>(
        &'a self,
        call: &'a Call,
        operation: &'a str,
        params: &'a Value,
        input: Option<Input>,
        output: &'a mut Output,
    ) -> Boxed<'a, Result<Outcome, Failure>> {
        Box::pin(Connector::execute(self, call, operation, params, input, output))
    }
}
