//! `jobs submit | show | list | cancel | retry | resolve`.

use crate::{
    Failure,
    args::{Jobs, List, Show, Submit},
    client::{self, Client},
    keys,
    out::Out,
    render::{self, Job},
    signed, submission,
};
use aws_lc_rs::digest::{Context, SHA256};
use passerelle_protocol::{PayloadDigest, limits::MAX_INLINE_PAYLOAD};
use reqwest::Response;
use serde::Deserialize as _;
use serde_json::{Map, Value, json};
use std::{
    fmt::Write as _,
    path::Path,
    time::{Duration, Instant},
};
use tokio::{fs, io::AsyncWriteExt as _};

const POLL_MAX: Duration = Duration::from_secs(2);

pub(crate) async fn run(command: Jobs, out: &Out) -> Result<(), Failure> {
    match command {
        Jobs::Submit(command) => submit(&command, out).await,
        Jobs::Show(command) => show(&command, out).await,
        Jobs::List(command) => list(&command, out).await,
        Jobs::Cancel(command) => {
            let client = Client::new(&command.connection)?;
            let body = if command.force { json!({ "force": true }) } else { json!({}) };
            let job = client.act(&command.id, "cancel", &body).await?;
            print(&job, command.connection.json, out).map(|_| ())
        }
        Jobs::Retry(command) => {
            let client = Client::new(&command.connection)?;
            let body = signed::renewed(&client, &command).await?;
            let job = client.act(&command.id, "retry", &body).await?;
            print(&job, command.connection.json, out).map(|_| ())
        }
        Jobs::Resolve(command) => {
            let client = Client::new(&command.connection)?;
            let mut body = json!({ "outcome": command.outcome });
            if let (Some(note), Some(body)) = (command.note, body.as_object_mut()) {
                body.insert("note".to_owned(), Value::String(note));
            }
            let job = client.act(&command.id, "resolve", &body).await?;
            print(&job, command.connection.json, out).map(|_| ())
        }
    }
}

async fn submit(command: &Submit, out: &Out) -> Result<(), Failure> {
    let client = Client::new(&command.connection)?;
    let mut body = submission::body(command)?;
    if let Some(key) = &command.sign_key {
        // Before anything is uploaded.
        let key = keys::read(key)?;
        let payload = match &command.payload {
            Some(file) => Some(uploaded(&client, file, command.media_type.as_deref()).await?),
            None => None,
        };
        body = signed::body(&client, command, body, payload, &key).await?;
    } else if let Some(file) = &command.payload {
        let payload = payload(&client, file, command.media_type.as_deref()).await?;
        body.insert("payload".to_owned(), Value::Object(payload));
    } else if let Some(event) = &command.event {
        body.insert("payload".to_owned(), json!({ "event": event }));
    }
    let key = command.idempotency_key.clone().unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    let started = Instant::now();
    let mut job = client.submit(&Value::Object(body), &key, command.wait).await?;
    let Some(seconds) = command.wait else {
        return print(&job, command.connection.json, out).map(|_| ());
    };
    let end = started + Duration::from_secs(seconds);
    let mut pause = Duration::from_millis(250);
    while !typed(&job)?.is_settled() && Instant::now() < end {
        tokio::time::sleep(pause.min(end.saturating_duration_since(Instant::now()))).await;
        pause = (pause * 2).min(POLL_MAX);
        job = client.job(&typed(&job)?.id).await?;
    }
    let job = print(&job, command.connection.json, out)?;
    if job.state == "succeeded" {
        Ok(())
    } else if job.is_settled() {
        Err(not_succeeded(&job))
    } else {
        let (id, state) = (&job.id, &job.state);
        let message = format!("the job is still {state} after {seconds} s; see `passerelle jobs show {id}`");
        Err(Failure::job(message))
    }
}

fn not_succeeded(job: &Job) -> Failure {
    let why = job.error.as_ref().map(|error| format!(": {}: {}", error.code, error.message));
    Failure::job(render::clean(&format!("the job is {}{}", job.state, why.unwrap_or_default())))
}

/// The payload of a file: part of the body if it is small, else uploaded first.
pub(crate) async fn payload(
    client: &Client,
    file: &Path,
    media_type: Option<&str>,
) -> Result<Map<String, Value>, Failure> {
    let size = size(file).await?;
    let media_type = media_type.or_else(|| submission::media_type(file));
    let mut payload = Map::new();
    if size <= MAX_INLINE_PAYLOAD as u64 {
        let content = fs::read(file).await.map_err(|e| unreadable(file, &e))?;
        let (key, value) = submission::inline(content);
        payload.insert(key.to_owned(), value);
    } else {
        let (id, _) = client::blob(client, file, size, media_type).await?;
        payload.insert("blob".to_owned(), json!(id));
    }
    if let Some(media_type) = media_type {
        payload.insert("media_type".to_owned(), json!(media_type));
    }
    Ok(payload)
}

fn unreadable(file: &Path, error: &std::io::Error) -> Failure {
    Failure::usage(format!("--payload: cannot read {}: {error}", file.display()))
}

async fn size(file: &Path) -> Result<u64, Failure> {
    let metadata = fs::metadata(file).await.map_err(|e| unreadable(file, &e))?;
    if !metadata.is_file() {
        return Err(Failure::usage(format!("--payload: {} is not a regular file", file.display())));
    }
    Ok(metadata.len())
}

/// Uploads a file whatever its size: a signed job finds its payload by the digest.
pub(crate) async fn uploaded(
    client: &Client,
    file: &Path,
    media_type: Option<&str>,
) -> Result<PayloadDigest, Failure> {
    let size = size(file).await?;
    let media_type =
        media_type.or_else(|| submission::media_type(file)).unwrap_or("application/octet-stream");
    let (_, sha256) = client::blob(client, file, size, Some(media_type)).await?;
    Ok(PayloadDigest { size, sha256, media_type: media_type.to_owned() })
}

async fn show(command: &Show, out: &Out) -> Result<(), Failure> {
    let client = Client::new(&command.connection)?;
    let value = client.job(&command.id).await?;
    let Some(file) = &command.output else {
        return print(&value, command.connection.json, out).map(|_| ());
    };
    let job = typed(&value)?;
    let Some(announced) = &job.output else {
        return Err(Failure::job(format!("the job has no output; it is {}", job.state)));
    };
    download(client.output(&job.id).await?, &announced.sha256, file).await?;
    if command.connection.json {
        out.json(&value);
    } else {
        out.text(&format!("{} bytes, SHA-256 {}, in {}\n", announced.size, announced.sha256, file.display()));
    }
    Ok(())
}

/// Writes content beside `file`, and gives it that name once it has proved whole.
pub(crate) async fn download(mut response: Response, sha256: &str, file: &Path) -> Result<(), Failure> {
    let unwritable =
        |e: std::io::Error| Failure::usage(format!("--output: cannot write {}: {e}", file.display()));
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let part = tempfile::Builder::new()
        .prefix(".passerelle-")
        .suffix(".part")
        .tempfile_in(folder)
        .map_err(unwritable)?;
    let mut writer = fs::File::from_std(part.reopen().map_err(unwritable)?);
    let mut context = Context::new(&SHA256);
    let broken = |e: reqwest::Error| Failure::hub(format!("the download broke off: {}", e.without_url()));
    while let Some(chunk) = response.chunk().await.map_err(broken)? {
        context.update(&chunk);
        writer.write_all(&chunk).await.map_err(unwritable)?;
    }
    writer.sync_all().await.map_err(unwritable)?;
    let got = context.finish().as_ref().iter().fold(String::new(), |mut hex, byte| {
        // Writing to a string does not fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    if got != sha256 {
        return Err(Failure::hub("the downloaded content does not have the digest that was told"));
    }
    part.persist(file).map_err(|e| unwritable(e.error))?;
    Ok(())
}

async fn list(command: &List, out: &Out) -> Result<(), Failure> {
    let client = Client::new(&command.connection)?;
    let List { site, resource, state, since, until, page, .. } = command;
    let limit = page.limit.map(|limit| limit.to_string());
    let query: Vec<(&str, String)> = [
        ("site", site),
        ("resource", resource),
        ("state", state),
        ("since", since),
        ("until", until),
        ("limit", &limit),
        ("cursor", &page.cursor),
    ]
    .into_iter()
    .filter_map(|(key, value)| Some((key, value.clone()?)))
    .collect();
    let page = client.get("v1/jobs", &query).await?;
    if command.connection.json {
        out.json(&page);
        return Ok(());
    }
    let items = page.get("items").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let jobs = items.iter().map(typed).collect::<Result<Vec<Job>, Failure>>()?;
    out.text(&render::jobs(&jobs, out.colour));
    if let Some(next) = page.get("next_cursor").and_then(Value::as_str) {
        out.text(&format!("more with --cursor {}\n", render::clean(next)));
    }
    Ok(())
}

/// Reads a job out of the hub's JSON.
pub(crate) fn typed(value: &Value) -> Result<Job, Failure> {
    Job::deserialize(value).map_err(|e| Failure::hub(format!("the answer is not a job ({e}); is it a hub?")))
}

fn print(value: &Value, as_json: bool, out: &Out) -> Result<Job, Failure> {
    let job = typed(value)?;
    if as_json {
        out.json(value);
    } else {
        out.text(&render::job(&job, out.colour));
    }
    Ok(job)
}
