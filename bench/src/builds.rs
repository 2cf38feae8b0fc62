//! Builds: with no cache, with everything cached, after one file was changed; independent stages beside the same steps
//! one after another; and a context of many files that did not change.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::peer::{Images, Peer};
use crate::report::{OURS, ratio};
use crate::sample::Samples;

/// No further round begins after this.
const BUDGET: Duration = Duration::from_secs(90);
/// Files of the ordinary context, and bytes of each.
const FILES: usize = 1000;
const SIZE: usize = 4096;
/// Stages that need nothing of one another.
const STAGES: usize = 10;
/// Files of the large context, a byte each.
const MANY: usize = 100_000;
const IMAGE: &str = "timed-build";

const DOCKERFILE: &str = "\
FROM busybox
COPY src /src
RUN /bin/busybox ls -R /src > /list
COPY late /late
RUN /bin/busybox cat /late > /copied
RUN /bin/busybox wc -l /list > /lines
";

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    NoCache,
    Cached,
    OneChanged,
    Stages,
    Chain,
    ManyFirst,
    ManyAgain,
}

impl Kind {
    fn title(self) -> String {
        match self {
            Self::NoCache => format!("no cache ({FILES} files, 3 commands)"),
            Self::Cached => "all cached".to_owned(),
            Self::OneChanged => "one file changed (2 of 3 commands again)".to_owned(),
            Self::Stages => format!("{STAGES} independent stages of a busy command"),
            Self::Chain => "the same one after another".to_owned(),
            Self::ManyFirst => format!("a context of {MANY} files, no cache"),
            Self::ManyAgain => "the same, unchanged".to_owned(),
        }
    }
}

/// Everything that was seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    rounds: usize,
    times: BTreeMap<Kind, Vec<(String, Samples)>>,
}

impl Seen {
    fn push(&mut self, kind: Kind, name: &str, time: Duration) {
        let peers = self.times.entry(kind).or_default();
        let place = peers.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
            peers.push((name.to_owned(), Samples::default()));
            peers.len() - 1
        });
        peers[place].1.push(time);
    }

    fn median(&self, kind: Kind, name: &str) -> Option<f64> {
        let peers = self.times.get(&kind)?;
        peers.iter().find(|(known, _)| known == name).and_then(|(_, times)| times.at(0.5))
    }
}

/// What all engines are given.
struct Given {
    ordinary: PathBuf,
    stages: PathBuf,
    chain: PathBuf,
    many: PathBuf,
}

impl Given {
    fn make(folder: &Path) -> anyhow::Result<Self> {
        let place = |name: &str| folder.join(name);
        let given = Self {
            ordinary: place("ordinary"),
            stages: place("stages"),
            chain: place("chain"),
            many: place("many"),
        };
        put(&given.ordinary.join("Dockerfile"), DOCKERFILE)?;
        put(&given.ordinary.join("late"), "0")?;
        for number in 0..FILES {
            let path = given.ordinary.join(format!("src/{}/{number}", number % 20));
            put(&path, &format!("{number:>SIZE$}"))?;
        }
        let busy = |number: usize| {
            format!("RUN i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo {number} > /made-{number}\n")
        };
        let (mut stages, mut chain) = (String::new(), "FROM busybox\n".to_owned());
        for number in 0..STAGES {
            stages += &format!("FROM busybox AS s{number}\n{}", busy(number));
            chain += &busy(number);
        }
        stages += "FROM busybox\n";
        for number in 0..STAGES {
            stages += &format!("COPY --from=s{number} /made-{number} /\n");
        }
        put(&given.stages.join("Dockerfile"), &stages)?;
        put(&given.chain.join("Dockerfile"), &chain)?;
        put(&given.many.join("Dockerfile"), "FROM busybox\nCOPY . /many/\n")?;
        for number in 0..MANY {
            put(&given.many.join(format!("{}/{number}", number / 500)), "x")?;
        }
        Ok(given)
    }
}

fn put(path: &Path, text: &str) -> anyhow::Result<()> {
    let folder = path.parent().unwrap_or(path);
    std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

/// At most so many rounds; fewer where the time is over.
pub(crate) fn compare(folder: &Path, peers: &mut [Box<dyn Peer>], rounds: usize) -> anyhow::Result<Seen> {
    let given = Given::make(&folder.join("builds"))?;
    let (began, mut seen) = (Instant::now(), Seen::default());
    let mut left_out: BTreeSet<String> = BTreeSet::new();
    while seen.rounds < rounds && began.elapsed() < BUDGET {
        seen.rounds += 1;
        eprintln!("bench: builds, round {} of at most {rounds}", seen.rounds);
        for peer in peers.iter_mut() {
            let name = peer.name().to_owned();
            if left_out.contains(&name) {
                continue;
            }
            let Some(images) = peer.images() else { continue };
            if let Err(error) = round(&given, images, &name, &mut seen) {
                eprintln!("bench: {name} is left out of builds: {error:#}");
                left_out.insert(name);
            }
        }
    }
    Ok(seen)
}

fn round(given: &Given, images: &mut dyn Images, name: &str, seen: &mut Seen) -> anyhow::Result<()> {
    let mut step = |kind: Kind, folder: &Path, more: &[&str]| {
        let folder = folder.display().to_string();
        let words = [&["build", "-q", "--network", "none", "-t", IMAGE], more, &[&folder]].concat();
        let time = images.timed(&words)?;
        seen.push(kind, name, time);
        anyhow::Ok(())
    };
    let late = given.ordinary.join("late");
    let number: u64 = std::fs::read_to_string(&late).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    step(Kind::NoCache, &given.ordinary, &["--no-cache"])?;
    step(Kind::Cached, &given.ordinary, &[])?;
    put(&late, &(number + 1).to_string())?;
    step(Kind::OneChanged, &given.ordinary, &[])?;
    step(Kind::Stages, &given.stages, &["--no-cache"])?;
    step(Kind::Chain, &given.chain, &["--no-cache"])?;
    // With the others it takes a minute a turn.
    if name == OURS {
        step(Kind::ManyFirst, &given.many, &["--no-cache"])?;
        step(Kind::ManyAgain, &given.many, &[])?;
    }
    Ok(())
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.rounds == 0 {
            return Ok(());
        }
        writeln!(f, "\n# Builds\n")?;
        let of = match self.rounds {
            1 => "One round".to_owned(),
            rounds => format!("Medians of {rounds} rounds"),
        };
        writeln!(
            f,
            "{of}, in seconds: `build -q --network none`, docker with its older builder, podman with"
        )?;
        writeln!(f, "buildah's.\n")?;
        writeln!(f, "| | | seconds | insula is |\n| --- | --- | ---: | --- |")?;
        for (kind, peers) in &self.times {
            let ours = self.median(*kind, OURS);
            for (name, times) in peers {
                let time = times.at(0.5).unwrap_or_default();
                let beside = match ours {
                    Some(ours) if name != OURS => ratio(time, ours),
                    _ => String::new(),
                };
                writeln!(f, "| {} | {name} | {:.2} | {beside} |", kind.title(), time / 1000.0)?;
            }
        }
        if let (Some(stages), Some(chain)) = (self.median(Kind::Stages, OURS), self.median(Kind::Chain, OURS))
        {
            writeln!(
                f,
                "\nIndependent stages are {} than one after another with insula.",
                ratio(chain, stages)
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_beside_a_chain() {
        let mut seen = Seen { rounds: 1, ..Seen::default() };
        for (kind, name, milliseconds) in
            [(Kind::Stages, OURS, 500), (Kind::Chain, OURS, 1000), (Kind::Stages, "docker", 2000)]
        {
            seen.push(kind, name, Duration::from_millis(milliseconds));
        }
        let text = seen.to_string();
        assert!(text.contains("busy command | docker | 2.00 | 4.0 × faster |"), "{text}");
        assert!(text.contains("stages are 2.0 × faster than one after another"), "{text}");
    }
}
