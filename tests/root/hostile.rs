//! Builds of what strangers send: it leads nowhere, and takes no more than there is.

use std::io::Write;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};

use insula_tests::daemon;
use insula_tests::images::Layer;
use tar::EntryType;

use crate::build::{build, context, run};
use crate::full_disk::on_a_small_disk;

const COPIES: &[u8] = b"FROM busybox\nCOPY . /all/\n";

#[test]
fn an_archive_that_is_a_context_leads_nowhere() {
    let daemon = daemon!();
    let outside = daemon.folder().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("secret"), "secret").unwrap();
    std::fs::write(outside.join("Dockerfile"), COPIES).unwrap();
    let place = |name: &str| outside.join(name).to_str().unwrap().to_owned();
    let plain = || Layer::default().file("Dockerfile", 0o644, COPIES);
    let sent =
        |layer: Layer| daemon.insula_with(&["build", "--network", "none", "-t", "made", "-"], &layer.bytes());

    sent(plain()).ok();
    // Through a link that comes first, and above the root.
    sent(plain().symlink("out", &place("")).file("out/escaped", 0o644, b"x"));
    sent(plain().symlink("up", "../../../../../../../..").file(&format!("up{}", place("up")), 0o644, b"x"));
    sent(plain().file("../escaped", 0o644, b"x")).exits(1);
    let mut names: Vec<_> = outside.read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["Dockerfile", "secret"]);
    assert!(!daemon.folder().join("escaped").exists());
    // Another name for a file of the host's.
    sent(plain().entry(EntryType::Link, "stolen", &place("secret"), 0o644, 0, b"")).exits(1);
    // A Dockerfile that is elsewhere, and files that links stand for: links are copied as they are.
    let linked = Layer::default().symlink("Dockerfile", &place("Dockerfile"));
    sent(linked).fails(1, &["Cannot locate specified Dockerfile"]);
    sent(plain().symlink("dir/link", &place("secret"))).ok();
    assert_eq!(
        run(&daemon, "made", "test -L /all/dir/link && ! cat /all/dir/link 2>/dev/null && echo link"),
        "link"
    );
    let named = Layer::default().file("Dockerfile", 0o644, b"FROM busybox\nCOPY link /x\n");
    sent(named.symlink("link", &place("secret"))).fails(1, &["link does not exist"]);
    assert_eq!(daemon.insula(&["ps", "-aq"]).ok(), "");
}

/// An archive of a few bytes that becomes many.
fn bomb(size: usize) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let archive = Layer::default().file("much", 0o644, &vec![b'a'; size]).bytes();
    gzip.write_all(&archive).unwrap();
    gzip.finish().unwrap()
}

#[test]
fn an_archive_that_is_larger_than_the_disk_costs_nothing() {
    let Some(daemon) = on_a_small_disk() else { return };
    let folder = context(&daemon, "bomb", &[("Dockerfile", "FROM busybox\nADD bomb.tar.gz /\n")]);
    std::fs::write(folder.join("bomb.tar.gz"), bomb(64 << 20)).unwrap();
    let free = || {
        let stat = rustix::fs::statvfs(daemon.instance().root()).unwrap();
        stat.f_bavail * stat.f_frsize
    };
    let before = free();
    build(&daemon, &folder, &["-t", "made"]).exits(1);
    assert!(before - free().min(before) < 2 << 20, "{} bytes are gone", before - free());
    daemon.insula(&["image", "inspect", "made"]).exits(1);
    daemon.insula(&["system", "check"]).ok();
    // A context is an archive too.
    let whole = Layer::default().file("Dockerfile", 0o644, COPIES).file("much", 0o644, &vec![b'a'; 64 << 20]);
    daemon.insula_with(&["build", "--network", "none", "-"], &whole.bytes()).exits(1);
    assert!(before - free().min(before) < 2 << 20, "{} bytes are gone", before - free());
    assert_eq!(run(&daemon, "busybox", "echo on"), "on");
}

/// The most memory that a process has had at once, in MiB; of one that has ended there is none.
fn peak(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? >> 10)
}

#[test]
fn a_large_context_takes_little_memory() {
    const SIZE: u64 = 256 << 20;
    const ROOM: u64 = 64;
    let daemon = daemon!(bare);
    let folder = context(&daemon, "context", &[("Dockerfile", "FROM scratch\nCOPY . /\n")]);
    // No holes, which would be left out everywhere.
    let mut large = std::fs::File::create(folder.join("large")).unwrap();
    let piece: Vec<u8> = (0..1 << 20).map(|at: u32| (at % 251 + 1) as u8).collect();
    (0..SIZE >> 20).for_each(|_| large.write_all(&piece).unwrap());
    let archive = daemon.folder().join("context.tar");
    let mut tar = tar::Builder::new(std::fs::File::create(&archive).unwrap());
    tar.append_dir_all(".", &folder).unwrap();
    tar.finish().unwrap();
    // Only what changed, and a tar of all of it.
    for (path, input) in [(folder.to_str().unwrap(), None), ("-", Some(&archive))] {
        // Sets back what VmHWM shows: proc_pid_clear_refs(5).
        std::fs::write(format!("/proc/{}/clear_refs", daemon.pid()), "5").unwrap();
        let before = peak(daemon.pid()).unwrap();
        let mut command = daemon.command(&["build", "-q", "--no-cache", "-t", "made", path]);
        let input = input.map_or_else(Stdio::null, |path| std::fs::File::open(path).unwrap().into());
        let mut client = command.stdin(input).stdout(Stdio::null()).spawn().unwrap();
        let (id, runs) = (client.id(), AtomicBool::new(true));
        let (of_client, ended) = std::thread::scope(|scope| {
            let watch = scope.spawn(|| {
                let mut most = 0;
                while runs.load(Ordering::Relaxed) {
                    most = peak(id).unwrap_or_default().max(most);
                    // A sample, not a wait: nobody tells when a process is at its largest.
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
                most
            });
            let ended = client.wait().unwrap();
            runs.store(false, Ordering::Relaxed);
            (watch.join().unwrap(), ended)
        });
        assert!(ended.success(), "{path}: {ended}");
        let grown = peak(daemon.pid()).unwrap() - before;
        assert!(of_client > 0 && of_client < ROOM && grown < ROOM, "{path}: {of_client} and {grown} MiB");
        let size = daemon.insula(&["image", "inspect", "-f", "{{.Size}}", "made"]);
        assert!(size.ok().parse::<u64>().unwrap() >= SIZE, "{size}");
    }
}
