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

/// `no`, `always`, `unless-stopped`, `on-failure[:N]`.
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
            bail!("invalid restart policy: maximum retry count can only be used with 'on-failure': {text}")
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
}
