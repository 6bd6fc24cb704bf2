//! Takes texts that must not be told out of what a target said: the resource's own secrets, and personal data.
//!
//! - A text is found whatever its case and hyphens, percent-encoded, or escaped as in JSON, also in part: a target that echoes
//!   a request shows it as it came, or as it writes it itself.
//! - What was cut off at the end of a sentence is found by its beginning.
//! - Secrets of fewer than [`LEAST`] characters are left: they are part of ordinary words.

use crate::Failure;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::HeaderValue;
use percent_encoding::percent_decode_str;
use std::{
    collections::VecDeque,
    ops::Range,
    sync::{Mutex, PoisonError},
};
use zeroize::Zeroizing;

/// A secret of fewer characters cannot be told from ordinary words.
const LEAST: usize = 4;
/// As much of a text that is cut off makes it known.
const LEAST_CUT: usize = 8;
/// Access tokens that a target may still repeat: the one in use, and those just replaced.
const TOKENS: usize = 4;
/// What stands in a secret's place.
const HIDDEN: &str = "[secret]";

/// A text to be found, in the form that texts are compared in.
pub(crate) struct Needle(Zeroizing<Vec<char>>);

impl Needle {
    /// Of a text without spaces around it.
    pub(crate) fn new(text: &str) -> Self {
        let mut view = View::default();
        text.trim().char_indices().for_each(|(at, c)| view.push(c, at..at + c.len_utf8()));
        Self(Zeroizing::new(view.chars))
    }
}

/// The text with `word` in the place of each needle.
pub(crate) fn without(text: &str, needles: &[Needle], word: &str) -> String {
    if needles.iter().all(|needle| needle.0.is_empty()) {
        return text.to_owned();
    }
    let mut found: Vec<Range<usize>> = Vec::new();
    for view in [View::plain(text), View::percent_decoded(text), View::unescaped(text)].into_iter().flatten()
    {
        for needle in needles {
            view.find(&needle.0, &mut found);
        }
    }
    found.sort_by_key(|range| range.start);
    let (mut told, mut upto) = (String::with_capacity(text.len()), 0);
    for range in found {
        if range.start >= upto {
            told.push_str(text.get(upto..range.start).unwrap_or_default());
            told.push_str(word);
        }
        upto = upto.max(range.end);
    }
    told.push_str(text.get(upto..).unwrap_or_default());
    told
}

/// A text as it may be meant, and where in it each character stands.
#[derive(Default)]
struct View {
    chars: Vec<char>,
    places: Vec<Range<usize>>,
}

impl View {
    /// Without regard to case, to the kind of hyphen, and to how many spaces there are.
    fn push(&mut self, c: char, place: Range<usize>) {
        let c = match c {
            '\u{ad}' | '\u{2010}'..='\u{2015}' | '\u{2212}' | '\u{fe63}' | '\u{ff0d}' => '-',
            c if c.is_whitespace() || c.is_control() => ' ',
            c => c.to_lowercase().next().unwrap_or(c),
        };
        match (c, self.chars.last(), self.places.last_mut()) {
            (' ', Some(' '), Some(last)) => last.end = place.end,
            _ => {
                self.chars.push(c);
                self.places.push(place);
            }
        }
    }

    fn plain(text: &str) -> Option<Self> {
        let mut view = Self::default();
        text.char_indices().for_each(|(at, c)| view.push(c, at..at + c.len_utf8()));
        Some(view)
    }

    /// `%40` for `@`; `None` if there is nothing of that kind.
    fn percent_decoded(text: &str) -> Option<Self> {
        if !text.contains('%') {
            return None;
        }
        let mut view = Self::default();
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            let at = text.len() - rest.len();
            let length = rest.as_bytes().chunks_exact(3).take_while(|part| is_escape(part)).count() * 3;
            let escapes = rest.get(..length).unwrap_or_default();
            if escapes.is_empty() {
                view.push(c, at..at + c.len_utf8());
                rest = rest.get(c.len_utf8()..).unwrap_or_default();
                continue;
            }
            // Each run of escapes is looked at once, also where it is no UTF-8: a target may send long ones.
            let bytes: Vec<u8> = percent_decode_str(escapes).collect();
            let mut from = at;
            for part in bytes.utf8_chunks() {
                let broken = part.invalid().iter().map(|_| (char::REPLACEMENT_CHARACTER, 1));
                for (c, length) in part.valid().chars().map(|c| (c, c.len_utf8())).chain(broken) {
                    let to = from + length * 3;
                    view.push(c, from..to);
                    from = to;
                }
            }
            rest = rest.get(length..).unwrap_or_default();
        }
        Some(view)
    }

    /// `\u0040`, `\"` and the like, as JSON has them; `None` if there is nothing of that kind.
    fn unescaped(text: &str) -> Option<Self> {
        if !text.contains('\\') {
            return None;
        }
        let mut view = Self::default();
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            let at = text.len() - rest.len();
            let (c, length) = escaped(rest).unwrap_or((c, c.len_utf8()));
            view.push(c, at..at + length);
            rest = rest.get(length..).unwrap_or_default();
        }
        Some(view)
    }

    fn find(&self, needle: &[char], found: &mut Vec<Range<usize>>) {
        if needle.is_empty() {
            return;
        }
        let mut at = 0;
        while let Some(rest) = self.chars.get(at..).filter(|rest| !rest.is_empty()) {
            let same = rest.iter().zip(needle).take_while(|(a, b)| a == b).count();
            let is_cut = same >= LEAST_CUT && matches!(rest.get(same), None | Some(')'));
            if same < needle.len() && !is_cut {
                at += 1;
                continue;
            }
            if let (Some(first), Some(last)) = (self.places.get(at), self.places.get(at + same - 1)) {
                found.push(first.start..last.end);
            }
            at += same;
        }
    }
}

fn is_escape(part: &[u8]) -> bool {
    matches!(part, [b'%', high, low] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit())
}

/// The character that an escape at the beginning stands for, and how long that is.
fn escaped(text: &str) -> Option<(char, usize)> {
    let unit = |at: usize| {
        let digits = text.get(at..)?.strip_prefix("\\u")?.get(..4)?;
        u16::from_str_radix(digits, 16).ok()
    };
    if let Some(first) = unit(0) {
        let pair = [first, unit(6).unwrap_or_default()];
        let c = char::decode_utf16(pair).next()?.ok()?;
        return Some((c, 6 * c.len_utf16()));
    }
    let c = text.strip_prefix('\\')?.chars().next()?;
    let meant = match c {
        '"' | '\\' | '/' => c,
        'b' | 'f' | 'n' | 'r' | 't' => ' ',
        _ => return None,
    };
    Some((meant, 2))
}

/// The secrets of one resource, which are told to nobody.
#[derive(Default)]
pub(crate) struct Secrets {
    own: Vec<Needle>,
    /// The access tokens used last.
    tokens: Mutex<VecDeque<Needle>>,
}

impl Secrets {
    /// Adds one.
    pub(crate) fn add(&mut self, secret: &str) {
        self.own.extend(needle(secret));
    }

    /// Adds a password, and its pair with the user's name as HTTP Basic sends it.
    pub(crate) fn add_basic(&mut self, username: &str, password: &str) {
        self.add(password);
        let pair = Zeroizing::new(format!("{username}:{password}"));
        let sent = Zeroizing::new(STANDARD.encode(pair.as_bytes()));
        self.add(sent.trim_end_matches('='));
    }

    /// Takes note of an access token that is about to be sent: `Bearer …`.
    pub(crate) fn note(&self, header: &HeaderValue) {
        let token = header.to_str().ok().and_then(|text| text.split_once(' ')).and_then(|(_, t)| needle(t));
        let Some(token) = token else { return };
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if !tokens.iter().any(|known| known.0 == token.0) {
            tokens.truncate(TOKENS - 1);
            tokens.push_front(token);
        }
    }

    /// A text of the target's without them.
    pub(crate) fn hide(&self, text: &str) -> String {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let text = without(text, tokens.make_contiguous(), HIDDEN);
        drop(tokens);
        without(&text, &self.own, HIDDEN)
    }

    /// A failure without them, in what is public and in what is for the log.
    pub(crate) fn leave(&self, mut failure: Failure) -> Failure {
        failure.message = self.hide(&failure.message);
        failure.detail = failure.detail.map(|detail| self.hide(&detail));
        failure
    }
}

fn needle(secret: &str) -> Option<Needle> {
    Some(Needle::new(secret)).filter(|needle| needle.0.len() >= LEAST)
}

#[cfg(test)]
mod tests {
    use super::{Needle, Secrets, without};
    use http::HeaderValue;

    fn hide(text: &str, needle: &str) -> String {
        without(text, &[Needle::new(needle)], "[x]")
    }

    #[test]
    fn a_text_is_found_however_it_is_written() {
        for (text, needle, told) in [
            ("DURAND-SECRET is bad", "Durand-Secret", "[x] is bad"),
            ("Durand\u{2011}Secret, durand-secret", "Durand-Secret", "[x], [x]"),
            ("no d%40x.fr, no %64@X.fr; 100% so", "d@x.fr", "no [x], no [x]; 100% so"),
            ("%C3%89l%c3%A9onore%20B at 5%", "éléonore b", "[x] at 5%"),
            ("%FFd%40x.fr%C3 no", "d@x.fr", "%FF[x]%C3 no"),
            (r#""d\u0040x.fr" and "d@x.fr""#, "d@x.fr", r#""[x]" and "[x]""#),
            (r#"{\"a\":\"Dur\u2011and \"B\"\"}"#, "dur-and \"b\"", r#"{\"a\":\"[x]\"}"#),
            (r"\ud83d\ude00 joy", "😀 JOY", "[x]"),
            ("one  two\nthree", "one two three", "[x]"),
            ("aaaa", "aa", "[x][x]"),
            ("%", "%", "[x]"),
            ("nothing", "else", "nothing"),
            ("nothing", " ", "nothing"),
            // Cut off at the end of the sentence.
            (
                "the target refused fields.x (no 0123456789ab)",
                "0123456789abcdef",
                "the target refused fields.x (no [x])",
            ),
            ("it says 01234567", "0123456789abcdef", "it says [x]"),
            ("it says 0123456", "0123456789abcdef", "it says 0123456"),
            ("01234567 it says", "0123456789abcdef", "01234567 it says"),
        ] {
            assert_eq!(hide(text, needle), told, "{text}");
        }
        let both = [Needle::new("durand"), Needle::new("paul durand")];
        assert_eq!(without("Paul Durand-Petit", &both, "[x]"), "[x]-Petit");
    }

    #[test]
    fn secrets_are_hidden_as_they_are_and_as_they_are_sent() {
        let mut secrets = Secrets::default();
        secrets.add("S3CRET/token");
        secrets.add("abc");
        secrets.add_basic("anna", "pass word");
        secrets.note(&HeaderValue::from_static("Bearer first.token"));
        secrets.note(&HeaderValue::from_static("Bearer second.token"));
        for (text, told) in [
            ("Token S3CRET/token, s3cret%2Ftoken", "Token [secret], [secret]"),
            ("abc", "abc"),
            ("Basic YW5uYTpwYXNzIHdvcmQ= of pass%20word", "Basic [secret]= of [secret]"),
            ("first.token second.token", "[secret] [secret]"),
        ] {
            assert_eq!(secrets.hide(text), told);
        }
        for number in 0..9 {
            secrets.note(&HeaderValue::from_str(&format!("Bearer token-{number}")).unwrap());
        }
        assert_eq!(secrets.hide("first.token token-8"), "first.token [secret]");
    }
}
