//! A changed configuration while the agent runs: on SIGHUP, and when a file of the folder changed.
//!
//! All of a good one takes effect at once for whatever starts from then on; what runs keeps what it started with. A bad
//! one changes nothing. Both are told: in the log, on the status page, in `passerelle_agent_config_reloads_total`.

pub mod watch;

use crate::{
    agent::Agent,
    audit::{Entry, Kind},
    clock,
    logs::LogLevel,
    probe,
    settings::Settings,
    status::{Reload, ResourceStatus},
};
use passerelle_protocol::Name;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    signal::unix::Signal,
    task::spawn_blocking,
    time::{Instant, sleep},
};
use tracing::{Instrument as _, error, info, warn};
use watch::Folder;

/// How often the folder is looked at.
const LOOK: Duration = Duration::from_secs(2);
/// How long a changed folder must stay as it is: an editor or a copy may be in the middle.
const QUIET: Duration = Duration::from_millis(700);
/// How often a configuration that was refused is tried again: what it lacks may be a file that nobody knows to watch.
const RETRY: Duration = Duration::from_secs(10);

/// Watches and reloads until it is aborted. The agent runs with what its settings say now; `seen` is the folder as they
/// were read from it.
pub async fn run(agent: Arc<Agent>, mut hangup: Signal, logs: LogLevel, mut seen: Folder) {
    let mut refused: Option<(String, Instant)> = None;
    loop {
        let asked = tokio::select! {
            got = hangup.recv() => got.is_some(),
            () = sleep(LOOK) => false,
        };
        let Some(now) = look(&agent, &seen).await else { continue };
        let again = refused.as_ref().is_some_and(|(_, at)| at.elapsed() >= RETRY);
        if now.same(&seen) && !asked && !again {
            seen = now;
            continue;
        }
        let Some(quiet) = settled(&agent, now).await else { continue };
        seen = quiet;
        let loading = {
            let running = agent.settings();
            spawn_blocking(move || Settings::load_after(&running.config.dir, Some(&running))).await
        };
        match loading {
            Ok(Ok(settings)) => {
                apply(&agent, settings, &logs);
                refused = None;
                // The new configuration may name other files; they are watched from here on.
                if let Some(now) = look(&agent, &seen).await {
                    seen.watch_those_of(now);
                }
            }
            Ok(Err(stop)) => {
                let findings = stop.to_string();
                // Tried again by itself, it need not be told again.
                if asked || refused.as_ref().is_none_or(|(before, _)| *before != findings) {
                    refuse(&agent, &findings);
                }
                refused = Some((findings, Instant::now()));
            }
            Err(failed) => error!(error = %failed, "The configuration could not be read again"),
        }
    }
}

async fn look(agent: &Agent, before: &Folder) -> Option<Folder> {
    let (settings, before) = (agent.settings(), before.clone());
    // On a thread of its own: a network folder may hang.
    spawn_blocking(move || Folder::look(&settings.config.dir, settings.files(), &before)).await.ok()
}

/// Waits until the folder stays as it is.
async fn settled(agent: &Agent, mut folder: Folder) -> Option<Folder> {
    loop {
        sleep(QUIET).await;
        let now = look(agent, &folder).await?;
        if now.same(&folder) {
            return Some(now);
        }
        folder = now;
    }
}

fn refuse(agent: &Agent, findings: &str) {
    let lines: Vec<String> =
        findings.lines().map(|line| line.strip_prefix("error: ").unwrap_or(line).to_owned()).collect();
    for line in &lines {
        error!("{line}");
    }
    error!(
        findings = lines.len(),
        "The changed configuration is refused; the agent goes on with the one it has"
    );
    let row = Entry { count: Some(lines.len() as u64), ..Entry::new(Kind::ConfigurationRefused) };
    agent.journal.note(row.detail(lines.first().map_or("", String::as_str)));
    agent.metrics.config_reload("refused");
    agent.status.reloaded(|reload| {
        reload.at = clock::now();
        reload.refused = lines;
    });
}

/// Makes a good configuration the one that counts.
fn apply(agent: &Arc<Agent>, mut settings: Settings, logs: &LogLevel) {
    let old = agent.settings();
    let kept = settings.keep_until_restart(&old);
    if !kept.is_empty() {
        warn!(
            settings = kept.join(", "),
            "These settings changed and take effect at the next start of the agent"
        );
    }
    for warning in settings.config.warnings.iter().filter(|warning| !old.config.warnings.contains(warning)) {
        warn!("{warning}");
    }
    if settings.config.log.level != old.config.log.level
        && let Err(stop) = logs.set(&settings.config.log)
    {
        warn!("{stop}");
    }
    for resource in settings.resources.values() {
        resource.limits.change(resource.max_concurrent, resource.rate_per_minute);
    }
    agent.spool.set_quota(settings.config.agent.spool_quota.0);
    agent.pressure.set_journal_quota(settings.config.agent.journal_quota.0);
    let changes = Changes::between(&old, &settings);
    let told = |of: &Settings| {
        let listeners = of.listeners.keys().cloned().collect::<Vec<_>>();
        (of.announcements(), of.max_jobs(), of.triggers(), of.calls(0), listeners)
    };
    let announced = told(&old) != told(&settings);
    agent.status.set_resources(shown(&settings), &changes.changed);
    let settings_listeners = settings.listeners.len();
    agent.set_settings(settings);
    info!(
        added = changes.added.len(),
        changed = changes.changed.len(),
        removed = changes.removed,
        listeners = settings_listeners,
        announced,
        "The configuration was read again and counts from now on"
    );
    let detail = format!(
        "resources: {} added, {} changed, {} removed",
        changes.added.len(),
        changes.changed.len(),
        changes.removed
    );
    agent.journal.note(Entry::new(Kind::ConfigurationApplied).detail(&detail));
    agent.metrics.config_reload("applied");
    agent.status.reloaded(|reload| {
        *reload = Reload {
            at: clock::now(),
            refused: Vec::new(),
            needs_restart: kept.iter().map(|key| (*key).to_owned()).collect(),
        };
    });
    if announced {
        agent.announce_again();
    }
    let probed = changes.added.into_iter().chain(changes.changed).collect();
    tokio::spawn(probe::resources(Arc::clone(agent), probed).in_current_span());
}

/// Which resources differ.
#[derive(Debug, PartialEq, Eq)]
struct Changes {
    added: BTreeSet<Name>,
    changed: BTreeSet<Name>,
    removed: usize,
}

impl Changes {
    fn between(old: &Settings, new: &Settings) -> Self {
        let (mut added, mut changed) = (BTreeSet::new(), BTreeSet::new());
        for (name, resource) in &new.resources {
            match old.resources.get(name) {
                None => drop(added.insert(name.clone())),
                Some(before) if !Arc::ptr_eq(before, resource) => drop(changed.insert(name.clone())),
                Some(_) => {}
            }
        }
        let removed = old.resources.keys().filter(|name| !new.resources.contains_key(*name)).count();
        Self { added, changed, removed }
    }
}

/// What the status page shows of the resources before they are probed.
pub fn shown(settings: &Settings) -> BTreeMap<Name, ResourceStatus> {
    let one = |resource: &crate::settings::Resource| ResourceStatus {
        connector: resource.kind.clone(),
        operations: resource.policy.allowed_operations(),
        probe: None,
    };
    settings.resources.iter().map(|(name, resource)| (name.clone(), one(resource))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, path::Path};

    fn write(dir: &Path, agent: &str, resources: &str) {
        let text = format!(
            "[hub]\nurl = \"https://hub.example.com\"\nenrolment_token = {{ file = \"token\" }}\n{agent}\n{resources}"
        );
        fs::write(dir.join("agent.toml"), text.replace("DIR", dir.to_str().unwrap())).unwrap();
    }

    fn resource(name: &str, more: &str) -> String {
        format!(
            "[resources.{name}]\nconnector = \"file\"\nurl = \"file://DIR\"\n{more}\n\
             [[resources.{name}.allow]]\noperations = [\"drop\"]\npaths = [\"**\"]\n"
        )
    }

    #[test]
    fn an_unchanged_resource_stays_what_it_is_and_a_changed_one_keeps_its_limits() {
        let dir = tempfile::tempdir().unwrap();
        let agent = "[agent]\nname = \"a\"";
        write(
            dir.path(),
            agent,
            &format!("{}{}{}", resource("one", ""), resource("two", ""), resource("gone", "")),
        );
        let old = Settings::load(dir.path()).unwrap();
        let limits = "limits = { max_concurrent = 9 }";
        // Moved and respelt, but the same: only `two` says something else.
        let new =
            format!("# moved\n{}{}{}", resource("two", limits), resource("new", ""), resource("one", "\n"));
        write(dir.path(), agent, &new);
        let new = Settings::load_after(dir.path(), Some(&old)).unwrap();
        let name = |name: &str| name.parse::<Name>().unwrap();
        let changes = Changes::between(&old, &new);
        let (added, changed) = (BTreeSet::from([name("new")]), BTreeSet::from([name("two")]));
        assert_eq!(changes, Changes { added, changed, removed: 1 });
        assert!(Arc::ptr_eq(&old.resources[&name("two")].limits, &new.resources[&name("two")].limits));
        assert_eq!(new.resources[&name("two")].max_concurrent, 9);
    }

    #[test]
    fn a_changed_secret_makes_its_resource_anew() {
        let dir = tempfile::tempdir().unwrap();
        let app = "[resources.app]\nconnector = \"http\"\nurl = \"http://127.0.0.1:1/\"\n\
                   auth = { kind = \"bearer\", token = { file = \"token\" } }\n\
                   [[resources.app.allow]]\noperations = [\"notify\"]\npaths = [\"**\"]\n";
        fs::write(dir.path().join("token"), "one").unwrap();
        write(dir.path(), "", app);
        let old = Settings::load(dir.path()).unwrap();
        let same = Settings::load_after(dir.path(), Some(&old)).unwrap();
        assert_eq!(Changes::between(&old, &same).changed.len(), 0);
        fs::write(dir.path().join("token"), "two").unwrap();
        let mut new = Settings::load_after(dir.path(), Some(&old)).unwrap();
        assert_eq!(Changes::between(&old, &new).changed.len(), 1);
        // It is the enrolment token too, which is of no use any more.
        assert_eq!(new.keep_until_restart(&old), Vec::<&str>::new());
    }

    #[test]
    fn what_only_a_restart_may_change_is_named_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "[agent]\nname = \"old\"\nmax_jobs = 3", "");
        let old = Settings::load(dir.path()).unwrap();
        let text = "[hub]\nurl = \"https://other.example.com\"\n[agent]\nname = \"new\"\nstate_dir = \"elsewhere\"\n\
                    listen = \"127.0.0.1:1\"\nmax_jobs = 4\n[log]\nformat = \"json\"\nclassic_dir = \"logs\"\n";
        fs::write(dir.path().join("agent.toml"), text).unwrap();
        let mut new = Settings::load_after(dir.path(), Some(&old)).unwrap();
        let kept = new.keep_until_restart(&old);
        assert_eq!(
            kept,
            ["hub.url", "agent.name", "agent.state_dir", "agent.listen", "log.format", "log.classic_dir"]
        );
        assert_eq!(new.config.hub.url, old.config.hub.url);
        assert_eq!((new.name.as_str(), new.max_jobs()), ("old", 4));
        assert_eq!(new.state_dir(), old.state_dir());
        assert_eq!(new.keep_until_restart(&old), Vec::<&str>::new());

        write(dir.path(), "[agent]\nname = \"old\"\n[hub.proxy]\nurl = \"http://proxy:1\"", "");
        let mut new = Settings::load_after(dir.path(), Some(&old)).unwrap();
        assert_eq!(new.keep_until_restart(&old), ["hub"]);
    }
}
