//! What servers say of files: facts (`MLSD`, `MLST`; RFC 3659), and the lists for human eyes (`LIST`) of Unix and
//! Windows servers.
//!
//! Lines are bytes: names need not be UTF-8. The times of `LIST` are not read: they have no time zone and often no year.

use crate::file::backend::{EntryKind, Stat};
use jiff::{Timestamp, civil::DateTime, tz::TimeZone};
use std::mem;

/// What one line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: Vec<u8>,
    pub(super) stat: Stat,
    /// Where a symbolic link points, as it is written, if that is said.
    pub(super) target: Option<Vec<u8>>,
    /// Whether what follows it is in no known form: then its name may go on there, after a line end.
    pub(super) cut: bool,
}

/// A line of a list that is none of the known forms.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unreadable;

/// How a list is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// As [`facts`].
    Facts,
    /// As [`human`].
    Human,
}

/// Takes the lines of a list, and gives their entries one line later: only then it shows whether a name ended.
pub(super) struct Reader {
    form: Form,
    held: Option<Entry>,
    understood: bool,
    skipped: u64,
}

impl Reader {
    pub(super) fn new(form: Form) -> Self {
        Self { form, held: None, understood: false, skipped: 0 }
    }

    /// Reads one more line, and gives the entry before it.
    pub(super) fn line(&mut self, line: &[u8]) -> Option<Entry> {
        let read = match self.form {
            // The folder itself is in the form too.
            Form::Facts => facts(line).inspect(|_| self.understood = true),
            // The rest of a name, where some servers only end their list.
            Form::Human if line.is_empty() && self.held.is_some() => Err(Unreadable),
            Form::Human => human(line),
        };
        match read {
            Ok(next) => {
                self.understood |= next.is_some();
                mem::replace(&mut self.held, next)
            }
            Err(Unreadable) => {
                self.skipped += 1;
                self.held.take().map(|entry| Entry { cut: true, ..entry })
            }
        }
    }

    /// The last entry, and how many lines were skipped: anybody who may put a file there can have one in no known form.
    /// A list that holds nothing else is not understood.
    pub(super) fn end(self) -> Result<(Option<Entry>, u64), Unreadable> {
        match self.understood || self.skipped == 0 {
            true => Ok((self.held, self.skipped)),
            false => Err(Unreadable),
        }
    }
}

/// A line of facts; `None` for the folder itself and the one above it.
pub(super) fn facts(line: &[u8]) -> Result<Option<Entry>, Unreadable> {
    let split = line.iter().position(|&byte| byte == b' ').ok_or(Unreadable)?;
    let (facts, name) = line.split_at(split);
    let name = name.get(1..).unwrap_or_default();
    let facts = std::str::from_utf8(facts).map_err(|_| Unreadable)?;
    let mut stat = Stat { kind: EntryKind::Other, size: 0, modified: None, inode: None };
    let mut target = None;
    let mut known = false;
    for fact in facts.split(';').filter(|fact| !fact.is_empty()) {
        let (key, value) = fact.split_once('=').ok_or(Unreadable)?;
        match key.to_ascii_lowercase().as_str() {
            "type" => {
                known = true;
                let kind = value.to_ascii_lowercase();
                stat.kind = match kind.as_str() {
                    "file" => EntryKind::File,
                    "dir" => EntryKind::Directory,
                    "cdir" | "pdir" => return Ok(None),
                    link if link.starts_with("os.unix=s") && link != "os.unix=socket" => {
                        target = value.split_once(':').map(|(_, target)| target.as_bytes().to_vec());
                        EntryKind::Symlink
                    }
                    _ => EntryKind::Other,
                };
            }
            "size" | "sizd" => stat.size = value.parse().unwrap_or_default(),
            "modify" => stat.modified = time(value),
            _ => {}
        }
    }
    if !known || name.is_empty() {
        return Err(Unreadable);
    }
    Ok(Some(Entry {
        name: name.to_vec(),
        stat,
        target: target.filter(|target| !target.is_empty()),
        cut: false,
    }))
}

/// `20261026073320` or `20261026073320.123`, in UTC.
pub(super) fn time(text: &str) -> Option<Timestamp> {
    let digits = text.get(..14)?;
    let at = |from: usize, to: usize| digits.get(from..to)?.parse::<i8>().ok();
    let year = digits.get(..4)?.parse().ok()?;
    let time = DateTime::new(year, at(4, 6)?, at(6, 8)?, at(8, 10)?, at(10, 12)?, at(12, 14)?, 0).ok()?;
    time.to_zoned(TimeZone::UTC).ok().map(|time| time.timestamp())
}

/// A line of a list for human eyes; `None` where it names nothing (`total 12`).
pub(super) fn human(line: &[u8]) -> Result<Option<Entry>, Unreadable> {
    if line.is_empty() || line.to_ascii_lowercase().starts_with(b"total ") {
        return Ok(None);
    }
    let words = words(line);
    let entry = match line.first() {
        Some(b'0'..=b'9') => windows(line, &words),
        _ => unix(line, &words),
    };
    entry.map(Some).ok_or(Unreadable)
}

/// Where each word begins, and the word.
fn words(line: &[u8]) -> Vec<(usize, &[u8])> {
    let mut words = Vec::new();
    let mut from = 0;
    for word in line.split(|&byte| byte == b' ') {
        if !word.is_empty() {
            words.push((from, word));
        }
        from += word.len() + 1;
    }
    words
}

/// `-rw-r--r--    1 owner group    12 Oct 26 07:33 name`: owner and group may have any number of words.
fn unix(line: &[u8], words: &[(usize, &[u8])]) -> Option<Entry> {
    let kind = match line.first()? {
        b'-' => EntryKind::File,
        b'd' => EntryKind::Directory,
        b'l' => EntryKind::Symlink,
        b'b' | b'c' | b'p' | b's' | b'D' => EntryKind::Other,
        _ => return None,
    };
    if words.first()?.1.len() < 10 {
        return None;
    }
    for (index, window) in words.windows(4).enumerate().skip(1) {
        let [(_, size), (_, first), (_, second), (from, third)] = window else { continue };
        let (Some(size), true) =
            (number(size), (is_month(first) && is_day(second)) || (is_day(first) && is_month(second)))
        else {
            continue;
        };
        if index < 2 || !is_time_or_year(third) {
            continue;
        }
        let name = line.get(from + third.len() + 1..)?;
        return named(name, Stat { kind, size, modified: None, inode: None });
    }
    None
}

/// `10-26-26  07:33AM       <DIR>          name` or a size in its place.
fn windows(line: &[u8], words: &[(usize, &[u8])]) -> Option<Entry> {
    let [(_, date), (_, time), (from, what), ..] = words else { return None };
    if date.iter().filter(|&&byte| byte == b'-' || byte == b'/').count() != 2 || !time.contains(&b':') {
        return None;
    }
    let rest = line.get(from + what.len()..)?;
    if what.eq_ignore_ascii_case(b"<DIR>") {
        let blank = rest.iter().position(|&byte| byte != b' ')?;
        return named(
            rest.get(blank..)?,
            Stat { kind: EntryKind::Directory, size: 0, modified: None, inode: None },
        );
    }
    let stat = Stat { kind: EntryKind::File, size: number(what)?, modified: None, inode: None };
    named(rest.get(1..)?, stat)
}

fn named(name: &[u8], stat: Stat) -> Option<Entry> {
    const ARROW: &[u8] = b" -> ";
    let (name, target) = match name.windows(ARROW.len()).position(|window| window == ARROW) {
        Some(at) if stat.kind == EntryKind::Symlink => (name.get(..at)?, name.get(at + ARROW.len()..)),
        _ => (name, None),
    };
    (!name.is_empty()).then(|| Entry {
        name: name.to_vec(),
        stat,
        target: target.map(<[u8]>::to_vec),
        cut: false,
    })
}

fn number(word: &[u8]) -> Option<u64> {
    std::str::from_utf8(word).ok()?.parse().ok()
}

fn is_day(word: &[u8]) -> bool {
    number(word).is_some_and(|day| (1..=31).contains(&day))
}

/// In any language.
fn is_month(word: &[u8]) -> bool {
    word.len() >= 2 && !word.iter().any(u8::is_ascii_digit)
}

fn is_time_or_year(word: &[u8]) -> bool {
    match word.iter().position(|&byte| byte == b':') {
        Some(_) => word.iter().all(|byte| byte.is_ascii_digit() || *byte == b':'),
        None => number(word).is_some_and(|year| (1970..=9999).contains(&year)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(line: &str) -> (String, EntryKind, u64, Option<String>) {
        let entry = human(line.as_bytes()).unwrap().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (text(entry.name), entry.stat.kind, entry.stat.size, entry.target.map(text))
    }

    #[test]
    fn lists_of_many_servers_are_read() {
        use EntryKind::{Directory, File, Other, Symlink};
        for (line, name, kind, size) in [
            ("-rw-r--r--    1 0        0              12 Oct 26 07:33 a.csv", "a.csv", File, 12),
            (
                "-rw-r--r--    1 0        0              12 Oct 26  2025  two  blanks ",
                " two  blanks ",
                File,
                12,
            ),
            ("drwxr-xr-x    2 ftp      ftp          4096 Nov 22 06:43 in 2026", "in 2026", Directory, 4096),
            ("-rw-rw-r--+   1 DOM\\joe  domain users  99 Nov 22 06:43 é.csv", "é.csv", File, 99),
            ("-rw-r--r--    1 ftp ftp 5000000000 22 nov. 06:43 gros.bin", "gros.bin", File, 5_000_000_000),
            ("prw-r--r--    1 0        0               0 Nov 22 06:43 pipe", "pipe", Other, 0),
            ("crw-r--r--    1 0        0          1,   5 Nov 22 06:43 zero", "zero", Other, 5),
            ("-rw-r--r--    1 0        0              12 Oct 26 07:33 a -> b", "a -> b", File, 12),
            ("10-26-26  07:33AM       <DIR>          Mes documents", "Mes documents", Directory, 0),
            (
                "10-26-2026  07:33PM             1234567 rapport final.csv",
                "rapport final.csv",
                File,
                1_234_567,
            ),
        ] {
            assert_eq!(shown(line), (name.to_owned(), kind, size, None), "{line}");
        }
        let link = shown("lrwxrwxrwx    1 0        0               4 Nov 22 06:43 alias -> real/x");
        assert_eq!(link, ("alias".to_owned(), Symlink, 4, Some("real/x".to_owned())));
        assert_eq!(human(b"total 12").unwrap(), None);
        for line in ["?", "-rw-r--r-- 1 0 0 12", "+i8388621.48594,m825718503,r,s280,\tdjb.html", "226 Done"] {
            assert_eq!(human(line.as_bytes()), Err(Unreadable), "{line}");
        }
    }

    #[test]
    fn facts_are_read() {
        let entry =
            facts(b"type=file;size=12;modify=20261026073320;UNIX.mode=0644; a b.csv").unwrap().unwrap();
        assert_eq!(
            (entry.name.as_slice(), entry.stat.kind, entry.stat.size),
            (&b"a b.csv"[..], EntryKind::File, 12)
        );
        assert_eq!(entry.stat.modified.unwrap().to_string(), "2026-10-26T07:33:20Z");
        let kind = |line: &[u8]| facts(line).unwrap().map(|entry| (entry.stat.kind, entry.target));
        assert_eq!(kind(b"Type=dir;Sizd=4096; x"), Some((EntryKind::Directory, None)));
        assert_eq!(kind(b"type=cdir; ."), None);
        assert_eq!(
            kind(b"type=OS.unix=slink:/srv/x; y"),
            Some((EntryKind::Symlink, Some(b"/srv/x".to_vec())))
        );
        assert_eq!(kind(b"type=OS.unix=symlink; y"), Some((EntryKind::Symlink, None)));
        assert_eq!(kind(b"type=OS.unix=fifo; y"), Some((EntryKind::Other, None)));
        for line in [&b"size=12; x"[..], b"type=file;", b"nonsense", b""] {
            assert_eq!(facts(line), Err(Unreadable));
        }
    }

    fn read(form: Form, lines: &[&str]) -> Result<(Vec<(String, bool)>, u64), Unreadable> {
        let mut reader = Reader::new(form);
        let mut entries: Vec<Entry> = lines.iter().filter_map(|line| reader.line(line.as_bytes())).collect();
        let (last, skipped) = reader.end()?;
        entries.extend(last);
        let named = |entry: Entry| (String::from_utf8(entry.name).unwrap(), entry.cut);
        Ok((entries.into_iter().map(named).collect(), skipped))
    }

    #[test]
    fn a_line_in_no_known_form_is_skipped_and_casts_doubt_on_the_one_before() {
        let all = |a: &str, b: &str, c: bool| vec![(a.to_owned(), false), (b.to_owned(), c)];
        for (form, start) in [
            (Form::Human, "-rw-r--r--    1 0        0              12 Oct 26 07:33 "),
            (Form::Facts, "type=file;size=1; "),
        ] {
            let (good, cut) = (format!("{start}a.csv"), format!("{start}line1"));
            for rest in ["line2.csv", "x y", ""] {
                assert_eq!(read(form, &[&good, &cut, rest]), Ok((all("a.csv", "line1", true), 1)), "{rest}");
            }
            assert_eq!(read(form, &[&good, &cut]), Ok((all("a.csv", "line1", false), 0)));
            assert_eq!(read(form, &["line2", &good, &cut]), Ok((all("a.csv", "line1", false), 1)));
            assert_eq!(read(form, &["what", "is", "this"]), Err(Unreadable));
            assert_eq!(read(form, &[]), Ok((vec![], 0)));
        }
        // Neither heading nor blank line says that the rest of the list is understood.
        assert_eq!(read(Form::Human, &["total 12", "", "?"]), Err(Unreadable));
        assert_eq!(read(Form::Human, &["total 0", ""]), Ok((vec![], 0)));
        assert_eq!(read(Form::Facts, &["type=cdir; .", "?"]), Ok((vec![], 1)));
    }

    proptest! {
        #[test]
        fn no_line_makes_it_panic(line in proptest::collection::vec(any::<u8>(), 0..80), text in "[-dlrwx 0-9:;=.<>A-Za-z]{0,60}") {
            for line in [line.as_slice(), text.as_bytes()] {
                drop((facts(line), human(line), time(&text)));
            }
        }

        #[test]
        fn any_name_comes_back(name in "[^\r\n/\0 ][^\r\n/\0]{0,30}") {
            let line = format!("-rw-r--r--    1 0        0              12 Oct 26 07:33 {name}");
            prop_assert_eq!(human(line.as_bytes()).unwrap().unwrap().name, name.as_bytes());
            let line = format!("type=file;size=1; {name}");
            prop_assert_eq!(facts(line.as_bytes()).unwrap().unwrap().name, name.as_bytes());
        }
    }
}
