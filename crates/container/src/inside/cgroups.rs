//! `/sys/fs/cgroup` of a container: what its cgroup namespace shows, in the host's layout, cgroups(7).

use std::ffi::{CStr, CString, OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use insula_host::cgroup::{Layout, Version};
use insula_spec::plan::InitPlan;
use insula_sys::mount::{MountAttributes, set_attributes};
use rustix::fs::{CWD, Mode};
use rustix::mount::{MountAttrFlags, MountFlags};

use super::mounts;
use crate::error::{Context, Error, Result};

/// A folder that every host has, where hierarchies are put together.
const ASIDE: &CStr = c"/sys";

/// Mounts every hierarchy that the process is in: one file system on version 2, a tmpfs with a
/// folder each otherwise. An init of the image's own gets the hierarchies that it manages writable. The mount is to
/// be moved to its place.
pub(super) fn make(readonly: bool, init: InitPlan) -> Result<OwnedFd> {
    let memberships = memberships()?;
    let hierarchies: Vec<&str> = controllers(&memberships).collect();
    let own = init == InitPlan::System;
    if hierarchies == [""] {
        return mounts::new("cgroup2", &[], flags(readonly && !own));
    }
    let options = [("mode", "755"), ("size", "64k")];
    let tmpfs = mounts::new("tmpfs", &options, flags(false))?;
    // Before Linux 6.15 nothing can be mounted on what is detached. The host's sysfs is under it for that long, in
    // this mount namespace, which is the container's own.
    mounts::attach(tmpfs.as_fd(), CWD, ASIDE)?;
    // Nothing is in it but what is made here, so plain names from its root are safe, and mount(2) takes one
    // call where descriptors take six: a host of version 1 has ten of these.
    rustix::process::fchdir(&tmpfs).context("fchdir", "a tmpfs")?;
    for hierarchy in hierarchies {
        match mount(hierarchy, readonly, own) {
            // Somebody on the host had it for a moment: with the last mount a hierarchy without groups is gone.
            Err(_) if !controllers(&self::memberships()?).any(|known| known == hierarchy) => {}
            done => done?,
        }
    }
    if readonly && !own {
        let attributes = MountAttributes { readonly: true, ..Default::default() };
        set_attributes(tmpfs.as_fd(), attributes, false).context("mount_setattr", "a tmpfs")?;
    }
    Ok(tmpfs)
}

fn memberships() -> Result<String> {
    std::fs::read_to_string("/proc/self/cgroup").context("read", "/proc/self/cgroup")
}

/// The controllers of each hierarchy in the text of `/proc/self/cgroup`.
fn controllers(memberships: &str) -> impl Iterator<Item = &str> {
    memberships.lines().filter_map(|line| line.split(':').nth(1))
}

/// The groups that this process is in, on the host's mounts: each as a detached mount, under the name that the
/// hierarchy has below `/sys/fs/cgroup`. The only one of a host with version 2 alone has none.
pub(super) type Groups = Vec<(Option<OsString>, OwnedFd)>;

pub(super) fn own_groups() -> Result<Groups> {
    let layout = Layout::probe()?;
    let memberships = memberships()?;
    let mut groups = Vec::new();
    for line in memberships.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let hierarchy = layout.hierarchies.iter().find(|known| match &known.version {
            Version::V2 => controllers.is_empty(),
            Version::V1(list) => controllers.split(',').any(|name| list.iter().any(|known| known == name)),
            Version::Named(_) => false,
        });
        // In a hierarchy without limits the container has no group of its own.
        let Some(hierarchy) = hierarchy.filter(|known| known.limits || layout.unified()) else { continue };
        let folder = hierarchy.root.join(path.trim_start_matches('/'));
        let group = crate::idmap::copy_of(&folder, false)?;
        let name = hierarchy.root.file_name().map(OsStr::to_owned).filter(|_| !layout.unified());
        groups.push((name, group));
    }
    Ok(groups)
}

/// Puts them below `target`.
pub(super) fn bind(root: &OwnedFd, target: &str, readonly: bool, groups: &Groups) -> Result<()> {
    let attributes = MountAttributes {
        readonly,
        nosuid: true,
        nodev: true,
        noexec: true,
        propagation: Some(insula_sys::mount::Propagation::Private),
        ..MountAttributes::default()
    };
    let close =
        |mount: &OwnedFd| set_attributes(mount.as_fd(), attributes, false).context("mount_setattr", target);
    if let [(None, group)] = groups.as_slice() {
        close(group)?;
        return mounts::attach_at(group, root, target);
    }
    let tmpfs = mounts::new("tmpfs", &[("mode", "755"), ("size", "64k")], flags(false))?;
    mounts::attach_at(&tmpfs, root, target)?;
    for (name, group) in groups {
        let name = name.as_deref().ok_or(Error::Lost)?;
        close(group)?;
        rustix::fs::mkdirat(&tmpfs, name, Mode::from_raw_mode(0o755)).context("mkdirat", target)?;
        let name = CString::new(name.as_bytes()).map_err(|_| Error::Lost)?;
        mounts::attach(group.as_fd(), tmpfs.as_fd(), &name)?;
    }
    if readonly { close(&tmpfs) } else { Ok(()) }
}

fn mount(controllers: &str, readonly: bool, own: bool) -> Result<()> {
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
        .inspect_err(|_| {
            // It may be done without it.
            let _ = rustix::fs::rmdir(name);
        })
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
