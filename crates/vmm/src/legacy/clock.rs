//! The real-time clock (MC146818) and its memory. A guest that finds none polls it for tens of
//! thousands of exits; one that finds it reads the time and goes on.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::bus::Registers;

const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;

#[derive(Debug, Default)]
pub(super) struct Cmos {
    index: u8,
}

impl Registers for Cmos {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let value = if offset == 1 {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
            register(self.index, now.as_secs())
        } else {
            0xff
        };
        data.fill(value);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (0, Some(index)) = (offset, data.first()) {
            // The highest bit masks the non-maskable interrupt.
            self.index = index & 0x7f;
        }
    }
}

/// What a register says at `now`, in seconds since 1970.
fn register(index: u8, now: u64) -> u8 {
    let (seconds_of_day, days) = (now % 86_400, now / 86_400);
    let (year, month, day) = date(days);
    match index {
        0 => decimal(seconds_of_day % 60),
        2 => decimal(seconds_of_day / 60 % 60),
        4 => decimal(seconds_of_day / 3600),
        // 1970 began on a Thursday; Sunday is 1.
        6 => decimal((days + 4) % 7 + 1),
        7 => decimal(day),
        8 => decimal(month),
        9 => decimal(year % 100),
        CENTURY => decimal(year / 100),
        // The usual divider, and no update going on.
        STATUS_A => 0x26,
        // 24 hours, binary-coded decimal.
        STATUS_B => 0x02,
        // The battery is good.
        STATUS_D => 0x80,
        _ => 0,
    }
}

/// Two digits, one a nibble.
fn decimal(value: u64) -> u8 {
    (value / 10 % 10 * 16 + value % 10) as u8
}

/// Year, month and day of the month of the Gregorian calendar, `days` after 1970 began.
fn date(days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    // A cycle of 400 years has 146,097 days.
    let (mut year, mut rest) = (1970 + days / 146_097 * 400, days % 146_097);
    while rest >= 365 + u64::from(leap(year)) {
        rest -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if rest < length {
            break;
        }
        rest -= length;
        month += 1;
    }
    (year, month, rest + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_told_in_decimal_digits() {
        // 2024-02-29 23:58:07, a Thursday.
        let now = 1_709_251_087;
        let read = |index| register(index, now);
        assert_eq!(
            [0, 2, 4, 6, 7, 8, 9, CENTURY].map(read),
            [0x07, 0x58, 0x23, 0x05, 0x29, 0x02, 0x24, 0x20]
        );
        assert_eq!(read(STATUS_A) & 0x80, 0, "an update is never under way");
    }

    #[test]
    fn dates_at_the_edges() {
        assert_eq!(date(0), (1970, 1, 1));
        assert_eq!(date(364), (1970, 12, 31));
        assert_eq!(date(11_016), (2000, 2, 29));
        assert_eq!(date(47_540), (2100, 2, 28));
        assert_eq!(date(47_541), (2100, 3, 1));
    }
}
