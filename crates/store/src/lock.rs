//! Folders that belong to one daemon at a time.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use insula_base::Durability;
use rustix::fs::{FlockOperation, fcntl_lock, flock};
use rustix::io::Errno;
use rustix::process::{Flock, FlockType, fcntl_getlk};

use crate::{Error, Result};

/// The files that are locked: a folder may be both.
const ROOT: &str = "lock";
const RUN: &str = "run.lock";

/// How long a process may need to execute its program whose maker died meanwhile.
const INHERITED: Duration = Duration::from_secs(5);

/// The lock of who owns a folder. flock(2) goes with the open file, which a process that the owner was
/// about to start when it died still shares until it executes its program; a lock of fcntl(2) is the
/// owner's alone, and says whether there is one to wait for.
pub(crate) fn within(folder: &Path, name: &str, patience: Duration) -> Result<File> {
    let path = folder.join(name);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(|e| Error::io("open", &path, e))?;
    let deadline = Instant::now() + patience;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(Errno::WOULDBLOCK) if owned(&file, &path)? || Instant::now() >= deadline => {
                return Err(Error::Locked(folder.to_owned()));
            }
            Err(Errno::WOULDBLOCK) => std::thread::sleep(Duration::from_millis(1)),
            Err(e) => return Err(Error::io("flock", &path, e)),
        }
    }
    fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|e| Error::io("fcntl F_SETLK", &path, e))?;
    Ok(file)
}

/// Whether another process that lives has the lock.
fn owned(file: &File, path: &Path) -> Result<bool> {
    let lock = fcntl_getlk(file, &Flock::from(FlockType::WriteLock));
    Ok(lock.map_err(|e| Error::io("fcntl F_GETLK", path, e))?.is_some())
}

/// The lock of a root, within a usual patience.
pub(crate) fn take(root: &Path) -> Result<File> {
    within(root, ROOT, INHERITED)
}

/// Takes the folder of what lives until the next boot, making it, for the daemon of `root`. What lives there is
/// that root's alone, also while it has no daemon: another would take it for leftovers, and end it.
pub fn take_run(run: &Path, root: &Path) -> Result<File> {
    fs::create_dir_all(run).map_err(|e| Error::io("mkdir", run, e))?;
    let lock = within(run, RUN, INHERITED)?;
    let path = run.join("root");
    match fs::read(&path) {
        Ok(known) => {
            let known = Path::new(OsStr::from_bytes(&known));
            if is_same(known, root) {
                return Ok(lock);
            }
            if lives(run)? {
                return Err(Error::Foreign { run: run.to_owned(), root: known.to_owned() });
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io("read", &path, error)),
    }
    insula_base::replace(&path, root.as_os_str().as_bytes(), 0o644, Durability::Process)
        .map_err(|e| Error::io("write", &path, e))?;
    Ok(lock)
}

/// Whether both are one folder, however they are spelled.
fn is_same(known: &Path, root: &Path) -> bool {
    match (known.canonicalize(), root.canonicalize()) {
        (Ok(known), Ok(root)) => known == root,
        _ => known == root,
    }
}

/// Whether anything has its sandbox there.
fn lives(run: &Path) -> Result<bool> {
    let path = run.join("sandboxes");
    match fs::read_dir(&path) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("list", &path, error)),
    }
}

#[cfg(test)]
mod tests {
    use insula_base::{Kind, Kinded as _};

    use super::*;

    #[test]
    fn a_lock_that_a_dead_daemon_left_to_a_process_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let first = within(folder.path(), ROOT, Duration::ZERO).unwrap();
        // As a process shares it that has not executed its program yet.
        let shared = first.try_clone().unwrap();
        drop(first);
        assert_eq!(within(folder.path(), ROOT, Duration::ZERO).unwrap_err().kind(), Kind::Conflict);
        std::thread::scope(|scope| {
            let next = scope.spawn(|| within(folder.path(), ROOT, Duration::from_secs(60)).map(drop));
            drop(shared);
            next.join().unwrap().unwrap();
        });
    }

    #[test]
    fn what_lives_in_a_run_folder_is_of_one_root() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("r");
        let [one, other] = ["one", "other"].map(|name| folder.path().join(name));
        drop(take_run(&run, &one).unwrap());
        // Nothing lives there yet.
        let held = take_run(&run, &other).unwrap();
        assert_eq!(within(&run, RUN, Duration::ZERO).unwrap_err().kind(), Kind::Conflict);
        drop(held);
        fs::create_dir_all(run.join("sandboxes/0123")).unwrap();
        let error = take_run(&run, &one).unwrap_err();
        assert_eq!(error.kind(), Kind::Conflict);
        assert!(error.to_string().contains(other.to_str().unwrap()), "{error}");
        drop(take_run(&run, &other).unwrap());
        // The same one by another way.
        fs::create_dir(&other).unwrap();
        std::os::unix::fs::symlink(&other, folder.path().join("link")).unwrap();
        for spelled in ["link", "other/", "link/../other"] {
            drop(take_run(&run, &folder.path().join(spelled)).unwrap());
        }
    }

    #[test]
    fn a_folder_may_be_root_and_run_folder() {
        let folder = tempfile::tempdir().unwrap();
        let _root = take(folder.path()).unwrap();
        take_run(folder.path(), folder.path()).unwrap();
    }
}
