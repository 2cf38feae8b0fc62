//! What lives no longer than the machine is up: sockets, pids, the files of containers that run. Every engine keeps it
//! below `/run` when nobody says otherwise, which is memory on most hosts; where it is a disk, the comparison mounts
//! memory there for all of them (`main::reenter`).

use std::path::{Path, PathBuf};

use anyhow::Context;

/// The place of a folder below the temporary one.
pub(crate) fn of(folder: &Path) -> PathBuf {
    let temporary = std::env::temp_dir();
    let below = folder.strip_prefix(temporary).or_else(|_| folder.strip_prefix("/")).unwrap_or(folder);
    Path::new("/run").join(below)
}

/// Makes it.
pub(crate) fn make(folder: &Path) -> anyhow::Result<PathBuf> {
    let place = of(folder);
    std::fs::create_dir_all(&place).with_context(|| format!("make {}", place.display()))?;
    Ok(place)
}

/// Removes all that was made for a folder and those in it.
#[derive(Debug)]
pub(crate) struct Gone(pub(crate) PathBuf);

impl Drop for Gone {
    fn drop(&mut self) {
        // As with the temporary folder itself, what is left is no reason to fail.
        let _ = std::fs::remove_dir_all(of(&self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_below_run() {
        let folder = std::env::temp_dir().join("insula-bench-x/i");
        assert_eq!(of(&folder), Path::new("/run/insula-bench-x/i"));
        assert_eq!(of(Path::new("/elsewhere/i")), Path::new("/run/elsewhere/i"));
    }
}
