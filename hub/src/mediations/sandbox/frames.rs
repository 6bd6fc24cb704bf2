//! What hub and worker say to each other over the worker's standard input and output: frames of a kind, a length and a body.

use crate::mediations::template::{Source, Wanted};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};
use std::{
    borrow::Cow,
    io::{self, Read, Write},
};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// The longest answer: what the hub holds of it takes up to sixteen times as much.
pub(super) const MAX_ANSWER: usize = 8 * 1024 * 1024;
/// How much of an answer about records may have been made when another one is begun.
pub(super) const PIECE: usize = 4 * 1024 * 1024;
/// Kind and length.
pub(super) const HEAD: usize = 5;

/// What the hub asks. Each is one frame; so is its answer, after those of text.
#[derive(Serialize, Deserialize)]
pub(super) enum Request<'r, Names> {
    /// Fills short templates, once for each item, whose names are put over the others: [`Filled`] for each item.
    Fill {
        /// What all of them see.
        names: Names,
        /// What each of them sees besides.
        items: Vec<Names>,
        /// What is to be filled.
        wanted: Cow<'r, [Wanted]>,
    },
    /// Renders a template into frames of text: nothing else.
    Render {
        /// The template.
        template: Cow<'r, str>,
        /// What it sees.
        names: Names,
    },
    /// Takes expressions over `record`; the records come after it.
    Expressions(Cow<'r, [String]>),
    /// Compiles texts of a definition: what is wrong with each of them.
    Check(Vec<Cow<'r, Source>>),
}

/// What the templates gave, or the number of the one that did not fit and why.
pub(crate) type Filled = Result<Vec<Option<Json>>, (usize, String)>;

/// The names that templates see, as the hub has them.
pub(super) type Names<'n> = Cow<'n, Map<String, Json>>;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A [`Request`], or the records of its expressions.
    Asked = 1,
    /// A piece of what is rendered.
    Text = 2,
    /// The end of an answer, as JSON.
    Done = 3,
    /// The template does not fit: a sentence.
    Unfit = 4,
    /// As [`Self::Done`], and the worker ends: it has grown.
    Last = 5,
}

impl Kind {
    fn of(byte: u8) -> io::Result<Self> {
        match byte {
            1 => Ok(Self::Asked),
            2 => Ok(Self::Text),
            3 => Ok(Self::Done),
            4 => Ok(Self::Unfit),
            5 => Ok(Self::Last),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// A frame's beginning.
///
/// # Errors
/// More than a frame can have.
pub(super) fn head(kind: Kind, length: usize) -> io::Result<[u8; HEAD]> {
    let length = u32::try_from(length).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    let [a, b, c, d] = length.to_le_bytes();
    Ok([kind as u8, a, b, c, d])
}

fn read_head([kind, length @ ..]: [u8; HEAD]) -> io::Result<(Kind, usize)> {
    let length = usize::try_from(u32::from_le_bytes(length)).map_err(io::Error::other)?;
    Ok((Kind::of(kind)?, length))
}

/// Writes a frame.
///
/// # Errors
/// The pipe's.
pub(super) fn write(out: &mut impl Write, kind: Kind, body: &[u8]) -> io::Result<()> {
    out.write_all(&head(kind, body.len())?)?;
    out.write_all(body)
}

/// Reads a frame; nothing at the end of the pipe.
///
/// # Errors
/// The pipe's, or half a frame.
pub(super) fn read(from: &mut impl Read) -> io::Result<Option<(Kind, Vec<u8>)>> {
    let mut head = [0; HEAD];
    match from.read(&mut head[..1])? {
        0 => return Ok(None),
        _ => from.read_exact(&mut head[1..])?,
    }
    let (kind, length) = read_head(head)?;
    let mut body = vec![0; length];
    from.read_exact(&mut body)?;
    Ok(Some((kind, body)))
}

/// The same for the hub, up to [`MAX_ANSWER`].
///
/// # Errors
/// The pipe's, which the worker's end is too; [`io::ErrorKind::FileTooLarge`].
pub(super) async fn read_answer(from: &mut (impl AsyncRead + Unpin)) -> io::Result<(Kind, Vec<u8>)> {
    let mut head = [0; HEAD];
    from.read_exact(&mut head).await?;
    let (kind, length) = read_head(head)?;
    if length > MAX_ANSWER {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body).await?;
    Ok((kind, body))
}
