//! Frames that are no honest messages: the session may end, the agent never does, and its memory stays bounded.

use super::world::World;
use passerelle_protocol::JobId;
use passerelle_tests::Session;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::time::Duration;
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::frame::{
        Frame,
        coding::{Data, OpCode},
    },
};

/// How long the agent may take to hang up, or to answer.
const SOON: Duration = Duration::from_secs(30);

pub(super) enum Attack {
    /// One frame that ends the session; the agent comes back.
    Ends(Message),
    /// Messages that change nothing; the session goes on.
    Borne(Vec<Message>),
    /// So many that the agent may hang up before the last, or not.
    Flood(Box<dyn Fn(usize) -> Message + Send + Sync>, usize),
    /// Pieces of a message that has no end; another message in its middle ends the session at the latest.
    Unfinished(Box<dyn Fn(usize) -> Message + Send + Sync>, usize),
}

impl Attack {
    /// How many rows of its audit tell for certain of the end of a connection.
    pub(super) fn ends(&self) -> u64 {
        u64::from(matches!(self, Self::Ends(_) | Self::Unfinished(..)))
    }

    /// Plays it and gives a session that works.
    pub(super) async fn play(self, world: &mut World, mut session: Session) -> Session {
        match self {
            Self::Ends(frame) => {
                // The agent may have hung up before all of a long frame was written.
                let _cut = session.send_raw_lossy(frame).await;
                session.closed().await;
                again(world).await
            }
            Self::Borne(frames) => {
                for frame in frames {
                    session.send_raw(frame).await;
                }
                answers(&mut session).await;
                session
            }
            Self::Unfinished(frame, count) => {
                for number in 0..count {
                    if !session.send_raw_lossy(frame(number)).await {
                        break;
                    }
                }
                let _cut = session.send_raw_lossy(Message::text("{}")).await;
                session.closed().await;
                again(world).await
            }
            Self::Flood(frame, count) => {
                for number in 0..count {
                    if !matches!(
                        tokio::time::timeout(SOON, session.send_raw_lossy(frame(number))).await,
                        Ok(true)
                    ) {
                        return again(world).await;
                    }
                }
                match tokio::time::timeout(SOON, answers(&mut session)).await {
                    Ok(()) => session,
                    Err(_) => again(world).await,
                }
            }
        }
    }
}

/// The next session. The agent lives, but after each short session it waits longer before it dials: a new start does not.
/// It is stopped in good order, which has all rows of its audit written.
async fn again(world: &mut World) -> Session {
    assert!(world.agent.process().is_running(), "the agent ended");
    world.agent.process().signal(Signal::TERM);
    assert_eq!(world.agent.process().exit_code(SOON).await, Some(0), "{}", world.agent.process().log());
    world.agent.spawn();
    world.hub.welcomed().await
}

/// Waits until the agent has worked through what was sent before.
async fn answers(session: &mut Session) {
    session.send(&json!({"type": "teleport"})).await;
    loop {
        if session.receive(&["unsupported"]).await["of"] == "teleport" {
            return;
        }
    }
}

fn text(value: &Value) -> Message {
    Message::text(value.to_string())
}

fn raw(opcode: OpCode, is_final: bool, content: Vec<u8>) -> Message {
    Message::Frame(Frame::message(content, opcode, is_final))
}

fn about(kind: &str) -> Value {
    json!({"type": kind, "job": JobId::new(1, &[5; 10]), "attempt": 1})
}

pub(super) fn attacks() -> Vec<(&'static str, Attack)> {
    let deep = |open: &str, times: usize| format!(r#"{{"type":"cancel","x":{}}}"#, open.repeat(times));
    let offer = |attempt: &str| {
        let id = JobId::new(1, &[6; 10]);
        Message::text(format!(
            r#"{{"type":"offer","job":"{id}","attempt":{attempt},"envelope":"x","ticket":"x"}}"#
        ))
    };
    vec![
        ("a text that is no JSON", Attack::Ends(Message::text("GET / HTTP/1.1"))),
        ("an empty message", Attack::Ends(Message::text(""))),
        ("a list in the place of a message", Attack::Ends(Message::text("[]"))),
        ("a message without a type", Attack::Ends(Message::text("{}"))),
        ("a type that is a number", Attack::Ends(Message::text(r#"{"type":7}"#))),
        ("an offer without its fields", Attack::Ends(Message::text(r#"{"type":"offer"}"#))),
        ("an attempt with a negative number", Attack::Ends(offer("-1"))),
        ("an attempt beyond all numbers", Attack::Ends(offer("99999999999999999999"))),
        ("an attempt that is a fraction", Attack::Ends(offer("1.5"))),
        ("a message of two megabytes", {
            Attack::Ends(Message::text(format!(r#"{{"type":"unsupported","of":"{}"}}"#, "x".repeat(2 << 20))))
        }),
        ("lists nested a hundred thousand deep", Attack::Ends(Message::text(deep("[", 100_000)))),
        ("objects nested fifty thousand deep", Attack::Ends(Message::text(deep(r#"{"x":"#, 50_000)))),
        ("a binary message", Attack::Ends(Message::binary(vec![0; 10]))),
        (
            "bytes that are no UTF-8",
            Attack::Ends(raw(OpCode::Data(Data::Text), true, vec![0xc3, 0x28, 0xff])),
        ),
        ("half a surrogate", Attack::Ends(Message::text(r#"{"type":"\ud800"#))),
        ("a frame of an unknown kind", Attack::Ends(raw(OpCode::Data(Data::Reserved(5)), true, vec![1]))),
        ("a continuation of nothing", Attack::Ends(raw(OpCode::Data(Data::Continue), true, b"x".to_vec()))),
        (
            "a second welcome",
            Attack::Borne(vec![text(&json!({
                "type": "welcome", "version": 1, "session": JobId::new(2, &[1; 10]), "epoch": 9, "tenant": "other",
                "site": "lyon", "server_time": "2026-01-01T00:00:00Z", "held": [],
            }))]),
        ),
        ("a thousand unknown types", {
            Attack::Flood(Box::new(|number| text(&json!({"type": format!("type-{number}")}))), 1000)
        }),
        ("grants and acknowledgements of what nobody asked", {
            Attack::Borne(["commit_granted", "report_ack", "cancel"].map(|kind| text(&about(kind))).to_vec())
        }),
        ("twenty thousand cancellations of unknown jobs", {
            Attack::Flood(
                Box::new(|number| {
                    let job = JobId::new(number as u64, &[8; 10]);
                    text(&json!({"type": "cancel", "job": job, "attempt": 1}))
                }),
                20_000,
            )
        }),
        ("ten thousand pings", Attack::Flood(Box::new(|_| Message::Ping(vec![b'x'; 125].into())), 10_000)),
        ("ten thousand pongs", Attack::Flood(Box::new(|_| Message::Pong(vec![b'x'; 125].into())), 10_000)),
        ("a message that never ends", {
            Attack::Unfinished(
                Box::new(|number| {
                    let kind = if number == 0 { Data::Text } else { Data::Continue };
                    raw(OpCode::Data(kind), false, vec![b' '; 64 * 1024])
                }),
                200,
            )
        }),
        ("a message in ten thousand empty pieces", {
            Attack::Unfinished(
                Box::new(|number| {
                    let kind = if number == 0 { Data::Text } else { Data::Continue };
                    raw(OpCode::Data(kind), false, Vec::new())
                }),
                10_000,
            )
        }),
    ]
}
