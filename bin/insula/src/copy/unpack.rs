//! A tar stream into a local folder. The stream comes from a container and is not trusted: every
//! path is opened below the folder without following links, owners and special bits are dropped
//! unless asked for, devices are left out.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context as _, bail};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Timespec, Timestamps};
use rustix::io::Errno;

use crate::printer;

/// Bytes of a file that are written at a time.
const PIECE: usize = 256 << 10;

/// Where entries go.
#[derive(Debug)]
pub(crate) struct Target {
    /// The folder below which everything is made.
    pub(crate) folder: OwnedFd,
    /// First component of the archive's names that is dropped.
    pub(crate) strip: Option<OsString>,
    /// What is put in front instead; empty for nothing.
    pub(crate) name: PathBuf,
    /// Keep owners and set-id bits.
    pub(crate) archive: bool,
}

/// What is used for one entry after the other.
struct Scratch {
    piece: Vec<u8>,
    /// The folder that was written to last: archives are written folder by folder.
    parent: Option<(PathBuf, Rc<OwnedFd>)>,
}

/// Mode, times and owner of a folder, set when its content is complete.
struct Late {
    path: PathBuf,
    attributes: Attributes,
}

#[derive(Clone, Copy)]
struct Attributes {
    mode: u32,
    mtime: i64,
    owner: Option<(u32, u32)>,
}

/// Unpacks everything; returns the bytes of files.
pub(crate) fn unpack(stream: impl Read, target: &Target) -> anyhow::Result<u64> {
    let mut late = Vec::new();
    let mut scratch = Scratch { piece: vec![0; PIECE], parent: None };
    let mut bytes = 0;
    for entry in tar::Archive::new(stream).entries().context("read the archive")? {
        let mut entry = entry.context("read the archive")?;
        let path = target.path(&entry.path_bytes())?;
        if path.as_os_str().is_empty() {
            if entry.header().entry_type().is_dir() {
                continue;
            }
            bail!("the archive has a file where a folder is copied");
        }
        bytes += target
            .entry(&mut entry, &path, &mut late, &mut scratch)
            .with_context(|| format!("unpack {}", path.display()))?;
    }
    for folder in late.iter().rev() {
        target.finish(folder).with_context(|| format!("set the mode of {}", folder.path.display()))?;
    }
    Ok(bytes)
}

impl Target {
    /// The entry's path below the folder.
    fn path(&self, name: &[u8]) -> anyhow::Result<PathBuf> {
        let name = Path::new(OsStr::from_bytes(name));
        let mut parts = Vec::new();
        for component in name.components() {
            match component {
                Component::Normal(part) => parts.push(part),
                Component::CurDir | Component::RootDir => {}
                Component::ParentDir | Component::Prefix(_) => {
                    bail!("the archive has the path {:?}, which leaves the folder", name.display())
                }
            }
        }
        let stripped = match (&self.strip, parts.first()) {
            (Some(strip), Some(first)) if first == strip => &parts[1..],
            _ => &parts[..],
        };
        let mut path = self.name.clone();
        path.extend(stripped);
        Ok(path)
    }

    /// The folder of a path and the last component.
    fn parent<'a>(&self, path: &'a Path, scratch: &mut Scratch) -> anyhow::Result<(Rc<OwnedFd>, &'a OsStr)> {
        let name = path.file_name().context("the path has no last component")?;
        let parent = path.parent().unwrap_or(Path::new(""));
        if let Some((path, folder)) = &scratch.parent
            && path == parent
        {
            return Ok((folder.clone(), name));
        }
        let folder = match parent.as_os_str().is_empty() {
            true => self.folder.try_clone()?,
            false => self.open_folder(parent)?,
        };
        let folder = Rc::new(folder);
        scratch.parent = Some((parent.to_owned(), folder.clone()));
        Ok((folder, name))
    }

    fn open_folder(&self, path: &Path) -> anyhow::Result<OwnedFd> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match rustix::fs::openat2(&self.folder, path, flags, Mode::empty(), resolve) {
            Err(Errno::LOOP) => bail!("{} leads through a symbolic link", path.display()),
            other => other.with_context(|| format!("open {}", path.display())),
        }
    }

    fn entry<R: Read>(
        &self,
        entry: &mut tar::Entry<'_, R>,
        path: &Path,
        late: &mut Vec<Late>,
        scratch: &mut Scratch,
    ) -> anyhow::Result<u64> {
        let (parent, name) = self.parent(path, scratch)?;
        let attributes = self.attributes(entry)?;
        let kind = entry.header().entry_type();
        if kind.is_dir() {
            make_folder(&parent, name)?;
            late.push(Late { path: path.to_owned(), attributes });
            return Ok(0);
        }
        let is_link = kind.is_symlink() || kind.is_hard_link();
        if !(kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse() || is_link || kind.is_fifo()) {
            printer::warning(&format!("{} is left out: devices are not copied", path.display()));
            return Ok(0);
        }
        if !(kind.is_symlink() || kind.is_hard_link() || kind.is_fifo()) {
            return write_file(entry, &parent, name, attributes, &mut scratch.piece);
        }
        make_room(&parent, name)?;
        if kind.is_symlink() {
            let link = entry.link_name_bytes().context("a symbolic link without a target")?;
            rustix::fs::symlinkat(OsStr::from_bytes(&link), &parent, name).context("symlinkat")?;
        } else if kind.is_hard_link() {
            let link = entry.link_name_bytes().context("a hard link without a target")?;
            let original = self.path(&link)?;
            let (from, from_name) = self.parent(&original, scratch)?;
            rustix::fs::linkat(&*from, from_name, &parent, name, AtFlags::empty())
                .with_context(|| format!("link to {}", original.display()))?;
        } else {
            rustix::fs::mknodat(&parent, name, rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o600), 0)
                .context("mknodat")?;
        }
        Ok(0)
    }

    fn attributes<R: Read>(&self, entry: &mut tar::Entry<'_, R>) -> anyhow::Result<Attributes> {
        let exact = exact_mtime(entry)?;
        let header = entry.header();
        let mode = header.mode().context("mode")?;
        let owner = if self.archive {
            Some((u32::try_from(header.uid()?)?, u32::try_from(header.gid()?)?))
        } else {
            None
        };
        Ok(Attributes {
            mode: mode & if self.archive { 0o7777 } else { 0o777 },
            mtime: match exact {
                Some(seconds) => seconds,
                None => i64::try_from(header.mtime()?).unwrap_or(0),
            },
            owner,
        })
    }

    fn finish(&self, folder: &Late) -> anyhow::Result<()> {
        apply(self.open_folder(&folder.path)?.as_fd(), folder.attributes)
    }
}

/// The time that an extension gives, in seconds: before 1970 no header can.
fn exact_mtime<R: Read>(entry: &mut tar::Entry<'_, R>) -> anyhow::Result<Option<i64>> {
    let mut seconds = None;
    for extension in entry.pax_extensions().context("extensions")?.into_iter().flatten() {
        let extension = extension.context("an extension")?;
        if extension.key_bytes() == b"mtime" {
            let text = extension.value().context("mtime")?;
            let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
            let earlier = i64::from(whole.starts_with('-') && fraction.contains(|digit| digit != '0'));
            let whole: i64 = whole.parse().with_context(|| format!("mtime {text:?}"))?;
            seconds = whole.checked_sub(earlier);
        }
    }
    Ok(seconds)
}

fn make_folder(parent: &OwnedFd, name: &OsStr) -> anyhow::Result<()> {
    match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => {
            let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).context("stat")?;
            if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::Directory {
                bail!("cannot overwrite non-directory with directory");
            }
            Ok(())
        }
        Err(error) => Err(error).context("mkdirat"),
    }
}

/// Removes what is in the way, unless it is a folder.
fn make_room(parent: &OwnedFd, name: &OsStr) -> anyhow::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => bail!("cannot overwrite directory with non-directory"),
        Err(error) => Err(error).context("unlinkat"),
    }
}

fn write_file(
    content: &mut impl Read,
    parent: &OwnedFd,
    name: &OsStr,
    attributes: Attributes,
    piece: &mut [u8],
) -> anyhow::Result<u64> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600));
    let file = match open() {
        Err(Errno::EXIST) => {
            make_room(parent, name)?;
            open()
        }
        opened => opened,
    };
    let mut file = File::from(file.context("openat")?);
    let mut bytes = 0;
    loop {
        match content.read(piece) {
            Ok(0) => break,
            Ok(count) => {
                file.write_all(&piece[..count]).context("write")?;
                bytes += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("read the archive"),
        }
    }
    apply(file.as_fd(), attributes)?;
    Ok(bytes)
}

fn apply(file: std::os::fd::BorrowedFd<'_>, attributes: Attributes) -> anyhow::Result<()> {
    if let Some((uid, gid)) = attributes.owner {
        rustix::fs::fchown(file, Some(rustix::fs::Uid::from_raw(uid)), Some(rustix::fs::Gid::from_raw(gid)))
            .context("fchown")?;
    }
    rustix::fs::fchmod(file, Mode::from_raw_mode(attributes.mode)).context("fchmod")?;
    let time = Timespec { tv_sec: attributes.mtime, tv_nsec: 0 };
    rustix::fs::futimens(file, &Timestamps { last_access: time, last_modification: time }).context("futimens")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::copy::pack::{Source, pack};
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    fn target(folder: &Path, strip: Option<&str>, name: &str) -> Target {
        Target {
            folder: File::open(folder).unwrap().into(),
            strip: strip.map(OsString::from),
            name: PathBuf::from(name),
            archive: false,
        }
    }

    fn archive(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, kind, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o4755);
            let bytes = path.as_bytes();
            header.as_gnu_mut().unwrap().name[..bytes.len()].copy_from_slice(bytes);
            if kind.is_symlink() || kind.is_hard_link() {
                header.as_gnu_mut().unwrap().linkname[..content.len()].copy_from_slice(content.as_bytes());
                header.set_size(0);
                header.set_cksum();
                builder.append(&header, io::empty()).unwrap();
            } else {
                header.set_size(content.len() as u64);
                header.set_cksum();
                builder.append(&header, content.as_bytes()).unwrap();
            }
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn a_folder_survives_the_round_trip_under_another_name() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let top = from.path().join("top");
        std::fs::create_dir_all(top.join("sub")).unwrap();
        std::fs::write(top.join("sub/file"), "content").unwrap();
        std::fs::set_permissions(top.join("sub/file"), std::fs::Permissions::from_mode(0o640)).unwrap();
        symlink("sub/file", top.join("link")).unwrap();
        let time = Timespec { tv_sec: -315_619_200, tv_nsec: 0 };
        let file = File::open(top.join("sub/file")).unwrap();
        rustix::fs::futimens(&file, &Timestamps { last_access: time, last_modification: time }).unwrap();
        let source = Source { path: top, name: "top".into(), follow: false, keep_owner: false };
        let mut bytes = Vec::new();
        pack(&source, &mut bytes).unwrap();
        assert_eq!(unpack(&bytes[..], &target(to.path(), Some("top"), "other")).unwrap(), 7);
        let file = to.path().join("other/sub/file");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "content");
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o7777, 0o640);
        assert_eq!(file.metadata().unwrap().mtime(), time.tv_sec, "before 1970");
        assert_eq!(to.path().join("other/link").read_link().unwrap(), Path::new("sub/file"));
    }

    #[test]
    fn nothing_leaves_the_folder() {
        use tar::EntryType::{Link, Regular, Symlink};
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "secret").unwrap();
        let out = outside.path().to_str().unwrap();
        let hostile: [&[(&str, tar::EntryType, &str)]; 4] = [
            &[("../evil", Regular, "x")],
            &[("a/../../evil", Regular, "x")],
            &[("a", Symlink, out), ("a/evil", Regular, "x")],
            &[("a", Symlink, out), ("b", Link, "a/secret")],
        ];
        for entries in hostile {
            let to = tempfile::tempdir().unwrap();
            assert!(unpack(&archive(entries)[..], &target(to.path(), None, "")).is_err(), "{entries:?}");
            assert_eq!(outside.path().read_dir().unwrap().count(), 1);
            assert!(!to.path().parent().unwrap().join("evil").exists());
        }
    }

    #[test]
    fn set_id_bits_are_dropped_and_absolute_names_stay_below() {
        let to = tempfile::tempdir().unwrap();
        let bytes = archive(&[("/x", tar::EntryType::Regular, "1"), ("x", tar::EntryType::Regular, "22")]);
        unpack(&bytes[..], &target(to.path(), None, "")).unwrap();
        let file = to.path().join("x");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "22");
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o7777, 0o755);
        std::fs::create_dir(to.path().join("d")).unwrap();
        let over = archive(&[("d", tar::EntryType::Regular, "1")]);
        assert!(unpack(&over[..], &target(to.path(), None, "")).is_err());
    }
}
