//! Monitors by their sockets: those that no record names too.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Process, SandboxFolder};

/// Sockets of monitors below `folder`, and who listens at them. A machine has others there.
///
/// A socket tells its path even when its file is gone (proc(5), `/proc/net/unix`).
pub(crate) fn listeners(folder: &Path) -> Vec<(PathBuf, Process)> {
    let table = fs::read("/proc/net/unix").unwrap_or_default();
    let mut sockets = BTreeMap::new();
    for line in table.split(|byte| *byte == b'\n') {
        let text = String::from_utf8_lossy(line);
        let ours = |path: &Path| path.starts_with(folder) && path.ends_with(SandboxFolder::SOCKET);
        if let Some((inode, path)) = listener(&text).filter(|(_, path)| ours(path)) {
            sockets.insert(format!("socket:[{inode}]"), path);
        }
    }
    if sockets.is_empty() {
        return Vec::new();
    }
    let mut found = Vec::new();
    for pid in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = pid.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let opened = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let links = opened.filter_map(|entry| fs::read_link(entry.path()).ok());
        let socket = links.filter_map(|link| sockets.get(link.to_str()?).cloned()).next();
        if let (Some(socket), Some(started)) = (socket, Process::start_time(pid)) {
            found.push((socket, Process { pid, started }));
        }
    }
    found
}

/// Inode and path of a socket that somebody listens at: Num, RefCount, Protocol, Flags, Type, St, Inode, and
/// the rest of the line.
fn listener(line: &str) -> Option<(&str, PathBuf)> {
    const LISTENS: &str = "00010000";
    let mut rest = line;
    let mut fields = [""; 7];
    for field in &mut fields {
        (*field, rest) = rest.trim_start().split_once(' ')?;
    }
    (fields[3] == LISTENS).then(|| (fields[6], PathBuf::from(rest)))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn who_listens_is_found_by_the_path_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a b").join("task.sock");
        fs::create_dir(path.parent().unwrap()).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let found: HashSet<i32> =
            listeners(folder.path()).into_iter().map(|(_, process)| process.pid).collect();
        assert_eq!(found, HashSet::from([std::process::id() as i32]));
        assert!(listeners(&folder.path().join("c")).is_empty());
    }
}
