//! Control groups that systemd makes: each container is a scope, with a process in it from the first moment on.

use std::os::fd::{AsFd, OwnedFd};

use insula_host::cgroup::{self, DevicePolicy, Entry, Group, Layout};
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
    /// The systemd that has it.
    pub(crate) fn connect(&self) -> Result<Held<'_>> {
        Ok(Held { manager: Manager::connect(self.whose)?, unit: &self.name })
    }

    /// Ends what is left of it.
    pub(crate) fn stop(&self) -> Result<()> {
        Ok(Manager::connect(self.whose)?.stop(&self.name)?)
    }
}

/// A unit and the connection to who has it.
pub(crate) struct Held<'a> {
    manager: Manager,
    unit: &'a str,
}

impl Held<'_> {
    /// Has systemd know of other devices, where it has to; then, for the user, what it cannot know. It begins anew with
    /// a list that is empty.
    pub(crate) fn allow(&mut self, policy: &DevicePolicy) -> Result<Option<Vec<String>>> {
        if Layout::probe_all()?.v1("devices").is_none() {
            return Ok(None);
        }
        let mut warnings = Vec::new();
        let mut all = vec![
            ("DevicePolicy".to_owned(), UnitValue::Text("auto".to_owned())),
            ("DeviceAllow".to_owned(), UnitValue::Pairs(Vec::new())),
        ];
        all.extend(device_properties(policy, &mut warnings));
        self.manager.set(self.unit, &all)?;
        Ok(Some(warnings))
    }

    /// Has systemd know of limits as they stand.
    pub(crate) fn hold(&mut self, group: &Group) -> Result<()> {
        hold(&mut self.manager, self.unit, group)
    }
}

/// What systemd writes on its way, which is all that it knows of the group, is put right again.
fn hold(manager: &mut Manager, unit: &str, group: &Group) -> Result<()> {
    let standing = group.standing()?;
    let told = manager.limit(unit, systemd::properties(&standing));
    // It may have written before it refused.
    group.restore(&standing)?;
    Ok(told?)
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
    /// For the user.
    pub(crate) warnings: Vec<String>,
}

impl Scope {
    pub(crate) fn start(plan: &UnitPlan, unit: &Unit, id: &str, devices: Devices<'_>) -> Result<Self> {
        let mut manager = Manager::connect(unit.whose)?;
        let holder = Holder::wait()?;
        let (properties, warnings) = properties(plan, id, holder.pid, devices);
        manager.start(&plan.name, &properties)?;
        let path = cgroup::place(holder.pid, &plan.name)?.ok_or_else(|| {
            let text = format!("systemd has made {} where this process sees no control groups", plan.name);
            Error::Unsupported(text)
        })?;
        if unit.whose == Whose::User {
            reachable(&path)?;
        }
        Ok(Self { manager, unit: plan.name.clone(), holder, path, limit: None, warnings })
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
pub(crate) type Devices<'a> = Option<&'a DevicePolicy>;

/// What systemd is to know, and for the user what it cannot.
fn properties(
    plan: &UnitPlan,
    id: &str,
    pid: i32,
    devices: Devices<'_>,
) -> (Vec<(String, UnitValue)>, Vec<String>) {
    let mut warnings = Vec::new();
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
    if let Some(policy) = devices {
        all.extend(device_properties(policy, &mut warnings));
    }
    // What the annotations say comes last, and wins.
    all.retain(|(name, _)| plan.properties.iter().all(|(said, _)| said != name));
    all.extend(plan.properties.iter().cloned());
    (all, warnings)
}

/// In version 1 systemd writes what it knows of devices with every other property, and has no word for those that are
/// denied: it would allow them all.
pub(crate) fn check_devices(policy: &DevicePolicy) -> Result<()> {
    if matches!(policy, DevicePolicy::Listed(_)) {
        return Err(Error::Unsupported(
            "resources.devices: with --systemd-cgroup on version 1 of control groups, what denies a part of the devices \
             that are allowed"
                .to_owned(),
        ));
    }
    Ok(())
}

fn device_properties(policy: &DevicePolicy, warnings: &mut Vec<String>) -> Vec<(String, UnitValue)> {
    let rules = match policy {
        // What is denied is no property: see `check_devices`.
        DevicePolicy::All | DevicePolicy::Listed(_) => return Vec::new(),
        DevicePolicy::Only(rules) => rules,
    };
    let majors = std::fs::read_to_string("/proc/devices").unwrap_or_default();
    let mut unknown = Vec::new();
    let allowed = rules.iter().flat_map(|rule| allowances(rule, &majors, &mut unknown)).collect();
    warnings.extend(unknown.iter().map(|rule| {
        format!("systemd has no word for the devices {rule}: they are refused once it is loaded anew")
    }));
    let strict = ("DevicePolicy".to_owned(), UnitValue::Text("strict".to_owned()));
    vec![strict, ("DeviceAllow".to_owned(), UnitValue::Pairs(allowed))]
}

/// A rule as systemd.resource-control(5) has it: a node by its numbers, all of a driver by its name, or all there are.
/// What it has no words for is added to `unknown`.
fn allowances(rule: &DeviceRule, majors: &str, unknown: &mut Vec<String>) -> Vec<(String, String)> {
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
    let mut all = Vec::new();
    for kind in kinds {
        let name = match (rule.major, rule.minor) {
            (Some(major), Some(minor)) => Some(format!("/dev/{kind}/{major}:{minor}")),
            (Some(major), None) => driver(kind, major, majors).map(|name| format!("{kind}-{name}")),
            (None, None) => Some(format!("{kind}-*")),
            (None, Some(_)) => None,
        };
        match name {
            Some(name) => all.push((name, access.clone())),
            None => unknown.push(format!("{kind} {}:{}", number(rule.major), number(rule.minor))),
        }
    }
    all
}

fn number(number: Option<u32>) -> String {
    number.map_or_else(|| "*".to_owned(), |number| number.to_string())
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
        let mut unknown = Vec::new();
        let mut one = |rule: DeviceRule| allowances(&rule, majors, &mut unknown);
        let is = |list: &[(&str, &str)]| -> Vec<(String, String)> {
            list.iter().map(|(name, access)| ((*name).to_owned(), (*access).to_owned())).collect()
        };
        assert_eq!(one(rule(DeviceKind::Char, Some(1), Some(3), false)), is(&[("/dev/char/1:3", "r")]));
        assert_eq!(one(rule(DeviceKind::Char, Some(136), None, false)), is(&[("char-pts", "r")]));
        assert_eq!(one(rule(DeviceKind::Block, Some(8), None, true)), is(&[("block-sd", "m")]));
        assert_eq!(one(rule(DeviceKind::Block, Some(9), None, true)), is(&[]));
        assert_eq!(one(rule(DeviceKind::Any, None, None, true)), is(&[("char-*", "m"), ("block-*", "m")]));
        // A number of each driver is not all of them.
        assert_eq!(one(rule(DeviceKind::Char, None, Some(3), false)), is(&[]));
        assert_eq!(unknown, ["block 9:*", "char *:3"]);
    }

    #[test]
    fn systemd_has_no_word_for_what_is_denied() {
        check_devices(&DevicePolicy::All).unwrap();
        check_devices(&DevicePolicy::Only(Vec::new())).unwrap();
        assert!(matches!(check_devices(&DevicePolicy::Listed(Vec::new())), Err(Error::Unsupported(_))));
    }

    #[test]
    fn what_annotations_say_wins() {
        let plan = UnitPlan {
            name: "x.scope".into(),
            slice: "a.slice".into(),
            properties: vec![("Delegate".into(), UnitValue::Flag(false))],
        };
        let (found, _) = properties(&plan, "x", 7, None);
        let delegate: Vec<_> = found.iter().filter(|(name, _)| name == "Delegate").collect();
        assert_eq!(delegate, [&("Delegate".to_owned(), UnitValue::Flag(false))]);
        assert!(found.contains(&("PIDs".to_owned(), UnitValue::Numbers(vec![7]))));
    }
}
