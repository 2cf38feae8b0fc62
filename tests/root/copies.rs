//! `cp` beside a container that plays games with links meanwhile, and archives that lie.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use insula_tests::images::Layer;
use insula_tests::{Daemon, daemon, request, text};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use tar::EntryType;

const SECRET: &str = "of the host\n";

/// A folder of the host with one file, which no container has to see or to change.
struct Secret(PathBuf);

impl Secret {
    fn make(daemon: &Daemon) -> Self {
        let path = daemon.folder().join("secret");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("f"), SECRET).unwrap();
        Self(path)
    }

    #[track_caller]
    fn is_untouched(&self) {
        let names: Vec<_> = fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["f"]);
        assert_eq!(fs::read_to_string(self.0.join("f")).unwrap(), SECRET);
        let file = self.0.join("f").metadata().unwrap();
        assert_eq!((file.uid(), file.nlink(), file.mode() & 0o7777), (0, 1, 0o644));
    }
}

/// Runs `work` while another thread exchanges pairs of names as fast as it can, as a process of the
/// container could.
fn exchanging(pairs: &[(PathBuf, PathBuf)], work: impl FnOnce()) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let games = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for (one, other) in pairs {
                    match renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE) {
                        // What is copied in may take the place of a name: for a moment nothing has it.
                        Ok(()) | Err(Errno::NOENT) => {}
                        Err(error) => panic!("exchange {one:?} and {other:?}: {error}"),
                    }
                }
            }
        });
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        done.store(true, Ordering::Relaxed);
        games.join().unwrap();
        worked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

#[test]
fn links_that_come_and_go_lead_a_copy_nowhere_else() {
    let daemon = daemon!();
    let secret = Secret::make(&daemon);
    let id = daemon.sleeper(&["--network", "none"]);
    // A folder becomes a link to the host's, at the end of a path and in the middle.
    let host = text(&secret.0);
    daemon.exec(&id, &format!("mkdir -p /w/real /w/deep/real; for d in real deep/real; do echo inside > /w/$d/f; done; ln -s {host} /w/link; ln -s {host} /w/deep/link")).ok();
    let inside = PathBuf::from(format!("/proc/{}/root/w", daemon.pid_of(&id)));
    let pairs = [("real", "link"), ("deep/real", "deep/link")];
    let pairs = pairs.map(|(one, other)| (inside.join(one), inside.join(other)));
    let mine = daemon.folder().join("mine");
    fs::write(&mine, "from outside\n").unwrap();
    exchanging(&pairs, || {
        for round in 0..6 {
            let out = daemon.folder().join(format!("out{round}"));
            fs::create_dir(&out).unwrap();
            for (number, path) in ["/w/real/f", "/w/deep/real/f", "/w/deep", "/w/real"].iter().enumerate() {
                let to = out.join(number.to_string());
                daemon.insula(&["cp", &format!("{id}:{path}"), text(&to)]);
                holds_no_secret(&to);
            }
            for path in ["/w/real/", "/w/deep/real", "/w/deep/real/f"] {
                daemon.insula(&["cp", text(&mine), &format!("{id}:{path}")]);
            }
            daemon.insula(&["cp", text(&out), &format!("{id}:/w/deep/real")]);
            secret.is_untouched();
        }
    });
    // It goes on working when the games are over.
    daemon.insula(&["cp", text(&mine), &format!("{id}:/w/deep/last")]).ok();
    assert_eq!(daemon.exec(&id, "cat /w/deep/last").ok(), "from outside");
}

/// Neither the file nor anything below the folder has the secret; links are not followed.
#[track_caller]
fn holds_no_secret(path: &Path) {
    let Ok(found) = path.symlink_metadata() else { return };
    if found.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            holds_no_secret(&entry.unwrap().path());
        }
    } else if found.is_file() {
        assert_ne!(fs::read_to_string(path).unwrap(), SECRET, "{}", path.display());
    }
}

#[test]
fn a_folder_that_a_container_writes_to_gives_only_what_is_in_it() {
    let daemon = daemon!();
    let secret = Secret::make(&daemon);
    // The container has it as a volume, and the host copies it elsewhere.
    let shared = daemon.folder().join("shared");
    fs::create_dir_all(shared.join("sub/real")).unwrap();
    fs::write(shared.join("sub/real/f"), "inside\n").unwrap();
    fs::write(shared.join("sub/file"), "inside\n").unwrap();
    symlink(&secret.0, shared.join("sub/link")).unwrap();
    symlink(secret.0.join("f"), shared.join("sub/other")).unwrap();
    let id = daemon.sleeper(&["--network", "none"]);
    let pairs = [("sub/real", "sub/link"), ("sub/file", "sub/other")];
    exchanging(&pairs.map(|(one, other)| (shared.join(one), shared.join(other))), || {
        for round in 0..6 {
            daemon.insula(&["cp", text(&shared), &format!("{id}:/copy{round}")]);
            let found = daemon.exec(&id, &format!("grep -r 'of the host' /copy{round}"));
            assert_eq!(found.stdout, "", "{found}");
        }
    });
}

#[test]
fn magic_links_and_links_of_all_kinds_stay_inside() {
    let daemon = daemon!();
    let secret = Secret::make(&daemon);
    let host = text(&secret.0);
    let id = daemon.sleeper(&["--network", "none"]);
    let climb = format!("{}{host}", "../".repeat(40));
    daemon.exec(&id, &format!("mkdir /w; ln -s {host} /w/absolute; ln -s {climb} /w/up; ln -s /proc/1/root /w/root; ln -s /proc/1/cwd /w/cwd; ln -s loop /w/loop")).ok();
    let to = daemon.folder().join("to");
    let mine = daemon.folder().join("mine");
    fs::write(&mine, "from outside\n").unwrap();
    let through = ["absolute", "up", "root", "cwd", "loop"].map(|name| format!("/w/{name}"));
    let proc = ["/proc/1/root", "/proc/1/cwd", "/proc/self/root", "/proc/self/cwd", "/proc/thread-self/root"];
    for path in through.iter().map(String::as_str).chain(proc) {
        for below in [format!("{path}/f"), format!("{path}{host}/f"), format!("{path}/../..{host}/f")] {
            daemon.insula(&["cp", "-L", &format!("{id}:{below}"), text(&to)]);
            holds_no_secret(&to);
            daemon.insula(&["cp", text(&mine), &format!("{id}:{below}")]);
            secret.is_untouched();
        }
    }
    // A link on the way that does lead somewhere inside is followed as inside.
    daemon.insula(&["cp", &format!("{id}:/w/root/etc/plain"), text(&to)]).ok();
    assert_eq!(fs::read_to_string(&to).unwrap(), "not a program\n");
    // The destination on the host: a link in the folder is replaced, not written through.
    let target = daemon.folder().join("target");
    fs::create_dir_all(target.join("etc")).unwrap();
    symlink(secret.0.join("f"), target.join("etc/plain")).unwrap();
    daemon.insula(&["cp", &format!("{id}:/etc"), text(&target)]).ok();
    assert_eq!(fs::read_to_string(target.join("etc/plain")).unwrap(), "not a program\n");
    fs::rename(target.join("etc"), target.join("old")).unwrap();
    symlink(&secret.0, target.join("etc")).unwrap();
    daemon.insula(&["cp", &format!("{id}:/etc"), text(&target)]).exits(1);
    secret.is_untouched();
}

#[test]
fn nodes_and_sockets_are_neither_opened_nor_passed_on() {
    let daemon = daemon!();
    let shared = daemon.folder().join("shared");
    fs::create_dir(&shared).unwrap();
    let _socket = UnixListener::bind(shared.join("socket")).unwrap();
    let id = daemon.sleeper(&["--network", "none", "-v", &format!("{}:/shared", text(&shared))]);
    // Nobody has the other end of the FIFO open: whoever opens it waits for ever.
    daemon.exec(&id, "mkfifo /shared/fifo; echo x > /shared/file").ok();
    let device = |path: &Path, minor| {
        let number = rustix::fs::makedev(1, minor);
        let (kind, mode) = (rustix::fs::FileType::CharacterDevice, rustix::fs::Mode::RUSR);
        rustix::fs::mknodat(CWD, path, kind, mode, number).unwrap();
    };
    device(&shared.join("zero"), 5);
    let archive = daemon.insula(&["cp", &format!("{id}:/shared"), "-"]);
    let names = |archive: &[u8]| -> Vec<(String, EntryType)> {
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().unwrap().map(Result::unwrap);
        entries
            .map(|entry| (entry.path().unwrap().display().to_string(), entry.header().entry_type()))
            .collect()
    };
    let expected = [
        ("shared/", EntryType::Directory),
        ("shared/fifo", EntryType::Fifo),
        ("shared/file", EntryType::Regular),
        ("shared/zero", EntryType::Char),
    ];
    assert_eq!(names(archive.stdout.as_bytes()), expected.map(|(name, kind)| (name.to_owned(), kind)));
    let to = daemon.folder().join("to");
    let outcome = daemon.insula(&["cp", &format!("{id}:/shared"), text(&to)]);
    outcome.exits(0);
    assert!(outcome.stderr.contains("zero is left out"), "{outcome}");
    assert!(to.join("fifo").exists() && !to.join("zero").exists() && !to.join("socket").exists());
    // And into the container: of the host's nodes it gets the FIFO.
    daemon.insula(&["cp", text(&shared), &format!("{id}:/copy")]);
    let kinds = daemon.exec(&id, "cd /copy; stat -c '%F' fifo file; test -e socket || echo no socket");
    assert_eq!(kinds.ok(), "fifo\nregular file\nno socket");
}

#[test]
fn archives_that_lie_change_nothing_outside() {
    let daemon = daemon!();
    let secret = Secret::make(&daemon);
    let host = text(&secret.0).to_owned();
    let running = daemon.sleeper(&["--network", "none"]);
    let stopped = daemon.detached(&["--network", "none"], "true");
    daemon.reaches(&stopped, "exited");
    let first = || Layer::default().file("first", 0o644, b"1");
    let evil = |name: &str| first().file(name, 0o644, b"evil").bytes();
    let through = |target: &str, name: &str| first().symlink("l", target).file(name, 0o644, b"evil").bytes();
    let link = |target: &str| {
        first().entry(EntryType::Link, "hard", target, 0o644, 0, b"").file("hard", 0o644, b"evil").bytes()
    };
    let climb = format!("{}{host}", "../".repeat(12));
    let refused = [evil("../evil"), evil("a/../../../evil"), evil(&format!("{climb}/evil")), link(&climb)];
    let contained = [
        evil(&format!("{host}/evil")),
        through(&host, "l/evil"),
        through(&climb, "l/evil"),
        through("/proc/1/root", &format!("l{host}/evil")),
        through("/proc/self/cwd", "l/evil"),
        through(&format!("{host}/f"), "l"),
        link(&format!("{host}/f")),
    ];
    for id in [&running, &stopped] {
        let target = format!("/containers/{id}/archive?path=/tmp");
        for (number, archive) in refused.iter().chain(&contained).enumerate() {
            daemon.exec(&running, "rm -rf /tmp/l /tmp/hard");
            let answer = request(&daemon.instance().socket(), "PUT", &target, archive);
            assert!(number >= refused.len() || answer.status >= 400, "{number}: {}", answer.text());
            secret.is_untouched();
            assert!(!Path::new("/tmp/evil").exists() && !Path::new("/evil").exists());
        }
    }
    assert_eq!(daemon.exec(&running, "cat /tmp/first").ok(), "1");
}

#[test]
fn a_large_file_is_handed_over_and_nothing_else_of_it_changes() {
    let daemon = daemon!();
    let running = daemon.sleeper(&["--network", "none"]);
    let stopped = daemon.detached(&["--network", "none"], "true");
    daemon.reaches(&stopped, "exited");
    let content: Vec<u8> = (0..3_000_001_u32).map(|n| (n * 7 + n / 251) as u8).collect();
    let long = "n".repeat(200);
    let mine = daemon.folder().join(&long);
    fs::write(&mine, &content).unwrap();
    fs::set_permissions(&mine, fs::Permissions::from_mode(0o751)).unwrap();
    std::os::unix::fs::chown(&mine, Some(12), Some(34)).unwrap();
    let link = daemon.folder().join("link");
    symlink(&mine, &link).unwrap();
    let back = daemon.folder().join("back");
    let copied = |id: &str, path: &str, mode: u32| {
        daemon.insula(&["cp", "-a", &format!("{id}:{path}"), text(&back)]).ok();
        assert!(fs::read(&back).unwrap() == content, "{path}");
        let (copy, original) = (back.metadata().unwrap(), mine.metadata().unwrap());
        assert_eq!((copy.mode() & 0o7777, copy.mtime()), (mode, original.mtime()), "{path}");
        fs::remove_file(&back).unwrap();
        (copy.uid(), copy.gid())
    };
    for id in [&running, &stopped] {
        // Onto a folder, under another name, over what is there, from a link that is followed.
        daemon.insula(&["cp", text(&mine), &format!("{id}:/tmp")]).ok();
        assert_eq!(copied(id, &format!("/tmp/{long}"), 0o751), (0, 0));
        for _ in 0..2 {
            daemon.insula(&["cp", "-a", text(&mine), &format!("{id}:/tmp/other")]).ok();
            assert_eq!(copied(id, "/tmp/other", 0o751), (12, 34));
        }
        daemon.insula(&["cp", "-L", text(&link), &format!("{id}:/tmp/followed")]).ok();
        copied(id, "/tmp/followed", 0o751);
        daemon.insula(&["cp", text(&mine), &format!("{id}:/no/such/folder")]).fails(1, &["/no/such"]);
    }
    daemon.insula(&["cp", text(&mine), "nobody:/tmp"]).fails(1, &["No such container"]);
    let metrics = daemon.api("GET", "/metrics", "").text();
    let handed = |line: &&str| line.contains("/insula/containers/{id}/file") && line.contains("101");
    assert!(metrics.lines().any(|line| handed(&line)), "it went another way: {metrics}");
}
