//! The root file system as one detached mount: shared layers below, the writable one on top.
//!
//! Layers are handed to overlayfs as descriptors of idmapped clones (Linux 6.13 and later), so
//! nothing is ever attached in the builder's mount namespace. Older kernels only take paths in an
//! attached tree; there a short-lived child attaches the clones in a mount namespace of its own.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use insula_spec::plan::{RootfsPlan, UpperPlan};
use insula_sys::mount::MountAttributes;
use insula_sys::process;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::error::{Context, Error, Result};
use crate::idmap::detached;

/// Builds the root file system of a plan, its ids mapped by `namespace` where the plan says so;
/// `maker` is the container's root as the host sees it.
pub(crate) fn build(plan: &RootfsPlan, namespace: Option<BorrowedFd<'_>>, maker: u32) -> Result<OwnedFd> {
    let idmap = if plan.idmap { namespace } else { None };
    let attributes = MountAttributes { idmap, ..MountAttributes::default() };
    match (&plan.upper, plan.layers.as_slice()) {
        (_, []) => Err(Error::Invalid("a root file system needs at least one layer".to_owned())),
        (None, [only]) => detached(only, false, MountAttributes { readonly: true, ..attributes }),
        (upper, layers) => {
            let layers =
                layers.iter().map(|path| detached(path, false, attributes)).collect::<Result<Vec<_>>>()?;
            overlay(&layers, upper.as_ref(), attributes, maker)
        }
    }
}

/// `layers` lowest first.
fn overlay(
    layers: &[OwnedFd],
    upper: Option<&UpperPlan>,
    attributes: MountAttributes<'_>,
    maker: u32,
) -> Result<OwnedFd> {
    let fs = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).context("fsopen", "overlay")?;
    // The topmost layer comes first in overlayfs' own order.
    for layer in layers.iter().rev() {
        rustix::mount::fsconfig_set_fd(&fs, "lowerdir+", layer).map_err(too_old)?;
    }
    let writable = upper.map(|upper| Writable::open(upper, attributes)).transpose()?;
    if let Some(writable) = &writable {
        rustix::mount::fsconfig_set_fd(&fs, "upperdir", &writable.upper).map_err(too_old)?;
        rustix::mount::fsconfig_set_fd(&fs, "workdir", &writable.work).map_err(too_old)?;
    }
    // Image layers must not be able to point elsewhere by extended attributes.
    for (key, value) in
        [("source", "overlay"), ("redirect_dir", "nofollow"), ("metacopy", "off"), ("index", "off")]
    {
        rustix::mount::fsconfig_set_string(&fs, key, value).context("fsconfig", key)?;
    }
    // overlayfs works on the writable layer as who made it: that must be someone whom a mapped layer
    // knows, the container's root.
    process::with_file_system_id(if attributes.idmap.is_some() { maker } else { 0 }, || {
        rustix::mount::fsconfig_create(&fs)
    })
    .context("setfsuid", "to create the overlay")?
    .context("fsconfig", "to create the overlay")?;
    rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        .context("fsmount", "the overlay")
}

fn too_old(errno: Errno) -> Error {
    match errno {
        Errno::INVAL => Error::Unsupported(
            "overlayfs of this kernel does not take layers as descriptors (Linux 6.13 is needed)".to_owned(),
        ),
        errno => Error::Call { call: "fsconfig", on: "an overlay layer".to_owned(), source: errno.into() },
    }
}

/// The upper and work folders, opened below one clone: overlayfs wants both on the same mount.
struct Writable {
    upper: OwnedFd,
    work: OwnedFd,
    /// The clone: when its descriptor goes before the overlay has its own, it is taken apart.
    _tree: OwnedFd,
}

impl Writable {
    fn open(plan: &UpperPlan, attributes: MountAttributes<'_>) -> Result<Self> {
        let folder = |path: &Path| path.parent().map(Path::to_owned);
        let common = folder(&plan.upper)
            .filter(|parent| Some(parent) == folder(&plan.work).as_ref())
            .ok_or_else(|| {
                Error::Invalid(format!("{} and its work folder have no common parent", plan.upper.display()))
            })?;
        let tree = detached(&common, false, attributes)?;
        let open = |path: &Path| {
            let name = path.file_name().unwrap_or_default();
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(tree.as_fd(), name, flags, Mode::empty()).context("openat", path.display())
        };
        Ok(Self { upper: open(&plan.upper)?, work: open(&plan.work)?, _tree: tree })
    }
}
