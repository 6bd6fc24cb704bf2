//! Flows read and made on a thread of their own, piece by piece: memory stays constant whatever their size.

use super::{FlowContent, NewFlow, StepContext, StepFailure};
use crate::{
    mediations::{
        formats::{self, layout::Layout},
        runs::{Direction, Flow},
        steps::context::flow_names,
        template,
    },
    store::Content,
};
use bytes::Bytes;
use futures_util::stream;
use passerelle_config::Section;
use passerelle_protocol::limits::MAX_INLINE_PAYLOAD;
use serde_json::Value;
use std::{
    fs::File,
    io::{self, BufReader, Cursor, Read, Write},
    time::{Duration, Instant},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// How long one flow may be worked on.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// How much is handed on at once, and how many such pieces may wait.
const PIECE: usize = 64 * 1024;
const WAITING: usize = 8;
/// The longest label of a flow.
const MAX_LABEL: usize = 255;

/// Whether the work may go on: not when the hub ends, nor for ever.
#[derive(Debug, Clone)]
pub(super) struct Watch {
    stop: CancellationToken,
    until: Instant,
}

impl Watch {
    pub(super) fn new(context: &StepContext) -> Self {
        Self { stop: context.app.stop.clone(), until: Instant::now() + PATIENCE }
    }

    pub(super) fn go_on(&self) -> Result<(), formats::Error> {
        if self.stop.is_cancelled() {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "the hub ends").into());
        }
        if Instant::now() > self.until {
            let minutes = PATIENCE.as_secs() / 60;
            return Err(formats::Error::data(format!(
                "the step takes longer than {minutes} min: split the flow"
            )));
        }
        Ok(())
    }
}

/// The content of a flow as a reader, to be opened where reading may wait.
pub(super) fn reader(content: Content) -> io::Result<Box<dyn Read + Send>> {
    Ok(match content {
        Content::Bytes(bytes) => Box::new(Cursor::new(bytes)),
        Content::File(path) => Box::new(BufReader::with_capacity(PIECE, File::open(path)?)),
    })
}

/// Does work that computes or waits for the disk.
pub(super) async fn compute<T: Send + 'static>(
    context: &StepContext,
    work: impl FnOnce() -> Result<T, formats::Error> + Send + 'static,
) -> Result<T, StepFailure> {
    let _place = context.place().await?;
    ended(context, tokio::task::spawn_blocking(work).await)
}

/// Makes a flow out of what `work` writes; small ones stay in memory, others go straight into the blob store.
pub(super) async fn produce<T: Send + 'static>(
    context: &StepContext,
    label: String,
    media_type: String,
    work: impl FnOnce(&mut dyn Write) -> Result<T, formats::Error> + Send + 'static,
) -> Result<(NewFlow, T), StepFailure> {
    let _place = context.place().await?;
    let (sender, mut pieces) = mpsc::channel::<Result<Bytes, io::Error>>(WAITING);
    let working = tokio::task::spawn_blocking(move || {
        let mut out = Sender { sender, piece: Vec::with_capacity(PIECE) };
        let done = work(&mut out).and_then(|done| {
            out.send()?;
            Ok(done)
        });
        if done.is_err() {
            // What is stored so far must not look like a whole flow.
            let _ = out.sender.blocking_send(Err(io::Error::other("not whole")));
        }
        done
    });
    let (mut first, mut size, mut more) = (Vec::new(), 0, true);
    while size <= MAX_INLINE_PAYLOAD {
        match pieces.recv().await {
            Some(Ok(piece)) => {
                size += piece.len();
                first.push(piece);
            }
            Some(Err(_)) | None => {
                more = false;
                break;
            }
        }
    }
    let content = if more {
        let begun = stream::iter(first.into_iter().map(Ok));
        let rest = stream::unfold(pieces, |mut pieces| async move { Some((pieces.recv().await?, pieces)) });
        let whole = futures_util::StreamExt::chain(begun, rest);
        let tenant = context.run.tenant.clone();
        let stored = context.app.blobs.put_stream(tenant, Some(media_type.clone()), None, whole).await;
        let done = ended(context, working.await);
        return match (stored, done) {
            (Ok(info), Ok(done)) => {
                let content = FlowContent::Blob(info);
                Ok((NewFlow { label, media_type, direction: Direction::Out, content }, done))
            }
            // Why the work ended says more than that its content was not whole; unless the store refused it.
            (Err(error), Err(failure)) if failure.retryable => Err(error.into()),
            (_, Err(failure)) => Err(failure),
            (Err(error), Ok(_)) => Err(error.into()),
        };
    } else {
        FlowContent::Bytes(first.concat().into())
    };
    let done = ended(context, working.await)?;
    Ok((NewFlow { label, media_type, direction: Direction::Out, content }, done))
}

fn ended<T>(
    context: &StepContext,
    done: Result<Result<T, formats::Error>, tokio::task::JoinError>,
) -> Result<T, StepFailure> {
    match done {
        _ if context.app.stop.is_cancelled() => Err(StepFailure::stopped()),
        Ok(Ok(done)) => Ok(done),
        Ok(Err(formats::Error::Data(why))) => Err(StepFailure::permanent(why)),
        Ok(Err(formats::Error::Passing(why))) => Err(StepFailure::retryable(why)),
        Ok(Err(formats::Error::Io(error))) => {
            tracing::warn!(%error, run = %context.run.guid, "A step could not read or write a flow");
            Err(StepFailure::retryable("the hub could not read or write a flow: its log says more"))
        }
        Err(error) => {
            tracing::error!(%error, run = %context.run.guid, "A step ended by a fault");
            Err(StepFailure::permanent("the hub had an internal fault in this step: its log says more"))
        }
    }
}

/// Hands pieces of what is written over to the runtime.
struct Sender {
    sender: mpsc::Sender<Result<Bytes, io::Error>>,
    piece: Vec<u8>,
}

impl Sender {
    fn send(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE));
        let gone = |_| io::Error::other("nobody takes what is written any more");
        self.sender.blocking_send(Ok(piece.into())).map_err(gone)
    }
}

impl Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE {
            self.send()?;
        }
        Ok(bytes.len())
    }

    /// Small pieces wait for more: what is written is taken at the end.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The label of a flow that a step makes: what the definition says, else `otherwise`.
pub(super) async fn label(
    context: &StepContext,
    source: Option<&str>,
    flow: Option<&Flow>,
    otherwise: &str,
) -> Result<String, StepFailure> {
    let made = match source {
        Some(source) => {
            let more = flow.map(|flow| ("flow", flow_names(flow)));
            context.text("flow", source, more).await?
        }
        None => otherwise.to_owned(),
    };
    let made: String = made.chars().filter(|c| !c.is_control()).take(MAX_LABEL).collect();
    if made.is_empty() { Err(StepFailure::permanent("flow: the label is empty")) } else { Ok(made) }
}

/// Adds what is wrong with a layout at its key.
pub(super) fn layout(
    section: &Section,
    key: &str,
    checked: Result<(), String>,
    diagnostics: &mut passerelle_config::Diagnostics,
) {
    if let Err(why) = checked {
        let (field, why) = why.split_once(": ").unwrap_or(("", &why));
        diagnostics.push(section.finding(&format!("{key}.{field}"), why));
    }
}

/// The same for a template at its key.
pub(super) fn checked(
    section: &Section,
    key: &str,
    source: Option<&str>,
    diagnostics: &mut passerelle_config::Diagnostics,
) {
    if let Some(Err(why)) = source.map(template::check) {
        diagnostics.push(section.finding(key, why));
    }
}

/// All records of the flows that a unit reads.
///
/// # Errors
/// More than `max` of them, or more than `bytes` of content.
pub(super) async fn records(
    context: &StepContext,
    layout: &Layout,
    max: usize,
    bytes: u64,
) -> Result<Vec<Vec<Value>>, StepFailure> {
    let size: u64 = context.inputs.iter().map(|flow| flow.size).sum();
    if size > bytes {
        let most = bytes / 1024 / 1024;
        return Err(StepFailure::permanent(format!(
            "the flows have {size} bytes, this step takes at most {most} MiB: filter or split them before"
        )));
    }
    let mut all = Vec::with_capacity(context.inputs.len());
    let mut left = max;
    for flow in &context.inputs {
        let (content, layout, watch) = (context.open(flow).await?, layout.clone(), Watch::new(context));
        let name = flow.label.clone();
        let found = compute(context, move || {
            let mut found = Vec::new();
            let mut input = reader(content)?;
            let each = &mut |_: &String, record: formats::Record| {
                watch.go_on()?;
                if found.len() == left {
                    return Err(formats::Error::data(format!(
                        "more than {max} records: filter or split them before"
                    )));
                }
                found.push(record.into_json());
                Ok(())
            };
            formats::read::records(&mut *input, &layout, each).map_err(|error| error.at(&name))?;
            Ok(found)
        })
        .await?;
        left -= found.len();
        all.push(found);
    }
    Ok(all)
}
