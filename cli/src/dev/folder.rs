//! The folder in which everything of `dev` lies, and the agent's configuration in it.

use super::{app::App, crm::Crm};
use crate::Failure;
use std::{
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};
use tempfile::TempDir;
use url::Url;

/// The shared folder's resource.
pub(crate) const ACCOUNTING: &str = "accounting";
/// The in-house application's resource.
pub(crate) const ORDERS: &str = "orders-app";
/// The CRM's resource.
pub(super) const CRM: &str = "crm";

/// The folder; a temporary one goes with this value.
pub(super) struct Folder {
    root: PathBuf,
    _temporary: Option<TempDir>,
}

/// What the hub has written for its clients and agents.
pub(crate) struct Bootstrap {
    pub(crate) url: String,
    pub(crate) api_key: String,
    pub(crate) site: String,
    /// Where the hub speaks TLS.
    pub(crate) ca_file: Option<PathBuf>,
}

impl Bootstrap {
    /// What a hub has written into the folder of its `--bootstrap`, once it has written all.
    pub(crate) fn read(dir: &Path) -> Option<Self> {
        let read = |name: &str| {
            let text = fs::read_to_string(dir.join(name)).ok()?;
            let text = text.trim();
            (!text.is_empty()).then(|| text.to_owned())
        };
        let url = read("hub.url")?;
        let ca_file = url.starts_with("https://").then(|| dir.join("ca.pem"));
        Some(Self { url, api_key: read("api-key")?, site: read("site")?, ca_file })
    }
}

impl Folder {
    /// Makes the folder, or takes one that is there.
    pub(super) fn new(dir: Option<&Path>) -> Result<Self, Failure> {
        let (root, temporary) = match dir {
            Some(dir) => {
                fs::create_dir_all(dir).map_err(|e| unwritable(dir, &e))?;
                (dir.to_owned(), None)
            }
            None => {
                let made = tempfile::Builder::new().prefix("passerelle-dev-").tempdir();
                let made = made.map_err(|e| unwritable(&std::env::temp_dir(), &e))?;
                (made.path().to_owned(), Some(made))
            }
        };
        let root = root.canonicalize().map_err(|e| unwritable(&root, &e))?;
        let folder = Self { root, _temporary: temporary };
        for path in
            [folder.share(), folder.agent_config().join("secrets"), folder.agent_config().join("resources.d")]
        {
            fs::create_dir_all(&path).map_err(|e| unwritable(&path, &e))?;
        }
        Ok(folder)
    }

    pub(super) fn bootstrap(&self) -> PathBuf {
        self.root.join("bootstrap")
    }

    pub(super) fn hub_data(&self) -> PathBuf {
        self.root.join("hub")
    }

    pub(super) fn agent_config(&self) -> PathBuf {
        self.root.join("agent")
    }

    /// The folder that the agent drops into: a file server's share, in a company.
    pub(super) fn share(&self) -> PathBuf {
        self.root.join("share")
    }

    pub(super) fn log(&self, part: &str) -> PathBuf {
        self.root.join(format!("{part}.log"))
    }

    /// Removes the address of a hub that ran here before: it had another port.
    pub(super) fn forget_url(&self) -> Result<(), Failure> {
        let file = self.bootstrap().join("hub.url");
        match fs::remove_file(&file) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(unwritable(&file, &e)),
            _ => Ok(()),
        }
    }

    /// What the hub has written, once it has: `hub.url` is the last file it writes.
    pub(super) fn read_bootstrap(&self) -> Option<Bootstrap> {
        Bootstrap::read(&self.bootstrap())
    }

    /// Writes the agent's configuration folder, as an operator would.
    pub(super) fn write_agent(&self, bootstrap: &Bootstrap, app: &App, crm: &Crm) -> Result<(), Failure> {
        let config = self.agent_config();
        let token = self.bootstrap().join("enrolment-token");
        let token = fs::read_to_string(&token).map_err(|e| {
            Failure::hub(format!("the hub left no enrolment token in {}: {e}", token.display()))
        })?;
        write(&config.join("secrets/enrolment-token"), &token, 0o600)?;
        write(&config.join("secrets/orders-token"), app.token(), 0o600)?;
        write(&config.join("secrets/crm-token"), crm.token(), 0o600)?;
        write(&config.join("agent.toml"), &self.agent_toml(bootstrap), 0o644)?;
        write(&config.join("resources.d/dev.toml"), &(self.resources_toml(app)? + &crm.resource(CRM)), 0o644)
    }

    fn agent_toml(&self, bootstrap: &Bootstrap) -> String {
        let ca_file =
            bootstrap.ca_file.as_ref().map(|file| format!("ca_file = {}\n", quoted(&file.to_string_lossy())));
        format!(
            "[hub]\nurl = {}\nenrolment_token = {{ file = \"secrets/enrolment-token\" }}\n{}\n\
             [agent]\nname = \"dev-1\"\nlisten = \"127.0.0.1:0\"\n",
            quoted(&bootstrap.url),
            ca_file.unwrap_or_default(),
        )
    }

    fn resources_toml(&self, app: &App) -> Result<String, Failure> {
        let share = Url::from_directory_path(self.share())
            .map_err(|()| Failure::usage(format!("{} makes no file:// URL", self.share().display())))?;
        Ok(format!(
            "[resources.{ACCOUNTING}]\nconnector = \"file\"\nurl = {}\n\n\
             [[resources.{ACCOUNTING}.allow]]\noperations = [\"drop\", \"list\", \"stat\", \"fetch\"]\npaths = [\"**/*\"]\n\n\
             [resources.{ORDERS}]\nconnector = \"http\"\nurl = {}\n\
             auth = {{ kind = \"bearer\", token = {{ file = \"secrets/orders-token\" }} }}\n\n\
             [[resources.{ORDERS}.allow]]\noperations = [\"notify\"]\nmethods = [\"POST\"]\npaths = [\"orders/*/validated\"]\n",
            quoted(share.as_str().trim_end_matches('/')),
            quoted(&app.url()),
        ))
    }
}

/// A TOML string: JSON's escapes are among TOML's.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn write(path: &Path, content: &str, mode: u32) -> Result<(), Failure> {
    let mut file = fs::OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(mode)
        .open(path)
        .map_err(|e| unwritable(path, &e))?;
    file.write_all(content.as_bytes()).map_err(|e| unwritable(path, &e))
}

fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::usage(format!("cannot write {}: {error}; choose another folder with --dir", path.display()))
}
