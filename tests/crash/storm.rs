//! Random commands, and a daemon that is killed in the middle of one. What was answered holds.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::{Duration, Instant};

use insula_tests::{Daemon, daemon};

use crate::state::{check, clear, containers};

/// None could be the beginning of an id.
const NAMES: [&str; 4] = ["kiwi", "lime", "pear", "plum"];
const LONGEST: Duration = Duration::from_secs(25);

/// splitmix64: the same numbers for the same seed everywhere.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }
}

/// What is known of a container by what was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Absent,
    Stopped,
    Running,
}

#[derive(Debug, Clone, Copy)]
enum Verb {
    Create,
    Start,
    Stop,
    Kill,
    Remove,
    Exec,
    Rename,
}

const VERBS: [Verb; 7] =
    [Verb::Create, Verb::Start, Verb::Stop, Verb::Kill, Verb::Remove, Verb::Exec, Verb::Rename];

impl Verb {
    fn words(self, name: &str) -> Vec<String> {
        let words: &[&str] = match self {
            // Some of them have disks of their own.
            Self::Create if name < "m" => {
                &["create", "--storage-opt", "size=8m", "--name", name, "busybox", "sleep", "1000"]
            }
            Self::Create => &["create", "--init", "-v", "/v", "--name", name, "busybox", "sleep", "1000"],
            Self::Start => &["start", name],
            Self::Stop => &["stop", "-t", "3", name],
            Self::Kill => &["kill", name],
            Self::Remove => &["rm", "-f", "-v", name],
            Self::Exec => &["exec", name, "true"],
            // There and back again: names are unique at every moment.
            Self::Rename => &["rename", name, name],
        };
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    /// What a successful answer says.
    fn done(self, before: Known) -> Known {
        match self {
            Self::Create | Self::Stop | Self::Kill => Known::Stopped,
            Self::Start => Known::Running,
            Self::Remove => Known::Absent,
            Self::Exec | Self::Rename => before,
        }
    }

    /// Whether it brings down what runs, before or after it is cut off.
    fn ends(self) -> bool {
        matches!(self, Self::Stop | Self::Kill | Self::Remove)
    }
}

fn found(daemon: &Daemon, name: &str) -> Known {
    let wanted = format!("/{name}");
    match containers(daemon).iter().find(|(_, name, _)| *name == wanted).map(|(.., status)| status.as_str()) {
        None => Known::Absent,
        Some("running") => Known::Running,
        Some(_) => Known::Stopped,
    }
}

#[test]
fn what_was_answered_holds_whenever_the_daemon_is_killed() {
    let mut daemon = daemon!();
    let seed = std::env::var("INSULA_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| u64::from(std::process::id()));
    eprintln!("INSULA_TEST_SEED={seed}");
    let mut dice = Dice(seed);
    let mut model: BTreeMap<&str, Known> = NAMES.iter().map(|name| (*name, Known::Absent)).collect();
    // A storm in which nothing is ever made would show nothing.
    let words = Verb::Create.words(NAMES[0]);
    daemon.insula(&words.iter().map(String::as_str).collect::<Vec<_>>()).ok();
    model.insert(NAMES[0], Known::Stopped);
    let began = Instant::now();
    for round in 0.. {
        if began.elapsed() > LONGEST {
            break;
        }
        for _ in 0..dice.roll(6) {
            let (name, verb) = (NAMES[dice.roll(4) as usize], VERBS[dice.roll(7) as usize]);
            let words = verb.words(name);
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let code = daemon.insula(&words).code;
            eprintln!("round {round}: {words:?}: exit code {code}");
            if code == 0 {
                let before = model[name];
                model.insert(name, verb.done(before));
            }
            assert_eq!(found(&daemon, name), model[name], "round {round}: {words:?}");
        }
        // The last one is cut off, at no particular moment.
        let (name, verb) = (NAMES[dice.roll(4) as usize], VERBS[dice.roll(7) as usize]);
        let words = verb.words(name);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut command = daemon.command(&words);
        // One that comes after the kill must not start a daemon of its own.
        command.env("INSULA_HOST", format!("unix://{}", daemon.instance().socket().display()));
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::park_timeout(Duration::from_micros(dice.roll(60_000)));
        daemon.kill();
        // It can do no more, but it might wait for the next daemon.
        child.kill().unwrap();
        child.wait().unwrap();
        daemon.restart();
        let when = format!("round {round} of seed {seed}: {words:?}");
        eprintln!("{when}, cut off");
        for other in NAMES.iter().filter(|other| **other != name) {
            assert_eq!(found(&daemon, other), model[other], "{other} after {when}");
        }
        let (before, now) = (model[name], found(&daemon, name));
        let falls = before == Known::Running && verb.ends();
        let possible = now == before || now == verb.done(before) || falls && now == Known::Stopped;
        assert!(possible, "{name} is {now:?} and was {before:?} after {when}");
        if falls && now == Known::Running {
            // The signal may be on its way.
            daemon.insula(&["stop", name]).ok();
        }
        check(&daemon, &when);
        for name in NAMES {
            model.insert(name, found(&daemon, name));
        }
    }
    clear(&daemon, "the storm");
}
