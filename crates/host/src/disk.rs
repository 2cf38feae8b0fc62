//! Disks in files: a file system of a given size in a sparse file, mounted by a loop device that goes with the
//! mount. For what must not grow past a size where the file system below has no quotas.
//!
//! The file system is ext4: mkfs.ext4(8) makes it in milliseconds and at any size, it takes mapped ids, extended
//! attributes and whiteouts, and gives deleted blocks back to the file below. Nobody but the kernel writes into
//! such a file, so mounting it is no more than mounting any disk of the host.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use insula_base::{Kind, Kinded};
use insula_sys::loop_device::{LoopDevice, shut_down};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

/// The smallest one: what is smaller has no room for a file system's own tables.
pub const SMALLEST: u64 = 4 << 20;

/// The journal's bytes: mkfs.ext4(8) has no smaller one for blocks of 4 KiB.
const JOURNAL: u64 = 4 << 20;
/// Bytes for each inode: a file takes a block at least, so that blocks are used up first.
const PER_INODE: u64 = 4096;
const INODE: u64 = 256;
const BLOCK: u64 = 4096;
/// Super block, descriptors and bitmaps of one group of blocks, rounded up.
const PER_GROUP: u64 = 12 << 10;
const GROUP: u64 = 128 << 20;
/// What any of them has beside that.
const FIXED: u64 = 64 << 10;

/// The result of everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with a disk in a file, or with a quota.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{call} {path:?}")]
    Io {
        call: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A program of e2fsprogs failed, in its own words.
    #[error("{program} {path:?}: {said}")]
    Program { program: &'static str, path: PathBuf, said: String },
    /// What is in the file cannot be mounted.
    #[error("the file system in {0:?} is damaged; system check --repair repairs what can be")]
    Damaged(PathBuf, #[source] io::Error),
    /// It is mounted.
    #[error("the file system in {0:?} is in use")]
    InUse(PathBuf),
    /// The host lacks something.
    #[error("{0}")]
    Unsupported(String),
}

impl Error {
    pub(crate) fn io(call: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io { call, path: path.to_owned(), source: source.into() }
    }
}

impl Kinded for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => Kind::Denied,
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Kind::Unavailable,
                io::ErrorKind::FileTooLarge => Kind::InvalidArgument,
                _ => Kind::Internal,
            },
            Self::Program { .. } | Self::Damaged(..) => Kind::Internal,
            Self::InUse(_) => Kind::Conflict,
            Self::Unsupported(_) => Kind::Unsupported,
        }
    }
}

/// Makes the file `path`, which must not be there, with a file system that takes `bytes` of content and names.
/// It takes no room but for its tables until something is written.
pub fn make(path: &Path, bytes: u64) -> Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| Error::io("create", path, e))?;
    file.set_len(file_length(bytes)).map_err(|e| Error::io("ftruncate", path, e))?;
    drop(file);
    // Nothing of it was ever written, so nothing has to be zeroed. A journal, for a host may lose its power.
    let options = ["-q", "-F", "-b", "4096", "-m", "0", "-i", "4096", "-I", "256", "-J", "size=4"];
    let more = ["-O", "^resize_inode,^metadata_csum_seed", "-E", "lazy_itable_init=1,lazy_journal_init=1"];
    run("mkfs.ext4", &[&options[..], &more[..]].concat(), path, &[0])
}

/// Length of a file whose file system has `bytes` for content.
fn file_length(bytes: u64) -> u64 {
    let plain =
        bytes.saturating_add(JOURNAL + FIXED).saturating_add(bytes.div_ceil(GROUP).saturating_mul(PER_GROUP));
    // Of each PER_INODE bytes, INODE are for the inode.
    let share = PER_INODE / INODE;
    (plain / (share - 1)).saturating_mul(share).next_multiple_of(BLOCK)
}

/// Mounts the file system in `path` at `target`, an empty folder, by the loop device that has it already or by one
/// that is cleared when it is unmounted.
pub fn mount(path: &Path, target: &Path) -> Result<()> {
    let file =
        OpenOptions::new().read(true).write(true).open(path).map_err(|e| Error::io("open", path, e))?;
    // Two devices with the same file would be two file systems that know nothing of each other.
    let device = match having(&file, path)? {
        Some(device) => device,
        None => LoopDevice::attach(file.as_fd()).map_err(|error| no_device(path, error))?,
    };
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    rustix::mount::mount(device.path(), target, "ext4", flags, c"discard").map_err(|error| match error {
        Errno::NODEV => Error::Unsupported("this kernel has no ext4 file system".to_owned()),
        // EUCLEAN, EFSBADCRC and whatever is no file system at all.
        Errno::UCLEAN | Errno::BADMSG | Errno::INVAL => Error::Damaged(path.to_owned(), error.into()),
        error => Error::io("mount", path, error),
    })
}

/// Takes the file system at `target` away; it is gone when nothing uses it any more. That nothing is mounted
/// there is no error.
pub fn unmount(target: &Path) -> Result<()> {
    match rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(error) => Err(Error::io("umount", target, error)),
    }
}

/// Has nothing of the file system in `path` take room any more, whoever still has it mounted: another mount namespace
/// may hold a copy of a mount that was taken away here, and with it the device and the file. For one that is about
/// to be removed; `target` is an empty folder where nothing is mounted.
pub fn give_up(path: &Path, target: &Path) -> Result<()> {
    let file =
        OpenOptions::new().read(true).write(true).open(path).map_err(|e| Error::io("open", path, e))?;
    if having(&file, path)?.is_none() {
        return Ok(());
    }
    // By the same device, so it is the same file system. It writes nothing from here on.
    mount(path, target)?;
    let down = File::open(target)
        .map_err(|e| Error::io("open", target, e))
        .and_then(|open| shut_down(open.as_fd()).map_err(|e| Error::io("EXT4_IOC_SHUTDOWN", target, e)));
    unmount(target)?;
    down?;
    file.set_len(0).map_err(|e| Error::io("ftruncate", path, e))
}

/// Whether something is mounted at `target`.
pub fn is_mounted(target: &Path) -> Result<bool> {
    let device = |path: &Path| match std::fs::symlink_metadata(path) {
        Ok(meta) => Ok(Some(meta.dev())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("stat", path, error)),
    };
    let above = target.parent().map_or(Ok(None), device)?;
    Ok(matches!((device(target)?, above), (Some(there), Some(above)) if there != above))
}

/// How many errors the kernel has met in the file system at `target` since it was made or repaired: blocks that
/// could not be written, for the host's disk is full or broken, or that are not what they have to be. From then on
/// it may take nothing more.
pub fn errors(target: &Path) -> Result<u64> {
    let meta = std::fs::symlink_metadata(target).map_err(|e| Error::io("stat", target, e))?;
    let (major, minor) = (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
    let device = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    let Ok(device) = std::fs::canonicalize(device) else { return Ok(0) };
    let path = Path::new("/sys/fs/ext4").join(device.file_name().unwrap_or_default()).join("errors_count");
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text.trim().parse().unwrap_or(0)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(Error::io("read", &path, error)),
    }
}

/// Repairs the file system in `path` as far as that needs no decisions. [`Error::InUse`] while it is mounted, be it
/// in the mount namespace of somebody else.
pub fn repair(path: &Path) -> Result<()> {
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    if having(&file, path)?.is_some() {
        return Err(Error::InUse(path.to_owned()));
    }
    // 1: errors were corrected.
    run("e2fsck", &["-f", "-p"], path, &[0, 1])
}

/// The device that has `file`.
fn having(file: &File, path: &Path) -> Result<Option<LoopDevice>> {
    let meta = file.metadata().map_err(|e| Error::io("fstat", path, e))?;
    let devices = Path::new("/sys/block");
    let entries = match std::fs::read_dir(devices) {
        Ok(entries) => entries,
        Err(error) => return Err(Error::io("readdir", devices, error)),
    };
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    for entry in entries.flatten() {
        let number = entry.file_name().to_str().and_then(|name| name.strip_prefix("loop")?.parse().ok());
        let Some(number) = number else { continue };
        // Not to open the devices of others: a file that is gone is called so after its name.
        let Ok(backing) = std::fs::read(entry.path().join("loop/backing_file")) else { continue };
        if !backing.trim_ascii_end().ends_with(name) {
            continue;
        }
        let found = LoopDevice::having(number, meta.dev(), meta.ino());
        if let Some(device) = found.map_err(|e| Error::io("open", &LoopDevice::path_of(number), e))? {
            return Ok(Some(device));
        }
    }
    Ok(None)
}

fn no_device(path: &Path, error: Errno) -> Error {
    match error {
        Errno::NOENT | Errno::NXIO | Errno::NODEV => Error::Unsupported(format!(
            "no loop device can be had ({error}): a file system without quotas needs one for a layer of a given \
             size; load the module 'loop', or give /dev/loop-control and the devices to where the daemon runs"
        )),
        error => Error::io("attach a loop device to", path, error),
    }
}

/// Runs a program of e2fsprogs on `path`.
fn run(program: &'static str, arguments: &[&str], path: &Path, fine: &[i32]) -> Result<()> {
    let mut command = Command::new(program);
    // Where it is, and where it is looked for by who has not got root's path.
    let paths = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{paths}:/usr/sbin:/sbin")).env("LC_ALL", "C");
    command.args(arguments).arg(path).stdin(Stdio::null());
    let output = command.output().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::Unsupported(format!(
            "the program {program} is missing, which layers of a given size need: install e2fsprogs"
        )),
        _ => Error::io("run a program of e2fsprogs on", path, error),
    })?;
    if output.status.code().is_some_and(|code| fine.contains(&code)) {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(500).collect();
    Err(Error::Program { program, path: path.to_owned(), said })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Unmounts when it goes out of scope, also when a test fails.
    struct Mounted(PathBuf);

    impl Drop for Mounted {
        fn drop(&mut self) {
            unmount(&self.0).unwrap();
        }
    }

    fn needs_root() -> bool {
        if rustix::process::geteuid().is_root() {
            return false;
        }
        assert!(!std::env::var("INSULA_TEST_REQUIRE").unwrap_or_default().contains("root"), "needs root");
        eprintln!("skipped: needs root");
        true
    }

    #[test]
    fn a_disk_has_the_size_that_was_asked_for() {
        if needs_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        for bytes in [SMALLEST, 20 << 20, 300 << 20, 40 << 30] {
            let (disk, target) = (folder.path().join(format!("{bytes}")), folder.path().join("mounted"));
            make(&disk, bytes).unwrap();
            let on_disk = disk.metadata().unwrap().blocks() * 512;
            assert!(on_disk < (1 << 20) + bytes / 1000, "{bytes}: {on_disk}");
            std::fs::create_dir_all(&target).unwrap();
            assert!(!is_mounted(&target).unwrap());
            mount(&disk, &target).unwrap();
            let mounted = Mounted(target.clone());
            assert!(is_mounted(&target).unwrap());
            let found = rustix::fs::statvfs(&target).unwrap();
            let size = found.f_blocks * found.f_frsize;
            assert!(size >= bytes && size < bytes + bytes / 50 + (256 << 10), "{bytes}: {size}");
            assert!(matches!(repair(&disk), Err(Error::InUse(_))));
            drop(mounted);
            assert!(!is_mounted(&target).unwrap());
        }
    }

    #[test]
    fn a_disk_that_is_mounted_twice_is_one_file_system() {
        if needs_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("disk");
        let targets = ["one", "two"].map(|name| folder.path().join(name));
        make(&disk, SMALLEST).unwrap();
        let mut mounted = Vec::new();
        for target in &targets {
            std::fs::create_dir(target).unwrap();
            mount(&disk, target).unwrap();
            mounted.push(Mounted(target.clone()));
        }
        std::fs::write(targets[0].join("file"), "x").unwrap();
        assert_eq!(std::fs::read(targets[1].join("file")).unwrap(), b"x");
    }

    #[test]
    fn what_another_has_mounted_takes_no_room_when_it_was_given_up() {
        if needs_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("disk");
        let [target, copy] = ["target", "copy"].map(|name| folder.path().join(name));
        std::fs::create_dir(&target).unwrap();
        std::fs::create_dir(&copy).unwrap();
        make(&disk, 20 << 20).unwrap();
        mount(&disk, &target).unwrap();
        std::fs::write(target.join("file"), vec![1; 10 << 20]).unwrap();
        // As a mount namespace that was made meanwhile has it.
        mount(&disk, &copy).unwrap();
        let copied = Mounted(copy.clone());
        unmount(&target).unwrap();
        give_up(&disk, &target).unwrap();
        assert_eq!(disk.metadata().unwrap().blocks(), 0);
        assert!(!is_mounted(&target).unwrap());
        assert!(std::fs::write(copy.join("more"), "x").is_err());
        drop(copied);
        // Who has nothing mounted keeps it for whoever removes it.
        let other = folder.path().join("other");
        make(&other, SMALLEST).unwrap();
        give_up(&other, &target).unwrap();
        assert!(other.metadata().unwrap().blocks() > 0);
    }

    #[test]
    fn what_cannot_be_made_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        std::fs::write(&path, "x").unwrap();
        assert!(make(&path, SMALLEST).unwrap_err().to_string().contains("create"));
        let error = repair(&path).unwrap_err();
        assert!(error.to_string().starts_with("e2fsck"), "{error}");
        assert!(!is_mounted(&folder.path().join("absent")).unwrap());
    }
}
