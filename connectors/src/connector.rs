//! The trait that every kind of connector implements, and how the registry parses and builds a kind.

use crate::{Call, Examine, Failure, Feeds, Input, Link, Outcome, Output, Triggers, examine::Links};
use passerelle_config::{Diagnostics, Section};
use serde_json::Value;
use std::{future::Future, path::Path, time::Duration};
use uuid::Uuid;

/// How an operation may be repeated after an attempt whose effect is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    /// Doing it twice has the effect of doing it once.
    Safe,
    /// The target tells repetitions by the idempotency key.
    WithKey,
    /// Never blindly.
    Never,
}

/// One operation of a connector.
#[derive(Debug, Clone)]
pub struct OperationSpec {
    /// Its name, as in the contract.
    pub name: &'static str,
    /// How it repeats.
    pub repeat: Repeat,
    /// JSON Schema (2020-12) of its parameters.
    pub params_schema: Value,
    /// Whether it takes a payload.
    pub takes_payload: bool,
    /// Whether it makes an output payload.
    pub makes_output: bool,
    /// Whether its allow rules need `paths`.
    pub needs_paths: bool,
}

/// What a configured connector can do.
#[derive(Debug, Clone)]
pub struct Capabilities {
    /// The kind's name.
    pub kind: &'static str,
    /// Its operations.
    pub operations: Vec<OperationSpec>,
}

/// A right that a rule must give on top of the operation (`may = […]`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Right {
    /// Replace what is there.
    Replace,
    /// Create missing folders.
    CreateDirs,
    /// Delete or move away what was fetched.
    DeleteAfterFetch,
}

impl Right {
    /// The right as operators write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Replace => "replace",
            Self::CreateDirs => "create_dirs",
            Self::DeleteAfterFetch => "delete_after_fetch",
        }
    }
}

/// What one call demands of the local policy: every listed thing must be allowed by one and the same rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Demands {
    /// Paths it touches, relative to the resource's root, already checked for form (no `..`, no leading `/`, …).
    pub paths: Vec<String>,
    /// The HTTP method, upper case.
    pub method: Option<String>,
    /// Names of query keys it sets.
    pub query: Vec<String>,
    /// Names of headers it sets, lower case.
    pub headers: Vec<String>,
    /// Rights it needs.
    pub rights: Vec<Right>,
    /// The request of the operator that it names; then it touches nothing but what that request says.
    pub request: Option<String>,
    /// Entities it names.
    pub entities: Vec<String>,
    /// Fields of them that it writes, searches by, or asks for by name.
    pub fields: Vec<String>,
    /// Declared calls that it makes.
    pub calls: Vec<String>,
}

/// A configured link to one private system.
pub trait Connector: Send + Sync + 'static {
    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// Reads and checks the parameters of an operation and says what they demand of the policy. Pure.
    ///
    /// # Errors
    /// `invalid_params` (permanent) or `path_invalid` (denied).
    fn demands(&self, operation: &str, params: &Value) -> Result<Demands, Failure>;

    /// What an attempt of this operation may leave at its target when it is cut off, in the connector's own words. The
    /// agent journals it with the attempt and gives it to [`Self::clean_up`] once nothing can need it any more. Called
    /// only with parameters that [`Self::demands`] has passed. Pure.
    fn leftover(&self, _operation: &str, _params: &Value, _job: Uuid, _attempt: u32) -> Option<String> {
        None
    }

    /// Removes a leftover, of this or an earlier configuration of the resource; `false` if it is not there.
    ///
    /// # Errors
    /// If the target cannot be asked; try again later.
    fn clean_up(
        &self,
        _leftover: &str,
        _timeout: Duration,
    ) -> impl Future<Output = Result<bool, Failure>> + Send {
        async { Ok(false) }
    }

    /// Checks reachability and credentials without side effects.
    ///
    /// # Errors
    /// What a job would meet, with the cause in [`Failure::detail`].
    fn probe(&self, timeout: Duration) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Looks at each link to the system on its own, for the operator. Makes no request that could have an effect; the
    /// only thing it may leave for a moment is a file of its own where [`Examine::try_writing`] says so.
    fn examine(&self, what: Examine) -> impl Future<Output = Vec<Link>> + Send {
        async move {
            let mut links = Links::default();
            match self.probe(what.timeout).await {
                Ok(()) => links.passed("connection", "reachable, credentials accepted"),
                Err(failure) => links.failed("connection", failure),
            }
            links.finish()
        }
    }

    /// What pickup and watch need; `None` where there is nothing that could be picked up.
    fn triggers(&self) -> Option<&dyn Triggers> {
        None
    }

    /// The change feed; `None` where there is none.
    fn feeds(&self) -> Option<&dyn Feeds> {
        None
    }

    /// Performs one attempt. Called only with an operation and parameters that [`Self::demands`] has passed.
    /// Stops soon after `call.cancel` fires.
    ///
    /// # Errors
    /// See [`Failure`]; a blocking connector's doc says what dropping the future does not stop.
    fn execute(
        &self,
        call: &Call,
        operation: &str,
        params: &Value,
        input: Option<Input>,
        output: &mut Output,
    ) -> impl Future<Output = Result<Outcome, Failure>> + Send;
}

/// Why a checked resource could not be built: an unreadable secret or file, say.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {message}")]
pub struct BuildError {
    /// The key of the resource that says so, as `password` or `auth.token`.
    pub key: String,
    /// What is wrong with it, and what to do.
    pub message: String,
}

impl BuildError {
    /// Says what is wrong with what a key names.
    pub(crate) fn at(key: impl Into<String>, message: impl std::fmt::Display) -> Self {
        Self { key: key.into(), message: message.to_string() }
    }
}

/// How the registry parses and builds a kind of connector.
pub trait Kind: 'static {
    /// What operators write as `connector = "…"`.
    const NAME: &'static str;
    /// Whether its resources may have triggers.
    const TRIGGERS: bool = false;
    /// The checked settings.
    type Checked: Send + Sync + 'static;
    /// The connector.
    type Connector: Connector;

    /// The operations of every connector of this kind.
    fn operations() -> Vec<OperationSpec>;

    /// The JSON Schema of the resource's own settings, without the keys that every resource has.
    fn settings_schema() -> Value;

    /// Reads the resource's own settings. Pure: no disk, no network. Findings go to `diagnostics`.
    fn check(section: &Section, diagnostics: &mut Diagnostics) -> Option<Self::Checked>;

    /// Builds the connector; may read files (secrets, keys), does not connect.
    ///
    /// # Errors
    /// If a file that the settings name cannot be used.
    fn build(checked: &Self::Checked, base: &Path) -> Result<Self::Connector, BuildError>;
}
