//! Signals by name and number.

use crate::{Error, Result};

pub(crate) const KILL: i32 = 9;
pub(crate) const TERM: i32 = 15;
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// Linux on every architecture but MIPS and such; signal(7).
const NAMES: [(&str, i32); 36] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", KILL),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", TERM),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
    ("RTMIN", RTMIN),
    ("RTMAX", RTMAX),
];

/// `TERM`, `SIGTERM`, `sigterm`, `15`, `RTMIN+3`, `SIGRTMAX-1`.
pub(crate) fn parse(text: &str) -> Result<i32> {
    let wrong = || Error::InvalidArgument(format!("invalid signal: {text}"));
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=RTMAX).contains(&number) { Ok(number) } else { Err(wrong()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Ok(*number);
    }
    let offset = |rest: &str| rest.parse::<i32>().ok();
    let number = match (name.strip_prefix("RTMIN+"), name.strip_prefix("RTMAX-")) {
        (Some(rest), _) => offset(rest).map(|offset| RTMIN.saturating_add(offset)),
        (_, Some(rest)) => offset(rest).map(|offset| RTMAX.saturating_sub(offset)),
        _ => None,
    };
    number.filter(|number| (RTMIN..=RTMAX).contains(number)).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_many_spellings() {
        for (text, number) in
            [("TERM", 15), ("SIGTERM", 15), ("sigkill", 9), ("9", 9), ("RTMIN+3", 37), ("SIGRTMAX-1", 63)]
        {
            assert_eq!(parse(text).unwrap(), number, "{text}");
        }
        for text in ["", "0", "65", "-9", "SIG", "NOPE", "RTMIN+40", "RTMIN+x"] {
            assert_eq!(parse(text).unwrap_err().to_string(), format!("invalid signal: {text}"));
        }
    }
}
