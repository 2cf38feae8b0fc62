//! The unix socket that the API is served on.

use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// Groups whose members may use the engine, the first that exists is taken.
const GROUPS: [&str; 2] = ["docker", "insula"];

const GROUP_FILE: &str = "/etc/group";

/// The socket could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path}")]
pub struct ListenError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Whose members may use the engine through the unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Group {
    /// `docker` or `insula`, where there is one.
    Usual,
    /// A group of the host by its number.
    Id(u32),
}

impl Group {
    /// The group of this name or number.
    ///
    /// # Errors
    /// When the host has no such group.
    pub fn named(text: &str) -> Result<Self, NoSuchGroup> {
        let groups = std::fs::read_to_string(GROUP_FILE).unwrap_or_default();
        let found = group_id(&groups, text).or_else(|| text.parse().ok());
        found.map(Self::Id).ok_or_else(|| NoSuchGroup(text.to_owned()))
    }
}

/// There is no such group.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("group {0} is not in {GROUP_FILE}")]
pub struct NoSuchGroup(String);

/// Binds `path`, mode 0660, for root and a group. The
/// socket appears complete or not at all: it is bound under another name and renamed over what a
/// daemon that died left there. The caller holds the lock of the root, so nobody else serves it.
pub fn bind(path: &Path, group: Group) -> Result<UnixListener, ListenError> {
    let fail = |action, path: &Path| {
        let path = path.to_owned();
        move |source| ListenError { action, path, source }
    };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(fail("create the folder", folder))?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", insula_base::random_hex(3)));
    let temporary = PathBuf::from(name);
    let listener = UnixListener::bind(&temporary).map_err(fail("bind the socket", &temporary))?;
    let placed = open_to_group(&temporary, group)
        .map_err(fail("set owner and mode of", &temporary))
        .and_then(|()| std::fs::rename(&temporary, path).map_err(fail("rename the new socket to", path)));
    if let Err(error) = placed {
        // It may be gone; the first error is the one to report.
        let _ = std::fs::remove_file(&temporary);
        return Err(error);
    }
    Ok(listener)
}

fn open_to_group(path: &Path, group: Group) -> io::Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    if let Group::Id(gid) = group {
        return chown(path, None, Some(gid));
    }
    if insula_engine::rootless::outside().is_some() {
        // Numbers of groups are others there.
        return std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600));
    }
    let groups = std::fs::read_to_string(GROUP_FILE).unwrap_or_default();
    match GROUPS.iter().find_map(|name| group_id(&groups, name)) {
        // Only root may give a file to a group that it is not a member of.
        Some(gid) if rustix::process::geteuid().is_root() => chown(path, None, Some(gid)),
        _ => Ok(()),
    }
}

/// The number of a group in the text of group(5).
fn group_id(groups: &str, name: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileTypeExt;

    #[test]
    fn groups_are_found_by_name() {
        let text = "root:x:0:\ndocker:x:998:me,you\n";
        assert_eq!(group_id(text, "docker"), Some(998));
        assert_eq!(group_id(text, "dock"), None);
        assert_eq!(group_id("docker:x", "docker"), None);
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/insula.sock");
        drop(bind(&path, Group::Usual).unwrap());
        let _listener = bind(&path, Group::Usual).unwrap();
        let meta = std::fs::metadata(&path).unwrap();
        assert!(meta.file_type().is_socket());
        assert_eq!(meta.permissions().mode() & 0o777, 0o660);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        tokio::net::UnixStream::connect(&path).await.unwrap();
    }
}
