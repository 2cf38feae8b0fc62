//! The root folder: its layout number, its lock, its children.

use std::ffi::CString;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use insula_base::{Durability, Kind, Kinded};
use insula_host::quota::Quotas;
use rustix::fs::{FallocateFlags, IFlags, ioctl_getflags, ioctl_setflags};

use crate::containers::StagedUpper;
use crate::{Content, Error, Images, Layers, Result, State, containers, lock, tree};

/// Raised when an older version could no longer read what is below the root.
/// 1: the logs of a container are in a folder of their own.
const LAYOUT: u32 = 2;
/// The oldest that is still read as it is.
const OLDEST: u32 = 1;
/// What a version must understand to use this root; none yet beside the layout itself.
const FEATURES: &[&str] = &[];

/// Everything below one root. It belongs to one daemon at a time, until it is dropped.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    state: Arc<State>,
    content: Arc<Content>,
    layers: Arc<Layers>,
    images: Images,
    /// Held by who looks whether a disk of a container is mounted, and then mounts it.
    pub(crate) disks: Mutex<()>,
    /// Those of the file system below, or why there are none.
    pub(crate) quotas: Result<Arc<Quotas>, String>,
    /// Folders of containers to come.
    pub(crate) staged: Mutex<Vec<StagedUpper>>,
    _lock: File,
}

/// What the engine mounts on in every container, by its path below the root. Folders and files that an image
/// does not have are there all the same, in a layer below all of its own: otherwise each container would have
/// them made in its writable layer, at its start, and removed again.
pub const MOUNT_POINTS: [&str; 6] = ["dev", "etc/hostname", "etc/hosts", "etc/resolv.conf", "proc", "sys"];
const POINTS: &str = "points";
/// By which programs see that they are in a container, as in every one of Docker's.
const MARK: &str = ".dockerenv";
/// What mount(8) and df(1) of some systems read, with what Docker has them read.
const MOUNTS: (&str, &str) = ("etc/mtab", "/proc/mounts");

/// Kept so that a full disk can be emptied; larger than what the state database takes for a removal.
const RESERVE: &str = "reserve";
const RESERVE_BYTES: u64 = 1 << 20;

impl Store {
    /// Opens the store below `root`, an absolute path, making what is missing: takes the lock
    /// ([`Error::Locked`] if another daemon has it), checks the layout ([`Error::Newer`]), sweeps
    /// what was half done when the last daemon ended.
    pub fn open(root: &Path) -> Result<Self> {
        // What containers wrote is in there with the ids that they have inside: a program that is set to
        // root's id there is so out here. Nobody but root may come near.
        make_folder(root, 0o700)?;
        let lock = lock::take(root)?;
        check_version(root)?;
        let containers = root.join("containers");
        make_private(&containers)?;
        make_private(&root.join("volumes"))?;
        for folder in [&containers, &root.join("volumes")] {
            spread(folder)?;
        }
        let quotas = Quotas::probe(root).map(Arc::new);
        containers::sweep(&containers, quotas.as_deref().ok())?;
        make_points(&root.join(POINTS))?;
        let database = root.join("state.db");
        refuse_emptied(&database, &[&containers, &root.join("volumes")])?;
        let state = Arc::new(State::open(&database)?);
        let content = Arc::new(Content::open(&root.join("content"))?);
        let layers = Arc::new(Layers::open(&root.join("layers"))?);
        let images = Images::open(root, &state, &content, &layers)?;
        let store = Self {
            root: root.to_owned(),
            state,
            content,
            layers,
            images,
            disks: Mutex::new(()),
            quotas,
            staged: Mutex::default(),
            _lock: lock,
        };
        store.open_caches()?;
        store.refill_reserve();
        Ok(store)
    }

    /// Removes something, if need be with the room that is kept for that.
    pub fn with_reserve<T>(&self, mut removal: impl FnMut() -> Result<T>) -> Result<T> {
        match removal() {
            Err(error) if error.kind() == Kind::Unavailable && self.spend_reserve() => {
                let removed = removal();
                self.refill_reserve();
                removed
            }
            done => done,
        }
    }

    /// Gives the disk's last room to whoever removes something, for even that has to be written down.
    /// Whether there was any.
    pub fn spend_reserve(&self) -> bool {
        fs::remove_file(self.root.join(RESERVE)).is_ok()
    }

    /// Takes the room back. Without room there is none to keep: the next removal brings it.
    pub fn refill_reserve(&self) {
        let path = self.root.join(RESERVE);
        if path.metadata().is_ok_and(|file| file.len() == RESERVE_BYTES) {
            return;
        }
        let filled = File::create(&path)
            .and_then(|file| Ok(rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, RESERVE_BYTES)?));
        if filled.is_err() {
            let _ = fs::remove_file(&path);
        }
    }

    /// The folder itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Records and allocations.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Blobs.
    #[must_use]
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// Unpacked layers.
    #[must_use]
    pub fn layers(&self) -> &Layers {
        &self.layers
    }

    /// Images.
    #[must_use]
    pub fn images(&self) -> &Images {
        &self.images
    }

    /// The folder of all volumes.
    #[must_use]
    pub fn volumes_dir(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// The folder that is mounted for a volume, not necessarily made yet. Volume names are Docker's:
    /// a letter or digit, then letters, digits, `_`, `.`, `-`.
    pub fn volume_data(&self, name: &str) -> Result<PathBuf> {
        let sign = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        let valid = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
            && name.len() <= 255
            && name.bytes().all(sign);
        if valid {
            Ok(self.volumes_dir().join(name).join("_data"))
        } else {
            Err(Error::BadName { what: "volume", name: name.chars().take(300).collect() })
        }
    }

    /// The lowest layer of every container that has one of its own on top: [`MOUNT_POINTS`], empty.
    #[must_use]
    pub fn points(&self) -> PathBuf {
        self.root.join(POINTS)
    }
}

/// Makes one folder and those above it; it may exist.
pub(crate) fn make_folder(path: &Path, mode: u32) -> Result<()> {
    match DirBuilder::new().mode(mode).create(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(mode).create(path).map_err(|e| Error::io("mkdir", path, e))
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        other => other.map_err(|e| Error::io("mkdir", path, e)),
    }
}

/// As [`make_folder`], for root alone also where the folder was made by an older version.
pub(crate) fn make_private(path: &Path) -> Result<()> {
    make_folder(path, 0o700)?;
    fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(|e| Error::io("chmod", path, e))
}

/// Has ext4 begin each tree in this folder far from the others, as it does for those below `/` (ext4(5),
/// `T` of chattr(1)): otherwise all of them fill the same block groups, and who makes many files waits for
/// who makes or has just removed as many. Other file systems go their own way.
pub(crate) fn spread(folder: &Path) -> Result<()> {
    let open = File::open(folder).map_err(|e| Error::io("open", folder, e))?;
    let Ok(flags) = ioctl_getflags(&open) else { return Ok(()) };
    if !flags.contains(IFlags::TOPDIR)
        && let Err(error) = ioctl_setflags(&open, flags | IFlags::TOPDIR)
    {
        tracing::debug!(folder = %folder.display(), %error, "trees are not spread");
    }
    Ok(())
}

/// Removes what is in a folder.
pub(crate) fn empty(folder: &Path) -> Result<()> {
    let open = File::open(folder).map_err(|e| Error::io("open", folder, e))?;
    tree::empty(open.as_fd()).map_err(|e| Error::io("empty", folder, e))
}

/// Renames `path` to a dying name in `folder`, on the same file system, and then removes it.
pub(crate) fn discard(path: &Path, folder: &Path) -> Result<()> {
    match set_aside(path, folder)? {
        Some(dying) => remove_any(&dying),
        None => Ok(()),
    }
}

/// Renames `path` to a dying name in `folder`, on the same file system, and returns it; nothing if it was
/// not there.
pub(crate) fn set_aside(path: &Path, folder: &Path) -> Result<Option<PathBuf>> {
    let dying = folder.join(format!("{DYING}{}", insula_base::random_hex(8)));
    match fs::rename(path, &dying) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(|()| Some(dying)).map_err(|e| Error::io("rename", path, e)),
    }
}

/// An empty database is a new one, unless there is something that only rows can tell whose it is: it would be taken for
/// nobody's, and removed.
fn refuse_emptied(database: &Path, owned: &[&Path]) -> Result<()> {
    let empty = fs::metadata(database).is_ok_and(|file| file.len() == 0);
    let is_used = |folder: &&&Path| fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some());
    match owned.iter().find(is_used).filter(|_| empty) {
        Some(folder) => Err(Error::Damaged {
            path: database.to_owned(),
            why: format!("it is empty, and {} is not", folder.display()),
        }),
        None => Ok(()),
    }
}

/// Nothing is removed: containers that run have it below theirs.
fn make_points(folder: &Path) -> Result<()> {
    make_folder(folder, 0o755)?;
    for name in MOUNT_POINTS {
        let path = folder.join(name);
        if !name.contains('/') {
            make_folder(&path, 0o755)?;
            continue;
        }
        if let Some(parent) = path.parent() {
            make_folder(parent, 0o755)?;
        }
        make_empty(&path, 0o644)?;
    }
    make_empty(&folder.join(MARK), 0o755)?;
    let link = folder.join(MOUNTS.0);
    match std::os::unix::fs::symlink(MOUNTS.1, &link) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(Error::io("symlink", &link, e)),
        _ => Ok(()),
    }
}

fn make_empty(path: &Path, mode: u32) -> Result<()> {
    let made = OpenOptions::new().create(true).truncate(false).write(true).mode(mode).open(path);
    made.map(drop).map_err(|e| Error::io("create", path, e))
}

pub(crate) const DYING: &str = ".removed-";

/// Removes a file or a tree.
pub(crate) fn remove_any(path: &Path) -> Result<()> {
    let name = path.file_name().and_then(|name| CString::new(name.as_encoded_bytes()).ok());
    let (Some(folder), Some(name)) = (path.parent(), name) else {
        return Err(Error::Defect("what is removed has a folder and a name"));
    };
    let open = File::open(folder).map_err(|e| Error::io("open", folder, e))?;
    tree::remove(open.as_fd(), &name).map_err(|e| Error::io("remove", path, e))
}

/// Writes VERSION into a new root, or checks that of an old one and raises it.
fn check_version(root: &Path) -> Result<()> {
    let path = root.join("VERSION");
    match fs::read_to_string(&path) {
        Ok(text) if read_version(&path, &text)? == LAYOUT => return Ok(()),
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(Error::io("read", &path, e)),
    }
    let text = format!("layout {LAYOUT}\n");
    insula_base::replace(&path, text.as_bytes(), 0o644, Durability::Machine)
        .map_err(|e| Error::io("write", &path, e))
}

/// The layout of a root that can be read.
fn read_version(path: &Path, text: &str) -> Result<u32> {
    let mut layout = None;
    for line in text.lines() {
        match line.split_once(' ') {
            Some(("layout", number)) => layout = number.parse::<u32>().ok(),
            Some(("feature", name)) if FEATURES.contains(&name) => {}
            _ => {
                return Err(Error::Newer {
                    path: path.to_owned(),
                    found: line.chars().take(80).collect(),
                    known: format!("layout {LAYOUT}"),
                });
            }
        }
    }
    match layout {
        Some(number @ OLDEST..=LAYOUT) => Ok(number),
        Some(number) if number > LAYOUT => Err(Error::Newer {
            path: path.to_owned(),
            found: format!("layout {number}"),
            known: format!("layout {LAYOUT}"),
        }),
        _ => Err(Error::Damaged {
            path: path.to_owned(),
            why: "no layout number that was ever written".to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removal_on_a_full_disk_gets_the_room_that_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let reserve = folder.path().join(RESERVE);
        let full = || Error::Full { doing: "remove", path: "state.db".into() };
        assert_eq!(reserve.metadata().unwrap().len(), RESERVE_BYTES);
        store.with_reserve(|| if reserve.exists() { Err(full()) } else { Ok(()) }).unwrap();
        assert!(reserve.exists());
        let error = store.with_reserve(|| Err::<(), _>(full())).unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(store.spend_reserve() && !store.spend_reserve());
    }

    #[test]
    fn a_database_that_was_emptied_is_not_a_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("state.db");
        drop(Store::open(folder.path()).unwrap());
        fs::write(&database, "").unwrap();
        drop(Store::open(folder.path()).unwrap());
        let id = "ab".repeat(32);
        fs::create_dir(folder.path().join("containers").join(&id)).unwrap();
        fs::write(&database, "").unwrap();
        let error = Store::open(folder.path()).unwrap_err();
        assert!(matches!(&error, Error::Damaged { why, .. } if why.contains("containers is not")), "{error}");
        assert!(folder.path().join("containers").join(&id).exists());
        // Who takes it away says so.
        fs::remove_file(&database).unwrap();
        Store::open(folder.path()).unwrap();
    }

    #[test]
    fn trees_are_spread_where_the_file_system_does_so() {
        let folder = tempfile::tempdir().unwrap();
        let topdir =
            |path: &Path| ioctl_getflags(File::open(path).unwrap()).map(|f| f.contains(IFlags::TOPDIR));
        let probe = File::open(folder.path()).unwrap();
        let able =
            ioctl_getflags(&probe).is_ok_and(|flags| ioctl_setflags(&probe, flags | IFlags::TOPDIR).is_ok());
        let root = folder.path().join("root");
        drop(Store::open(&root).unwrap());
        for name in ["containers", "volumes", "layers/tmp"] {
            assert_eq!(topdir(&root.join(name)).unwrap_or(false), able, "{name}");
        }
        // Not what is in a tree: that stays together.
        assert!(!topdir(&root.join("points/etc")).unwrap_or(false));
    }

    #[test]
    fn one_daemon_has_the_root_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("a/b");
        let first = Store::open(&root).unwrap();
        let error = lock::within(&root, "lock", std::time::Duration::ZERO).unwrap_err();
        assert_eq!(error.kind(), Kind::Conflict);
        assert!(error.to_string().contains(root.to_str().unwrap()), "{error}");
        drop(first);
        Store::open(&root).unwrap();
    }

    #[test]
    fn nobody_else_comes_near() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        let mode = |name: &str| fs::metadata(root.join(name)).unwrap().permissions().mode() & 0o777;
        drop(Store::open(&root).unwrap());
        let folders = ["containers", "volumes", "layers", "content"];
        assert_eq!((mode(""), mode("state.db")), (0o700, 0o600));
        // As an older version left them, below a root that the administrator made.
        fs::set_permissions(&root, Permissions::from_mode(0o755)).unwrap();
        for name in folders.iter().chain(["state.db"].iter()) {
            fs::set_permissions(root.join(name), Permissions::from_mode(0o755)).unwrap();
        }
        let store = Store::open(&root).unwrap();
        assert_eq!((folders.map(mode), mode("state.db")), ([0o700; 4], 0o600));
        // What SQLite keeps beside it while it is open depends on how it locks.
        for beside in ["state.db-wal", "state.db-shm"].into_iter().filter(|name| root.join(name).exists()) {
            assert_eq!(mode(beside), 0o600, "{beside}");
        }
        drop(store);
    }

    #[test]
    fn a_newer_layout_and_unknown_features_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        drop(Store::open(folder.path()).unwrap());
        for text in ["layout 3\n", "layout 2\nfeature time-travel\n", "layout 1\nsomething\n"] {
            fs::write(folder.path().join("VERSION"), text).unwrap();
            let error = Store::open(folder.path()).unwrap_err();
            assert!(matches!(error, Error::Newer { .. }), "{text}: {error}");
        }
        for text in ["", "layout x\n", "layout 0\n"] {
            fs::write(folder.path().join("VERSION"), text).unwrap();
            assert!(matches!(Store::open(folder.path()), Err(Error::Damaged { .. })), "{text}");
        }
        let version = folder.path().join("VERSION");
        fs::write(&version, "layout 1\n").unwrap();
        drop(Store::open(folder.path()).unwrap());
        assert_eq!(fs::read_to_string(&version).unwrap(), "layout 2\n");
    }

    #[test]
    fn a_damaged_database_is_named() {
        let folder = tempfile::tempdir().unwrap();
        drop(Store::open(folder.path()).unwrap());
        fs::write(folder.path().join("state.db"), "not a database, whatever else it may be ".repeat(200))
            .unwrap();
        let error = Store::open(folder.path()).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error:?}");
        assert!(error.to_string().contains("state.db"), "{error}");
    }

    #[test]
    fn a_newer_schema_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        drop(Store::open(folder.path()).unwrap());
        let connection = rusqlite::Connection::open(folder.path().join("state.db")).unwrap();
        connection.pragma_update(None, "user_version", 999).unwrap();
        drop(connection);
        assert!(matches!(Store::open(folder.path()), Err(Error::Newer { .. })));
    }

    #[test]
    fn what_is_mounted_on_is_there_and_empty() {
        let folder = tempfile::tempdir().unwrap();
        drop(Store::open(folder.path()).unwrap());
        for gone in ["etc/hosts", ".dockerenv"] {
            fs::remove_file(folder.path().join("points").join(gone)).unwrap();
        }
        let store = Store::open(folder.path()).unwrap();
        for name in MOUNT_POINTS {
            let found = fs::metadata(store.points().join(name)).unwrap();
            assert_eq!(found.is_dir(), !name.starts_with("etc/"), "{name}");
            assert_eq!(found.permissions().mode() & 0o777, if found.is_dir() { 0o755 } else { 0o644 });
        }
        assert_eq!(fs::read(store.points().join(".dockerenv")).unwrap(), b"");
        assert_eq!(fs::read_link(store.points().join("etc/mtab")).unwrap(), Path::new("/proc/mounts"));
    }

    #[test]
    fn leftovers_are_swept_at_open() {
        let folder = tempfile::tempdir().unwrap();
        drop(Store::open(folder.path()).unwrap());
        let leftovers = ["content/ingest/x", "layers/tmp/y/z", "containers/.removed-1/upper/file"];
        for path in leftovers {
            fs::create_dir_all(folder.path().join(path)).unwrap();
        }
        drop(Store::open(folder.path()).unwrap());
        for path in leftovers {
            assert!(!folder.path().join(path).exists(), "{path}");
        }
    }

    #[test]
    fn volume_names_are_checked() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        assert!(store.volume_data("data_1.x-y").unwrap().ends_with("volumes/data_1.x-y/_data"));
        for name in ["", ".", "..", "a/b", "-a", "é", &"a".repeat(256)] {
            assert!(store.volume_data(name).is_err(), "{name}");
        }
    }
}
