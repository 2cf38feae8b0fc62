//! Bind sources as detached mounts, made by the builder with the host's rights. Attributes are set
//! before anything is attached, so there is no moment at which a read-only volume is writable.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use insula_spec::bundle::{Attributes, BundleMount, BundleSource, MountIds, RootPropagation};
use insula_spec::plan::{MountPlan, MountSource, Propagation, RootfsPlan, UpperPlan};
use insula_sys::mount::{self, MountAttributes};

use crate::error::{Context, Error, Result};
use crate::idmap::{copy_of, detached, namespace_with};
use crate::rootfs;

/// One detached mount for each source of the plan, in the plan's order; `maker` is the container's root as the
/// host sees it. Where a file system cannot map ids its files belong to nobody inside, which `warnings` gets.
pub(crate) fn prepare(
    mounts: &[MountPlan],
    namespace: Option<BorrowedFd<'_>>,
    maker: u32,
    warnings: &mut Vec<String>,
) -> Result<Vec<OwnedFd>> {
    let prepared = mounts.iter().filter_map(|plan| match &plan.source {
        MountSource::Bind { path, recursive, propagation, idmap } => {
            let attributes = MountAttributes {
                idmap: if *idmap { namespace } else { None },
                propagation: match propagation {
                    Propagation::Private => Some(mount::Propagation::Private),
                    Propagation::Slave => Some(mount::Propagation::Slave),
                    // A clone of a shared mount is its peer already.
                    Propagation::Shared => None,
                },
                ..flags(plan)
            };
            Some(match detached(path, *recursive, attributes) {
                Err(Error::Unsupported(why)) if attributes.idmap.is_some() => {
                    warnings.push(format!("{why}: its files belong to nobody inside"));
                    detached(path, *recursive, MountAttributes { idmap: None, ..attributes })
                }
                result => result,
            })
        }
        MountSource::Merged { layers, upper } => Some(merged(plan, layers, upper, namespace, maker)),
        _ => None,
    });
    prepared.collect()
}

fn flags(plan: &MountPlan) -> MountAttributes<'static> {
    MountAttributes {
        readonly: plan.readonly,
        nosuid: plan.nosuid,
        nodev: plan.nodev,
        noexec: plan.noexec,
        ..MountAttributes::default()
    }
}

fn merged(
    plan: &MountPlan,
    layers: &[PathBuf],
    upper: &Option<UpperPlan>,
    namespace: Option<BorrowedFd<'_>>,
    maker: u32,
) -> Result<OwnedFd> {
    let folders = RootfsPlan {
        layers: layers.to_vec(),
        idmap: true,
        upper: upper.clone(),
        readonly: false,
        whole: false,
        hidden: Vec::new(),
    };
    let tree = rootfs::build(&folders, namespace, maker)?.mount;
    mount::set_attributes(tree.as_fd(), flags(plan), false)
        .context("mount_setattr", format_args!("what is merged at {}", plan.target))?;
    Ok(tree)
}

/// One detached mount for each bind of a bundle, in its order.
pub(crate) fn prepare_bundle(
    mounts: &[BundleMount],
    namespace: Option<BorrowedFd<'_>>,
) -> Result<Vec<OwnedFd>> {
    let binds = mounts.iter().filter_map(|mount| match &mount.source {
        BundleSource::Bind { path, recursive, idmap } => Some((mount, path, *recursive, idmap.as_ref())),
        _ => None,
    });
    binds
        .map(|(mount, path, recursive, ids)| {
            let tree = copy_of(path, recursive)?;
            change_bundle(&tree, mount, recursive)
                .and_then(|()| ids.map_or(Ok(()), |ids| map_mount(&tree, ids, namespace)))
                .map_err(|error| for_target(error, &mount.target))?;
            Ok(tree)
        })
        .collect()
}

/// Propagation and attributes of a mount of a bundle. What the host mounts later is not seen inside unless
/// the bundle says so.
pub(crate) fn change_bundle(tree: &OwnedFd, plan: &BundleMount, recursive: bool) -> Result<()> {
    let (kind, below) = plan.propagation.unwrap_or((RootPropagation::Private, true));
    // A clone of a shared mount is its peer already.
    if recursive && !(below && kind == RootPropagation::Shared) {
        spread(tree, if below { kind } else { RootPropagation::Private }, true)?;
    }
    if kind != RootPropagation::Shared {
        spread(tree, kind, false)?;
    }
    change_attributes(tree, plan)
}

/// Options of a mount and of those below it.
pub(crate) fn change_attributes(tree: &OwnedFd, plan: &BundleMount) -> Result<()> {
    let change = |attributes: Attributes, recursive| {
        if attributes == Attributes::default() {
            return Ok(());
        }
        mount::change_attributes(tree.as_fd(), attributes.set, attributes.clear, recursive)
            .context("mount_setattr", "its options")
    };
    change(plan.recursive, true)?;
    change(plan.attributes, false)
}

pub(crate) fn spread(tree: &OwnedFd, kind: RootPropagation, recursive: bool) -> Result<()> {
    let propagation = Some(match kind {
        RootPropagation::Private => mount::Propagation::Private,
        RootPropagation::Slave => mount::Propagation::Slave,
        RootPropagation::Shared => mount::Propagation::Shared,
        RootPropagation::Unbindable => mount::Propagation::Unbindable,
    });
    let attributes = MountAttributes { propagation, ..MountAttributes::default() };
    mount::set_attributes(tree.as_fd(), attributes, recursive).context("mount_setattr", "its propagation")
}

fn map_mount(tree: &OwnedFd, ids: &MountIds, namespace: Option<BorrowedFd<'_>>) -> Result<()> {
    let own = if ids.uids.is_empty() { None } else { Some(namespace_with(&ids.uids, &ids.gids)?) };
    let idmap = own.as_ref().map(AsFd::as_fd).or(namespace);
    if idmap.is_none() {
        return Err(Error::Invalid("mapped ids need mappings, or a user namespace".to_owned()));
    }
    let attributes = MountAttributes { idmap, ..MountAttributes::default() };
    mount::set_attributes(tree.as_fd(), attributes, ids.recursive).context("mount_setattr", "its ids")
}

fn for_target(error: Error, target: &str) -> Error {
    match error {
        Error::Call { call, on, source } => Error::Call { call, on: format!("{on} for {target}"), source },
        Error::Invalid(text) => Error::Invalid(format!("{target}: {text}")),
        error => error,
    }
}

/// How many of the mounts the host prepares.
pub(crate) fn count(mounts: &[MountPlan]) -> usize {
    binds(mounts).count()
}

/// Those of the mounts that the host prepares.
pub(crate) fn binds(mounts: &[MountPlan]) -> impl Iterator<Item = &MountPlan> {
    mounts.iter().filter(|mount| mount.source.is_of_the_host())
}
