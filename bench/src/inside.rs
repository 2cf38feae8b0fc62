//! What the process wall costs those who are inside: the same work on the host and in a container whose root
//! file system is the host's, in turns.

use std::fmt;
use std::path::Path;

use anyhow::Context;

use crate::peer::Images;
use crate::sample::Samples;
use crate::worker::execute;

const ROUNDS: usize = 7;

/// A script that writes one number: how much of it was done in a second. `$1` is a folder on a disk.
struct Work {
    title: &'static str,
    script: &'static str,
}

const WORKS: &[Work] = &[
    Work {
        title: "SHA-256 of zeros, MB a second",
        script: "a=$(date +%s%N); dd if=/dev/zero bs=1M count=400 2>/dev/null | sha256sum >/dev/null; \
                 b=$(date +%s%N); echo $((419430400000 / (b - a)))",
    },
    Work {
        title: "system calls (dd of single bytes), thousands a second",
        script: "a=$(date +%s%N); dd if=/dev/zero of=/dev/null bs=1 count=1000000 2>/dev/null; \
                 b=$(date +%s%N); echo $((2000000000000 / (b - a)))",
    },
    Work {
        title: "processes (fork, exec, wait), a second",
        script: "a=$(date +%s%N); i=0; while [ $i -lt 1000 ]; do /bin/true; i=$((i + 1)); done; \
                 b=$(date +%s%N); echo $((1000000000000 / (b - a)))",
    },
    Work {
        title: "random reads of 4 KiB from a volume (fio, direct), a second",
        script: "fio --name=bench --directory=\"$1\" --size=64M --bs=4k --direct=1 --runtime=2 --time_based \
                 --minimal --rw=randread | cut -d';' -f8",
    },
    Work {
        title: "random writes of 4 KiB to a volume (fio, direct), a second",
        script: "fio --name=bench --directory=\"$1\" --size=64M --bs=4k --direct=1 --runtime=2 --time_based \
                 --minimal --rw=randwrite | cut -d';' -f49",
    },
];

/// Where the work is done, and what a container is told for it.
const PLACES: [(&str, Option<&[&str]>); 3] = [
    ("host", None),
    ("container", Some(&[])),
    ("without seccomp", Some(&["--security-opt", "seccomp=unconfined"])),
];

/// How much was done a second, in the order of `WORKS` and `PLACES`.
#[derive(Debug, Default)]
pub(crate) struct Inside(Vec<[Samples; PLACES.len()]>);

impl Inside {
    /// In turns; `folder` is on the disk that is looked at.
    pub(crate) fn measure(engine: &mut dyn Images, folder: &Path) -> anyhow::Result<Self> {
        let folder = folder.display().to_string();
        let mut inside = Self::default();
        for work in WORKS {
            eprintln!("bench: {}", work.title);
            let mut samples = [const { Samples::new() }; PLACES.len()];
            for round in 0..=ROUNDS {
                for ((_, flags), samples) in PLACES.iter().zip(&mut samples) {
                    let shell = ["sh", "-c", work.script, "sh", &folder];
                    let answer = match flags {
                        None => execute(&shell.map(str::to_owned))?.output()?,
                        Some(flags) => {
                            let volume = format!("{folder}:{folder}");
                            let run = ["run", "--rm", "--network", "none", "-v", &volume];
                            engine.output(&[&run[..], flags, &["host"], &shell].concat())?
                        }
                    };
                    let number =
                        answer.parse::<f64>().with_context(|| format!("{}: {answer:?}", work.title))?;
                    if round > 0 {
                        samples.push_number(number);
                    }
                }
            }
            inside.0.push(samples);
        }
        Ok(inside)
    }
}

impl fmt::Display for Inside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        writeln!(f, "\n# Inside the process wall\n")?;
        writeln!(
            f,
            "The same work on the host and in containers of insula, in turns, medians of {ROUNDS}.\n"
        )?;
        writeln!(f, "| | {} |", PLACES.map(|(name, _)| name).join(" | "))?;
        writeln!(f, "| --- |{}", " ---: |".repeat(PLACES.len()))?;
        for (work, samples) in WORKS.iter().zip(&self.0) {
            let host = samples[0].at(0.5).unwrap_or_default();
            let cells = samples.iter().enumerate().map(|(place, samples)| {
                let found = samples.at(0.5).unwrap_or_default();
                let beside = (found / host - 1.0) * 100.0;
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
        let samples = [200.0, 198.0, 202.0].map(|number| {
            let mut samples = Samples::new();
            samples.push_number(number);
            samples
        });
        let text = Inside(vec![samples]).to_string();
        assert!(text.contains("| 200 | 198 (-1.0 %) | 202 (+1.0 %) |"), "{text}");
    }
}
