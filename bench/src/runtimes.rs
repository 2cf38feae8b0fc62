//! `insula-runtime` beside other runtimes of bundles, without an engine: each step of a container's life apart,
//! many at once, and what stays in memory while one runs.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::bundle;
use crate::engine::Insula;
use crate::image;
use crate::memory;
use crate::sample::Samples;
use crate::volatile;
use crate::worker::{Worker, words};

const OURS: &str = "insula-runtime";
/// The peers, as far as they are installed; ours is first.
const PEERS: [&str; 3] = ["crun", "runc", "youki"];
const STEPS: [&str; 5] = ["run", "create", "start", "exec", "delete"];
/// Containers of the rate, and how many at once.
const MANY: usize = 500;
const AT_ONCE: usize = 8;
/// In seconds; some runtimes wait for ever now and then.
const LONGEST: &str = "120";

/// What was seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    runtimes: Vec<Runtime>,
    left_out: LeftOut,
}

/// Peers that were not measured, and why.
#[derive(Debug, Default)]
struct LeftOut(Vec<(&'static str, String)>);

impl LeftOut {
    fn push(&mut self, name: &'static str, error: &anyhow::Error) {
        let why = if is_installed(name) { format!("{error:#}") } else { "not installed".to_owned() };
        self.note(name, why);
    }

    fn note(&mut self, name: &'static str, why: String) {
        eprintln!("bench: {name} is left out: {why}");
        self.0.push((name, why.replace('\n', " ")));
    }
}

fn is_installed(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
}

#[derive(Debug)]
struct Runtime {
    name: &'static str,
    /// By the places of [`STEPS`].
    steps: [Samples; STEPS.len()],
    /// Containers a second.
    rate: Samples,
    /// KiB of helper processes while a container runs.
    helpers: u64,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.runtimes.is_empty() {
            return Ok(());
        }
        writeln!(f, "\n# Runtimes of bundles\n")?;
        writeln!(
            f,
            "One prepared bundle of the static busybox, no engine. Medians in ms (p10 to p90) of whole commands: `run` to \
             the end of `/bin/true`; the others of a container of `sleep`. The rate is of {MANY} runs, {AT_ONCE} at \
             once.\n"
        )?;
        write!(f, "|")?;
        STEPS.iter().try_for_each(|step| write!(f, " | `{step}`"))?;
        writeln!(
            f,
            " | runs a second | stays in memory, KiB |\n| ---{} |",
            " | ---:".repeat(STEPS.len() + 2)
        )?;
        for runtime in &self.runtimes {
            write!(f, "| {}", runtime.name)?;
            for step in &runtime.steps {
                let part = |part| step.at(part).unwrap_or_default();
                write!(f, " | {:.1} ({:.1} to {:.1})", part(0.5), part(0.1), part(0.9))?;
            }
            let rate = runtime.rate.at(0.5).map_or("none".to_owned(), |rate| format!("{rate:.0}"));
            writeln!(f, " | {rate} | {} |", runtime.helpers)?;
        }
        for (number, (name, why)) in self.left_out.0.iter().enumerate() {
            let begin = if number == 0 { "\nLeft out: " } else { "; " };
            write!(f, "{begin}{name} ({why})")?;
        }
        if self.left_out.0.is_empty() { Ok(()) } else { writeln!(f, ".") }
    }
}

/// One to measure.
struct Turn {
    seen: Runtime,
    program: PathBuf,
    folder: PathBuf,
    worker: Worker,
    count: usize,
}

/// All of them, in turns.
pub(crate) fn measure(folder: &Path, rounds: usize) -> anyhow::Result<Seen> {
    let mut turns = vec![Turn::new(OURS, ours(folder)?, folder)?];
    let mut left_out = LeftOut::default();
    for name in PEERS {
        // One that is not installed, or does not run on this host, is left out.
        match Turn::new(name, name.into(), folder) {
            Ok(turn) => turns.push(turn),
            Err(error) => left_out.push(name, &error),
        }
    }
    for _ in 0..rounds {
        for (turn, error) in take_turns(&mut turns, Turn::life)? {
            left_out.push(turn.seen.name, &error);
        }
    }
    let mut without_rate = Vec::new();
    for _ in 0..rounds.div_ceil(5) {
        for (turn, error) in take_turns(&mut turns, Turn::many)? {
            left_out.note(turn.seen.name, format!("its rate alone: {error:#}"));
            without_rate.push(Runtime { rate: Samples::default(), ..turn.seen });
        }
    }
    let runtimes = turns.into_iter().map(|turn| turn.seen).chain(without_rate).collect();
    Ok(Seen { runtimes, left_out })
}

/// Those that have failed take no further turn; ours must not.
fn take_turns(
    turns: &mut Vec<Turn>,
    step: fn(&mut Turn) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<(Turn, anyhow::Error)>> {
    let mut failed = Vec::new();
    for mut turn in std::mem::take(turns) {
        match step(&mut turn) {
            Ok(()) => turns.push(turn),
            Err(error) if turn.seen.name == OURS => return Err(error),
            Err(error) => failed.push((turn, error)),
        }
    }
    Ok(failed)
}

fn ours(folder: &Path) -> anyhow::Result<PathBuf> {
    let program = Insula::new(folder).program("insula-runtime");
    // It is called from elsewhere.
    program.canonicalize().with_context(|| format!("find {}", program.display()))
}

impl Turn {
    fn new(name: &'static str, program: PathBuf, folder: &Path) -> anyhow::Result<Self> {
        let folder = folder.join(format!("runtime-{name}"));
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        image::tree(&folder)?;
        volatile::make(&folder)?;
        let mut worker = Worker::start()?;
        let seen = Runtime { name, steps: Default::default(), rate: Samples::default(), helpers: 0 };
        bundle::document(&folder, &program.display().to_string(), &mut worker)?;
        let mut turn = Self { seen, program, folder, worker, count: 0 };
        // One that is not measured.
        turn.run()?;
        turn.seen.steps = Default::default();
        Ok(turn)
    }

    fn id(&mut self) -> String {
        self.count += 1;
        format!("insula-bench-{}-{}", std::process::id(), self.count)
    }

    fn words(&self, rest: &[&str]) -> Vec<String> {
        let root = volatile::of(&self.folder).display().to_string();
        words(&self.program, &[&["--root", &root], rest].concat())
    }

    fn timed(&mut self, step: usize, rest: &[&str]) -> anyhow::Result<()> {
        let words = self.words(rest);
        let time = self.worker.execute(&words)?.time().with_context(|| words.join(" "))?;
        self.seen.steps[step].push(time);
        Ok(())
    }

    fn run(&mut self) -> anyhow::Result<()> {
        let (id, bundle) = (self.id(), self.folder.display().to_string());
        bundle::arguments(&self.folder, &["/bin/true"])?;
        self.timed(0, &["run", "--bundle", &bundle, &id])
    }

    /// Every step once.
    fn life(&mut self) -> anyhow::Result<()> {
        self.run()?;
        let (id, bundle) = (self.id(), self.folder.display().to_string());
        bundle::arguments(&self.folder, &["/bin/sleep", "1000"])?;
        // Its streams are not the container's: nobody waits for those.
        let (pid, null) = (self.folder.join("pid"), "exec \"$@\" </dev/null >/dev/null 2>&1");
        let create =
            self.words(&["create", "--bundle", &bundle, "--pid-file", &pid.display().to_string(), &id]);
        let shell = ["sh", "-c", null, "sh"].map(str::to_owned);
        let time = self.worker.execute(&[&shell[..], &create].concat())?.time().context("create")?;
        self.seen.steps[1].push(time);
        self.timed(2, &["start", &id])?;
        self.timed(3, &["exec", &id, "/bin/true"])?;
        let first = fs::read_to_string(&pid)?.trim().parse().context("a pid")?;
        for helper in memory::helpers(first, &[self.worker.pid()])? {
            self.seen.helpers = self.seen.helpers.max(memory::pss(helper)?);
        }
        self.worker.execute(&self.words(&["kill", &id, "KILL"]))?.time().context("kill")?;
        self.ended(&id)?;
        self.timed(4, &["delete", &id])
    }

    /// A container that was killed has not ended at once.
    fn ended(&mut self, id: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            let state = self.worker.execute(&self.words(&["state", id]))?.output()?;
            let state: serde_json::Value = serde_json::from_str(&state).context("a state")?;
            if state["status"] == "stopped" {
                return Ok(());
            }
        }
        anyhow::bail!("{id} does not end")
    }

    fn many(&mut self) -> anyhow::Result<()> {
        bundle::arguments(&self.folder, &["/bin/true"])?;
        let (bundle, prefix) = (self.folder.display().to_string(), self.id());
        let one = self.words(&["run", "--bundle", &bundle, &format!("{prefix}-{{}}")]);
        let (last, at_once) = (MANY.to_string(), AT_ONCE.to_string());
        let script = "last=$1 at_once=$2; shift 2; seq \"$last\" | xargs -P \"$at_once\" -I '{}' \"$@\"";
        let shell =
            ["timeout", "-k", "5", LONGEST, "sh", "-c", script, "sh", &last, &at_once].map(str::to_owned);
        let time = self.worker.execute(&[&shell[..], &one].concat())?.time();
        let time = time.with_context(|| format!("{MANY} runs, {LONGEST} seconds at most"))?;
        self.seen.rate.push_number(MANY as f64 / time.as_secs_f64());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_has_its_column() {
        assert_eq!(Seen::default().to_string(), "");
        let mut steps: [Samples; STEPS.len()] = Default::default();
        steps.iter_mut().for_each(|step| step.push(Duration::from_micros(2500)));
        let mut rate = Samples::default();
        rate.push_number(310.2);
        let without = Runtime { name: "youki", steps: steps.clone(), rate: Samples::default(), helpers: 0 };
        let runtimes = vec![without, Runtime { name: "crun", steps, rate, helpers: 0 }];
        let mut left_out = LeftOut::default();
        left_out.push("no-such-runtime", &anyhow::anyhow!("spawn"));
        left_out.push("sh", &anyhow::anyhow!("not\nthis"));
        let text = Seen { runtimes, left_out }.to_string();
        let last = text.lines().last().unwrap();
        assert_eq!(last, "Left out: no-such-runtime (not installed); sh (not this).");
        let row = text.lines().rfind(|line| line.starts_with('|')).unwrap();
        assert_eq!(row.matches("2.5 (2.5 to 2.5)").count(), STEPS.len(), "{row}");
        assert!(row.starts_with("| crun |") && row.ends_with("| 310 | 0 |"), "{row}");
        assert!(text.lines().any(|line| line.starts_with("| youki |") && line.ends_with("| none | 0 |")));
        let heads: Vec<_> =
            text.lines().filter(|line| line.starts_with('|')).map(|line| line.matches('|').count()).collect();
        assert!(heads.windows(2).all(|pair| pair[0] == pair[1]), "{text}");
    }
}
