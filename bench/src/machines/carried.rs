//! What a guest's files and network carry: the same work behind the process wall and behind that of a machine, in
//! turns. The image is the host's, which has the programs; the folder that is looked at is a bind mount.

use std::fmt;
use std::path::Path;

use anyhow::Context;

use crate::engine::Insula;
use crate::peer::Images;
use crate::sample::Samples;
use crate::traffic;

/// Seconds of each.
const SECONDS: &str = "2";
const SERVER: &str = "far";
const WALLS: [&str; 2] = ["process", "vm"];
/// What fio calls them, and which of its columns says how many a second there were.
const PATTERNS: [(&str, &str, usize); 4] = [
    ("sequential reads of 4 KiB, a second", "read", 8),
    ("random reads of 4 KiB, a second", "randread", 8),
    ("sequential writes of 4 KiB, a second", "write", 49),
    ("random writes of 4 KiB, a second", "randwrite", 49),
];
const NETWORK: &str = "to a container on the same bridge, Gbit/s";

/// What was seen, in the order of [`WALLS`].
#[derive(Debug, Default)]
pub(super) struct Carried(Vec<(&'static str, [Samples; WALLS.len()])>);

/// Whether the host has the programs.
pub(super) fn possible() -> bool {
    ["fio", "iperf3"].iter().all(|program| Path::new("/usr/bin").join(program).is_file())
}

impl Carried {
    /// `folder` is on the disk that is looked at.
    pub(super) fn measure(engine: &mut Insula, folder: &Path, rounds: usize) -> anyhow::Result<Self> {
        let volume = format!("{}:/data", folder.display());
        let mut carried = Self::default();
        for (title, pattern, column) in PATTERNS {
            eprintln!("bench: {title}");
            let seen = in_turns(rounds, |wall| files(engine, wall, &volume, pattern, column))?;
            carried.0.push((title, seen));
        }
        eprintln!("bench: {NETWORK}");
        let measured = network(engine, rounds);
        let removed = engine.output(&["rm", "-f", SERVER]);
        carried.0.push((NETWORK, measured?));
        removed.map(|_| carried)
    }
}

fn in_turns(
    rounds: usize,
    mut work: impl FnMut(&str) -> anyhow::Result<f64>,
) -> anyhow::Result<[Samples; WALLS.len()]> {
    let mut seen = [const { Samples::new() }; WALLS.len()];
    for _ in 0..rounds {
        for (wall, samples) in WALLS.iter().zip(&mut seen) {
            samples.push_number(work(wall)?);
        }
    }
    Ok(seen)
}

fn files(engine: &mut Insula, wall: &str, volume: &str, pattern: &str, column: usize) -> anyhow::Result<f64> {
    let run = ["run", "--rm", "--isolation", wall, "--network", "none", "-m", "256m", "-v", volume, "host"];
    let (runtime, pattern) = (format!("--runtime={SECONDS}"), format!("--rw={pattern}"));
    let what = ["--name=bench", "--directory=/data", "--size=64M", "--bs=4k", "--direct=1"];
    let how = ["--time_based", "--minimal", &runtime, &pattern];
    let answer = engine.output(&[&run[..], &["fio"], &what, &how].concat())?;
    column_of(&answer, column)
}

/// A number of fio's `--minimal`, whose columns are counted from 1.
fn column_of(answer: &str, column: usize) -> anyhow::Result<f64> {
    // Warnings come before it.
    let line = answer.lines().last().unwrap_or_default();
    let word = line.split(';').nth(column - 1).with_context(|| format!("fio says {answer:?}"))?;
    word.parse().with_context(|| format!("fio says {word:?} in column {column}"))
}

fn network(engine: &mut Insula, rounds: usize) -> anyhow::Result<[Samples; WALLS.len()]> {
    engine.output(&["run", "-d", "--name", SERVER, "host", "iperf3", "-s"])?;
    let address = engine.output(&["inspect", "-f", "{{.NetworkSettings.IPAddress}}", SERVER])?;
    in_turns(rounds, |wall| {
        let run = ["run", "--rm", "--isolation", wall, "-m", "256m", "host"];
        let client = ["iperf3", "-c", &address, "-t", SECONDS, "-i", "0", "-J"];
        traffic::patiently(|| traffic::rate(&engine.output(&[&run[..], &client].concat())?))
    })
}

impl fmt::Display for Carried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        writeln!(f, "\n| in the guest, medians of {SECONDS} s | process wall | own kernel | part of it |")?;
        writeln!(f, "| --- | ---: | ---: | ---: |")?;
        for (title, seen) in &self.0 {
            let [process, machine] = [0, 1].map(|wall| seen[wall].at(0.5).unwrap_or_default());
            let digits = if process < 1000.0 { 2 } else { 0 };
            let part = machine / process * 100.0;
            writeln!(f, "| {title} | {process:.digits$} | {machine:.digits$} | {part:.0} % |")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_stands_beside_the_process_wall() {
        assert_eq!(Carried::default().to_string(), "");
        let mut rates = [200.0, 50.0].into_iter();
        let seen = in_turns(1, |_| Ok(rates.next().unwrap())).unwrap();
        let mut many = [8000.0, 2000.0].into_iter();
        let more = in_turns(1, |_| Ok(many.next().unwrap())).unwrap();
        let text = Carried(vec![(NETWORK, seen), (PATTERNS[0].0, more)]).to_string();
        assert!(text.contains("Gbit/s | 200.00 | 50.00 | 25 % |"), "{text}");
        assert!(text.contains("a second | 8000 | 2000 | 25 % |"), "{text}");
    }

    #[test]
    fn columns_of_fio_are_counted_from_one() {
        assert_eq!(column_of("warning\n3;fio;7.5\n", 3).unwrap(), 7.5);
        assert!(column_of("", 1).is_err() && column_of("3;fio", 3).is_err() && column_of("a;b", 1).is_err());
    }
}
