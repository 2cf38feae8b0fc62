//! `--timing`: what the start of a container spent its time on, as the engine and the command saw it.

use std::fmt::Write;

use insula_base::{Lap, Laps};
use insula_client::Client;

use crate::printer;

/// A stopwatch, if one is wanted.
#[derive(Debug)]
pub(crate) struct Timing(Option<Laps>);

impl Timing {
    /// Begins to count.
    pub(crate) fn begin(wanted: bool) -> Self {
        Self(wanted.then(Laps::begin))
    }

    /// Something of the command's own was done.
    pub(crate) fn lap(&mut self, name: &'static str) {
        if let Some(laps) = &mut self.0 {
            laps.lap(name);
        }
    }

    /// The daemon did something, and said what it spent its time on; the way there and back is `name`.
    pub(crate) fn answered(&mut self, client: &Client, name: &'static str) {
        if let Some(laps) = &mut self.0 {
            laps.nest(client.take_timing(), name);
        }
    }

    /// Prints all of it on standard error.
    pub(crate) fn print(self) {
        if let Some(laps) = self.0 {
            printer::error_text(&table(&laps.done()));
        }
    }
}

fn table(laps: &[Lap]) -> String {
    let mut text = "   TOOK ms   TOTAL ms  PART\n".to_owned();
    let mut total = 0.0;
    for lap in laps {
        let took = lap.took.as_secs_f64() * 1000.0;
        total += took;
        // To a string nothing fails.
        let _ = writeln!(text, "{took:>10.3} {total:>10.3}  {}", lap.name);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn parts_add_up() {
        let lap = |name: &'static str, micros| Lap { name: name.into(), took: Duration::from_micros(micros) };
        let text = table(&[lap("connect", 250), lap("image", 1_500)]);
        let lines =
            ["   TOOK ms   TOTAL ms  PART", "     0.250      0.250  connect", "     1.500      1.750  image"];
        assert_eq!(text.lines().collect::<Vec<_>>(), lines);
    }
}
