//! What a shim leaves that was killed: monitors with their containers, and the machine around them.

use std::os::unix::net::UnixStream;
use std::path::Path;

use insula_base::{Durability, replace};
use insula_host::cgroup::{Group, Layout};
use insula_proto::{Call, Empty};
use insula_spec::machine::TenantOrder;
use serde::{Deserialize, Serialize};

use super::monitor::Monitor;
use super::{FOLDER, pod};
use crate::error::{Context, Error, Result};

const KEPT: &str = "guest.json";
const FREEING: std::time::Duration = std::time::Duration::from_secs(60);

#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    cgroup: String,
}

/// To be written before anything is made of the container.
pub(super) fn keep(bundle: &Path, cgroup: &str) -> Result<()> {
    let path = bundle.join(FOLDER).join(KEPT);
    let text = serde_json::to_vec(&Kept { cgroup: cgroup.to_owned() })
        .map_err(|source| Error::Damaged { on: path.display().to_string(), source })?;
    replace(&path, &text, 0o600, Durability::Process).context("write", path.display())
}

/// Ends the container of a bundle, and with the last of its pod the machine; `socket` is where its shim has
/// listened.
pub(crate) fn delete(bundle: &Path, socket: Option<&Path>) -> Result<()> {
    container(bundle)?;
    socket.map_or(Ok(()), |socket| machine(&pod::folder_of(socket)))
}

fn container(bundle: &Path) -> Result<()> {
    let folder = bundle.join(FOLDER);
    let path = folder.join(KEPT);
    let kept: Kept = match std::fs::read(&path) {
        // It ended before it made anything.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        text => serde_json::from_slice(&text.context("read", path.display())?)
            .map_err(|source| Error::Damaged { on: path.display().to_string(), source })?,
    };
    if let Ok(socket) = Monitor::find(&folder) {
        let monitor = Monitor::over(socket, Box::new(|_| ()))?;
        match monitor.call(Call::Destroy(Empty {}), &[]) {
            Ok(_) | Err(Error::Ended) => {}
            Err(error) => return Err(error),
        }
        monitor.wait(FREEING);
    }
    // Of a monitor that was killed, too.
    let group = Group::open(&Layout::probe()?, &kept.cgroup)?;
    group.kill()?;
    Ok(group.remove()?)
}

fn machine(folder: &Path) -> Result<()> {
    let Some(kept) = pod::kept(folder)? else { return Ok(()) };
    let connection = std::fs::File::open(folder).and_then(|opened| {
        use std::os::fd::AsFd;
        UnixStream::connect(insula_sys::socket::path_in(opened.as_fd(), TenantOrder::SOCKET))
    });
    match connection.map_or(Ok(()), pod::stop) {
        // Others of the pod are in it.
        Err(Error::Wall { .. }) => Ok(()),
        stopped => stopped.and_then(|()| pod::free(folder, &kept)),
    }
}
