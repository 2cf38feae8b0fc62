//! `HEALTHCHECK`.

use insula_base::parse_duration;

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
        let parsed = parse_duration(&text).ok().filter(|value| *value == 0 || *value >= 1_000_000);
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
