//! The mounts of the container, attached below its root. Every target is resolved below that root
//! by openat2(2), so that no link of the image leads out of it, and every mount is made detached
//! and attached by descriptor, so that no path is looked up twice.

use std::ffi::CStr;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use insula_spec::bundle::{Entering, MountNamespace};
use insula_spec::plan::{ContainerPlan, InitPlan, MountPlan, MountSource, UserNamespace};
use insula_sys::mount::{MountAttributes, set_attributes};
use insula_sys::process;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags,
};

use super::cgroups;
use super::places::{make_file, make_folder, make_folder_as};
use crate::error::{Context, Error, Result};

/// Roots of mounts that later steps work on.
pub(crate) struct Built {
    pub(crate) root: OwnedFd,
    /// Absent where a bundle mounts none.
    pub(crate) proc: Option<OwnedFd>,
    pub(crate) sys: Option<OwnedFd>,
    pub(crate) dev: OwnedFd,
}

/// How many bind sources the builder hands over.
pub(crate) fn binds(plan: &ContainerPlan) -> usize {
    crate::sources::count(&plan.mounts)
}

/// File systems of the container's own, detached: they need nothing of the builder's, which works on its part
/// meanwhile.
pub(super) struct Own {
    proc: OwnedFd,
    sys: OwnedFd,
    terminals: OwnedFd,
    /// Those of the init's needs and of the plan, in its order. What is bound comes from the builder.
    mounts: Vec<(MountPlan, Option<OwnedFd>)>,
}

/// Makes them. The host's own instances must be in sight yet: in a user namespace the kernel gives no more of
/// these file systems than can be seen already.
pub(super) fn prepare(plan: &ContainerPlan) -> Result<Own> {
    if plan.namespaces.user == UserNamespace::Host {
        // In a user namespace the kernel has done so: nothing of ours may reach the host.
        let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", flags).context("mount", "/ as a slave")?;
    }
    let (proc, sys) = (new("proc", &[], hardened())?, sysfs(plan)?);
    let mounts = init_mounts(plan.init).into_iter().chain(plan.mounts.iter().cloned());
    let mounts = mounts.map(|mount| {
        let made = own(plan, &mount).map_err(|error| at(&mount.target, error))?;
        Ok((mount, made))
    });
    Ok(Own { proc, sys, terminals: terminals()?, mounts: mounts.collect::<Result<_>>()? })
}

/// Attaches everything below `rootfs`, which is attached itself over the old root.
pub(super) fn build(own: Own, rootfs: &OwnedFd, dev: OwnedFd, sources: Vec<OwnedFd>) -> Result<Built> {
    let Own { proc, sys, terminals, mounts } = own;
    let root = rustix::fs::openat(rootfs, ".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .context("openat", "the root file system")?;
    attach(rootfs.as_fd(), CWD, c"/")?;
    attach_at(&proc, &root, "/proc")?;
    attach_at(&sys, &root, "/sys")?;
    attach_at(&dev, &root, "/dev")?;
    attach(terminals.as_fd(), dev.as_fd(), c"pts")?;
    let mut sources = sources.into_iter();
    for (mount, made) in &mounts {
        match made {
            Some(made) => attach_own(made, &root, mount),
            None => attach_below(&root, &mount.target, &sources.next().ok_or(Error::Lost)?),
        }
        .map_err(|error| at(&mount.target, error))?;
    }
    // What is mounted in one has its place by now.
    for (mount, made) in &mounts {
        if let (MountSource::Tmpfs { .. }, true, Some(made)) = (&mount.source, mount.readonly, made) {
            let readonly = MountAttributes { readonly: true, ..MountAttributes::default() };
            set_attributes(made.as_fd(), readonly, false).context("mount_setattr", &mount.target)?;
        }
    }
    Ok(Built { root, proc: Some(proc), sys: Some(sys), dev })
}

/// Terminals belong to the group `tty`, where the container has such an id: an ordinary user may have one alone.
fn terminals() -> Result<OwnedFd> {
    let options = [("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")];
    match new("devpts", &options, quiet()) {
        Err(Error::Call { source, .. })
            if source.kind() == std::io::ErrorKind::InvalidInput && process::in_user_namespace() =>
        {
            new("devpts", &options[..2], quiet())
        }
        made => made,
    }
}

/// systemd's container interface wants these to be fresh file systems.
fn init_mounts(init: InitPlan) -> Vec<MountPlan> {
    if init != InitPlan::System {
        return Vec::new();
    }
    ["/run", "/run/lock", "/tmp"]
        .into_iter()
        .map(|target| MountPlan {
            target: target.to_owned(),
            source: MountSource::Tmpfs {
                size: None,
                mode: Some(if target == "/run" { 0o755 } else { 0o1777 }),
                uid: None,
                gid: None,
            },
            readonly: false,
            nosuid: true,
            nodev: true,
            noexec: false,
        })
        .collect()
}

/// That of a tmpfs that covers nothing, as the kernel makes it.
pub(crate) const OPEN: Mode = Mode::from_raw_mode(0o1777);

/// The file system of a mount, where it has one of its own.
fn own(plan: &ContainerPlan, mount: &MountPlan) -> Result<Option<OwnedFd>> {
    match &mount.source {
        MountSource::Bind { .. } | MountSource::Merged { .. } => return Ok(None),
        MountSource::Tmpfs { size, mode, uid, gid } => {
            let number = |value: Option<u32>| value.map(|value| value.to_string());
            let options = [
                ("size", size.map(|size| size.to_string())),
                ("mode", mode.map(|mode| format!("{mode:o}"))),
                ("uid", number(*uid)),
                ("gid", number(*gid)),
            ];
            let options: Vec<(&str, &str)> =
                options.iter().filter_map(|(key, value)| Some((*key, value.as_deref()?))).collect();
            let mut attributes = attributes(mount);
            // Not before everything is in it.
            attributes.remove(MountAttrFlags::MOUNT_ATTR_RDONLY);
            new("tmpfs", &options, attributes)
        }
        MountSource::Mqueue => new("mqueue", &[], hardened()),
        MountSource::Cgroup => cgroups::make(mount.readonly, plan.init),
    }
    .map(Some)
}

/// Attaches a file system of the container's own. A tmpfs without a mode has that of the folder that it covers, if
/// there is one: who mounts over a folder that others may not write to does not open it. A folder that is made for it
/// has the mode that the tmpfs has then: the next start finds it, and its tmpfs is as the first one was.
fn attach_own(made: &OwnedFd, root: &OwnedFd, mount: &MountPlan) -> Result<()> {
    let target = &mount.target;
    if !matches!(mount.source, MountSource::Tmpfs { mode: None, .. }) {
        return attach_at(made, root, target);
    }
    let covered = make_folder_as(root, target, OPEN)?;
    let mode = rustix::fs::fstat(&covered).context("fstat", target)?.st_mode & 0o7777;
    if mode != OPEN.as_raw_mode() {
        rustix::fs::chmodat(made, ".", Mode::from_raw_mode(mode), AtFlags::empty())
            .context("fchmodat", target)?;
    }
    attach(made.as_fd(), covered.as_fd(), c"")
}

/// Attaches a folder or a file at `target` below `root`, made if absent.
pub(crate) fn attach_below(root: &OwnedFd, target: &str, source: &OwnedFd) -> Result<()> {
    let folder = is_folder(source).context("fstat", target)?;
    let place = if folder { make_folder(root, target)? } else { make_file(root, target)? };
    if is_folder(&place).context("fstat", target)? != folder {
        return Err(Error::Invalid(format!(
            "mount to {target}: not a directory: are you trying to mount a directory onto a file (or vice-versa)?"
        )));
    }
    attach(source.as_fd(), place.as_fd(), c"").map_err(|error| at(target, error))
}

fn is_folder(file: &OwnedFd) -> Result<bool, Errno> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(file)?.st_mode) == FileType::Directory)
}

pub(super) fn at(target: &str, error: Error) -> Error {
    match error {
        // Only what is made can fail so.
        Error::Call { source, .. } if source.kind() == ErrorKind::ReadOnlyFilesystem => Error::Invalid(
            format!("mount to {target}: there is nothing to mount on, and it cannot be made: {source}"),
        ),
        Error::Call { call, on, source } if !on.contains(target) => {
            Error::Call { call, on: format!("{on} for {target}"), source }
        }
        error => error,
    }
}

/// sysfs belongs to a network namespace; who does not own that gets what the host shows, read-only.
fn sysfs(plan: &ContainerPlan) -> Result<OwnedFd> {
    let mut flags = hardened();
    if !plan.security.privileged {
        flags |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    match new("sysfs", &[], flags) {
        Err(Error::Call { source, .. }) if source.kind() == std::io::ErrorKind::PermissionDenied => {}
        result => return result,
    }
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = rustix::mount::open_tree(CWD, "/sys", flags).context("open_tree", "/sys")?;
    let readonly = MountAttributes { readonly: true, ..MountAttributes::default() };
    set_attributes(tree.as_fd(), readonly, true).context("mount_setattr", "/sys")?;
    Ok(tree)
}

pub(super) fn hardened() -> MountAttrFlags {
    MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC
}

/// For device nodes that are to work.
fn quiet() -> MountAttrFlags {
    MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC
}

fn attributes(mount: &MountPlan) -> MountAttrFlags {
    let mut flags = MountAttrFlags::empty();
    for (on, flag) in [
        (mount.readonly, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (mount.nosuid, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (mount.nodev, MountAttrFlags::MOUNT_ATTR_NODEV),
        (mount.noexec, MountAttrFlags::MOUNT_ATTR_NOEXEC),
    ] {
        if on {
            flags |= flag;
        }
    }
    flags
}

/// A new file system instance as a detached mount.
pub(super) fn new(kind: &str, options: &[(&str, &str)], attributes: MountAttrFlags) -> Result<OwnedFd> {
    new_file_system(kind, kind, options, attributes)
}

/// The same, shown as `device` by `mount` and `df`.
pub(crate) fn new_file_system<S: AsRef<str>>(
    kind: &str,
    device: &str,
    options: &[(S, S)],
    attributes: MountAttrFlags,
) -> Result<OwnedFd> {
    let fs = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).context("fsopen", kind)?;
    rustix::mount::fsconfig_set_string(&fs, "source", device).context("fsconfig", "source")?;
    configure(&fs, options)?;
    rustix::mount::fsconfig_create(&fs).context("fsconfig", format_args!("to create {kind}"))?;
    rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes).context("fsmount", kind)
}

/// Tells a file system its options; an empty value is a flag.
pub(super) fn configure<S: AsRef<str>>(fs: &OwnedFd, options: &[(S, S)]) -> Result<()> {
    for (key, value) in options {
        let (key, value) = (key.as_ref(), value.as_ref());
        if value.is_empty() {
            rustix::mount::fsconfig_set_flag(fs, key).context("fsconfig", key)?;
        } else {
            rustix::mount::fsconfig_set_string(fs, key, value).context("fsconfig", key)?;
        }
    }
    Ok(())
}

/// Attaches a detached mount on a folder below `root`, made if absent.
pub(super) fn attach_at(mount: &OwnedFd, root: &OwnedFd, target: &str) -> Result<()> {
    let folder = make_folder(root, target)?;
    attach(mount.as_fd(), folder.as_fd(), c"")
}

/// move_mount(2) of a detached mount.
pub(super) fn attach(mount: BorrowedFd<'_>, to: BorrowedFd<'_>, path: &CStr) -> Result<()> {
    let mut flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    if path.is_empty() {
        flags |= MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    }
    rustix::mount::move_mount(mount, c"", to, path, flags)
        .context("move_mount", format_args!("a mount to {:?}", path.to_string_lossy()))
}

/// Makes the container's root that of the process and lets go of the host's.
pub(crate) fn enter(plan: &ContainerPlan, rootfs: &OwnedFd) -> Result<()> {
    match (plan.mount_namespace(), plan.rootfs.layers.first()) {
        // Its name is one of that namespace.
        (MountNamespace::Path(_), Some(root)) => {
            rustix::process::chdir(root).context("chdir", root.display())?
        }
        _ => rustix::process::fchdir(rootfs).context("fchdir", "the root file system")?,
    }
    let asked = plan.bundle.as_ref().is_some_and(|bundle| bundle.entering == Entering::Chroot);
    if asked || !plan.has_own_mounts() {
        // It is mounted over the host's root already, which nobody gets below any more; or it is a folder of others.
        rustix::process::chroot(".").context("chroot", "to the root file system")?;
    } else {
        // The old root ends up mounted over the new one at the same place, pivot_root(2).
        rustix::process::pivot_root(".", ".").context("pivot_root", "to the root file system")?;
        rustix::mount::unmount(".", UnmountFlags::DETACH).context("umount2", "the host's root")?;
    }
    rustix::process::chdir("/").context("chdir", "/")?;
    if plan.rootfs.readonly {
        let readonly = MountAttributes { readonly: true, ..MountAttributes::default() };
        set_attributes(rootfs.as_fd(), readonly, false).context("mount_setattr", "/ read-only")?;
    }
    Ok(())
}

/// Binds the process' terminal over `/dev/console`.
pub(super) fn bind_console(terminal: BorrowedFd<'_>) -> Result<()> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let copy = rustix::mount::open_tree(terminal, "", flags).context("open_tree", "the terminal")?;
    attach(copy.as_fd(), CWD, c"/dev/console")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_file_is_not_mounted_onto_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("data")).unwrap();
        std::fs::write(folder.path().join("file"), "").unwrap();
        let open = |path: &Path| -> OwnedFd {
            rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
        };
        let root = open(folder.path());
        for (source, target) in [("file", "/data"), ("data", "/file")] {
            let error = attach_below(&root, target, &open(&folder.path().join(source))).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!(
                    "mount to {target}: not a directory: are you trying to mount a directory onto a file \
                     (or vice-versa)?"
                )
            );
        }
    }
}
