//! The header `Server-Timing` (W3C Server Timing, section 3.1): what an answer's time went into, on a daemon's
//! answers to the creation and the start of a container.

use std::borrow::Cow;
use std::time::Duration;

use insula_base::Lap;

/// The header's name.
pub const SERVER_TIMING: &str = "server-timing";

/// Parts that are read of a header; a daemon sends some twenty.
const MOST: usize = 100;

/// `image;dur=0.031, row;dur=0.412`: milliseconds.
#[must_use]
pub fn write_timing(laps: &[Lap]) -> String {
    let texts: Vec<String> =
        laps.iter().map(|lap| format!("{};dur={:.3}", lap.name, lap.took.as_secs_f64() * 1000.0)).collect();
    texts.join(", ")
}

/// The parts of a header; what is no duration is passed over.
#[must_use]
pub fn read_timing(header: &str) -> Vec<Lap> {
    header.split(',').take(MOST).filter_map(lap).collect()
}

fn lap(text: &str) -> Option<Lap> {
    let (name, parameters) = text.trim().split_once(';')?;
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if name.is_empty() || !name.bytes().all(is_token) {
        return None;
    }
    let milliseconds = parameters.split(';').find_map(|parameter| parameter.trim().strip_prefix("dur="))?;
    let seconds = milliseconds.parse::<f64>().ok()? / 1000.0;
    Some(Lap { name: Cow::Owned(name.to_owned()), took: Duration::try_from_secs_f64(seconds).ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let lap = |name: &'static str, micros| Lap { name: name.into(), took: Duration::from_micros(micros) };
        let laps = [lap("image", 31), lap("control-group", 1_412_000)];
        assert_eq!(write_timing(&laps), "image;dur=0.031, control-group;dur=1412.000");
        assert_eq!(read_timing(&write_timing(&laps)), laps);
    }

    #[test]
    fn what_others_write_does_no_harm() {
        assert_eq!(
            read_timing("cache;desc=\"x\";dur=2 , ;dur=1, a b;dur=1, miss, x;dur=-1, y;dur=nan, z;dur=1e300")
                .len(),
            1
        );
        assert_eq!(read_timing(&"a;dur=1,".repeat(1000)).len(), MOST);
    }
}
