//! A container's root as a snapshotter describes it: mounts one over the other.

use std::ffi::CString;
use std::os::fd::AsFd;
use std::path::Path;

use containerd_shim_protos::types::mount::Mount;
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags};

use crate::error::{Context, Error, Result};

/// mount(2) copies at most a page of options.
const LONGEST: usize = 4095;

/// Names of fstab(5), what they set or clear.
const FLAGS: [(&str, MountFlags, bool); 21] = [
    ("async", MountFlags::SYNCHRONOUS, false),
    ("atime", MountFlags::NOATIME, false),
    ("bind", MountFlags::BIND, true),
    ("defaults", MountFlags::empty(), true),
    ("dev", MountFlags::NODEV, false),
    ("diratime", MountFlags::NODIRATIME, false),
    ("dirsync", MountFlags::DIRSYNC, true),
    ("exec", MountFlags::NOEXEC, false),
    ("noatime", MountFlags::NOATIME, true),
    ("nodev", MountFlags::NODEV, true),
    ("nodiratime", MountFlags::NODIRATIME, true),
    ("noexec", MountFlags::NOEXEC, true),
    ("norelatime", MountFlags::RELATIME, false),
    ("nosuid", MountFlags::NOSUID, true),
    ("relatime", MountFlags::RELATIME, true),
    ("ro", MountFlags::RDONLY, true),
    ("rw", MountFlags::RDONLY, false),
    ("strictatime", MountFlags::STRICTATIME, true),
    ("suid", MountFlags::NOSUID, false),
    ("sync", MountFlags::SYNCHRONOUS, true),
    ("rbind", MountFlags::BIND.union(MountFlags::REC), true),
];

/// What the options say.
#[derive(Debug, PartialEq)]
struct Options {
    flags: MountFlags,
    /// For the file system.
    data: Vec<String>,
}

impl Options {
    fn of(mount: &Mount) -> Result<Self> {
        let mut options = Self { flags: MountFlags::empty(), data: Vec::new() };
        for option in &mount.options {
            match FLAGS.iter().find(|(name, ..)| name == option) {
                Some((_, flag, true)) => options.flags |= *flag,
                Some((_, flag, false)) => options.flags -= *flag,
                None => options.data.push(option.clone()),
            }
        }
        if matches!(mount.type_.as_str(), "bind" | "rbind") {
            options.flags |= MountFlags::BIND;
        }
        // The kernel does not look at the data of a bind mount.
        if let (true, Some(option)) = (options.flags.contains(MountFlags::BIND), options.data.first()) {
            return Err(Error::Unsupported(format!("option {option:?} of a bind mount in the root")));
        }
        Ok(options)
    }
}

/// Mounts all of them; after a failure none is left.
pub(crate) fn mount(mounts: &[Mount], target: &Path) -> Result<()> {
    for mount in mounts {
        let mounted = one(mount, target);
        if mounted.is_err() {
            // The first error is the one to report.
            let _ = unmount(target);
            return mounted;
        }
    }
    Ok(())
}

fn one(mount: &Mount, target: &Path) -> Result<()> {
    if !mount.target.is_empty() {
        return Err(Error::Unsupported(format!("a mount at {:?} in the root", mount.target)));
    }
    let options = Options::of(mount)?;
    if options.flags.contains(MountFlags::BIND) {
        return bind(&mount.source, options.flags, target);
    }
    let data = options.data.join(",");
    if data.len() > LONGEST {
        return by_parts(mount, &options, target);
    }
    let data = CString::new(data).map_err(|_| zero(mount))?;
    rustix::mount::mount(mount.source.as_str(), target, mount.type_.as_str(), options.flags, data.as_c_str())
        .context("mount", format_args!("{} at {}", mount.type_, target.display()))
}

fn zero(mount: &Mount) -> Error {
    Error::Invalid(format!("an option of {} in the root holds a zero byte", mount.type_))
}

/// The first call takes no other flags: mount(2).
fn bind(source: &str, flags: MountFlags, target: &Path) -> Result<()> {
    let kind = flags & (MountFlags::BIND | MountFlags::REC);
    rustix::mount::mount(source, target, c"", kind, None)
        .context("mount", format_args!("{source} at {}", target.display()))?;
    let rest = flags - kind;
    if rest.is_empty() {
        return Ok(());
    }
    rustix::mount::mount_remount(target, MountFlags::BIND | rest, c"")
        .context("mount", format_args!("{} again, with its flags", target.display()))
}

/// More layers than mount(2) takes at once, each with a call of its own: Linux 6.7 and later.
fn by_parts(mount: &Mount, options: &Options, target: &Path) -> Result<()> {
    let kind = mount.type_.as_str();
    let fs = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).context("fsopen", kind)?;
    let fs = fs.as_fd();
    rustix::mount::fsconfig_set_string(fs, "source", mount.source.as_str()).context("fsconfig", "source")?;
    for option in &options.data {
        match option.split_once('=') {
            Some(("lowerdir", layers)) => {
                for layer in layers.split(':') {
                    rustix::mount::fsconfig_set_string(fs, "lowerdir+", layer).context("fsconfig", layer)?;
                }
            }
            Some((key, value)) => {
                rustix::mount::fsconfig_set_string(fs, key, value).context("fsconfig", option)?;
            }
            None => {
                rustix::mount::fsconfig_set_flag(fs, option.as_str()).context("fsconfig", option)?;
            }
        }
    }
    rustix::mount::fsconfig_create(fs).context("fsconfig", "to create the root")?;
    let mounted = rustix::mount::fsmount(fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes(options.flags)?)
        .context("fsmount", kind)?;
    rustix::mount::move_mount(&mounted, c"", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .context("move_mount", target.display())
}

fn attributes(flags: MountFlags) -> Result<MountAttrFlags> {
    const KNOWN: [(MountFlags, MountAttrFlags); 5] = [
        (MountFlags::RDONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (MountFlags::NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (MountFlags::NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
        (MountFlags::NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        (MountFlags::NOATIME, MountAttrFlags::MOUNT_ATTR_NOATIME),
    ];
    let mut attributes = MountAttrFlags::empty();
    let mut rest = flags - MountFlags::RELATIME;
    for (flag, attribute) in KNOWN {
        if rest.contains(flag) {
            attributes |= attribute;
            rest -= flag;
        }
    }
    if rest.is_empty() {
        return Ok(attributes);
    }
    Err(Error::Unsupported(format!("mount flags {rest:?} of a root with very many layers")))
}

/// Removes whatever is mounted there.
pub(crate) fn unmount(target: &Path) -> Result<()> {
    loop {
        match rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // Nothing is mounted, or it is not there.
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            unmounted => unmounted.context("umount2", target.display())?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, options: &[&str]) -> Mount {
        let mut mount = Mount::new();
        mount.type_ = kind.to_owned();
        mount.options = options.iter().map(|option| (*option).to_owned()).collect();
        mount
    }

    #[test]
    fn options_are_flags_or_the_file_systems() {
        let options =
            Options::of(&mount("overlay", &["ro", "nosuid", "lowerdir=/a:/b", "index=off"])).unwrap();
        assert_eq!(options.flags, MountFlags::RDONLY | MountFlags::NOSUID);
        assert_eq!(options.data, ["lowerdir=/a:/b", "index=off"]);
        let options = Options::of(&mount("bind", &["rbind", "ro", "rw"])).unwrap();
        assert_eq!(options.flags, MountFlags::BIND | MountFlags::REC);
    }

    #[test]
    fn what_a_bind_mount_does_not_know_is_refused() {
        let refused = Options::of(&mount("bind", &["rbind", "uidmap=0:1000:1"]));
        assert!(matches!(refused, Err(Error::Unsupported(_))), "{refused:?}");
    }

    #[test]
    fn attributes_of_a_new_mount() {
        let known = attributes(MountFlags::RDONLY | MountFlags::NODEV | MountFlags::RELATIME).unwrap();
        assert_eq!(known, MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV);
        assert!(attributes(MountFlags::SYNCHRONOUS).is_err());
    }
}
