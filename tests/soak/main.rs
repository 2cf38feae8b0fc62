//! A mix of everything for as long as is wanted, from several clients at once; afterwards nothing is left, and
//! insulad and the monitors take as much memory as they did before. `cargo xtask soak` runs it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod deeds;
mod memory;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use insula_tests::{Daemon, daemon, eventually};

use crate::deeds::{DEEDS, Turn};
use crate::memory::Memory;

/// Clients that do something at the same time.
const CLIENTS: u64 = 3;
/// Containers that run all the time and write something now and then.
const KEPT: [&str; 3] = ["kept-json", "kept-local", "kept-web"];
/// How often it is told how far it is.
const TOLD: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(500);
/// Of memory after the warm-up, in percent.
const GROWTH: u64 = 5;

/// splitmix64: the same numbers for the same seed everywhere.
#[derive(Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % sides as u64) as usize
    }
}

/// A number of the environment.
fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

#[test]
#[ignore = "takes minutes: cargo xtask soak"]
fn a_mix_of_everything_leaves_nothing_and_grows_nothing() {
    let daemon = daemon!();
    let length = Duration::from_secs(number("INSULA_TEST_SECONDS").unwrap_or(300));
    let seed = number("INSULA_TEST_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    eprintln!("soak: INSULA_TEST_SECONDS={} INSULA_TEST_SEED={seed}", length.as_secs());
    keep(&daemon);
    // A third of the time, in which caches, pools and rings fill; each part in two halves with a rest behind it.
    // What the heap cannot give back at a rest is not the same every time: it has grown when it is more at
    // each rest than it ever was at one before.
    let (warm, before) = halves(&daemon, seed, length / 3);
    let (done, after) = halves(&daemon, seed.wrapping_add(2), length - length / 3);
    eprintln!("soak: {warm} deeds to warm up, {done} deeds afterwards");
    for (when, rests) in [("before", &before), ("after ", &after)] {
        eprintln!("soak: {when} {}\nsoak: {when} {}", rests[0], rests[1]);
    }
    let before = before[0].clone().most(&before[1]);
    let after = after[0].clone().least(&after[1]);
    for name in KEPT {
        daemon.exec(name, "true").ok();
    }
    let grown = before.grown(&after, GROWTH);
    assert!(grown.is_empty(), "more than {GROWTH} % more than after the warm-up: {}", grown.join(", "));
}

fn keep(daemon: &Daemon) {
    let tick = "while :; do echo tick; sleep 1; done";
    let json = ["--name", KEPT[0], "--network", "none", "--log-opt", "max-size=20k"];
    let local =
        ["--name", KEPT[1], "--network", "none", "--log-driver", "local", "--log-opt", "max-size=20k"];
    let web = ["--name", KEPT[2], "-p", "127.0.0.1::80"];
    daemon.detached(&json, tick);
    daemon.detached(&local, tick);
    daemon.detached(&web, tick);
}

/// Two mixes of half the length, and what is there after each; how many deeds there were.
fn halves(daemon: &Daemon, seed: u64, length: Duration) -> (u64, [Memory; 2]) {
    let mut deeds = 0;
    let rests = [seed, seed.wrapping_add(1)].map(|seed| {
        deeds += mix(daemon, seed, length / 2);
        at_rest(daemon)
    });
    (deeds, rests)
}

/// Does this and that until the time is over; how many deeds there were.
fn mix(daemon: &Daemon, seed: u64, length: Duration) -> u64 {
    let (began, until) = (Instant::now(), Instant::now() + length);
    let count = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut told = began;
            while Instant::now() < until {
                std::thread::park_timeout(PAUSE);
                if told.elapsed() > TOLD {
                    told = Instant::now();
                    let (seconds, done) = (began.elapsed().as_secs(), count.load(Ordering::Relaxed));
                    eprintln!(
                        "soak: {seconds} s, {done} deeds, insulad {} KiB",
                        memory::own(daemon.pid().into())
                    );
                }
            }
        });
        for client in 0..CLIENTS {
            let count = &count;
            scope.spawn(move || {
                let mut dice = Dice(seed.wrapping_mul(CLIENTS).wrapping_add(client));
                while Instant::now() < until {
                    let number = count.fetch_add(1, Ordering::Relaxed);
                    let (name, deed) = DEEDS[dice.roll(DEEDS.len())];
                    let mut turn = Turn { daemon, dice: &mut dice, tag: format!("{name}-{client}-{number}") };
                    deed(&mut turn);
                }
            });
        }
    });
    count.into_inner()
}

/// What is measured when nothing happens any more: nothing is left of the deeds, on the disk and on the host.
fn at_rest(daemon: &Daemon) -> Memory {
    let running = daemon.insula(&["ps", "-a", "--format", "{{.Names}}"]).ok().to_owned();
    let mut names: Vec<&str> = running.lines().collect();
    names.sort_unstable();
    assert_eq!(names, KEPT, "containers are left");
    assert_eq!(daemon.insula(&["volume", "ls", "-q"]).ok(), "", "volumes are left");
    assert_eq!(daemon.insula(&["network", "ls", "-q", "-f", "type=custom"]).ok(), "", "networks are left");
    daemon.insula(&["system", "prune", "-f"]).ok();
    let mut last = String::new();
    let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        eventually("a check finds nothing", || {
            let outcome = daemon.insula(&["system", "check"]);
            last = outcome.to_string();
            (outcome.code == 0).then_some(())
        });
    }));
    assert!(found.is_ok(), "{last}");
    Memory::at_rest(daemon, &KEPT)
}
