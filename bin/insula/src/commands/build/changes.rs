//! What of a folder is to be sent: the daemon keeps contexts, and the index that says what they were.
//!
//! A file that has the inode, size, mode and times that it had is the one that was sent. One that has just been changed
//! may be changed again within the same tick of the clock: it is sent once more the next time.

use std::collections::{HashMap, HashSet};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use insula_build::Framed;
use insula_client::{Client, KeptContext};
use sha2::{Digest as _, Sha256};

use crate::copy::context::Context;

/// Longer than a tick of the clock that files are dated by.
const TICK: Duration = Duration::from_millis(100);

/// A folder, what the daemon has of it, and what differs.
#[derive(Debug)]
pub(super) struct Changes {
    pub(super) kept: KeptContext,
    context: Context,
    index: Vec<u8>,
    gone: Vec<u8>,
    changed: HashSet<String>,
}

impl Changes {
    /// Compares a folder with what the daemon has; `None` where it keeps no contexts.
    pub(super) async fn look(client: &Client, context: &Context) -> anyhow::Result<Option<Self>> {
        let index = index(context)?;
        let mut kept = KeptContext {
            id: id(context),
            base: String::new(),
            index: digest(&index),
            name: context.folder.display().to_string(),
        };
        let there = match client.context_index(&kept.id, &kept.index).await {
            Ok(there) => there,
            // An older daemon, or one that does not let everybody ask.
            Err(_) => return Ok(None),
        };
        let (mut gone, mut changed) = (Vec::new(), HashSet::new());
        match there {
            None => kept.base.clone_from(&kept.index),
            Some(old) => {
                kept.base = if old.is_empty() { String::new() } else { digest(&old) };
                compare(&old, &index, &mut gone, &mut changed);
            }
        }
        Ok(Some(Self { kept, context: context.clone(), index, gone, changed }))
    }

    /// Writes what differs, and what comes for the daemon alone.
    pub(super) fn pack(&self, sink: &mut dyn Write) -> io::Result<()> {
        if self.kept.base != self.kept.index {
            for bytes in [&self.index, &self.gone] {
                let mut framed = Framed::new(&mut *sink);
                framed.write_all(bytes)?;
                framed.finish()?;
            }
            let mut framed = Framed::new(&mut *sink);
            self.context.pack_some(&mut framed, &self.changed)?;
            framed.finish()?;
        }
        self.context.pack_beside(sink)
    }
}

/// Tells this folder from those of others.
fn id(context: &Context) -> String {
    let host = std::fs::read("/etc/machine-id").unwrap_or_default();
    let name = rustix::system::uname().nodename().to_bytes().to_vec();
    let path = context.folder.as_os_str().as_encoded_bytes().to_vec();
    let user = rustix::process::geteuid().as_raw().to_be_bytes().to_vec();
    let mut hash = Sha256::new();
    for part in [host, name, path, user] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hex(&hash.finalize())
}

fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What everything in the context is, one record after another, ended by NUL.
fn index(context: &Context) -> io::Result<Vec<u8>> {
    let recent = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(TICK);
    let mut index = Vec::new();
    context.walk(&mut |_, name, metadata| {
        let changed = Duration::new(
            u64::try_from(metadata.ctime()).unwrap_or(0),
            u32::try_from(metadata.ctime_nsec()).unwrap_or(0),
        );
        let mark = if changed >= recent { insula_base::random_hex(8) } else { String::new() };
        write!(
            index,
            "{:o}:{}:{}.{}:{}.{}:{}:{}{mark} {name}\0",
            metadata.mode(),
            metadata.size(),
            metadata.mtime(),
            metadata.mtime_nsec(),
            metadata.ctime(),
            metadata.ctime_nsec(),
            metadata.dev(),
            metadata.ino(),
        )
    })?;
    Ok(index)
}

/// The names of a record and what is said about it.
fn records(index: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    index.split(|byte| *byte == 0).filter_map(|record| {
        let space = record.iter().position(|byte| *byte == b' ')?;
        Some((&record[space + 1..], &record[..space]))
    })
}

/// Whether it is a file, a folder or something else.
fn kind(said: &[u8]) -> u32 {
    let mode = said.split(|byte| *byte == b':').next().unwrap_or_default();
    let mode = std::str::from_utf8(mode).ok().and_then(|mode| u32::from_str_radix(mode, 8).ok());
    mode.unwrap_or(0) & 0o170_000
}

/// Names that are no more or something else, and names of what is to be sent.
fn compare(old: &[u8], new: &[u8], gone: &mut Vec<u8>, changed: &mut HashSet<String>) {
    let mut before: HashMap<&[u8], &[u8]> = records(old).collect();
    for (name, said) in records(new) {
        let known = before.remove(name);
        if known == Some(said) {
            continue;
        }
        if known.is_some_and(|known| kind(known) != kind(said)) {
            gone.extend_from_slice(name);
            gone.push(0);
        }
        changed.insert(String::from_utf8_lossy(name).into_owned());
    }
    let mut left: Vec<_> = before.into_keys().collect();
    left.sort_unstable();
    for name in left {
        gone.extend_from_slice(name);
        gone.push(0);
    }
}

#[cfg(test)]
mod tests {
    use insula_build::Ignore;

    use super::*;

    #[test]
    fn what_differs_is_told() {
        let old =
            b"100644:1:2.0:3.0:4:5 same\x00100644:1:2.0:3.0:4:5 other\x0040755:1 gone\x00100644:1 gone/x\x00\
            100644:1:1 kind\x00";
        let new = b"100644:1:2.0:3.0:4:5 same\x00100644:2:2.0:3.0:4:5 other\x00100644:1 new one\x0040755:1:1 kind\x00";
        let (mut gone, mut changed) = (Vec::new(), HashSet::new());
        compare(old, new, &mut gone, &mut changed);
        assert_eq!(gone, b"kind\0gone\0gone/x\0");
        let mut changed: Vec<_> = changed.into_iter().collect();
        changed.sort();
        assert_eq!(changed, ["kind", "new one", "other"]);
    }

    #[test]
    fn an_index_has_what_is_sent_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("sub")).unwrap();
        for name in ["a", "b.o", "sub/c", "Dockerfile"] {
            std::fs::write(at(name), name).unwrap();
        }
        let context = Context {
            folder: folder.path().to_owned(),
            ignore: Ignore::parse(b"*.o\nDockerfile\n").unwrap(),
            always: vec!["Dockerfile".to_owned()],
            extra: None,
        };
        let index = index(&context).unwrap();
        let names: Vec<_> =
            records(&index).map(|(name, _)| String::from_utf8_lossy(name).into_owned()).collect();
        assert_eq!(names, ["a", "sub", "sub/c"]);
        let mut beside = Vec::new();
        context.pack_beside(&mut beside).unwrap();
        let mut beside = tar::Archive::new(&beside[..]);
        let names =
            beside.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string());
        assert_eq!(names.collect::<Vec<_>>(), ["Dockerfile"]);
    }
}
