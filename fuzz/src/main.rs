//! Runs every target for a bounded time: `insula-fuzz [--seconds N] [--seed N] [TARGET…]`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use insula_fuzz::mutate::{Random, mutate};
use insula_fuzz::{TARGETS, Target};

const LONGEST: usize = 1 << 20;
/// Address space of this process: what a parser may not reach, however an input lies about sizes.
const MEMORY: u64 = 2 << 30;
/// One input that takes longer is a finding.
const PATIENCE: Duration = Duration::from_secs(10);

struct Options {
    seconds: u64,
    seed: u64,
    targets: Vec<&'static Target>,
}

fn main() -> ExitCode {
    match options().and_then(|options| run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fuzz: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn options() -> anyhow::Result<Options> {
    let seed = std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_nanos() as u64);
    let mut options = Options { seconds: 20, seed, targets: Vec::new() };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || {
            arguments
                .next()
                .and_then(|n| n.parse().ok())
                .with_context(|| format!("{argument} takes a number"))
        };
        match argument.as_str() {
            "--seconds" => options.seconds = number()?,
            "--seed" => options.seed = number()?,
            name => match TARGETS.iter().find(|target| target.name == name) {
                Some(target) => options.targets.push(target),
                None => bail!(
                    "no target {name:?}; there are {:?}",
                    TARGETS.iter().map(|target| target.name).collect::<Vec<_>>()
                ),
            },
        }
    }
    if options.targets.is_empty() {
        options.targets = TARGETS.iter().collect();
    }
    Ok(options)
}

fn run(options: &Options) -> anyhow::Result<()> {
    let limit = rustix::process::Rlimit { current: Some(MEMORY), maximum: Some(MEMORY) };
    rustix::process::setrlimit(rustix::process::Resource::As, limit).context("limit the address space")?;
    let share = Duration::from_secs(options.seconds) / options.targets.len() as u32;
    for target in &options.targets {
        let inputs = run_target(target, share, &mut Random::new(options.seed))
            .with_context(|| format!("target {}, seed {}", target.name, options.seed))?;
        eprintln!("fuzz: {}: {inputs} inputs", target.name);
    }
    Ok(())
}

fn run_target(target: &Target, share: Duration, random: &mut Random) -> anyhow::Result<u64> {
    let began = Instant::now();
    let mut corpus = (target.seeds)();
    let mut inputs = 0;
    for seed in &corpus {
        try_input(target, seed)?;
    }
    while began.elapsed() < share {
        let parent = random.below(corpus.len());
        let input = mutate(random, &corpus[parent], LONGEST);
        try_input(target, &input)?;
        inputs += 1;
        // Without coverage to steer by, a few descendants take the place of a corpus that grows.
        if random.below(50) == 0 {
            let place = random.below(64);
            if place < corpus.len() && corpus.len() > 32 { corpus[place] = input } else { corpus.push(input) }
        }
        corpus.truncate(64);
    }
    Ok(inputs)
}

fn try_input(target: &Target, input: &[u8]) -> anyhow::Result<()> {
    let began = Instant::now();
    let panicked = catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_err();
    if !panicked && began.elapsed() < PATIENCE {
        return Ok(());
    }
    let folder = PathBuf::from("fuzz/artifacts").join(target.name);
    std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let path = folder.join(format!("input-{}", insula_base::random_hex(4)));
    std::fs::write(&path, input).with_context(|| format!("write {}", path.display()))?;
    let what = if panicked { "panicked" } else { "took too long" };
    bail!("{what}; the input is kept in {}", path.display())
}
