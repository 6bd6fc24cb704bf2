//! An agent written from `docs/protocol.md` alone, with a valid identity and no manners.

use crate::{Answer, Hub, PATIENCE, http_client};
use futures_util::{SinkExt as _, StreamExt as _};
use jiff::Timestamp;
use passerelle_protocol::{AgentId, AgentToken, SUBPROTOCOL, SigningKey};
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{self, Message, client::IntoClientRequest as _},
};

/// An enrolled agent's identity.
pub struct FakeIdentity {
    /// Its id.
    pub agent: AgentId,
    key: SigningKey,
    audience: String,
    address: String,
}

impl FakeIdentity {
    /// Sends an enrolment and gives the answer with the key that was used.
    ///
    /// # Panics
    /// If the hub does not answer.
    pub async fn try_enrol(hub: &Hub, token: &str) -> (Answer, SigningKey) {
        let (key, _) = SigningKey::generate().expect("a key");
        let body = json!({"token": token, "public_key": key.public(), "name": "fake", "agent_version": "0"});
        let request = http_client().post(format!("{}/agent/v1/enrol", hub.url)).json(&body);
        (hub.api.send(request).await, key)
    }

    /// Enrols at `site`.
    ///
    /// # Panics
    /// If the hub refuses.
    pub async fn enrol(hub: &Hub, site: &str) -> Self {
        Self::enrol_with(hub, &hub.enrolment_token(site, &[])).await
    }

    /// Enrols with a token.
    ///
    /// # Panics
    /// If the hub refuses.
    pub async fn enrol_with(hub: &Hub, token: &str) -> Self {
        let (answer, key) = Self::try_enrol(hub, token).await;
        assert_eq!(answer.status, 201, "{}", answer.body);
        Self {
            agent: answer.body["agent"].as_str().and_then(|id| id.parse().ok()).expect("an agent's id"),
            audience: answer.body["audience"].as_str().expect("an audience").to_owned(),
            key,
            address: format!("127.0.0.1:{}", hub.port()),
        }
    }

    /// A token made `offset_s` seconds from now.
    ///
    /// # Panics
    /// If it cannot be signed.
    #[must_use]
    pub fn token(&self, offset_s: i64) -> String {
        self.forged(|claims| (claims.iat, claims.exp) = (claims.iat + offset_s, claims.exp + offset_s), None)
    }

    /// A token with changed claims, signed with another key if one is given.
    ///
    /// # Panics
    /// If it cannot be signed.
    #[must_use]
    pub fn forged(&self, change: impl FnOnce(&mut AgentToken), key: Option<&SigningKey>) -> String {
        let iat = Timestamp::now().as_second();
        let mut random = [0; 16];
        aws_lc_rs::rand::fill(&mut random).expect("random bytes");
        let mut claims = AgentToken {
            sub: self.agent,
            aud: self.audience.clone(),
            iat,
            exp: iat + 60,
            jti: crate::hex(&random),
        };
        change(&mut claims);
        key.unwrap_or(&self.key).sign(AgentToken::TYP, &claims).expect("a signed token")
    }

    /// Asks for the tunnel with a token; a refusal before the upgrade gives its status and problem document.
    ///
    /// # Errors
    /// The refusal.
    ///
    /// # Panics
    /// If the hub does not answer in HTTP.
    pub async fn tunnel(&self, token: &str) -> Result<FakeAgent, (u16, Value)> {
        let mut request =
            format!("ws://{}/agent/v1/tunnel", self.address).into_client_request().expect("a tunnel request");
        let headers = request.headers_mut();
        headers.insert("authorization", format!("Bearer {token}").parse().expect("a header value"));
        headers.insert("sec-websocket-protocol", SUBPROTOCOL.parse().expect("a header value"));
        let stream = TcpStream::connect(&self.address).await.expect("the hub's port");
        match client_async(request, stream).await {
            Ok((socket, _)) => Ok(FakeAgent { socket, agent: self.agent }),
            Err(tungstenite::Error::Http(answer)) => {
                let status = answer.status().as_u16();
                let body = answer.body().as_deref().unwrap_or_default();
                Err((status, serde_json::from_slice(body).unwrap_or_default()))
            }
            Err(other) => panic!("the tunnel request failed: {other}"),
        }
    }

    /// Opens a tunnel and a session on it.
    ///
    /// # Panics
    /// If the hub refuses.
    pub async fn session(&self, held: Value) -> FakeAgent {
        let mut agent = self.tunnel(&self.token(0)).await.expect("an open tunnel");
        let hello = agent.hello(held);
        agent.send(&hello).await;
        let welcome = agent.receive(&["welcome", "refuse"]).await;
        assert_eq!(welcome["type"], "welcome", "{welcome}");
        agent
    }
}

/// One tunnel of the fake agent.
pub struct FakeAgent {
    socket: WebSocketStream<TcpStream>,
    agent: AgentId,
}

impl FakeAgent {
    /// A valid `hello` with one resource `compta` of one operation `drop`.
    #[must_use]
    pub fn hello(&self, held: Value) -> Value {
        json!({
            "type": "hello", "versions": {"min": 1, "max": 1}, "agent": self.agent, "name": "fake", "agent_version": "0",
            "instance": "fake", "max_jobs": 8,
            "connectors": {"file": {"operations": [{"name": "drop", "params_schema": {}, "repeat": "safe"}]}},
            "resources": [{"name": "compta", "connector": "file", "operations": ["drop"], "max_concurrent": 4}],
            "held": held,
        })
    }

    /// Sends a message.
    ///
    /// # Panics
    /// If the hub has gone.
    pub async fn send(&mut self, message: &Value) {
        self.send_raw(Message::text(message.to_string())).await.expect("an open tunnel");
    }

    /// Sends any frame.
    ///
    /// # Errors
    /// If the hub has closed the tunnel meanwhile.
    pub async fn send_raw(&mut self, frame: Message) -> Result<(), tungstenite::Error> {
        self.socket.send(frame).await
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
        timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("no {wanted:?} came from the hub"))
    }

    /// Waits until a message of this type comes, or the hub closes the tunnel.
    ///
    /// # Panics
    /// If neither happens.
    pub async fn answered_or_closed(&mut self, wanted: &str) {
        let wait = async {
            while let Some(Ok(frame)) = self.socket.next().await {
                let Message::Text(text) = frame else { continue };
                let message: Value = serde_json::from_str(&text).expect("a message");
                if message["type"] == wanted {
                    return;
                }
            }
        };
        timeout(PATIENCE, wait).await.expect("the hub to answer or to close the tunnel");
    }

    /// Answers pings, and nothing else, until `stop` ends.
    ///
    /// # Panics
    /// If the hub closes the tunnel before.
    pub async fn idle_until(&mut self, stop: &mut tokio::sync::oneshot::Receiver<()>) {
        loop {
            tokio::select! {
                _ = &mut *stop => return,
                frame = self.socket.next() => {
                    frame.expect("an open tunnel").expect("a readable tunnel");
                }
            }
        }
    }

    /// Waits until the hub has closed the tunnel; gives the close code if it said one.
    ///
    /// # Panics
    /// If it does not close.
    pub async fn closed(&mut self) -> Option<u16> {
        let wait = async {
            let mut code = None;
            while let Some(Ok(frame)) = self.socket.next().await {
                if let Message::Close(Some(close)) = frame {
                    code = Some(close.code.into());
                }
            }
            code
        };
        timeout(PATIENCE, wait).await.expect("the hub to close the tunnel")
    }
}
