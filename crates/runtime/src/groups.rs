//! Control groups of a bundle's container.

use insula_base::{Kind, Kinded};
use insula_host::cgroup::{self, DevicePolicy, Group, Layout, Purpose, standard_devices};
use insula_spec::bundle::BundleDevices;
use insula_spec::plan::ContainerPlan;

use crate::error::{Error, Result};
use crate::store::{Folder, Record};

/// Whether a container needs its control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Groups {
    Needed,
    /// What an ordinary user may not have of them is done without, and said.
    Wanted,
}

/// Makes the control groups of a new container, and what is in them; returns what the user should know. On failure
/// nothing is left.
pub(crate) fn within(
    groups: Groups,
    folder: Folder,
    record: Record,
    make: impl FnOnce(&Folder, Record, &Group) -> Result<Vec<String>>,
) -> Result<Vec<String>> {
    build(groups, &folder, record, make).inspect_err(|_| {
        // The first error is the one to report; what is left is found by the folder.
        let _ = folder.remove();
    })
}

fn build(
    groups: Groups,
    folder: &Folder,
    record: Record,
    make: impl FnOnce(&Folder, Record, &Group) -> Result<Vec<String>>,
) -> Result<Vec<String>> {
    folder.write(&record)?;
    let layout = Layout::probe()?;
    let occupied = Group::open(&layout, &record.plan.cgroup.path)?.processes()?;
    if !occupied.is_empty() {
        let path = &record.plan.cgroup.path;
        return Err(Error::Invalid(format!("linux.cgroupsPath: the group {path:?} has processes in it")));
    }
    let rare = record.plan.cgroup.resources.exact.as_ref().is_some_and(|exact| exact.is_rare());
    let purpose = if rare { Purpose::LimitEverywhere } else { Purpose::Limit };
    let mut warnings = Vec::new();
    let made = Group::create(&layout, &record.plan.cgroup.path, purpose);
    let group = if_needed(groups, made, &mut warnings)?.unwrap_or_else(Group::nowhere);
    let built = limit(groups, &group, &record.plan, &mut warnings).and_then(|()| {
        warnings.extend(make(folder, record, &group)?);
        Ok(warnings)
    });
    if built.is_err() {
        // As above.
        let _ = group.remove();
    }
    built
}

/// None for what is refused to who does without.
fn if_needed<T>(groups: Groups, result: cgroup::Result<T>, warnings: &mut Vec<String>) -> Result<Option<T>> {
    match result {
        Err(error)
            if groups == Groups::Wanted && matches!(error.kind(), Kind::Denied | Kind::Unsupported) =>
        {
            warnings.push(format!("without control groups: {}", insula_base::chain(&error)));
            Ok(None)
        }
        result => Ok(Some(result?)),
    }
}

fn limit(groups: Groups, group: &Group, plan: &ContainerPlan, warnings: &mut Vec<String>) -> Result<()> {
    let told = if_needed(groups, group.limit(&plan.cgroup.resources), warnings)?;
    warnings.extend(told.into_iter().flatten());
    // Who is in a user namespace makes no nodes, and opens those of the host as far as it may.
    if groups == Groups::Wanted && insula_sys::process::in_user_namespace() {
        return Ok(());
    }
    Ok(group.allow_devices(&match plan.bundle.as_ref().map(|bundle| &bundle.device_policy) {
        Some(BundleDevices::All) => DevicePolicy::All,
        Some(BundleDevices::Only(rules)) => {
            DevicePolicy::Only(standard_devices().into_iter().chain(rules.iter().cloned()).collect())
        }
        None => DevicePolicy::Only(standard_devices()),
    })?)
}
