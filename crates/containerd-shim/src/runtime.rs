//! `insula-runtime` for what forks: one run of a program of one thread for each call.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use insula_base::{Durability, replace};

use crate::children::Children;
use crate::error::{Context, Error, Result};
use crate::options::Kept;

const PROGRAM: &str = "insula-runtime";
/// What a shim that is gone leaves for `delete`.
const KEPT: &str = "shim.json";
/// Folder of the state, in the bundle.
const ROOT: &str = "runtime";
const LOG: &str = "log.json";
/// Pid of the container's first process.
pub(crate) const PID_FILE: &str = "init.pid";
/// As much of the log as is read for an error.
const LONGEST_LOG: usize = 64 * 1024;

/// The runtime of one container.
#[derive(Debug, Clone)]
pub(crate) struct Runtime {
    program: PathBuf,
    bundle: PathBuf,
    id: String,
    root: PathBuf,
    children: Arc<Children>,
}

impl Runtime {
    pub(crate) fn new(
        children: &Arc<Children>,
        namespace: &str,
        id: &str,
        bundle: &Path,
        kept: &Kept,
    ) -> Result<Self> {
        let root = match &kept.root {
            Some(root) => root.join(namespace),
            None => bundle.join(ROOT),
        };
        let (children, bundle, id) = (Arc::clone(children), bundle.to_owned(), id.to_owned());
        Ok(Self { program: program(PROGRAM)?, bundle, id, root, children })
    }

    /// The same for a bundle that somebody else has created.
    pub(crate) fn found(children: &Arc<Children>, namespace: &str, id: &str, bundle: &Path) -> Result<Self> {
        let path = bundle.join(KEPT);
        let kept = match std::fs::read(&path) {
            // It ended before it created anything.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Kept::default(),
            text => serde_json::from_slice(&text.context("read", path.display())?)
                .map_err(|source| Error::Damaged { on: path.display().to_string(), source })?,
        };
        Self::new(children, namespace, id, bundle, &kept)
    }

    /// To be written before anything is created.
    pub(crate) fn keep(&self, kept: &Kept) -> Result<()> {
        let path = self.bundle.join(KEPT);
        let text = serde_json::to_vec(kept)
            .map_err(|source| Error::Damaged { on: path.display().to_string(), source })?;
        replace(&path, &text, 0o600, Durability::Process).context("write", path.display())
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn bundle(&self) -> &Path {
        &self.bundle
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn children(&self) -> &Children {
        &self.children
    }

    /// A call, without streams.
    pub(crate) fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root).arg("--log").arg(self.bundle.join(LOG));
        command.args(["--log-format", "json"]).args(arguments).current_dir(&self.bundle);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Runs it; the error has the runtime's own words.
    pub(crate) fn run(&self, mut command: Command) -> Result<()> {
        let log = self.bundle.join(LOG);
        let before = std::fs::metadata(&log).map_or(0, |log| log.len());
        match self.children.run(&mut command)? {
            0 => Ok(()),
            code => Err(Error::Runtime(
                last_error(&log, before)
                    .unwrap_or_else(|| format!("{PROGRAM} {} ended with {code}", command_name(&command))),
            )),
        }
    }

    pub(crate) fn call(&self, arguments: &[&str]) -> Result<()> {
        self.run(self.command(arguments))
    }
}

/// A program of ours: the one beside this program, or the first in `PATH`.
pub(crate) fn program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("readlink", "/proc/self/exe")?;
    let beside = own.with_file_name(name);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).map(|folder| folder.join(name));
    std::iter::once(beside)
        .chain(folders)
        .find(|path| path.is_file())
        .ok_or_else(|| Error::Invalid(format!("{name} is neither beside {} nor in PATH", own.display())))
}

fn command_name(command: &Command) -> String {
    let verbs = ["create", "start", "exec", "delete", "checkpoint", "restore"];
    let found = command.get_args().find(|argument| verbs.iter().any(|verb| argument == verb));
    found.unwrap_or_default().to_string_lossy().into_owned()
}

/// The last error in what was written since.
fn last_error(log: &Path, before: u64) -> Option<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = std::fs::File::open(log).ok()?;
    file.seek(SeekFrom::Start(before)).ok()?;
    let mut bytes = Vec::new();
    file.take(LONGEST_LOG as u64).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let lines = text.lines().rev().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut errors = lines.filter(|line| line["level"] == "error");
    errors.next()?["msg"].as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_since_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log.json");
        let old = "{\"level\":\"error\",\"msg\":\"old\"}\n";
        std::fs::write(&log, format!("{old}{{\"level\":\"warning\",\"msg\":\"w\"}}\n")).unwrap();
        assert_eq!(last_error(&log, 0).as_deref(), Some("old"));
        assert_eq!(last_error(&log, old.len() as u64), None);
        std::fs::write(&log, format!("{old}{{\"level\":\"error\",\"msg\":\"new\"}}\nnot json\n")).unwrap();
        assert_eq!(last_error(&log, old.len() as u64).as_deref(), Some("new"));
        assert_eq!(last_error(Path::new("/no/log"), 0), None);
    }
}
