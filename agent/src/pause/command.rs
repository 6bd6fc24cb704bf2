//! `passerelle-agent pause` and `resume`: through the running agent, or, if there is none, in its state folder.

use super::{FILE, Pauses, until};
use crate::{
    clock,
    control::{
        self, Request,
        client::{Asked, ask},
    },
    exit::Stop,
    state::{IN_USE, StateDir},
};
use clap::Args;
use passerelle_protocol::Name;
use rustix::process::geteuid;
use serde_json::Value;
use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, lchown},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// How long an agent that is just starting or stopping is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// What `pause` takes.
#[derive(Debug, Args)]
pub struct PauseArgs {
    /// The resource, as the configuration names it.
    resource: Name,
    /// When the pause ends by itself: a time (2026-11-21T18:00:00Z) or a duration from now (2h30m). Default: at `resume`.
    #[arg(long, value_name = "T")]
    until: Option<String>,
    /// Why; the hub shows it.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Who pauses; the hub shows it. Default: the user who runs this.
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What `resume` takes.
#[derive(Debug, Args)]
pub struct ResumeArgs {
    /// The resource, as the configuration names it.
    resource: Name,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Pauses a resource; what to print.
///
/// # Errors
/// 64 for what the command line or the folder lacks, 1 if the running agent does not do it.
pub async fn pause(config: &Path, args: PauseArgs) -> Result<String, Stop> {
    let PauseArgs { resource, until, reason, by, json } = args;
    let until =
        until.map(|text| until::parse(&text, clock::now())).transpose().map_err(Stop::Configuration)?;
    let request = Request::Pause { resource, until, reason, by };
    let done = order(config, request).await?;
    show(&done, json, |name| {
        let paused: super::Paused = serde_json::from_value(done["paused"].clone()).ok()?;
        Some(format!("{}\n", paused.sentence(name)))
    })
}

/// Resumes a resource; what to print.
///
/// # Errors
/// As [`pause`].
pub async fn resume(config: &Path, args: ResumeArgs) -> Result<String, Stop> {
    let done = order(config, Request::Resume { resource: args.resource }).await?;
    show(&done, args.json, |name| {
        let was = if done["was"].is_null() { "was not paused" } else { "takes jobs again" };
        Some(format!("resource {name} {was}\n"))
    })
}

fn show(done: &Value, json: bool, sentence: impl FnOnce(&Name) -> Option<String>) -> Result<String, Stop> {
    if json {
        return serde_json::to_string_pretty(done)
            .map(|text| text + "\n")
            .map_err(|e| Stop::Bug(e.to_string()));
    }
    let name = done["resource"].as_str().and_then(|name| name.parse().ok());
    name.and_then(|name| sentence(&name)).ok_or_else(|| {
        Stop::Failed("the running agent answers in another way: is it of another version?".to_owned())
    })
}

async fn order(config: &Path, request: Request) -> Result<Value, Stop> {
    let state = passerelle_config::state_dir(config).map_err(|found| Stop::Configuration(found.to_string()));
    let likely = state.clone().unwrap_or_else(|_| config.join(passerelle_config::defaults::STATE_DIR));
    let until = Instant::now() + PATIENCE;
    loop {
        match ask(&likely, &request).await {
            Ok(Asked::Done(value)) => return Ok(value),
            Ok(Asked::Refused(why)) => return Err(Stop::Failed(why)),
            Ok(Asked::NobodyThere) => {}
            Err(error) => {
                let message = format!("the agent of {} does not answer: {error}", likely.display());
                return Err(Stop::Failed(message));
            }
        }
        // Without knowing which folder it is, nothing is written to one that no agent may ever look at.
        let folder: PathBuf = state.clone()?;
        match StateDir::open(&folder) {
            Ok(state) => return alone(config, Arc::new(state), request.clone()),
            Err(Stop::Configuration(message)) if message.starts_with(IN_USE) => {
                if Instant::now() >= until {
                    return Err(Stop::Failed(format!(
                        "an agent runs with the state folder {}, but does not listen at its control socket: see its log, or \
                         stop it first",
                        folder.display()
                    )));
                }
            }
            Err(stop) => return Err(stop),
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// No agent runs: the next one finds it in the folder, which stays locked meanwhile.
fn alone(config: &Path, state: Arc<StateDir>, request: Request) -> Result<Value, Stop> {
    let pauses = Pauses::open(Arc::clone(&state))?;
    let done = match request {
        Request::Pause { resource, until, reason, by } => {
            // A folder that says nothing of the name for sure does not keep its owner from their pause.
            if let Ok(config) = passerelle_config::load(config)
                && config.resources.iter().all(|known| known.name != resource.as_str())
            {
                let known = config.resources.iter().map(|known| known.name.as_str());
                return Err(Stop::Failed(control::unknown_resource(&resource, known)));
            }
            let by = by.unwrap_or_else(|| control::who(geteuid().as_raw()));
            control::pause(&pauses, resource, until, reason, by)
        }
        Request::Resume { resource } => {
            // Not taken out: the agent finds at its start what ended without it, for its audit.
            control::resumed(&resource, pauses.end(&resource, clock::now()))
        }
    };
    let done = done.map_err(Stop::Failed)?;
    hand_over(state.path()).map_err(|e| Stop::Failed(format!("{}: {e}", state.path().display())))?;
    Ok(done)
}

/// What root wrote belongs to the folder's owner, or the agent could not read it. A link is not followed: the folder is
/// the agent's, who must not have root give away what lies elsewhere.
fn hand_over(state: &Path) -> io::Result<()> {
    let owner = fs::metadata(state)?;
    if !geteuid().is_root() || owner.uid() == 0 {
        return Ok(());
    }
    for name in [FILE, "lock"] {
        match lchown(state.join(name), Some(owner.uid()), Some(owner.gid())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn root_gives_away_no_file_that_a_link_leads_to() {
        if !geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (state, outside) = (dir.path().join("state"), dir.path().join("shadow"));
        fs::create_dir(&state).unwrap();
        fs::write(&outside, "root's").unwrap();
        symlink(&outside, state.join("lock")).unwrap();
        fs::write(state.join(FILE), "{}").unwrap();
        lchown(&state, Some(12_345), Some(12_345)).unwrap();
        hand_over(&state).unwrap();
        let uid = |path: &Path| fs::symlink_metadata(path).unwrap().uid();
        assert_eq!((uid(&state.join(FILE)), uid(&state.join("lock")), uid(&outside)), (12_345, 12_345, 0));
        // Nor does it write through one.
        let error = StateDir::open(&state).unwrap_err().to_string();
        assert!(error.contains("state"), "{error}");
        assert_eq!(fs::read_to_string(&outside).unwrap(), "root's");
    }
}
