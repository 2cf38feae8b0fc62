//! A daemon for one test.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use insula_base::Instance;
use serde_json::Value;
use tempfile::TempDir;

use crate::{Leaks, Outcome, Response, Terminal, eventually, images, program};

/// Its folders are its own, and so are the names of everything that it makes on the host. When it
/// goes out of scope its containers are removed, it is ended, and anything left over fails the test.
#[derive(Debug)]
pub struct Daemon {
    child: Option<Child>,
    instance: Instance,
    folder: TempDir,
    /// What the test mounted below it.
    mounts: Vec<PathBuf>,
    /// What precedes its program: a command that starts it in other namespaces.
    entrance: Vec<String>,
}

impl Daemon {
    /// A daemon that has the image `busybox` (see [`images::busybox`]).
    #[must_use]
    pub fn start() -> Self {
        let daemon = Self::bare();
        daemon.load(&images::busybox().docker_archive()).ok();
        daemon
    }

    /// A daemon without any image but the built-in ones.
    #[must_use]
    pub fn bare() -> Self {
        let mut daemon = Self::absent();
        daemon.restart();
        daemon
    }

    /// As [`Self::start`], by a command that enters other namespaces and executes the program.
    #[must_use]
    pub(crate) fn within(entrance: Vec<String>) -> Self {
        Self::prepared(entrance).began()
    }

    /// As [`Self::within`], but not started.
    #[must_use]
    pub(crate) fn prepared(entrance: Vec<String>) -> Self {
        let mut daemon = Self::absent();
        daemon.entrance = entrance;
        daemon
    }

    /// The same, started, with the image.
    #[must_use]
    pub(crate) fn began(mut self) -> Self {
        self.restart();
        self.load(&images::busybox().docker_archive()).ok();
        self
    }

    /// Folders for a daemon that is not started.
    #[must_use]
    pub fn absent() -> Self {
        // Short, since the path of a unix socket has 107 bytes at most.
        let folder = tempfile::Builder::new().prefix("insula-t-").tempdir().unwrap();
        let instance = Instance::new(folder.path().join("l"), folder.path().join("r"));
        Self { child: None, instance, folder, mounts: Vec::new(), entrance: Vec::new() }
    }

    /// A folder for the test's own files, on the file system of the daemon's root.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        let path = self.folder.path().join("files");
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// Mounts an empty file system of this kind at `path`, below its folders, until it has ended.
    pub fn mount(&mut self, kind: &str, path: &Path) {
        std::fs::create_dir_all(path).unwrap();
        let data = Some(c"mode=755");
        rustix::mount::mount(kind, path, kind, rustix::mount::MountFlags::empty(), data).unwrap();
        self.mounts.push(path.to_owned());
    }

    /// Mounts a file system of this size (`32m`) at `path`, as [`Self::mount`].
    pub fn mount_small(&mut self, path: &Path, size: &str) {
        std::fs::create_dir_all(path).unwrap();
        let data = std::ffi::CString::new(format!("mode=755,size={size}")).unwrap();
        rustix::mount::mount(
            "tmpfs",
            path,
            "tmpfs",
            rustix::mount::MountFlags::empty(),
            Some(data.as_c_str()),
        )
        .unwrap();
        self.mounts.push(path.to_owned());
    }

    /// Its folders and names.
    #[must_use]
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Starts it, for a first or a second time, and waits until it answers.
    pub fn restart(&mut self) {
        self.start_as(Command::new(program("insulad")));
    }

    /// As [`Self::restart`], with more arguments.
    pub fn restart_with(&mut self, arguments: &[&str]) {
        let mut command = Command::new(program("insulad"));
        command.args(arguments);
        self.start_as(command);
    }

    /// As [`Self::restart`], with a configuration file of this text.
    pub fn restart_with_config(&mut self, text: &str) {
        let path = self.folder().join("insulad.toml");
        std::fs::write(&path, text).unwrap();
        let mut command = Command::new(program("insulad"));
        command.arg("--config").arg(path);
        self.start_as(command);
    }

    /// As [`Self::restart`], where `script`, for a shell, has changed the mounts before.
    pub fn restart_with_mounts(&mut self, script: &str) {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-ec", &format!("{script}\nexec \"$0\"")]).arg(program("insulad"));
        self.start_as(command);
    }

    fn start_as(&mut self, command: Command) {
        assert!(self.child.is_none(), "the daemon runs already");
        let mut child = self.spawn(command);
        let socket = self.instance.socket();
        eventually("the daemon answers", || {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "the daemon ended at once: {}", self.log());
            crate::http::answers(&socket).then_some(())
        });
        self.child = Some(child);
    }

    fn spawn(&self, mut command: Command) -> Child {
        if let Some((program, arguments)) = self.entrance.split_first() {
            let mut entering = Command::new(program);
            entering.args(arguments).arg(command.get_program()).args(command.get_args());
            command = entering;
        }
        let log = File::options().create(true).append(true).open(self.log_path()).unwrap();
        self.environment(&mut command);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        command.spawn().unwrap()
    }

    /// Kills it, so that it can do nothing about it.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// What a host that crashes and starts anew leaves of it: no process and no `/run`.
    pub fn crash_host(&mut self) {
        self.kill();
        self.leaks().clear(&self.instance);
        let _ = std::fs::remove_dir_all(self.instance.run());
    }

    /// Asks it to end; its exit code.
    pub fn stop(&mut self) -> Option<i32> {
        let mut child = self.child.take().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        eventually("the daemon ends", || child.try_wait().unwrap()).code()
    }

    /// A command that talks to this daemon.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program("insula"));
        self.environment(&mut command);
        command.args(arguments);
        command
    }

    /// The file that names the failpoint at which its next process to come by is killed.
    #[must_use]
    pub fn failpoint_file(&self) -> PathBuf {
        self.folder.path().join("failpoint")
    }

    /// Starts it anew; whether the programs under test have failpoints.
    pub fn can_fail(&mut self) -> bool {
        self.kill();
        std::fs::write(self.failpoint_file(), "daemon.opened").unwrap();
        if self.try_restart() {
            // A skip that cannot be taken for a pass where the build is known.
            assert!(std::env::var_os("INSULA_BIN_DIR").is_some(), "a debug build has failpoints");
            eprintln!("skipped: these programs have no failpoints (a release build)");
            let _ = std::fs::remove_file(self.failpoint_file());
            return false;
        }
        self.restart();
        true
    }

    /// Starts it although it may be killed before it serves; whether it serves.
    pub fn try_restart(&mut self) -> bool {
        assert!(self.child.is_none(), "the daemon runs already");
        let mut child = self.spawn(Command::new(program("insulad")));
        let socket = self.instance.socket();
        let serves = eventually("the daemon answers or ends", || {
            if child.try_wait().unwrap().is_some() {
                return Some(false);
            }
            crate::http::answers(&socket).then_some(true)
        });
        if serves {
            self.child = Some(child);
        }
        serves
    }

    /// Waits until it has been killed.
    pub fn await_kill(&mut self) {
        let mut child = self.child.take().unwrap();
        eventually("the daemon is killed", || child.try_wait().unwrap());
    }

    fn environment(&self, command: &mut Command) {
        command.env(insula_base::env::FAILPOINT, self.failpoint_file());
        command.env("INSULA_ROOT", self.instance.root()).env("INSULA_RUN", self.instance.run());
        command.env_remove("INSULA_HOST").env_remove("DOCKER_HOST");
        // Nobody's credentials but the test's.
        command.env("DOCKER_CONFIG", self.folder.path().join("docker"));
    }

    /// Runs `insula` to its end.
    pub fn insula(&self, arguments: &[&str]) -> Outcome {
        self.insula_with(arguments, b"")
    }

    /// Runs `insula` with `input`.
    pub fn insula_with(&self, arguments: &[&str], input: &[u8]) -> Outcome {
        Outcome::of(&mut self.command(arguments), input)
    }

    /// Runs `insula` at a terminal.
    #[must_use]
    pub fn terminal(&self, arguments: &[&str]) -> Terminal {
        Terminal::start(&self.command(arguments))
    }

    /// `run --rm FLAGS busybox sh -c SCRIPT`.
    pub fn sh(&self, flags: &[&str], script: &str) -> Outcome {
        self.insula(&[&["run", "--rm"], flags, &["busybox", "sh", "-c", script]].concat())
    }

    /// `run -d FLAGS busybox sh -c SCRIPT`; the container's id.
    #[track_caller]
    pub fn detached(&self, flags: &[&str], script: &str) -> String {
        let id = self.insula(&[&["run", "-d"], flags, &["busybox", "sh", "-c", script]].concat());
        id.ok().to_owned()
    }

    /// A container that waits to be stopped; its id.
    #[track_caller]
    pub fn sleeper(&self, flags: &[&str]) -> String {
        self.insula(&[&["run", "-d", "--init"], flags, &["busybox", "sleep", "1000"]].concat())
            .ok()
            .to_owned()
    }

    /// Runs a script in a running container.
    pub fn exec(&self, container: &str, script: &str) -> Outcome {
        self.insula(&["exec", container, "sh", "-c", script])
    }

    /// One field of a container's document, by a JSON pointer.
    #[track_caller]
    pub fn inspect(&self, container: &str, pointer: &str) -> Value {
        let outcome = self.insula(&["container", "inspect", container]);
        let document: Value = serde_json::from_str(outcome.ok()).unwrap();
        let found = document[0].pointer(pointer);
        found.unwrap_or_else(|| panic!("{pointer} is not in {document:#}")).clone()
    }

    /// The id outside of a container's first process.
    #[track_caller]
    pub fn pid_of(&self, container: &str) -> u64 {
        self.inspect(container, "/State/Pid").as_u64().filter(|pid| *pid > 0).unwrap()
    }

    /// Waits until a container's `State.Status` is `status`.
    pub fn reaches(&self, container: &str, status: &str) {
        eventually(status, || (self.inspect(container, "/State/Status") == status).then_some(()));
    }

    /// A request to its API.
    pub fn api(&self, method: &str, path: &str, body: &str) -> Response {
        crate::request(&self.instance.socket(), method, path, body.as_bytes())
    }

    /// Loads an image archive.
    pub fn load(&self, archive: &[u8]) -> Outcome {
        let path = self.folder().join("load.tar");
        std::fs::write(&path, archive).unwrap();
        self.insula(&["load", "-i", path.to_str().unwrap()])
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("insulad.log")
    }

    /// What it has written so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// What of it is on the host now, but for groups of containers to come.
    #[must_use]
    pub fn leaks(&self) -> Leaks {
        let mut leaks = Leaks::of(&self.instance, self.folder.path());
        let ahead = self.groups_ahead();
        let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
        leaks.cgroups.retain(|path| !name(path).is_some_and(|name| ahead.contains(&name)));
        leaks
    }

    /// Processes that it has started and that have not ended, while it runs.
    #[must_use]
    pub fn children(&self) -> Vec<i32> {
        let Some(child) = &self.child else { return Vec::new() };
        let tasks = std::fs::read_dir(format!("/proc/{}/task", child.id())).into_iter().flatten().flatten();
        let texts = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
        texts
            .flat_map(|text| text.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>())
            .collect()
    }

    /// Names of the groups that its spare monitors have made: of containers that have not been started.
    #[must_use]
    pub fn groups_ahead(&self) -> BTreeSet<String> {
        let sandboxes =
            std::fs::read_dir(self.instance.run().join("sandboxes")).into_iter().flatten().flatten();
        let taken: Vec<i64> = sandboxes
            .filter_map(|entry| std::fs::read(entry.path().join("launch.json")).ok())
            .filter_map(|text| serde_json::from_slice::<Value>(&text).ok()?["monitor"]["pid"].as_i64())
            .collect();
        let of = |pid: i32| {
            let words = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
            let group = words.split('\0').nth(2)?.strip_prefix(&format!("{}/", self.instance.cgroup()))?;
            Some(group.to_owned())
        };
        let waiting = self.children().into_iter().filter(|pid| !taken.contains(&i64::from(*pid)));
        waiting.filter_map(of).collect()
    }

    fn end_well(&mut self) {
        if self.child.is_none() {
            self.restart();
        }
        let ids = self.insula(&["ps", "-aq", "--no-trunc"]).ok().to_owned();
        let ids: Vec<&str> = ids.split_whitespace().collect();
        if !ids.is_empty() {
            self.insula(&[&["rm", "-f", "-v"], ids.as_slice()].concat()).ok();
        }
        assert_eq!(self.stop(), Some(0), "the daemon ends well when asked: {}", self.log());
        for path in self.mounts.drain(..).rev() {
            rustix::mount::unmount(&path, rustix::mount::UnmountFlags::empty()).unwrap();
        }
        let mut left = Leaks::default();
        let gone = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually("nothing is left", || {
                left = self.leaks();
                left.is_empty().then_some(())
            });
        }));
        assert!(gone.is_ok(), "left behind: {left:#?}");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        let started = self.log_path().exists();
        let end = (!failed && started)
            .then(|| std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.end_well())));
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if failed {
            eprintln!("-- the daemon's log\n{}", self.log());
        }
        Leaks::of(&self.instance, self.folder.path()).clear(&self.instance);
        if let Some(Err(cause)) = end {
            std::panic::resume_unwind(cause);
        }
    }
}

/// Runs when it goes out of scope.
pub struct OnDrop<F: FnMut()>(pub F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

impl<F: FnMut()> std::fmt::Debug for OnDrop<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnDrop")
    }
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
