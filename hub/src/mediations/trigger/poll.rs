//! Asks for the URLs of triggers when it is their turn, and commits what was seen together with the run that it starts.

use super::{
    InputFlow, Occurrence, Trigger,
    deliver::{fire, holds, load},
    problems,
    url::{LastSeen, UrlTrigger},
};
use crate::{
    api::App,
    clock,
    mediations::{Definition, DefinitionId},
    model::ChangeKind,
    store::{
        Content, Error,
        row::{from_uuid, ms, name, opt_json, time, to_json},
    },
    tunnel::{CallDone, CallFailed, CallOutput, NewCall},
};
use bytes::Bytes;
use futures_util::stream;
use jiff::{SignedDuration, Timestamp};
use passerelle_protocol::{BlobId, JobId, Name, OutputPayload};
use rusqlite::{OptionalExtension as _, params};
use serde_json::{Map, Value, json};
use std::{sync::Arc, time::Duration};
use tokio::{io::AsyncReadExt as _, sync::Semaphore, task::JoinSet};

/// How many URLs are asked for at once.
const AT_ONCE: usize = 16;
/// How many turns are taken up in one look.
const TURNS: i64 = 100;
/// How long an answer may take, in seconds.
const TIMEOUT_S: u32 = 30;
/// The longest rest between two looks.
const REST: Duration = Duration::from_secs(600);
/// The largest content that is taken from a URL.
const MAX_CONTENT: u64 = 1 << 30;

/// One URL's turn.
struct Turn {
    tenant: Name,
    definition: Arc<Definition>,
    clause: usize,
    trigger: UrlTrigger,
    before: Option<LastSeen>,
}

/// Works until the hub ends.
pub async fn run(app: App) {
    let stop = app.stop.clone();
    tokio::select! {
        () = stop.cancelled() => {}
        () = forever(app) => {}
    }
}

async fn forever(app: App) {
    let mut changes = app.store.subscribe();
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut asked = JoinSet::new();
    loop {
        let (turns, next) = match take_turns(&app).await {
            Ok(found) => found,
            Err(error) => {
                tracing::error!(%error, "Could not look for URLs to ask for");
                (Vec::new(), clock::now().checked_add(SignedDuration::from_secs(10)).ok())
            }
        };
        for turn in turns {
            let (app, places) = (app.clone(), Arc::clone(&places));
            asked.spawn(async move {
                // The semaphore is never closed.
                let _place = places.acquire_owned().await;
                let (tenant, definition) = (turn.tenant.clone(), turn.definition.guid);
                let path = turn.trigger.path.clone();
                let asked = ask(&app, turn).await;
                tell(
                    &app,
                    tenant,
                    definition,
                    asked.map_err(|why| format!("{path} could not be asked for: {why}")),
                )
                .await
            });
        }
        let rest = next.map_or(REST, |next| {
            Duration::try_from(next.duration_since(clock::now())).unwrap_or(Duration::ZERO).min(REST)
        });
        tokio::select! {
            () = tokio::time::sleep(rest) => {}
            () = definition_changed(&mut changes) => {}
            Some(done) = asked.join_next() => match done {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "Could not note what came of a look at a URL"),
                Err(error) => tracing::error!(%error, "The look at a URL ended by a fault"),
            },
        }
    }
}

/// Keeps why a URL could not be asked for with its definition, until it can.
async fn tell(
    app: &App,
    tenant: Name,
    definition: DefinitionId,
    asked: Result<(), String>,
) -> Result<(), Error> {
    let had = app.store.trigger_problem(tenant.clone(), definition).await?;
    match asked {
        // Nothing is written while all is well.
        Ok(()) if had.is_none() => Ok(()),
        Ok(()) => app.store.write(move |tx| problems::clear(tx, &tenant, definition)).await,
        Err(why) => app.store.write(move |tx| problems::note(tx, &tenant, definition, &why)).await,
    }
}

async fn definition_changed(changes: &mut tokio::sync::broadcast::Receiver<crate::model::Change>) {
    use tokio::sync::broadcast::error::RecvError;
    loop {
        match changes.recv().await {
            Ok(change) if matches!(change.kind, ChangeKind::Definition(_)) => return,
            Ok(_) => {}
            Err(RecvError::Lagged(_)) => return,
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// The turns that are due, each moved on to its next; and when there is the next one.
async fn take_turns(app: &App) -> Result<(Vec<Turn>, Option<Timestamp>), Error> {
    let now = clock::now();
    let due = app
        .store
        .read(move |conn| {
            let sql = "SELECT due_at FROM trigger_times WHERE due_at IS NOT NULL AND poll = 1 ORDER BY due_at LIMIT 1";
            Ok(conn.prepare_cached(sql)?.query_row([], |row| time(row, 0)).optional()?)
        })
        .await?;
    match due {
        Some(due) if due <= now => {}
        // Nothing is written while nothing is due.
        due => return Ok((Vec::new(), due)),
    }
    app.store
        .write(|tx| {
            type Due = (DefinitionId, i64, Name, Option<LastSeen>);
            let due: Vec<Due> = {
                let mut statement = tx.conn.prepare_cached(
                    "SELECT definition, clause, tenant, state FROM trigger_times WHERE due_at <= ?1 AND poll = 1 \
                     ORDER BY due_at LIMIT ?2",
                )?;
                let rows = statement.query_map(params![ms(tx.now), TURNS], |row| {
                    Ok((from_uuid(row, 0)?, row.get(1)?, name(row, 2)?, opt_json(row, 3)?))
                })?;
                rows.collect::<Result<_, _>>()?
            };
            let mut turns = Vec::new();
            for (id, clause, tenant, before) in due {
                let definition = load(tx, &tenant, id)?.map(|stored| stored.definition);
                let place = usize::try_from(clause).unwrap_or(usize::MAX);
                let trigger = definition.as_ref().and_then(|found| match found.trigger.clause(place) {
                    Some(Trigger::Url(url)) => Some(url.clone()),
                    _ => None,
                });
                let next = trigger.as_ref().and_then(|trigger| trigger.next_after(tx.now));
                tx.conn
                    .prepare_cached(
                        "UPDATE trigger_times SET due_at = ?4 WHERE tenant = ?1 AND definition = ?2 AND clause = ?3",
                    )?
                    .execute(params![tenant.as_str(), id.uuid().as_bytes(), clause, next.map(ms)])?;
                if let (Some(definition), Some(trigger)) = (definition, trigger) {
                    turns.push(Turn { tenant, definition, clause: place, trigger, before });
                }
            }
            let sql = "SELECT due_at FROM trigger_times WHERE due_at IS NOT NULL AND poll = 1 ORDER BY due_at LIMIT 1";
            let next = tx.conn.prepare_cached(sql)?.query_row([], |row| time(row, 0)).optional()?;
            Ok((turns, next))
        })
        .await
}

/// Asks once.
async fn ask(app: &App, turn: Turn) -> Result<(), String> {
    let Turn { trigger, tenant, .. } = &turn;
    let mut params = json!({"method": "GET", "path": trigger.path});
    if !trigger.query.is_empty() {
        params["query"] = Value::Object(trigger.query.clone());
    }
    let operation = "request".parse().map_err(|_| "no operation request".to_owned())?;
    let call = NewCall {
        id: JobId::from(clock::new_uuid7()),
        tenant: tenant.clone(),
        site: trigger.site.clone(),
        resource: trigger.resource.clone(),
        operation,
        params,
        payload: None,
        timeout_s: TIMEOUT_S,
        deadline_s: TIMEOUT_S,
        signed: None,
        traceparent: None,
    };
    let done = app.tunnel.call(call).await.map_err(said)?;
    let status =
        done.result.get("status").and_then(Value::as_u64).and_then(|status| u16::try_from(status).ok());
    let status = status.ok_or("the answer has no status")?;
    let headers = done.result.get("headers").and_then(Value::as_object).cloned().unwrap_or_default();
    let answer = LastSeen {
        status,
        etag: header(&headers, "etag"),
        sha256: done.output.as_ref().map(|(output, _)| output.sha256),
    };
    let (starts, seen) = trigger.judge(turn.before.as_ref(), answer);
    if !starts && turn.before.as_ref() == Some(&seen) {
        return Ok(());
    }
    let event = json!({"path": trigger.path, "status": status, "headers": headers});
    let starts = starts && holds(trigger.when.as_ref(), &event)?;
    let flow = if starts { content(app, &turn, done).await? } else { None };
    note(app, turn, seen, starts.then_some((event, flow))).await.map_err(|error| error.to_string())
}

/// The first value of a header.
fn header(headers: &Map<String, Value>, wanted: &str) -> Option<String> {
    let (_, value) = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted))?;
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(values) => values.first().and_then(Value::as_str).map(str::to_owned),
        _ => None,
    }
}

fn said(failed: CallFailed) -> String {
    match failed {
        CallFailed::Code { code, message, .. } => format!("{code}: {message}"),
        CallFailed::NotMade => "the agents of the site take no calls".to_owned(),
        CallFailed::Store(error) => error.to_string(),
    }
}

/// The body as a blob of the tenant.
async fn content(app: &App, turn: &Turn, done: CallDone) -> Result<Option<InputFlow>, String> {
    let Some((output, place)) = done.output else { return Ok(None) };
    if output.size > MAX_CONTENT {
        return Err(format!("the content has {} bytes, more than {MAX_CONTENT}", output.size));
    }
    app.store.room_for(turn.tenant.clone(), output.size).await.map_err(|error| error.to_string())?;
    let blob = stored(app, &turn.tenant, &output, place).await.map_err(|error| error.to_string())?;
    let label = turn.trigger.path.rsplit('/').find(|part| !part.is_empty()).unwrap_or("content").to_owned();
    Ok(Some(InputFlow { label, blob, media_type: Some(output.media_type) }))
}

async fn stored(
    app: &App,
    tenant: &Name,
    output: &OutputPayload,
    place: CallOutput,
) -> Result<BlobId, Error> {
    let media_type = Some(output.media_type.clone());
    let (tenant, expected) = (tenant.clone(), Some(output.sha256));
    let content = match place {
        CallOutput::Inline(bytes) => Content::Bytes(bytes),
        CallOutput::Blob(id) => {
            let kept = app.tunnel.transfers.kept(&tenant, id);
            kept.ok_or_else(|| Error::NotFound("the content is gone".to_owned()))?.1
        }
    };
    let stored = match content {
        Content::Bytes(bytes) => {
            let whole = stream::iter([Ok::<_, std::io::Error>(bytes)]);
            app.blobs.put_stream(tenant, media_type, expected, whole).await?
        }
        Content::File(path) => {
            let file = tokio::fs::File::open(path).await?;
            let pieces = stream::try_unfold(file, async |mut file| {
                let mut piece = vec![0; 256 * 1024];
                let read = file.read(&mut piece).await?;
                piece.truncate(read);
                Ok::<_, std::io::Error>((read > 0).then(|| (Bytes::from(piece), file)))
            });
            app.blobs.put_stream(tenant, media_type, expected, pieces).await?
        }
    };
    Ok(stored.id)
}

/// Keeps what was seen; the run that it starts is committed with it.
async fn note(
    app: &App,
    turn: Turn,
    seen: LastSeen,
    starts: Option<(Value, Option<InputFlow>)>,
) -> Result<(), Error> {
    app.store
        .write(move |tx| {
            let Turn { tenant, definition, clause, before, .. } = &turn;
            let id = definition.guid;
            // Changed or gone meanwhile, or seen by another look: then this one is out of date.
            let kept = tx
                .conn
                .prepare_cached(
                    "UPDATE trigger_times SET state = ?4, last_at = ?5 WHERE tenant = ?1 AND definition = ?2 \
                     AND clause = ?3 AND poll = 1 AND state IS ?6",
                )?
                .execute(params![
                    tenant.as_str(),
                    id.uuid().as_bytes(),
                    i64::try_from(*clause).unwrap_or(i64::MAX),
                    to_json(&seen)?,
                    ms(tx.now),
                    before.as_ref().map(to_json).transpose()?
                ])?;
            let Some((event, flow)) = starts.filter(|_| kept == 1) else { return Ok(()) };
            let occurrence = Occurrence {
                key: format!("url:{clause}:{}", tx.now),
                kind: "url",
                at: tx.now,
                data: event,
                flows: flow.into_iter().collect(),
            };
            fire(tx, tenant, definition, *clause, occurrence)
        })
        .await
}
