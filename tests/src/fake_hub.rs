//! A hub written from `docs/protocol.md` alone, to be as hostile or as broken as a test wants.

use crate::{PATIENCE, free_port};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::{SinkExt as _, StreamExt as _};
use jiff::Timestamp;
use passerelle_protocol::{
    AgentId, CommitMode, Envelope, Intent, JobId, PayloadDigest, SUBPROTOCOL, Sha256, SigningKey, Ticket,
};
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async,
    tungstenite::{
        Message,
        handshake::server::{Request, Response},
    },
};

/// What the fake hub answers to an enrolment: status and body.
pub type Enrolment = (u16, Value);

struct Shared {
    key: Arc<SigningKey>,
    agent: AgentId,
    enrolment: Enrolment,
    payloads: Mutex<HashMap<String, Vec<u8>>>,
}

/// A hub in the hands of the test.
pub struct FakeHub {
    /// Its address.
    pub url: String,
    sessions: mpsc::Receiver<Session>,
    shared: Arc<Shared>,
}

impl FakeHub {
    /// Starts a hub that enrols whoever comes.
    ///
    /// # Panics
    /// If its port is taken.
    pub async fn start() -> Self {
        Self::build(None).await
    }

    /// Starts a hub that answers each enrolment with a status and a body of the test's choice.
    pub async fn refusing_enrolment(status: u16, body: Value) -> Self {
        Self::build(Some((status, body))).await
    }

    async fn build(enrolment: Option<Enrolment>) -> Self {
        let port = free_port();
        let url = format!("http://127.0.0.1:{port}");
        let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("a port for the fake hub");
        let (key, _) = SigningKey::generate().expect("a key");
        let agent = AgentId::new(now_ms(), &[7; 10]);
        let enrolled = json!({
            "agent": agent, "tenant": "acme", "site": "paris", "application": "orchestrator", "audience": url,
            "job_keys": [key.public()], "server_time": Timestamp::now(),
        });
        let shared = Arc::new(Shared {
            key: Arc::new(key),
            agent,
            enrolment: enrolment.unwrap_or((201, enrolled)),
            payloads: Mutex::default(),
        });
        let (sender, sessions) = mpsc::channel(64);
        let of_task = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&of_task), sender.clone()));
            }
        });
        Self { url, sessions, shared }
    }

    /// The next tunnel of the agent, after its `hello`.
    ///
    /// # Panics
    /// If none comes.
    pub async fn session(&mut self) -> Session {
        timeout(PATIENCE, self.sessions.recv()).await.expect("a tunnel in time").expect("a tunnel")
    }

    /// The next tunnel, welcomed.
    pub async fn welcomed(&mut self) -> Session {
        let mut session = self.session().await;
        session.welcome().await;
        session
    }

    /// What a job's payload request is answered with.
    ///
    /// # Panics
    /// If a connection panicked.
    pub fn payload(&self, job: JobId, content: &[u8]) {
        self.shared.payloads.lock().expect("the payloads").insert(job.to_string(), content.to_vec());
    }

    /// A valid offer for the agent, to be spoilt.
    #[must_use]
    pub fn draft(&self, resource: &str, operation: &str, params: Value) -> Draft {
        let now = Timestamp::now();
        let mut random = [0; 10];
        aws_lc_rs::rand::fill(&mut random).expect("random bytes");
        let name = |text: &str| text.parse().expect("a name");
        Draft {
            envelope: Envelope {
                job: JobId::new(now_ms(), &random),
                tenant: name("acme"),
                site: name("paris"),
                resource: name(resource),
                operation: name(operation),
                params,
                payload: None,
                timeout_s: 60,
                deadline: now.as_second() + 600,
                max_attempts: 5,
                repeat: None,
                order_key: None,
                agents: None,
                iat: now.as_second(),
                nbf: now.as_second(),
                exp: now.as_second() + 600,
            },
            attempt: 1,
            agent: self.shared.agent,
            epoch: 1,
            life: 600,
            commit: CommitMode::Free,
            inline: None,
            call: false,
            granted: None,
            of_other_envelope: false,
            envelope_key: Arc::clone(&self.shared.key),
            ticket_key: Arc::clone(&self.shared.key),
        }
    }
}

/// An offer before it is signed.
#[derive(Debug, Clone)]
pub struct Draft {
    /// The envelope.
    pub envelope: Envelope,
    /// The attempt.
    pub attempt: u32,
    /// The agent of the ticket.
    pub agent: AgentId,
    /// The epoch of the ticket.
    pub epoch: u64,
    /// The ticket's life in seconds.
    pub life: i64,
    /// Whether the agent must ask.
    pub commit: CommitMode,
    /// Whether it is a call, and no offer.
    pub call: bool,
    /// The payload inside the offer.
    pub inline: Option<Vec<u8>>,
    /// What the ticket says that an earlier attempt was granted.
    pub granted: Option<Intent>,
    /// Whether the ticket names the digest of another envelope.
    pub of_other_envelope: bool,
    /// Who signs the envelope.
    pub envelope_key: Arc<SigningKey>,
    /// Who signs the ticket.
    pub ticket_key: Arc<SigningKey>,
}

impl Draft {
    /// Adds a payload inside the offer, with its true digest in the envelope.
    #[must_use]
    pub fn with_payload(mut self, content: &[u8]) -> Self {
        self.envelope.payload = Some(PayloadDigest {
            size: content.len() as u64,
            sha256: Sha256::of(content),
            media_type: "application/octet-stream".to_owned(),
        });
        self.inline = Some(content.to_vec());
        self
    }

    /// Makes it a call that the agent takes: issued after this second of its clock.
    #[must_use]
    pub fn into_call(mut self, issued_after: i64) -> Self {
        let iat = Timestamp::now().as_second().max(issued_after + 1);
        let envelope = &mut self.envelope;
        (envelope.iat, envelope.nbf, envelope.exp) = (iat, iat, iat + 30);
        (envelope.timeout_s, envelope.deadline, envelope.max_attempts) = (20, iat + 20, 1);
        (self.life, self.call) = (30, true);
        self
    }

    /// The job.
    #[must_use]
    pub fn job(&self) -> JobId {
        self.envelope.job
    }

    /// The offer as a message.
    ///
    /// # Panics
    /// If it cannot be signed.
    #[must_use]
    pub fn message(&self) -> Value {
        let envelope = match self.call {
            true => self.envelope.sign_call(&self.envelope_key),
            false => self.envelope.sign(&self.envelope_key),
        };
        let envelope = envelope.expect("a signed envelope");
        let digest =
            if self.of_other_envelope { Sha256::of(b"another") } else { Sha256::of(envelope.as_bytes()) };
        let now = Timestamp::now().as_second();
        let ticket = Ticket {
            job: self.envelope.job,
            attempt: self.attempt,
            agent: self.agent,
            epoch: self.epoch,
            commit: self.commit,
            envelope: digest,
            granted: self.granted.clone(),
            iat: now.min(now + self.life),
            exp: now + self.life,
        };
        let ticket = ticket.sign(&self.ticket_key).expect("a signed ticket");
        let mut offer = json!({
            "type": "offer", "job": self.envelope.job, "attempt": self.attempt, "envelope": envelope, "ticket": ticket,
        });
        if self.call {
            offer = json!({
                "type": "call", "call": offer["job"], "envelope": offer["envelope"], "ticket": offer["ticket"],
            });
        }
        if let Some(content) = &self.inline {
            offer["payload"] = json!({"at": "inline", "data": STANDARD.encode(content)});
        } else if self.envelope.payload.is_some() {
            offer["payload"] = json!({"at": "hub"});
        }
        offer
    }
}

/// One tunnel of an agent to the fake hub.
pub struct Session {
    /// The agent's first message.
    pub hello: Value,
    socket: WebSocketStream<TcpStream>,
}

impl Session {
    /// Sends a message.
    ///
    /// # Panics
    /// If the agent has gone.
    pub async fn send(&mut self, message: &Value) {
        self.send_raw(Message::text(message.to_string())).await;
    }

    /// Sends any frame.
    ///
    /// # Panics
    /// If the agent has gone.
    pub async fn send_raw(&mut self, frame: Message) {
        self.socket.send(frame).await.expect("an open tunnel");
    }

    /// Sends any frame and tells whether the agent still took it.
    pub async fn send_raw_lossy(&mut self, frame: Message) -> bool {
        self.socket.send(frame).await.is_ok()
    }

    /// Sends a message and tells whether the agent still took it.
    pub async fn send_lossy(&mut self, message: &Value) -> bool {
        self.socket.send(Message::text(message.to_string())).await.is_ok()
    }

    /// Opens the session, keeping all held attempts.
    pub async fn welcome(&mut self) {
        let held: Vec<Value> = self.hello["held"].as_array().into_iter().flatten().map(keep).collect();
        let message = json!({
            "type": "welcome", "version": 1, "session": JobId::new(now_ms(), &[1; 10]), "epoch": 1, "tenant": "acme",
            "site": "paris", "server_time": Timestamp::now(), "held": held,
        });
        self.send(&message).await;
    }

    /// The next message of one of the types `wanted`; others are passed over, pings are answered.
    ///
    /// # Panics
    /// If none comes.
    pub async fn receive(&mut self, wanted: &[&str]) -> Value {
        let wait = async {
            loop {
                let frame = self.socket.next().await.expect("an open tunnel").expect("a readable tunnel");
                if let Message::Text(text) = frame {
                    let message: Value = serde_json::from_str(&text).expect("a message");
                    if message["type"].as_str().is_some_and(|kind| wanted.contains(&kind)) {
                        return message;
                    }
                }
            }
        };
        timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("no {wanted:?} came from the agent"))
    }

    /// Waits until the agent has closed the tunnel; the close code, if one came.
    ///
    /// # Panics
    /// If it does not.
    pub async fn closed(&mut self) -> Option<u16> {
        let wait = async {
            let mut code = None;
            while let Some(Ok(message)) = self.socket.next().await {
                if let Message::Close(Some(frame)) = message {
                    code = Some(frame.code.into());
                }
            }
            code
        };
        timeout(PATIENCE, wait).await.expect("the agent to close the tunnel")
    }
}

fn keep(held: &Value) -> Value {
    json!({"job": held["job"], "attempt": held["attempt"], "action": "keep"})
}

fn now_ms() -> u64 {
    u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default()
}

/// Tells tunnel and plain requests apart by their first line, without taking it from the socket.
async fn serve(mut stream: TcpStream, shared: Arc<Shared>, sessions: mpsc::Sender<Session>) {
    let mut first = [0; 32];
    let Ok(read) = stream.peek(&mut first).await else { return };
    if first[..read].starts_with(b"GET /agent/v1/tunnel") {
        if let Some(session) = open(stream).await {
            let _test_is_over = sessions.send(session).await;
        }
        return;
    }
    while let Some((line, body_left)) = head(&mut stream).await {
        let mut body = vec![0; body_left];
        if stream.read_exact(&mut body).await.is_err() {
            return;
        }
        let answer = plain(&line, &shared);
        if stream.write_all(&answer).await.is_err() {
            return;
        }
    }
}

#[expect(clippy::result_large_err, reason = "the callback's type is that of the WebSocket library")]
async fn open(stream: TcpStream) -> Option<Session> {
    let choose = |_: &Request, mut response: Response| {
        response.headers_mut().insert("sec-websocket-protocol", SUBPROTOCOL.parse().expect("a header value"));
        Ok(response)
    };
    let mut socket = accept_hdr_async(stream, choose).await.ok()?;
    loop {
        if let Message::Text(text) = socket.next().await?.ok()? {
            let hello: Value = serde_json::from_str(&text).ok()?;
            return Some(Session { hello, socket });
        }
    }
}

/// Reads a request's head; gives its first line and the length of its body.
async fn head(stream: &mut TcpStream) -> Option<(String, usize)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).ok()?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    Some((head.lines().next()?.to_owned(), length.unwrap_or(0)))
}

fn plain(line: &str, shared: &Shared) -> Vec<u8> {
    let mut words = line.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let job = path.strip_prefix("/agent/v1/jobs/").and_then(|rest| rest.strip_suffix("/payload"));
    let payload = job.and_then(|job| shared.payloads.lock().expect("the payloads").get(job).cloned());
    let (status, kind, body) = match (method, path, payload) {
        ("POST", "/agent/v1/enrol", _) => {
            let (status, body) = &shared.enrolment;
            (
                *status,
                if *status < 300 { "application/json" } else { "application/problem+json" },
                body.to_string().into_bytes(),
            )
        }
        ("GET", _, Some(content)) => (200, "application/octet-stream", content),
        _ => {
            let problem =
                json!({"status": 404, "title": "Not Found", "code": "not_found", "detail": "nothing here"});
            (404, "application/problem+json", problem.to_string().into_bytes())
        }
    };
    let mut answer =
        format!("HTTP/1.1 {status} -\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n", body.len())
            .into_bytes();
    answer.extend(body);
    answer
}
