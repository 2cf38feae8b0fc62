//! Times as people read them.

use std::time::{SystemTime, UNIX_EPOCH};

use insula_base::parse_duration;

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().cast_signed())
}

/// `2 minutes`, `About an hour`.
pub(crate) fn duration(seconds: i64) -> String {
    // Hours are rounded, as Docker rounds them.
    let hours = (seconds + 1800) / 3600;
    match seconds {
        ..1 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".to_owned(),
        120..3600 if hours < 1 || seconds < 3600 => format!("{} minutes", seconds / 60),
        _ if hours == 1 => "About an hour".to_owned(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        _ if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", seconds / 3600 / 24 / 365),
    }
}

/// `2 minutes ago`.
pub(crate) fn ago(created: i64, now: i64) -> String {
    format!("{} ago", duration(now - created))
}

/// `2026-11-21 02:50:00 +0000 UTC`, as Go prints a time, in the local time zone.
pub(crate) fn local(created: i64) -> String {
    jiff::Timestamp::from_second(created).map_or_else(
        |_| String::new(),
        |time| time.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S %z %Z").to_string(),
    )
}

/// `2026-11-21T02:50:00Z`, in the local time zone.
pub(crate) fn rfc3339(created: i64) -> String {
    let time = jiff::Timestamp::from_second(created).unwrap_or_default();
    let text = time.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string();
    text.strip_suffix("+00:00").map_or(text.clone(), |text| format!("{text}Z"))
}

/// Unix time of a moment given as RFC 3339, as Unix seconds, or as an age (`10m`, `1h30m`), in the
/// form in which the API takes it.
pub(crate) fn moment(text: &str) -> anyhow::Result<String> {
    if text.is_empty() || text.parse::<f64>().is_ok_and(|number| number.is_finite() && number >= 0.0) {
        return Ok(text.to_owned());
    }
    if let Ok(nanoseconds) = parse_duration(text) {
        let then = jiff::Timestamp::now().as_nanosecond() - i128::from(nanoseconds);
        return Ok(unix(then));
    }
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Ok(unix(time.as_nanosecond()));
    }
    let spaced = text.replace('Z', "");
    if let Ok(time) = spaced.parse::<jiff::civil::DateTime>()
        && let Ok(zoned) = time.to_zoned(jiff::tz::TimeZone::system())
    {
        return Ok(unix(zoned.timestamp().as_nanosecond()));
    }
    anyhow::bail!(
        "failed to parse value as time or duration: {text:?}: an age (10m), RFC 3339 (2026-01-02T15:04:05Z) or \
         Unix seconds is expected"
    )
}

fn unix(nanoseconds: i128) -> String {
    format!("{}.{:09}", nanoseconds.div_euclid(1_000_000_000), nanoseconds.rem_euclid(1_000_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_dockers() {
        let cases = [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (150, "2 minutes"),
            (3599, "59 minutes"),
            (3600, "About an hour"),
            (7200, "2 hours"),
            (47 * 3600, "47 hours"),
            (3 * 86400, "3 days"),
            (15 * 86400, "2 weeks"),
            (70 * 86400, "2 months"),
            (800 * 86400, "2 years"),
        ];
        for (seconds, text) in cases {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn moments_in_every_spelling() {
        assert_eq!(moment("1700000000.5").unwrap(), "1700000000.5");
        assert_eq!(moment("2023-11-14T22:13:20Z").unwrap(), "1700000000.000000000");
        assert_eq!(moment("").unwrap(), "");
        let then: f64 = moment("10m").unwrap().parse().unwrap();
        assert!((now() as f64 - then - 600.0).abs() < 5.0);
        assert!(moment("yesterday").unwrap_err().to_string().contains("yesterday"));
    }
}
