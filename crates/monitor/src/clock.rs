//! Wall-clock time: nanoseconds since 1970, and RFC 3339 as Docker's log files write it.

use std::time::{SystemTime, UNIX_EPOCH};

/// Now, in nanoseconds since 1970; a clock before that reads as 0.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// `2026-01-31T08:05:09.012345678`: without the zone, and always nine digits.
pub(crate) fn digits(at: i64) -> String {
    let (seconds, nanos) = (at.div_euclid(1_000_000_000), at.rem_euclid(1_000_000_000));
    let (year, month, day) = civil(seconds.div_euclid(86400));
    let time = seconds.rem_euclid(86400);
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}")
}

/// `2026-01-31T08:05:09.012345678Z`; trailing zeros of the fraction are cut as Go's RFC3339Nano does.
pub(crate) fn rfc3339(at: i64) -> String {
    let mut text = digits(at);
    text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
    text.push('Z');
    text
}

/// RFC 3339 with microseconds, whatever they are.
pub(crate) fn rfc3339_micro(at: i64) -> String {
    let whole = rfc3339(at.div_euclid(1_000_000_000) * 1_000_000_000);
    format!("{}.{:06}Z", whole.trim_end_matches('Z'), at.rem_euclid(1_000_000_000) / 1000)
}

/// `Jan  2 15:04:05`, as RFC 3164 section 4.1.2 has it.
pub(crate) fn stamp(at: i64) -> String {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let seconds = at.div_euclid(1_000_000_000);
    let (_, month, day) = civil(seconds.div_euclid(86400));
    let time = seconds.rem_euclid(86400);
    // A month is 1 to 12.
    let month = MONTHS[(month - 1) as usize % 12];
    format!("{month} {day:>2} {:02}:{:02}:{:02}", time / 3600, time / 60 % 60, time % 60)
}

/// Year, month and day of a day counted from 1970-01-01, proleptic Gregorian calendar. Years are
/// counted from March, so that the leap day is the last one of its year.
fn civil(days: i64) -> (i64, i64, i64) {
    const DAYS_TO_1970: i64 = 719_468; // from 0000-03-01
    const ERA: i64 = 146_097; // days in 400 years
    let days = days + DAYS_TO_1970;
    let era = days.div_euclid(ERA);
    let of_era = days.rem_euclid(ERA);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_as_in_docker_logs() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_400_000_000_000), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_795_219_199_120_000_000), "2026-11-20T23:59:59.12Z");
        assert_eq!(rfc3339(4_102_444_800_000_000_001), "2100-01-01T00:00:00.000000001Z");
    }
}
