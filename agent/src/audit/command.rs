//! `audit verify` and `audit show`. Both read the state folder, whether the agent runs or not.

use super::{
    DATABASE_IN_USE,
    line::{self, Head, Row},
    segments,
    verify::{self, Verdict},
};
use crate::exit::Stop;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use std::{
    fmt::Write as _,
    io,
    path::{Path, PathBuf},
};

/// About the audit.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Check the whole chain; 1 if it does not hold, with the first place that does not.
    #[command(after_help = "Examples:
  passerelle-agent audit verify                        files and journal, whether the agent runs or not
  passerelle-agent audit verify --expect 4711:9f86d0…  the row that was noted elsewhere is still there
  passerelle-agent audit verify --from audit.jsonl     a copy that [audit] file made

A chain proves that nothing in it was changed or taken out. That nothing was taken off its end shows only against
something that is kept elsewhere: a copy, or the line `head` of an earlier verify.")]
    Verify(Verify),
    /// Print rows, oldest first.
    #[command(after_help = "Examples:
  passerelle-agent audit show --since 1h
  passerelle-agent audit show --job 0193a5c2-7e1b-7c4d-9f00-1a2b3c4d5e6f
  passerelle-agent audit show --kind denied --since 2026-11-21T06:00:00Z --json

--json prints each row as it was hashed, one a line.")]
    Show(Show),
}

/// What to check.
#[derive(Debug, Args)]
pub struct Verify {
    /// A copy to check in place of the state folder.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// A row that must be in the chain, as NUMBER:HASH; may be repeated.
    #[arg(long, value_name = "NUMBER:HASH")]
    expect: Vec<Head>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What to print.
#[derive(Debug, Args)]
pub struct Show {
    /// From this time on: 2026-11-21T06:00:00Z, or 30s, 15m, 24h, 7d ago.
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<Timestamp>,
    /// Only of this job.
    #[arg(long, value_name = "ID")]
    job: Option<String>,
    /// Only of this kind, as `denied`.
    #[arg(long, value_name = "KIND")]
    kind: Option<String>,
    /// Print each row as it was hashed.
    #[arg(long)]
    json: bool,
}

/// Carries out the command on a state folder.
///
/// # Errors
/// If the chain does not hold, or cannot be read or printed.
pub fn run(command: &AuditCommand, state: &Path) -> Result<(), Stop> {
    match command {
        AuditCommand::Verify(command) => run_verify(command, state),
        AuditCommand::Show(command) => show(command, state),
    }
}

fn run_verify(command: &Verify, state: &Path) -> Result<(), Stop> {
    let expected = command.expect.clone();
    let verdict = match &command.from {
        Some(file) => verify::exported(file, expected),
        None => verify::state_folder(state, expected),
    };
    let verdict = verdict.map_err(Stop::Failed)?;
    let text = if command.json {
        serde_json::to_string_pretty(&verdict).map_err(|e| Stop::Bug(e.to_string()))? + "\n"
    } else {
        as_text(&verdict)
    };
    print(&text)?;
    match verdict.broken {
        None => Ok(()),
        Some(broken) => {
            let verify::Broken { place, seq, why } = broken;
            Err(Stop::Failed(format!("the audit does not hold at row {seq} ({place}): {why}")))
        }
    }
}

fn as_text(verdict: &Verdict) -> String {
    let Verdict { ok, rows, first, head, head_at, broken: _, notes } = verdict;
    let mut text = match (rows, head_at) {
        (0, _) | (_, None) => "there is no audit yet\n".to_owned(),
        (rows, Some(at)) => {
            let word = if *ok { "hold" } else { "were read up to the first that does not hold" };
            format!("{rows} rows from number {first} on {word}; the newest is of {at}\nhead {head}\n")
        }
    };
    for note in notes {
        // Writing to a string does not fail.
        let _ = writeln!(text, "note: {note}");
    }
    text
}

fn show(command: &Show, state: &Path) -> Result<(), Stop> {
    let out = &mut io::stdout().lock();
    let mut failed = None;
    let mut newest = 0;
    let mut take = |text: &str, whole: bool| {
        let Ok((row, head)) = line::read(text) else {
            // A row that is just being written; else `verify` tells of it.
            return !whole || write_line(out, text, &mut failed);
        };
        newest = head.seq;
        !command.wants(&row) || write_line(out, &command.form(text, &row), &mut failed)
    };
    let dir = state.join(segments::DIR);
    let unreadable =
        |path: &Path, e: io::Error| Stop::Failed(format!("{} cannot be read: {e}", path.display()));
    for segment in segments::list(&dir).map_err(|e| unreadable(&dir, e))? {
        segments::each_line(&segment.path, &mut take).map_err(|e| unreadable(&segment.path, e))?;
    }
    match verify::database(state) {
        Ok(rows) => {
            for (seq, text) in rows.unwrap_or_default() {
                let Ok((row, _)) = line::read(&text) else { continue };
                if seq > newest
                    && command.wants(&row)
                    && !write_line(out, &command.form(&text, &row), &mut failed)
                {
                    break;
                }
            }
        }
        // What is not in a file yet is so within a second.
        Err(why) if why == DATABASE_IN_USE => {}
        Err(why) => return Err(Stop::Failed(why)),
    }
    failed.map_or(Ok(()), |e| Err(Stop::Failed(format!("cannot print: {e}"))))
}

impl Show {
    fn wants(&self, row: &Row) -> bool {
        self.since.is_none_or(|since| row.at >= since)
            && self.job.as_ref().is_none_or(|job| row.job.as_ref() == Some(job))
            && self.kind.as_ref().is_none_or(|kind| row.kind == *kind)
    }

    fn form(&self, text: &str, row: &Row) -> String {
        if self.json { text.to_owned() } else { human(row) }
    }
}

fn human(row: &Row) -> String {
    let mut text = format!("{} {} {}", row.at, row.seq, row.kind);
    let mut add = |label: &str, value: Option<String>| {
        if let Some(value) = value {
            let _ = write!(text, " {label}{value}");
        }
    };
    add("", row.job.clone());
    add("attempt ", row.attempt.map(|n| n.to_string()));
    add("", row.resource.clone());
    add("", row.operation.clone());
    add("rule ", row.rule.clone());
    add("", row.code.clone());
    add("effect ", row.effect.clone());
    add("count ", row.count.map(|n| n.to_string()));
    // What came from elsewhere must not steer a terminal.
    add(
        "- ",
        row.detail.as_ref().map(|text| text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()),
    );
    text
}

/// `false` if nobody reads any more.
fn write_line(out: &mut impl io::Write, text: &str, failed: &mut Option<io::Error>) -> bool {
    match writeln!(out, "{text}") {
        Ok(()) => true,
        Err(e) => {
            if e.kind() != io::ErrorKind::BrokenPipe {
                *failed = Some(e);
            }
            false
        }
    }
}

fn print(text: &str) -> Result<(), Stop> {
    let mut failed = None;
    write_line(&mut io::stdout().lock(), text.trim_end_matches('\n'), &mut failed);
    failed.map_or(Ok(()), |e| Err(Stop::Failed(format!("cannot print: {e}"))))
}

fn since(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let wrong = || "expected the like of 2026-11-21T06:00:00Z, 30s, 15m, 24h or 7d".to_owned();
    let seconds = match text.char_indices().last() {
        Some((_, 's')) => 1,
        Some((_, 'm')) => 60,
        Some((_, 'h')) => 3600,
        Some((_, 'd')) => 86_400,
        _ => return Err(wrong()),
    };
    let count: i64 = text.trim_end_matches(char::is_alphabetic).parse().map_err(|_| wrong())?;
    let ago = count.checked_mul(seconds).filter(|ago| *ago >= 0).ok_or_else(wrong)?;
    Timestamp::from_second(crate::clock::unix_seconds().saturating_sub(ago)).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_or_a_while_ago_is_read() {
        let now = crate::clock::unix_seconds();
        assert_eq!(since("2026-11-21T06:00:00Z").unwrap().to_string(), "2026-11-21T06:00:00Z");
        let ago = since("2h").unwrap().as_second();
        assert!((now - 7200 - ago).abs() <= 2, "{ago}");
        for wrong in ["", "h", "-1h", "1w", "soon", "9999999999999999999s"] {
            assert!(since(wrong).is_err(), "{wrong}");
        }
    }
}
