//! The process that serves the container's files to the guest: virtiofsd, QEMU's own of before version 8 or
//! the one in Rust that replaced it.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use insula_container::share::{PLACE, SharePlan, share};
use insula_container::{JailPlan, Jailed, jail};
use insula_host::cgroup::Entry;
use insula_spec::plan::ContainerPlan;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::{Error, Result};

/// Where distributions have it.
const PROGRAMS: [&str; 4] =
    ["/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/bin/virtiofsd"];
/// QEMU's own, which takes options of another style.
const OF_QEMU: &str = "/usr/lib/qemu/virtiofsd";

/// Name of the socket in the sandbox's folder, as long as nobody has connected.
const SOCKET: &str = "files.sock";

/// What serves the files, the machine's connection to it, and what a user should know.
pub(super) type Served = (Jailed, OwnedFd, Vec<String>);

pub(super) fn serve(plan: &ContainerPlan, folder: &Path, entry: &Entry) -> Result<Served> {
    let program = super::program(&PROGRAMS, "virtiofsd", "qemu-system-common")?;
    let (listener, connection) = connect(folder)?;
    let number = listener.as_raw_fd();
    let args: Vec<String> = if program == OF_QEMU {
        let options = format!("source={PLACE},cache=auto,xattr,announce_submounts,log_level=err");
        vec![format!("--fd={number}"), "-f".into(), "-o".into(), options, "--rlimit-nofile=0".into()]
    } else {
        ["--shared-dir", PLACE, "--cache=auto", "--xattr", "--announce-submounts", "--log-level=error"]
            .into_iter()
            .map(str::to_owned)
            .chain([format!("--fd={number}"), "--rlimit-nofile=0".to_owned()])
            .collect()
    };
    let (process, warnings) = share(&SharePlan {
        rootfs: &plan.rootfs,
        mounts: &plan.mounts,
        user: &plan.namespaces.user,
        program: Path::new(program),
        args: &args,
        kept: &[listener.as_fd()],
        entry,
    })?;
    Ok((process, connection, warnings))
}

/// The program that carries messages between the stream to a port and who serves the files; a jail like the
/// machine's.
pub(super) fn relay(
    vmm: &Path,
    port: &OwnedFd,
    server: &OwnedFd,
    user: u32,
    entry: &Entry,
) -> Result<Jailed> {
    if !vmm.is_file() {
        return Err(Error::Missing { program: "insula-vmm", package: "insula" });
    }
    let args = ["relay".to_owned(), port.as_raw_fd().to_string(), server.as_raw_fd().to_string()];
    let kept = [port.as_fd(), server.as_fd()];
    Ok(jail(&JailPlan { program: vmm, args: &args, kept: &kept, stderr: None, uid: user, gid: user, entry })?)
}

/// A socket that listens, and a connection to it that waits to be accepted; nobody else can connect.
fn connect(folder: &Path) -> Result<(OwnedFd, OwnedFd)> {
    let call = |call| move |source| Error::call(call, "the socket for files", source);
    let socket = || {
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(call("socket"))
    };
    let (listener, connection) = (socket()?, socket()?);
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let opened = rustix::fs::open(folder, flags, rustix::fs::Mode::empty()).map_err(call("open"))?;
    let path = insula_sys::socket::path_in(opened.as_fd(), SOCKET);
    let address = SocketAddrUnix::new(path.as_str()).map_err(call("bind"))?;
    // What an earlier try left.
    let _ = rustix::fs::unlink(&path);
    rustix::net::bind(&listener, &address).map_err(call("bind"))?;
    rustix::net::listen(&listener, 1).map_err(call("listen"))?;
    rustix::net::connect(&connection, &address).map_err(call("connect"))?;
    rustix::fs::unlink(&path).map_err(call("unlink"))?;
    Ok((listener, connection))
}
