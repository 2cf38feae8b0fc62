//! From a file to what is in it. Nothing is used before all of it is known to be whole.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek as _, SeekFrom};
use std::path::Path;

use insula_base::Digest;
use sha2::{Digest as _, Sha256};

use super::spool::take_in;
use super::write::SUM_SIZE;
use super::{DOCUMENT, DOCUMENT_MAX, STATE, SUM, Spooled};
use crate::archive::{Archive, Entry, EntryKind};
use crate::images::{Loaded, Names};
use crate::layers::{Limits, Whiteouts, unpack};
use crate::{Error, Result, Store};

/// Members of one file.
const MEMBERS_MAX: usize = 1 << 16;
const BLOCK: u64 = 512;
const BUFFER: usize = 256 << 10;

/// A workload that came whole.
#[derive(Debug)]
pub struct WorkloadFile {
    spooled: Spooled,
    contents: Contents,
}

/// Where things are in a file.
#[derive(Debug, Default, PartialEq, Eq)]
struct Contents {
    document: Vec<u8>,
    /// How far the members go that are an archive of images.
    images_end: u64,
    /// Beginning and length.
    state: BTreeMap<Digest, (u64, u64)>,
}

impl Store {
    /// Takes in a file and looks at every byte of it. One that was cut or altered is an error, and is gone.
    pub fn take_workload(&self, input: impl Read) -> Result<WorkloadFile> {
        let spooled = take_in(self.content(), input)?;
        let contents = contents(BufReader::with_capacity(BUFFER, spooled.open()?))?;
        Ok(WorkloadFile { spooled, contents })
    }

    /// Loads the images of a workload. Names that other images have stay with them.
    pub fn load_workload_images(&self, file: &WorkloadFile) -> Result<Vec<Loaded>> {
        let archive = file.spooled.open()?.take(file.contents.images_end);
        self.images().load_named(archive, Names::Stay, &mut |_| {})
    }
}

impl WorkloadFile {
    /// The document that says what there is.
    #[must_use]
    pub fn document(&self) -> &[u8] {
        &self.contents.document
    }

    /// Whether there is this writable layer or volume.
    #[must_use]
    pub fn has(&self, digest: &Digest) -> bool {
        self.contents.state.contains_key(digest)
    }

    /// Unpacks a writable layer or a volume into an empty folder.
    pub fn unpack(&self, digest: &Digest, folder: &Path, whiteouts: Whiteouts) -> Result<()> {
        let (begin, size) = self
            .contents
            .state
            .get(digest)
            .ok_or_else(|| Error::Archive(format!("it lacks {STATE}{}.tar", digest.hex())))?;
        let mut file = self.spooled.open()?;
        file.seek(SeekFrom::Start(*begin)).map_err(|e| Error::io("seek", self.spooled.path(), e))?;
        let source = BufReader::with_capacity(BUFFER, file.take(*size));
        let root = File::open(folder).map_err(|e| Error::io("open", folder, e))?;
        unpack(source, std::os::fd::AsFd::as_fd(&root), &Limits::default(), whiteouts).map(drop)
    }
}

/// Reads a file to its end.
fn contents(source: impl BufRead) -> Result<Contents> {
    let mut archive = Archive::new(Summing { source, hash: Sha256::new(), position: 0 });
    let mut found = Contents::default();
    let mut members = 0;
    let cut = || Error::Archive("the file is not whole: its end is missing".to_owned());
    loop {
        let entry = match archive.next_entry() {
            Ok(Some(entry)) => entry,
            Ok(None) => return Err(if members == 0 { not_a_workload() } else { cut() }),
            Err(error) => return Err(error),
        };
        members += 1;
        if members > MEMBERS_MAX {
            return Err(Error::Limit { what: "the number of members".to_owned(), limit: MEMBERS_MAX as u64 });
        }
        if (entry.path == DOCUMENT.as_bytes()) != (members == 1) {
            return Err(not_a_workload());
        }
        if entry.path == SUM.as_bytes() {
            check_sum(&entry, &mut archive)?;
            archive.drain()?;
            return Ok(found);
        }
        found.member(&entry, &mut archive)?;
    }
}

fn not_a_workload() -> Error {
    Error::Archive(format!("no workload is in it: its first member, and no other, is {DOCUMENT}"))
}

impl Contents {
    fn member<R: BufRead>(&mut self, entry: &Entry, archive: &mut Archive<Summing<R>>) -> Result<()> {
        let (begin, size) = (archive.source_mut().position, archive.left());
        if entry.path == DOCUMENT.as_bytes() {
            self.document = small(archive, DOCUMENT_MAX)?;
            self.images_end = begin.saturating_add(size);
        } else if let Some(name) = entry.path.strip_prefix(STATE.as_bytes()) {
            if entry.kind != EntryKind::File || entry.sparse.is_some() {
                return Err(Error::Archive(format!("a member of {STATE} is no plain file")));
            }
            let hex = std::str::from_utf8(name).ok().and_then(|name| name.strip_suffix(".tar"));
            let digest = hex.and_then(|hex| format!("sha256:{hex}").parse().ok());
            let digest =
                digest.ok_or_else(|| Error::Archive(format!("a member of {STATE} has no digest")))?;
            self.state.insert(digest, (begin, size));
        } else if self.state.is_empty() {
            self.images_end = begin.saturating_add(size).saturating_add(BLOCK - 1) / BLOCK * BLOCK;
        }
        Ok(())
    }
}

/// What is left of a member.
fn small<R: BufRead>(archive: &mut Archive<R>, limit: u64) -> Result<Vec<u8>> {
    if archive.left() > limit {
        return Err(Error::Limit { what: "the size of a document".to_owned(), limit });
    }
    let mut bytes = Vec::new();
    loop {
        let part = archive.fill()?;
        if part.is_empty() {
            return Ok(bytes);
        }
        bytes.extend_from_slice(part);
        let count = part.len();
        archive.consume(count);
    }
}

fn check_sum<R: BufRead>(entry: &Entry, archive: &mut Archive<Summing<R>>) -> Result<()> {
    // As it stands after the header of this member.
    let found = Digest::from_sha256(&archive.source_mut().hash.clone().finalize().into());
    let altered =
        || Error::Archive("the file was altered, or a copy of it went wrong: its sum differs".to_owned());
    if entry.kind != EntryKind::File || entry.sparse.is_some() {
        return Err(altered());
    }
    match small(archive, SUM_SIZE)?.strip_suffix(b"\n") {
        Some(sum) if sum == found.hex().as_bytes() => Ok(()),
        _ => Err(altered()),
    }
}

/// Counts and hashes what is consumed.
#[derive(Debug)]
struct Summing<R> {
    source: R,
    hash: Sha256,
    position: u64,
}

impl<R: BufRead> BufRead for Summing<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.source.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        // What was filled is still there, so this reads nothing.
        if let Ok(filled) = self.source.fill_buf() {
            self.hash.update(&filled[..count.min(filled.len())]);
        }
        self.position += count as u64;
        self.source.consume(count);
    }
}

impl<R: BufRead> Read for Summing<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let filled = self.fill_buf()?;
        let count = filled.len().min(into.len());
        into[..count].copy_from_slice(&filled[..count]);
        self.consume(count);
        Ok(count)
    }
}

/// For fuzzing: whatever the bytes are, they are refused or understood.
#[doc(hidden)]
pub fn understand(bytes: &[u8]) -> bool {
    contents(bytes).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    use crate::workload::State;

    fn file(store: &Store) -> (Vec<u8>, Digest) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("kept"), "state").unwrap();
        let part = store.spool(|out| crate::layers::write_tree(folder.path(), out).map(drop)).unwrap();
        let digest = part.digest().clone();
        let image =
            store.images().import(&tar_of_nothing()[..], crate::ImportOptions::default(), &mut |_| {});
        let images = [image.unwrap().to_string()];
        let mut out = Vec::new();
        let state = State::from([(digest.clone(), part)]);
        store.write_workload(b"{\"a\":1}", (&images, &BTreeSet::new()), &state, &mut out).unwrap();
        (out, digest)
    }

    fn tar_of_nothing() -> Vec<u8> {
        tar::Builder::new(Vec::new()).into_inner().unwrap()
    }

    #[test]
    fn a_workload_comes_back() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (bytes, digest) = file(&Store::open(here.path()).unwrap());
        let store = Store::open(there.path()).unwrap();
        let found = store.take_workload(&bytes[..]).unwrap();
        assert_eq!(found.document(), b"{\"a\":1}");
        assert!(found.has(&digest));
        assert_eq!(store.load_workload_images(&found).unwrap().len(), 1);
        if rustix::process::geteuid().is_root() {
            let folder = there.path().join("out");
            std::fs::create_dir(&folder).unwrap();
            found.unpack(&digest, &folder, Whiteouts::Ordinary).unwrap();
            assert_eq!(std::fs::read(folder.join("kept")).unwrap(), b"state");
        }
        drop(found);
        let left = std::fs::read_dir(there.path().join("content/ingest")).unwrap().count();
        assert_eq!(left, 0);
    }

    #[test]
    fn what_was_cut_or_altered_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let (bytes, _) = file(&store);
        assert!(understand(&bytes));
        let end = bytes.len() - 3 * BLOCK as usize;
        for length in (0..end).step_by(BLOCK as usize / 2) {
            assert!(!understand(&bytes[..length]), "cut after {length} bytes");
        }
        for at in (0..end + 64).step_by(97) {
            let mut altered = bytes.clone();
            altered[at] ^= 1;
            assert!(!understand(&altered), "byte {at} was altered");
        }
        store.take_workload(&bytes[..end]).unwrap_err();
        assert_eq!(std::fs::read_dir(folder.path().join("content/ingest")).unwrap().count(), 0);
    }
}
