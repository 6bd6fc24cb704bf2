//! The agent of these tests, and the hub it talks to.

use crate::{
    clock,
    store::Store,
    testing::{Identity, name},
    tunnel::{Refusal, Tunnel},
};
use axum::{Router, extract::State, response::IntoResponse, serve::ListenerExt as _};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::{SinkExt as _, StreamExt as _};
use http::StatusCode;
use passerelle_protocol::{
    AgentToken, ConnectorAnnouncement, Effect, Envelope, Failure, HeldJob, HeldState, Hello, JobId, Offer,
    OperationAnnouncement, Outcome, OutputPayload, PROTOCOL_VERSION, PayloadSource, Progress, Repeat, Report,
    ResourceAnnouncement, SUBPROTOCOL, Sha256, Ticket, Verdict, VersionRange, Welcome,
    http::TUNNEL_PATH,
    session::{AgentEvent, AgentSession, Attempt, Frame},
};
use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error as WsError, Message, client::IntoClientRequest as _},
};

pub(super) const LONG: Duration = Duration::from_secs(20);

/// A hub that answers on loopback.
pub(super) struct Served {
    pub(super) tunnel: Tunnel,
    pub(super) address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Served {
    pub(super) async fn start(store: &Store) -> Self {
        let tunnel = Tunnel::new(store.clone());
        let app = Router::new()
            .fallback(async |State(tunnel): State<Tunnel>, request: axum::extract::Request| {
                tunnel.upgrade(request).await.map_err(|refusal: Refusal| {
                    (StatusCode::from_u16(refusal.status).unwrap(), refusal.detail).into_response()
                })
            })
            .with_state(tunnel.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let listener = listener.tap_io(|stream| stream.set_nodelay(true).unwrap());
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { tunnel, address, task }
    }

    /// As a hub that dies: connections are cut without a word.
    pub(super) async fn stop(self) {
        self.task.abort();
        self.tunnel.shutdown().await;
    }
}

pub(super) fn claims(identity: &Identity) -> AgentToken {
    let now = clock::unix();
    AgentToken {
        sub: identity.id,
        aud: identity.enrolled.audience.clone(),
        iat: now,
        exp: now + 60,
        jti: clock::new_uuid7().to_string(),
    }
}

pub(super) fn token(identity: &Identity, claims: &AgentToken) -> String {
    identity.key.sign(AgentToken::TYP, claims).unwrap()
}

pub(super) type Socket = WebSocketStream<TcpStream>;

/// Opens the WebSocket; or the status and text of the refusal.
pub(super) async fn dial(address: SocketAddr, token: &str) -> Result<Socket, (u16, String)> {
    let mut request = format!("ws://{address}{TUNNEL_PATH}").into_client_request().unwrap();
    request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request.headers_mut().insert("sec-websocket-protocol", SUBPROTOCOL.parse().unwrap());
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    match client_async(request, stream).await {
        Ok((socket, _)) => Ok(socket),
        Err(WsError::Http(response)) => {
            let text = response.body().clone().unwrap_or_default();
            Err((response.status().as_u16(), String::from_utf8(text).unwrap()))
        }
        Err(other) => panic!("{other}"),
    }
}

pub(super) fn hello(identity: &Identity) -> Hello {
    let operation =
        |text: &str, repeat| OperationAnnouncement { name: name(text), params_schema: true.into(), repeat };
    let resource = |text: &str, connector: &str, operation: &str, max_concurrent| ResourceAnnouncement {
        name: name(text),
        connector: name(connector),
        operations: vec![name(operation)],
        max_concurrent,
        rate_per_minute: None,
        paused: None,
    };
    let http = ConnectorAnnouncement { operations: vec![operation("notify", Repeat::WithKey)] };
    let file = ConnectorAnnouncement { operations: vec![operation("drop", Repeat::Safe)] };
    Hello {
        versions: VersionRange { min: PROTOCOL_VERSION, max: PROTOCOL_VERSION },
        agent: identity.id,
        name: name("paris-1"),
        agent_version: "0.1.0".to_owned(),
        instance: "test".to_owned(),
        hub_keys: Vec::new(),
        triggers: Vec::new(),
        calls: None,
        listeners: Vec::new(),
        max_jobs: 8,
        connectors: [(name("http"), http), (name("file"), file)].into(),
        resources: vec![resource("orders", "http", "notify", 2), resource("compta", "file", "drop", 2)],
        held: Vec::new(),
    }
}

pub(super) fn held(attempt: Attempt, resource: &str, state: HeldState) -> HeldJob {
    HeldJob { job: attempt.job, attempt: attempt.number, resource: name(resource), state }
}

/// An agent with an open connection.
pub(super) struct Agent {
    socket: Socket,
    pub(super) session: AgentSession,
    events: VecDeque<AgentEvent>,
}

impl Agent {
    /// Connects, says hello, and does not wait for the answer.
    pub(super) async fn dial(address: SocketAddr, identity: &Identity, hello: Hello) -> Self {
        let socket = dial(address, &token(identity, &claims(identity))).await.unwrap();
        let session = AgentSession::new(hello, Instant::now()).unwrap();
        let mut agent = Self { socket, session, events: VecDeque::new() };
        agent.flush().await;
        agent
    }

    /// Connects and is welcomed.
    pub(super) async fn connect(address: SocketAddr, identity: &Identity, hello: Hello) -> (Self, Welcome) {
        let mut agent = Self::dial(address, identity, hello).await;
        match agent.event().await {
            AgentEvent::Welcomed(welcome) => (agent, welcome),
            other => panic!("{other:?}"),
        }
    }

    /// Sends what the session wants to send.
    pub(super) async fn flush(&mut self) {
        while let Some(frame) = self.session.poll_frame() {
            let message = match frame {
                Frame::Text(text) => Message::text(text),
                Frame::Ping => Message::Ping(Vec::new().into()),
                Frame::Pong => Message::Pong(Vec::new().into()),
            };
            self.socket.send(message).await.unwrap();
        }
    }

    /// The next event.
    pub(super) async fn event(&mut self) -> AgentEvent {
        let next = async {
            loop {
                self.flush().await;
                if let Some(event) = self.events.pop_front().or_else(|| self.session.poll_event()) {
                    return event;
                }
                if let Message::Text(text) = self.socket.next().await.expect("the hub closed").unwrap() {
                    self.session.handle_frame(Frame::Text(text.to_string()), Instant::now());
                }
            }
        };
        timeout(LONG, next).await.expect("no event in time")
    }

    /// No event comes before the hub has answered a ping that follows on all it was told.
    pub(super) async fn nothing_comes(&mut self) {
        self.flush().await;
        self.socket.send(Message::Ping(b"quiet?".to_vec().into())).await.unwrap();
        let pong = async {
            loop {
                match self.socket.next().await.unwrap().unwrap() {
                    Message::Pong(_) => return,
                    Message::Text(text) => {
                        self.session.handle_frame(Frame::Text(text.to_string()), Instant::now());
                        assert_eq!(self.session.poll_event(), None);
                    }
                    _ => {}
                }
            }
        };
        timeout(LONG, pong).await.expect("no pong in time");
    }

    pub(super) async fn offered(&mut self) -> (Attempt, Offer) {
        match self.event().await {
            AgentEvent::Offered(offer) => (Attempt::new(offer.job, offer.attempt), offer),
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn accept(&mut self, attempt: Attempt) {
        self.session.accept(attempt);
        self.flush().await;
    }

    pub(super) async fn start(&mut self, attempt: Attempt) {
        self.session.progress(Progress {
            job: attempt.job,
            attempt: attempt.number,
            started_at: clock::now(),
            bytes_done: 3,
            bytes_total: Some(7),
        });
        self.flush().await;
    }

    /// Reports and waits for the acknowledgement; offers that come meanwhile are kept.
    pub(super) async fn report(&mut self, attempt: Attempt, outcome: Outcome) {
        let report = Report {
            job: attempt.job,
            attempt: attempt.number,
            outcome,
            started_at: Some(clock::now()),
            finished_at: clock::now(),
        };
        self.session.report(&report, Instant::now()).unwrap();
        let mut others = Vec::new();
        loop {
            match self.event().await {
                AgentEvent::ReportAcked(acked) if acked == attempt => break,
                other => others.push(other),
            }
        }
        self.events.extend(others);
    }

    /// The text of the close frame that ends the connection.
    pub(super) async fn closed(&mut self) -> (u16, String) {
        let close = async {
            loop {
                match self.socket.next().await.expect("no close frame").unwrap() {
                    Message::Close(Some(frame)) => return (frame.code.into(), frame.reason.to_string()),
                    _ => continue,
                }
            }
        };
        timeout(LONG, close).await.expect("not closed in time")
    }

    pub(super) async fn send_raw(&mut self, message: Message) {
        self.socket.send(message).await.unwrap();
    }
}

pub(super) fn success() -> Outcome {
    Outcome::Succeeded {
        result: serde_json::json!({"status": 204}),
        output: None,
        receipt: Some("a.b.c".to_owned()),
    }
}

pub(super) fn success_with(content: &[u8], inline: bool) -> Outcome {
    let output = OutputPayload {
        size: content.len() as u64,
        sha256: Sha256::of(content),
        media_type: "text/csv".to_owned(),
        data: inline.then(|| STANDARD.encode(content)),
    };
    Outcome::Succeeded { result: serde_json::json!({}), output: Some(output), receipt: None }
}

pub(super) fn failure(verdict: Verdict, effect: Effect, code: passerelle_protocol::Code) -> Outcome {
    Outcome::Failed(Failure::new(verdict, effect, code, "it went wrong"))
}

/// Checks an offer as an agent does.
pub(super) fn opened(identity: &Identity, offer: &Offer) -> (Envelope, Ticket) {
    let envelope = Envelope::verify(&identity.enrolled.job_keys, &offer.envelope).unwrap();
    let ticket = Ticket::verify(&identity.enrolled.job_keys, &offer.ticket).unwrap();
    assert_eq!(ticket.envelope, Sha256::of(offer.envelope.as_bytes()));
    assert_eq!((ticket.job, ticket.attempt), (offer.job, offer.attempt));
    assert_eq!((envelope.job, ticket.agent), (offer.job, identity.id));
    assert!(envelope.is_current(clock::unix()) && ticket.is_current(clock::unix()));
    (envelope, ticket)
}

pub(super) fn inline(offer: &Offer) -> Vec<u8> {
    match &offer.payload {
        Some(PayloadSource::Inline { data }) => STANDARD.decode(data).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// Waits until the job is as `wanted` says.
pub(super) async fn until(
    store: &Store,
    id: JobId,
    wanted: impl Fn(&crate::model::Job) -> bool,
) -> crate::model::Job {
    let mut changes = store.subscribe();
    let look = async {
        loop {
            let job = store.job(name("acme"), id).await.unwrap();
            if wanted(&job) {
                return job;
            }
            changes.recv().await.unwrap();
        }
    };
    timeout(LONG, look).await.expect("the job did not come to that state")
}
