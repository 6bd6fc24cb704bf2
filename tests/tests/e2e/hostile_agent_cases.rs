//! Every way we know in which an agent can misbehave, one after the other against one real hub. After each: the hub runs,
//! nobody else's job, blob or agent has changed, and at the end an honest job is done.

use crate::common::{SITE, drop_into, with};
use passerelle_protocol::{AgentId, AgentToken, SigningKey};
use passerelle_tests::{FakeAgent, FakeIdentity, Hub, PATIENCE, http_client, until};
use reqwest::Method;
use serde_json::{Value, json};
use std::pin::Pin;
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::frame::{
        Frame,
        coding::{Data, OpCode},
    },
};

const NOBODY: &str = "01936b0c-7e6a-7000-8000-000000000001";
const NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// A hub with an honest agent that holds a job, and an agent of another site without manners.
struct World {
    hub: Hub,
    honest: FakeIdentity,
    bad: FakeIdentity,
    /// Another tenant's agent.
    foreign: FakeIdentity,
    /// Accepted by the honest agent.
    running: String,
    /// Of a resource that nobody announces.
    queued: String,
}

fn large(resource: &str) -> Value {
    drop_into(resource, "large.csv", json!({"text": "x".repeat(300_000)}))
}

impl World {
    /// What must not change.
    async fn theirs(&self) -> Vec<Value> {
        self.stored().await;
        let agents = self.hub.api.get("/v1/agents?site=paris").await.body;
        let agents = agents["items"].as_array().cloned().unwrap_or_default();
        let mut theirs = vec![self.hub.api.job(&self.running).await, self.hub.api.job(&self.queued).await];
        theirs.extend(agents.into_iter().map(|mut agent| {
            agent["last_seen_at"] = Value::Null;
            agent
        }));
        theirs
    }

    /// Returns when what the hub has read before is stored: writes are done in their order, refused ones too.
    async fn stored(&self) {
        assert_eq!(self.hub.api.post(&format!("/v1/jobs/{NOBODY}/cancel"), &json!({})).await.status, 404);
    }

    /// A session of the bad agent, and what it says; whatever comes of it, the hub has dealt with it at the end.
    async fn says(&self, messages: &[Value]) {
        let mut tunnel = self.bad.session(json!([])).await;
        for message in messages {
            let _closed = tunnel.send_raw(Message::text(message.to_string())).await;
        }
        dealt_with(&mut tunnel).await;
    }

    async fn frames(&self, frames: Vec<Message>) {
        let mut tunnel = self.bad.session(json!([])).await;
        for frame in frames {
            if tunnel.send_raw(frame).await.is_err() {
                break;
            }
        }
        dealt_with(&mut tunnel).await;
    }

    async fn hello(&self, spoil: Value) {
        let mut tunnel = self.bad.tunnel(&self.bad.token(0)).await.expect("a tunnel");
        let hello = with(tunnel.hello(json!([])), spoil);
        let _closed = tunnel.send_raw(Message::text(hello.to_string())).await;
        dealt_with(&mut tunnel).await;
    }

    async fn refused(&self, token: &str) {
        let (status, problem) = self.bad.tunnel(token).await.err().expect("a refusal");
        assert!([401, 403, 429].contains(&status), "{status}: {problem}");
    }

    async fn request(&self, method: Method, path: &str, headers: &[(&str, &str)], body: &str) -> u16 {
        let url = format!("{}{path}", self.hub.url);
        let mut request = http_client().request(method, url).bearer_auth(self.bad.token(0));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(body.to_owned()).send().await.expect("an answer").status().as_u16()
    }

    /// A token of the bad agent's with other claims, or of another key.
    fn forged(&self, change: impl FnOnce(&mut AgentToken), key: Option<&SigningKey>) -> String {
        self.bad.forged(change, key)
    }

    /// An attempt that the bad agent itself was given.
    async fn own(&self) -> (FakeAgent, String) {
        let mut tunnel = self.bad.session(json!([])).await;
        let job = with(large("compta"), json!({"site": "lyon", "max_attempts": 1}));
        let id = self.hub.api.submit(&job).await;
        loop {
            let offer = tunnel.receive(&["offer"]).await;
            let accept = json!({"type": "accept", "job": offer["job"], "attempt": offer["attempt"]});
            tunnel.send(&accept).await;
            if offer["job"] == json!(id) {
                return (tunnel, id);
            }
        }
    }
}

/// Waits until the hub has read all that was sent: it answers what came last, or has hung up.
async fn dealt_with(tunnel: &mut FakeAgent) {
    if tunnel.send_raw(Message::text(json!({"type": "teleport"}).to_string())).await.is_ok() {
        tunnel.answered_or_closed("unsupported").await;
    } else {
        tunnel.closed().await;
    }
}

fn report(job: &str, attempt: u64) -> Value {
    json!({
        "type": "report", "job": job, "attempt": attempt, "finished_at": jiff::Timestamp::now(),
        "outcome": {"outcome": "succeeded", "result": {"path": "a.csv"}},
    })
}

fn failure(job: &str, attempt: u64) -> Value {
    let outcome = json!({
        "outcome": "failed", "verdict": "permanent", "effect": "not_applied", "code": "target_refused", "message": "no",
    });
    with(report(job, attempt), json!({"outcome": outcome}))
}

fn progress(job: &str) -> Value {
    json!({
        "type": "progress", "job": job, "attempt": 1, "started_at": jiff::Timestamp::now(), "bytes_done": 1_u64 << 60,
        "bytes_total": 1,
    })
}

fn commit(job: &str) -> Value {
    json!({
        "type": "commit", "job": job, "attempt": 1,
        "intent": {"target": "a.csv", "size": 1, "sha256": NOTHING, "part": "../../x", "state": {}},
    })
}

fn deep(n: usize) -> String {
    format!("{}{}", "[".repeat(n), "]".repeat(n))
}

fn resources(n: usize) -> Value {
    let one = |n| json!({"name": format!("r{n}"), "connector": "file", "operations": ["drop"], "max_concurrent": 1});
    json!((0..n).map(one).collect::<Vec<_>>())
}

type Case = for<'w> fn(&'w World) -> Pin<Box<dyn Future<Output = ()> + 'w>>;

macro_rules! cases {
    ($($name:literal => |$w:ident| $body:expr,)*) => {
        const CASES: &[(&str, Case)] = &[$(($name, |$w| Box::pin(async move { $body })),)*];
    };
}

cases! {
    // Tokens.
    "a token made long ago" => |w| w.refused(&w.bad.token(-900)).await,
    "a token from the future" => |w| w.refused(&w.bad.token(900)).await,
    "a token used before" => |w| {
        let token = w.bad.token(0);
        drop(w.bad.tunnel(&token).await.expect("a tunnel"));
        w.refused(&token).await;
    },
    "a token for another hub" => |w| w.refused(&w.forged(|t| t.aud = "urn:other".to_owned(), None)).await,
    "a token in the honest agent's name" => |w| w.refused(&w.forged(|t| t.sub = w.honest.agent, None)).await,
    "a token of an agent that nobody knows" => |w| {
        w.refused(&w.forged(|t| t.sub = AgentId::new(7, &[7; 10]), None)).await;
    },
    "a token of a stranger's key" => |w| {
        let stranger = SigningKey::generate().expect("a key").0;
        w.refused(&w.forged(|_| (), Some(&stranger))).await;
    },
    "a token that lives for a year" => |w| w.refused(&w.forged(|t| t.exp += 31_536_000, None)).await,
    "a token without an id" => |w| w.refused(&w.forged(|t| t.jti.clear(), None)).await,
    "a token with an endless id" => |w| w.refused(&w.forged(|t| t.jti = "j".repeat(4000), None)).await,
    "a token with times beyond all numbers" => |w| {
        w.refused(&w.forged(|t| (t.iat, t.exp) = (i64::MAX - 1, i64::MAX), None)).await;
        w.refused(&w.forged(|t| (t.iat, t.exp) = (i64::MIN, i64::MAX), None)).await;
    },
    "a token without a signature" => |w| {
        let token = w.bad.token(0);
        let (head, _) = token.rsplit_once('.').expect("a signature");
        w.refused(&format!("{head}.")).await;
    },
    // Others' attempts.
    "reports of the honest agent's attempt" => |w| {
        w.says(&[report(&w.running, 1), failure(&w.running, 1), report(&w.running, 2)]).await;
    },
    "reports of a queued job" => |w| w.says(&[report(&w.queued, 1), failure(&w.queued, 0)]).await,
    "reports of a job that is not there" => |w| w.says(&[report(NOBODY, 1), failure(NOBODY, u64::from(u32::MAX))]).await,
    "accepting and declining what it was not offered" => |w| {
        let decline = |job: &str| json!({
            "type": "decline", "job": job, "attempt": 1, "code": "signature_invalid", "message": "forged",
        });
        let accept = |job: &str| json!({"type": "accept", "job": job, "attempt": 1});
        w.says(&[accept(&w.running), decline(&w.running), accept(&w.queued), decline(&w.queued)]).await;
    },
    "progress of the honest agent's attempt" => |w| w.says(&[progress(&w.running), progress(&w.queued)]).await,
    "a commit for the honest agent's attempt" => |w| {
        let mut tunnel = w.bad.session(json!([])).await;
        tunnel.send(&commit(&w.running)).await;
        tunnel.send(&json!({"type": "teleport"})).await;
        let reply = tunnel.receive(&["commit_granted", "unsupported"]).await;
        assert_eq!(reply["type"], "unsupported", "the effect was granted");
    },
    "another tenant's agent reports the honest agent's attempt" => |w| {
        let mut tunnel = w.foreign.session(json!([])).await;
        for message in [report(&w.running, 1), commit(&w.running), failure(&w.queued, 1)] {
            tunnel.send(&message).await;
        }
        dealt_with(&mut tunnel).await;
    },
    "a hello that holds the honest agent's attempt" => |w| {
        let held = json!([
            {"job": w.running, "attempt": 1, "resource": "compta", "state": "running"},
            {"job": w.queued, "attempt": 1, "resource": "not-yet", "state": "finished"},
            {"job": NOBODY, "attempt": 9, "resource": "compta", "state": "accepted"},
        ]);
        let mut tunnel = w.bad.session(held).await;
        tunnel.send(&report(&w.running, 1)).await;
        dealt_with(&mut tunnel).await;
    },
    // Frames.
    "text that is no message" => |w| {
        for text in ["", "null", "7", "\"x\"", "[]", "{}", "{\"type\":7}", "{\"type\":\"report\"}", "\u{feff}{}"] {
            w.frames(vec![Message::text(text)]).await;
        }
    },
    "bad UTF-8 in a text" => |w| {
        let frame = Frame::message(vec![0xff, 0xfe, 0x80], OpCode::Data(Data::Text), true);
        w.frames(vec![Message::Frame(frame)]).await;
    },
    "binary" => |w| w.frames(vec![Message::binary(vec![0; 70_000])]).await,
    "a message of many mebibytes" => |w| {
        w.frames(vec![Message::text(format!(r#"{{"type":"unsupported","of":"{}"}}"#, "x".repeat(5 << 20)))]).await;
    },
    "JSON deep enough for any stack" => |w| {
        for of in ["outcome", "intent", "x"] {
            w.frames(vec![Message::text(format!(r#"{{"type":"report","{of}":{}}}"#, deep(200_000)))]).await;
        }
    },
    "fragments without an end" => |w| {
        let first = Frame::message(vec![b'x'; 60_000], OpCode::Data(Data::Text), false);
        let next = || Frame::message(vec![b'x'; 60_000], OpCode::Data(Data::Continue), false);
        let frames = std::iter::once(first).chain((0..60).map(|_| next()));
        w.frames(frames.map(Message::Frame).collect()).await;
    },
    "a flood of pings" => |w| w.frames((0..20_000).map(|n| Message::Ping(vec![n as u8; 100].into())).collect()).await,
    "a flood of unknown messages" => |w| {
        let message = json!({"type": "x".repeat(200)}).to_string();
        w.frames((0..5000).map(|_| Message::text(message.clone())).collect()).await;
    },
    "a flood of progress" => |w| {
        let message = progress(NOBODY).to_string();
        w.frames((0..20_000).map(|_| Message::text(message.clone())).collect()).await;
    },
    "a flood of reports" => |w| {
        let messages: Vec<Value> = (0..2000).map(|n| report(NOBODY, n)).collect();
        w.says(&messages).await;
    },
    "draining, and hello again and again" => |w| {
        let mut tunnel = w.bad.session(json!([])).await;
        for _ in 0..50 {
            let hello = tunnel.hello(json!([]));
            let _closed = tunnel.send_raw(Message::text(hello.to_string())).await;
            let draining = json!({"type": "draining", "grace_s": u32::MAX}).to_string();
            let _closed = tunnel.send_raw(Message::text(draining)).await;
        }
        dealt_with(&mut tunnel).await;
    },
    "a message before its hello" => |w| {
        let mut tunnel = w.bad.tunnel(&w.bad.token(0)).await.expect("a tunnel");
        tunnel.send(&report(&w.running, 1)).await;
        tunnel.closed().await;
    },
    // Announcements.
    "limits below nothing and above all numbers" => |w| {
        for limit in [json!(-1), json!(1_u64 << 40), json!(1e300), json!("8")] {
            w.hello(json!({"max_jobs": limit})).await;
            w.hello(json!({"resources": [
                {"name": "compta", "connector": "file", "operations": ["drop"], "max_concurrent": limit},
            ]})).await;
        }
    },
    "places for more jobs than there may be" => |w| w.hello(json!({"max_jobs": u32::MAX})).await,
    "thousands of resources" => |w| {
        w.hello(json!({"resources": resources(501)})).await;
        w.hello(json!({"resources": resources(9000)})).await;
    },
    "the same resource a hundred times" => |w| {
        let one = json!({"name": "compta", "connector": "file", "operations": ["drop"], "max_concurrent": 1});
        w.hello(json!({"resources": vec![one; 100]})).await;
    },
    "a schema as deep as a well and as long as a book" => |w| {
        let mut well = json!({});
        for _ in 0..100 {
            well = json!({"properties": {"x": well}});
        }
        for schema in [well, json!({"enum": vec!["x".repeat(1000); 900]})] {
            let operation = json!({"name": "drop", "params_schema": schema, "repeat": "safe"});
            w.hello(json!({"connectors": {"file": {"operations": [operation]}}})).await;
        }
    },
    "names that are paths" => |w| {
        for name in ["../../etc", "", "A B", "x/y", "\u{0}", &"n".repeat(65)] {
            w.hello(json!({"name": name})).await;
            w.hello(json!({"resources": [
                {"name": name, "connector": "file", "operations": ["drop"], "max_concurrent": 1},
            ]})).await;
        }
    },
    "a hello that holds thousands" => |w| {
        let held: Vec<Value> = (0..5000)
            .map(|n| json!({
                "job": format!("01936b0c-7e6a-7000-8000-{n:012}"), "attempt": 1, "resource": "compta", "state": "running",
            }))
            .collect();
        w.hello(json!({"held": held})).await;
    },
    "versions the wrong way round" => |w| w.hello(json!({"versions": {"min": 9, "max": 0}})).await,
    // Beside the tunnel.
    "the payload of the honest agent's job" => |w| {
        let path = format!("/agent/v1/jobs/{}/payload", w.running);
        assert_eq!(w.request(Method::GET, &path, &[], "").await, 404);
        assert_eq!(w.request(Method::GET, &path, &[("range", "bytes=0-9")], "").await, 404);
    },
    "an output for the honest agent's attempt" => |w| {
        let path = format!("/agent/v1/jobs/{}/attempts/1/output", w.running);
        let digest = ("repr-digest", "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:");
        assert_eq!(w.request(Method::POST, &path, &[("upload-length", "10"), digest], "").await, 404);
        let patch = [("upload-offset", "0"), ("content-type", "application/offset+octet-stream")];
        assert_eq!(w.request(Method::PATCH, &path, &patch, "0123456789").await, 404);
        assert_eq!(w.request(Method::HEAD, &path, &[], "").await, 404);
    },
    "paths that lead elsewhere" => |w| {
        for path in ["..%2f..%2fetc%2fpasswd", "%2e%2e", "x", "%00", &"9".repeat(5000)] {
            let status = w.request(Method::GET, &format!("/agent/v1/jobs/{path}/payload"), &[], "").await;
            assert!((400..500).contains(&status), "{path}: {status}");
        }
        for attempt in ["0", "-1", "99999999999999999999", "x", "1%2f..%2f2"] {
            let path = format!("/agent/v1/jobs/{}/attempts/{attempt}/output", w.running);
            assert_eq!(w.request(Method::HEAD, &path, &[], "").await, 404, "{attempt}");
        }
    },
    "ranges that are none" => |w| {
        let (tunnel, id) = w.own().await;
        for range in ["bytes=9-1", "bytes=-0", "bytes=99999999999999999999-", "lines=1", "bytes=0-0,2-2,4-4", "bytes=300000-"] {
            let path = format!("/agent/v1/jobs/{id}/payload");
            let status = w.request(Method::GET, &path, &[("range", range)], "").await;
            assert!([200, 206, 416].contains(&status), "{range}: {status}");
        }
        drop(tunnel);
    },
    "an output that is not what it says" => |w| {
        let (tunnel, id) = w.own().await;
        let path = format!("/agent/v1/jobs/{id}/attempts/1/output");
        let digest = ("repr-digest", "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:");
        assert_eq!(w.request(Method::POST, &path, &[("upload-length", "10"), digest], "").await, 201);
        let patch = |offset| [("upload-offset", offset), ("content-type", "application/offset+octet-stream")];
        assert_eq!(w.request(Method::PATCH, &path, &patch("5"), "56789").await, 409);
        assert_eq!(w.request(Method::PATCH, &path, &patch("-1"), "x").await, 400);
        assert_eq!(w.request(Method::PATCH, &path, &patch("0"), "0123456789ABCDEF").await, 413);
        assert_eq!(w.request(Method::PATCH, &path, &patch("0"), "0123456789").await, 422);
        let with_body = [("upload-length", "10"), digest];
        assert_eq!(w.request(Method::POST, &path, &with_body, "0123456789ABCDEF").await, 413);
        assert_eq!(w.request(Method::POST, &path, &with_body, "0123456789").await, 422);
        let foreign = format!("/agent/v1/jobs/{}/attempts/1/output", w.running);
        assert_eq!(w.request(Method::POST, &foreign, &with_body, "0123456789").await, 404);
        let endless = [("upload-length", "99999999999999999"), digest];
        assert_eq!(w.request(Method::POST, &path, &endless, "").await, 413);
        drop(tunnel);
    },
    "a success with an output that was never sent" => |w| {
        let (mut tunnel, id) = w.own().await;
        let mut lie = report(&id, 1);
        lie["outcome"]["output"] = json!({"size": 300_000, "sha256": NOTHING, "media_type": "text/csv"});
        tunnel.send(&lie).await;
        dealt_with(&mut tunnel).await;
        w.stored().await;
        assert_ne!(w.hub.api.job(&id).await["state"], "succeeded");
    },
    "an output in the report that is not what it says" => |w| {
        let (mut tunnel, id) = w.own().await;
        let mut lie = report(&id, 1);
        lie["outcome"]["output"] =
            json!({"size": 1, "sha256": NOTHING, "media_type": "text/csv", "data": "eA=="});
        let _closed = tunnel.send_raw(Message::text(lie.to_string())).await;
        dealt_with(&mut tunnel).await;
        w.stored().await;
        assert_ne!(w.hub.api.job(&id).await["state"], "succeeded");
    },
    "accepted twice, reported twice, and otherwise the second time" => |w| {
        let (mut tunnel, id) = w.own().await;
        let accept = json!({"type": "accept", "job": id, "attempt": 1});
        for message in [accept.clone(), accept, progress(&id), failure(&id, 1), report(&id, 7), progress(&id)] {
            tunnel.send(&message).await;
        }
        dealt_with(&mut tunnel).await;
        assert_eq!(w.hub.api.end_of(&id, PATIENCE).await["state"], "failed");
    },
    "a public sentence and a result beyond all bounds" => |w| {
        let (mut tunnel, id) = w.own().await;
        let mut long = failure(&id, 1);
        long["outcome"]["message"] = json!("m".repeat(500_000));
        let _closed = tunnel.send_raw(Message::text(long.to_string())).await;
        dealt_with(&mut tunnel).await;
        let mut tunnel = w.bad.session(json!([{"job": id, "attempt": 1, "resource": "compta", "state": "running"}])).await;
        let large = with(report(&id, 1), json!({"outcome": {"outcome": "succeeded", "result": "r".repeat(600_000)}}));
        let _closed = tunnel.send_raw(Message::text(large.to_string())).await;
        dealt_with(&mut tunnel).await;
        let job = w.hub.api.job(&id).await;
        assert!(job.to_string().len() < 400_000, "{} bytes", job.to_string().len());
    },
}

#[tokio::test(flavor = "multi_thread")]
async fn no_misbehaviour_of_an_agent_touches_anybody_else() {
    let mut hub = Hub::start().await;
    let honest = FakeIdentity::enrol(&hub, SITE).await;
    let bad = FakeIdentity::enrol(&hub, "lyon").await;
    hub.admin(&["tenant", "create", "globex", "--tier", "enterprise"]);
    let arguments =
        ["enrolment-token", "create", "--tenant", "globex", "--site", SITE, "--application", "hub"];
    let token = hub.admin(&arguments)["token"].as_str().expect("a token").to_owned();
    let foreign = FakeIdentity::enrol_with(&hub, &token).await;
    let queued = hub.api.submit(&drop_into("not-yet", "a.csv", json!({"text": "x"}))).await;
    let mut tunnel = honest.session(json!([])).await;
    let running = hub.api.submit(&large("compta")).await;
    tunnel.receive(&["offer"]).await;
    tunnel.send(&json!({"type": "accept", "job": running, "attempt": 1})).await;
    hub.api.job_where(&running, "accepted", PATIENCE, |j| j["attempts"][0]["accepted_at"].is_string()).await;
    // Kept alive while the others misbehave.
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let honest_tunnel = tokio::spawn(async move {
        tunnel.idle_until(&mut stopped).await;
        tunnel
    });
    let world = World { hub, honest, bad, foreign, running, queued };
    let before = world.theirs().await;
    assert!(CASES.len() >= 30, "only {} cases", CASES.len());
    for (name, case) in CASES {
        tokio::time::timeout(PATIENCE, case(&world))
            .await
            .unwrap_or_else(|_| panic!("{name}: it does not end"));
        assert_eq!(world.theirs().await, before, "{name}");
    }
    drop(stop);
    let mut tunnel = honest_tunnel.await.expect("the honest agent");
    tunnel.send(&report(&world.running, 1)).await;
    until("the honest agent's job", PATIENCE, async || {
        (world.hub.api.job(&world.running).await["state"] == "succeeded").then_some(())
    })
    .await;
    hub = world.hub;
    assert!(hub.process.is_running());
    let peak = hub.process.peak_kib();
    assert!(peak < 160 * 1024, "{peak} KiB");
    assert!(!hub.process.log().contains("panicked"), "{}", hub.process.log());
}
