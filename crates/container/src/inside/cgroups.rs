//! `/sys/fs/cgroup` of a container: what its cgroup namespace shows, in the host's layout, cgroups(7).

use std::os::fd::OwnedFd;

use insula_spec::plan::InitPlan;
use rustix::mount::MountAttrFlags;

use super::mounts;
use crate::error::{Context, Result};

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
    for controllers in hierarchies {
        hierarchy(&tmpfs, controllers, readonly, own)?;
    }
    if readonly && !own {
        let attributes = insula_sys::mount::MountAttributes { readonly: true, ..Default::default() };
        use std::os::fd::AsFd;
        insula_sys::mount::set_attributes(tmpfs.as_fd(), attributes, false)
            .context("mount_setattr", target)?;
    }
    Ok(())
}

fn hierarchy(tmpfs: &OwnedFd, controllers: &str, readonly: bool, own: bool) -> Result<()> {
    if controllers.is_empty() {
        let mount = mounts::new("cgroup2", &[], flags(readonly && !own))?;
        return mounts::attach_at(&mount, tmpfs, "unified");
    }
    if let Some(name) = controllers.strip_prefix("name=") {
        let mount = mounts::new("cgroup", &[("none", ""), ("name", name)], flags(readonly && !own))?;
        return mounts::attach_at(&mount, tmpfs, name);
    }
    let options: Vec<(&str, &str)> = controllers.split(',').map(|controller| (controller, "")).collect();
    let mount = mounts::new("cgroup", &options, flags(readonly))?;
    mounts::attach_at(&mount, tmpfs, controllers)?;
    if options.len() > 1 {
        for (controller, _) in options {
            rustix::fs::symlinkat(controllers, tmpfs, controller).context("symlinkat", controller)?;
        }
    }
    Ok(())
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
