//! Drives the protocol's session over a WebSocket: one loop that never waits for a write, so that a stalled socket
//! neither hides a dead hub nor delays a heartbeat. Writes go through a bounded channel to a task of their own.

use super::{Ended, opening, upgrade::Socket};
use crate::{
    agent::Agent,
    audit::{Entry, Kind},
    clock,
    outbox::{Answer, CallAnswer},
    registry::Cause,
    report,
    state::Refusal,
    status::{CLOCK_TOLD, Link},
    triggers::send,
};
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _, stream::SplitSink};
use passerelle_connectors::causes::chain;
use passerelle_protocol::{
    CallResult, HeldAction, Refuse, Welcome,
    session::{AgentEvent, AgentSession, Attempt, Frame},
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tokio_tungstenite::tungstenite::{
    self, Message, Utf8Bytes,
    protocol::{CloseFrame, frame::coding::CloseCode},
};
use tracing::{Span, debug, error, info, trace, warn};

/// Frames that wait for the writer; what does not fit stays in the session, which bounds it.
const WRITE_QUEUE: usize = 64;
/// How long a moment without calls is waited for when the session is to be opened anew: as long as a call may take.
const QUIET: Duration = Duration::from_secs(60);
/// How long the last calls may go on if there was none: no new ones are taken meanwhile.
const LAST_CALLS: Duration = Duration::from_secs(10);
/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(2);

enum Write {
    Frame(Frame),
    Close(u16),
}

/// Runs one session until it ends. `heard` counts the messages that came, pings and all.
pub async fn drive(agent: &Arc<Agent>, socket: Socket, heard: &mut u64) -> Ended {
    // Before the settings are read: a change in between is then not missed.
    let mut announced = agent.announced.subscribe();
    let session = match AgentSession::new(opening::hello(agent).await, std::time::Instant::now()) {
        Ok(session) => session,
        Err(reason) => return Ended::Failed { why: reason.to_string(), hint: None },
    };
    let (sink, mut stream) = socket.split();
    let (writes, queue) = mpsc::channel(WRITE_QUEUE);
    let mut writer = tokio::spawn(write(sink, queue));
    let mut reports = report::feed(agent);
    let mut events = send::feed(agent);
    let mut tunnel = Driver { agent, session, epoch: 0, refused: None };
    let mut renewal = Renewal::No;
    // What to close with where the session itself is not to blame.
    let mut code = 1000;
    let ended = loop {
        tunnel.answer_calls();
        let blocked = tunnel.flush(&writes);
        tunnel.take_events();
        if tunnel.session.closed().is_some() {
            break None;
        }
        let due = tunnel.session.poll_timeout().map_or_else(far, Instant::from_std);
        let over = renewal.at().is_some_and(|at| Instant::now() >= at);
        match renewal {
            Renewal::Wanted(_) if over && tunnel.session.open_calls() > 0 => {
                tunnel.session.take_no_calls();
                renewal = Renewal::Due(Instant::now() + LAST_CALLS);
                continue;
            }
            Renewal::Wanted(_) | Renewal::Due(_) if over || tunnel.session.open_calls() == 0 => {
                tunnel.flush(&writes);
                goodbye(&writes, &mut writer, 1000).await;
                agent.calls.stop_all(Cause::Hub);
                return Ended::Renewed;
            }
            Renewal::No | Renewal::Wanted(_) | Renewal::Due(_) => {}
        }
        let due = renewal.at().map_or(due, |at| due.min(at));
        tokio::select! {
            message = stream.next() => { *heard += 1; match message {
                Some(Ok(Message::Text(text))) => {
                    trace!(bytes = text.len(), "Received a frame");
                    tunnel.heard(Frame::Text(text.as_str().to_owned()));
                }
                Some(Ok(Message::Ping(_))) => tunnel.heard(Frame::Ping),
                Some(Ok(Message::Pong(_))) => tunnel.heard(Frame::Pong),
                Some(Ok(Message::Close(frame))) => break Some(closed_by_hub(frame)),
                Some(Ok(Message::Binary(_) | Message::Frame(_))) => {
                    code = 1002;
                    break Some("the hub sent a binary frame, which the protocol does not have".to_owned());
                }
                Some(Err(e)) => {
                    if violates(&e) {
                        code = 1002;
                    }
                    break Some(format!("the connection broke: {}", chain(&e)));
                }
                None => break Some("the hub ended the connection".to_owned()),
            } },
            // Room in the writer's queue: flush again.
            permit = writes.reserve(), if blocked => drop(permit),
            report = reports.recv(), if tunnel.session.can_report() => {
                if let Some(report) = report {
                    tunnel.report(&report);
                }
            }
            event = events.recv(), if tunnel.session.can_send_event() => {
                if let Some(event) = event {
                    tunnel.event(&event);
                }
            }
            () = agent.outbox.filled() => tunnel.send_outbox(),
            () = sleep_until(due) => tunnel.session.handle_timeout(std::time::Instant::now()),
            end = &mut writer => {
                let why = end.unwrap_or_else(|e| e.to_string());
                break Some(format!("the connection broke while writing: {why}"));
            }
            Ok(()) = announced.changed() => {
                info!("The agent offers something else than before: the session is opened anew");
                // Calls end with the connection, and most are of other resources. What is changed counts here already.
                if matches!(renewal, Renewal::No) {
                    renewal = Renewal::Wanted(Instant::now() + QUIET);
                }
            }
            () = agent.close.cancelled() => {
                tunnel.answer_calls();
                tunnel.flush(&writes);
                goodbye(&writes, &mut writer, 1000).await;
                agent.calls.stop_all(Cause::Hub);
                return Ended::Closed;
            }
        }
    };
    // Nobody hears of their results any more.
    agent.calls.stop_all(Cause::Hub);
    tunnel.take_events();
    let reason = tunnel.session.closed().cloned();
    let code = reason.as_ref().map_or(code, |reason| reason.close_code());
    goodbye(&writes, &mut writer, code).await;
    if let Some(refuse) = tunnel.refused {
        return opening::refusal(agent, refuse);
    }
    let why = ended.or_else(|| reason.map(|reason| reason.to_string()));
    Ended::Failed { why: why.unwrap_or_else(|| "the session ended".to_owned()), hint: None }
}

/// Whether the session is to be opened anew, to announce what the agent offers now.
#[derive(Clone, Copy)]
enum Renewal {
    No,
    /// As soon as no call is under way; from that time on no new one is taken.
    Wanted(Instant),
    /// When the last call has ended, at that time at the latest.
    Due(Instant),
}

impl Renewal {
    fn at(self) -> Option<Instant> {
        match self {
            Self::No => None,
            Self::Wanted(at) | Self::Due(at) => Some(at),
        }
    }
}

struct Driver<'a> {
    agent: &'a Arc<Agent>,
    session: AgentSession,
    epoch: u64,
    refused: Option<Refuse>,
}

impl Driver<'_> {
    /// Hands frames to the writer as far as there is room; `true` if some are left.
    fn flush(&mut self, writes: &mpsc::Sender<Write>) -> bool {
        loop {
            match writes.try_reserve() {
                Ok(permit) => match self.session.poll_frame() {
                    Some(frame) => permit.send(Write::Frame(frame)),
                    None => return false,
                },
                Err(mpsc::error::TrySendError::Full(())) => return true,
                Err(mpsc::error::TrySendError::Closed(())) => return false,
            }
        }
    }

    fn heard(&mut self, frame: Frame) {
        self.session.handle_frame(frame, std::time::Instant::now());
    }

    fn report(&mut self, report: &passerelle_protocol::Report) {
        if let Err(reason) = self.session.report(report, std::time::Instant::now()) {
            // Its parts are bounded, so this is a fault of ours; the row stays in the journal.
            error!(job_id = %report.job, attempt = report.attempt, error = %reason, "A report cannot be sent");
        }
    }

    fn event(&mut self, event: &passerelle_protocol::Event) {
        if let Err(reason) = self.session.send_event(event, std::time::Instant::now()) {
            error!(event_id = %event.id, error = %reason, "An event cannot be sent");
        }
    }

    fn send_outbox(&mut self) {
        if !self.session.is_open() {
            return;
        }
        let batch = self.agent.outbox.take();
        for answer in batch.answers {
            match answer {
                Answer::Accept(attempt) => self.session.accept(attempt),
                Answer::Decline(decline) => self.session.decline(decline),
            }
        }
        for progress in batch.progress {
            self.session.progress(progress);
        }
        for (attempt, intent) in batch.asks {
            self.session.commit(attempt, intent, std::time::Instant::now());
        }
        for cursor in batch.cursors {
            self.session.tell_cursor(cursor);
        }
        if let Some(grace_s) = batch.draining {
            self.session.drain(grace_s);
        }
    }

    /// Answers calls, as far as the hub reads.
    fn answer_calls(&mut self) {
        while self.session.can_end_call()
            && let Some(answer) = self.agent.outbox.next_call_answer()
        {
            match answer {
                CallAnswer::Declined(declined) => self.session.decline_call(declined),
                CallAnswer::Ended(result) => {
                    let call = result.call;
                    if let Err(reason) = self.session.end_call(result) {
                        error!(call_id = %call, error = %reason, "The result of a call cannot be sent");
                        // Its parts are bounded, so this is a fault of ours.
                        let message = "the result of the call cannot be sent".to_owned();
                        let code = passerelle_protocol::Code::Internal;
                        let outcome =
                            passerelle_protocol::Outcome::Failed(passerelle_protocol::Failure::new(
                                passerelle_protocol::Verdict::Permanent,
                                passerelle_protocol::Effect::Unknown,
                                code,
                                message,
                            ));
                        let finished_at = clock::now();
                        let result = CallResult { call, outcome, started_at: None, finished_at };
                        drop(self.session.end_call(result));
                    }
                }
            }
        }
    }

    fn take_events(&mut self) {
        while let Some(event) = self.session.poll_event() {
            match event {
                AgentEvent::Welcomed(welcome) => self.welcomed(welcome),
                AgentEvent::Refused(refuse) => self.refused = Some(refuse),
                // Before the next event: an offer that follows may be signed with the new key.
                AgentEvent::HubKeys(keys) => self.follow(&keys.statements),
                AgentEvent::Offered(offer) => {
                    self.agent.metrics.offers.inc();
                    let (agent, epoch) = (Arc::clone(self.agent), self.epoch);
                    self.agent.tasks.spawn(async move {
                        if let Some(answer) = Arc::clone(&agent).dispatch(offer, epoch).await {
                            agent.outbox.answer(answer);
                        }
                    });
                }
                AgentEvent::Called(call) => self.agent.called(call, self.epoch),
                AgentEvent::CallCancelled(call) => self.agent.calls.stop(call),
                AgentEvent::CancelRequested(attempt) => self.agent.registry.stop(attempt, Cause::Hub),
                AgentEvent::CommitGranted(attempt) => {
                    self.agent.journal.granted(attempt);
                    self.agent.outbox.granted(attempt);
                }
                AgentEvent::ReportAcked(attempt) => self.agent.acknowledged(attempt),
                AgentEvent::EventAcked(ack) => {
                    let agent = Arc::clone(self.agent);
                    self.agent.tasks.spawn(async move { send::acked(&agent, ack).await });
                }
                AgentEvent::EventRefused(refused) => {
                    let agent = Arc::clone(self.agent);
                    self.agent.tasks.spawn(async move { send::refused(&agent, refused).await });
                }
                AgentEvent::Triggers(leases) => self.agent.triggers.leased(leases),
                AgentEvent::Unsupported(of) => {
                    self.agent.metrics.unsupported.inc();
                    debug!(of, "A message type is not known on both sides");
                    let row = Entry::new(Kind::MessageRefused).hub_code("unsupported");
                    self.agent
                        .journal
                        .refused(row.detail(&format!("type {of:?} is not known on both sides")));
                }
            }
        }
    }

    /// The hub says which of its keys follow.
    fn follow(&self, statements: &[String]) {
        let agent = self.agent;
        let followed = agent.identity.follow(&agent.state, statements);
        for key in &followed.taken {
            agent.metrics.hub_keys_followed.inc();
            info!(%key, "The hub signs with a new key, which its old one vouches for");
            // Not simply noted: a breached hub may make itself any number of keys.
            let row = Entry::new(Kind::KeyRotated).hub_code("hub_key");
            agent.journal.refused(row.detail(&format!("the hub's key, now {key}")));
        }
        for why in &followed.refused {
            agent.metrics.hub_keys_refused.inc();
            warn!(
                reason = why,
                "Refused a signing key of the hub: no key that this agent trusts vouches for it"
            );
            let row = Entry::new(Kind::MessageRefused).hub_code("hub_key");
            agent.journal.refused(row.detail(&format!("a signing key of the hub: {why}")));
        }
        if let Some(error) = &followed.unstored {
            warn!(error, "The hub's new key counts, but cannot be stored");
        }
    }

    fn welcomed(&mut self, welcome: Welcome) {
        let enrolled = &self.agent.identity.enrolled;
        Span::current().record("session_id", tracing::field::display(welcome.session));
        if welcome.tenant != enrolled.tenant || welcome.site != enrolled.site {
            warn!(
                tenant = %welcome.tenant, site = %welcome.site,
                "The hub counts this agent to another tenant or site than at enrolment; jobs for it are refused"
            );
        }
        if let Some(clock) = clock::difference(welcome.server_time, CLOCK_TOLD) {
            warn!("{clock}");
        }
        self.epoch = welcome.epoch;
        for held in welcome.held {
            if held.action == HeldAction::Stop {
                let attempt = Attempt::new(held.job, held.attempt);
                if held.granted {
                    self.agent.journal.disowned(attempt);
                }
                self.agent.registry.give_up(attempt);
            }
        }
        self.agent.registry.heard();
        let row = Entry { count: Some(self.epoch), ..Entry::new(Kind::Connected) };
        self.agent.journal.refused(row.detail(&format!("session {}", welcome.session)));
        Refusal::forget(&self.agent.state);
        self.agent.status.set_link(Link::Connected { session: welcome.session, since: clock::now() });
        self.agent.status.set_hub_clock(welcome.server_time);
        // What waits is for this connection from here on.
        self.agent.outbox.reconnected();
        info!(epoch = welcome.epoch, version = welcome.version, "Connected to the hub");
    }
}

/// Whether the hub broke the rules of WebSocket (RFC 6455), not the connection itself.
fn violates(error: &tungstenite::Error) -> bool {
    use tungstenite::error::{Error, ProtocolError};
    match error {
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => false,
        Error::Protocol(_) | Error::Capacity(_) | Error::Utf8(_) => true,
        _ => false,
    }
}

fn closed_by_hub(frame: Option<CloseFrame>) -> String {
    match frame {
        Some(frame) => format!("the hub closed the connection ({}: {})", u16::from(frame.code), frame.reason),
        None => "the hub closed the connection".to_owned(),
    }
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

/// Lets the writer send what it has and a close frame, within reason.
async fn goodbye(writes: &mpsc::Sender<Write>, writer: &mut tokio::task::JoinHandle<String>, code: u16) {
    let farewell = async {
        if writes.send(Write::Close(code)).await.is_ok() && !writer.is_finished() {
            drop((&mut *writer).await);
        }
    };
    if timeout(GOODBYE, farewell).await.is_err() {
        writer.abort();
    }
}

/// Writes what comes: feeds all that waits, then flushes once. Ends with the reason.
async fn write(mut sink: SplitSink<Socket, Message>, mut queue: mpsc::Receiver<Write>) -> String {
    while let Some(first) = queue.recv().await {
        let mut next = Some(first);
        while let Some(write) = next {
            let message = match write {
                Write::Frame(Frame::Text(text)) => Message::Text(text.into()),
                Write::Frame(Frame::Ping) => Message::Ping(Bytes::new()),
                Write::Frame(Frame::Pong) => Message::Pong(Bytes::new()),
                Write::Close(code) => {
                    let frame = CloseFrame { code: CloseCode::from(code), reason: Utf8Bytes::default() };
                    return match sink.send(Message::Close(Some(frame))).await {
                        Ok(()) => "closed".to_owned(),
                        Err(e) => chain(&e),
                    };
                }
            };
            if let Err(e) = sink.feed(message).await {
                return chain(&e);
            }
            next = queue.try_recv().ok();
        }
        if let Err(e) = sink.flush().await {
            return chain(&e);
        }
    }
    "the session ended".to_owned()
}
