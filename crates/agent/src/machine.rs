//! From the kernel's first program to a machine that containers can run on: file systems, drivers, a root
//! that can be pivoted away from, and the channel.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use crate::error::{Context, Error, Result};

/// Names of the channel's port, of which a machine has one: in a machine of one container, and in a tenant's.
const PORT: &str = "insula";
const TENANT_PORT: &str = "insula-tenant";

/// Mounts, drivers, the root.
pub(crate) fn set_up() -> Result<()> {
    let quiet = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "/proc", "proc", quiet, c"")?;
    mount("sysfs", "/sys", "sysfs", quiet, c"")?;
    // Where the kernel has done so by itself it is busy, and well.
    match rustix::mount::mount("devtmpfs", "/dev", "devtmpfs", MountFlags::NOSUID, c"mode=755") {
        Ok(()) | Err(Errno::BUSY) => {}
        Err(error) => return Err(error).context("mount", "devtmpfs on /dev"),
    }
    load_modules(Path::new("/modules"))?;
    change_root()?;
    mount("cgroup2", "/sys/fs/cgroup", "cgroup2", quiet, c"")?;
    mount("tmpfs", "/run", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, c"mode=755")?;
    mount("tmpfs", "/tmp", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, c"mode=1777")
}

fn mount(source: &str, target: &str, kind: &str, flags: MountFlags, options: &std::ffi::CStr) -> Result<()> {
    rustix::mount::mount(source, target, kind, flags, options)
        .context("mount", format_args!("{kind} on {target}"))
}

/// In the order of their names, which is that of their needs.
fn load_modules(folder: &Path) -> Result<()> {
    let mut modules: Vec<PathBuf> = fs::read_dir(folder)
        .context("open", folder.display())?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()
        .context("read", folder.display())?;
    modules.sort();
    for module in modules {
        let file = fs::File::open(&module).context("open", module.display())?;
        rustix::system::finit_module(&file, c"", 0).context("finit_module", module.display())?;
        // Its memory is that of the initial RAM disk.
        fs::remove_file(&module).context("unlink", module.display())?;
    }
    Ok(())
}

/// The first root cannot be pivoted away from, pivot_root(2), which containers do with theirs: a tmpfs takes
/// its place.
fn change_root() -> Result<()> {
    mount("tmpfs", "/new", "tmpfs", MountFlags::empty(), c"mode=755")?;
    for folder in ["proc", "sys", "dev", "run", "tmp", "share", "etc", "var"] {
        fs::create_dir(Path::new("/new").join(folder)).context("mkdir", folder)?;
    }
    for folder in ["proc", "sys", "dev"] {
        let (from, to) = (format!("/{folder}"), format!("/new/{folder}"));
        rustix::mount::mount_move(&from, &to).context("mount", format_args!("{from} to {to}"))?;
    }
    rustix::process::chdir("/new").context("chdir", "/new")?;
    rustix::mount::mount_move(".", "/").context("mount", "the new root to /")?;
    rustix::process::chroot(".").context("chroot", "to the new root")?;
    rustix::process::chdir("/").context("chdir", "/")
}

/// The channel, which says what the machine is for.
#[derive(Debug)]
pub(crate) enum Channel {
    Container(OwnedFd),
    Tenant(OwnedFd),
}

/// Opens the channel as soon as its device is there.
pub(crate) fn channel() -> Result<Channel> {
    let (port, name) = first_port(&[PORT, TENANT_PORT])?;
    Ok(if name == PORT { Channel::Container(port) } else { Channel::Tenant(port) })
}

/// Opens a port of the console as soon as its device is there.
pub(crate) fn port_named(wanted: &str) -> Result<OwnedFd> {
    first_port(&[wanted]).map(|(port, _)| port)
}

/// Opens the first port that is there of those with a wanted name.
fn first_port<'a>(wanted: &[&'a str]) -> Result<(OwnedFd, &'a str)> {
    // A port has its name some time after its device is there, which nothing under /dev tells of.
    const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
    let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
        .context("inotify_init1", "for devices")?;
    inotify::add_watch(&watch, "/dev", WatchFlags::CREATE).context("inotify_add_watch", "/dev")?;
    loop {
        if let Some((device, name)) = wanted.iter().find_map(|name| Some((port(name)?, *name))) {
            let path = format!("/dev/{device}");
            let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
            return Ok((rustix::fs::open(&path, flags, Mode::empty()).context("open", path)?, name));
        }
        let mut polled = [PollFd::new(&watch, PollFlags::IN)];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, Some(&PAUSE)))
            .context("poll", "for devices")?;
        // What it says is of no interest, and that it says nothing is no error.
        let _ = rustix::io::read(&watch, &mut [0; 4096]);
    }
}

/// The device of the port with a name, once it has one.
fn port(wanted: &str) -> Option<String> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?.flatten();
    ports
        .filter(|port| fs::read_to_string(port.path().join("name")).is_ok_and(|name| name.trim() == wanted))
        .filter_map(|port| port.file_name().into_string().ok())
        .find(|name| Path::new("/dev").join(name).exists())
}

/// The kernel's release, for the greeting.
pub(crate) fn release() -> Result<String> {
    let release = rustix::system::uname().release().to_str().map(str::to_owned);
    release.map_err(|_| Error::NoChannel)
}
