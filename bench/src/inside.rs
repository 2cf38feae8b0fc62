//! What the process wall costs those who are inside: the same work on the host and in a container whose root
//! file system is the host's, in turns.

use std::fmt;
use std::path::Path;

use anyhow::Context;

use crate::peer::Images;
use crate::sample::Samples;
use crate::worker::execute;

/// A script that writes one number: how much of it was done in a second. `$1` is a folder on a disk.
struct Work {
    title: &'static str,
    script: &'static str,
}

/// Each takes a second at most, so that what else the host does meets all places alike.
const WORKS: &[Work] = &[
    Work {
        title: "SHA-256 of zeros, MB a second",
        script: "a=$(date +%s%N); dd if=/dev/zero bs=1M count=150 2>/dev/null | sha256sum >/dev/null; \
                 b=$(date +%s%N); echo $((157286400000 / (b - a)))",
    },
    Work {
        title: "system calls (dd of single bytes), thousands a second",
        script: "a=$(date +%s%N); dd if=/dev/zero of=/dev/null bs=1 count=1000000 2>/dev/null; \
                 b=$(date +%s%N); echo $((2000000000000 / (b - a)))",
    },
    Work {
        title: "processes (fork, exec, wait), a second",
        script: "a=$(date +%s%N); i=0; while [ $i -lt 400 ]; do /bin/true; i=$((i + 1)); done; \
                 b=$(date +%s%N); echo $((400000000000 / (b - a)))",
    },
    Work {
        title: "random reads of 4 KiB from a volume (fio, direct), a second",
        script: "fio --name=bench --directory=\"$1\" --size=64M --bs=4k --direct=1 --runtime=1 --time_based \
                 --minimal --rw=randread | cut -d';' -f8",
    },
    Work {
        title: "random writes of 4 KiB to a volume (fio, direct), a second",
        script: "fio --name=bench --directory=\"$1\" --size=64M --bs=4k --direct=1 --runtime=1 --time_based \
                 --minimal --rw=randwrite | cut -d';' -f49",
    },
    Work {
        title: "TCP over its own loopback (iperf3), Mbit a second",
        script: "iperf3 -s -1 -p 5299 >/dev/null & \
                 until iperf3 -c 127.0.0.1 -p 5299 -t 1 -f m >\"$1/iperf\" 2>/dev/null; do :; done; \
                 wait; awk '/receiver/ { print int($7) }' \"$1/iperf\"",
    },
];

/// Where the work is done, and what a container is told for it.
const PLACES: [(&str, Option<&[&str]>); 3] = [
    ("host", None),
    ("container", Some(&[])),
    ("without seccomp", Some(&["--security-opt", "seccomp=unconfined"])),
];

/// How much was done a second, in the order of `WORKS` and `PLACES`, turn by turn.
#[derive(Debug, Default)]
pub(crate) struct Inside(Vec<[Vec<f64>; PLACES.len()]>);

impl Inside {
    /// In turns, each of which another place begins; `folder` is on the disk that is looked at.
    pub(crate) fn measure(engine: &mut dyn Images, folder: &Path, turns: usize) -> anyhow::Result<Self> {
        let folder = folder.display().to_string();
        let mut inside = Self::default();
        for work in WORKS {
            eprintln!("bench: {}", work.title);
            let mut seen = [const { Vec::new() }; PLACES.len()];
            for turn in 0..=turns {
                for place in (0..PLACES.len()).map(|place| (place + turn) % PLACES.len()) {
                    let number = work.done(engine, &folder, PLACES[place].1)?;
                    if turn > 0 {
                        seen[place].push(number);
                    }
                }
            }
            inside.0.push(seen);
        }
        Ok(inside)
    }
}

impl Work {
    /// How much of it is done on the host, or in a container with these flags.
    fn done(&self, engine: &mut dyn Images, folder: &str, flags: Option<&[&str]>) -> anyhow::Result<f64> {
        let shell = ["sh", "-c", self.script, "sh", folder];
        let answer = match flags {
            None => execute(&shell.map(str::to_owned))?.output()?,
            Some(flags) => {
                let volume = format!("{folder}:{folder}");
                let run = ["run", "--rm", "--network", "none", "-v", &volume];
                engine.output(&[&run[..], flags, &["host"], &shell].concat())?
            }
        };
        answer.parse().with_context(|| format!("{}: {answer:?}", self.title))
    }
}

/// Of some numbers.
fn median(numbers: impl Iterator<Item = f64>) -> f64 {
    let mut samples = Samples::new();
    numbers.for_each(|number| samples.push_number(number));
    samples.at(0.5).unwrap_or_default()
}

impl fmt::Display for Inside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some([first, ..]) = self.0.first() else { return Ok(()) };
        writeln!(f, "\n# Inside the process wall\n")?;
        writeln!(
            f,
            "The same work on the host and in containers of insula, in {} turns: medians, and the",
            first.len()
        )?;
        writeln!(f, "median of what each turn was beside the host's of the same turn.\n")?;
        writeln!(f, "| | {} |", PLACES.map(|(name, _)| name).join(" | "))?;
        writeln!(f, "| --- |{}", " ---: |".repeat(PLACES.len()))?;
        for (work, seen) in WORKS.iter().zip(&self.0) {
            let cells = seen.iter().enumerate().map(|(place, numbers)| {
                let found = median(numbers.iter().copied());
                let beside = numbers.iter().zip(&seen[0]).map(|(number, host)| number / host);
                let beside = (median(beside) - 1.0) * 100.0;
                if place == 0 { format!("{found:.0}") } else { format!("{found:.0} ({beside:+.1} %)") }
            });
            writeln!(f, "| {} | {} |", work.title, cells.collect::<Vec<_>>().join(" | "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_stand_beside_the_host() {
        assert_eq!(Inside::default().to_string(), "");
        // The host was twice as fast in the second turn, and so were the containers.
        let seen = [[200.0, 400.0, 200.0], [198.0, 396.0, 204.0], [202.0, 404.0, 198.0]].map(Vec::from);
        let text = Inside(vec![seen]).to_string();
        assert!(text.contains("| 200 | 204 (-1.0 %) | 202 (+1.0 %) |"), "{text}");
    }
}
