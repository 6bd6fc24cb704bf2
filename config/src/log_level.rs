//! How much is logged, as agent and hub are told.

/// What [`is_log_level`] takes, for people.
pub const LOG_LEVELS: &str = "\"error\", \"warn\", \"info\", \"debug\", \"trace\" or \"off\", \
                              or a list such as \"info,passerelle_agent=debug\"";

/// Whether a text is a level or a list of `target=level`, as `tracing` reads it. (To that, any other word is a target too,
/// and all else stays silent.)
#[must_use]
pub fn is_log_level(text: &str) -> bool {
    let level = |text: &str| {
        ["error", "warn", "info", "debug", "trace", "off"]
            .iter()
            .any(|level| level.eq_ignore_ascii_case(text))
    };
    let directive = |text: &str| match text.rsplit_once('=') {
        Some((target, part)) => !target.is_empty() && !target.contains(char::is_whitespace) && level(part),
        None => level(text),
    };
    text.split(',').map(str::trim).all(directive)
}
