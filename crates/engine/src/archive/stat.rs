//! What is at a path, as `X-Docker-Container-Path-Stat` describes it.

use std::path::Path;

use insula_models::PathStat;
use jiff::Timestamp;
use rustix::fs::{FileType, Stat};

use super::base_name;
use crate::tree::{Last, Place, Tree};
use crate::{Error, Result};

pub(super) fn describe(tree: &Tree, place: &Place, path: &str) -> Result<PathStat> {
    let stat = stat_of(place, path)?;
    let link_target = match &place.entry {
        Some(entry) if entry.kind() == FileType::Symlink => link_target(tree, place)?,
        _ => String::new(),
    };
    Ok(PathStat {
        name: base_name(path).to_owned(),
        size: stat.st_size,
        mode: go_mode(&stat),
        mtime: modified(&stat).to_string(),
        link_target,
    })
}

/// The attributes of a place; the root has them of its topmost folder.
pub(super) fn stat_of(place: &Place, path: &str) -> Result<Stat> {
    let fail = |error| Error::io("stat", Path::new(path), error);
    match (&place.entry, place.parent().and_then(|root| root.topmost())) {
        (Some(entry), _) => Ok(entry.stat),
        (None, Some(root)) => rustix::fs::fstat(root).map_err(fail),
        (None, None) => Err(fail(rustix::io::Errno::NOENT)),
    }
}

/// Where the link leads inside. One that leads nowhere is given as it is written.
fn link_target(tree: &Tree, place: &Place) -> Result<String> {
    let target = match tree.resolve(&place.path, Last::Follow) {
        Ok(target) => target.path,
        Err(_) => {
            let fail = |error| Error::io("readlink", &place.path, error);
            let (Some(parent), Some(entry)) = (place.parent(), &place.entry) else {
                return Err(fail(rustix::io::Errno::NOENT));
            };
            let text = parent.read_link(&place.name, entry).map_err(fail)?;
            place.path.parent().unwrap_or(Path::new("/")).join(text)
        }
    };
    Ok(target.to_string_lossy().into_owned())
}

pub(crate) fn modified(stat: &Stat) -> Timestamp {
    let nanoseconds = i32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    Timestamp::new(stat.st_mtime, nanoseconds).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Go's `os.FileMode`: permissions in the low nine bits, kinds from the top down.
pub(crate) fn go_mode(stat: &Stat) -> u32 {
    const DIR: u32 = 1 << 31;
    const SYMLINK: u32 = 1 << 27;
    const DEVICE: u32 = 1 << 26;
    const NAMED_PIPE: u32 = 1 << 25;
    const SOCKET: u32 = 1 << 24;
    const SETUID: u32 = 1 << 23;
    const SETGID: u32 = 1 << 22;
    const CHAR_DEVICE: u32 = 1 << 21;
    const STICKY: u32 = 1 << 20;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => DIR,
        FileType::Symlink => SYMLINK,
        FileType::BlockDevice => DEVICE,
        FileType::CharacterDevice => DEVICE | CHAR_DEVICE,
        FileType::Fifo => NAMED_PIPE,
        FileType::Socket => SOCKET,
        FileType::RegularFile | FileType::Unknown => 0,
    };
    let special = [(0o4000, SETUID), (0o2000, SETGID), (0o1000, STICKY)]
        .into_iter()
        .filter(|(bit, _)| stat.st_mode & bit != 0)
        .fold(0, |mode, (_, flag)| mode | flag);
    kind | special | (stat.st_mode & 0o777)
}
