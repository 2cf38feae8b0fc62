//! The overlay on kernels that take its layers as paths only, before Linux 6.13.
//!
//! overlayfs refuses paths to mounts that are not attached where it is mounted. A short-lived child
//! attaches them in a mount namespace of its own, below a tmpfs and under short names, mounts the
//! overlay there and hands a detached copy of it back. The namespace ends with the child.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use insula_sys::process::{self, Clone, CloneFlags};
use rustix::fs::{CWD, Mode};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags,
};

use super::{OPTIONS, Writable};
use crate::build::{Cloned, Guard};
use crate::error::{Context, Error, Result};
use crate::handshake;

/// Where the overlay and the writable layer are below the tmpfs; layers are there by number.
const TARGET: &str = "target";
const WRITABLE: &str = "writable";

/// mount(2) copies at most a page of options.
const LONGEST: usize = 4095;

/// Makes the overlay as `maker`, the lowest of `layers` first. For a process of one thread.
pub(super) fn overlay(
    layers: &[OwnedFd],
    writable: Option<&Writable>,
    mapped: bool,
    maker: u32,
) -> Result<OwnedFd> {
    if mapped {
        maps_layers()?;
    }
    let options = options(layers.len(), writable)?;
    let (outside, inside) = handshake::pair()?;
    match process::clone(CloneFlags::NEWNS, None).context("clone3", "with a mount namespace")? {
        Clone::Child => {
            let given = assemble(layers, writable, &options, maker)
                .and_then(|overlay| inside.give(&[overlay.as_fd()]));
            if let Err(error) = &given {
                inside.report_failure(error);
            }
            process::exit_now(i32::from(given.is_err()))
        }
        Clone::Parent { pid, pidfd } => {
            let _child = Guard(Some(Cloned { pid, pidfd }));
            drop(inside);
            outside.take(1)?.pop().ok_or(Error::Lost)
        }
    }
}

/// Whether overlayfs takes layers whose ids are mapped.
pub(crate) fn maps_layers() -> Result<()> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    if version(&release) >= (5, 19) {
        return Ok(());
    }
    Err(Error::Unsupported(format!(
        "overlayfs of this kernel ({release}) does not take layers with mapped ids (Linux 5.19 is needed)"
    )))
}

/// Major and minor number of a release; 0 where it says none.
fn version(release: &str) -> (u32, u32) {
    let mut numbers =
        release.split(|letter: char| !letter.is_ascii_digit()).map(|word| word.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// In the child.
fn assemble(
    layers: &[OwnedFd],
    writable: Option<&Writable>,
    options: &CString,
    maker: u32,
) -> Result<OwnedFd> {
    let alone = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", alone).context("mount", "the namespace as private")?;
    let place = tmpfs()?;
    // On top of the root: paths of this process go on below it, from its working folder on they do not.
    attach(place.as_fd(), "/")?;
    rustix::process::fchdir(&place).context("fchdir", "a tmpfs")?;
    for (number, layer) in layers.iter().enumerate() {
        attach_below(layer.as_fd(), &number.to_string())?;
    }
    if let Some(writable) = writable {
        attach_below(writable.tree.as_fd(), WRITABLE)?;
    }
    mkdir(TARGET)?;
    process::with_file_system_id(maker, || {
        rustix::mount::mount("overlay", TARGET, "overlay", MountFlags::empty(), options.as_c_str())
    })
    .context("setfsuid", "to create the overlay")?
    .context("mount", "the overlay")?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(CWD, TARGET, flags).context("open_tree", "the overlay")
}

fn tmpfs() -> Result<OwnedFd> {
    let fs = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).context("fsopen", "tmpfs")?;
    for (key, value) in [("source", "tmpfs"), ("mode", "755"), ("size", "64k")] {
        rustix::mount::fsconfig_set_string(&fs, key, value).context("fsconfig", key)?;
    }
    rustix::mount::fsconfig_create(&fs).context("fsconfig", "to create a tmpfs")?;
    rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        .context("fsmount", "a tmpfs")
}

fn mkdir(name: &str) -> Result<()> {
    rustix::fs::mkdir(name, Mode::from_raw_mode(0o755)).context("mkdir", name)
}

fn attach_below(mount: BorrowedFd<'_>, name: &str) -> Result<()> {
    mkdir(name)?;
    attach(mount, name)
}

fn attach(mount: BorrowedFd<'_>, path: &str) -> Result<()> {
    rustix::mount::move_mount(mount, c"", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .context("move_mount", format_args!("a layer to {path}"))
}

/// What mount(2) is told.
fn options(layers: usize, writable: Option<&Writable>) -> Result<CString> {
    // The topmost layer comes first in overlayfs' own order.
    let names: Vec<String> = (0..layers).rev().map(|number| number.to_string()).collect();
    let mut options = format!("lowerdir={}", names.join(":")).into_bytes();
    if process::in_user_namespace() {
        options.extend_from_slice(b",userxattr");
    }
    if let Some(writable) = writable {
        for (key, name) in [("upperdir", &writable.upper.name), ("workdir", &writable.work.name)] {
            options.extend_from_slice(format!(",{key}={WRITABLE}/").as_bytes());
            options.extend_from_slice(plain(name)?);
        }
        if writable.volatile {
            options.extend_from_slice(b",volatile");
        }
    }
    for (key, value) in OPTIONS {
        options.extend_from_slice(format!(",{key}={value}").as_bytes());
    }
    if options.len() > LONGEST {
        return Err(Error::Invalid(format!("{layers} layers are more than this kernel mounts")));
    }
    CString::new(options).map_err(|_| Errno::INVAL).context("mount", "with a name that holds a null byte")
}

/// A name that means itself in a list of options.
fn plain(name: &OsStr) -> Result<&[u8]> {
    let bytes = name.as_bytes();
    if bytes.iter().any(|byte| b",:\\".contains(byte)) {
        let name = name.display();
        return Err(Error::Invalid(format!(
            "{name:?}, a writable layer's folder, has a comma, a colon or a backslash"
        )));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_number() {
        assert_eq!(version("5.15.0-91-generic"), (5, 15));
        assert_eq!(version("6.1"), (6, 1));
        assert!(version("5.19.0-rc1") >= (5, 19) && version("10.0+") >= (5, 19));
        assert!(version("5.4.0") < (5, 19) && version("odd") < (5, 19));
    }

    #[test]
    fn the_topmost_layer_is_named_first_and_too_many_are_refused() {
        let text = options(3, None).unwrap().into_string().unwrap();
        assert_eq!(text, "lowerdir=2:1:0,redirect_dir=nofollow,metacopy=off,index=off");
        assert!(options(500, None).is_ok());
        assert!(matches!(options(2000, None), Err(Error::Invalid(_))));
    }

    #[test]
    fn names_must_not_read_as_options() {
        assert_eq!(plain(OsStr::new("upper")).unwrap(), b"upper");
        for name in ["a,b", "a:b", "a\\b"] {
            assert!(matches!(plain(OsStr::new(name)), Err(Error::Invalid(_))), "{name}");
        }
    }
}
