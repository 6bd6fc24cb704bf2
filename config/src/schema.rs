//! The JSON Schema of `agent.toml`, for editors.

use crate::raw;
use serde_json::Value;

/// The JSON Schema (2020-12) of `agent.toml`. A resource's own keys depend on its connector and are left open.
#[must_use]
pub fn schema() -> Value {
    schemars::schema_for!(raw::File).to_value()
}
