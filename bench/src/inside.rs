//! What the process wall costs those who are inside: the same work on the host, in a container whose root
//! file system is the host's, and behind what the kernel alone makes of such a wall, in turns.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::Context;

use crate::floor;
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

/// Where the work is done.
#[derive(Debug, Clone, Copy)]
enum Place {
    Host,
    /// A container with these flags.
    Container(&'static [&'static str]),
    /// Behind namespaces, control groups and an overlay that no engine has made.
    Floor,
}

const PLACES: [(&str, Place); 4] = [
    ("host", Place::Host),
    ("container", Place::Container(&[])),
    ("without seccomp", Place::Container(&["--security-opt", "seccomp=unconfined"])),
    ("the kernel's wall alone", Place::Floor),
];

/// How much was done a second, in the order of `WORKS` and `PLACES`, turn by turn.
#[derive(Debug, Default)]
pub(crate) struct Inside(Vec<[Vec<f64>; PLACES.len()]>);

impl Inside {
    /// In turns, each of which another place begins; `folder` is on the disk that is looked at.
    pub(crate) fn measure(engine: &mut dyn Images, folder: &Path, turns: usize) -> anyhow::Result<Self> {
        let mut site = Site::new(folder)?;
        let mut inside = Self::default();
        for work in WORKS {
            eprintln!("bench: {}", work.title);
            let mut seen = [const { Vec::new() }; PLACES.len()];
            for turn in 0..=turns {
                for place in (0..PLACES.len()).map(|place| (place + turn) % PLACES.len()) {
                    let number = site.done(engine, work, PLACES[place].1)?;
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

/// Makes the host's root file system the floor's, in a mount namespace of its own: `$1` is the floor's folder, `$2` the
/// volume, `$3` a name.
const BEHIND_THE_FLOOR: &str = "mount --bind / \"$1/rootfs\" && f=$1 v=$2 n=$3 && shift 3 && \
                                exec \"$f/floor\" -v \"$v\" \"$f\" \"$n\" /bin/sh \"$@\"";

/// The folder that is looked at, and the floor's, on the same disk.
#[derive(Debug)]
struct Site {
    folder: String,
    floor: String,
    runs: u32,
}

impl Site {
    fn new(folder: &Path) -> anyhow::Result<Self> {
        let floor = folder.join("floor");
        fs::create_dir_all(floor.join("rootfs")).context("make the floor's folder")?;
        floor::compile(&floor)?;
        Ok(Self { folder: folder.display().to_string(), floor: floor.display().to_string(), runs: 0 })
    }

    /// How much of some work is done in a place.
    fn done(&mut self, engine: &mut dyn Images, work: &Work, place: Place) -> anyhow::Result<f64> {
        let shell = |folder| ["-c", work.script, "sh", folder];
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let answer = match place {
            Place::Host => execute(&owned(&[&["sh"][..], &shell(&self.folder)].concat()))?.output()?,
            Place::Container(flags) => {
                let volume = format!("{0}:{0}", self.folder);
                let run = ["run", "--rm", "--network", "none", "-v", &volume];
                engine.output(&[&run[..], flags, &["host", "sh"], &shell(&self.folder)].concat())?
            }
            Place::Floor => {
                self.runs += 1;
                let name = format!("insula-bench-{}-in-{}", std::process::id(), self.runs);
                let there = ["unshare", "--mount", "--propagation", "private", "sh", "-c", BEHIND_THE_FLOOR];
                let words = ["sh", &self.floor, &self.folder, &name];
                execute(&owned(&[&there[..], &words, &shell("/mnt")].concat()))?.output()?
            }
        };
        answer.parse().with_context(|| format!("{}: {answer:?}", work.title))
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
        writeln!(
            f,
            "median of what each turn was beside the host's of the same turn. The last column is behind"
        )?;
        writeln!(
            f,
            "namespaces, control groups and an overlay of the host's root that bench/src/floor.c makes: what is"
        )?;
        writeln!(f, "missing there the kernel takes from every container, whoever made it.\n")?;
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
        let seen =
            [[200.0, 400.0, 200.0], [198.0, 396.0, 204.0], [202.0, 404.0, 198.0], [200.0, 404.0, 200.0]];
        let seen = seen.map(Vec::from);
        let text = Inside(vec![seen]).to_string();
        assert!(text.contains("| 200 | 204 (-1.0 %) | 202 (+1.0 %) | 200 (+0.0 %) |"), "{text}");
    }
}
