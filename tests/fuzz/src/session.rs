//! Both halves of a session, fed by a stranger who also decides what their owners do and how time passes.
//!
//! The bytes are a script of lines: `a TEXT` and `h TEXT` are frames to agent and hub, `x` carries what either has to
//! send to the other, `t N` lets N milliseconds pass, and the rest are calls of the owners. Whatever the script: no
//! panic, no queue without a bound, no clock that stands still, no more attempts than were announced.

use passerelle_protocol::{
    CallDeclined, CallResult, CallsAnnouncement, Decline, Hello, Offer, Report, ToAgent, ToHub, Welcome,
    decode_to_agent, decode_to_hub,
    limits::{MAX_JOBS, MAX_QUEUED_FRAMES, MAX_UNACKED_REPORTS},
    session::{AgentEvent, AgentSession, Attempt, Frame, HubEvent, HubSession},
};
use std::time::{Duration, Instant};

const HELLO: &str = include_str!("../../../protocol/fixtures/v1/to_hub.hello.json");
const WELCOME: &str = include_str!("../../../protocol/fixtures/v1/to_agent.welcome.json");
const OFFER: &str = include_str!("../../../protocol/fixtures/v1/to_agent.offer.minimal.json");
const REPORT: &str = include_str!("../../../protocol/fixtures/v1/to_hub.report.minimal.json");
const DECLINE: &str = include_str!("../../../protocol/fixtures/v1/to_hub.decline.minimal.json");

const CALL: &str = include_str!("../../../protocol/fixtures/v1/to_agent.call.minimal.json");
const CALL_RESULT: &str = include_str!("../../../protocol/fixtures/v1/to_hub.call_result.json");
const CALL_DECLINED: &str = include_str!("../../../protocol/fixtures/v1/to_hub.call_declined.json");

/// How many calls the agent takes at once.
const MOST_CALLS: u32 = 2;
/// The longest script; more lines say nothing new.
const MOST_LINES: usize = 200;

struct World {
    agent: AgentSession,
    hub: HubSession,
    hello: Hello,
    now: Instant,
    /// What the hub has offered, so that `x` makes sense of it.
    offered: u32,
}

/// Plays the script.
pub fn run(data: &[u8]) {
    let Ok(ToHub::Hello(hello)) = decode_to_hub(HELLO) else { panic!("the fixture of a hello") };
    let calls = Some(CallsAnnouncement { max: MOST_CALLS, issued_after: 0 });
    let hello = Hello { calls, ..hello };
    let now = Instant::now();
    let agent = AgentSession::new(hello.clone(), now).expect("a session");
    let mut world = World { agent, hub: HubSession::new(now), hello, now, offered: 0 };
    for line in data.split(|byte| *byte == b'\n').take(MOST_LINES) {
        world.play(line);
        world.check();
    }
}

impl World {
    fn play(&mut self, line: &[u8]) {
        let Ok(line) = std::str::from_utf8(line) else { return };
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let attempt = Attempt::new(self.offer().job, rest.trim().parse().unwrap_or(1));
        match word {
            "a" => self.agent.handle_frame(Frame::Text(rest.to_owned()), self.now),
            "h" => self.hub.handle_frame(Frame::Text(rest.to_owned()), self.now),
            "pong" => {
                self.agent.handle_frame(Frame::Pong, self.now);
                self.hub.handle_frame(Frame::Pong, self.now);
            }
            "x" => self.exchange(),
            "t" => self.pass(Duration::from_millis(rest.trim().parse::<u64>().unwrap_or(1).min(120_000))),
            "welcome" => self.hub.welcome(self.welcome()),
            "offer" => {
                self.offered += 1;
                let offer = Offer { attempt: self.offered, ..self.offer() };
                let Some(resource) = self.hello.resources.first().map(|resource| resource.name.clone())
                else {
                    return;
                };
                // Without credit it is refused, and that is all.
                let _refused = self.hub.offer(offer, resource, self.now);
            }
            "accept" => self.agent.accept(attempt),
            "decline" => {
                let Ok(ToHub::Decline(decline)) = decode_to_hub(DECLINE) else {
                    panic!("the fixture of a decline")
                };
                self.agent.decline(Decline { job: attempt.job, attempt: attempt.number, ..decline });
            }
            "report" => {
                let Ok(ToHub::Report(report)) = decode_to_hub(REPORT) else {
                    panic!("the fixture of a report")
                };
                let report = Report { job: attempt.job, attempt: attempt.number, ..report };
                if self.agent.can_report() {
                    let _refused = self.agent.report(&report, self.now);
                }
            }
            "call" => {
                let Ok(ToAgent::Call(call)) = decode_to_agent(CALL) else { panic!("the fixture of a call") };
                // Without credit it is refused, and that is all.
                let _refused = self.hub.call(call, self.now + Duration::from_secs(60));
            }
            "cancelcall" => self.hub.cancel_call(self.call_result().call),
            "endcall" => {
                let _refused = self.agent.end_call(self.call_result());
            }
            "declinecall" => {
                let Ok(ToHub::CallDeclined(declined)) = decode_to_hub(CALL_DECLINED) else {
                    panic!("the fixture of a declined call")
                };
                self.agent.decline_call(CallDeclined { call: self.call_result().call, ..declined });
            }
            "cancel" => self.hub.cancel(attempt, self.now),
            "grant" => self.hub.grant_commit(attempt),
            "ack" => self.hub.ack_report(attempt),
            "drain" => self.agent.drain(30),
            _ => {}
        }
    }

    /// Carries frames and takes events, as owners do.
    fn exchange(&mut self) {
        let mut sent = 0;
        while let Some(frame) = self.agent.poll_frame() {
            sent += 1;
            self.hub.handle_frame(frame, self.now);
        }
        while let Some(frame) = self.hub.poll_frame() {
            sent += 1;
            self.agent.handle_frame(frame, self.now);
        }
        assert!(sent <= 2 * MAX_QUEUED_FRAMES + 4, "{sent} frames had piled up");
        while let Some(event) = self.hub.poll_event() {
            if let HubEvent::CommitRequested(commit) = event {
                self.hub.grant_commit(Attempt::new(commit.job, commit.attempt));
            }
        }
        while let Some(event) = self.agent.poll_event() {
            if let AgentEvent::Offered(offer) = event {
                self.agent.accept(Attempt::new(offer.job, offer.attempt));
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.agent.handle_timeout(self.now);
        self.hub.handle_timeout(self.now);
        for next in [self.agent.poll_timeout(), self.hub.poll_timeout()].into_iter().flatten() {
            assert!(next > self.now, "a clock stands still");
        }
    }

    fn check(&self) {
        let most = MAX_JOBS as usize + self.hello.held.len();
        assert!(self.hub.attempts().count() <= most, "more attempts than an agent may hold");
        assert!(self.hub.open_calls() <= MOST_CALLS as usize, "more calls than the agent takes");
        assert!(self.agent.open_calls() <= MOST_CALLS as usize, "more calls than were announced");
        assert!(self.agent.unacked() <= MAX_UNACKED_REPORTS, "more reports than may wait");
        for (closed, next) in [
            (self.agent.closed().is_some(), self.agent.poll_timeout()),
            (self.hub.closed().is_some(), self.hub.poll_timeout()),
        ] {
            assert_eq!(
                closed,
                next.is_none(),
                "an open session must have a time to look again, a closed one none"
            );
        }
    }

    fn call_result(&self) -> CallResult {
        match decode_to_hub(CALL_RESULT) {
            Ok(ToHub::CallResult(result)) => result,
            _ => panic!("the fixture of a call's result"),
        }
    }

    fn welcome(&self) -> Welcome {
        match decode_to_agent(WELCOME) {
            Ok(ToAgent::Welcome(welcome)) => welcome,
            _ => panic!("the fixture of a welcome"),
        }
    }

    fn offer(&self) -> Offer {
        match decode_to_agent(OFFER) {
            Ok(ToAgent::Offer(offer)) => offer,
            _ => panic!("the fixture of an offer"),
        }
    }
}
