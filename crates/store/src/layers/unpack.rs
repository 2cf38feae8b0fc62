//! From a layer's archive to a folder that overlay mounts as a lower layer.
//!
//! Nothing outside of the folder is touched, whatever the archive says: paths are resolved by the
//! kernel below the open folder (openat2(2), `RESOLVE_IN_ROOT`), where symbolic links of the
//! archive lead as they would lead a process inside. An entry replaces what an earlier one made
//! at its path, except that a folder keeps its content.
//!
//! Whiteouts (OCI image specification, "Image Layer Filesystem Changeset") become overlay's
//! (Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories"). Extended
//! attributes that steer overlay itself, and those of the host's own security policy, are left out.

use std::ffi::OsStr;
use std::fs::File;
use std::io::BufRead;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{FileType, Mode, XattrFlags, fsetxattr, mknodat};
use rustix::io::Errno;

use super::files::{Same, Shareable, Sharing, copy_start};
use super::folders::Folders;
use super::place::{self, Spot};
use crate::archive::{Archive, Entry, EntryKind};
use crate::recipe::{Head, Recorder, Recording};
use crate::{Error, Result};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const METADATA: &[u8] = b".wh..wh.";

/// What an archive may at most ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Members.
    pub entries: u64,
    /// Bytes of all files together, holes not counted.
    pub bytes: u64,
}

impl Default for Limits {
    /// Four million members, one TiB: far beyond real layers; a full disk is met before.
    fn default() -> Self {
        Self { entries: 4 << 20, bytes: 1 << 40 }
    }
}

/// Whether names that begin with `.wh.` have a meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whiteouts {
    /// They remove what is in lower layers.
    Overlay,
    /// They are names like others (copies into a container).
    Ordinary,
}

/// What was unpacked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Members, extension headers not counted.
    pub entries: u64,
    /// Bytes of all regular files.
    pub size: u64,
    /// Folders that had no entry of their own: they were made 0755 and root's, and should look as in
    /// the layers below.
    pub implied: Vec<PathBuf>,
}

/// Unpacks a plain tar into an empty folder, and reads the stream to its end. Needs the right to
/// change owners and make device nodes. After an error the folder holds a part.
pub fn unpack(
    source: impl BufRead,
    root: BorrowedFd<'_>,
    limits: &Limits,
    whiteouts: Whiteouts,
) -> Result<Unpacked> {
    unpack_onto(source, root, limits, whiteouts, Onto::default())
}

/// What an archive is unpacked onto, when that is no empty folder.
#[derive(Clone, Copy, Default)]
pub struct Onto<'a> {
    /// Added to every owner and group: id 0 of a running container is another out here.
    pub first_id: u32,
    /// No folder is replaced by anything else, nor anything else by a folder.
    pub keep_kinds: bool,
    /// Says whether there is a folder at a path below the root, or something else, or nothing, where that
    /// is not what is in the folder: the writable layer of a container that does not run has others below.
    pub is_folder: Option<&'a IsFolder<'a>>,
}

impl Onto<'_> {
    /// What is in the folder is all there is, and keeps its kind.
    fn keeps_what_it_sees(&self) -> bool {
        self.keep_kinds && self.is_folder.is_none()
    }
}

/// What is at a path below the root: a folder, something else, or nothing.
pub type IsFolder<'a> = dyn Fn(&Path) -> Option<bool> + Sync + 'a;

impl std::fmt::Debug for Onto<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Onto").field("first_id", &self.first_id).finish_non_exhaustive()
    }
}

/// As [`unpack`], into a folder that is in use: there may be files, and others may write to it.
pub fn unpack_onto(
    source: impl BufRead,
    root: BorrowedFd<'_>,
    limits: &Limits,
    whiteouts: Whiteouts,
    onto: Onto<'_>,
) -> Result<Unpacked> {
    let recording = Recording::new(source, None);
    unpack_from(recording, root, limits, whiteouts, onto, None).map(|(unpacked, _)| unpacked)
}

/// As [`unpack`], and writes the recipe that makes the archive again. Files are shared with other layers, if
/// that is wanted.
pub(crate) fn unpack_recorded(
    source: impl BufRead,
    root: BorrowedFd<'_>,
    limits: &Limits,
    recorder: Recorder,
    sharing: Option<Sharing>,
) -> Result<(Unpacked, Head)> {
    let recording = Recording::new(source, Some(recorder));
    let (unpacked, recording) =
        unpack_from(recording, root, limits, Whiteouts::Overlay, Onto::default(), sharing)?;
    let recorder = recording.into_recorder().ok_or(Error::Defect("the recipe of a layer went away"))?;
    Ok((unpacked, recorder.finish()?))
}

fn unpack_from<R: BufRead>(
    source: Recording<R>,
    root: BorrowedFd<'_>,
    limits: &Limits,
    whiteouts: Whiteouts,
    onto: Onto<'_>,
    sharing: Option<Sharing>,
) -> Result<(Unpacked, Recording<R>)> {
    let mut archive = Archive::new(source);
    let mut unpacking = Unpacking {
        folders: Folders::new(root),
        later: Vec::new(),
        done: Unpacked::default(),
        whiteouts,
        onto,
        sharing,
    };
    let mut bytes = 0u64;
    while let Some(mut entry) = archive.next_entry()? {
        entry.uid = shifted(&entry, entry.uid, onto.first_id)?;
        entry.gid = shifted(&entry, entry.gid, onto.first_id)?;
        unpacking.done.entries += 1;
        bytes = bytes.saturating_add(archive.left());
        if unpacking.done.entries > limits.entries {
            return Err(Error::Limit {
                what: "the number of members of the layer".to_owned(),
                limit: limits.entries,
            });
        }
        if bytes > limits.bytes {
            return Err(Error::Limit { what: "the content of the layer".to_owned(), limit: limits.bytes });
        }
        unpacking.place(entry, &mut archive)?;
    }
    let source = archive.drain()?;
    Ok((unpacking.finish()?, source))
}

fn shifted(entry: &Entry, id: u32, first: u32) -> Result<u32> {
    id.checked_add(first)
        .ok_or_else(|| failed(&entry.path, format!("the owner {id} is beyond the range of ids"), None))
}

/// An entry with this path failed.
pub(super) fn failed(path: &[u8], why: impl Into<String>, source: Option<Errno>) -> Error {
    Error::Entry {
        path: PathBuf::from(OsStr::from_bytes(path)),
        why: why.into(),
        source: source.map(std::io::Error::from),
    }
}

struct Unpacking<'a> {
    folders: Folders<'a>,
    /// Folders whose attributes are set last: what is made in them would change their times.
    later: Vec<(Vec<u8>, Entry)>,
    done: Unpacked,
    whiteouts: Whiteouts,
    onto: Onto<'a>,
    sharing: Option<Sharing>,
}

impl Unpacking<'_> {
    fn place<R: BufRead>(&mut self, entry: Entry, archive: &mut Archive<Recording<R>>) -> Result<()> {
        let path = clean(&entry.path)?;
        if path.is_empty() {
            return self.place_root(entry);
        }
        let (folder, name) = split(&path);
        if self.whiteouts == Whiteouts::Overlay {
            if name == OPAQUE {
                return self.make_opaque(folder, &path);
            }
            if path.split(|byte| *byte == b'/').any(|part| part.starts_with(METADATA)) {
                return Ok(());
            }
            if let Some(hidden) = name.strip_prefix(WHITEOUT) {
                return self.make_whiteout(folder, hidden, &path);
            }
        }
        let parent = self.folders.make(folder).map_err(|e| failed(&path, "resolve its folder", Some(e)))?;
        let spot = Spot { parent: parent.as_fd(), name, path: &path };
        if let (true, Some(is_folder)) = (self.onto.keep_kinds, self.onto.is_folder) {
            keeps_kind(is_folder(Path::new(OsStr::from_bytes(&path))), &entry)?;
        }
        match entry.kind {
            EntryKind::Folder => self.place_folder(spot, entry, archive.source_mut()),
            EntryKind::HardLink => self.place_link(spot, &entry, archive.source_mut()),
            EntryKind::File => {
                self.done.size = self.done.size.saturating_add(entry.size);
                self.place_file(spot, &entry, archive)
            }
            EntryKind::SymbolicLink => {
                self.replacing(spot, &entry, archive.source_mut(), || {
                    place::make_symbolic_link(spot, &entry.link)
                })?;
                place::set_attributes(spot, &entry)
            }
            _ => {
                self.replacing(spot, &entry, archive.source_mut(), || place::make_node(spot, &entry))?;
                place::set_attributes(spot, &entry)
            }
        }
    }

    fn place_file<R: BufRead>(
        &mut self,
        spot: Spot<'_>,
        entry: &Entry,
        archive: &mut Archive<Recording<R>>,
    ) -> Result<()> {
        let path = self.sharing.as_ref().and_then(|_| archive.source_mut().path(spot.parent, spot.name));
        let shareable =
            self.sharing.as_ref().zip(path).and_then(|(sharing, path)| sharing.look(&path, entry));
        if let Some(shareable) = &shareable
            && let Some(known) = &shareable.known
        {
            return self.place_known(spot, entry, shareable, known, archive);
        }
        let file = self.replacing(spot, entry, archive.source_mut(), || place::make_file(spot))?;
        place::fill_file(spot, &file, entry, archive)?;
        // Who shares it may have the kernel verify it, which is not to be while somebody may write to it.
        drop(file);
        self.offer(spot, shareable.as_ref())
    }

    /// A file that another layer may have: nothing is written as long as what comes is the same.
    fn place_known<R: BufRead>(
        &mut self,
        spot: Spot<'_>,
        entry: &Entry,
        shareable: &Shareable,
        known: &File,
        archive: &mut Archive<Recording<R>>,
    ) -> Result<()> {
        if place::exists(spot)? {
            self.clear(spot, archive.source_mut())?;
        }
        let Some(sharing) = &mut self.sharing else { return Err(Error::Defect("sharing ended")) };
        let whole = [(0, archive.left())];
        archive.source_mut().begin_file(spot.parent, spot.name, &whole)?;
        let same = match sharing.compare(known, archive)? {
            Same::All
                if sharing
                    .link(shareable, known, spot)
                    .map_err(|e| failed(spot.path, "link", Some(e)))? =>
            {
                archive.source_mut().end_file();
                return Ok(());
            }
            Same::All => entry.size,
            Same::Begins(length) => length,
        };
        let file = place::make_file(spot)?;
        copy_start(known, &file, same).map_err(|e| place::io_failed(spot, "copy its beginning", e))?;
        place::finish_file(spot, &file, entry, archive)?;
        drop(file);
        self.offer(spot, Some(shareable))
    }

    fn offer(&self, spot: Spot<'_>, shareable: Option<&Shareable>) -> Result<()> {
        match self.sharing.as_ref().zip(shareable) {
            Some((sharing, shareable)) => sharing
                .offer(shareable, spot)
                .map_err(|e| failed(spot.path, "link it for other layers", Some(e))),
            None => Ok(()),
        }
    }

    fn place_root(&mut self, entry: Entry) -> Result<()> {
        if entry.kind != EntryKind::Folder {
            return Err(failed(&entry.path, "the root of a layer must be a folder", None));
        }
        self.later.push((Vec::new(), entry));
        Ok(())
    }

    fn place_folder<R: BufRead>(
        &mut self,
        spot: Spot<'_>,
        entry: Entry,
        recording: &mut Recording<R>,
    ) -> Result<()> {
        if !place::make_folder(spot)? {
            if self.onto.keeps_what_it_sees() {
                keeps_kind(Some(false), &entry)?;
            }
            let was_whiteout = place::is_whiteout(spot)?;
            self.clear(spot, recording)?;
            place::make_folder(spot)?;
            if was_whiteout {
                // The lower folder was removed before this one was made: nothing of it shows through.
                self.make_opaque(spot.path, spot.path)?;
            }
        }
        self.folders.implied.remove(spot.path);
        self.later.push((spot.path.to_vec(), entry));
        Ok(())
    }

    fn place_link<R: BufRead>(
        &mut self,
        spot: Spot<'_>,
        entry: &Entry,
        recording: &mut Recording<R>,
    ) -> Result<()> {
        let target = clean(&entry.link)?;
        if target == spot.path {
            return Ok(());
        }
        let (folder, name) = split(&target);
        let from = self
            .folders
            .find(folder)
            .map_err(|e| failed(spot.path, "resolve the folder of its target", Some(e)))?;
        self.replacing(spot, entry, recording, || place::make_hard_link(spot, from.as_fd(), name))
    }

    /// Makes an entry; what is at its path already is removed first.
    fn replacing<T, R: BufRead>(
        &mut self,
        spot: Spot<'_>,
        entry: &Entry,
        recording: &mut Recording<R>,
        make: impl Fn() -> Result<T>,
    ) -> Result<T> {
        match make() {
            Err(Error::Entry { source: Some(source), .. })
                if source.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => return made,
        }
        if self.onto.keeps_what_it_sees() && place::is_folder(spot)? {
            keeps_kind(Some(true), entry)?;
        }
        self.clear(spot, recording)?;
        make()
    }

    fn clear<R: BufRead>(&mut self, spot: Spot<'_>, recording: &mut Recording<R>) -> Result<()> {
        if !recording.keep_replaced(spot.parent, spot.name)? {
            place::remove(spot)?;
        }
        self.folders.forget();
        self.folders.implied.retain(|path| !is_below(path, spot.path));
        Ok(())
    }

    fn make_opaque(&mut self, folder: &[u8], path: &[u8]) -> Result<()> {
        let folder = self.folders.make(folder).map_err(|e| failed(path, "resolve its folder", Some(e)))?;
        fsetxattr(&*folder, insula_sys::process::overlay_opaque(), b"y", XattrFlags::empty())
            .map_err(|e| failed(path, "make its folder opaque", Some(e)))
    }

    fn make_whiteout(&mut self, folder: &[u8], hidden: &[u8], path: &[u8]) -> Result<()> {
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(failed(path, "a whiteout must name an entry", None));
        }
        let parent: Rc<_> =
            self.folders.make(folder).map_err(|e| failed(path, "resolve its folder", Some(e)))?;
        match mknodat(&parent, hidden, FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => {
                // An entry of this layer hides the lower one by itself; a folder must not show it through.
                let full = if folder.is_empty() { hidden.to_vec() } else { [folder, b"/", hidden].concat() };
                match self.folders.exactly(&full) {
                    Ok(_) => self.make_opaque(&full, path),
                    Err(Errno::NOTDIR | Errno::LOOP) => Ok(()),
                    Err(error) => Err(failed(path, "look at what the whiteout hides", Some(error))),
                }
            }
            Err(error) => Err(failed(path, "make the whiteout", Some(error))),
        }
    }

    fn finish(mut self) -> Result<Unpacked> {
        for (path, entry) in std::mem::take(&mut self.later) {
            match self.folders.exactly(&path) {
                Ok(folder) => place::set_folder_attributes(folder.as_fd(), &path, &entry)?,
                // A later entry replaced the folder.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => return Err(failed(&path, "open the folder", Some(error))),
            }
        }
        self.done.implied =
            self.folders.implied.iter().map(|path| PathBuf::from(OsStr::from_bytes(path))).collect();
        Ok(self.done)
    }
}

/// Fails where the entry would change a folder into something else or the other way round.
fn keeps_kind(is_folder: Option<bool>, entry: &Entry) -> Result<()> {
    match (is_folder, entry.kind == EntryKind::Folder) {
        (Some(true), false) => {
            Err(failed(&entry.path, "cannot overwrite directory with non-directory", None))
        }
        (Some(false), true) => {
            Err(failed(&entry.path, "cannot overwrite non-directory with directory", None))
        }
        _ => Ok(()),
    }
}

fn is_below(path: &[u8], folder: &[u8]) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

/// The path without empty parts, `.` and `..`, relative to the root. One that leaves the root is
/// an error, as in Docker.
fn clean(path: &[u8]) -> Result<Vec<u8>> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop().ok_or_else(|| failed(path, "the path leaves the layer", None))?;
            }
            _ => parts.push(part),
        }
    }
    Ok(parts.join(&b'/'))
}

/// The folder and the last part of a clean path.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    path.iter().rposition(|byte| *byte == b'/').map_or((b"", path), |at| (&path[..at], &path[at + 1..]))
}

#[cfg(test)]
mod tests;
