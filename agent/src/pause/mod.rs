//! Pauses: the owner's word that a resource takes no jobs for a while, whatever the cloud wants.
//!
//! A pause is on disk (`pauses.json` in the state folder) before it counts, so it survives restarts. While it lasts, offers
//! are declined, what was accepted but has not started is handed back, what runs goes on to its end, and the hub, which is
//! told with the announcement of the resource, holds the jobs. Only the owner ends a pause, or the time that they set.

pub mod command;
mod until;

use crate::{
    agent::Agent,
    audit::{Entry, Kind},
    clock,
    exit::Stop,
    state::StateDir,
};
use jiff::Timestamp;
use passerelle_protocol::{
    Code, Effect, Failure, Name, Pause, Verdict,
    limits::{MAX_RESOURCES, MAX_TEXT},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{sync::watch, time::sleep};
use tracing::{info, warn};

/// The file in the state folder.
pub const FILE: &str = "pauses.json";
/// How long at most until the clock is looked at again: it may be set.
const LOOK: Duration = Duration::from_secs(30);

/// A pause of one resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paused {
    /// When it was said.
    pub since: Timestamp,
    /// When it ends by itself; absent: when it is resumed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// Why, in the operator's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who said so.
    pub by: String,
}

impl Paused {
    fn lasts(&self, now: Timestamp) -> bool {
        self.until.is_none_or(|until| until > now)
    }

    /// Checks what people wrote.
    ///
    /// # Errors
    /// What is wrong and what is right.
    pub fn check(&self) -> Result<(), String> {
        for (what, text) in [("reason", self.reason.as_deref().unwrap_or_default()), ("by", &self.by)] {
            if text.len() > MAX_TEXT {
                return Err(format!("--{what}: {} bytes, more than {MAX_TEXT}; say it shorter", text.len()));
            }
            if text.chars().any(char::is_control) {
                return Err(format!("--{what}: holds control characters; write one line of text"));
            }
        }
        match self.until {
            Some(until) if until <= self.since => {
                Err(format!("--until: {until} has passed; name a time to come, or a duration such as 2h30m"))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// One public sentence about it.
    pub fn sentence(&self, resource: &Name) -> String {
        let until = self.until.map_or("until it is resumed".to_owned(), |until| format!("until {until}"));
        let reason = self.reason.as_ref().map_or(String::new(), |reason| format!(": {reason}"));
        format!("resource {resource} is paused {until} by {}{reason}", self.by)
    }

    /// What the hub is told.
    pub fn announced(&self) -> Pause {
        Pause { until: self.until, reason: self.reason.clone(), by: self.by.clone() }
    }

    /// How an attempt ends that had not started: to be tried again, and not counted.
    pub fn handed_back(&self, resource: &Name, effect: Effect) -> Failure {
        Failure::new(Verdict::Retry, effect, Code::Paused, self.sentence(resource))
    }

    /// How long until it ends, if it does by itself.
    pub fn left(&self) -> Option<Duration> {
        let until = self.until?;
        Some(Duration::try_from(until.duration_since(clock::now())).unwrap_or(Duration::ZERO))
    }
}

/// Every pause, on disk and in memory. Those whose time has passed do not count, whether they are swept yet or not.
#[derive(Debug)]
pub struct Pauses {
    state: Arc<StateDir>,
    known: watch::Sender<BTreeMap<Name, Paused>>,
    /// Held while the file is written, so that the last change written is the last one made.
    writing: Mutex<()>,
}

impl Pauses {
    /// Reads the file.
    ///
    /// # Errors
    /// If it cannot be read: an agent that forgot a pause would do what its owner forbade.
    pub fn open(state: Arc<StateDir>) -> Result<Self, Stop> {
        let path = state.path().join(FILE);
        let failed = |what: &dyn std::fmt::Display| {
            Stop::Configuration(format!(
                "the pauses in {} cannot be read: {what}: mend or remove the file, then pause again what must not run",
                path.display()
            ))
        };
        let known = match state.read(FILE).map_err(|e| failed(&e))? {
            Some(text) => serde_json::from_slice(&text).map_err(|e| failed(&e))?,
            None => BTreeMap::new(),
        };
        Ok(Self { state, known: watch::Sender::new(known), writing: Mutex::new(()) })
    }

    /// Those that count now.
    pub fn now(&self) -> BTreeMap<Name, Paused> {
        let now = clock::now();
        let known = self.known.borrow();
        known.iter().filter(|(_, paused)| paused.lasts(now)).map(|(n, p)| (n.clone(), p.clone())).collect()
    }

    /// The pause of a resource, if there is one now.
    pub fn of(&self, resource: &Name) -> Option<Paused> {
        self.known.borrow().get(resource).filter(|paused| paused.lasts(clock::now())).cloned()
    }

    /// Waits until the resource is paused.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn begun(&self, resource: &Name) -> Paused {
        let mut changes = self.known.subscribe();
        loop {
            changes.mark_unchanged();
            if let Some(paused) = self.of(resource) {
                return paused;
            }
            if changes.changed().await.is_err() {
                // Not while `self` is there.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Pauses a resource, durably; a pause that there was is replaced. Blocks on the disk.
    ///
    /// # Errors
    /// If the file cannot be written, or there are too many.
    pub fn pause(&self, resource: Name, paused: Paused) -> io::Result<()> {
        self.change(|known| {
            let now = paused.since;
            // Those that are over stay for [`keep`] to tell of, as long as there is room.
            if known.len() >= MAX_RESOURCES {
                known.retain(|_, other| other.lasts(now));
            }
            if known.len() >= MAX_RESOURCES && !known.contains_key(&resource) {
                return Err(io::Error::other(format!("{MAX_RESOURCES} resources are paused already")));
            }
            known.insert(resource, paused);
            Ok(())
        })
    }

    /// Ends a pause, durably; what it was, if it counted still. Blocks on the disk.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn resume(&self, resource: &Name) -> io::Result<Option<Paused>> {
        let mut was = None;
        self.change(|known| {
            was = known.remove(resource);
            Ok(())
        })?;
        Ok(was.filter(|paused| paused.lasts(clock::now())))
    }

    /// Ends a pause, durably, and leaves it to be found by [`keep`]; what it was, if it counted still. Blocks on the disk.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn end(&self, resource: &Name, at: Timestamp) -> io::Result<Option<Paused>> {
        let mut was = None;
        self.change(|known| {
            if let Some(paused) = known.get_mut(resource).filter(|paused| paused.lasts(at)) {
                was = Some(paused.clone());
                paused.until = Some(at);
            }
            Ok(())
        })?;
        Ok(was)
    }

    /// Those that are over, but not swept yet.
    fn over(&self) -> BTreeMap<Name, Paused> {
        let now = clock::now();
        let known = self.known.borrow();
        known.iter().filter(|(_, paused)| !paused.lasts(now)).map(|(n, p)| (n.clone(), p.clone())).collect()
    }

    /// Takes out those whose time has passed; whether there were any.
    fn sweep(&self) -> io::Result<bool> {
        let now = clock::now();
        if self.known.borrow().values().all(|paused| paused.lasts(now)) {
            return Ok(false);
        }
        self.change(|known| {
            known.retain(|_, paused| paused.lasts(now));
            Ok(())
        })?;
        Ok(true)
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<Name, Paused>) -> io::Result<()>) -> io::Result<()> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.known.borrow().clone();
        let mut after = before.clone();
        change(&mut after)?;
        if after != before {
            self.state.write(FILE, &serde_json::to_vec_pretty(&after)?)?;
            self.known.send_replace(after);
        }
        Ok(())
    }
}

/// Tells the hub of each pause that begins and ends, and ends those whose time has come. Until it is aborted.
pub async fn keep(agent: Arc<Agent>) {
    let mut changes = agent.pauses.known.subscribe();
    let mut told = agent.pauses.now();
    // Also what was paused or ended while no agent ran: the audit says from when on it counted.
    note(&agent, &agent.pauses.over(), &told);
    sweep(&agent).await;
    loop {
        let now = agent.pauses.now();
        if now != told {
            note(&agent, &told, &now);
            let said = |names: &BTreeMap<Name, Paused>| {
                names.keys().map(Name::as_str).collect::<Vec<_>>().join(", ")
            };
            info!(paused = said(&now), before = said(&told), "The pauses changed");
            agent.announce_again();
            told = now;
        }
        let next = told.values().filter_map(Paused::left).min().unwrap_or(LOOK).min(LOOK);
        tokio::select! {
            // A little later than the very moment: by then it has passed.
            () = sleep(next + Duration::from_millis(2)) => sweep(&agent).await,
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

async fn sweep(agent: &Agent) {
    let pauses = Arc::clone(&agent.pauses);
    match tokio::task::spawn_blocking(move || pauses.sweep()).await {
        Ok(Ok(_)) => {}
        // They do not count any more all the same.
        Ok(Err(error)) => warn!(%error, "Pauses that are over cannot be taken from the file"),
        Err(error) => warn!(%error, "Pauses that are over cannot be swept"),
    }
}

/// Writes what changed into the audit.
fn note(agent: &Agent, before: &BTreeMap<Name, Paused>, now: &BTreeMap<Name, Paused>) {
    let about = |kind, resource: &Name| Entry { resource: Some(resource.to_string()), ..Entry::new(kind) };
    for (resource, paused) in now.iter().filter(|(resource, paused)| before.get(*resource) != Some(*paused)) {
        agent.journal.note(about(Kind::Paused, resource).detail(&paused.sentence(resource)));
    }
    for resource in before.keys().filter(|resource| !now.contains_key(*resource)) {
        agent.journal.note(about(Kind::Resumed, resource));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> Name {
        name.parse().unwrap()
    }

    fn paused(seconds: Option<i64>) -> Paused {
        let since = clock::now();
        let until = seconds.map(|s| since.checked_add(jiff::SignedDuration::from_secs(s)).unwrap());
        Paused { since, until, reason: Some("stock-taking".to_owned()), by: "root".to_owned() }
    }

    fn open(path: &std::path::Path) -> Result<Pauses, Stop> {
        Pauses::open(Arc::new(StateDir::open(path).unwrap()))
    }

    #[test]
    fn a_pause_is_on_disk_until_it_is_resumed() {
        let dir = tempfile::tempdir().unwrap();
        let pauses = open(dir.path()).unwrap();
        assert_eq!(pauses.now(), BTreeMap::new());
        pauses.pause(name("a"), paused(None)).unwrap();
        pauses.pause(name("b"), paused(Some(3600))).unwrap();
        drop(pauses);
        let pauses = open(dir.path()).unwrap();
        assert_eq!(pauses.now().len(), 2);
        assert!(pauses.of(&name("a")).unwrap().until.is_none());
        assert!(pauses.resume(&name("a")).unwrap().is_some());
        assert!(pauses.resume(&name("a")).unwrap().is_none());
        drop(pauses);
        assert_eq!(open(dir.path()).unwrap().now().into_keys().collect::<Vec<_>>(), [name("b")]);
    }

    #[test]
    fn a_pause_whose_time_has_passed_does_not_count_and_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let pauses = open(dir.path()).unwrap();
        let over = Paused { until: Some("2020-01-01T00:00:00Z".parse().unwrap()), ..paused(None) };
        pauses.pause(name("a"), over).unwrap();
        assert_eq!((pauses.of(&name("a")), pauses.now().len()), (None, 0));
        assert_eq!(pauses.known.borrow().len(), 1);
        assert!(pauses.sweep().unwrap());
        assert_eq!(pauses.known.borrow().len(), 0);
        assert!(!pauses.sweep().unwrap());
    }

    #[test]
    fn a_pause_that_is_ended_without_an_agent_is_left_to_be_found() {
        let dir = tempfile::tempdir().unwrap();
        let pauses = open(dir.path()).unwrap();
        pauses.pause(name("a"), paused(None)).unwrap();
        pauses.pause(name("c"), paused(None)).unwrap();
        assert!(pauses.end(&name("a"), clock::now()).unwrap().is_some());
        assert_eq!(pauses.end(&name("a"), clock::now()).unwrap(), None, "it has ended");
        assert_eq!(pauses.end(&name("b"), clock::now()).unwrap(), None);
        pauses.pause(name("b"), paused(None)).unwrap();
        drop(pauses);
        let pauses = open(dir.path()).unwrap();
        assert_eq!((pauses.of(&name("a")), pauses.over().len()), (None, 1));
        assert!(pauses.sweep().unwrap());
        assert_eq!(pauses.over().len(), 0);
    }

    #[test]
    fn a_file_that_cannot_be_read_keeps_the_agent_from_starting() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "{\"a\":").unwrap();
        let error = open(dir.path()).unwrap_err();
        assert_eq!(error.code(), crate::CONFIGURATION);
        assert!(error.to_string().contains("pauses.json"), "{error}");
    }

    #[tokio::test]
    async fn whoever_waits_hears_of_the_pause() {
        let dir = tempfile::tempdir().unwrap();
        let pauses = Arc::new(open(dir.path()).unwrap());
        let waiting = Arc::clone(&pauses);
        let heard = tokio::spawn(async move { waiting.begun(&name("a")).await });
        pauses.pause(name("b"), paused(None)).unwrap();
        pauses.pause(name("a"), paused(None)).unwrap();
        assert_eq!(heard.await.unwrap().by, "root");
    }

    #[test]
    fn what_people_write_is_bounded() {
        assert_eq!(paused(Some(60)).check(), Ok(()));
        for (bad, word) in [
            (Paused { reason: Some("x".repeat(257)), ..paused(None) }, "shorter"),
            (Paused { by: "a\nb".to_owned(), ..paused(None) }, "one line"),
            (Paused { until: Some("2020-01-01T00:00:00Z".parse().unwrap()), ..paused(None) }, "has passed"),
        ] {
            assert!(bad.check().unwrap_err().contains(word), "{bad:?}");
        }
    }
}
