//! Real OData v4 services in folders of their own, on free loopback ports, for tests: odatapy from PyPI, which
//! `tests/run` installs into `target/test-crm`, served by `odata_server.py`. That file says what is odatapy's own, and
//! what we added so that it answers as the Dynamics 365 Web API is documented to. Another crate's library can include it as
//! a public module with `#[path]`, beside `server` and `tryton`.

use super::{
    server::{Core, Server},
    tryton::python,
};
use std::{path::Path, process::Command};

/// Who may ask.
pub const USER: &str = "DOMAIN\\svc-crm";
/// And with what.
pub const PASSWORD: &str = "pass \"word\" é:1";

/// Which service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Answers like Dynamics: alternate keys, PATCH that creates, unknown properties refused, whole deltas.
    Dynamics,
    /// As odatapy is: a changed record needs `If-Match`, what is unknown is dropped.
    Plain,
}

/// A running service. Stopped when dropped; its records are kept in its folder.
pub struct OData {
    kind: Kind,
    core: Core,
}

impl OData {
    /// Starts a service that keeps everything in `dir`.
    pub fn start(kind: Kind, dir: &Path) -> Self {
        let core = Core::new(dir);
        core.write("account", format!("{USER}\n{PASSWORD}"));
        core.write("odata_server.py", include_str!("odata_server.py"));
        let mut server = Self { kind, core };
        server.start_somewhere();
        server
    }

    /// The URL of the service, as resources write it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/api/data/v9.1/", self.port())
    }

    /// Has it answer the next requests with 429 and `Retry-After: 1`.
    pub fn throttle(&self, requests: u32) {
        self.core.write("throttle", requests.to_string());
    }

    /// What was asked: a line `STATUS METHOD TARGET` for each request.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        self.core.read("access.log").lines().map(str::to_owned).collect()
    }
}

impl Server for OData {
    fn core(&self) -> &Core {
        &self.core
    }

    fn core_mut(&mut self) -> &mut Core {
        &mut self.core
    }

    fn command(&self) -> Command {
        let mut command = Command::new(python());
        command.arg(self.core.at("odata_server.py")).arg(self.core.dir()).arg(self.port().to_string());
        if self.kind == Kind::Plain {
            command.arg("--plain");
        }
        command.env_remove("PYTHONHOME").env_remove("PYTHONPATH");
        command
    }
}
