//! Kubernetes quantities (`100m`, `1.5Gi`, `2e3`), read exactly.

use std::fmt;

/// An exact amount, counted in billionths of the unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Amount {
    nano: i128,
}

/// A text that is no quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "is not a quantity: a number, then nothing, an exponent such as e3, or one of n u m k M G T P E Ki Mi Gi Ti Pi Ei"
)]
pub struct QuantityError;

const NANO: i128 = 1_000_000_000;
/// What the API caps amounts at, in either direction.
const LIMIT: i128 = i64::MAX as i128 * NANO;
/// 10^37 is the largest power of ten that an `i128` holds with room for a digit.
const DIGITS: usize = 37;

impl Amount {
    /// Zero.
    pub const ZERO: Self = Self { nano: 0 };

    /// In whole units (bytes, cores), rounded away from zero as the API does.
    #[must_use]
    pub fn ceil(self) -> i64 {
        div_away(self.nano, NANO)
    }

    /// In thousandths (millicores), rounded away from zero.
    #[must_use]
    pub fn milli(self) -> i64 {
        div_away(self.nano, NANO / 1000)
    }

    /// Whether it has no part smaller than a unit.
    #[must_use]
    pub fn is_whole(self) -> bool {
        self.nano % NANO == 0
    }

    /// Whether it is below zero.
    #[must_use]
    pub fn is_negative(self) -> bool {
        self.nano < 0
    }

    /// Whether it is zero.
    #[must_use]
    pub fn is_zero(self) -> bool {
        self.nano == 0
    }

    /// The sum; stays at the largest number when it would be more.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self { nano: self.nano.saturating_add(other.nano) }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_whole() {
            write!(f, "{}", self.nano / NANO)
        } else if self.nano % (NANO / 1000) == 0 {
            write!(f, "{}m", self.nano / (NANO / 1000))
        } else {
            write!(f, "{}n", self.nano)
        }
    }
}

impl std::str::FromStr for Amount {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        parse(text)
    }
}

/// Reads a quantity exactly. As in the API, what is smaller than a billionth is rounded away from zero, and what is more
/// than 2^63-1 is that.
///
/// # Errors
/// When it is none.
pub fn parse(text: &str) -> Result<Amount, QuantityError> {
    let (negative, rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(number_end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
        return Err(QuantityError);
    }
    let (shift, exponent) = scale(suffix).ok_or(QuantityError)?;
    let places = i64::try_from(fraction.len()).unwrap_or(i64::MAX);
    let nano = nano(&format!("{whole}{fraction}"), shift, exponent.saturating_sub(places).saturating_add(9));
    Ok(Amount { nano: if negative { -nano } else { nano } })
}

/// A suffix as a power of two and a power of ten.
fn scale(suffix: &str) -> Option<(u32, i64)> {
    Some(match suffix {
        "" => (0, 0),
        "n" => (0, -9),
        "u" => (0, -6),
        "m" => (0, -3),
        "k" => (0, 3),
        "M" => (0, 6),
        "G" => (0, 9),
        "T" => (0, 12),
        "P" => (0, 15),
        "E" => (0, 18),
        "Ki" => (10, 0),
        "Mi" => (20, 0),
        "Gi" => (30, 0),
        "Ti" => (40, 0),
        "Pi" => (50, 0),
        "Ei" => (60, 0),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            let all_digits = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            (0, all_digits.then(|| exponent.parse().ok())??)
        }
    })
}

/// `digits × 2^shift × 10^exponent`, rounded up and capped.
fn nano(digits: &str, shift: u32, exponent: i64) -> i128 {
    let digits = digits.trim_start_matches('0');
    // 2^60 takes 19 of the digits that fit.
    let kept = digits.len().min(if shift == 0 { DIGITS } else { DIGITS - 19 });
    let (head, tail) = digits.split_at(kept);
    let mut value = head.parse::<i128>().unwrap_or(0) << shift;
    let mut exponent = exponent.saturating_add(i64::try_from(tail.len()).unwrap_or(i64::MAX));
    let mut inexact = tail.bytes().any(|b| b != b'0');
    while exponent > 0 && value > 0 && value < LIMIT {
        value = value.saturating_mul(10);
        exponent -= 1;
    }
    while exponent < 0 && value > 0 {
        inexact |= value % 10 != 0;
        value /= 10;
        exponent += 1;
    }
    value.saturating_add(i128::from(inexact)).min(LIMIT)
}

fn div_away(nano: i128, unit: i128) -> i64 {
    let quotient = nano / unit;
    let rounded = if nano % unit == 0 { quotient } else { quotient + nano.signum() };
    i64::try_from(rounded).unwrap_or(if rounded < 0 { i64::MIN } else { i64::MAX })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_form_of_the_api_is_read_exactly() {
        for (text, milli, ceil) in [
            ("0", 0, 0),
            ("1", 1000, 1),
            ("+1", 1000, 1),
            ("-1.5", -1500, -2),
            (".5", 500, 1),
            ("5.", 5000, 5),
            ("100m", 100, 1),
            ("0.1", 100, 1),
            ("1500m", 1500, 2),
            ("100u", 1, 1),
            ("1n", 1, 1),
            ("1k", 1_000_000, 1000),
            ("1.5k", 1_500_000, 1500),
            ("1Ki", 1_024_000, 1024),
            ("1.5Gi", 1_610_612_736_000, 1_610_612_736),
            ("128974848", 128_974_848_000, 128_974_848),
            ("129e6", 129_000_000_000, 129_000_000),
            ("129M", 129_000_000_000, 129_000_000),
            ("128974848000m", 128_974_848_000, 128_974_848),
            ("123Mi", 128_974_848_000, 128_974_848),
            ("2E3", 2_000_000, 2000),
            ("2e+3", 2_000_000, 2000),
            ("25e-1", 2500, 3),
            ("0.0000000001", 1, 1),
            ("00100", 100_000, 100),
            ("1E", i64::MAX, 1_000_000_000_000_000_000),
            ("8Ei", i64::MAX, i64::MAX),
            ("1e999999", i64::MAX, i64::MAX),
            ("-1e999999", i64::MIN, -i64::MAX),
            ("0e999999", 0, 0),
            ("1e-999999", 1, 1),
        ] {
            let amount = parse(text).unwrap_or_else(|error| panic!("{text} {error}"));
            assert_eq!((amount.milli(), amount.ceil()), (milli, ceil), "{text}");
        }
    }

    #[test]
    fn other_texts_are_no_quantities() {
        for text in [
            "", "m", ".", "-", "1.2.3", "1 Gi", "1gi", "1KI", "1K", "1mi", "0x10", "1e", "1e1.5", "1_000",
            "Gi", "1Gi ", "--1", "1e+-3", "NaN", "1é",
        ] {
            assert_eq!(parse(text), Err(QuantityError), "{text}");
        }
    }

    #[test]
    fn forty_digits_do_not_overflow() {
        let long = format!("0.{}", "123456789".repeat(30));
        assert_eq!(parse(&long).map(Amount::milli), Ok(124));
        // 2^60 of them are 142335987070146023: 18 digits are exact.
        let many = parse(&format!("{long}Ei")).map_or(0, Amount::ceil);
        assert!(many.abs_diff(142335987070146023) <= 1, "{many}");
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(value in -1_000_000_000_000_000i64..1_000_000_000_000_000) {
            let amount = parse(&format!("{value}n")).unwrap();
            prop_assert_eq!(parse(&amount.to_string()), Ok(amount));
            prop_assert_eq!(parse(&format!("{value}")).unwrap().ceil(), value);
        }

        #[test]
        fn order_is_that_of_numbers(a in 0i64..1_000_000, b in 0i64..1_000_000) {
            let (left, right) = (parse(&format!("{a}m")).unwrap(), parse(&format!("{b}m")).unwrap());
            prop_assert_eq!(left.cmp(&right), a.cmp(&b));
            prop_assert_eq!(left.plus(right).milli(), a + b);
        }
    }
}
