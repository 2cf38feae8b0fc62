//! A bundle with busybox in it, and a runtime that is told to run it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use insula_tests::{is_root, program, skip, tag};
use serde_json::{Value, json};

/// A program with runc's command line.
#[derive(Debug)]
pub(crate) struct Runtime(pub(crate) PathBuf);

impl Runtime {
    pub(crate) fn insula() -> Option<Self> {
        root().then(|| Self(program("insula-runtime")))
    }

    pub(crate) fn runc() -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
        let found = folders.map(|folder| folder.join("runc")).find(|runc| runc.is_file());
        if found.is_none() {
            skip("runc", "it shows that the checks are right");
        }
        found.filter(|_| root()).map(Self)
    }
}

fn root() -> bool {
    if !is_root() {
        skip("root", "a runtime makes namespaces and control groups");
    }
    is_root()
}

/// A folder with a bundle and a runtime's state; what is left of its containers goes with it.
#[derive(Debug)]
pub(crate) struct Bundle<'a> {
    runtime: &'a Runtime,
    folder: tempfile::TempDir,
    pub(crate) id: String,
    pub(crate) config: Value,
}

impl<'a> Bundle<'a> {
    /// Runs a script of the shell.
    pub(crate) fn new(runtime: &'a Runtime, script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let bin = folder.path().join("rootfs/bin");
        fs::create_dir_all(&bin).unwrap();
        fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
        for name in [
            "sh", "ls", "id", "cat", "mount", "sleep", "stat", "readlink", "hostname", "grep", "touch",
            "sync",
        ] {
            symlink("busybox", bin.join(name)).unwrap();
        }
        // Whoever is root of a user namespace is somebody else here.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(folder.path(), open).unwrap();
        let id = format!("insula-test-{}", tag());
        let written = Command::new(program("insula-runtime"))
            .args(["spec", "--bundle"])
            .arg(folder.path())
            .status()
            .unwrap();
        assert!(written.success());
        let text = fs::read(folder.path().join("config.json")).unwrap();
        let mut config: Value = serde_json::from_slice(&text).unwrap();
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!(["sh", "-c", script]);
        config["linux"]["cgroupsPath"] = json!(format!("/{id}/box"));
        Self { runtime, folder, id, config }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes `config.json` as it is now.
    pub(crate) fn write(&self) {
        fs::write(self.path("config.json"), self.config.to_string()).unwrap();
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.runtime.0);
        command.arg("--root").arg(self.path("state")).stdin(Stdio::null());
        command
    }

    pub(crate) fn call(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).output().unwrap()
    }

    /// The same, which must succeed.
    pub(crate) fn done(&self, arguments: &[&str]) -> String {
        let output = self.call(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The same, which must fail; what it says.
    pub(crate) fn refused(&self, arguments: &[&str]) -> String {
        let output = self.call(arguments);
        assert!(!output.status.success(), "{arguments:?} succeeded");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Writes, creates, starts, waits for the end, deletes; what was printed.
    pub(crate) fn run(&self) -> String {
        let (code, output, errors) = self.outcome();
        assert_eq!(code, 0, "{output}{errors}");
        output
    }

    /// The same with the exit code and what was said besides.
    pub(crate) fn outcome(&self) -> (i32, String, String) {
        self.write();
        let path = self.folder.path().to_str().unwrap();
        let output = self.call(&["run", "--bundle", path, &self.id]);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    }

    /// Creates with output that goes to a file: whoever has a pipe of it would wait for the container's end.
    pub(crate) fn create(&self, more: &[&str]) -> std::process::ExitStatus {
        self.write();
        let file = |name: &str| fs::File::create(self.path(name)).unwrap();
        let mut command = self.command();
        command.args(["create", "--bundle"]).arg(self.folder.path()).args(more).arg(&self.id);
        command.stdout(file("output")).stderr(file("errors"));
        command.status().unwrap()
    }

    /// Creates and starts.
    pub(crate) fn start(&self) {
        let created = self.create(&[]);
        assert!(created.success(), "{}", self.said("errors"));
        self.done(&["start", &self.id]);
    }

    pub(crate) fn said(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    pub(crate) fn state(&self) -> Value {
        serde_json::from_str(&self.done(&["state", &self.id])).unwrap()
    }

    pub(crate) fn status(&self) -> String {
        self.state()["status"].as_str().unwrap().to_owned()
    }

    /// Whether the container has a control group anywhere.
    pub(crate) fn has_groups(&self) -> bool {
        hierarchies().iter().any(|root| root.join(&self.id).join("box").exists())
    }

    pub(crate) fn add_mount(&mut self, mount: Value) {
        self.config["mounts"].as_array_mut().unwrap().push(mount);
    }

    /// A hook that writes a line to `journal` in the bundle: its name and the state that it was told.
    pub(crate) fn add_hook(&mut self, phase: &str) {
        let journal = self.path("journal");
        let script = format!("echo {phase} $(cat) >>{}", journal.display());
        let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]});
        self.config["hooks"][phase] = json!([hook]);
    }
}

impl Drop for Bundle<'_> {
    fn drop(&mut self) {
        // Also after a failure, of which the first panic tells.
        let _ = self.command().args(["delete", "--force", &self.id]).output();
        for root in hierarchies() {
            let _ = fs::remove_dir(root.join(&self.id));
        }
    }
}

/// Every hierarchy of control groups.
pub(super) fn hierarchies() -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/mounts").unwrap();
    let groups =
        table.lines().filter(|line| line.split(' ').nth(2).is_some_and(|kind| kind.starts_with("cgroup")));
    groups.filter_map(|line| line.split(' ').nth(1)).map(|path| Path::new(path).to_owned()).collect()
}
