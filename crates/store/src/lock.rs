//! Folders that belong to one daemon at a time.

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

/// How long a process may need to execute its program whose maker died meanwhile.
const INHERITED: Duration = Duration::from_secs(5);

/// The lock of who owns a folder. flock(2) goes with the open file, which a process that the owner was
/// about to start when it died still shares until it executes its program; a lock of fcntl(2) is the
/// owner's alone, and says whether there is one to wait for.
pub(crate) fn within(folder: &Path, patience: Duration) -> Result<File> {
    let path = folder.join("lock");
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

/// [`within`] a usual patience.
pub(crate) fn take(folder: &Path) -> Result<File> {
    within(folder, INHERITED)
}

/// Takes the folder of what lives until the next boot, making it, for the daemon of `root`. What lives there is
/// that root's alone, also while it has no daemon: another would take it for leftovers, and end it.
pub fn take_run(run: &Path, root: &Path) -> Result<File> {
    fs::create_dir_all(run).map_err(|e| Error::io("mkdir", run, e))?;
    let lock = take(run)?;
    let path = run.join("root");
    match fs::read(&path) {
        Ok(other) if other != root.as_os_str().as_bytes() && lives(run)? => {
            let root = Path::new(std::ffi::OsStr::from_bytes(&other)).to_owned();
            return Err(Error::Foreign { run: run.to_owned(), root });
        }
        Ok(same) if same == root.as_os_str().as_bytes() => return Ok(lock),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io("read", &path, error)),
    }
    insula_base::replace(&path, root.as_os_str().as_bytes(), 0o644, Durability::Process)
        .map_err(|e| Error::io("write", &path, e))?;
    Ok(lock)
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
        let first = within(folder.path(), Duration::ZERO).unwrap();
        // As a process shares it that has not executed its program yet.
        let shared = first.try_clone().unwrap();
        drop(first);
        assert_eq!(within(folder.path(), Duration::ZERO).unwrap_err().kind(), Kind::Conflict);
        std::thread::scope(|scope| {
            let next = scope.spawn(|| within(folder.path(), Duration::from_secs(60)).map(drop));
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
        assert_eq!(within(&run, Duration::ZERO).unwrap_err().kind(), Kind::Conflict);
        drop(held);
        fs::create_dir_all(run.join("sandboxes/0123")).unwrap();
        let error = take_run(&run, &one).unwrap_err();
        assert_eq!(error.kind(), Kind::Conflict);
        assert!(error.to_string().contains(other.to_str().unwrap()), "{error}");
        drop(take_run(&run, &other).unwrap());
    }
}
