//! The table that people read.

use super::{Report, State};

/// One line per link, aligned, with the fix below; in colours where that is wanted.
pub fn render(report: &Report, colours: bool) -> String {
    let width = report.items.iter().map(|item| item.link.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for item in &report.items {
        let (word, colour) = match item.status {
            State::Ok => ("ok  ", "32"),
            State::Warn => ("warn", "33"),
            State::Fail => ("FAIL", "31"),
            State::Skipped => ("-   ", "2"),
        };
        let word = if colours { format!("\x1b[{colour}m{word}\x1b[0m") } else { word.to_owned() };
        let pad = width.saturating_sub(item.link.chars().count());
        text.push_str(&format!("{word}  {}{:pad$}  {}\n", item.link, "", plain(&item.detail)));
        if let Some(fix) = &item.fix {
            text.push_str(&format!("{:indent$}fix: {}\n", "", plain(fix), indent = width + 8));
        }
    }
    let count = |state| report.items.iter().filter(|item| item.status == state).count();
    text.push_str(&format!(
        "\nok {}, warnings {}, failed {}, skipped {}\n",
        count(State::Ok),
        count(State::Warn),
        count(State::Fail),
        count(State::Skipped)
    ));
    text
}

/// Words of strangers (a server's banner, a certificate) may not steer the terminal.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Item;

    #[test]
    fn the_table_is_aligned_and_names_each_fix() {
        let items = vec![
            Item::ok("disk", "1 MiB"),
            Item::fail("hub TLS", "expired\x1b[2J", "renew it"),
            Item::skipped("tunnel", "hub TLS failed"),
        ];
        let report = Report { ok: false, items };
        assert_eq!(
            render(&report, false),
            "ok    disk     1 MiB\nFAIL  hub TLS  expired [2J\n               fix: renew it\n\
             -     tunnel   skipped because hub TLS failed\n\nok 1, warnings 0, failed 1, skipped 1\n"
        );
        assert!(render(&report, true).contains("\x1b[31mFAIL\x1b[0m"));
    }
}
