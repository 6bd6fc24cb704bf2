//! Listeners: where in-house applications post to the agent what the cloud is to hear of.
//!
//! - `serve`: the sockets, with their bounds; `post`: one post, from its head to its answer; `guard`: who may post
//! - `rate`: how many posts per minute; `answer`: what is answered
//!
//! A post is answered 202 only when it is in the journal. From there it goes the way of every event (`triggers::send`). Each
//! agent of a site runs its own listeners; the id of an event is a hash of its key, so that the hub has it once. Nothing
//! that is posted changes anything here but the spool, and no answer tells anything of the cloud.

mod answer;
mod guard;
mod post;
mod rate;
mod serve;

use crate::{agent::Agent, clock, journal::events::Key, reload::watch};
use guard::Guard;
use passerelle_config::{Diagnostics, Finding, ListenerConfig};
use passerelle_protocol::{ListenerAnnouncement, NOTIFICATION, Name, Sha256, limits::MAX_LISTENERS};
use rate::Rate;
use serve::Running;
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep},
};
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

/// How often the configuration is compared with what listens.
const LOOK: Duration = Duration::from_millis(250);
/// How soon an address that cannot be listened on is tried again.
const AGAIN: Duration = Duration::from_secs(2);
/// How often old keys are forgotten.
const FORGET: Duration = Duration::from_secs(60);

/// One configured listener, ready to serve.
pub struct Listener {
    /// Its name.
    pub name: Name,
    /// What the operator says.
    pub config: ListenerConfig,
    guard: Guard,
    tls: Option<TlsAcceptor>,
    places: Semaphore,
    rate: Mutex<Rate>,
    mark: Sha256,
}

impl Listener {
    /// Reads its secrets and certificates; one whose settings and files are those of `before` stays what it is.
    pub fn build(
        config: &ListenerConfig,
        base: &Path,
        before: Option<&Arc<Self>>,
        diagnostics: &mut Diagnostics,
    ) -> Option<Arc<Self>> {
        // Before the files are read: what changes in between is then found out at the next look.
        let mark = watch::mark(&config.text, &config.files);
        if let Some(before) = before.filter(|before| before.mark == mark) {
            return Some(Arc::clone(before));
        }
        let mut wrong = |key: &str, message: String| {
            let path = format!("{}.{key}", config.at.path);
            diagnostics.push(Finding { path, message, ..config.at.clone() });
        };
        let guard = Guard::read(&config.auth, base).map_err(|why| wrong("auth", why)).ok();
        let tls = match &config.tls {
            Some((cert, key)) => {
                Some(serve::tls(cert, key, base).map_err(|why| wrong("tls_cert", why)).ok()?)
            }
            None => None,
        };
        Some(Arc::new(Self {
            name: config.name.parse().ok()?,
            config: config.clone(),
            guard: guard?,
            tls,
            places: Semaphore::new(config.max_concurrent as usize),
            rate: Mutex::new(Rate::new(config.rate_per_minute)),
            mark,
        }))
    }

    /// What counts its events, as a trigger.
    pub fn key(&self) -> Key {
        Key { resource: self.name.clone(), trigger: self.name.clone() }
    }
}

/// What `Hello` tells of listeners: those that are configured, and those of which something waits yet.
pub async fn announcements(agent: &Agent) -> Vec<ListenerAnnouncement> {
    let settings = agent.settings();
    let mut names: Vec<Name> = settings.listeners.keys().cloned().collect();
    match agent.journal.waiting_listeners().await {
        Ok(waiting) => {
            let other = |name: &Name| !names.contains(name) && !settings.resources.contains_key(name);
            let waiting: Vec<Name> = waiting.into_iter().filter(other).collect();
            names.extend(waiting);
        }
        Err(error) => warn!(%error, "It cannot be told of which listeners something waits"),
    }
    names.truncate(MAX_LISTENERS);
    names.into_iter().map(|name| ListenerAnnouncement { name }).collect()
}

/// Has those listeners serve that are configured, until the agent drains; then lets posts finish.
pub async fn run(agent: Arc<Agent>) {
    let mut running: BTreeMap<Name, Running> = BTreeMap::new();
    let mut failed: BTreeMap<Name, Instant> = BTreeMap::new();
    let mut forget = Instant::now();
    while !agent.is_draining() {
        let settings = agent.settings();
        // Another address, or none any more: the old socket goes first, since a new one may want its port.
        let gone: Vec<Name> = running
            .iter()
            .filter(|(name, one)| {
                settings.listeners.get(*name).is_none_or(|new| new.config.listen != one.address)
            })
            .map(|(name, _)| name.clone())
            .collect();
        let mut ending = Vec::new();
        for name in gone {
            ending.extend(running.remove(&name).map(Running::stop));
        }
        for one in ending {
            one.await;
        }
        failed.retain(|name, at| settings.listeners.contains_key(name) && at.elapsed() < AGAIN);
        for (name, listener) in &settings.listeners {
            if let Some(one) = running.get(name) {
                one.follow(listener);
            } else if !failed.contains_key(name) {
                match Running::start(&agent, listener).await {
                    Ok(one) => {
                        info!(listener = %name, listen = %listener.config.listen, "Listens for notifications");
                        agent.triggers.board.paused(&listener.key(), None);
                        running.insert(name.clone(), one);
                    }
                    Err(error) => {
                        let why = format!("{} cannot be listened on: {error}", listener.config.listen);
                        if agent.triggers.board.paused(&listener.key(), Some(why.clone())) {
                            warn!(listener = %name, why, "A listener does not listen; trying again");
                        }
                        failed.insert(name.clone(), Instant::now());
                    }
                }
            }
        }
        if forget.elapsed() >= FORGET {
            forget = Instant::now();
            forget_keys(&agent).await;
        }
        sleep(LOOK).await;
    }
    let ending: Vec<_> = running.into_values().map(Running::stop).collect();
    futures_util::future::join_all(ending).await;
}

/// Forgets what is remembered of posts for no more use.
async fn forget_keys(agent: &Agent) {
    loop {
        match agent
            .journal
            .forget_posted(clock::now(), agent.pressure.is_tight_for_keys(&agent.journal))
            .await
        {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::debug!(%error, "Old keys of posts cannot be forgotten");
                return;
            }
        }
        // What went is seen before more goes.
        if agent.journal.measure().await.is_err() {
            return;
        }
    }
}

/// The kind's name.
fn kind() -> Option<Name> {
    NOTIFICATION.parse().ok()
}
