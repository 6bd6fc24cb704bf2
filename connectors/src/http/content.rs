//! What goes out as the body of a request: nothing, a text that was made here, or the job's payload, which streams and is
//! never held whole.

use super::wait::Waits;
use crate::{Again, Call, Code, Failure, Input};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderValue, Method};
use reqwest::Body;
use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

/// A payload up to this size goes out whole, a larger one in pieces of it.
const CHUNK: usize = 64 * 1024;

/// The body of a request, which may have to go out a second time.
pub(super) struct Content {
    size: Option<u64>,
    media_type: Option<String>,
    held: Held,
}

enum Held {
    Nothing,
    /// All of it, verified.
    Whole(Bytes),
    /// The first piece and the rest, until they are sent; and how to begin anew.
    Stream {
        begun: Option<Box<(Bytes, Input)>>,
        again: Option<Again>,
    },
}

/// A body on its way.
pub(super) struct Sent {
    pub(super) body: Body,
    pub(super) fault: Fault,
}

impl Content {
    /// A text that was made here.
    pub(super) fn made(text: impl Into<Bytes>, media_type: &str) -> Self {
        let text = text.into();
        Self {
            size: Some(text.len() as u64),
            media_type: Some(media_type.to_owned()),
            held: Held::Whole(text),
        }
    }

    /// The job's payload. A small one is read and verified before anything is sent.
    pub(super) async fn of(
        waits: &Waits<'_>,
        method: &Method,
        input: Option<Input>,
    ) -> Result<Self, Failure> {
        let Some(mut input) = input else {
            return Ok(Self { size: None, media_type: None, held: Held::Nothing });
        };
        if matches!(*method, Method::GET | Method::HEAD) {
            let message = format!("a {method} request takes no payload");
            return Err(Failure::permanent(Code::InvalidParams, message));
        }
        let (size, media_type, again) = (input.size(), input.media_type().to_owned(), input.again());
        let first = waits.before(piece(&mut input)).await??;
        let held = if first.len() < CHUNK {
            Held::Whole(first)
        } else {
            Held::Stream { begun: Some(Box::new((first, input))), again }
        };
        Ok(Self { size: Some(size), media_type: Some(media_type), held })
    }

    /// Its size in bytes; `None` without a body.
    pub(super) fn size(&self) -> Option<u64> {
        self.size
    }

    /// What it is, as a header.
    pub(super) fn media_type(&self) -> Result<Option<HeaderValue>, Failure> {
        let value = self.media_type.as_deref().map(HeaderValue::from_str).transpose();
        value.map_err(|_| {
            let message = "payload.media_type contains a character that is not allowed";
            Failure::permanent(Code::InvalidParams, message)
        })
    }

    /// Gives all of it, verified, to `take`; it can be sent afterwards.
    ///
    /// # Errors
    /// `too_large` (permanent) if it comes as a stream that cannot be read twice.
    pub(super) async fn look_through(
        &mut self,
        waits: &Waits<'_>,
        mut take: impl FnMut(&[u8]),
    ) -> Result<(), Failure> {
        match &mut self.held {
            Held::Nothing => {}
            Held::Whole(text) => take(text),
            Held::Stream { again: None, .. } => {
                let message =
                    format!("a payload over {CHUNK} bytes cannot be signed where it is read only once");
                return Err(Failure::permanent(Code::TooLarge, message));
            }
            Held::Stream { begun, again: Some(again) } => {
                let (first, mut rest) = match begun.take() {
                    Some(begun) => *begun,
                    None => (Bytes::new(), again.input()?),
                };
                take(&first);
                loop {
                    let piece = waits.before(piece(&mut rest)).await??;
                    if piece.is_empty() {
                        break;
                    }
                    take(&piece);
                    waits.call.progress.beat();
                }
            }
        }
        Ok(())
    }

    /// Whether it can be sent now: once always, a stream once more only if it can be opened again.
    pub(super) fn is_left(&self) -> bool {
        !matches!(self.held, Held::Stream { begun: None, again: None })
    }

    /// The body from its beginning.
    pub(super) async fn body(&mut self, waits: &Waits<'_>) -> Result<Sent, Failure> {
        let call = waits.call;
        let fault = Fault::default();
        call.progress.set_total(self.size.unwrap_or(0));
        let body = match &mut self.held {
            Held::Nothing => Body::default(),
            Held::Whole(text) => {
                call.progress.add(text.len() as u64);
                Body::from(text.clone())
            }
            Held::Stream { begun, again } => {
                let (first, rest) = match (begun.take(), again) {
                    (Some(begun), _) => *begun,
                    (None, Some(again)) => {
                        let mut input = again.input()?;
                        (waits.before(piece(&mut input)).await??, input)
                    }
                    (None, None) => {
                        let message = "the payload cannot be sent a second time";
                        return Err(Failure::retry(Code::Internal, message));
                    }
                };
                Body::wrap_stream(pieces(rest, first, call.clone(), fault.clone()))
            }
        };
        Ok(Sent { body, fault })
    }
}

/// Where the payload's stream leaves its failure: the HTTP library would only say that the body failed.
#[derive(Clone, Default)]
pub(super) struct Fault(Arc<Mutex<Option<Failure>>>);

impl Fault {
    fn set(&self, failure: Failure) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
    }

    pub(super) fn take(&self) -> Option<Failure> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The next piece; shorter than [`CHUNK`] only at the verified end.
async fn piece(input: &mut Input) -> Result<Bytes, Failure> {
    // A byte more than what is left, in which the end is seen: many small payloads held at once take no more than they are.
    let room = usize::try_from(input.left()).map_or(CHUNK, |left| CHUNK.min(left.saturating_add(1)));
    let mut buffer = vec![0; room];
    let filled = input.fill(&mut buffer).await?;
    buffer.truncate(filled);
    Ok(Bytes::from(buffer))
}

/// The payload's pieces. Each is given out only when the next one has been read, the last one only when the payload
/// has proved to be the announced one: a target never holds a whole request with wrong content.
fn pieces(
    input: Input,
    first: Bytes,
    call: Call,
    fault: Fault,
) -> impl stream::Stream<Item = io::Result<Bytes>> + Send + 'static {
    let state = Some((input, first));
    stream::unfold(state, move |state| {
        let (call, fault) = (call.clone(), fault.clone());
        async move {
            let (mut input, held) = state?;
            match piece(&mut input).await {
                Ok(next) => {
                    call.progress.add(held.len() as u64);
                    let rest = (!next.is_empty()).then_some((input, next));
                    Some((Ok(held), rest))
                }
                Err(failure) => {
                    fault.set(failure);
                    Some((Err(io::Error::other("the payload could not be read")), None))
                }
            }
        }
    })
}
