//! What a template gives, as a file: encoded, with the line ends asked for, up to a limit.

use super::MAX_RENDERED;
use crate::mediations::formats::{Error, encoding::Charset, layout::LineEnd, write::unmappable};
use std::io::Write;

/// How what a template gives is written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    pub(crate) charset: Charset,
    pub(crate) bom: bool,
    pub(crate) unmappable: Option<char>,
    /// What the template's line ends become; without it they stay.
    pub(crate) line_end: Option<LineEnd>,
}

/// Encodes what a template gives, up to a limit.
pub(crate) struct Sink<'o> {
    out: &'o mut dyn Write,
    output: Output,
    written: usize,
    /// Of what is written, counted from 1.
    line: u64,
}

impl<'o> Sink<'o> {
    /// Begins a file.
    ///
    /// # Errors
    /// The disk.
    pub(crate) fn new(out: &'o mut dyn Write, output: Output) -> Result<Self, Error> {
        let mut sink = Self { out, output, written: 0, line: 1 };
        if output.bom {
            let mut mark = Vec::new();
            output.charset.write_bom(&mut mark);
            sink.out.write_all(&mark)?;
            sink.written = mark.len();
        }
        Ok(sink)
    }

    /// Writes a piece, which ends with no half of a line end.
    ///
    /// # Errors
    /// A character that the encoding does not have; more than a template may give; the disk.
    pub(crate) fn put(&mut self, text: &str) -> Result<(), Error> {
        let mut lines = text.split_inclusive('\n');
        let mut bytes = Vec::with_capacity(text.len());
        lines.try_for_each(|piece| {
            let Self { output, line, .. } = self;
            let (content, ends) = match (piece.strip_suffix('\n'), output.line_end) {
                (Some(content), Some(end)) => (content.strip_suffix('\r').unwrap_or(content), end.text()),
                (Some(content), None) => (content, "\n"),
                (None, _) => (piece, ""),
            };
            for part in [content, ends] {
                output
                    .charset
                    .write(part, output.unmappable, &mut bytes)
                    .map_err(|c| unmappable(c, output.charset).at(&format!("line {line} of the output")))?;
            }
            *line += u64::from(piece.ends_with('\n'));
            Ok::<(), Error>(())
        })?;
        self.written += bytes.len();
        if self.written > MAX_RENDERED {
            return Err(Error::data(format!(
                "the template gives more than {} MiB",
                MAX_RENDERED / 1024 / 1024
            )));
        }
        Ok(self.out.write_all(&bytes)?)
    }

    /// Ends the file; gives how many bytes it has.
    ///
    /// # Errors
    /// The disk.
    pub(crate) fn finish(self) -> Result<usize, Error> {
        self.out.flush()?;
        Ok(self.written)
    }
}
