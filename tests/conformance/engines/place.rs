//! A place of its own for somebody else's engine: namespaces, folders and a control group.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use insula_tests::{Outcome, cgroups_called, eventually, images, is_root, remove_cgroups, skip, tag};

/// Ends with its standard input, and with it everything in the place. It reaps what falls to it.
const FIRST: &str = "mount -t tmpfs tmpfs /run && ip link set lo up && echo ready && cat; exit 0";

/// Whatever runs there ends with this value, mounts and interfaces included.
#[derive(Debug)]
pub(crate) struct Place {
    first: Child,
    /// Of its first process, as the host sees it.
    pid: String,
    folder: tempfile::TempDir,
    /// What the engine's containers have as their control group's parent.
    pub(crate) group: String,
}

impl Place {
    /// Absent, with a word, where there is no root or one of the programs is not installed.
    pub(crate) fn with(programs: &[&str]) -> Option<Self> {
        if !is_root() {
            skip("root", "an engine makes namespaces and control groups");
            return None;
        }
        if let Some(missing) = programs.iter().find(|program| !is_installed(program)) {
            skip("root", &format!("{missing} is missing"));
            return None;
        }
        let mut command = Command::new("unshare");
        command.args(["--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]);
        command.args(["sh", "-c", FIRST]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut first = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(first.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        let children = format!("/proc/{0}/task/{0}/children", first.id());
        let pid = fs::read_to_string(children).unwrap().trim().to_owned();
        // Short, since the path of a unix socket has 107 bytes at most.
        let folder = tempfile::Builder::new().prefix("insula-e-").tempdir().unwrap();
        let place = Self { first, pid, folder, group: format!("insula-test-{}", tag()) };
        fs::write(place.path("busybox.tar"), images::busybox().docker_archive()).unwrap();
        Some(place)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The same as text.
    pub(crate) fn at(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// A program there.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid, "--mount", "--net", "--pid", "--", program]);
        command.env_remove("DOCKER_HOST").env_remove("DOCKER_CONTEXT");
        command
    }

    /// A daemon there, which answers: `ready` succeeds. It ends with the place. The pid of who waits for it there.
    pub(crate) fn daemon(&self, command: &mut Command, ready: impl Fn() -> Command) -> u32 {
        let log = fs::File::create(self.path("log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut daemon = command.spawn().unwrap();
        eventually("the daemon answers", || {
            let log = || fs::read_to_string(self.path("log")).unwrap_or_default();
            assert!(daemon.try_wait().unwrap().is_none(), "the daemon ended at once: {}", log());
            (Outcome::of(&mut ready(), b"").code == 0).then_some(())
        });
        daemon.id()
    }

    /// Control groups of containers that are there.
    pub(crate) fn groups(&self) -> Vec<PathBuf> {
        let below = |root: PathBuf| fs::read_dir(root).into_iter().flatten().flatten();
        let paths = cgroups_called(&self.group).into_iter().flat_map(below).map(|entry| entry.path());
        // Podman keeps that of its own monitor.
        paths.filter(|path| path.is_dir() && !path.to_string_lossy().contains("conmon")).collect()
    }
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([Path::new("/usr/sbin").to_owned()]);
    folders.into_iter().any(|folder| folder.join(program).is_file())
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.first.stdin.take());
        // Not before everybody in the namespace of processes has ended: pid_namespaces(7).
        let _ = self.first.wait();
        for group in cgroups_called(&self.group) {
            remove_cgroups(&group);
        }
    }
}
