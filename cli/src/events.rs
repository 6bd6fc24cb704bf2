//! `events list | show | payload | follow`.

use crate::{
    Failure,
    args::events::{EventPayload, Events, FollowEvents, ListEvents, ShowEvent, Which},
    client::Client,
    jobs,
    out::Out,
    render,
};
use serde_json::Value;
use std::time::Duration;

/// After a cut: the pause before the next connection, from the first to the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// The hub sends something at least every 15 s.
const SILENCE: Duration = Duration::from_secs(60);
/// The longest event: a job with its parameters and result is below it.
const MAX_EVENT: usize = 4 << 20;

pub(crate) async fn run(command: Events, out: &Out) -> Result<(), Failure> {
    match command {
        Events::List(command) => list(&command, out).await,
        Events::Show(command) => show(&command, out).await,
        Events::Payload(command) => payload(&command, out).await,
        Events::Follow(command) => follow(&command, out).await,
    }
}

async fn list(command: &ListEvents, out: &Out) -> Result<(), Failure> {
    let client = Client::new(&command.connection)?;
    let ListEvents { which, since, until, page, .. } = command;
    let limit = page.limit.map(|limit| limit.to_string());
    let query: Vec<(&str, String)> = [
        ("site", &which.site),
        ("resource", &which.resource),
        ("trigger", &which.trigger),
        ("kind", &which.kind),
        ("since", since),
        ("until", until),
        ("limit", &limit),
        ("cursor", &page.cursor),
    ]
    .into_iter()
    .filter_map(|(key, value)| Some((key, value.clone()?)))
    .collect();
    let page = client.get("v1/events/received", &query).await?;
    if command.connection.json {
        out.json(&page);
        return Ok(());
    }
    let items = page.get("items").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let rows = items.iter().map(row).collect();
    let head = ["ID", "RECEIVED", "SITE", "RESOURCE", "TRIGGER", "KIND", "SIZE", "WHAT", "JOBS"];
    out.text(&render::table(&head, rows, out.colour));
    if let Some(next) = page.get("next_cursor").and_then(Value::as_str) {
        out.text(&format!("more with --cursor {}\n", render::clean(next)));
    }
    Ok(())
}

/// An event as a line of a table.
fn row(event: &Value) -> Vec<String> {
    let mut row: Vec<String> = ["id", "received_at", "site", "resource", "trigger", "kind"]
        .iter()
        .map(|key| text(event.get(key)))
        .collect();
    row.push(text(event.pointer("/payload/size")));
    row.push(what(event));
    row.push(event.get("jobs").and_then(Value::as_array).map_or(0, Vec::len).to_string());
    row
}

/// The path of a file's event; else its data.
fn what(event: &Value) -> String {
    match event.pointer("/data/path").and_then(Value::as_str) {
        Some(path) => path.to_owned(),
        None => text(event.get("data")),
    }
}

fn text(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

async fn show(command: &ShowEvent, out: &Out) -> Result<(), Failure> {
    let event = Client::new(&command.connection)?.event(&command.id).await?;
    if command.connection.json {
        out.json(&event);
        return Ok(());
    }
    let lines = [
        ("event", text(event.get("id"))),
        (
            "trigger",
            format!(
                "{} ({}) on {} at {}",
                text(event.get("trigger")),
                text(event.get("kind")),
                text(event.get("resource")),
                text(event.get("site"))
            ),
        ),
        ("agent", text(event.get("agent"))),
        ("occurred", text(event.get("occurred_at"))),
        ("received", text(event.get("received_at"))),
        ("data", text(event.get("data"))),
        (
            "payload",
            match event.get("payload").filter(|payload| !payload.is_null()) {
                None => "-".to_owned(),
                Some(payload) => format!(
                    "{} bytes, {}, SHA-256 {}",
                    text(payload.get("size")),
                    text(payload.get("media_type")),
                    text(payload.get("sha256"))
                ),
            },
        ),
    ];
    let jobs = event.get("jobs").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let jobs = jobs.iter().map(|job| ("job", text(Some(job))));
    let told: String = lines
        .into_iter()
        .chain(jobs)
        .map(|(name, value)| format!("{name:<10} {}\n", render::clean(&value)))
        .collect();
    out.text(&told);
    Ok(())
}

async fn payload(command: &EventPayload, out: &Out) -> Result<(), Failure> {
    let client = Client::new(&command.connection)?;
    let event = client.event(&command.id).await?;
    let announced = event.get("payload").filter(|payload| !payload.is_null());
    let sha256 = announced.and_then(|payload| payload.get("sha256")).and_then(Value::as_str);
    let Some(sha256) = sha256 else { return Err(Failure::job("the event has no payload")) };
    jobs::download(client.event_payload(&command.id).await?, sha256, &command.output).await?;
    if command.connection.json {
        out.json(&event);
    } else {
        let size = text(event.pointer("/payload/size"));
        let told = format!("{size} bytes, SHA-256 {sha256}, in {}\n", command.output.display());
        out.text(&told);
    }
    Ok(())
}

/// Where a reader of the stream is.
struct Reader<'a> {
    command: &'a FollowEvents,
    last: Option<u64>,
    left: Option<u64>,
    out: &'a Out,
}

async fn follow(command: &FollowEvents, out: &Out) -> Result<(), Failure> {
    let client = Client::new(&command.connection)?;
    let mut reader = Reader { command, last: command.last_event_id, left: command.count, out };
    // What is wrong at once is told; what breaks later is mended.
    let mut response = client.follow(reader.last).await?;
    let mut pause = PAUSES.0;
    loop {
        let mut buffer = Vec::new();
        while let Ok(Ok(Some(chunk))) = tokio::time::timeout(SILENCE, response.chunk()).await {
            pause = PAUSES.0;
            buffer.extend_from_slice(&chunk);
            if reader.take(&mut buffer)? {
                return Ok(());
            }
        }
        response = loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
            match client.follow(reader.last).await {
                Ok(response) => break response,
                // A key that was revoked stays so.
                Err(failure) if failure.message.starts_with("unauthorized") => return Err(failure),
                Err(_) => {}
            }
        };
    }
}

impl Reader<'_> {
    /// Takes the whole events off the buffer; true once enough were printed.
    fn take(&mut self, buffer: &mut Vec<u8>) -> Result<bool, Failure> {
        while let Some(end) = buffer.windows(2).position(|pair| pair == b"\n\n") {
            let block: Vec<u8> = buffer.drain(..end + 2).collect();
            if self.print(&String::from_utf8_lossy(&block)) {
                return Ok(true);
            }
        }
        if buffer.len() > MAX_EVENT {
            return Err(Failure::hub("the stream is none of events; is the address that of a hub?"));
        }
        Ok(false)
    }

    fn print(&mut self, block: &str) -> bool {
        let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name));
        let (kind, id, data) = (field("event: "), field("id: "), field("data: "));
        self.last = id.and_then(|id| id.parse().ok()).or(self.last);
        let (Some("received"), Some(data)) = (kind, data) else { return false };
        let Ok(event) = serde_json::from_str::<Value>(data) else { return false };
        if !wanted(&self.command.which, &event) {
            return false;
        }
        if self.command.connection.json {
            self.out.text(&format!("{event}\n"));
        } else {
            self.out.text(&format!("{}\n", render::clean(&row(&event).join("  "))));
        }
        self.left = self.left.map(|left| left.saturating_sub(1));
        self.left == Some(0)
    }
}

fn wanted(which: &Which, event: &Value) -> bool {
    let keys = [
        ("site", &which.site),
        ("resource", &which.resource),
        ("trigger", &which.trigger),
        ("kind", &which.kind),
    ];
    keys.iter().all(|(key, wanted)| {
        wanted.as_deref().is_none_or(|wanted| event.get(key).and_then(Value::as_str) == Some(wanted))
    })
}
