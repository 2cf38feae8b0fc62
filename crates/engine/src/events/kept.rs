//! The last events, for those who ask for the past.
//!
//! As text in one piece: a thousand messages of a dozen small allocations each, made while something large goes on,
//! would hold a page of the heap apiece that could not be given back.

use std::collections::VecDeque;

use insula_models::EventMessage;

/// Events that are kept.
pub(super) const MOST: usize = 1024;
/// Bytes that they may take: labels are users', and may be long.
const MOST_BYTES: usize = 1 << 20;

/// A line of JSON for each, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Kept {
    text: VecDeque<u8>,
    /// Of each its time in nanoseconds since 1970, and the length of its line.
    lines: VecDeque<(i64, usize)>,
}

impl Kept {
    /// Adds the line of an event; the oldest make room.
    pub(super) fn push(&mut self, time_nano: i64, line: &[u8]) {
        while self.lines.len() >= MOST || !self.lines.is_empty() && self.text.len() + line.len() > MOST_BYTES
        {
            let (_, length) = self.lines.pop_front().unwrap_or_default();
            self.text.drain(..length);
        }
        self.text.extend(line);
        self.lines.push_back((time_nano, line.len()));
    }

    /// Those from the first of `since` or later on that are not later than `until`.
    pub(super) fn between(&self, since: i128, until: i128) -> VecDeque<EventMessage> {
        let mut at = 0;
        let mut begun = false;
        let mut found = VecDeque::new();
        for (time, length) in &self.lines {
            let time = i128::from(*time);
            // What follows is later, even where its daemon's clock had been set back.
            begun |= time >= since;
            if begun && time <= until {
                let line: Vec<u8> = self.text.range(at..at + length).copied().collect();
                // It was written here.
                found.extend(serde_json::from_slice::<EventMessage>(&line));
            }
            at += length;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(id: &str) -> Vec<u8> {
        super::super::line(&super::super::message(
            super::super::EventType::Volume,
            "create",
            id,
            [].into(),
            7,
        ))
    }

    fn ids(kept: &Kept, since: i128, until: i128) -> Vec<String> {
        kept.between(since, until).into_iter().map(|event| event.actor.id).collect()
    }

    #[test]
    fn the_oldest_make_room() {
        let mut kept = Kept::default();
        for n in 0..MOST + 2 {
            kept.push(n as i64, &line(&n.to_string()));
        }
        let all = ids(&kept, 0, i128::MAX);
        assert_eq!((all.len(), all[0].as_str(), all[MOST - 1].as_str()), (MOST, "2", "1025"));
        assert_eq!(ids(&kept, 1000, 1002), ["1000", "1001", "1002"]);
        let long = "x".repeat(MOST_BYTES / 3);
        (0..4).for_each(|n| kept.push(5000 + n, &line(&long)));
        assert_eq!(kept.lines.len(), 2);
        assert!(kept.text.len() <= MOST_BYTES);
        // One that is larger than all may be is there alone.
        kept.push(6000, &line(&"y".repeat(2 * MOST_BYTES)));
        assert_eq!(kept.lines.len(), 1);
        kept.push(6001, &line("small"));
        assert_eq!(ids(&kept, 0, i128::MAX), ["small"]);
    }

    #[test]
    fn behind_the_first_of_then_nothing_is_too_early() {
        let mut kept = Kept::default();
        for (time, id) in [(10, "before"), (30, "ahead"), (20, "set back")] {
            kept.push(time, &line(id));
        }
        assert_eq!(ids(&kept, 30, i128::MAX), ["ahead", "set back"]);
    }
}
