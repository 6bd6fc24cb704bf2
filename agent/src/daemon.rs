//! `passerelle-agent run`: puts the parts together, keeps them going, and drains them on a signal.
//!
//! How it drains is in `drain`.

use crate::{
    agent::Agent,
    audit::{self, Entry, Kind, keeper::Keeper},
    calls::Calls,
    clock, control, drain,
    enrol::{EnrolError, enrol},
    exit::Stop,
    footprint,
    hub::Hub,
    identity::Identity,
    journal::{Found, Journal, JournalError},
    listeners,
    local::{self, Local},
    logs::{self, LogLevel},
    metrics::Metrics,
    outbox::Outbox,
    pause::{self, Pauses},
    policy::volume::Volume,
    pressure::{self, Pressure},
    probe,
    registry::Registry,
    reload::{self, watch::Folder},
    rotate,
    runner::{self, spool::Spool},
    settings::Settings,
    signals::Signals,
    state::{Refusal, StateDir},
    status::{Link, Status, Who},
    sweep,
    triggers::{self, Triggers},
    tunnel::{
        self,
        backoff::{Backoff, random},
    },
};
use passerelle_protocol::Sha256;
use std::{
    convert::Infallible,
    sync::{Arc, RwLock, atomic::Ordering},
    time::Duration,
};
use tokio::{
    sync::{Mutex, Notify, watch},
    task::{JoinHandle, spawn_blocking},
    time::{Instant, interval, sleep, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument as _, error, info, info_span, warn};

/// How long tasks may take to end after the drain.
const STOP_TIME: Duration = Duration::from_secs(5);
/// How long the last rows of the audit may take into its files and copies.
const AUDIT_TIME: Duration = Duration::from_secs(2);
/// How often old rows are pruned from the journal, in seconds.
const PRUNE_EVERY: u32 = 600;
/// How often memory is given back that was not used since, in seconds.
const GIVE_BACK_EVERY: u32 = 60;
/// When the start is over, most likely; in seconds.
const SETTLED: u32 = 2;

/// Runs the agent until it is stopped or refused.
///
/// # Errors
/// With the exit code of [`Stop`].
pub async fn run(settings: Settings) -> Result<(), Stop> {
    let logs = logs::start(&settings.config.log)?;
    let result = Box::pin(run_logged(settings, logs.level.clone())).await;
    logs.ended(&result);
    result
}

async fn run_logged(settings: Settings, logs: LogLevel) -> Result<(), Stop> {
    for warning in &settings.config.warnings {
        warn!("{warning}");
    }
    let folder = Folder::look(&settings.config.dir, settings.files(), &Folder::default());
    let settings = Arc::new(settings);
    let mut signals = Signals::listen()?;
    let state = Arc::new(StateDir::open_patiently(&settings.state_dir()).await?);
    let listener = local::bind(&settings).await?;
    // For `health` and `status` while the configuration cannot be read.
    let listen = settings.config.agent.listen.to_string();
    if let Err(error) = state.write(passerelle_config::LISTEN_FILE, listen.as_bytes()) {
        return Err(Stop::Configuration(crate::state::unwritable(state.path(), &error)));
    }
    let hub = Hub::new(&settings)?;
    info!(
        version = crate::VERSION, name = %settings.name, hub = %settings.config.hub.url, listen = %settings.config.agent.listen,
        resources = settings.resources.len(), proxy = ?hub.proxy, "Starting"
    );
    let status = Arc::new(Status::new(reload::shown(&settings)));
    let metrics = Arc::new(Metrics::default());
    let pressure = Arc::new(Pressure::new(settings.config.agent.journal_quota.0));
    let local = Arc::new(Local::new(
        Arc::clone(&settings),
        Arc::clone(&status),
        Arc::clone(&metrics),
        Arc::clone(&pressure),
        Arc::new(Pauses::open(Arc::clone(&state))?),
    ));
    let closing = CancellationToken::new();
    let port = tokio::spawn(local::serve(listener, Arc::clone(&local), closing.clone()));
    if let Some(socket) = control::bind(state.path()) {
        tokio::spawn(control::serve(socket, Arc::clone(&local), closing.clone()));
    }

    let opened = Journal::open(state.path()).map_err(|error| match error {
        JournalError::Newer { .. } => Stop::Configuration(error.to_string()),
        JournalError::Storage(_) | JournalError::Closed => Stop::Configuration(format!(
            "{error}: check the disk and the rights of {}",
            state.path().display()
        )),
    })?;
    drop(local.journal.set(opened.journal.clone()));
    if opened.set_aside.is_some() {
        metrics.journal_set_aside.inc();
    }

    opened.journal.note(Entry::new(Kind::AgentStarted).detail(&format!("version {}", crate::VERSION)));
    let starting = Box::pin(identify(&settings, &state, &hub, &status, &opened.journal));
    let identity = tokio::select! {
        identity = starting => identity,
        () = signals.stop() => {
            info!("Stopped before the agent was enrolled");
            opened.journal.note(Entry::new(Kind::AgentStopped));
            opened.journal.close().await;
            return Ok(());
        }
        never = ticking(&status) => match never {},
    };
    let identity = match identity {
        Ok(identity) => identity,
        Err(stop) => {
            opened.journal.note(Entry::new(Kind::AgentStopped).detail(&stop.to_string()));
            opened.journal.close().await;
            return Err(stop);
        }
    };
    let agent = assemble(settings, state, identity, hub, opened.journal, &local)?;
    drop(local.agent.set(Arc::clone(&agent)));
    sweep_spool(&agent, &opened.found).await;
    let reloads = signals.hangup.take().map(|hangup| reload::run(Arc::clone(&agent), hangup, logs, folder));
    let span = agent.span.clone();
    let ended = Box::pin(serve(&agent, &local, opened.found, signals, reloads)).instrument(span).await;
    agent.journal.close().await;
    closing.cancel();
    // Whoever asks just now gets an answer; a client that does not read must not keep the agent.
    if timeout_at(Instant::now() + Duration::from_secs(1), port).await.is_err() {
        info!("A client of the local port was cut off");
    }
    ended
}

/// Puts an agent together that has its identity.
pub fn assemble(
    settings: Arc<Settings>,
    state: Arc<StateDir>,
    identity: Identity,
    hub: Hub,
    journal: Journal,
    local: &Local,
) -> Result<Arc<Agent>, Stop> {
    let Local { status, metrics, pressure, pauses, .. } = local;
    let enrolled = &identity.enrolled;
    status.set_who(Who {
        agent: enrolled.agent.to_string(),
        tenant: enrolled.tenant.clone(),
        site: enrolled.site.clone(),
    });
    if enrolled.hub != settings.config.hub.url.as_str() {
        warn!(enrolled_at = %enrolled.hub, hub = %settings.config.hub.url, "hub.url is not the one of the enrolment");
    }
    let span = info_span!("agent", agent_id = %enrolled.agent);
    let spool = Spool::open(state.path(), settings.config.agent.spool_quota.0)
        .map_err(|e| Stop::Configuration(crate::state::unwritable(&state.path().join("spool"), &e)))?;
    let volume = Arc::new(Volume::open(Arc::clone(&state))?);
    pressure.note_journal(state.path());
    Ok(Arc::new(Agent {
        current: RwLock::new(settings),
        announced: watch::Sender::new(0),
        state,
        identity,
        hub,
        journal,
        registry: Registry::default(),
        calls: Calls::since(clock::now().as_millisecond()),
        outbox: Outbox::default(),
        pauses: Arc::clone(pauses),
        volume,
        spool,
        triggers: Triggers::default(),
        pressure: Arc::clone(pressure),
        status: Arc::clone(status),
        metrics: Arc::clone(metrics),
        finished: Notify::new(),
        tasks: TaskTracker::new(),
        draining: false.into(),
        close: CancellationToken::new(),
        halt: CancellationToken::new(),
        span,
        instance: uuid::Uuid::now_v7().to_string(),
    }))
}

/// Removes spool files that nothing in the journal needs.
async fn sweep_spool(agent: &Agent, found: &[Found]) {
    let attempts = found.iter().map(|one| match one {
        Found::Job(job, _) => job.attempt,
        Found::Upload(attempt, _) | Found::Report(attempt, _) => *attempt,
    });
    let swept = match triggers::begin(agent).await {
        Ok(events) => agent.spool.sweep(&attempts.chain(events).collect()).map_err(|e| e.to_string()),
        Err(error) => Err(error.to_string()),
    };
    if let Err(error) = swept {
        warn!(error, "The spool cannot be swept");
    }
}

async fn ticking(status: &Status) -> Infallible {
    let mut ticks = interval(Duration::from_secs(1));
    loop {
        ticks.tick().await;
        status.tick();
    }
}

/// An agent that drains is alive.
async fn while_ticking(agent: &Agent, work: impl Future<Output = ()>) {
    tokio::select! {
        () = work => {}
        never = ticking(&agent.status) => match never {},
    }
}

/// The identity, by enrolling if need be; waits out a refusal that is remembered.
async fn identify(
    settings: &Settings,
    state: &StateDir,
    hub: &Hub,
    status: &Status,
    journal: &Journal,
) -> Result<Identity, Stop> {
    let known = Identity::load(state)?;
    let subject = match &known {
        Some(identity) => identity.enrolled.agent.to_string(),
        None => token_name(settings),
    };
    if let Some((refusal, left)) = Refusal::last(state, &subject, clock::now()) {
        let why = format!(
            "the hub refused this agent at {} ({}: {}); asking again in {} s",
            refusal.at,
            refusal.code,
            refusal.message,
            left.as_secs()
        );
        warn!("{why}");
        status.set_link(Link::Starting { why });
        sleep(left).await;
    }
    if let Some(identity) = known {
        tell(&identity, state, journal).await;
        return Ok(identity);
    }
    let mut backoff = Backoff::default();
    loop {
        let (message, after) = match enrol(settings, state, hub).await {
            Ok(identity) => {
                tell(&identity, state, journal).await;
                return Ok(identity);
            }
            Err(EnrolError::Stop(stop)) => {
                journal.note(Entry::new(Kind::RefusedByHub).hub_code("enrolment").detail(&stop.to_string()));
                if let Stop::Refused(message) = &stop {
                    Refusal::now("enrolment", message.clone(), subject).remember(state);
                }
                return Err(stop);
            }
            Err(EnrolError::Later { message, after }) => (message, after),
        };
        let wait = backoff.next(random(), after);
        warn!(
            error = message,
            retry_in_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
            "Not enrolled yet"
        );
        status.set_link(Link::Starting { why: format!("not enrolled yet: {message}") });
        sleep(wait).await;
    }
}

/// Writes a new identity into the audit, be it this process's or that of `enrol` or `re-enrol`.
async fn tell(identity: &Identity, state: &StateDir, journal: &Journal) {
    if !identity.is_untold() {
        return;
    }
    let enrolled = &identity.enrolled;
    let told = format!("agent {}, site {}, {}", enrolled.agent, enrolled.site, enrolled.application);
    let written = journal.audit(Entry::new(Kind::Enrolled).detail(&told)).await.map_err(|e| e.to_string());
    if let Err(error) = written.and_then(|()| identity.told(state).map_err(|e| e.to_string())) {
        warn!(error, "That the agent has enrolled will be told in the audit again");
    }
}

/// Tells one enrolment token from another without keeping it.
fn token_name(settings: &Settings) -> String {
    let token = settings.config.hub.enrolment_token.as_ref().and_then(|t| t.read(&settings.config.dir).ok());
    token.map_or(String::new(), |token| {
        let digest = Sha256::of(token.expose().as_bytes()).to_string();
        format!("token {}", digest.chars().take(16).collect::<String>())
    })
}

/// The main loop, then the drain.
async fn serve(
    agent: &Arc<Agent>,
    local: &Local,
    found: Vec<Found>,
    mut signals: Signals,
    reloads: Option<impl Future<Output = ()> + Send + 'static>,
) -> Result<(), Stop> {
    // Before the tunnel: what its `hello` does not name as held, the hub takes for lost.
    runner::resume(agent, found);
    let mut tunnel = tokio::spawn(tunnel::run(Arc::clone(agent)).in_current_span());
    let probes = tokio::spawn(probe::all(Arc::clone(agent)).in_current_span());
    let reloads = reloads.map(|reloads| tokio::spawn(reloads.in_current_span()));
    let pauses = tokio::spawn(pause::keep(Arc::clone(agent)).in_current_span());
    let sweeping = tokio::spawn(sweep::run(Arc::clone(agent)).in_current_span());
    let triggers = tokio::spawn(triggers::run(Arc::clone(agent)).in_current_span());
    let mut listening = tokio::spawn(listeners::run(Arc::clone(agent)).in_current_span());
    let rotating = tokio::spawn(rotate::run(Arc::clone(agent)).in_current_span());
    let upkeep = tokio::spawn(upkeep(Arc::clone(agent)).in_current_span());
    let audit = Auditing::start(agent);
    let ended = tokio::select! {
        ended = &mut tunnel => Some(ended),
        () = signals.stop() => None,
        never = ticking(&agent.status) => match never {},
    };
    probes.abort();
    sweeping.abort();
    triggers.abort();
    pauses.abort();
    rotating.abort();
    if let Some(reloads) = reloads {
        reloads.abort();
    }
    // Before the registry is asked whom to stop: what is reserved later sees it.
    agent.draining.store(true, Ordering::SeqCst);
    local.draining.store(true, Ordering::Relaxed);
    let result = match ended {
        Some(Ok(Some(refusal))) => {
            error!(code = refusal.code, "The hub refused this agent for good: {}", refusal.message);
            refusal.remember(&agent.state);
            // Running jobs may still end; their reports wait in the journal.
            while_ticking(agent, drain::finish_jobs(agent, &mut signals)).await;
            Err(Stop::Refused(format!("the hub refused this agent: {}: {}", refusal.code, refusal.message)))
        }
        Some(Ok(None)) => Err(Stop::Bug("the tunnel ended by itself".to_owned())),
        Some(Err(e)) => Err(Stop::Bug(format!("the tunnel failed: {e}"))),
        None => {
            while_ticking(agent, drain::drain(agent, &mut signals)).await;
            agent.close.cancel();
            // The session bounds its own goodbye.
            match tunnel.await {
                Ok(_) => Ok(()),
                Err(e) => Err(Stop::Bug(format!("the tunnel failed: {e}"))),
            }
        }
    };
    if timeout_at(Instant::now() + STOP_TIME, &mut listening).await.is_err() {
        listening.abort();
    }
    agent.halt.cancel();
    agent.tasks.close();
    if timeout_at(Instant::now() + STOP_TIME, agent.tasks.wait()).await.is_err() {
        warn!("Some tasks did not stop in time; what they did is in the journal");
    }
    upkeep.abort();
    agent.journal.note(match &result {
        Ok(()) => Entry::new(Kind::AgentStopped),
        Err(stop) => Entry::new(Kind::AgentStopped).detail(&stop.to_string()),
    });
    audit.stop(agent).await;
    info!("Stopped");
    result
}

/// What keeps the audit's files and copies.
struct Auditing {
    keeper: Arc<Mutex<Keeper>>,
    keeping: JoinHandle<()>,
    copies: JoinHandle<()>,
    stop: CancellationToken,
}

impl Auditing {
    fn start(agent: &Arc<Agent>) -> Self {
        let (keeper, stop) = (Arc::<Mutex<Keeper>>::default(), CancellationToken::new());
        let keeping = audit::keeper::run(Arc::clone(agent), Arc::clone(&keeper)).in_current_span();
        let copies = audit::export::run(Arc::clone(agent), stop.clone()).in_current_span();
        Self { keeper, keeping: tokio::spawn(keeping), copies: tokio::spawn(copies), stop }
    }

    /// Has the last rows filed and copied, within reason: what is not is so at the next start.
    async fn stop(self, agent: &Arc<Agent>) {
        let filed = async {
            if let Err(error) = agent.journal.flush().await {
                warn!(%error, "The last rows of the audit cannot be written");
            }
            self.keeper.lock().await.pass(agent, true).await;
            self.keeping.abort();
            self.stop.cancel();
            drop(self.copies.await);
        };
        if timeout_at(Instant::now() + AUDIT_TIME, filed).await.is_err() {
            warn!("The last rows of the audit are filed or copied at the next start");
        }
    }
}

/// Writes what is lazy, learns whether the journal takes writes again, prunes it, and sees how much room there is.
async fn upkeep(agent: Arc<Agent>) {
    let mut seconds = interval(Duration::from_secs(1));
    let mut count: u32 = 0;
    loop {
        seconds.tick().await;
        let done = if count.is_multiple_of(PRUNE_EVERY) {
            agent.journal.maintain(clock::unix_seconds()).await
        } else if agent.journal.needs_flush() {
            agent.journal.flush().await
        } else {
            Ok(())
        };
        if count % GIVE_BACK_EVERY == SETTLED {
            drop(spawn_blocking(footprint::give_back).await);
        }
        count = count.wrapping_add(1);
        pressure::look(&agent).await;
        if matches!(done, Err(JournalError::Closed)) {
            return;
        }
    }
}
