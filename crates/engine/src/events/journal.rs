//! Events on disk, so that the next daemon can tell what its predecessors saw.
//!
//! One line of JSON an event, as on the API. A line is written before anybody is told of the event,
//! by one write(2): it survives `kill -9` of the daemon, not a loss of power. Two files of bounded
//! size; the older one goes when the newer one is full.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use insula_models::EventMessage;

use crate::{Error, Result};

/// Bytes of a file: some thousand events.
const FILE_MAX: u64 = 1 << 20;

/// The file that grows.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    size: u64,
    /// The disk took no line lately, and that was said.
    failing: bool,
}

impl Journal {
    /// Opens the journal in `folder`; gives the last `most` events in it, the oldest first. What cannot
    /// be read as an event, such as a line that a full disk cut short, is left out.
    pub(super) fn open(folder: &Path, most: usize) -> Result<(Self, VecDeque<EventMessage>)> {
        let path = folder.join("events.jsonl");
        let mut events = VecDeque::new();
        for path in [older(&path), path.clone()] {
            for event in read(&path)? {
                if events.len() == most {
                    events.pop_front();
                }
                events.push_back(event);
            }
        }
        let (file, size) = open(&path)?;
        Ok((Self { path, file, size, failing: false }, events))
    }

    /// Appends the line of an event. A disk that takes none costs the journal the event, nobody else anything.
    pub(super) fn append(&mut self, line: &[u8]) {
        match self.try_append(line) {
            Ok(()) => self.failing = false,
            Err(error) if !self.failing => {
                self.failing = true;
                let error = &error as &dyn std::error::Error;
                tracing::warn!(path = %self.path.display(), error, "events are not kept");
            }
            Err(_) => {}
        }
    }

    fn try_append(&mut self, line: &[u8]) -> io::Result<()> {
        let line = [line, b"\n"].concat();
        let bytes = line.len() as u64;
        if bytes > FILE_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        if self.size + bytes > FILE_MAX {
            fs::rename(&self.path, older(&self.path))?;
            self.file = options().open(&self.path)?;
            self.size = 0;
        }
        if let Err(error) = self.file.write_all(&line) {
            // A part of a line would spoil the next one.
            self.file.set_len(self.size)?;
            return Err(error);
        }
        self.size += bytes;
        Ok(())
    }
}

fn older(path: &Path) -> PathBuf {
    path.with_extension("jsonl.1")
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600);
    options
}

/// The file, ended with a whole line, and its size.
fn open(path: &Path) -> Result<(File, u64)> {
    let fail = |call| move |error| Error::io(call, path, error);
    let mut file = options().open(path).map_err(fail("open"))?;
    let mut size = file.metadata().map_err(fail("stat"))?.len();
    let whole = fs::read(path).map_err(fail("read"))?.last().is_none_or(|last| *last == b'\n');
    if !whole {
        // Of a daemon that ended amid a write. On a disk without room for the one byte the next event is
        // lost with this one.
        size += u64::from(file.write_all(b"\n").is_ok());
    }
    Ok((file, size))
}

fn read(path: &Path) -> Result<Vec<EventMessage>> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(FILE_MAX + 1).read_to_end(&mut bytes)) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("read", path, error)),
    }
    let events = bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
    Ok(events.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(n: usize) -> Vec<u8> {
        let id = format!("v{n}");
        super::super::line(&super::super::message(
            super::super::EventType::Volume,
            "create",
            &id,
            [].into(),
            7,
        ))
    }

    fn ids(events: &VecDeque<EventMessage>) -> Vec<&str> {
        events.iter().map(|event| event.actor.id.as_str()).collect()
    }

    #[test]
    fn the_last_ones_are_kept_within_a_bound() {
        let folder = tempfile::tempdir().unwrap();
        let (mut journal, none) = Journal::open(folder.path(), 3).unwrap();
        assert!(none.is_empty());
        let line = event(0).len() as u64;
        let count = (3 * FILE_MAX / line) as usize;
        (0..count).for_each(|n| journal.append(&event(n)));
        let (_, events) = Journal::open(folder.path(), 3).unwrap();
        let last: Vec<_> = (count - 3..count).map(|n| format!("v{n}")).collect();
        assert_eq!(ids(&events), last);
        let sizes: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|file| file.unwrap().metadata().unwrap().len())
            .collect();
        assert_eq!(sizes.len(), 2);
        assert!(sizes.iter().all(|size| *size <= FILE_MAX), "{sizes:?}");
    }

    #[test]
    fn a_broken_line_costs_itself_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(folder.path(), 9).unwrap();
        journal.append(&event(0));
        let mut file = options().open(&journal.path).unwrap();
        file.write_all(b"\xff{}\n{\"Type\":\"vol").unwrap();
        let (mut journal, events) = Journal::open(folder.path(), 9).unwrap();
        assert_eq!(ids(&events), ["v0"]);
        journal.append(&event(1));
        assert_eq!(ids(&Journal::open(folder.path(), 9).unwrap().1), ["v0", "v1"]);
    }
}
