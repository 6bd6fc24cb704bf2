//! One pickup: looks at its folder in its rhythm, or when the system hints that something changed, and takes the files
//! that are whole, in their order.

use super::{
    gate::{self, Blocked},
    steady::{Judgement, Steady},
    take::{Outcome, Shared, TIMEOUT, What, take},
};
use crate::{
    agent::Agent,
    journal::events::{Follow, Key},
};
use passerelle_config::{After, Order, Pickup, Stable};
use passerelle_connectors::{Failure, Notices, Patience, Scan, Seen, Triggers};
use passerelle_protocol::{Name, PICKUP};
use std::{
    collections::{BTreeSet, HashSet, hash_map::DefaultHasher},
    hash::{Hash as _, Hasher as _},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Files of one page.
const PAGE: usize = 2000;
/// The most files that are waited for at once; the others come when these are taken.
const MOST: usize = 10_000;
/// The most files of a folder of which it is known whether they are still there.
const MOST_KNOWN: usize = 1_000_000;
/// The most files that are remembered by a trigger that keeps them.
const MOST_REMEMBERED: u64 = 500_000;
/// The least time between two looks, and how many times as long as the look itself it is at least.
const GAP: (Duration, u32) = (Duration::from_millis(100), 5);
/// The longest wait after a failure, in turns.
const MOST_TURNS: u32 = 10;
/// A file that could not be read for another reason than its size is tried again after this long.
const TRY_AGAIN: Duration = Duration::from_secs(300);
/// The most files that are left alone at once.
const MOST_LEFT: usize = 1000;
/// Folders below that hints are asked for.
const MOST_FOLDERS: usize = 256;

/// One pickup that runs.
pub struct Running {
    agent: Arc<Agent>,
    resource: Shared,
    rule: Pickup,
    key: Key,
    kind: Name,
    wanted: Arc<dyn Fn(&str) -> bool + Send + Sync>,
    entered: Arc<dyn Fn(&str) -> bool + Send + Sync>,
    /// The folders that the last look entered.
    folders: Arc<Mutex<BTreeSet<String>>>,
    steady: Steady,
    /// Files that cannot be taken as they are, and when that may be otherwise.
    left: Vec<(Seen, Option<Instant>)>,
    /// Whether more files are kept than can be remembered.
    too_many: bool,
    stop: CancellationToken,
}

/// What a look found.
struct Found {
    /// The files to take, in order.
    files: Vec<Seen>,
}

/// When to look again.
#[derive(Debug, Clone, Copy)]
enum Next {
    /// In the trigger's rhythm.
    Turn,
    /// At this time, or earlier in the trigger's rhythm.
    At(Instant),
}

impl Running {
    /// A pickup of a resource.
    pub fn new(
        agent: Arc<Agent>,
        resource: Shared,
        rule: Pickup,
        key: Key,
        kind: Name,
        stop: CancellationToken,
    ) -> Self {
        let matcher = rule.pattern.compile_matcher();
        let marker = match &rule.stable {
            Stable::DoneMarker(form) => form.split_once("{name}").map(|(a, b)| (a.to_owned(), b.to_owned())),
            Stable::Rename | Stable::Quiet(_) | Stable::Looks(_) => None,
        };
        let away = match &rule.after {
            After::MoveTo(target) => inside(&rule.folder, target),
            After::Delete | After::Keep => None,
        };
        let deep = rule.pattern.glob().contains('/') || rule.pattern.glob().contains("**");
        let below = move |path: &str| {
            let away = away.as_deref().filter(|away| !away.is_empty());
            away.is_some_and(|away| {
                path.strip_prefix(away).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            })
        };
        let below = Arc::new(below);
        let folders = Arc::<Mutex<BTreeSet<String>>>::default();
        let (outside, entered_folders) = (Arc::clone(&below), Arc::clone(&folders));
        let wanted = Arc::new(move |path: &str| {
            let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
            let is_marker = marker.as_ref().is_some_and(|(before, after)| {
                let between =
                    name.strip_prefix(before.as_str()).and_then(|name| name.strip_suffix(after.as_str()));
                between.is_some_and(|between| !between.is_empty())
            });
            matcher.is_match(path) && !is_marker && !outside(path)
        });
        let folder = rule.folder.clone();
        let entered = Arc::new(move |path: &str| {
            let enters = deep && !below(path);
            if enters {
                let mut folders = entered_folders.lock().unwrap_or_else(PoisonError::into_inner);
                if folders.len() < MOST_FOLDERS {
                    folders.insert(if folder.is_empty() {
                        path.to_owned()
                    } else {
                        format!("{folder}/{path}")
                    });
                }
            }
            enters
        });
        let steady = Steady::new(rule.stable.clone(), rule.every);
        Self {
            agent,
            resource,
            rule,
            key,
            kind,
            wanted,
            entered,
            folders,
            steady,
            left: Vec::new(),
            too_many: false,
            stop,
        }
    }

    /// Runs until it is stopped.
    pub async fn run(mut self) {
        let connector = Arc::clone(&self.resource.connector);
        let Some(triggers) = connector.triggers() else { return };
        let mut notices = triggers.notices(&self.rule.folder);
        let mut failures = 0;
        while let Some(lease) = gate::wait(&self.agent, &self.key, &self.stop).await {
            let begun = Instant::now();
            let next = match self.turn(triggers, lease).await {
                Ok(next) => {
                    failures = 0;
                    next
                }
                Err(failure) => {
                    failures = (failures + 1).min(MOST_TURNS);
                    self.problem(&failure);
                    Next::At(begun + self.rule.every * failures)
                }
            };
            if let Some(notices) = &mut notices {
                let mut folders = self.folders.lock().unwrap_or_else(PoisonError::into_inner);
                notices.cover(&folders.iter().cloned().collect::<Vec<_>>());
                folders.clear();
            }
            let gap = GAP.0.max(begun.elapsed() * GAP.1).min(self.rule.every);
            let earliest = Instant::now() + gap;
            let turn = begun + self.rule.every;
            let due = match next {
                Next::Turn => turn,
                Next::At(at) if failures > 0 => at,
                Next::At(at) => at.min(turn),
            };
            self.rest(due.max(earliest), earliest, &mut notices).await;
        }
    }

    /// Waits until it is time, or something changed; in any case until `earliest`.
    async fn rest(&self, due: Instant, earliest: Instant, notices: &mut Option<Box<dyn Notices>>) {
        let changed = async {
            match notices {
                Some(notices) => notices.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = sleep_until(due) => {}
            () = changed => tokio::select! {
                () = sleep_until(earliest) => {}
                () = self.stop.cancelled() => {}
            },
            () = self.stop.cancelled() => {}
        }
    }

    fn problem(&self, failure: &Failure) {
        if self.agent.triggers.board.looked(&self.key, None, Some(failure.message.clone())) {
            warn!(
                resource = %self.key.resource, trigger = %self.key.trigger, error = %failure,
                "The folder of a pickup cannot be looked at, or a file in it not be taken; trying again"
            );
        }
    }

    fn patience(&self) -> Patience {
        Patience { timeout: TIMEOUT, cancel: self.stop.clone() }
    }

    /// One look, and what follows from it.
    async fn turn(&mut self, triggers: &dyn Triggers, lease: u64) -> Result<Next, Failure> {
        let found = self.look(triggers).await?;
        if self.too_many {
            let why = format!("more than {MOST_REMEMBERED} files are kept in its folder: move old ones away");
            self.agent.triggers.board.looked(&self.key, None, Some(why));
            return Ok(Next::Turn);
        }
        let now = Instant::now();
        for file in &found.files {
            self.steady.note(file, now);
        }
        self.steady.keep(&found.files);
        let mut soonest: Option<Instant> = None;
        let mut waits = found.files.len() as u64;
        for file in found.files {
            let marker = match self.marker(triggers, &file).await? {
                Marker::NotNeeded => None,
                Marker::There(marker) => Some(marker),
                Marker::Missing if self.rule.order.is_some() => break,
                Marker::Missing => continue,
            };
            match self.steady.judge(&file, marker.is_some(), Instant::now()) {
                Judgement::Whole => {}
                Judgement::Wait(at) => {
                    soonest = Some(soonest.map_or(at, |soonest| soonest.min(at)));
                    if self.rule.order.is_some() {
                        break;
                    }
                    continue;
                }
                Judgement::LookAgain if self.rule.order.is_some() => break,
                Judgement::LookAgain => continue,
            }
            match gate::pass(&self.agent, &self.key) {
                Ok(now) if now == lease => {}
                // It may go on after the next look.
                Ok(_) | Err(Blocked::Stopping) => break,
                Err(why) => {
                    gate::tell(&self.agent, &self.key, Some(&why));
                    break;
                }
            }
            match self.take(&file, marker, lease).await {
                Outcome::Taken | Outcome::Known => {
                    self.steady.forget(&file.path);
                    self.agent.triggers.board.keep_left(&self.key, |path| path != file.path);
                    waits = waits.saturating_sub(1);
                }
                Outcome::Changed => {
                    self.steady.forget(&file.path);
                    // Looked at anew soon, since it is being written, or was put there just now.
                    let soon = Instant::now() + GAP.0;
                    soonest = Some(soonest.map_or(soon, |soonest| soonest.min(soon)));
                    if self.rule.order.is_some() {
                        break;
                    }
                }
                Outcome::NoRoom => {
                    gate::tell(&self.agent, &self.key, Some(&Blocked::NoRoom));
                    gate::wait_for_room(&self.agent, file.size, &self.stop).await;
                    soonest = Some(Instant::now());
                    break;
                }
                Outcome::Left { why, may_change } => {
                    self.steady.forget(&file.path);
                    self.leave(file, &why, may_change);
                }
                Outcome::Later(failure) => return Err(failure),
            }
        }
        self.agent.triggers.board.looked(&self.key, Some(waits), None);
        Ok(soonest.map_or(Next::Turn, Next::At))
    }

    fn leave(&mut self, file: Seen, why: &str, may_change: bool) {
        warn!(resource = %self.key.resource, trigger = %self.key.trigger, path = file.path, why, "A file is left where it is until it changes");
        self.agent.metrics.files_left.inc();
        self.agent.triggers.board.left(&self.key, &file.path, why);
        if self.left.len() < MOST_LEFT {
            self.left.push((file, may_change.then(|| Instant::now() + TRY_AGAIN)));
        }
    }

    /// Every file that is there and was not taken yet: as many as are waited for, in the trigger's order.
    async fn look(&mut self, triggers: &dyn Triggers) -> Result<Found, Failure> {
        let now = Instant::now();
        self.left.retain(|(_, again)| again.is_none_or(|again| now < again));
        let (mut files, mut there) = (Vec::new(), HashSet::new());
        let (mut after, mut all) = (None, true);
        loop {
            let scan = Scan {
                folder: self.rule.folder.clone(),
                wanted: Arc::clone(&self.wanted),
                entered: Arc::clone(&self.entered),
                after,
                limit: PAGE,
            };
            let page = triggers.scan(scan, &self.patience()).await?;
            if page.unreadable > 0 {
                debug!(names = page.unreadable, "Names that are not UTF-8 are not picked up");
            }
            if there.len() < MOST_KNOWN {
                there.extend(page.files.iter().map(|file| hash(&file.path)));
            }
            let unknown =
                self.agent.journal.unknown(self.key.resource.clone(), self.kind.clone(), page.files);
            let unknown = unknown.await.map_err(|error| {
                Failure::retry(passerelle_connectors::Code::Internal, "the agent's journal cannot be read")
                    .detail(error)
            })?;
            files.extend(unknown.into_iter().filter(|file| self.left.iter().all(|(left, _)| left != file)));
            if files.len() > MOST {
                if self.rule.order == Some(Order::Time) {
                    files.sort_by(by_time);
                }
                files.truncate(MOST);
                if self.rule.order != Some(Order::Time) {
                    // Those after these come when these are gone.
                    all = false;
                    break;
                }
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        if self.rule.order == Some(Order::Time) {
            files.sort_by(by_time);
        }
        if all && there.len() < MOST_KNOWN {
            self.left.retain(|(file, _)| there.contains(&hash(&file.path)));
            self.agent.triggers.board.keep_left(&self.key, |path| there.contains(&hash(path)));
            self.forget_gone(there).await;
        }
        Ok(Found { files })
    }

    /// Forgets what was remembered of files that are gone.
    async fn forget_gone(&mut self, there: HashSet<u64>) {
        let forgotten =
            self.agent.journal.forget_gone(self.key.clone(), self.kind.clone(), there, hash).await;
        match forgotten {
            Ok(left) => self.too_many = left >= MOST_REMEMBERED,
            Err(error) => debug!(%error, "What is gone cannot be forgotten yet"),
        }
    }

    async fn marker(&self, triggers: &dyn Triggers, file: &Seen) -> Result<Marker, Failure> {
        let Stable::DoneMarker(form) = &self.rule.stable else { return Ok(Marker::NotNeeded) };
        let (folder, name) =
            file.path.rsplit_once('/').map_or((None, file.path.as_str()), |(f, n)| (Some(f), n));
        let name = form.replace("{name}", name);
        let path = folder.map_or(name.clone(), |folder| format!("{folder}/{name}"));
        let marker = triggers.look(&path, &self.patience()).await?;
        // One that is older than the file is that of the file before.
        let fits =
            |marker: &Seen| marker.modified.zip(file.modified).is_none_or(|(marker, file)| marker >= file);
        Ok(marker.filter(fits).map_or(Marker::Missing, Marker::There))
    }

    async fn take(&self, file: &Seen, marker: Option<Seen>, lease: u64) -> Outcome {
        let follow = match &self.rule.after {
            After::Delete => Follow::Delete,
            After::Keep => Follow::Keep,
            After::MoveTo(target) => {
                let path = inside(&self.rule.folder, &file.path).unwrap_or_else(|| file.path.clone());
                Follow::MoveTo(if target.is_empty() { path } else { format!("{target}/{path}") })
            }
        };
        let what = What {
            key: self.key.clone(),
            kind: self.kind.clone(),
            lease,
            seen: file.clone(),
            marker,
            follow,
            max_size: self.rule.max_size.map(|size| size.0),
            before: None,
        };
        take(&self.agent, &self.resource, what, &self.stop).await
    }
}

enum Marker {
    NotNeeded,
    There(Seen),
    Missing,
}

/// The path below a folder, if it is there.
fn inside(folder: &str, path: &str) -> Option<String> {
    if folder.is_empty() {
        return Some(path.to_owned());
    }
    let rest = path.strip_prefix(folder)?;
    rest.strip_prefix('/').or(rest.is_empty().then_some("")).map(str::to_owned)
}

fn by_time(a: &Seen, b: &Seen) -> std::cmp::Ordering {
    (a.modified, &a.path).cmp(&(b.modified, &b.path))
}

fn hash(path: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    hasher.finish()
}

/// The kind's name.
pub fn kind() -> Option<Name> {
    PICKUP.parse().ok()
}
