//! What a sandbox has ready before its container is known: a control group and an init.

use insula_container::{Spare, Told};
use insula_host::cgroup::{DevicePolicy, Group, Layout, Purpose, standard_devices};
use insula_spec::plan::ContainerPlan;

use crate::Result;

/// Both may be missing: where they cannot be made, the start of a container says why.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    group: Option<Named>,
    spare: Option<Spare>,
    /// What was made for another container than came.
    unwanted: Option<Unwanted>,
}

/// A group by the name that its container is expected to have it by, with the devices of every container.
#[derive(Debug)]
struct Named {
    path: String,
    group: Group,
}

#[derive(Debug)]
struct Unwanted {
    /// In the group, so it goes first.
    _spare: Option<Spare>,
    group: Group,
}

impl Ahead {
    pub(super) fn make(layout: &Layout, path: Option<&str>) -> Self {
        let group = path.and_then(|path| Named::make(layout, path).ok());
        let entry = group.as_ref().and_then(|named| named.group.entry().ok());
        let born = entry.as_ref().is_some_and(|entry| entry.birthplace().is_some());
        // On version 2 an init is born in its group: one that is outside would only have to end first.
        let spare = if born || !layout.unified() { Spare::make(entry.as_ref()).ok() } else { None };
        Self { group, spare, unwanted: None }
    }

    /// The spare that this container can have, which was told its plan, and the group, which has what every
    /// container has of devices and nothing else. What does not suit is put aside.
    pub(super) fn take(
        &mut self,
        plan: &ContainerPlan,
        purpose: Purpose,
    ) -> Result<(Option<Told>, Option<Group>)> {
        let spare = self.spare.take();
        let (spare, group) = match self.group.take() {
            None => (spare, None),
            Some(named) if named.fits(plan, purpose) => (spare, Some(named.group)),
            Some(named) => {
                let of_another = named.path != plan.cgroup.path;
                let (inside, outside) = match spare {
                    Some(spare) if spare.is_born_in_a_group() => (Some(spare), None),
                    spare => (None, spare),
                };
                self.unwanted = Some(Unwanted { _spare: inside, group: named.group });
                if !of_another {
                    // One of the same name is about to be made.
                    self.clear()?;
                }
                (outside, None)
            }
        };
        Ok((spare.and_then(|spare| spare.told(plan)), group))
    }

    /// Takes away what was put aside. It takes a while: for when who asked for the container has been answered.
    pub(super) fn clear(&mut self) -> Result<()> {
        match self.unwanted.take() {
            Some(Unwanted { _spare: spare, group }) => {
                drop(spare);
                Ok(group.remove()?)
            }
            None => Ok(()),
        }
    }

    /// The same with all that is ready.
    pub(super) fn give_up(&mut self) -> Result<()> {
        let cleared = self.clear();
        self.spare = None;
        let removed = self.group.take().map_or(Ok(()), |named| Ok(named.group.remove()?));
        cleared.and(removed)
    }
}

impl Named {
    fn make(layout: &Layout, path: &str) -> Result<Self> {
        let group = Group::create(layout, path, Purpose::Limit)?;
        match group.allow_devices(&standard_policy()) {
            Ok(()) => Ok(Self { path: path.to_owned(), group }),
            Err(error) => {
                // The first error is the one to report.
                let _ = group.remove();
                Err(error.into())
            }
        }
    }

    fn fits(&self, plan: &ContainerPlan, purpose: Purpose) -> bool {
        // Version 1 does not let a group that allows some devices allow all.
        let devices = !plan.security.privileged;
        self.path == plan.cgroup.path && purpose == Purpose::Limit && devices && self.group.stands()
    }
}

/// The devices of a container that asks for none.
pub(super) fn standard_policy() -> DevicePolicy {
    DevicePolicy::Only(standard_devices())
}
