//! Files of layers that the kernel verifies (fs-verity): what was changed on the disk behind its back is an error for
//! who reads it, at any time, and not only for who looks for damage.
//!
//! ```text
//! layers/recipes/<64>/verity   for each file: its digest in hexadecimal, a blank, its path, a NUL
//! ```
//!
//! Protected is the content of every file of a layer, and that it is not another file at its place: the digests
//! that the kernel has are compared with those that were noted when the layer came.

use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter, Write};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use insula_sys::verity;
use rustix::fs::{
    AtFlags, FileType, Mode, Nsecs, OFlags, ResolveFlags, Stat, Timespec, Timestamps, UTIME_OMIT, futimens,
    openat, openat2, statat,
};
use rustix::io::Errno;

use crate::{Error, Result, tree};

const LIST: &str = "verity";
/// Folders within folders; each is open while it is walked.
const DEPTH_MAX: usize = 256;
/// Bytes of an entry of the list: more than a path may have.
const ENTRY_MAX: usize = 64 << 10;
/// A program that the daemon is about to start still has all that is open, for a moment.
const BUSY: (u32, Duration) = (1000, Duration::from_millis(1));

/// Whether files in this folder can be verified by the kernel, or why not.
pub(super) fn probe(folder: &Path) -> Result<()> {
    let path = folder.join(insula_base::random_hex(8));
    let fail = |call| move |e: std::io::Error| Error::io(call, folder, e);
    std::fs::write(&path, b"insula").map_err(fail("write to"))?;
    let enabled = File::open(&path).map(|file| enable(file.as_fd()));
    std::fs::remove_file(&path).map_err(fail("unlink in"))?;
    let enabled = enabled.map_err(fail("open a file in"))?;
    enabled.map_err(|e| Error::NoVerity { path: folder.to_owned(), source: e.into() })
}

/// Has the kernel verify every file of an unpacked layer, and notes their digests beside its recipe.
pub(super) fn protect(layer: BorrowedFd<'_>, recipe: &Path) -> Result<()> {
    let path = recipe.join(LIST);
    let fail = |e| Error::io("write", &path, e);
    let mut list = BufWriter::new(File::create(&path).map_err(fail)?);
    protect_below(layer, &[], 0, &mut list)?;
    list.flush().map_err(fail)
}

fn protect_below(folder: BorrowedFd<'_>, at: &[u8], depth: usize, list: &mut impl Write) -> Result<()> {
    let failed = |path: &[u8], call: &'static str, error: Errno| Error::io(call, shown(path), error);
    if depth > DEPTH_MAX {
        return Err(failed(at, "walk", Errno::NAMETOOLONG));
    }
    for name in tree::names(folder).map_err(|e| Error::io("readdir", shown(at), e))? {
        let path =
            if at.is_empty() { name.to_bytes().to_vec() } else { [at, b"/", name.to_bytes()].concat() };
        let stat =
            statat(folder, &*name, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| failed(&path, "lstat", e))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let below =
                    tree::open_folder(folder, &name).map_err(|e| Error::io("open", shown(&path), e))?;
                protect_below(below.as_fd(), &path, depth + 1, list)?;
            }
            // Of an empty one there is nothing to be read.
            FileType::RegularFile if stat.st_size > 0 => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file =
                    openat(folder, &*name, flags, Mode::empty()).map_err(|e| failed(&path, "open", e))?;
                enable(file.as_fd()).map_err(|e| failed(&path, "FS_IOC_ENABLE_VERITY", e))?;
                // The kernel writes its hashes behind the content, and takes that for a change.
                futimens(&file, &modified(&stat)).map_err(|e| failed(&path, "futimens", e))?;
                let digest = verity::measure(file.as_fd())
                    .map_err(|e| failed(&path, "FS_IOC_MEASURE_VERITY", e))?
                    .ok_or(Error::Defect("a file that is verified has a digest"))?;
                let entry = [hex(&digest).as_bytes(), b" ", &path, b"\0"].concat();
                list.write_all(&entry).map_err(|e| Error::io("write", Path::new(LIST), e))?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// The first file of a layer that is not as it was noted, and why; nothing where none was noted.
pub(super) fn wrong(layer: &Path, recipe: &Path) -> Result<Option<String>> {
    let path = recipe.join(LIST);
    let fail = |e| Error::io("read", &path, e);
    let mut list = match File::open(&path) {
        Ok(file) => BufReader::new(file),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fail(error)),
    };
    let root = File::open(layer).map_err(|e| Error::io("open", layer, e))?;
    loop {
        let mut entry = Vec::new();
        std::io::Read::take(&mut list, ENTRY_MAX as u64).read_until(0, &mut entry).map_err(fail)?;
        let Some((0, entry)) = entry.split_last().map(|(last, rest)| (*last, rest)) else {
            let cut = "the list of the digests of its files is cut short".to_owned();
            return Ok((!entry.is_empty()).then_some(cut));
        };
        let (Some(noted), Some(b' '), Some(name)) = (entry.get(..64), entry.get(64), entry.get(65..)) else {
            return Ok(Some("the list of the digests of its files is damaged".to_owned()));
        };
        if let Some(why) = wrong_file(&root, noted, name) {
            return Ok(Some(format!("the file {:?} {why}", String::from_utf8_lossy(name))));
        }
    }
}

fn wrong_file(root: &File, noted: &[u8], name: &[u8]) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let found =
        openat2(root, name, flags, Mode::empty(), resolve).and_then(|file| verity::measure(file.as_fd()));
    match found {
        Ok(Some(digest)) if hex(&digest).as_bytes() == noted => None,
        Ok(Some(_)) => Some("is another one than was unpacked".to_owned()),
        Ok(None) => Some("is not verified by the kernel any more".to_owned()),
        Err(error) => Some(format!("cannot be verified: {error}")),
    }
}

fn enable(file: BorrowedFd<'_>) -> Result<(), Errno> {
    let (tries, pause) = BUSY;
    for _ in 0..tries {
        match verity::enable(file) {
            Err(Errno::TXTBSY) => std::thread::sleep(pause),
            done => return done,
        }
    }
    verity::enable(file)
}

/// The time of its last change; that of the last access is left alone.
fn modified(stat: &Stat) -> Timestamps {
    let left = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let nanoseconds = Nsecs::try_from(stat.st_mtime_nsec).unwrap_or_default();
    Timestamps {
        last_access: left,
        last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: nanoseconds },
    }
}

fn shown(path: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(path))
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the file system cannot, nothing is noted and nothing is wrong.
    #[test]
    fn a_layer_of_which_nothing_was_noted_is_not_wrong() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(wrong(folder.path(), folder.path()).unwrap(), None);
    }

    #[test]
    fn what_was_noted_must_be_there() {
        let folder = tempfile::tempdir().unwrap();
        let noted = |text: &[u8]| {
            std::fs::write(folder.path().join(LIST), text).unwrap();
            wrong(folder.path(), folder.path()).unwrap()
        };
        let digest = [b'0'; 64];
        std::fs::write(folder.path().join("file"), "x").unwrap();
        let why = noted(&[&digest[..], b" file\0"].concat()).unwrap();
        assert!(why.starts_with("the file \"file\""), "{why}");
        assert!(noted(&[&digest[..], b" gone\0"].concat()).unwrap().contains("cannot be verified"));
        assert!(noted(&[&digest[..], b" ../file\0"].concat()).unwrap().contains("cannot be verified"));
        assert!(noted(b"0123 file\0").unwrap().contains("damaged"));
        assert!(noted(&[&digest[..], b" fi"].concat()).unwrap().contains("cut short"));
        assert_eq!(noted(b""), None);
    }
}
