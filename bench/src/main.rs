//! Runs insula and the peers that this machine has, interleaved in one run, and writes what it
//! saw: medians, spread, ratios. Nothing here passes or fails.
//!
//! Everything happens in a network namespace of its own, so that no peer's bridge or firewall
//! rule reaches the host; each peer's state is in a temporary folder, and its daemon ends by pid.

mod api;
mod builds;
mod bundle;
mod chart;
mod containerd;
mod daemon;
mod engine;
mod facts;
mod floor;
mod image;
mod images;
mod inside;
mod machines;
mod memory;
mod peer;
mod postgres;
mod report;
mod runtimes;
mod sample;
mod starts;
mod traffic;
mod volatile;
mod worker;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};

use crate::peer::{Peer, Scenario};
use crate::report::Report;
use crate::starts::Starts;

const USAGE: &str =
    "usage: insula-bench [--rounds N] [--short] [--images N] [--builds N] [--networks N] [--no-api]
           [--runtimes N] [--no-lives] [--machines N] [--kernel FOLDER] [--only NAME,NAME] [--out FILE]

Compares insula (programs from INSULA_BIN_DIR) with docker, podman, crun, runc and youki, as far as they
are installed, and writes bench/RESULTS.md and a chart beside it. Needs root. --images 0 leaves
images of some size out, --builds 0 builds, --networks 0 what networks carry, --no-api what is asked of insula alone:
many containers, connections, commands and events, --no-lives copies of PostgreSQL and the work inside the wall,
--runtimes 0 insula-runtime beside others of bundles, --machines 0 containers with kernels of their
own; their kernel is an unpacked package, without --kernel the one of the tests if it is there.";

struct Options {
    rounds: usize,
    scale: Scale,
    /// Whether PostgreSQL is copied and work done inside the wall.
    lives: bool,
    /// At most; as many as there is time for.
    images: usize,
    /// The same.
    builds: usize,
    /// Rounds of what carries; each takes about fifteen seconds a peer.
    networks: usize,
    /// insula's API with many.
    api: Option<api::Scale>,
    /// Rounds of bundles without an engine.
    runtimes: usize,
    /// Rounds of what has a kernel of its own.
    machines: usize,
    /// An unpacked package with one.
    kernel: PathBuf,
    only: Option<Vec<String>>,
    out: PathBuf,
}

/// How many of what is only counted.
#[derive(Debug, Clone, Copy)]
struct Scale {
    /// Started some at a time.
    starts: usize,
    /// Copies of PostgreSQL: of ours, and of those who take longer.
    copies: [usize; 2],
    /// Turns of the work inside the wall.
    inside: usize,
    /// Of a large image, of ours alone.
    containers: Option<usize>,
}

impl Scale {
    const WHOLE: Self = Self { starts: 100, copies: [200, 40], inside: 15, containers: Some(1000) };
    const SHORT: Self = Self { starts: 24, copies: [16, 8], inside: 1, containers: None };
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == worker::FLAG) {
        return worker::serve();
    }
    let options = options(&arguments)?;
    if !rustix::process::geteuid().is_root() {
        bail!("the engines make namespaces and networks: run it as root");
    }
    if std::env::var_os(INSIDE).is_none() {
        return reenter(&arguments);
    }
    let folder = tempfile::Builder::new().prefix("insula-bench-").tempdir().context("make a folder")?;
    let _volatile = volatile::Gone(folder.path().to_owned());
    let mut peers = peer::all(folder.path(), options.only.as_deref())?;
    let mut result = compare(&mut peers, &options);
    if let Ok(report) = &mut result
        && options.images > 0
    {
        match images::compare(folder.path(), &mut peers, options.images, options.scale.containers) {
            Ok(seen) => report.images(seen),
            Err(error) => eprintln!("bench: images are left out: {error:#}"),
        }
    }
    if let Ok(report) = &mut result
        && options.builds > 0
    {
        match builds::compare(folder.path(), &mut peers, options.builds) {
            Ok(seen) => report.builds(seen),
            Err(error) => eprintln!("bench: builds are left out: {error:#}"),
        }
    }
    for peer in &mut peers {
        peer.clean();
    }
    if let Ok(report) = &mut result
        && let Some(scale) = options.api
    {
        match api::measure(folder.path(), scale) {
            Ok(seen) => report.api(seen),
            Err(error) => eprintln!("bench: the API with many is left out: {error:#}"),
        }
    }
    if let Ok(report) = &mut result
        && options.runtimes > 0
    {
        match runtimes::measure(folder.path(), options.runtimes) {
            Ok(seen) => report.runtimes(seen),
            Err(error) => eprintln!("bench: runtimes of bundles are left out: {error:#}"),
        }
    }
    if let Ok(report) = &mut result
        && options.machines > 0
    {
        match kernels(&options, folder.path()) {
            Ok(seen) => report.machines(seen),
            Err(error) => eprintln!("bench: kernels of their own are left out: {error:#}"),
        }
    }
    let report = result?;
    std::fs::write(&options.out, report.to_string())
        .with_context(|| format!("write {}", options.out.display()))?;
    eprintln!("bench: wrote {}", options.out.display());
    let chart = options.out.with_file_name("chart.svg");
    std::fs::write(&chart, report.chart()).with_context(|| format!("write {}", chart.display()))?;
    Ok(())
}

fn options(arguments: &[String]) -> anyhow::Result<Options> {
    let mut options = Options {
        rounds: 15,
        scale: Scale::WHOLE,
        lives: true,
        images: 3,
        builds: 3,
        networks: 9,
        api: Some(api::Scale::WHOLE),
        runtimes: 40,
        machines: 5,
        kernel: "target/fixtures/kernel".into(),
        only: None,
        out: "bench/RESULTS.md".into(),
    };
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let mut value = || rest.next().with_context(|| format!("{argument} takes a value\n{USAGE}"));
        match argument.as_str() {
            "--rounds" => options.rounds = value()?.parse().context("--rounds takes a number")?,
            "--images" => options.images = value()?.parse().context("--images takes a number")?,
            "--builds" => options.builds = value()?.parse().context("--builds takes a number")?,
            "--networks" => options.networks = value()?.parse().context("--networks takes a number")?,
            "--short" => {
                (options.rounds, options.images, options.builds) = (3, 1, 1);
                (options.networks, options.runtimes, options.machines) = (1, 5, 2);
                options.scale = Scale::SHORT;
                options.api = options.api.map(|_| api::Scale::SHORT);
            }
            "--runtimes" => options.runtimes = value()?.parse().context("--runtimes takes a number")?,
            "--machines" => options.machines = value()?.parse().context("--machines takes a number")?,
            "--kernel" => options.kernel = value()?.into(),
            "--no-lives" => options.lives = false,
            "--no-api" => options.api = None,
            "--only" => options.only = Some(value()?.split(',').map(str::to_owned).collect()),
            "--out" => options.out = value()?.into(),
            other => bail!("unknown argument {other}\n{USAGE}"),
        }
    }
    Ok(options)
}

fn kernels(options: &Options, folder: &Path) -> anyhow::Result<machines::Seen> {
    let kernel = options.kernel.canonicalize();
    let kernel = kernel.with_context(|| format!("there is no kernel in {}", options.kernel.display()))?;
    machines::measure(folder, &kernel, options.machines)
}

const INSIDE: &str = "INSULA_BENCH_INSIDE";

/// Runs this program again in a network namespace of its own, with `/run` in memory for every engine.
fn reenter(arguments: &[String]) -> anyhow::Result<()> {
    let own = std::env::current_exe().context("find this program")?;
    // dockerd would drop what others forward, had it to switch forwarding on.
    let script = "[ \"$(stat -f -c %T /run)\" = tmpfs ] || mount -t tmpfs -o mode=755 tmpfs /run
        ip link set lo up && echo 1 >/proc/sys/net/ipv4/ip_forward && exec \"$0\" \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args(["--net", "--mount", "--propagation", "slave", "sh", "-c", script])
        .arg(own)
        .args(arguments)
        .env(INSIDE, "1");
    let status = command.status().context("run unshare")?;
    if status.success() { Ok(()) } else { bail!("the comparison ended with {status}") }
}

/// All rounds of all scenarios: in each round every peer has its turn in each scenario.
fn compare(peers: &mut Vec<Box<dyn Peer>>, options: &Options) -> anyhow::Result<Report> {
    let Options { rounds, scale, networks, .. } = *options;
    let mut report = Report::new(rounds);
    ready(peers);
    if peers.is_empty() {
        bail!("nothing to compare is installed");
    }
    for peer in peers.iter_mut() {
        report.version(peer.name(), &peer.version());
        let memory = peer.memory()?;
        report.memory(peer.name(), memory);
    }
    // Logs are written to the disk for a while yet: what starts meanwhile would pay for it.
    for scenarios in [Scenario::COMMANDS, Scenario::LOGS] {
        take_turns(peers, scenarios, rounds, &mut report)?;
    }
    if let Err(error) = take_turns(peers, Scenario::COLD, rounds.min(COLD), &mut report) {
        eprintln!("bench: what is cold is left out: {error:#}");
    }
    if let Err(error) = start_many(peers, &mut report, scale.starts) {
        eprintln!("bench: many at a time are left out: {error:#}");
    }
    if options.lives
        && let Err(error) = lives(peers, &mut report, scale)
    {
        eprintln!("bench: copies of PostgreSQL are left out: {error:#}");
    }
    if let Err(error) = carry(peers, &mut report, networks) {
        eprintln!("bench: networks are left out: {error:#}");
    }
    Ok(report)
}

/// Rounds in which every peer has its turn in each scenario. One unmeasured round warms caches.
fn take_turns(
    peers: &mut [Box<dyn Peer>],
    scenarios: &[Scenario],
    rounds: usize,
    report: &mut Report,
) -> anyhow::Result<()> {
    for round in 0..=rounds {
        eprintln!("bench: round {round} of {rounds}");
        for scenario in scenarios {
            for peer in peers.iter_mut() {
                if Scenario::COLD.contains(scenario) {
                    forget()?;
                }
                let time =
                    peer.time(*scenario).with_context(|| format!("{} in {scenario:?}", peer.name()))?;
                if let Some(time) = time.filter(|_| round > 0) {
                    report.samples(*scenario, peer.name()).push(time);
                }
            }
        }
    }
    Ok(())
}

/// Rounds in which nothing is in memory: each takes seconds.
const COLD: usize = 5;

/// Has the kernel drop what it keeps of files.
fn forget() -> anyhow::Result<()> {
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3").context("drop the caches")
}

/// Many containers, some at a time.
fn start_many(peers: &mut [Box<dyn Peer>], report: &mut Report, count: usize) -> anyhow::Result<()> {
    let mut starts = Starts::of(count);
    for peer in peers.iter_mut() {
        eprintln!("bench: {count} containers of {}", peer.name());
        let name = peer.name().to_owned();
        if let Some(engine) = peer.images() {
            starts.measure(&name, engine).with_context(|| format!("{name} with many"))?;
        }
    }
    report.starts = starts;
    Ok(())
}

/// Copies of a server that is loaded, and what it costs to be inside.
fn lives(peers: &mut [Box<dyn Peer>], report: &mut Report, scale: Scale) -> anyhow::Result<()> {
    for peer in peers.iter_mut() {
        let name = peer.name().to_owned();
        let Some(engine) = peer.images() else { continue };
        eprintln!("bench: copies of PostgreSQL of {name}");
        report
            .postgres
            .measure(&name, engine, scale.copies)
            .with_context(|| format!("PostgreSQL with {name}"))?;
        if name == report::OURS {
            let folder = tempfile::Builder::new().prefix("insula-bench-").tempdir_in("/var/tmp");
            report.inside =
                inside::Inside::measure(engine, folder.context("make a folder")?.path(), scale.inside)?;
        }
    }
    Ok(())
}

/// What networks carry, in turns; then one that is full.
fn carry(peers: &mut [Box<dyn Peer>], report: &mut Report, rounds: usize) -> anyhow::Result<()> {
    if rounds == 0 {
        return Ok(());
    }
    if !traffic::possible() {
        eprintln!("bench: iperf3, wrk or nginx is missing: networks are left out");
        return Ok(());
    }
    let folder = tempfile::Builder::new().prefix("insula-bench-").tempdir().context("make a folder")?;
    let mut alone = peer::alone(folder.path());
    alone.retain(|engine| peers.iter().any(|peer| peer.name() == engine.name()));
    ready(&mut alone);
    let carried = take_turns_in_carrying(&mut alone, report, rounds);
    alone.iter_mut().for_each(|peer| peer.clean());
    carried?;
    eprintln!("bench: a thousand containers of one network");
    for peer in peers.iter_mut() {
        if let Some(crowd) = peer.crowd().with_context(|| format!("many containers of {}", peer.name()))? {
            report.traffic.crowded(crowd);
        }
    }
    Ok(())
}

fn take_turns_in_carrying(
    peers: &mut [Box<dyn Peer>],
    report: &mut Report,
    rounds: usize,
) -> anyhow::Result<()> {
    for round in 1..=rounds {
        eprintln!("bench: networks, round {round} of {rounds}");
        // A host that gets slower or faster, and what the one before left to be cleared away, counts for all alike.
        let mut order: Vec<_> = peers.iter_mut().collect();
        if round % 2 == 0 {
            order.reverse();
        }
        for peer in order {
            let turn = peer.traffic().with_context(|| format!("the network of {}", peer.name()))?;
            if let Some(turn) = turn {
                report.traffic.push(peer.name(), turn);
            }
        }
    }
    Ok(())
}

/// Sets every peer up; one that cannot run here is left out, and it is said.
fn ready(peers: &mut Vec<Box<dyn Peer>>) {
    peers.retain_mut(|peer| match peer.prepare() {
        Ok(()) => true,
        Err(error) => {
            eprintln!("bench: {} is left out: {error:#}", peer.name());
            peer.clean();
            false
        }
    });
}
