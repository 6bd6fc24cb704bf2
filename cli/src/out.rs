//! Standard output: lines for people or JSON for programs. Once nobody reads any more, the rest is dropped; what cannot be
//! written for another reason (a full disk) fails the command at its end.

use serde_json::Value;
use std::{
    io::{self, IsTerminal as _, Write as _},
    sync::OnceLock,
};

/// Where a command's output goes.
pub(crate) struct Out {
    /// Whether colours help: a terminal, and `NO_COLOR` is not set.
    pub(crate) colour: bool,
    /// Why some of it was not written.
    lost: OnceLock<io::Error>,
}

impl Out {
    pub(crate) fn stdout() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { colour: wanted && io::stdout().is_terminal(), lost: OnceLock::new() }
    }

    pub(crate) fn text(&self, text: &str) {
        self.bytes(text.as_bytes());
    }

    pub(crate) fn json(&self, value: &Value) {
        self.bytes(format!("{value:#}\n").as_bytes());
    }

    pub(crate) fn bytes(&self, bytes: &[u8]) {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Ok(()) => {}
            // A closed pipe (`| head`) is the reader's choice.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(error) => drop(self.lost.set(error)),
        }
    }

    /// Why some of the output was lost, if it was.
    pub(crate) fn lost(&self) -> Option<&io::Error> {
        self.lost.get()
    }
}
