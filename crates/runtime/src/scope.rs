//! Control groups that systemd makes: each container is a scope, with a process in it from the first moment on.

use std::os::fd::{AsFd, OwnedFd};

use insula_host::cgroup::{self, Entry, Group, Layout};
use insula_host::systemd::{self, Manager, Whose};
use insula_spec::bundle::{UnitPlan, UnitValue};
use insula_spec::plan::{DeviceKind, DeviceRule};
use insula_sys::process::{self, Clone, CloneFlags};
use insula_sys::socket;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};

/// The unit of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    pub name: String,
    pub whose: Whose,
}

impl Unit {
    /// Has systemd know of limits as they stand; what it writes on its way is put right again.
    pub(crate) fn hold(&self, group: &Group) -> Result<()> {
        hold(&mut Manager::connect(self.whose)?, &self.name, group)
    }

    /// Ends what is left of it.
    pub(crate) fn stop(&self) -> Result<()> {
        Ok(Manager::connect(self.whose)?.stop(&self.name)?)
    }
}

fn hold(manager: &mut Manager, unit: &str, group: &Group) -> Result<()> {
    let standing = group.standing()?;
    manager.set(unit, &systemd::properties(&standing))?;
    Ok(group.restore(&standing)?)
}

/// A scope that stands because somebody is in it: systemd makes none that is empty, and takes away what has become
/// so. The container's processes are born in its group, which costs less than to be moved there.
#[derive(Debug)]
pub(crate) struct Scope {
    manager: Manager,
    unit: String,
    holder: Holder,
    /// Of its group, as in a plan.
    pub(crate) path: String,
    /// Of processes, of which the holder is one.
    limit: Option<u64>,
}

impl Scope {
    pub(crate) fn start(plan: &UnitPlan, unit: &Unit, id: &str, devices: Devices<'_>) -> Result<Self> {
        let mut manager = Manager::connect(unit.whose)?;
        let holder = Holder::wait()?;
        manager.start(&plan.name, &properties(plan, id, holder.pid, devices))?;
        let path = cgroup::place(holder.pid, &plan.name)?.ok_or_else(|| {
            let text = format!("systemd has made {} where this process sees no control groups", plan.name);
            Error::Unsupported(text)
        })?;
        if unit.whose == Whose::User {
            reachable(&path)?;
        }
        Ok(Self { manager, unit: plan.name.clone(), holder, path, limit: None })
    }

    /// The limits of its group stand.
    pub(crate) fn limited(&mut self, group: &Group) -> Result<()> {
        self.holder.enter(&group.entry()?)?;
        hold(&mut self.manager, &self.unit, group)?;
        self.limit = group.make_room()?;
        Ok(())
    }

    /// Somebody else is in it, and counts alone from now on.
    pub(crate) fn taken_over(&self, group: &Group) -> Result<()> {
        Ok(group.take_room(self.limit)?)
    }

    /// It stands by itself.
    pub(crate) fn let_go(self) {
        self.holder.end();
    }

    /// Nobody is to be in it.
    pub(crate) fn stop(mut self) {
        // What went wrong before is the error to report.
        let _ = self.manager.stop(&self.unit);
        self.holder.end();
    }
}

/// An ordinary user may begin processes only below what is handed on to the user's manager, cgroups(7), and only from
/// there: not from the session of a login.
fn reachable(path: &str) -> Result<()> {
    let service =
        |path: &str| path.find("/user@").and_then(|at| Some(at + path[at..].find(".service/")? + 8));
    let (own, wanted) = (own_path()?, service(path).map(|end| &path[..end]));
    match wanted {
        Some(wanted) if !own.starts_with(wanted) => Err(Error::Invalid(format!(
            "--systemd-cgroup by an ordinary user from the group {own:?}, which is not the user's manager's: \
             start it by systemd-run --user --scope"
        ))),
        _ => Ok(()),
    }
}

fn own_path() -> Result<String> {
    let path = "/proc/self/cgroup";
    let text = std::fs::read_to_string(path).context("read", path)?;
    let own = text.lines().find_map(|line| line.strip_prefix("0::/"));
    Ok(own.unwrap_or_default().to_owned())
}

/// Where groups of this record are.
pub(crate) fn layout(unit: Option<&Unit>) -> Result<Layout> {
    Ok(if unit.is_some() { Layout::probe_all()? } else { Layout::probe()? })
}

/// What may be used, where systemd has to know: in version 1 it allows everything again whenever it is loaded anew.
pub(crate) type Devices<'a> = Option<&'a [DeviceRule]>;

fn properties(plan: &UnitPlan, id: &str, pid: i32, devices: Devices<'_>) -> Vec<(String, UnitValue)> {
    let text = |text: &str| UnitValue::Text(text.to_owned());
    let own = [
        ("Description", text(&format!("insula container {id}"))),
        ("Slice", text(&plan.slice)),
        ("PIDs", UnitValue::Numbers(vec![pid.unsigned_abs()])),
        ("Delegate", UnitValue::Flag(true)),
        ("DefaultDependencies", UnitValue::Flag(false)),
        ("CollectMode", text("inactive-or-failed")),
        ("CPUAccounting", UnitValue::Flag(true)),
        ("MemoryAccounting", UnitValue::Flag(true)),
        ("TasksAccounting", UnitValue::Flag(true)),
    ];
    let mut all: Vec<(String, UnitValue)> = own.map(|(name, value)| (name.to_owned(), value)).into();
    if let Some(rules) = devices {
        let majors = std::fs::read_to_string("/proc/devices").unwrap_or_default();
        let allowed = rules.iter().flat_map(|rule| allowances(rule, &majors)).collect();
        all.push(("DevicePolicy".to_owned(), text("strict")));
        all.push(("DeviceAllow".to_owned(), UnitValue::Pairs(allowed)));
    }
    // What the annotations say comes last, and wins.
    all.retain(|(name, _)| plan.properties.iter().all(|(said, _)| said != name));
    all.extend(plan.properties.iter().cloned());
    all
}

/// A rule as systemd.resource-control(5) has it: a node by its numbers, or all of a driver by its name.
fn allowances(rule: &DeviceRule, majors: &str) -> Vec<(String, String)> {
    let kinds: &[&str] = match rule.kind {
        DeviceKind::Char => &["char"],
        DeviceKind::Block => &["block"],
        DeviceKind::Any => &["char", "block"],
    };
    let access: String = [(rule.read, 'r'), (rule.write, 'w'), (rule.mknod, 'm')]
        .into_iter()
        .filter_map(|(on, letter)| on.then_some(letter))
        .collect();
    if access.is_empty() {
        return Vec::new();
    }
    let named = |kind: &str| match (rule.major, rule.minor) {
        (Some(major), Some(minor)) => Some(format!("/dev/{kind}/{major}:{minor}")),
        (Some(major), None) => driver(kind, major, majors).map(|name| format!("{kind}-{name}")),
        _ => Some(format!("{kind}-*")),
    };
    kinds.iter().filter_map(|kind| named(kind)).map(|name| (name, access.clone())).collect()
}

/// The driver with this number: proc(5), `/proc/devices`.
fn driver<'a>(kind: &str, major: u32, majors: &'a str) -> Option<&'a str> {
    let heading = if kind == "char" { "Character devices:" } else { "Block devices:" };
    let lines = majors.lines().skip_while(|line| *line != heading).skip(1);
    let mut pairs = lines.take_while(|line| !line.is_empty()).filter_map(|line| line.trim().split_once(' '));
    pairs.find(|(number, _)| number.parse() == Ok(major)).map(|(_, name)| name.trim())
}

/// A process that does nothing until it is let go of, or who made it is gone.
#[derive(Debug)]
struct Holder {
    pid: i32,
    socket: OwnedFd,
}

impl Holder {
    fn wait() -> Result<Self> {
        let (outside, inside) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .context("socketpair", "for a scope")?;
        match process::clone(CloneFlags::empty(), None).context("clone3", "for a scope")? {
            Clone::Parent { pid, .. } => Ok(Self { pid, socket: outside }),
            Clone::Child => {
                drop(outside);
                process::close_from_3_but(&[inside.as_fd()]);
                // The end of what is asked of it is its own.
                while let Ok((1.., tasks)) = socket::receive(inside.as_fd(), &mut [0; 1]) {
                    let entered = Entry::received(tasks).enter().is_ok();
                    let _ = socket::send(inside.as_fd(), &[u8::from(entered)], &[]);
                }
                process::exit_now(0)
            }
        }
    }

    /// Has it go into groups of version 1, which systemd takes away where they are empty and it has no use for them.
    fn enter(&self, entry: &Entry) -> Result<()> {
        let tasks: Vec<_> = entry.tasks().iter().map(AsFd::as_fd).collect();
        if tasks.is_empty() {
            return Ok(());
        }
        let mut entered = [0; 1];
        socket::send(self.socket.as_fd(), &[1], &tasks)
            .and_then(|_| socket::receive(self.socket.as_fd(), &mut entered))
            .context("sendmsg", "to the process of a scope")?;
        if entered == [1] { Ok(()) } else { Err(Error::Invalid("a scope cannot be held".to_owned())) }
    }

    fn end(self) {
        drop(self.socket);
        // It is a child of this process that nobody else waits for.
        let _ = process::wait_for(self.pid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_told_by_number_or_by_their_driver() {
        let majors = "Character devices:\n  1 mem\n136 pts\n\nBlock devices:\n  8 sd\n";
        let rule = |kind, major, minor, mknod: bool| DeviceRule {
            kind,
            major,
            minor,
            read: !mknod,
            write: false,
            mknod,
        };
        let one = |rule: DeviceRule| allowances(&rule, majors);
        let is = |list: &[(&str, &str)]| -> Vec<(String, String)> {
            list.iter().map(|(name, access)| ((*name).to_owned(), (*access).to_owned())).collect()
        };
        assert_eq!(one(rule(DeviceKind::Char, Some(1), Some(3), false)), is(&[("/dev/char/1:3", "r")]));
        assert_eq!(one(rule(DeviceKind::Char, Some(136), None, false)), is(&[("char-pts", "r")]));
        assert_eq!(one(rule(DeviceKind::Block, Some(8), None, true)), is(&[("block-sd", "m")]));
        assert_eq!(one(rule(DeviceKind::Block, Some(9), None, true)), is(&[]));
        assert_eq!(one(rule(DeviceKind::Any, None, None, true)), is(&[("char-*", "m"), ("block-*", "m")]));
    }

    #[test]
    fn what_annotations_say_wins() {
        let plan = UnitPlan {
            name: "x.scope".into(),
            slice: "a.slice".into(),
            properties: vec![("Delegate".into(), UnitValue::Flag(false))],
        };
        let found = properties(&plan, "x", 7, None);
        let delegate: Vec<_> = found.iter().filter(|(name, _)| name == "Delegate").collect();
        assert_eq!(delegate, [&("Delegate".to_owned(), UnitValue::Flag(false))]);
        assert!(found.contains(&("PIDs".to_owned(), UnitValue::Numbers(vec![7]))));
    }
}
