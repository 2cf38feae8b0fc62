//! How many containers an engine starts in a second when many are asked for, some at a time.

use std::fmt;

use anyhow::Context;

use crate::peer::Images;
use crate::report::{OURS, ratio};

/// Commands at a time.
const AT_ONCE: [usize; 3] = [1, 4, 8];

/// Containers a second of each peer, by how many commands ran at a time.
#[derive(Debug, Default)]
pub(crate) struct Starts {
    count: usize,
    rates: Vec<(String, [f64; AT_ONCE.len()])>,
}

impl Starts {
    pub(crate) fn of(count: usize) -> Self {
        Self { count, rates: Vec::new() }
    }

    /// Has an engine start them all, and removes them.
    pub(crate) fn measure(&mut self, name: &str, engine: &mut dyn Images) -> anyhow::Result<()> {
        let mut rates = [0.0; AT_ONCE.len()];
        for (rate, at_once) in rates.iter_mut().zip(AT_ONCE) {
            let words =
                ["run", "-d", "--network", "none", "--name", "many{}", "busybox", "/bin/sleep", "1000"];
            let time = engine.each(self.count, at_once, &words).context("start many")?;
            *rate = self.count as f64 / time.as_secs_f64();
            let removal = [engine.removal(), &["many{}"]].concat();
            engine.each(self.count, AT_ONCE[1], &removal).context("remove them")?;
        }
        self.rates.push((name.to_owned(), rates));
        Ok(())
    }
}

impl fmt::Display for Starts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((_, ours)) = self.rates.iter().find(|(name, _)| name == OURS) else { return Ok(()) };
        writeln!(
            f,
            "\n## {} × `run -d --network none busybox sleep 1000`, containers a second\n",
            self.count
        )?;
        writeln!(f, "| commands at a time | {} |", AT_ONCE.map(|count| count.to_string()).join(" | "))?;
        writeln!(f, "| --- |{}", " ---: |".repeat(AT_ONCE.len()))?;
        for (name, rates) in &self.rates {
            let cells = rates.iter().zip(ours).map(|(rate, ours)| {
                let beside = if name == OURS { String::new() } else { format!(" ({})", ratio(*ours, *rate)) };
                format!("{rate:.1}{beside}")
            });
            writeln!(f, "| {name} | {} |", cells.collect::<Vec<_>>().join(" | "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_stand_beside_ours() {
        let mut starts = Starts::of(100);
        assert_eq!(starts.to_string(), "");
        starts.rates.push((OURS.to_owned(), [80.0, 120.0, 120.0]));
        starts.rates.push(("docker".to_owned(), [4.0, 6.0, 8.0]));
        let text = starts.to_string();
        assert!(text.contains("| insula | 80.0 | 120.0 | 120.0 |"), "{text}");
        assert!(text.contains("| docker | 4.0 (20.0 × faster) | 6.0 (20.0 × faster) | 8.0 (15.0"), "{text}");
    }
}
