//! One live session: a task that owns the state machine, and a task that writes to the socket.
//!
//! The writing task stands behind a bounded channel, so a peer that does not read never keeps the session from noticing
//! that it is dead. What the agent tells goes to the store in order; while the store's queue is full the session stops
//! reading, which holds the agent back through TCP.

pub(super) mod calls;
mod commands;
mod events;
mod keys;
mod socket;
mod storing;

use super::registry::{COMMANDS, Command, Heard};
use crate::{
    clock,
    model::AgentRecord,
    store::{Error, Store, sessions},
};
use futures_util::StreamExt as _;
use passerelle_protocol::{
    Hello, JobId, KeyId, PROTOCOL_VERSION, Progress, Refuse, SessionId, VersionRange,
    session::{Attempt, Frame, HubEvent, HubSession},
};
use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{OwnedSemaphorePermit, mpsc, oneshot},
    time::{sleep_until, timeout},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};
use tokio_util::sync::CancellationToken;

/// How many frames may wait for the socket.
const OUT: usize = 64;
/// How many events may wait for the store before nothing more is read.
const UNSTORED: usize = 256;
/// How often the progress of one attempt is stored, at most.
const PROGRESS: Duration = Duration::from_millis(250);
/// How long the last frames may take.
const GOODBYE: Duration = Duration::from_secs(5);
/// When an agent may come back after a fault of the hub.
const COME_BACK_S: u32 = 5;
/// The same for one that trusts none of the hub's keys: an operator has to act first.
const UNTRUSTED_S: u32 = 60;

/// What the hub speaks.
pub(super) const VERSIONS: VersionRange = VersionRange { min: PROTOCOL_VERSION, max: PROTOCOL_VERSION };

/// Runs a session over an upgraded connection until it ends.
pub(super) async fn run<S>(store: Store, agent: Arc<AgentRecord>, socket: S, closing: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stream = WebSocketStream::from_raw_socket(socket, Role::Server, Some(socket::config())).await;
    let (sink, mut stream) = stream.split();
    let (frames, out) = mpsc::channel(OUT);
    let writer = tokio::spawn(socket::write(sink, out));
    let mut session = Session::new(store, agent, frames, closing.child_token());
    session.serve(&mut stream).await;
    let (store, agent, clone) = (session.store.clone(), session.agent.id, session.clone);
    let answers = async {
        let closed = stream.any(async |message| matches!(message, Ok(Message::Close(_))));
        clone && timeout(GOODBYE, closed).await.unwrap_or(false)
    };
    let ((), lives) = tokio::join!(session.end(writer), answers);
    if lives {
        tracing::warn!(
            "Two live processes use this agent's identity: a copy of its state folder runs elsewhere; enrol one of them \
             anew (`passerelle-agent re-enrol`), or revoke the agent if nobody of yours copied it"
        );
        if let Err(error) = store.clone_seen(agent).await {
            tracing::error!(%error, "Could not note that an agent has a clone");
        }
    }
}

/// What a select arm woke up for.
enum Wake {
    Frame(Option<Result<Message, tokio_tungstenite::tungstenite::Error>>),
    Command(Option<Command>),
    Place(Result<OwnedSemaphorePermit, Error>),
    Timeout,
    Written,
    Closing,
}

struct Session {
    store: Store,
    agent: Arc<AgentRecord>,
    id: SessionId,
    machine: HubSession,
    frames: mpsc::Sender<Message>,
    /// The frame that waits for a place in `frames`.
    blocked: Option<Message>,
    commands: mpsc::Receiver<Command>,
    own: mpsc::Sender<Command>,
    unstored: VecDeque<HubEvent>,
    /// The hello went to the store: the registry may hold this session from here on.
    arrived: bool,
    epoch: u64,
    heard: Arc<Heard>,
    progress: HashMap<Attempt, Instant>,
    /// Attempts that wait for the grant of a path.
    asking: HashSet<Attempt>,
    /// Who waits for which call.
    calls: HashMap<JobId, oneshot::Sender<calls::Answered>>,
    closing: CancellationToken,
    /// Why the connection ended without a word of the session.
    lost: Option<String>,
    /// The hub's keys that the agent trusts, by its hello.
    trusted: Vec<KeyId>,
    /// The newest of them that it was told of since.
    known: Option<KeyId>,
    /// Another process with the agent's identity has fenced this one.
    clone: bool,
    /// When the leases of its triggers are next renewed, if it announced any.
    renewal: Option<Instant>,
}

impl Session {
    fn new(
        store: Store,
        agent: Arc<AgentRecord>,
        frames: mpsc::Sender<Message>,
        closing: CancellationToken,
    ) -> Self {
        let (own, commands) = mpsc::channel(COMMANDS);
        let heartbeat = store.shared().registry.lease() / 4;
        Self {
            store,
            agent,
            id: SessionId::from(clock::new_uuid7()),
            // Its answers to heartbeats renew the agent's lease.
            machine: HubSession::with_heartbeat(Instant::now(), heartbeat),
            frames,
            blocked: None,
            commands,
            own,
            unstored: VecDeque::new(),
            arrived: false,
            epoch: 0,
            heard: Arc::new(Heard::now()),
            progress: HashMap::new(),
            asking: HashSet::new(),
            calls: HashMap::new(),
            closing,
            lost: None,
            trusted: Vec::new(),
            known: None,
            clone: false,
            renewal: None,
        }
    }

    async fn serve<S>(&mut self, stream: &mut futures_util::stream::SplitStream<WebSocketStream<S>>)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        loop {
            self.push_frames();
            let Some(next) = self.machine.poll_timeout() else { return };
            let next = self.renewal.map_or(next, |renewal| next.min(renewal));
            let wake = tokio::select! {
                // Commands before frames: an acknowledgement frees the place of the offer behind it.
                biased;
                () = sleep_until(next.into()) => Wake::Timeout,
                () = self.closing.cancelled() => Wake::Closing,
                command = self.commands.recv() => Wake::Command(command),
                place = self.store.place(), if !self.unstored.is_empty() => Wake::Place(place),
                sent = self.frames.reserve(), if self.blocked.is_some() => {
                    if let (Ok(place), Some(message)) = (sent, self.blocked.take()) {
                        place.send(message);
                    }
                    Wake::Written
                }
                frame = stream.next(), if self.unstored.len() < UNSTORED => Wake::Frame(frame),
            };
            match wake {
                Wake::Timeout => {
                    self.machine.handle_timeout(Instant::now());
                    self.renew_when_due();
                }
                Wake::Closing => self.refuse("busy", "the hub is being restarted: come back", false, Some(1)),
                Wake::Command(Some(command)) => self.obey(command).await,
                // Not while `own` is held.
                Wake::Command(None) => return,
                Wake::Place(Ok(place)) => {
                    if let Some(event) = self.unstored.pop_front() {
                        self.store_event(place, event);
                    }
                }
                Wake::Place(Err(error)) => self.give_up(&error),
                Wake::Written => {}
                Wake::Frame(Some(Ok(message))) => self.receive(message),
                Wake::Frame(Some(Err(error))) => {
                    self.lost = Some(error.to_string());
                    return;
                }
                Wake::Frame(None) => {
                    self.lost = Some("the connection was closed".to_owned());
                    return;
                }
            }
            while let Some(event) = self.machine.poll_event() {
                self.take_event(event);
            }
        }
    }

    /// Moves frames to the writing task as far as it takes them.
    fn push_frames(&mut self) {
        while self.blocked.is_none()
            && let Some(frame) = self.machine.poll_frame()
        {
            let message = match frame {
                Frame::Text(text) => Message::Text(text.into()),
                Frame::Ping => Message::Ping(bytes::Bytes::new()),
                Frame::Pong => Message::Pong(bytes::Bytes::new()),
            };
            if let Err(mpsc::error::TrySendError::Full(message)) = self.frames.try_send(message) {
                self.blocked = Some(message);
            }
        }
    }

    fn receive(&mut self, message: Message) {
        self.heard.again();
        let frame = match message {
            Message::Text(text) => Frame::Text(text.as_str().to_owned()),
            Message::Ping(_) => Frame::Ping,
            Message::Pong(_) => Frame::Pong,
            // Not JSON text: the session says so.
            Message::Binary(_) => Frame::Text(String::new()),
            Message::Close(_) | Message::Frame(_) => return,
        };
        self.machine.handle_frame(frame, Instant::now());
    }

    fn take_event(&mut self, event: HubEvent) {
        match event {
            HubEvent::Progress(progress) if !self.is_news(&progress) => {}
            HubEvent::Draining => {
                tracing::info!("Agent drains");
                self.store.shared().registry.drain(self.agent.id, self.id);
            }
            // Whoever waits is told at once; nothing of a call is stored.
            HubEvent::CallEnded(result) => self.call_ended(result),
            HubEvent::CallDeclined(declined) => self.call_declined(declined),
            HubEvent::CallLost(call) => self.call_lost(call),
            HubEvent::Unsupported(of) => tracing::warn!(of, "Message of an unknown type"),
            HubEvent::Hello(hello) => match self.check(&hello) {
                Ok(()) if self.store.shared().keyring.keys().after(&hello.hub_keys).is_none() => {
                    let message = "this agent trusts none of the hub's signing keys: the hub was restored from a backup \
                                   older than its key; re-enrol the agent, or restore a newer backup";
                    self.refuse("hub_key", message, false, Some(UNTRUSTED_S));
                }
                Ok(()) => self.unstored.push_back(HubEvent::Hello(hello)),
                Err((code, message)) => self.refuse(code, &message, true, None),
            },
            HubEvent::Accepted(_)
            | HubEvent::Declined(_)
            | HubEvent::Progress(_)
            | HubEvent::CommitRequested(_)
            | HubEvent::Reported(_)
            | HubEvent::Event(_)
            | HubEvent::Cursor(_) => self.unstored.push_back(event),
        }
    }

    /// The first progress of an attempt tells that it runs; later ones are worth a write only now and then.
    fn is_news(&mut self, progress: &Progress) -> bool {
        let attempt = Attempt::new(progress.job, progress.attempt);
        let now = Instant::now();
        match self.progress.get(&attempt) {
            Some(last) if now.duration_since(*last) < PROGRESS => false,
            _ => {
                self.progress.insert(attempt, now);
                true
            }
        }
    }

    fn check(&self, hello: &Hello) -> Result<(), (&'static str, String)> {
        if hello.agent != self.agent.id {
            return Err(("bad_hello", "hello names another agent than the token".to_owned()));
        }
        match hello.versions.common(VERSIONS) {
            Some(_) => Ok(()),
            None => Err((
                "version",
                format!(
                    "the hub speaks versions {} to {}, the agent {} to {}: update the older one",
                    VERSIONS.min, VERSIONS.max, hello.versions.min, hello.versions.max
                ),
            )),
        }
    }

    fn give_up(&mut self, error: &Error) {
        tracing::error!(session_id = %self.id, error = %error, "Could not store what the agent told");
        self.refuse("busy", "the hub cannot store anything now: come back", false, Some(COME_BACK_S));
    }

    fn refuse(&mut self, code: &str, message: &str, permanent: bool, retry_after_s: Option<u32>) {
        self.machine.refuse(Refuse {
            code: code.to_owned(),
            message: message.to_owned(),
            permanent,
            retry_after_s,
            versions: VERSIONS,
            server_time: clock::now(),
        });
    }

    /// Sends what is still to be said, closes, and leaves the registry.
    async fn end(mut self, writer: tokio::task::JoinHandle<()>) {
        let why = match (self.machine.closed(), &self.lost) {
            (Some(reason), _) => reason.to_string(),
            (None, Some(lost)) => lost.clone(),
            (None, None) => "let go".to_owned(),
        };
        tracing::info!(session_id = %self.id, reason = why, "Session ended");
        // At once, so that nothing more is dispatched to it; the store notes it in its own time.
        self.store.shared().registry.remove(self.agent.id, self.id);
        // Whoever waits for a call hears that its effect is not known.
        self.calls.clear();
        let stop_writer = writer.abort_handle();
        let goodbye = async {
            let mut last: Vec<Message> = self.blocked.take().into_iter().collect();
            while let Some(frame) = self.machine.poll_frame() {
                if let Frame::Text(text) = frame {
                    last.push(Message::Text(text.into()));
                }
            }
            if let Some(reason) = self.machine.closed() {
                last.push(Message::Close(Some(socket::close_frame(reason))));
            }
            for message in last {
                if self.frames.send(message).await.is_err() {
                    break;
                }
            }
            drop(self.frames);
            drop(writer.await);
        };
        if timeout(GOODBYE, goodbye).await.is_err() {
            tracing::debug!(session_id = %self.id, "The peer did not take the last frames");
            stop_writer.abort();
        }
        if self.arrived
            && let Ok(place) = self.store.place().await
        {
            let (agent, id) = (self.agent.id, self.id);
            // The store is closing: then there is nobody to tell.
            drop(self.store.order(place, true, move |tx| sessions::closed(tx, agent, id), drop));
        }
    }
}
