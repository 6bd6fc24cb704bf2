//! `/v1/events`: what changes or comes in for the tenant, as server-sent events (HTML, section 9.2).
//!
//! Each event's id is the change's sequence number, so that a client that comes back with `Last-Event-ID` misses
//! nothing. A reader that is too slow is disconnected; it comes back in the same way. With its API key a stream ends too.

use super::{
    App,
    agents::AgentView,
    auth::{Allowed, EventsRead, bearer},
    metrics::StreamGuard,
    problem::{Problem, ProblemDocument},
};
use crate::model::{Change, ChangeKind, Notice};
use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, header};
use passerelle_protocol::Name;
use serde::Serialize;
use std::{convert::Infallible, time::Duration};
use tokio::{
    sync::{broadcast, mpsc},
    time::{sleep, timeout},
};

/// A comment is sent after this long without an event, so that nothing between takes the stream for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How many events wait for a reader.
const QUEUE: usize = 64;
/// A reader that takes nothing for this long is disconnected.
const SLOW: Duration = Duration::from_secs(10);
/// How often a stream without events looks whether its API key was revoked.
const LOOK: Duration = Duration::from_millis(250);
/// How many missed changes are read at a time.
const BATCH: usize = 500;

/// Follows jobs, agents and what agents' triggers see: events `job`, `agent` and `received`, their data the object as `GET`
/// shows it; and notices of mediations, lateness, agents that are away and certificates: events `notice`, their data what
/// subscribers get, with `id` and `at`.
#[utoipa::path(
    get, path = "/v1/events", tag = "events",
    params(("Last-Event-ID" = Option<String>, Header, description = "Goes on after this event")),
    responses(
        (status = 200, description = "The stream", content_type = "text/event-stream", body = String),
        (status = "default", body = ProblemDocument),
    )
)]
pub async fn follow(
    caller: Allowed<EventsRead>,
    State(app): State<App>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let last = match headers.get("last-event-id").map(|value| value.to_str().unwrap_or("no ASCII")) {
        None | Some("") => None,
        Some(text) => Some(text.parse::<u64>().map_err(|_| {
            Problem::bad_request("last-event-id: expected the id of an event of this stream")
        })?),
    };
    // Subscribed before anything is read: what happens meanwhile is not missed.
    let live = app.store.subscribe();
    // An id that was never given is from before a backup was restored: all that is kept is told.
    let newest = app.store.last_event().await?;
    let last = last.map(|last| if last > newest { 0 } else { last });
    let (sender, receiver) = mpsc::channel(QUEUE);
    let guard = app.metrics.event_stream();
    let key = bearer(&headers).unwrap_or_default().to_owned();
    let follower = Follower { tenant: caller.tenant, key, last, sender, _guard: guard, app: app.clone() };
    app.tasks.spawn(follower.run(live));
    let stream = futures_util::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|text: String| (Ok::<_, Infallible>(text), receiver))
    });
    Ok(([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(stream)).into_response())
}

struct Follower {
    app: App,
    tenant: Name,
    /// The API key: the stream ends with it.
    key: String,
    last: Option<u64>,
    sender: mpsc::Sender<String>,
    _guard: StreamGuard,
}

/// Ends when the API key does.
async fn revoked(app: &App, key: &str) {
    while is_valid(app, key).await {
        sleep(LOOK).await;
    }
}

/// Whether the API key still opens the stream. What cannot be found out now is found out next time.
async fn is_valid(app: &App, key: &str) -> bool {
    !matches!(app.store.authenticate(key).await, Ok(None))
}

/// The stream is over: the reader is gone or too slow, or the hub ends.
struct Over;

impl Follower {
    async fn run(mut self, mut live: broadcast::Receiver<Change>) {
        let (app, gone, key) = (self.app.clone(), self.sender.clone(), self.key.clone());
        tokio::select! {
            _ = self.follow(&mut live) => {}
            () = app.stop.cancelled() => {}
            () = gone.closed() => {}
            () = revoked(&app, &key) => {}
        }
    }

    async fn follow(&mut self, live: &mut broadcast::Receiver<Change>) -> Result<(), Over> {
        self.send(": connected\nretry: 2000\n\n".to_owned()).await?;
        self.catch_up().await?;
        loop {
            match timeout(KEEP_ALIVE, live.recv()).await {
                Err(_) => self.send(": keep-alive\n\n".to_owned()).await?,
                Ok(Ok(change)) => self.tell(&change).await?,
                Ok(Err(broadcast::error::RecvError::Lagged(_))) => match self.last {
                    Some(_) => self.catch_up().await?,
                    // Nothing was told yet, so nothing says where to go on: the client comes back.
                    None => return Err(Over),
                },
                Ok(Err(broadcast::error::RecvError::Closed)) => return Err(Over),
            }
        }
    }

    /// Tells what is stored after the last event told.
    async fn catch_up(&mut self) -> Result<(), Over> {
        while let Some(last) = self.last {
            let missed = self.app.store.events_since(self.tenant.clone(), last, BATCH).await;
            let missed = missed.map_err(|error| {
                tracing::warn!(%error, "An event stream could not be continued");
                Over
            })?;
            for change in &missed {
                self.tell(change).await?;
            }
            if missed.len() < BATCH {
                break;
            }
        }
        Ok(())
    }

    async fn tell(&mut self, change: &Change) -> Result<(), Over> {
        if change.tenant != self.tenant || self.last.is_some_and(|last| change.seq <= last) {
            return Ok(());
        }
        if !is_valid(&self.app, &self.key).await {
            return Err(Over);
        }
        self.last = Some(change.seq);
        let event = match change.kind {
            ChangeKind::Job(job) => match self.app.store.job(self.tenant.clone(), job).await {
                Ok(job) => render("job", change.seq, &job),
                // Meanwhile removed.
                Err(_) => return Ok(()),
            },
            ChangeKind::Agent(id) => match self.app.store.agent(id).await {
                Ok(Some(agent)) => {
                    let view = AgentView::new(agent, self.app.tunnel.online(id));
                    render("agent", change.seq, &view)
                }
                Ok(None) | Err(_) => return Ok(()),
            },
            ChangeKind::Notice(id) => match self.app.store.notice(self.tenant.clone(), id).await {
                Ok(notice) => render("notice", change.seq, &NoticeView::from(&notice)),
                // Meanwhile removed.
                Err(_) => return Ok(()),
            },
            ChangeKind::Received(id) => {
                match self.app.store.received_event(self.tenant.clone(), id).await {
                    Ok(event) => render("received", change.seq, &event),
                    // Meanwhile removed.
                    Err(_) => return Ok(()),
                }
            }
            ChangeKind::Run(id) => match self.app.store.run_summary(self.tenant.clone(), id).await {
                Ok(run) => render("run", change.seq, &run),
                // Meanwhile removed.
                Err(_) => return Ok(()),
            },
            // Clients read definitions where they need them.
            ChangeKind::Definition(_) => return Ok(()),
        };
        self.send(event).await
    }

    async fn send(&self, text: String) -> Result<(), Over> {
        self.sender.send_timeout(text, SLOW).await.map_err(|_| Over)
    }
}

/// A notice on the stream: the vendor's envelope, with the id that its deliveries have, and its time.
#[derive(Serialize)]
struct NoticeView {
    id: uuid::Uuid,
    at: jiff::Timestamp,
    #[serde(flatten)]
    envelope: serde_json::Value,
}

impl From<&Notice> for NoticeView {
    fn from(notice: &Notice) -> Self {
        Self { id: notice.id, at: notice.at, envelope: notice.envelope() }
    }
}

fn render<T: Serialize>(event: &str, seq: u64, data: &T) -> String {
    // JSON without line breaks: one data line.
    let data = serde_json::to_string(data).unwrap_or_default();
    format!("event: {event}\nid: {seq}\ndata: {data}\n\n")
}
