//! `--ulimit`, `--cpus`, `--restart`, `--memory-swap`.

use anyhow::{Context as _, bail};
use insula_models::{RestartPolicy, Ulimit};

use crate::usage::bad_flag;

/// `NAME=SOFT[:HARD]`; -1 is unlimited.
pub(crate) fn ulimit(text: &str) -> anyhow::Result<Ulimit> {
    const NAMES: [&str; 15] = [
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ];
    let wrong = |why: String| bad_flag("--ulimit", text, why);
    let Some((name, value)) = text.split_once('=') else {
        return Err(wrong("invalid ulimit argument: NAME=SOFT[:HARD] is expected".to_owned()));
    };
    if !NAMES.contains(&name) {
        return Err(wrong(format!("invalid ulimit type: {name}: one of {} is expected", NAMES.join(", "))));
    }
    let number = |text: &str| match text.parse::<i64>() {
        Ok(number) if number >= -1 => Ok(number),
        _ => Err(wrong(format!("{text:?} is not a number from -1 on"))),
    };
    let (soft, hard) = match value.split_once(':') {
        Some((soft, hard)) => (number(soft)?, number(hard)?),
        None => (number(value)?, number(value)?),
    };
    if hard != -1 && (soft == -1 || soft > hard) {
        return Err(wrong(format!(
            "ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}"
        )));
    }
    Ok(Ulimit { name: name.to_owned(), soft, hard })
}

/// Bits a second, in tc's units: `10mbit`, `1.5gbit`; a plain number is bits.
pub(crate) fn network_rate(text: &str) -> anyhow::Result<i64> {
    const UNITS: [(&str, i64); 5] = [
        ("tbit", 1_000_000_000_000),
        ("gbit", 1_000_000_000),
        ("mbit", 1_000_000),
        ("kbit", 1_000),
        ("bit", 1),
    ];
    const LEAST: i64 = 8_000;
    const MOST: i64 = 1_000_000_000_000;
    let wrong = || bad_flag("--network-rate", text, "8kbit to 1tbit is expected, as in 10mbit");
    let lower = text.to_ascii_lowercase();
    let (number, unit) =
        UNITS.iter().find_map(|(name, unit)| Some((lower.strip_suffix(name)?, *unit))).unwrap_or((&lower, 1));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.len() <= 15 && text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 3 {
        return Err(wrong());
    }
    // Thousandths of the unit.
    let thousandths: i64 = format!("{whole}{fraction:0<3}").parse().map_err(|_| wrong())?;
    let bits = i128::from(thousandths) * i128::from(unit) / 1000;
    i64::try_from(bits).ok().filter(|bits| (LEAST..=MOST).contains(bits)).ok_or_else(wrong)
}

/// Billionths of a CPU.
pub(crate) fn cpus(text: &str) -> anyhow::Result<i64> {
    let wrong = || bad_flag("--cpus", text, "it is not a number of CPUs (1.5)");
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || (whole.is_empty() && fraction.is_empty()) {
        return Err(wrong());
    }
    if fraction.trim_end_matches('0').len() > 9 {
        return Err(bad_flag("--cpus", text, "it is finer than a billionth"));
    }
    let number = |text: &str| text.parse::<i64>().map_err(|_| wrong());
    let whole = if whole.is_empty() { 0 } else { number(whole)? };
    let billionths = number(&format!("{:0<9}", &fraction[..fraction.len().min(9)]))?;
    whole.checked_mul(1_000_000_000).and_then(|whole| whole.checked_add(billionths)).ok_or_else(wrong)
}

/// Bytes, or -1 for unlimited.
pub(crate) fn memory_swap(text: &str) -> anyhow::Result<i64> {
    if text == "-1" { Ok(-1) } else { super::bytes("memory-swap", text) }
}

/// `no`, `always`, `unless-stopped`, `on-failure[:N]`, `unhealthy[:N]`.
pub(crate) fn restart(text: &str) -> anyhow::Result<RestartPolicy> {
    let (name, count) = text.split_once(':').map_or((text, None), |(name, count)| (name, Some(count)));
    let maximum_retry_count = match (name, count) {
        ("on-failure" | "unhealthy", Some(count)) => {
            count.parse().ok().filter(|count| *count >= 0).with_context(|| {
                format!(
                    "invalid restart policy format: maximum retry count must be an integer, not {count:?}"
                )
            })?
        }
        ("no" | "always" | "unless-stopped" | "on-failure" | "unhealthy", None) => 0,
        ("no" | "always" | "unless-stopped", Some(_)) => {
            bail!(
                "invalid restart policy: maximum retry count can only be used with 'on-failure' and 'unhealthy': {text}"
            )
        }
        _ => bail!(
            "invalid restart policy: unknown policy '{text}'; use one of 'no', 'always', 'on-failure', 'unhealthy' or 'unless-stopped'"
        ),
    };
    Ok(RestartPolicy { name: name.to_owned(), maximum_retry_count })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ulimits() {
        assert_eq!(
            ulimit("nofile=1024:2048").unwrap(),
            Ulimit { name: "nofile".to_owned(), soft: 1024, hard: 2048 }
        );
        assert_eq!(ulimit("core=-1").unwrap().hard, -1);
        for bad in ["nofile", "what=1", "nofile=2:1", "nofile=x", "nofile=-2", "nofile=-1:5", "nofile="] {
            assert!(ulimit(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn cpu_counts() {
        assert_eq!(cpus("1.5").unwrap(), 1_500_000_000);
        assert_eq!(cpus(".25").unwrap(), 250_000_000);
        assert_eq!(cpus("2").unwrap(), 2_000_000_000);
        for bad in ["", ".", "-1", "x", "1e3", "0.0000000001", "99999999999999999999"] {
            assert!(cpus(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn restart_policies() {
        assert_eq!(restart("on-failure:3").unwrap().maximum_retry_count, 3);
        assert_eq!(restart("unhealthy:2").unwrap().maximum_retry_count, 2);
        assert_eq!(restart("always").unwrap().name, "always");
        for bad in ["", "sometimes", "always:3", "on-failure:x", "on-failure:-1"] {
            assert!(restart(bad).is_err(), "{bad}");
        }
        assert_eq!(memory_swap("-1").unwrap(), -1);
        assert_eq!(memory_swap("1g").unwrap(), 1 << 30);
    }

    #[test]
    fn rates_are_bits_a_second() {
        for (text, bits) in [
            ("10mbit", 10_000_000),
            ("1.5Gbit", 1_500_000_000),
            ("8kbit", 8000),
            ("9000", 9000),
            ("9000bit", 9000),
        ] {
            assert_eq!(network_rate(text).unwrap(), bits, "{text}");
        }
        for text in [
            "",
            "mbit",
            "1",
            "7kbit",
            "2tbit",
            "10mb",
            "-1",
            "1e6",
            "1.2345mbit",
            "1.mbit ",
            "9999999999999999tbit",
        ] {
            assert!(network_rate(text).is_err(), "{text}");
        }
    }
}
