//! Encodings of text: strict both ways, so that no character is lost unseen.

use super::Error;
use encoding_rs::{
    DecoderResult, EncoderResult, Encoding, ISO_2022_JP, REPLACEMENT, UTF_8, UTF_16BE, UTF_16LE,
    WINDOWS_1252, X_USER_DEFINED,
};
use std::io::Read;

/// How much is decoded at once.
const CHUNK: usize = 64 * 1024;

/// An encoding that text can be read from and written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Charset(&'static Encoding);

/// Finds an encoding; none said is UTF-8.
///
/// # Errors
/// What is wrong with the name.
pub(crate) fn named(name: Option<&str>) -> Result<Charset, String> {
    let name = name.unwrap_or("utf-8");
    let unknown = || {
        format!(
            "encoding: {name:?} is not known; give the like of utf-8, windows-1252, iso-8859-15 or utf-16le"
        )
    };
    let found = Encoding::for_label(name.as_bytes()).ok_or_else(unknown)?;
    // Browsers read ISO 8859-1 and ASCII as windows-1252, whose euro sign a real ISO 8859-1 reader does not know.
    let disguised =
        found == WINDOWS_1252 && !matches!(name.to_ascii_lowercase().as_str(), "windows-1252" | "cp1252");
    if disguised {
        return Err(format!("encoding: {name:?} is ambiguous; give windows-1252 or iso-8859-15"));
    }
    if [REPLACEMENT, X_USER_DEFINED, ISO_2022_JP].contains(&found) {
        return Err(unknown());
    }
    Ok(Charset(found))
}

impl Charset {
    pub(crate) fn name(self) -> &'static str {
        self.0.name()
    }

    pub(crate) fn has_bom(self) -> bool {
        [UTF_8, UTF_16LE, UTF_16BE].contains(&self.0)
    }

    /// Decodes everything, piece by piece. A byte order mark of the same encoding is taken off.
    ///
    /// # Errors
    /// Bytes that are no text in this encoding, with their line; what `each` or the disk says.
    pub(crate) fn read(
        self,
        input: &mut dyn Read,
        each: &mut dyn FnMut(&str) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut decoder = self.0.new_decoder_with_bom_removal();
        let (mut bytes, mut text) = (vec![0; CHUNK], String::with_capacity(CHUNK * 3));
        let mut line = 1;
        loop {
            let count = match input.read(&mut bytes) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            let mut rest = bytes.get(..count).unwrap_or_default();
            loop {
                text.clear();
                let (result, taken) =
                    decoder.decode_to_string_without_replacement(rest, &mut text, count == 0);
                rest = rest.get(taken..).unwrap_or_default();
                line += text.bytes().filter(|b| *b == b'\n').count();
                if !text.is_empty() {
                    each(&text)?;
                }
                match result {
                    DecoderResult::InputEmpty => break,
                    DecoderResult::OutputFull => {}
                    DecoderResult::Malformed(..) => {
                        let name = self.0.name();
                        return Err(Error::data(format!(
                            "line {line}: bytes that are no text in {name}; is the encoding right?"
                        )));
                    }
                }
            }
            if count == 0 {
                return Ok(());
            }
        }
    }

    /// The byte order mark.
    pub(crate) fn write_bom(self, out: &mut Vec<u8>) {
        match self.utf16(0xfeff) {
            Some(bytes) => out.extend(bytes),
            None => out.extend("\u{feff}".as_bytes()),
        }
    }

    /// Encodes a text.
    ///
    /// # Errors
    /// The first character that the encoding does not have, unless something stands in for it.
    pub(crate) fn write(self, text: &str, stand_in: Option<char>, out: &mut Vec<u8>) -> Result<(), char> {
        if self.0 == UTF_8 {
            out.extend(text.as_bytes());
            return Ok(());
        }
        if [UTF_16LE, UTF_16BE].contains(&self.0) {
            // The encoder of the library writes UTF-8 here, as browsers do with forms.
            out.extend(text.encode_utf16().filter_map(|unit| self.utf16(unit)).flatten());
            return Ok(());
        }
        let mut encoder = self.0.new_encoder();
        let mut rest = text;
        loop {
            let room =
                encoder.max_buffer_length_from_utf8_without_replacement(rest.len()).unwrap_or(rest.len() * 4);
            out.reserve(room.max(16));
            let (result, taken) = encoder.encode_from_utf8_to_vec_without_replacement(rest, out, true);
            rest = rest.get(taken..).unwrap_or_default();
            match (result, stand_in) {
                (EncoderResult::InputEmpty, _) => return Ok(()),
                (EncoderResult::OutputFull, _) => {}
                (EncoderResult::Unmappable(_), Some(c)) => out.extend(c.to_string().as_bytes()),
                (EncoderResult::Unmappable(c), None) => return Err(c),
            }
        }
    }

    fn utf16(self, unit: u16) -> Option<[u8; 2]> {
        match self.0 {
            encoding if encoding == UTF_16LE => Some(unit.to_le_bytes()),
            encoding if encoding == UTF_16BE => Some(unit.to_be_bytes()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::named;

    fn decoded(name: &str, mut bytes: &[u8]) -> Result<String, String> {
        let mut text = String::new();
        let mut take = |piece: &str| {
            text.push_str(piece);
            Ok(())
        };
        named(Some(name)).unwrap().read(&mut bytes, &mut take).map_err(|e| e.to_string())?;
        Ok(text)
    }

    fn encoded(name: &str, text: &str) -> Result<Vec<u8>, char> {
        let mut out = Vec::new();
        named(Some(name)).unwrap().write(text, None, &mut out).map(|()| out)
    }

    #[test]
    fn french_text_survives_every_encoding_both_ways() {
        let text = "L'Écume à 12 € – œuvre n° 5\r\n";
        for name in ["utf-8", "windows-1252", "UTF-16LE", "utf-16be"] {
            assert_eq!(decoded(name, &encoded(name, text).unwrap()).unwrap(), text, "{name}");
        }
        assert_eq!(encoded("windows-1252", "é€œ").unwrap(), [0xe9, 0x80, 0x9c]);
        assert_eq!(encoded("iso-8859-15", "é€œ").unwrap(), [0xe9, 0xa4, 0xbd]);
        assert_eq!(encoded("utf-16le", "é😀").unwrap(), [0xe9, 0, 0x3d, 0xd8, 0x00, 0xde]);
        let long = "é€".repeat(100_000);
        assert_eq!(decoded("windows-1252", &encoded("windows-1252", &long).unwrap()).unwrap(), long);
    }

    #[test]
    fn what_an_encoding_does_not_have_is_said_or_stood_in_for() {
        assert_eq!(encoded("windows-1252", "ab日"), Err('日'));
        let mut out = Vec::new();
        named(Some("windows-1252")).unwrap().write("a日b本", Some('?'), &mut out).unwrap();
        assert_eq!(out, b"a?b?");
    }

    #[test]
    fn bytes_that_are_no_text_are_refused_with_their_line() {
        let error = decoded("utf-8", b"one\ntwo\n\xe9t\xe9\n").unwrap_err();
        assert!(error.starts_with("line 3: ") && error.contains("UTF-8"), "{error}");
        let cut = decoded("utf-8", "caf\u{e9}".as_bytes().split_last().unwrap().1).unwrap_err();
        assert!(cut.starts_with("line 1"), "{cut}");
        assert!(decoded("utf-16le", b"a\0b").is_err());
        assert_eq!(decoded("utf-8", "\u{feff}a".as_bytes()).unwrap(), "a");
    }

    #[test]
    fn ambiguous_and_unknown_names_are_refused() {
        for (name, says) in [
            ("latin1", "ambiguous"),
            ("iso-8859-1", "ambiguous"),
            ("ascii", "ambiguous"),
            ("ebcdic", "not known"),
            ("iso-2022-jp", "not known"),
        ] {
            let error = named(Some(name)).unwrap_err();
            assert!(error.contains(says), "{name}: {error}");
        }
    }
}
