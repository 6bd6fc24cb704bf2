//! The `file` connector: whole-file drops that appear atomically, and reading back, on folders and servers.
//!
//! - `settings`: what the operator writes; `params`: what a job says and what that demands of the policy
//! - `backend`: the one small trait that each kind of place implements (`local`, `sftp`, `smb`, `ftp`, `webdav`, `s3`), blocking; `dial`: the
//!   way to servers; `over_http`: what those behind HTTP share
//! - `aside`: replacing where the target knows no single step for it
//! - `worker`, `pool`: the threads those places live on, kept warm between jobs
//! - `examine`: each link on its own, for the operator
//! - `operations`: drop, fetch, list, stat, move, delete, written once over any backend
//! - `trigger`: what pickup and watch need, likewise
//!
//! Blocking calls run on threads of their own. Dropping the future of an operation does not stop a call in progress:
//! it ends with its own time limit, then the thread removes an unfinished part and goes away.

mod aside;
mod backend;
mod dial;
mod examine;
mod ftp;
mod local;
mod operations;
mod over_http;
mod params;
mod place;
mod pool;
mod problem;
mod s3;
mod settings;
mod sftp;
mod smb;
mod trigger;
mod webdav;
mod worker;

use crate::{
    BuildError, Call, Capabilities, Code, Connector, Demands, Examine, Failure, Input, Kind, Link,
    OperationSpec, Outcome, Output, Triggers,
};
use backend::Problem;
use params::Params;
use passerelle_config::{Diagnostics, Section};
use place::{Place, is_part};
use pool::Pool;
use serde_json::Value;
use std::{path::Path, time::Duration};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use settings::Settings;

/// `connector = "file"`.
pub struct FileKind;

/// A configured folder.
pub struct File {
    pool: Pool,
}

impl Kind for FileKind {
    const NAME: &'static str = "file";
    const TRIGGERS: bool = true;
    type Checked = Settings;
    type Connector = File;

    fn operations() -> Vec<OperationSpec> {
        params::operations()
    }

    fn settings_schema() -> Value {
        settings::settings_schema()
    }

    fn check(section: &Section, diagnostics: &mut Diagnostics) -> Option<Settings> {
        settings::check(section, diagnostics)
    }

    fn build(checked: &Settings, base: &Path) -> Result<File, BuildError> {
        let pool = Pool::new(checked.connect(base)?, checked.max_sessions());
        Ok(File { pool })
    }
}

impl Connector for File {
    fn capabilities(&self) -> Capabilities {
        Capabilities { kind: FileKind::NAME, operations: params::operations() }
    }

    fn demands(&self, operation: &str, params: &Value) -> Result<Demands, Failure> {
        Ok(Params::read(operation, params)?.demands())
    }

    fn leftover(&self, operation: &str, params: &Value, job: Uuid, attempt: u32) -> Option<String> {
        match Params::read(operation, params) {
            Ok(Params::Drop(drop)) => Some(drop.place.part(job, attempt).to_string()),
            Ok(_) | Err(_) => None,
        }
    }

    async fn clean_up(&self, leftover: &str, timeout: Duration) -> Result<bool, Failure> {
        let part = Place::own(leftover.to_owned());
        if !is_part(part.name().as_bytes()) {
            return Err(Failure::permanent(Code::Internal, "that is no unfinished file of the agent's own"));
        }
        let mut lease = self.pool.lease(timeout, &CancellationToken::new()).await?;
        let removed = lease.run(move |hands| hands.fs.delete(&part)).await;
        lease.release().await;
        match removed {
            Ok(()) => Ok(true),
            Err(error) if error.problem == Problem::NotFound => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    async fn probe(&self, timeout: Duration) -> Result<(), Failure> {
        // Leasing connects, logs in and opens the root: all that a probe can ask without side effects.
        let lease = self.pool.lease(timeout, &CancellationToken::new()).await?;
        lease.release().await;
        Ok(())
    }

    async fn examine(&self, what: Examine) -> Vec<Link> {
        examine::examine(&self.pool, what).await
    }

    fn triggers(&self) -> Option<&dyn Triggers> {
        Some(self)
    }

    async fn execute(
        &self,
        call: &Call,
        operation: &str,
        params: &Value,
        input: Option<Input>,
        output: &mut Output,
    ) -> Result<Outcome, Failure> {
        operations::execute(&self.pool, call, Params::read(operation, params)?, input, output).await
    }
}
