//! `/sys/fs/cgroup` of a container: what its cgroup namespace shows, in the host's layout, cgroups(7).

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use insula_spec::plan::InitPlan;
use insula_sys::mount::{MountAttributes, set_attributes};
use rustix::fs::Mode;
use rustix::mount::{MountAttrFlags, MountFlags};

use super::mounts;
use crate::error::{Context, Error, Result};

/// Mounts every hierarchy that the process is in: one file system on version 2, a tmpfs with a
/// folder each otherwise. An init of the image's own gets the hierarchies that it manages writable.
pub(super) fn mount(root: &OwnedFd, target: &str, readonly: bool, init: InitPlan) -> Result<()> {
    let memberships = std::fs::read_to_string("/proc/self/cgroup").context("read", "/proc/self/cgroup")?;
    let hierarchies: Vec<&str> = memberships.lines().filter_map(|line| line.split(':').nth(1)).collect();
    let own = init == InitPlan::System;
    if hierarchies == [""] {
        return mounts::attach_at(&mounts::new("cgroup2", &[], flags(readonly && !own))?, root, target);
    }
    let options = [("mode", "755"), ("size", "64k")];
    let tmpfs = mounts::new("tmpfs", &options, flags(false))?;
    mounts::attach_at(&tmpfs, root, target)?;
    // Nothing is in it but what is made here, so plain names from its root are safe, and mount(2) takes one
    // call where descriptors take six: a host of version 1 has ten of these.
    rustix::process::fchdir(&tmpfs).context("fchdir", target)?;
    for controllers in hierarchies {
        hierarchy(controllers, readonly, own)?;
    }
    if readonly && !own {
        let attributes = MountAttributes { readonly: true, ..Default::default() };
        set_attributes(tmpfs.as_fd(), attributes, false).context("mount_setattr", target)?;
    }
    Ok(())
}

fn hierarchy(controllers: &str, readonly: bool, own: bool) -> Result<()> {
    // Without controllers a container has a group of its own only when it manages it; what would show
    // otherwise is the host's.
    let managed = controllers.is_empty() || controllers.starts_with("name=");
    if managed && !own {
        return Ok(());
    }
    if controllers.is_empty() {
        return one("unified", "cgroup2", "", false);
    }
    if let Some(name) = controllers.strip_prefix("name=") {
        return one(name, "cgroup", &format!("none,{controllers}"), false);
    }
    one(controllers, "cgroup", controllers, readonly)?;
    if controllers.contains(',') {
        for controller in controllers.split(',') {
            rustix::fs::symlink(controllers, controller).context("symlink", controller)?;
        }
    }
    Ok(())
}

/// Mounts a hierarchy on a new folder of this name, below the working folder.
fn one(name: &str, kind: &str, options: &str, readonly: bool) -> Result<()> {
    rustix::fs::mkdir(name, Mode::from_raw_mode(0o755)).context("mkdir", name)?;
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    if readonly {
        flags |= MountFlags::RDONLY;
    }
    let options =
        CString::new(options).map_err(|_| Error::Invalid(format!("{options:?} holds a zero byte")))?;
    rustix::mount::mount(kind, name, kind, flags, options.as_c_str())
        .context("mount", format_args!("{kind} {name}"))
}

fn flags(readonly: bool) -> MountAttrFlags {
    let mut flags = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    if readonly {
        flags |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    flags
}
