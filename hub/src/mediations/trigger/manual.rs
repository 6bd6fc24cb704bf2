//! The trigger that is none: each run is started by an operator or a client.

use serde::{Deserialize, Serialize};

/// `kind = "manual"`: no further keys.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manual {}
