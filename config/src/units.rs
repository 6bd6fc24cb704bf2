//! Sizes (`"64MiB"`) and durations (`"30s"`).

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{borrow::Cow, fmt, time::Duration};

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

const SIZE: &str = "a size such as \"512KiB\", \"64MiB\" or \"2GiB\"";
const UNITS: [(&str, u64); 5] =
    [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];

impl TryFrom<String> for ByteSize {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let text = text.trim();
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim_start();
        UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .and_then(|(_, bytes)| number.parse::<u64>().ok()?.checked_mul(*bytes))
            .map(Self)
            .ok_or_else(|| format!("expected {SIZE} (whole numbers of B, KiB, MiB, GiB, TiB)"))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |(_, bytes): &&(&str, u64)| self.0.is_multiple_of(*bytes) && self.0 >= *bytes;
        let (name, bytes) = UNITS.iter().rev().find(whole).unwrap_or(&UNITS[0]);
        write!(f, "{}{name}", self.0 / bytes)
    }
}

/// A duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HumanDuration(pub Duration);

const DURATION: &str = "a duration such as \"500ms\", \"30s\", \"5m\" or \"1h30m\"";

/// A period after which a key is replaced; `None`: never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyRotation(pub Option<Duration>);

const ROTATION: &str = "a duration such as \"7d\" or \"12h\", or \"off\"";

impl TryFrom<String> for KeyRotation {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        if text.trim() == "off" {
            return Ok(Self(None));
        }
        parse(&text).map(Some).map(Self).ok_or_else(|| format!("expected {ROTATION}"))
    }
}

impl<'de> Deserialize<'de> for KeyRotation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text(ROTATION))?.try_into().map_err(de::Error::custom)
    }
}

impl JsonSchema for KeyRotation {
    fn schema_name() -> Cow<'static, str> {
        "KeyRotation".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "description": ROTATION, "examples": ["7d", "off"] })
    }
}

/// Units that no duration has of itself, because days differ in length where clocks change: here a day has 24 hours.
const DAYS: [(char, u64); 2] = [('w', 7 * 24 * 3600), ('d', 24 * 3600)];

impl TryFrom<String> for HumanDuration {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        parse(&text).map(Self).ok_or_else(|| format!("expected {DURATION}"))
    }
}

/// Weeks and days, if any, before the rest.
fn parse(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut days = Duration::ZERO;
    for (unit, seconds) in DAYS {
        if let Some((number, after)) = rest.split_once(unit)
            && let Ok(number) = number.parse::<u32>()
        {
            days = days.checked_add(Duration::from_secs(u64::from(number) * seconds))?;
            rest = after.trim_start();
        }
    }
    if rest.is_empty() && !days.is_zero() {
        return Some(days);
    }
    days.checked_add(Duration::try_from(rest.parse::<jiff::SignedDuration>().ok()?).ok()?)
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::SignedDuration::try_from(self.0) {
            Ok(duration) => write!(f, "{duration:#}"),
            Err(_) => write!(f, "{}s", self.0.as_secs()),
        }
    }
}

/// Reads a text, and says what it is for when it is none.
struct Text(&'static str);

impl de::Visitor<'_> for Text {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text(SIZE))?.try_into().map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text(DURATION))?.try_into().map_err(de::Error::custom)
    }
}

/// As it is written, for the defaults of schemas.
impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// As it is written, for the defaults of schemas.
impl Serialize for HumanDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for ByteSize {
    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9]+ *(B|KiB|MiB|GiB|TiB)$", "examples": ["64MiB"] })
    }
}

impl JsonSchema for HumanDuration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "description": DURATION, "examples": ["30s"] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_whole_numbers_of_binary_units() {
        let size = |text: &str| ByteSize::try_from(text.to_owned()).ok().map(|size| size.0);
        assert_eq!(size("0B"), Some(0));
        assert_eq!(size("64MiB"), Some(64 << 20));
        assert_eq!(size("2 GiB"), Some(2 << 30));
        assert_eq!(size("1TiB"), Some(1 << 40));
        for bad in [
            "",
            "64",
            "MiB",
            "64MB",
            "64mib",
            "-1B",
            "1.5GiB",
            "64 Mi B",
            "99999999TiB",
            "9".repeat(30).as_str(),
        ] {
            assert_eq!(size(bad), None, "{bad}");
        }
        for (bytes, text) in
            [(0, "0B"), (1023, "1023B"), (1024, "1KiB"), (3 << 30, "3GiB"), (1 << 40, "1TiB")]
        {
            assert_eq!(ByteSize(bytes).to_string(), text);
            assert_eq!(size(text), Some(bytes));
        }
    }

    #[test]
    fn a_key_is_kept_for_a_time_or_for_ever() {
        let period = |text: &str| KeyRotation::try_from(text.to_owned()).ok().map(|period| period.0);
        assert_eq!(period("off"), Some(None));
        assert_eq!(period("7d"), Some(Some(Duration::from_secs(7 * 86_400))));
        assert_eq!(period("never"), None);
        assert_eq!(period("30"), None);
    }

    #[test]
    fn durations_need_a_unit_and_are_not_negative() {
        let duration = |text: &str| HumanDuration::try_from(text.to_owned()).ok().map(|d| d.0);
        assert_eq!(duration("500ms"), Some(Duration::from_millis(500)));
        let hours = |hours: u64| Some(Duration::from_secs(hours * 3600));
        assert_eq!(
            (duration("7d"), duration("1d12h"), duration("2w 1d")),
            (hours(168), hours(36), hours(360))
        );
        assert_eq!(duration("30s"), Some(Duration::from_secs(30)));
        assert_eq!(duration("1h30m"), Some(Duration::from_secs(5400)));
        assert_eq!(duration("0s"), Some(Duration::ZERO));
        for bad in ["", "30", "s", "-1s", "30 parsecs", "99999999999999999999s"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
        for text in ["500ms", "30s", "1h30m"] {
            let shown = HumanDuration(duration(text).unwrap()).to_string();
            assert_eq!(duration(&shown), duration(text), "{shown}");
        }
    }
}
