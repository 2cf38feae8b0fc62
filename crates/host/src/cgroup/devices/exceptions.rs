//! Version 1: a group allows everything or nothing, with exceptions (kernel document `admin-guide/cgroup-v1/devices`).

use std::collections::BTreeMap;

use insula_spec::bundle::Verdict;
use insula_spec::plan::{DeviceKind, DeviceRule};

use super::super::error::{Error, Result};
use super::super::member::Member;
use super::{DevicePolicy, EVERY, MKNOD, READ, WRITE, access};

/// What stands in a group. Of all exceptions that are about a device one has every access that any of them has: the
/// kernel looks for one that has all that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Exceptions {
    /// Of what is no exception.
    default: Verdict,
    all: BTreeMap<Devices, u8>,
}

/// Of exceptions, and of rules that they are made of: each new one meets all that there are.
const MOST: usize = 4096;

/// Devices of one kind; a number that is not there is any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Devices {
    kind: char,
    major: Option<u32>,
    minor: Option<u32>,
}

impl Devices {
    /// A rule about either kind is two: the kernel takes one of type `a` for everything, whatever its numbers are.
    fn of(rule: &DeviceRule) -> impl Iterator<Item = Self> {
        let kinds = match rule.kind {
            DeviceKind::Any => "bc",
            DeviceKind::Block => "b",
            DeviceKind::Char => "c",
        };
        let (major, minor) = (rule.major, rule.minor);
        kinds.chars().map(move |kind| Self { kind, major, minor })
    }

    /// Those that are in both.
    fn meet(&self, other: &Self) -> Option<Self> {
        let number = |one: Option<u32>, other: Option<u32>| match (one, other) {
            (Some(one), Some(other)) if one != other => None,
            (one, other) => Some(one.or(other)),
        };
        let (major, minor) = (number(self.major, other.major)?, number(self.minor, other.minor)?);
        (self.kind == other.kind).then_some(Self { kind: self.kind, major, minor })
    }

    /// As the kernel reads it.
    fn line(&self, access: u8) -> String {
        let number = |n: Option<u32>| n.map_or_else(|| String::from("*"), |n| n.to_string());
        let letters = [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')];
        let letters: String =
            letters.into_iter().filter(|(bit, _)| access & bit != 0).map(|(_, c)| c).collect();
        format!("{} {}:{} {letters}", self.kind, number(self.major), number(self.minor))
    }
}

const TOO_MANY: Error = Error::Unsupported(
    "version 1 of control groups with more than 4096 device rules, or as many that they come to with those that two of \
     them have in common",
);

impl Exceptions {
    pub(super) fn of(policy: &DevicePolicy) -> Result<Self> {
        if *policy == DevicePolicy::All {
            return Ok(Self { default: Verdict::Allow, all: BTreeMap::new() });
        }
        let list = policy.verdicts();
        if list.len() > MOST {
            return Err(TOO_MANY);
        }
        let told = match Self::over(Verdict::Deny, &list)? {
            None => Self::over(Verdict::Allow, &list)?,
            told => told,
        };
        told.ok_or(Error::Unsupported(
            "version 1 of control groups cannot deny a part of the devices that a pattern allows, nor allow a part of \
             those that one denies",
        ))
    }

    /// None where a part of a pattern would have to be taken out of it.
    fn over(default: Verdict, list: &[(Verdict, DeviceRule)]) -> Result<Option<Self>> {
        let mut told = Self { default, all: BTreeMap::new() };
        if default == Verdict::Allow {
            // A list begins with nothing.
            for kind in ['b', 'c'] {
                told.add(Devices { kind, major: None, minor: None }, EVERY)?;
            }
        }
        for (verdict, rule) in list {
            for devices in Devices::of(rule) {
                if *verdict != default {
                    told.add(devices, access(rule))?;
                } else if told.remove(devices, access(rule)).is_none() {
                    return Ok(None);
                }
            }
        }
        Ok(Some(told))
    }

    fn add(&mut self, devices: Devices, access: u8) -> Result<()> {
        let met = self.all.iter().filter_map(|(known, has)| Some((known.meet(&devices)?, has | access)));
        let met: Vec<(Devices, u8)> =
            met.chain([(devices, access)]).filter(|(_, access)| *access != 0).collect();
        for (devices, access) in met {
            *self.all.entry(devices).or_default() |= access;
        }
        if self.all.len() > MOST { Err(TOO_MANY) } else { Ok(()) }
    }

    fn remove(&mut self, devices: Devices, access: u8) -> Option<()> {
        for (known, has) in &mut self.all {
            match known.meet(&devices) {
                Some(met) if met == *known => *has &= !access,
                Some(_) if *has & access != 0 => return None,
                _ => {}
            }
        }
        self.all.retain(|_, has| *has != 0);
        Some(())
    }

    /// The files that exceptions are added by and taken away by.
    fn files(&self) -> (&'static str, &'static str) {
        match self.default {
            Verdict::Deny => ("devices.allow", "devices.deny"),
            Verdict::Allow => ("devices.deny", "devices.allow"),
        }
    }

    /// Whatever has stood there.
    pub(super) fn write(&self, member: &Member) -> Result<()> {
        let (add, begin) = self.files();
        member.write(begin, "a")?;
        member.write_each(add, &self.beyond(&BTreeMap::new()))
    }

    /// One of these has stood there, whole or in part: what may be used before and after may be used all the time.
    pub(super) fn write_over(&self, old: &[Self], member: &Member) -> Result<()> {
        let (add, remove) = self.files();
        let known = if let [old] = old { &old.all } else { &BTreeMap::new() };
        member.write_each(add, &self.beyond(known))?;
        old.iter().try_for_each(|old| member.write_each(remove, &old.beyond(&self.all)))
    }

    /// Another default would begin with everything allowed, or nothing, which whoever runs would see; and with groups
    /// below the kernel refuses it.
    pub(super) fn check_over(&self, old: &[Self]) -> Result<()> {
        if old.iter().all(|old| old.default == self.default) {
            return Ok(());
        }
        Err(Error::Unsupported(
            "version 1 of control groups cannot change, while processes run, whether devices are allowed or denied that \
             no rule is about",
        ))
    }

    /// Lines of what is here and not there.
    fn beyond(&self, other: &BTreeMap<Devices, u8>) -> Vec<String> {
        let more = self.all.iter().map(|(devices, has)| (devices, has & !other.get(devices).unwrap_or(&0)));
        more.filter(|(_, access)| *access != 0).map(|(devices, access)| devices.line(access)).collect()
    }
}

#[cfg(test)]
mod tests {
    use insula_spec::bundle::DeviceVerdict;

    use super::super::tests::rule;
    use super::*;

    const ANY: Option<u32> = None;

    fn listed(list: &[(Verdict, DeviceRule)]) -> Result<Exceptions> {
        let list = list.iter().map(|(verdict, rule)| DeviceVerdict { verdict: *verdict, rule: rule.clone() });
        Exceptions::of(&DevicePolicy::Listed(list.collect()))
    }

    fn text(exceptions: &Exceptions) -> Vec<String> {
        exceptions.beyond(&BTreeMap::new())
    }

    #[test]
    fn what_is_allowed_alone_is_an_exception() {
        let only = |rules: &[DeviceRule]| Exceptions::of(&DevicePolicy::Only(rules.to_vec())).unwrap();
        assert_eq!(text(&only(&[rule(DeviceKind::Char, Some(13), ANY, "rwm")])), ["c 13:* rwm"]);
        assert_eq!(text(&only(&[rule(DeviceKind::Any, ANY, ANY, "m")])), ["b *:* m", "c *:* m"]);
        assert!(text(&only(&[rule(DeviceKind::Block, Some(8), Some(0), "")])).is_empty());
        // One entry has all that the device may be used for.
        let both = [rule(DeviceKind::Char, Some(1), ANY, "r"), rule(DeviceKind::Char, ANY, Some(3), "w")];
        assert_eq!(text(&only(&both)), ["c *:3 w", "c 1:* r", "c 1:3 rw"]);
        assert_eq!(only(&both).default, Verdict::Deny);
        assert_eq!(only(&[]).files(), ("devices.allow", "devices.deny"));
        let all = Exceptions::of(&DevicePolicy::All).unwrap();
        assert_eq!((all.files(), text(&all)), (("devices.deny", "devices.allow"), vec![]));
    }

    #[test]
    fn what_is_denied_is_taken_out_or_an_exception() {
        let ten = |minor, access| rule(DeviceKind::Char, Some(10), minor, access);
        let all = rule(DeviceKind::Any, ANY, ANY, "rwm");
        let (allow, deny) = (Verdict::Allow, Verdict::Deny);
        let found = listed(&[(allow, ten(Some(200), "rw")), (deny, ten(ANY, "w"))]).unwrap();
        assert_eq!((text(&found), found.default), (vec!["c 10:200 r".to_owned()], deny));
        let found = listed(&[(allow, all.clone()), (deny, ten(Some(200), "rw"))]).unwrap();
        assert_eq!((text(&found), found.default), (vec!["c 10:200 rw".to_owned()], allow));
        // Back again; and a whole kind is what there is of it.
        let again = [(allow, all.clone()), (deny, ten(Some(200), "rw")), (allow, ten(ANY, "w"))];
        assert_eq!(text(&listed(&again).unwrap()), ["c 10:200 r"]);
        let kind =
            [(allow, all), (deny, rule(DeviceKind::Char, ANY, ANY, "rwm")), (allow, ten(Some(1), "r"))];
        assert_eq!(text(&listed(&kind).unwrap()), ["b *:* rwm", "c 10:1 r"]);
        let hole = [(allow, ten(ANY, "rw")), (deny, ten(Some(200), "r"))];
        assert!(matches!(listed(&hole), Err(Error::Unsupported(_))));
    }

    #[test]
    fn what_rules_come_to_is_bounded() {
        // Each of one half meets each of the other.
        let rules = |n: u32| {
            let majors = (0..n).map(|major| rule(DeviceKind::Char, Some(major), ANY, "r"));
            let minors = (0..n).map(|minor| rule(DeviceKind::Char, ANY, Some(minor), "w"));
            DevicePolicy::Only(majors.chain(minors).collect())
        };
        assert_eq!(text(&Exceptions::of(&rules(60)).unwrap()).len(), 60 * 60 + 2 * 60);
        assert!(matches!(Exceptions::of(&rules(64)), Err(Error::Unsupported(_))));
        assert!(matches!(Exceptions::of(&rules(2049)), Err(Error::Unsupported(_))));
    }

    #[test]
    fn another_default_is_refused() {
        let (all, none) = (DevicePolicy::All, DevicePolicy::Only(Vec::new()));
        let [all, none] = [all, none].map(|policy| Exceptions::of(&policy).unwrap());
        assert!(all.check_over(&[all.clone(), none.clone()]).is_err());
        all.check_over(std::slice::from_ref(&all)).unwrap();
        none.check_over(std::slice::from_ref(&none)).unwrap();
    }

    #[test]
    fn only_what_is_different_is_written() {
        let only = |text: &[&str]| {
            let rules = text.iter().map(|access| rule(DeviceKind::Char, Some(1), Some(3), access));
            Exceptions::of(&DevicePolicy::Only(rules.collect())).unwrap()
        };
        let (old, new) = (only(&["r", "m"]), only(&["rw"]));
        assert_eq!(new.beyond(&old.all), ["c 1:3 w"]);
        assert_eq!(old.beyond(&new.all), ["c 1:3 m"]);
        assert!(new.beyond(&new.all).is_empty());
    }
}
