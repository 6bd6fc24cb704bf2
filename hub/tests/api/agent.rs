//! A small agent over a real WebSocket: enrols, connects, answers offers as a test says.

use crate::support::{Answer, Hub, PATIENCE, name};
use aws_lc_rs::rand::SystemRandom;
use futures_util::{SinkExt as _, StreamExt as _};
use jiff::Timestamp;
use passerelle_protocol::{
    Accept, AgentToken, ConnectorAnnouncement, EventAck, EventRefused, Hello, Offer, OperationAnnouncement,
    Outcome, OutputPayload, PROTOCOL_VERSION, Refuse, Repeat, Report, ResourceAnnouncement, SUBPROTOCOL,
    SigningKey, ToAgent, ToHub, VersionRange, Welcome, decode_to_agent,
    http::{EnrolRequest, EnrolResponse, TUNNEL_PATH},
};
use reqwest::Method;
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, client::IntoClientRequest as _},
};

pub struct Agent {
    pub key: SigningKey,
    pub identity: EnrolResponse,
}

pub struct Session {
    socket: WebSocketStream<TcpStream>,
}

pub async fn token(hub: &Hub, tenant: &str, site: &str, uses: u32) -> String {
    let hour = Duration::from_secs(3600);
    let application = "orchestrator".to_owned();
    hub.store.create_enrolment_token(name(tenant), name(site), application, hour, uses).await.unwrap().1
}

pub fn enrol_request(token: &str, key: &SigningKey) -> EnrolRequest {
    EnrolRequest {
        token: token.to_owned(),
        public_key: key.public().clone(),
        name: name("paris-1"),
        agent_version: "0.1.0".to_owned(),
        replaces: None,
    }
}

impl Agent {
    pub async fn enrol(hub: &Hub) -> Self {
        let token = token(hub, "acme", "paris", 1).await;
        let (key, _) = SigningKey::generate().unwrap();
        let request = hub.anonymous(Method::POST, "/agent/v1/enrol").json(&enrol_request(&token, &key));
        let identity = serde_json::from_value(Answer::of(request).await.expect(201).json()).unwrap();
        Self { key, identity }
    }

    /// A fresh token for one request.
    pub fn bearer(&self) -> String {
        let mut random = [0; 16];
        aws_lc_rs::rand::SecureRandom::fill(&SystemRandom::new(), &mut random).unwrap();
        let now = Timestamp::now().as_second();
        let claims = AgentToken {
            sub: self.identity.agent,
            aud: self.identity.audience.clone(),
            iat: now,
            exp: now + 60,
            jti: format!("{:x}", u128::from_be_bytes(random)),
        };
        self.key.sign(AgentToken::TYP, &claims).unwrap()
    }

    pub async fn connect(&self, hub: &Hub) -> Session {
        self.connect_with(hub, self.hello()).await
    }

    pub async fn connect_with(&self, hub: &Hub, hello: Hello) -> Session {
        let address = hub.url.strip_prefix("http://").unwrap();
        let mut request = format!("ws://{address}{TUNNEL_PATH}").into_client_request().unwrap();
        let headers = request.headers_mut();
        headers.insert("authorization", format!("Bearer {}", self.bearer()).parse().unwrap());
        headers.insert("sec-websocket-protocol", SUBPROTOCOL.parse().unwrap());
        let stream = TcpStream::connect(address).await.unwrap();
        let (socket, response) =
            timeout(PATIENCE, tokio_tungstenite::client_async(request, stream)).await.unwrap().unwrap();
        assert_eq!(response.headers()["sec-websocket-protocol"], SUBPROTOCOL);
        let mut session = Session { socket };
        session.send(hello).await;
        match session.next().await {
            ToAgent::Welcome(Welcome { tenant, site, .. }) => {
                assert_eq!((tenant, site), (name("acme"), name("paris")));
            }
            other => panic!("{other:?}"),
        }
        session
    }

    pub fn hello(&self) -> Hello {
        let operation = |text: &str, repeat| OperationAnnouncement {
            name: name(text),
            params_schema: json!({"type": "object"}),
            repeat,
        };
        let operations = vec![operation("drop", Repeat::Safe), operation("delete", Repeat::Safe)];
        Hello {
            calls: None,
            versions: VersionRange { min: 1, max: PROTOCOL_VERSION },
            agent: self.identity.agent,
            name: name("paris-1"),
            agent_version: "0.1.0".to_owned(),
            instance: "test".to_owned(),
            hub_keys: Vec::new(),
            triggers: Vec::new(),
            listeners: Vec::new(),
            max_jobs: 8,
            connectors: BTreeMap::from([(name("file"), ConnectorAnnouncement { operations })]),
            resources: vec![ResourceAnnouncement {
                name: name("compta"),
                connector: name("file"),
                operations: vec![name("drop")],
                max_concurrent: 4,
                rate_per_minute: Some(600),
                paused: None,
            }],
            held: Vec::new(),
        }
    }
}

impl Session {
    pub async fn send(&mut self, message: impl Into<ToHub>) {
        let text = message.into().encode().unwrap();
        self.socket.send(Message::text(text)).await.unwrap();
    }

    /// Sends what the protocol does not allow.
    pub async fn send_text(&mut self, text: String) {
        self.socket.send(Message::text(text)).await.unwrap();
    }

    pub async fn next(&mut self) -> ToAgent {
        loop {
            let frame =
                timeout(PATIENCE, self.socket.next()).await.unwrap().expect("the tunnel is open").unwrap();
            if let Message::Text(text) = frame {
                return decode_to_agent(&text).unwrap();
            }
        }
    }

    pub async fn offer(&mut self) -> Offer {
        loop {
            if let ToAgent::Offer(offer) = self.next().await {
                return offer;
            }
        }
    }

    /// The hub's answer to an event, passing over all else.
    pub async fn event_answer(&mut self) -> ToAgent {
        loop {
            match self.next().await {
                answer @ (ToAgent::EventAck(_) | ToAgent::EventRefused(_)) => return answer,
                ToAgent::Refuse(refuse) => panic!("{refuse:?}"),
                _ => {}
            }
        }
    }

    pub async fn event_ack(&mut self) -> EventAck {
        match self.event_answer().await {
            ToAgent::EventAck(ack) => ack,
            other => panic!("{other:?}"),
        }
    }

    pub async fn event_refused(&mut self) -> EventRefused {
        match self.event_answer().await {
            ToAgent::EventRefused(refused) => refused,
            other => panic!("{other:?}"),
        }
    }

    /// Takes the next offer and reports `outcome`, until the hub has acknowledged.
    pub async fn finish(&mut self, offer: &Offer, outcome: Outcome) {
        let (job, attempt) = (offer.job, offer.attempt);
        let now = Timestamp::now();
        self.send(Accept { job, attempt }).await;
        self.send(Report { job, attempt, outcome, started_at: Some(now), finished_at: now }).await;
        loop {
            match self.next().await {
                ToAgent::ReportAck(ack) if ack.job == job => return,
                ToAgent::Refuse(refuse) => panic!("{refuse:?}"),
                _ => {}
            }
        }
    }

    pub async fn succeed(&mut self, result: Value, output: Option<OutputPayload>) {
        let offer = self.offer().await;
        self.finish(&offer, Outcome::Succeeded { result, output, receipt: None }).await;
    }

    /// Why the hub refuses the session, as it ends.
    pub async fn refused(&mut self) -> Refuse {
        loop {
            if let ToAgent::Refuse(refuse) = self.next().await {
                return refuse;
            }
        }
    }

    /// Whether the hub closes the tunnel.
    pub async fn ends(mut self) {
        while let Ok(Some(Ok(_))) = timeout(PATIENCE, self.socket.next()).await {}
    }
}
