//! The table place × case, printed when the last of the cases that were asked for has ended.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    io::Write as _,
    process::Command,
    sync::{LazyLock, Mutex},
    time::{Duration, Instant},
};

/// What became of one case on one place.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
    /// The place cannot do what the case is about.
    LeftOut(&'static str),
}

struct Table {
    /// The cases that this run was asked for, as `(place, case)`.
    wanted: BTreeSet<(String, String)>,
    ended: BTreeMap<(String, String), (Outcome, Duration)>,
}

static TABLE: LazyLock<Mutex<Table>> =
    LazyLock::new(|| Mutex::new(Table { wanted: wanted(), ended: BTreeMap::new() }));

thread_local! {
    static LEFT_OUT: RefCell<Option<&'static str>> = const { RefCell::new(None) };
}

/// All cases of one run, by what the program itself says of its arguments.
fn wanted() -> BTreeSet<(String, String)> {
    let listed = Command::new(std::env::current_exe().unwrap())
        .args(std::env::args_os().skip(1))
        .args(["--list", "--format", "terse"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&listed.stdout);
    let names = text.lines().filter_map(|line| line.strip_suffix(": test")?.split_once("::"));
    names
        .filter(|(place, _)| super::PLACES.contains(place))
        .map(|(place, case)| (place.to_owned(), case.to_owned()))
        .collect()
}

/// A case under way; what became of it is written down when this goes.
pub struct Running {
    place: &'static str,
    case: &'static str,
    since: Instant,
}

/// A case begins.
pub fn begin(place: &'static str, case: &'static str) -> Running {
    drop(TABLE.lock());
    LEFT_OUT.with_borrow_mut(|left_out| *left_out = None);
    Running { place, case, since: Instant::now() }
}

/// The case under way, on this thread, is not for this place.
pub fn left_out(why: &'static str) {
    LEFT_OUT.with_borrow_mut(|left_out| *left_out = Some(why));
}

impl Drop for Running {
    fn drop(&mut self) {
        let outcome = match LEFT_OUT.with_borrow_mut(Option::take) {
            _ if std::thread::panicking() => Outcome::Failed,
            Some(why) => Outcome::LeftOut(why),
            None => Outcome::Passed,
        };
        let Ok(mut table) = TABLE.lock() else { return };
        let key = (self.place.to_owned(), self.case.to_owned());
        table.ended.insert(key, (outcome, self.since.elapsed()));
        if table.wanted.iter().all(|wanted| table.ended.contains_key(wanted)) {
            // Past the capturing of the test runner: the table belongs into every log.
            drop(std::io::stderr().write_all(table.to_string().as_bytes()));
        }
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let places: Vec<&str> = super::PLACES
            .iter()
            .copied()
            .filter(|place| self.ended.keys().any(|(of, _)| of == place))
            .collect();
        let cases: Vec<&str> =
            super::CASES.iter().copied().filter(|case| self.ended.keys().any(|(_, of)| of == case)).collect();
        let width = cases.iter().map(|case| case.len()).max().unwrap_or_default();
        let mut text = format!("\nThe contract: {} places × {} cases\n", places.len(), cases.len());
        for (n, place) in places.iter().enumerate() {
            let _never_fails = writeln!(text, "{:width$} {}{place}", "", "  │".repeat(n) + "  ");
        }
        let mut why: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
        for case in &cases {
            let _never_fails = write!(text, "{case:width$} ");
            for place in &places {
                let ended = self.ended.get(&((*place).to_owned(), (*case).to_owned()));
                text += match ended.map(|(outcome, _)| outcome) {
                    Some(Outcome::Passed) => "  ✓",
                    Some(Outcome::Failed) => "  ✗",
                    Some(Outcome::LeftOut(reason)) => {
                        why.entry((case, reason)).or_default().push(place);
                        "  –"
                    }
                    None => "   ",
                };
            }
            text.push('\n');
        }
        let count =
            |of: &dyn Fn(&Outcome) -> bool| self.ended.values().filter(|(outcome, _)| of(outcome)).count();
        let _never_fails = writeln!(
            text,
            "✓ {} passed, ✗ {} failed, – {} not for that place:",
            count(&|outcome| *outcome == Outcome::Passed),
            count(&|outcome| *outcome == Outcome::Failed),
            count(&|outcome| matches!(outcome, Outcome::LeftOut(_))),
        );
        for ((case, reason), places) in why {
            let _never_fails = writeln!(text, "  {case}: {reason} ({})", places.join(", "));
        }
        let time = |place: &str| {
            let of_place = self.ended.iter().filter(|((of, _), _)| of == place);
            of_place.map(|(_, (_, took))| took.as_secs_f64()).sum::<f64>()
        };
        let times: Vec<String> = places.iter().map(|place| format!("{place} {:.0} s", time(place))).collect();
        let _never_fails = writeln!(text, "time on each place: {}\n", times.join(", "));
        f.write_str(&text)
    }
}
