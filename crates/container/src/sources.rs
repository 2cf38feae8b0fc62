//! Bind sources as detached mounts, made by the builder with the host's rights. Attributes are set
//! before anything is attached, so there is no moment at which a read-only volume is writable.

use std::os::fd::{BorrowedFd, OwnedFd};

use insula_spec::plan::{MountPlan, MountSource, Propagation};
use insula_sys::mount::{self, MountAttributes};

use crate::error::{Error, Result};
use crate::idmap::detached;

/// One detached mount for each bind of the plan, in the plan's order. Where a file system cannot map ids
/// its files belong to nobody inside, which `warnings` gets.
pub(crate) fn prepare(
    mounts: &[MountPlan],
    namespace: Option<BorrowedFd<'_>>,
    warnings: &mut Vec<String>,
) -> Result<Vec<OwnedFd>> {
    let binds = mounts.iter().filter_map(|plan| match &plan.source {
        MountSource::Bind { path, recursive, propagation, idmap } => {
            let attributes = MountAttributes {
                readonly: plan.readonly,
                nosuid: plan.nosuid,
                nodev: plan.nodev,
                noexec: plan.noexec,
                idmap: if *idmap { namespace } else { None },
                propagation: match propagation {
                    Propagation::Private => Some(mount::Propagation::Private),
                    Propagation::Slave => Some(mount::Propagation::Slave),
                    // A clone of a shared mount is its peer already.
                    Propagation::Shared => None,
                },
            };
            Some((path, *recursive, attributes))
        }
        _ => None,
    });
    binds
        .map(|(path, recursive, attributes)| match detached(path, recursive, attributes) {
            Err(Error::Unsupported(why)) if attributes.idmap.is_some() => {
                warnings.push(format!("{why}: its files belong to nobody inside"));
                detached(path, recursive, MountAttributes { idmap: None, ..attributes })
            }
            result => result,
        })
        .collect()
}

/// How many of the mounts are binds.
pub(crate) fn count(mounts: &[MountPlan]) -> usize {
    binds(mounts).count()
}

/// Those of the mounts that are binds.
pub(crate) fn binds(mounts: &[MountPlan]) -> impl Iterator<Item = &MountPlan> {
    mounts.iter().filter(|mount| matches!(mount.source, MountSource::Bind { .. }))
}
