//! Exact decimal numbers: amounts are added and rounded as accountants do, never through binary fractions.

use std::fmt::Write as _;

/// The most digits after the mark.
const MAX_SCALE: u32 = 18;
/// The most digits altogether: what fits into the whole number behind a [`Decimal`].
const MAX_DIGITS: usize = 36;

/// A number as so many units of `10^-scale`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Decimal {
    units: i128,
    scale: u32,
}

impl Decimal {
    /// Zero.
    pub(crate) const ZERO: Self = Self { units: 0, scale: 0 };

    /// Reads `-1663.15` or `-1663,15`: one mark at most, no grouping, no exponent.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let (negative, digits) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        let (whole, fraction) = digits.split_once(['.', ',']).unwrap_or((digits, ""));
        let plain = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        let has_mark = digits.contains(['.', ',']);
        if whole.is_empty() || !plain(whole) || !plain(fraction) || (has_mark && fraction.is_empty()) {
            return None;
        }
        let scale = u32::try_from(fraction.len()).ok().filter(|scale| *scale <= MAX_SCALE)?;
        if whole.trim_start_matches('0').len() + fraction.len() > MAX_DIGITS {
            return None;
        }
        let units: i128 = format!("{whole}{fraction}").parse().ok()?;
        Some(Self { units: if negative { -units } else { units }, scale })
    }

    /// The sum, unless it has more digits than can be kept.
    pub(crate) fn plus(self, other: Self) -> Option<Self> {
        let scale = self.scale.max(other.scale);
        let units = self.at(scale)?.checked_add(other.at(scale)?)?;
        Some(Self { units, scale })
    }

    fn at(self, scale: u32) -> Option<i128> {
        self.units.checked_mul(10_i128.checked_pow(scale.checked_sub(self.scale)?)?)
    }

    /// Rounded to so many places, half away from zero, as invoices are.
    pub(crate) fn rounded(self, places: u32) -> Option<Self> {
        if places > MAX_SCALE {
            return None;
        }
        if places >= self.scale {
            return Some(Self { units: self.at(places)?, scale: places });
        }
        let unit = 10_i128.checked_pow(self.scale - places)?;
        let (whole, rest) = (self.units / unit, self.units % unit);
        let up = i128::from(rest.unsigned_abs() * 2 >= unit.unsigned_abs()) * rest.signum();
        Some(Self { units: whole + up, scale: places })
    }

    /// As text with this mark; `group` stands between thousands.
    pub(crate) fn text(self, mark: char, group: &str) -> String {
        let scale = usize::try_from(self.scale).unwrap_or_default();
        let digits = format!("{:0>width$}", self.units.unsigned_abs(), width = scale + 1);
        let (whole, fraction) = digits.split_at(digits.len() - scale);
        let mut text = String::new();
        if self.units < 0 {
            text.push('-');
        }
        for (index, digit) in whole.chars().enumerate() {
            if index > 0 && (whole.len() - index).is_multiple_of(3) {
                text.push_str(group);
            }
            text.push(digit);
        }
        if !fraction.is_empty() {
            // Writing to a string cannot fail.
            let _ = write!(text, "{mark}{fraction}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::Decimal;

    fn told(text: &str, places: u32) -> Option<String> {
        Some(Decimal::parse(text)?.rounded(places)?.text(',', ""))
    }

    #[test]
    fn amounts_are_rounded_half_away_from_zero_and_never_through_fractions_of_two() {
        for (text, places, expected) in [
            ("1663.15", 2, "1663,15"),
            ("1663,15", 2, "1663,15"),
            ("2.675", 2, "2,68"),
            ("-2.675", 2, "-2,68"),
            ("2.674999", 2, "2,67"),
            ("0.5", 0, "1"),
            ("-0.4", 0, "0"),
            ("7", 2, "7,00"),
            ("+7", 0, "7"),
            ("0.004", 2, "0,00"),
            ("000123", 1, "123,0"),
            ("999999999999999999.999", 2, "1000000000000000000,00"),
        ] {
            assert_eq!(told(text, places).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_plain_number_is_refused() {
        for text in [
            "",
            "-",
            ".5",
            "5.",
            "1.2.3",
            "1 000",
            "1e9",
            "NaN",
            "12,5 €",
            "--1",
            "1234567890123456789012345678901234567",
        ] {
            assert!(Decimal::parse(text).is_none(), "{text:?}");
        }
        assert!(Decimal::parse("0.1234567890123456789").is_none());
    }

    #[test]
    fn sums_are_exact_and_thousands_can_be_grouped() {
        let mut sum = Decimal::ZERO;
        for _ in 0..1000 {
            sum = sum.plus(Decimal::parse("1234.1").unwrap()).unwrap();
        }
        assert_eq!(sum.rounded(2).unwrap().text(',', "\u{202f}"), "1\u{202f}234\u{202f}100,00");
        let most = Decimal::parse("999999999999999999999999999999999999").unwrap();
        assert!(most.rounded(18).is_none(), "does not fit");
    }
}
