//! Signals by name: signal(7), x86-64 and AArch64.

/// In the order of their numbers, from 1 on.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
const LAST: i32 = 64;
const RTMIN: i32 = 34;

/// `TERM`, `SIGTERM`, `15`, `RTMIN+3`.
#[must_use]
pub fn number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (0..=LAST).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(rest) = name.strip_prefix("RTMIN") {
        let more = if rest.is_empty() { 0 } else { rest.strip_prefix('+')?.parse::<u8>().ok()? };
        return Some(RTMIN + i32::from(more)).filter(|number| *number <= LAST);
    }
    (1..).zip(NAMES).find(|(_, known)| *known == name).map(|(number, _)| number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        let found = ["TERM", "sigkill", "15", "RTMIN+3", "SIGSYS", "0"].map(number);
        assert_eq!(found, [Some(15), Some(9), Some(15), Some(37), Some(31), Some(0)]);
        assert!(["", "65", "-1", "FOO", "RTMIN+31", "RTMIN3"].iter().all(|text| number(text).is_none()));
    }
}
