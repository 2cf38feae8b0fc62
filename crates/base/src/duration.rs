//! Durations as Go's programs write and read them, and so Docker's users.

use crate::{Kind, Kinded};

const SECOND: i128 = 1_000_000_000;

/// Text that is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a duration: numbers with the units h, m, s, ms, us or ns are expected (1m30s)")]
pub struct DurationError(String);

impl Kinded for DurationError {
    fn kind(&self) -> Kind {
        Kind::InvalidArgument
    }
}

/// Nanoseconds of `1h30m`, `1.5s`, `-300ms`, `0`, as Go's `time.ParseDuration` reads them.
pub fn parse_duration(text: &str) -> Result<i64, DurationError> {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let total = if unsigned == "0" { Some(0) } else { sum(unsigned) };
    let signed = total.map(|total| if text.starts_with('-') { -total } else { total });
    signed.and_then(|total| i64::try_from(total).ok()).ok_or_else(|| DurationError(text.to_owned()))
}

fn sum(text: &str) -> Option<i128> {
    let (mut total, mut rest) = (0i128, text);
    loop {
        let end = rest.find(|sign: char| !sign.is_ascii_digit() && sign != '.')?;
        let (number, after) = rest.split_at(end);
        let end = after.find(|sign: char| sign.is_ascii_digit() || sign == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        total = total.checked_add(scaled(number, nanoseconds_in(unit)?)?)?;
        if after.is_empty() {
            return Some(total);
        }
        rest = after;
    }
}

fn nanoseconds_in(unit: &str) -> Option<i128> {
    Some(match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1000,
        "ms" => 1_000_000,
        "s" => SECOND,
        "m" => 60 * SECOND,
        "h" => 3600 * SECOND,
        _ => return None,
    })
}

/// A decimal number times `unit`; what is less than a nanosecond falls away.
fn scaled(number: &str, unit: i128) -> Option<i128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    // Hours have 3.6e12 nanoseconds: digits past the fifteenth say nothing.
    let fraction = fraction.get(..fraction.len().min(15))?;
    let part: i128 = if fraction.is_empty() { 0 } else { i128::from(fraction.parse::<u64>().ok()?) };
    Some(i128::from(whole) * unit + part * unit / 10i128.pow(u32::try_from(fraction.len()).ok()?))
}

/// `1m30s`, `1.5s`, `500ms`, `0s`, as Go prints a duration.
#[must_use]
pub fn format_duration(span: std::time::Duration) -> String {
    let (seconds, nanos) = (span.as_secs(), span.subsec_nanos());
    match seconds {
        0 if nanos == 0 => "0s".to_owned(),
        0 if nanos < 1000 => format!("{nanos}ns"),
        0 if nanos < 1_000_000 => format!("{}µs", decimal(u64::from(nanos / 1000), nanos % 1000, 3)),
        0 => format!("{}ms", decimal(u64::from(nanos / 1_000_000), nanos % 1_000_000, 6)),
        1..60 => format!("{}s", decimal(seconds, nanos, 9)),
        60..3600 => format!("{}m{}s", seconds / 60, decimal(seconds % 60, nanos, 9)),
        _ => format!("{}h{}m{}s", seconds / 3600, seconds / 60 % 60, decimal(seconds % 60, nanos, 9)),
    }
}

fn decimal(whole: u64, fraction: u32, digits: usize) -> String {
    let fraction = format!("{fraction:0digits$}");
    let fraction = fraction.trim_end_matches('0');
    if fraction.is_empty() { whole.to_string() } else { format!("{whole}.{fraction}") }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, nanoseconds) in [
            ("0", 0),
            ("-0", 0),
            ("1ns", 1),
            ("1.5us", 1500),
            ("2µs", 2000),
            ("300ms", 300_000_000),
            ("1m30s", 90_000_000_000),
            ("1h2m3.000000004s", 3_723_000_000_004),
            (".5s", 500_000_000),
            ("5.s", 5_000_000_000),
            ("+1s", 1_000_000_000),
            ("-1.5h", -5_400_000_000_000),
            ("1.00000000000000000000000001s", 1_000_000_000),
        ] {
            assert_eq!(parse_duration(text), Ok(nanoseconds), "{text}");
        }
    }

    #[test]
    fn what_go_refuses_is_refused() {
        let endless = "9".repeat(400) + "h";
        for bad in ["", "-", "1", "s", "1x", "1s2", ".s", "1..2s", "--1s", "1 s", "3000000h", &endless] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_are_printed_as_go_prints_them() {
        for (nanoseconds, text) in [
            (0, "0s"),
            (7, "7ns"),
            (1500, "1.5µs"),
            (500_000_000, "500ms"),
            (1_500_000_000, "1.5s"),
            (90_000_000_000, "1m30s"),
            (3_600_000_000_000, "1h0m0s"),
        ] {
            assert_eq!(format_duration(Duration::from_nanos(nanoseconds)), text);
            assert_eq!(parse_duration(text), Ok(nanoseconds as i64), "{text}");
        }
    }
}
