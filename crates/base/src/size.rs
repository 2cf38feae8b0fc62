//! Sizes as people type and read them.

use crate::{Kind, Kinded};

/// Text that is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a size: a number with an optional unit b, k, m, g, t or p is expected (512m)")]
pub struct SizeError(String);

impl Kinded for SizeError {
    fn kind(&self) -> Kind {
        Kind::InvalidArgument
    }
}

/// Bytes from `64`, `64b`, `64k`, `1.5g`, `64KB`, `64KiB`: powers of 1024 whatever the spelling,
/// as Docker reads `--memory`.
pub fn parse_bytes(text: &str) -> Result<u64, SizeError> {
    let wrong = || SizeError(text.to_owned());
    let lower = text.trim().to_ascii_lowercase();
    let split = lower.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(lower.len());
    let (number, unit) = lower.split_at(split);
    let shift = match unit.trim() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        "p" | "pb" | "pib" => 50,
        _ => return Err(wrong()),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(1 << shift).ok_or_else(wrong);
    }
    let fraction: f64 = number.parse().map_err(|_| wrong())?;
    let bytes = fraction * (1u64 << shift) as f64;
    // Past 2^63 a double no longer holds the bytes exactly, and no such size is meant.
    if bytes.is_finite() && (0.0..9.2e18).contains(&bytes) { Ok(bytes as u64) } else { Err(wrong()) }
}

/// `4.26MB`, `117kB`, `0B`: powers of 1000 and three significant digits at most, as `docker images`
/// prints sizes.
#[must_use]
pub fn format_decimal(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit < UNITS.len() - 1 {
        value /= 1000.0;
        unit += 1;
    }
    format!("{}{}", significant(value, 3), UNITS[unit])
}

/// Go's `%.3g` for values from 0 to 1000.
fn significant(value: f64, digits: usize) -> String {
    let whole_digits = if value >= 100.0 {
        3
    } else if value >= 10.0 {
        2
    } else {
        1
    };
    let text = format!("{value:.*}", digits - whole_digits);
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_powers_of_1024() {
        assert_eq!(parse_bytes("64"), Ok(64));
        assert_eq!(parse_bytes("64K"), Ok(65536));
        assert_eq!(parse_bytes("1.5g"), Ok(1_610_612_736));
        assert_eq!(parse_bytes("10MiB"), Ok(10 << 20));
        for bad in ["", "m", "1x", "-1", "1.2.3", "99999999999p", "nan"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_read_as_docker_prints_them() {
        assert_eq!(format_decimal(0), "0B");
        assert_eq!(format_decimal(999), "999B");
        assert_eq!(format_decimal(4_261_550), "4.26MB");
        assert_eq!(format_decimal(117_000), "117kB");
        assert_eq!(format_decimal(77_800_000), "77.8MB");
    }
}
