//! `passerelle-agent init`: an annotated configuration folder to begin with. Never changes what is there.

use crate::{exit::Stop, state};
use clap::Args;
use passerelle_config::{EXAMPLE_RESOURCES, EXAMPLES};
use rustix::process::geteuid;
use serde_json::json;
use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};
use url::Url;

/// What resources are called until the operator makes them real: files of another name are not read.
const EXAMPLE: &str = ".example";
/// The lines of the example that are the operator's own.
const URL: &str = "url = \"https://hub.example.com\"";
const NAME: &str = "name = \"paris-1\"";
/// The longest enrolment token, as for every secret.
const MAX_TOKEN: u64 = 64 * 1024;

/// Arguments of `init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// The hub's address, which its operator names.
    #[arg(long, value_name = "URL")]
    hub: Option<Url>,
    /// The agent's name at the hub; default: the host's name.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// File with the one-time enrolment token, which is copied into secrets/; `-` reads it from standard input.
    #[arg(long, value_name = "FILE")]
    token_file: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Writes the folder, and gives what to print.
///
/// # Errors
/// If there is a configuration already, or the folder cannot be written.
pub fn init(dir: &Path, args: &InitArgs) -> Result<String, Stop> {
    let agent_toml = dir.join("agent.toml");
    if fs::symlink_metadata(&agent_toml).is_ok() {
        let message = format!("{} is there already: nothing was changed", agent_toml.display());
        return Err(Stop::Configuration(message));
    }
    let settings = settings(args)?;
    let token = args.token_file.as_deref().map(token).transpose()?;
    let mut made = Made { dir, files: Vec::new() };
    let failed =
        |error: &io::Error| Stop::Configuration(state::unwritable_folder("configuration", dir, error));
    let written = (|| {
        made.folder("", 0o755)?;
        made.folder("resources.d", 0o755)?;
        made.folder("secrets", 0o700)?;
        for (name, content) in EXAMPLE_RESOURCES {
            made.file(&format!("resources.d/{name}{EXAMPLE}"), content.as_bytes(), 0o644)?;
        }
        for (name, content) in EXAMPLES.iter().filter(|(name, _)| *name != "agent.toml") {
            made.file(name, content.as_bytes(), 0o644)?;
        }
        if let Some(token) = &token {
            made.file("secrets/enrolment-token", token, 0o600)?;
        }
        // The last one: as long as it is not there, all of this can be done again.
        made.file("agent.toml", settings.as_bytes(), 0o644)
    })();
    written.map_err(|error| failed(&error))?;
    let has_token = dir.join("secrets/enrolment-token").exists();
    let Made { files, .. } = made;
    if args.json {
        let text = json!({"folder": dir, "files": files, "enrolment_token": has_token});
        return Ok(format!("{text:#}\n"));
    }
    Ok(next_steps(dir, &files, args, has_token))
}

/// The example's `agent.toml` with what the operator said.
fn settings(args: &InitArgs) -> Result<String, Stop> {
    let example = EXAMPLES.iter().find(|(name, _)| *name == "agent.toml").map_or("", |(_, text)| text);
    let quoted = |text: &str| json!(text).to_string();
    let mut text = example.to_owned();
    if let Some(hub) = &args.hub {
        text = text.replacen(URL, &format!("url = {}", quoted(hub.as_str())), 1);
    }
    text = match &args.name {
        Some(name) => text.replacen(NAME, &format!("name = {}", quoted(name)), 1),
        None => text.replacen(NAME, &format!("#{NAME}"), 1),
    };
    // Judged as it will be read, in a folder of its own.
    let trial = std::env::temp_dir().join(format!("passerelle-init-{}", uuid::Uuid::now_v7()));
    let judged = fs::create_dir(&trial)
        .and_then(|()| fs::write(trial.join("agent.toml"), &text))
        .map(|()| passerelle_config::load(&trial));
    drop(fs::remove_dir_all(&trial));
    match judged {
        Ok(Err(findings)) => Err(Stop::Configuration(format!("--hub or --name:\n{findings}"))),
        // Without a place for the trial it is `check` that tells.
        Ok(Ok(_)) | Err(_) => Ok(text),
    }
}

fn token(file: &str) -> Result<Vec<u8>, Stop> {
    use io::Read as _;
    let mut token = Vec::new();
    let read = if file == "-" {
        io::stdin().lock().take(MAX_TOKEN + 1).read_to_end(&mut token)
    } else {
        fs::File::open(file).and_then(|opened| opened.take(MAX_TOKEN + 1).read_to_end(&mut token))
    };
    read.map_err(|e| Stop::Configuration(format!("--token-file: {file}: {e}")))?;
    let token = token.trim_ascii().to_vec();
    if token.is_empty() || token.len() as u64 > MAX_TOKEN {
        return Err(Stop::Configuration(format!("--token-file: {file} holds no enrolment token")));
    }
    Ok(token)
}

/// What has been made so far.
struct Made<'a> {
    dir: &'a Path,
    files: Vec<String>,
}

impl Made<'_> {
    fn folder(&mut self, name: &str, mode: u32) -> io::Result<()> {
        let path = self.dir.join(name);
        if path.is_dir() {
            return Ok(());
        }
        DirBuilder::new().recursive(name.is_empty()).mode(mode).create(&path)?;
        self.give(&path)
    }

    /// Makes a file unless there is one of that name: it is the operator's.
    fn file(&mut self, name: &str, content: &[u8], mode: u32) -> io::Result<()> {
        let path = self.dir.join(name);
        let mut file = match OpenOptions::new().write(true).create_new(true).mode(mode).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            Err(error) => return Err(error),
        };
        file.write_all(content)?;
        file.sync_all()?;
        self.give(&path)?;
        self.files.push(name.to_owned());
        Ok(())
    }

    /// What root makes in a folder of the agent's user belongs to that user.
    fn give(&self, path: &Path) -> io::Result<()> {
        let owner = fs::metadata(self.dir)?;
        if geteuid().is_root() && owner.uid() != 0 {
            std::os::unix::fs::lchown(path, Some(owner.uid()), Some(owner.gid()))?;
        }
        Ok(())
    }
}

fn next_steps(dir: &Path, files: &[String], args: &InitArgs, has_token: bool) -> String {
    let shown = dir.display();
    let mut text = format!("wrote into {shown}:\n");
    for file in files {
        text.push_str(&format!("  {file}\n"));
    }
    text.push_str("\nnext:\n");
    if args.hub.is_none() {
        text.push_str(&format!("  - write the hub's address into {shown}/agent.toml (hub.url)\n"));
    }
    if !has_token {
        text.push_str(&format!(
            "  - put the one-time enrolment token into {shown}/secrets/enrolment-token, readable for the agent's user alone\n"
        ));
    }
    text.push_str(&format!(
        "  - copy what you need of {shown}/resources.d/*.toml{EXAMPLE} into files that end with .toml: a resource and its allow\n    \
         rules are all that the cloud may do here\n  \
         - passerelle-agent check            looks at every link\n  \
         - passerelle-agent policy explain   says what the cloud can do\n  \
         - passerelle-agent run\n"
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn args(hub: Option<&str>, name: Option<&str>) -> InitArgs {
        InitArgs {
            hub: hub.map(|url| url.parse().unwrap()),
            name: name.map(str::to_owned),
            token_file: None,
            json: false,
        }
    }

    #[test]
    fn the_folder_loads_and_allows_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("etc/passerelle");
        let said = init(&folder, &args(Some("https://hub.acme.test/base"), Some("lyon-1"))).unwrap();
        assert!(said.contains("agent.toml") && !said.contains("hub.url"), "{said}");
        let config = passerelle_config::load(&folder).unwrap();
        assert_eq!(config.hub.url.as_str(), "https://hub.acme.test/base");
        assert_eq!(config.agent.name, "lyon-1");
        assert!(config.resources.is_empty() && config.warnings.is_empty(), "{:?}", config.warnings);
        let mode = |name: &str| fs::metadata(folder.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("secrets"), mode("agent.toml")), (0o700, 0o644));
        for (name, _) in EXAMPLE_RESOURCES {
            let example = folder.join(format!("resources.d/{name}{EXAMPLE}"));
            fs::rename(&example, example.with_extension("")).unwrap();
        }
        assert!(!passerelle_config::load(&folder).unwrap().resources.is_empty());
    }

    #[test]
    fn what_is_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("secrets")).unwrap();
        fs::write(dir.path().join("secrets/enrolment-token"), "mine").unwrap();
        let said = init(dir.path(), &args(None, None)).unwrap();
        assert!(said.contains("hub.url") && !said.contains("put the one-time"), "{said}");
        assert_eq!(fs::read_to_string(dir.path().join("secrets/enrolment-token")).unwrap(), "mine");
        let before = fs::read(dir.path().join("agent.toml")).unwrap();
        let refused = init(dir.path(), &args(Some("https://other.test"), None)).unwrap_err();
        assert!(refused.to_string().contains("nothing was changed"), "{refused}");
        assert_eq!(fs::read(dir.path().join("agent.toml")).unwrap(), before);
    }

    #[test]
    fn a_token_is_copied_for_its_owner_alone_and_a_wrong_address_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let token = dir.path().join("token");
        fs::write(&token, "pst_once\r\n").unwrap();
        let folder = dir.path().join("config");
        let with_token = |hub| InitArgs { token_file: Some(token.display().to_string()), ..args(hub, None) };
        let refused = init(&folder, &with_token(Some("http://hub.example.com"))).unwrap_err().to_string();
        assert!(refused.contains("hub.url") && !folder.exists(), "{refused}");
        init(&folder, &with_token(Some("https://hub.example.com"))).unwrap();
        let copied = folder.join("secrets/enrolment-token");
        assert_eq!(fs::read_to_string(&copied).unwrap(), "pst_once");
        assert_eq!(fs::metadata(copied).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
