//! `HEALTHCHECK`.

use super::flags::Flags;
use super::instruction::{Healthcheck, Probe};
use super::read::command;
use super::words;
use crate::{Error, Result};

const FLAGS: [&str; 5] = ["interval", "timeout", "start-period", "start-interval", "retries"];

pub(super) fn read(line: u32, rest: &str, escape: char) -> Result<Healthcheck> {
    let (flags, rest) = Flags::take("HEALTHCHECK", line, rest, escape, &FLAGS)?;
    let duration = |name: &str| -> Result<Option<i64>> {
        let Some(text) = flags.value(name)? else { return Ok(None) };
        let parsed = nanoseconds(&text).filter(|value| *value == 0 || *value >= 1_000_000);
        parsed.map(Some).ok_or_else(|| {
            flags.wrong(name, &format!("{text:?} is not a duration of 1ms at least, as in 1m30s"))
        })
    };
    let retries = match flags.value("retries")? {
        None => None,
        Some(text) => Some(
            text.parse::<i64>()
                .ok()
                .filter(|count| (0..=i64::from(i32::MAX)).contains(count))
                .ok_or_else(|| flags.wrong("retries", &format!("{text:?} is not a number of times")))?,
        ),
    };
    let (kind, rest) = words::keyword(rest);
    let probe = match kind.to_ascii_uppercase().as_str() {
        "NONE" if rest.is_empty() => Probe::None,
        "NONE" => return Err(Error::at(line, "HEALTHCHECK NONE takes no arguments")),
        "CMD" if rest.is_empty() => return Err(Error::at(line, "Missing command after HEALTHCHECK CMD")),
        "CMD" => Probe::Command(command(rest)),
        "" => return Err(Error::at(line, "HEALTHCHECK requires at least one argument")),
        other => {
            return Err(Error::at(
                line,
                format!("Unknown type {other:?} in HEALTHCHECK: CMD or NONE is expected"),
            ));
        }
    };
    Ok(Healthcheck {
        probe,
        interval: duration("interval")?,
        timeout: duration("timeout")?,
        start_period: duration("start-period")?,
        start_interval: duration("start-interval")?,
        retries,
    })
}

/// A duration as Go writes it: `1m30s`.
fn nanoseconds(text: &str) -> Option<i64> {
    const UNITS: [(&str, f64); 6] =
        [("ms", 1e6), ("us", 1e3), ("ns", 1.0), ("h", 3600e9), ("m", 60e9), ("s", 1e9)];
    if text == "0" {
        return Some(0);
    }
    let (mut total, mut rest) = (0f64, text);
    while !rest.is_empty() {
        let end = rest.find(|sign: char| !sign.is_ascii_digit() && sign != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        let (unit, scale) = UNITS.iter().find(|(unit, _)| rest[end..].starts_with(unit))?;
        total += number * scale;
        rest = &rest[end + unit.len()..];
    }
    (!text.is_empty() && total < i64::MAX as f64).then_some(total as i64)
}
