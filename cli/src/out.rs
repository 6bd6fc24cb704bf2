//! Standard output: lines for people or JSON for programs. Once nobody reads any more, the rest is dropped.

use serde_json::Value;
use std::io::{self, IsTerminal as _, Write as _};

/// Where a command's output goes.
pub(crate) struct Out {
    /// Whether colours help: a terminal, and `NO_COLOR` is not set.
    pub(crate) colour: bool,
}

impl Out {
    pub(crate) fn stdout() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { colour: wanted && io::stdout().is_terminal() }
    }

    pub(crate) fn text(&self, text: &str) {
        self.bytes(text.as_bytes());
    }

    pub(crate) fn json(&self, value: &Value) {
        self.bytes(format!("{value:#}\n").as_bytes());
    }

    pub(crate) fn bytes(&self, bytes: &[u8]) {
        let mut stdout = io::stdout().lock();
        // A closed pipe (`| head`) is the reader's choice.
        let _ = stdout.write_all(bytes).and_then(|()| stdout.flush());
    }
}
