//! Containers with kernels of their own, with whatever the host's `/dev/kvm` lets machines run on: how soon they
//! start, by a boot and as copies of a template, what many of one image have for themselves, and what files and
//! networks of a guest carry.

mod carried;

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::engine::Insula;
use crate::images::measure::{Shared, shared};
use crate::peer::{Images, Peer};
use crate::sample::Samples;

use carried::Carried;

/// How long the machine of a tenant may take to end.
const PATIENCE: Duration = Duration::from_secs(30);
/// Machines at once.
const MANY: usize = 20;
/// Of one container, in MiB; its machine has 128 more for the kernel.
const MEMORY: &str = "64m";

/// What was seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// What machines run on, and their kernel.
    machine: Option<[String; 2]>,
    times: Vec<(&'static str, Samples)>,
    /// Of one that booted and one that is a copy, in KiB.
    beside: Vec<(&'static str, u64)>,
    many: Shared,
    carried: Carried,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some([backend, kernel]) = &self.machine else { return Ok(()) };
        writeln!(f, "\n# Containers with a kernel of their own\n")?;
        writeln!(
            f,
            "Machines of {backend} with Linux {kernel} and {MEMORY} for the container. Whole commands.\n"
        )?;
        writeln!(f, "| | median ms | p10 | p90 |\n| --- | ---: | ---: | ---: |")?;
        for (what, samples) in &self.times {
            let part = |part| samples.at(part).unwrap_or_default();
            writeln!(f, "| {what} | {:.0} | {:.0} | {:.0} |", part(0.5), part(0.1), part(0.9))?;
        }
        writeln!(f, "\n| memory | MiB |\n| --- | ---: |")?;
        let mib = |kib: u64| kib as f64 / 1024.0;
        for (what, kib) in &self.beside {
            writeln!(f, "| the machine's process beside its guest's memory, {what} | {:.1} |", mib(*kib))?;
        }
        let Shared { rss, pss, private } = self.many;
        writeln!(f, "| {MANY} copies together: resident | {:.0} |", mib(rss))?;
        writeln!(f, "| their share when what is common is divided | {:.0} |", mib(pss))?;
        writeln!(f, "| private for each of them | {:.1} |", mib(private) / MANY as f64)?;
        write!(f, "{}", self.carried)
    }
}

/// All of it, against a daemon of its own.
pub(crate) fn measure(folder: &Path, kernel: &Path, rounds: usize) -> anyhow::Result<Seen> {
    let mut engine = Insula::new(&folder.join("vm")).with(&["--vm-templates", "off"]);
    let mut seen = Seen::default();
    let measured = prepare(&mut engine, kernel).and_then(|()| all(&mut engine, folder, rounds, &mut seen));
    // What was not made cannot be removed; what was made must not stay.
    let _ = engine.output(&["tenant", "rm", TENANT]);
    for name in names().into_iter().chain(["one".to_owned()]) {
        let _ = engine.output(&["rm", "-f", &name]);
    }
    engine.clean();
    measured.map(|()| seen)
}

fn prepare(engine: &mut Insula, kernel: &Path) -> anyhow::Result<()> {
    engine.prepare()?;
    engine.output(&["kernel", "use", &kernel.display().to_string()]).map(drop)
}

fn all(engine: &mut Insula, folder: &Path, rounds: usize, seen: &mut Seen) -> anyhow::Result<()> {
    let about = |engine: &mut Insula, field: &str| engine.output(&["info", "-f", field]);
    let backend = about(engine, "{{.Machines.Backend}}")?;
    seen.machine = Some([backend, about(engine, "{{.Machines.Kernel}}")?]);
    eprintln!("bench: machines that boot");
    run(engine, "`run --rm --isolation vm busybox true`, it boots", &ALONE, rounds, seen)?;
    beside(engine, "it booted", seen)?;
    engine.output(&["warm", "--networks", "0", "-m", MEMORY])?;
    eprintln!("bench: copies of a template");
    run(engine, "`run --rm --isolation vm busybox true`, a copy of a template", &ALONE, rounds, seen)?;
    beside(engine, "a copy", seen)?;
    eprintln!("bench: machines of tenants");
    engine.output(&["tenant", "create", TENANT, "-m", MEMORY, "--cards", "1"])?;
    let of_tenant = format!("tenant:{TENANT}");
    let first = ["--isolation", of_tenant.as_str(), "--network", "none"];
    run(engine, "the first container of a tenant, whose machine boots", &first, rounds, seen)?;
    engine.output(&["warm", "--tenant", TENANT])?;
    run(engine, "the first container of a tenant, whose machine is a copy", &first, rounds, seen)?;
    eprintln!("bench: {MANY} machines");
    let mut pids = Vec::new();
    for name in names() {
        pids.push(start(engine, &name)?);
    }
    seen.many = shared(&pids)?;
    for name in names() {
        engine.output(&["rm", "-f", &name])?;
    }
    if carried::possible() {
        let data = folder.join("data");
        fs::create_dir_all(&data).with_context(|| format!("mkdir {}", data.display()))?;
        seen.carried = Carried::measure(engine, &data, rounds)?;
    } else {
        eprintln!("bench: fio or iperf3 is missing: what guests carry is left out");
    }
    Ok(())
}

fn names() -> Vec<String> {
    (0..MANY).map(|number| format!("vm{number}")).collect()
}

const TENANT: &str = "bench";
const ALONE: [&str; 6] = ["--isolation", "vm", "--network", "none", "-m", MEMORY];

/// As many runs of a container that has nothing to do.
fn run(
    engine: &mut Insula,
    what: &'static str,
    isolation: &[&str],
    rounds: usize,
    seen: &mut Seen,
) -> anyhow::Result<()> {
    let command = [&["run", "--rm"], isolation, &["busybox", "/bin/true"]].concat();
    // One that is not measured: initial RAM disk and caches.
    engine.timed(&command)?;
    let mut samples = Samples::default();
    for _ in 0..rounds {
        // A tenant's machine ends after its last container.
        await_none(engine)?;
        samples.push(engine.timed(&command)?);
    }
    seen.times.push((what, samples));
    Ok(())
}

/// Waits until no tenant has a machine.
fn await_none(engine: &mut Insula) -> anyhow::Result<()> {
    let began = Instant::now();
    while engine
        .output(&["tenant", "ls", "--format", "{{.Machine}}"])?
        .lines()
        .any(|state| state != "stopped")
    {
        ensure!(began.elapsed() < PATIENCE, "a tenant's machine does not end");
        std::thread::park_timeout(Duration::from_millis(20));
    }
    Ok(())
}

/// Starts a container that idles; the pid of its machine.
fn start(engine: &mut Insula, name: &str) -> anyhow::Result<u32> {
    let idle = ["--name", name, "busybox", "/bin/sleep", "1000"];
    engine.output(&[&["run", "-d"], &ALONE[..], &idle].concat())?;
    let pid = engine.output(&["inspect", "-f", "{{.State.Pid}}", name])?;
    pid.parse().with_context(|| format!("{pid:?} is no pid"))
}

fn beside(engine: &mut Insula, what: &'static str, seen: &mut Seen) -> anyhow::Result<()> {
    let pid = start(engine, "one")?;
    let path = format!("/proc/{pid}/smaps");
    let maps = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    seen.beside.push((what, own(&maps)));
    engine.output(&["rm", "-f", "one"]).map(drop)
}

/// KiB that a machine's process shares with nobody, but for its guest's memory, which is a file without a name.
fn own(maps: &str) -> u64 {
    let mut own = 0;
    let mut counts = false;
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        match first.strip_suffix(':') {
            // The head of a mapping: its addresses.
            None => counts = !line.contains("/memfd:"),
            Some("Private_Clean" | "Private_Dirty") if counts => {
                own += words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or_default();
            }
            Some(_) => {}
        }
    }
    own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_memory_is_not_its_machines() {
        let maps = "7f00-7f10 rw-p 00000000 00:01 7    /memfd:insula-guest (deleted)\nRss: 90 kB\n\
            Private_Dirty:    80 kB\n5500-5510 r-xp 00000000 08:01 9   /usr/bin/insula-vmm\nShared_Clean:  9 kB\n\
            Private_Clean:     4 kB\nPrivate_Dirty:     3 kB\n5600-5610 rw-p 00000000 00:00 0  [heap]\n\
            Private_Dirty:    20 kB\nVmFlags: rd wr\n";
        assert_eq!(own(maps), 27);
    }

    #[test]
    fn what_was_not_measured_is_not_told() {
        assert_eq!(Seen::default().to_string(), "");
        let mut seen = Seen { machine: Some(["qemu", "6.1"].map(str::to_owned)), ..Seen::default() };
        let mut samples = Samples::default();
        samples.push(Duration::from_millis(700));
        seen.times.push(("a copy", samples));
        seen.beside.push(("a copy", 5 << 10));
        seen.many = Shared { rss: 0, pss: 0, private: 20 * 22 * 1024 };
        let text = seen.to_string();
        assert!(text.contains("| a copy | 700 | 700 | 700 |"), "{text}");
        assert!(text.contains("memory, a copy | 5.0 |") && text.contains("each of them | 22.0 |"), "{text}");
    }
}
