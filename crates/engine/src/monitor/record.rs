//! The folder of one sandbox below the run-time root:
//!
//! ```text
//! launch.json   the daemon's, before the monitor is asked: which monitor, which names
//! hosts, …      the daemon's: what the container finds in its /etc
//! task.sock     the monitor's: where later daemons connect
//! exit.json     the monitor's: how the container ended
//! ```

use std::fs;
use std::io;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use insula_proto::Exited;
use insula_spec::machine::MachineRecord;
use serde::{Deserialize, Serialize};

use super::{Process, listeners};
use crate::{Error, Result};

/// What is going to exist for a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LaunchRecord {
    pub(crate) monitor: Process,
    /// Below every hierarchy.
    pub(crate) cgroup: String,
}

/// The folder.
#[derive(Debug, Clone)]
pub(crate) struct SandboxFolder(PathBuf);

#[derive(Deserialize)]
struct ExitRecord {
    code: i32,
    oom: bool,
    at: i64,
    #[serde(default)]
    error: String,
}

impl SandboxFolder {
    pub(crate) const SOCKET: &str = "task.sock";

    pub(crate) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.0.join(Self::SOCKET)
    }

    /// Makes the folder anew with its launch record.
    pub(crate) fn prepare(&self, record: &LaunchRecord) -> Result<()> {
        if self.0.exists() {
            self.remove()?;
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.0)
            .map_err(|e| Error::io("mkdir", &self.0, e))?;
        let text = serde_json::to_vec(record)
            .map_err(|error| Error::Internal(format!("write a launch record: {error}")))?;
        self.write("launch.json", &text, 0)
    }

    /// Makes a file that nobody knows of yet: half of one is as good as none.
    pub(crate) fn write(&self, name: &str, bytes: &[u8], owner: u32) -> Result<()> {
        let path = self.0.join(name);
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&path)
            .map_err(|e| Error::io("create", &path, e))?;
        file.write_all(bytes).map_err(|e| Error::io("write", &path, e))?;
        if owner != 0 {
            fchown(&file, Some(owner), Some(owner)).map_err(|e| Error::io("fchown", &path, e))?;
        }
        Ok(())
    }

    /// Adds lines to a file that the container sees, and takes lines out; what the container has made of it
    /// otherwise stays.
    pub(crate) fn change_lines(&self, name: &str, come: &[String], go: &[String]) -> Result<()> {
        self.change(name, |text| {
            let mut lines: Vec<&str> =
                text.lines().filter(|line| !go.iter().any(|gone| gone == line)).collect();
            lines.extend(come.iter().map(String::as_str));
            Some(format!("{}\n", lines.join("\n")))
        })
    }

    /// Gives a file that the container sees another text, unless the container has done so already.
    pub(crate) fn replace_text(&self, name: &str, before: &str, after: &str) -> Result<()> {
        self.change(name, |text| (text == before).then(|| after.to_owned()))
    }

    /// It stays the same file, since that is what is mounted.
    fn change(&self, name: &str, change: impl FnOnce(&str) -> Option<String>) -> Result<()> {
        /// What a container may have made of it.
        const LARGEST: u64 = 1 << 20;
        let path = self.0.join(name);
        let mut file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|e| Error::io("open", &path, e))?;
        let mut text = Vec::new();
        (&file).take(LARGEST).read_to_end(&mut text).map_err(|e| Error::io("read", &path, e))?;
        let Some(text) = change(&String::from_utf8_lossy(&text)) else { return Ok(()) };
        file.set_len(0).map_err(|e| Error::io("truncate", &path, e))?;
        file.rewind().map_err(|e| Error::io("seek", &path, e))?;
        file.write_all(text.as_bytes()).map_err(|e| Error::io("write", &path, e))
    }

    /// The launch record, if there is a whole one: no monitor was asked for anything before it was written. An error
    /// says that it cannot be read for the moment.
    pub(crate) fn launch(&self) -> Result<Option<LaunchRecord>> {
        let path = self.0.join("launch.json");
        match fs::read(&path) {
            Ok(text) => Ok(serde_json::from_slice(&text).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("read", &path, error)),
        }
    }

    /// The monitor: the one of the launch record, or else who listens at its socket.
    pub(crate) fn monitor(&self) -> Option<Process> {
        let launched = self.launch().ok().flatten().map(|launch| launch.monitor);
        launched.or_else(|| listeners(&self.0).into_iter().map(|(_, process)| process).next())
    }

    /// What its wall has left about its machine, if it has one.
    pub(crate) fn machine(&self) -> Option<MachineRecord> {
        serde_json::from_slice(&fs::read(self.0.join(MachineRecord::FILE)).ok()?).ok()
    }

    /// Whether its monitor has left without having freed everything: it takes its socket with it otherwise. Of
    /// one that has ended.
    pub(crate) fn abandoned(&self) -> bool {
        self.socket().exists()
    }

    /// The exit record, if there is one.
    pub(crate) fn exit(&self) -> Result<Option<Exited>> {
        let path = self.0.join("exit.json");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read", &path, error)),
        };
        let record: ExitRecord = serde_json::from_slice(&text)
            .map_err(|e| Error::io("parse", &path, io::Error::new(io::ErrorKind::InvalidData, e)))?;
        Ok(Some(Exited { code: record.code, oom: record.oom, at: record.at, error: record.error }))
    }

    /// Removes it with everything in it; that it is not there is no error. A monitor that ends takes its
    /// socket away meanwhile.
    pub(crate) fn remove(&self) -> Result<()> {
        const ATTEMPTS: usize = 16;
        for _ in 0..ATTEMPTS {
            match fs::remove_dir_all(&self.0) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", &self.0, error));
                }
                Err(_) if !self.0.exists() => return Ok(()),
                Err(_) => {}
            }
        }
        Err(Error::Internal(format!("{} changes while it is removed", self.0.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_back() {
        let root = tempfile::tempdir().unwrap();
        let folder = SandboxFolder::new(root.path().join("a/b"));
        assert!(folder.launch().unwrap().is_none() && folder.exit().unwrap().is_none());
        let record = LaunchRecord { monitor: Process { pid: 7, started: 8 }, cgroup: "insula/x".into() };
        folder.prepare(&record).unwrap();
        assert_eq!(folder.launch().unwrap(), Some(record.clone()));
        fs::write(folder.path().join("exit.json"), r#"{"code":137,"oom":true,"at":5}"#).unwrap();
        assert_eq!(
            folder.exit().unwrap(),
            Some(Exited { code: 137, oom: true, at: 5, error: String::new() })
        );
        fs::write(folder.path().join("exit.json"), "{").unwrap();
        assert!(folder.exit().is_err());
        folder.prepare(&record).unwrap();
        assert!(folder.exit().unwrap().is_none());
        folder.remove().unwrap();
        folder.remove().unwrap();
    }
}
