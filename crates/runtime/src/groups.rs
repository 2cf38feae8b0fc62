//! Control groups of a bundle's container.

use insula_base::{Kind, Kinded};
use insula_host::cgroup::{self, DevicePolicy, Group, Layout, Purpose, standard_devices};
use insula_host::systemd::Whose;
use insula_spec::bundle::document::Config;
use insula_spec::bundle::{self, BundleDevices, DeviceVerdict, UnitPlan, Verdict};
use insula_spec::plan::ContainerPlan;

use crate::error::{Error, Result};
use crate::scope::{self, Held, Scope, Unit};
use crate::store::{Folder, Record};

/// Whether a container needs its control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Groups {
    Needed,
    /// What an ordinary user may not have of them is done without, and said.
    Wanted,
}

/// How control groups of a new container are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grouping {
    pub groups: Groups,
    pub maker: Maker,
}

/// Who makes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Maker {
    Runtime,
    /// `linux.cgroupsPath` says slice, prefix and name.
    Systemd,
}

/// Control groups of a new container before they are made.
#[derive(Debug)]
pub(crate) struct Wanted {
    groups: Groups,
    scope: Option<UnitPlan>,
}

impl Wanted {
    /// Looks at what the bundle asks for, and notes in the record what there will be.
    pub(crate) fn new(grouping: Grouping, config: &Config, record: &mut Record) -> Result<Self> {
        let mut wanted = Self { groups: grouping.groups, scope: None };
        if grouping.maker == Maker::Systemd {
            let whose = Whose::of_caller();
            let plan = bundle::unit(config, &record.id, whose.slice())?;
            // To begin with; where it is in truth systemd knows.
            record.plan.cgroup.path = plan.path();
            record.unit = Some(Unit { name: plan.name.clone(), whose });
            wanted.scope = Some(plan);
        }
        Ok(wanted)
    }
}

/// Makes the control groups of a new container, and what is in them; returns what the user should know. On failure
/// nothing is left.
pub(crate) fn within(
    wanted: &Wanted,
    folder: Folder,
    record: Record,
    make: impl FnOnce(&Folder, Record, &Group) -> Result<Vec<String>>,
) -> Result<Vec<String>> {
    let built = folder.write(&record).and_then(|()| match (&wanted.scope, &record.unit) {
        (Some(plan), Some(unit)) => {
            let unit = unit.clone();
            in_scope(wanted.groups, plan, &unit, &folder, record, make)
        }
        _ => in_group(wanted.groups, &folder, record, make),
    });
    built.inspect_err(|_| {
        // The first error is the one to report; what is left is found by the folder.
        let _ = folder.remove();
    })
}

fn in_group(
    groups: Groups,
    folder: &Folder,
    record: Record,
    make: impl FnOnce(&Folder, Record, &Group) -> Result<Vec<String>>,
) -> Result<Vec<String>> {
    let layout = Layout::probe()?;
    let occupied = Group::open(&layout, &record.plan.cgroup.path)?.processes()?;
    if !occupied.is_empty() {
        let path = &record.plan.cgroup.path;
        return Err(Error::Invalid(format!("linux.cgroupsPath: the group {path:?} has processes in it")));
    }
    let purpose = if is_rare(&record) { Purpose::LimitEverywhere } else { Purpose::Limit };
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

fn in_scope(
    groups: Groups,
    plan: &UnitPlan,
    unit: &Unit,
    folder: &Folder,
    mut record: Record,
    make: impl FnOnce(&Folder, Record, &Group) -> Result<Vec<String>>,
) -> Result<Vec<String>> {
    let layout = Layout::probe_all()?;
    let told = layout.v1("devices").map(|_| policy(&record.plan));
    told.as_ref().map_or(Ok(()), scope::check_devices)?;
    let mut scope = Scope::start(plan, unit, &record.id, told.as_ref())?;
    let path = scope.path.clone();
    record.plan.cgroup.path.clone_from(&path);
    let purpose = if is_rare(&record) { Purpose::UnitEverywhere } else { Purpose::Unit };
    let mut warnings = std::mem::take(&mut scope.warnings);
    let made = folder.write(&record).and_then(|()| {
        let group = match unit.whose {
            Whose::System => Group::create(&layout, &path, purpose)?,
            // A user has what systemd has handed on, and makes none beside it.
            Whose::User => Group::open(&layout, &path)?,
        };
        limit(groups, &group, &record.plan, &mut warnings)?;
        scope.limited(&group)?;
        warnings.extend(make(folder, record, &group)?);
        // What stands by now must not be left behind; the first error is the one to report.
        scope.taken_over(&group).inspect_err(|_| drop(group.kill()))
    });
    match made {
        Ok(()) => {
            scope.let_go();
            Ok(warnings)
        }
        Err(error) => {
            scope.stop();
            // What systemd has no use for is ours to remove. The first error is the one to report.
            let _ = Group::open(&layout, &path).and_then(Group::remove);
            Err(error)
        }
    }
}

fn is_rare(record: &Record) -> bool {
    record.plan.cgroup.resources.exact.as_ref().is_some_and(|exact| exact.is_rare())
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
    Ok(group.allow_devices(&policy(plan))?)
}

/// What it may use: the standard devices whatever else is said, as other runtimes have it.
pub(crate) fn policy(plan: &ContainerPlan) -> DevicePolicy {
    plan.bundle
        .as_ref()
        .map_or_else(|| DevicePolicy::Only(standard_devices()), |bundle| policy_of(&bundle.device_policy))
}

fn policy_of(asked: &BundleDevices) -> DevicePolicy {
    let standard = standard_devices().into_iter();
    match asked {
        BundleDevices::All => DevicePolicy::All,
        BundleDevices::Only(rules) => DevicePolicy::Only(standard.chain(rules.iter().cloned()).collect()),
        BundleDevices::Listed(list) => {
            let standard = standard.map(|rule| DeviceVerdict { verdict: Verdict::Allow, rule });
            DevicePolicy::Listed(list.iter().cloned().chain(standard).collect())
        }
    }
}

/// Has a container that runs use other devices from now on, and notes it; returns what the user should know.
pub(crate) fn change_devices(
    record: &mut Record,
    folder: &Folder,
    group: &Group,
    held: Option<&mut Held<'_>>,
    new: BundleDevices,
) -> Result<Vec<String>> {
    if insula_sys::process::in_user_namespace() {
        return Err(Error::Unsupported("a change of resources.devices in a user namespace".to_owned()));
    }
    let policy = policy_of(&new);
    if held.is_some() && group.has_device_list() {
        scope::check_devices(&policy)?;
    }
    let noted = &record.plan.bundle.get_or_insert_default().device_policy;
    let old: Vec<DevicePolicy> = std::iter::once(noted).chain(&record.tried_devices).map(policy_of).collect();
    group.check_device_change(&old, &policy)?;
    // Noted before anything is changed: whatever fails below, it is known what may be there.
    if !record.tried_devices.contains(&new) {
        record.tried_devices.push(new.clone());
    }
    folder.write(record)?;
    group.change_devices(&old, &policy)?;
    let warnings = match held.map(|held| held.allow(&policy)).transpose()?.flatten() {
        Some(warnings) => {
            // It has written what it knows of them, which is never more.
            let least =
                if policy == DevicePolicy::All { policy.clone() } else { DevicePolicy::Only(Vec::new()) };
            group.change_devices(&[least], &policy)?;
            warnings
        }
        None => Vec::new(),
    };
    record.plan.bundle.get_or_insert_default().device_policy = new;
    record.tried_devices.clear();
    folder.write(record)?;
    Ok(warnings)
}
