//! A disk that is full, at whatever is written: it costs what did not fit, and nothing that was acknowledged.

use std::fs;
use std::path::PathBuf;

use insula_tests::images::{Compression, Image, Layer, busybox};
use insula_tests::{Daemon, eventually, is_root, registry, skip};

/// All that insula keeps is on so many MiB.
const SIZE: u64 = 32;
const MIB: u64 = 1 << 20;

/// A daemon on a small disk; `None` where none can be mounted.
pub(crate) fn on_a_small_disk() -> Option<Daemon> {
    if !is_root() {
        skip("root", "a small file system is mounted");
        return None;
    }
    let mut daemon = Daemon::absent();
    let root = daemon.instance().root().to_owned();
    daemon.mount_small(&root, &format!("{SIZE}m"));
    daemon.restart();
    daemon.load(&busybox().docker_archive()).ok();
    Some(daemon)
}

/// Takes the room of a disk until it goes out of scope.
struct Ballast(PathBuf);

impl Ballast {
    /// So that this many bytes are free.
    fn leaving(daemon: &Daemon, free: u64) -> Self {
        let path = daemon.instance().root().join("ballast");
        let stat = rustix::fs::statvfs(daemon.instance().root()).unwrap();
        let there = stat.f_bavail * stat.f_frsize;
        fs::write(&path, vec![1; usize::try_from(there.saturating_sub(free)).unwrap()]).unwrap();
        Self(path)
    }

    /// So that nothing fits any more.
    fn filling(daemon: &Daemon) -> Self {
        let ballast = Self::leaving(daemon, 0);
        let mut file = fs::File::options().append(true).open(&ballast.0).unwrap();
        while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
        ballast
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// An image that has much at `/much`, of this content.
fn much(name: &str, first: u8) -> Image {
    let mut image = busybox();
    let files = (0..40).fold(Layer::default(), |layer, number| {
        layer.file(&format!("much/{number}"), 0o644, &vec![first + number; 100_000])
    });
    image.layers.push(files.bytes());
    image.name = name.into();
    image
}

#[test]
fn a_log_that_does_not_fit_costs_lines_and_no_container() {
    let Some(daemon) = on_a_small_disk() else { return };
    daemon.sleeper(&["--name", "box", "--network", "none"]);
    let line = "a line that is as long as all the others are, so that half of one is seen at once";
    let script = format!("yes '{line}' | head -n 600000; exit 7");
    let noisy = ["--name", "noisy", "--network", "none", "--log-opt", "max-size=1g"];
    daemon.detached(&noisy, &script);
    assert_eq!(daemon.insula(&["wait", "noisy"]).ok(), "7");
    let logs = daemon.insula(&["logs", "noisy"]);
    let kept = logs.ok().lines().count();
    assert!((10_000..600_000).contains(&kept), "{kept} lines");
    assert!(logs.stdout.lines().all(|kept| kept == line), "half a line is in the log");
    daemon.exec("box", "true").ok();
    daemon.insula(&["rm", "noisy"]).ok();
    assert_eq!(daemon.sh(&["--network", "none"], "echo room").ok(), "room");
    daemon.insula(&["rm", "-f", "box"]).ok();
}

#[test]
fn what_does_not_fit_leaves_nothing_and_may_be_tried_again() {
    let registry = registry!();
    let Some(daemon) = on_a_small_disk() else { return };
    daemon.load(&much("much:1", 0).docker_archive()).ok();
    daemon.sleeper(&["--name", "box", "--network", "none"]);
    // What an image has for a new volume: half of it must not be taken for all of it.
    {
        let _ballast = Ballast::leaving(&daemon, 2 * MIB);
        let run = ["run", "--rm", "--network", "none", "-v", "vol:/much", "much:1", "true"];
        daemon.insula(&run).fails(125, &["No space left"]);
    }
    let count =
        ["run", "--rm", "--network", "none", "-v", "vol:/much", "much:1", "sh", "-c", "ls /much | wc -l"];
    assert_eq!(daemon.insula(&count).ok(), "40");
    daemon.insula(&["volume", "rm", "vol"]).ok();
    // A pull.
    registry.put(&much("app:1", 100), "app", "1", Compression::Plain);
    let name = registry.name("app:1");
    {
        let _ballast = Ballast::leaving(&daemon, MIB);
        daemon.insula(&["pull", &name]).fails(1, &["No space left"]);
    }
    daemon.insula(&["image", "inspect", &name]).exits(1);
    daemon.insula(&["pull", &name]).ok();
    daemon.insula(&["rmi", &name]).ok();
    // Rows.
    {
        let _ballast = Ballast::filling(&daemon);
        let refused = daemon.insula(&["create", "--name", "more", "busybox", "true"]);
        assert!(refused.code != 0 && refused.stderr.contains("the disk is full"), "{refused}");
        assert_eq!(daemon.insula(&["ps", "-a", "--format", "{{.Names}}"]).ok(), "box");
        daemon.exec("box", "true").ok();
    }
    daemon.insula(&["create", "--name", "more", "busybox", "true"]).ok();
    assert_eq!(daemon.inspect("box", "/State/Status"), "running");
    eventually("a check finds nothing", || (daemon.insula(&["system", "check"]).code == 0).then_some(()));
    daemon.insula(&["rm", "-f", "box", "more"]).ok();
}

/// Something that is asked for, how it is seen that it was done, and how it is undone.
struct Deed {
    words: &'static [&'static str],
    input: Vec<u8>,
    there: &'static [&'static str],
    undo: &'static [&'static str],
}

fn deeds() -> Vec<Deed> {
    let deed = |words, there, undo| Deed { words, input: Vec::new(), there, undo };
    let dockerfile = b"FROM busybox\nCOPY data /once\nRUN cat /once > /twice";
    let context =
        Layer::default().file("Dockerfile", 0o644, dockerfile).file("data", 0o644, &vec![7; 200_000]);
    let with = |input, deed| Deed { input, ..deed };
    vec![
        deed(&["create", "--name", "it", "busybox", "true"], &["inspect", "it"], &["rm", "it"]),
        deed(
            &["run", "-d", "--name", "it", "--network", "none", "busybox", "sleep", "1000"],
            &["exec", "it", "true"],
            &["rm", "-f", "it"],
        ),
        deed(&["commit", "box", "it"], &["run", "--rm", "--network", "none", "it", "true"], &["rmi", "it"]),
        deed(&["tag", "busybox", "it"], &["image", "inspect", "it"], &["rmi", "it"]),
        with(
            context.bytes(),
            deed(
                &["build", "-q", "--no-cache", "-t", "it", "-"],
                &["run", "--rm", "--network", "none", "it", "cmp", "/once", "/twice"],
                &["rmi", "it"],
            ),
        ),
        with(
            much("it:latest", 0).docker_archive(),
            deed(&["load"], &["run", "--rm", "--network", "none", "it", "ls", "/much/39"], &["rmi", "it"]),
        ),
        with(
            Layer::default().file("data", 0o644, &vec![9; 300_000]).bytes(),
            deed(&["import", "-", "it"], &["image", "inspect", "it"], &["rmi", "it"]),
        ),
        deed(&["volume", "create", "it"], &["volume", "inspect", "it"], &["volume", "rm", "it"]),
        deed(&["network", "create", "it"], &["network", "inspect", "it"], &["network", "rm", "it"]),
        deed(&["rename", "box", "it"], &["inspect", "it"], &["rename", "it", "box"]),
        deed(
            &["update", "--restart", "on-failure:3", "box"],
            &["exec", "box", "true"],
            &["update", "--restart", "no", "box"],
        ),
    ]
}

fn is_whole(daemon: &Daemon) {
    eventually("a check finds nothing", || (daemon.insula(&["system", "check"]).code == 0).then_some(()));
}

#[test]
fn with_any_amount_of_room_a_thing_is_done_or_it_is_not() {
    let Some(daemon) = on_a_small_disk() else { return };
    daemon.sleeper(&["--name", "box", "--network", "none"]);
    daemon.exec("box", "head -c 200000 /dev/urandom > /changed").ok();
    let sum = daemon.exec("box", "md5sum /changed").ok().to_owned();
    let (mut done, mut refused) = (0, 0);
    for deed in deeds() {
        for free in [0, 32 << 10, 256 << 10, MIB] {
            let outcome = {
                let _ballast = Ballast::leaving(&daemon, free);
                daemon.insula_with(deed.words, &deed.input)
            };
            let there = daemon.insula(deed.there);
            if outcome.code == 0 {
                done += 1;
                there.ok();
            } else {
                refused += 1;
                let said = outcome.to_string().to_lowercase();
                let full = said.contains("no space left") || said.contains("disk is full");
                assert!(full, "{free}: {outcome}");
                assert!(deed.words[0] == "update" || there.code != 0, "{free}: {outcome}{there}");
            }
            daemon.insula(deed.undo);
            is_whole(&daemon);
        }
    }
    eprintln!("{done} done, {refused} refused");
    assert!(done > 0 && refused > 0);
    assert_eq!(daemon.exec("box", "md5sum /changed").ok(), sum);
    daemon.insula(&["rm", "-f", "box"]).ok();
}

#[test]
fn what_ends_while_the_disk_is_full_has_ended_as_it_did() {
    let Some(mut daemon) = on_a_small_disk() else { return };
    let flags = ["--network", "none", "-v", "/in", "--name"];
    daemon
        .detached(&[&flags[..], &["ends"]].concat(), "while test ! -e /in/go; do usleep 10000; done; exit 7");
    for name in ["stopped", "killed", "removed", "daemon"] {
        daemon.sleeper(&["--network", "none", "--name", name]);
    }
    {
        let _ballast = Ballast::filling(&daemon);
        // A file without content takes no room.
        daemon.exec("ends", ": > /in/go");
        daemon.insula(&["stop", "-t", "0", "stopped"]);
        daemon.insula(&["kill", "killed"]);
        daemon.insula(&["rm", "-f", "removed"]).ok();
        daemon.insula(&["inspect", "removed"]).exits(1);
        daemon.kill();
        daemon.restart();
        daemon.exec("daemon", "true").ok();
    }
    // Whether the one that was stopped took note of SIGTERM before SIGKILL is its own affair.
    for (name, codes) in [("ends", [7, 7]), ("stopped", [137, 143]), ("killed", [137, 137])] {
        daemon.reaches(name, "exited");
        let code = daemon.inspect(name, "/State/ExitCode");
        assert!(codes.iter().any(|expected| code == *expected), "{name}: {code}");
    }
    daemon.exec("daemon", "true").ok();
    is_whole(&daemon);
    daemon.insula(&["rm", "-f", "ends", "stopped", "killed", "daemon"]).ok();
}
