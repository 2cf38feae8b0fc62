//! Which devices a group may use.

mod exceptions;
mod program;

use insula_spec::bundle::{DeviceVerdict, Verdict};
use insula_spec::plan::{DeviceKind, DeviceRule};

use self::exceptions::Exceptions;
use super::error::{Error, Result};
use super::group::Group;

/// Devices that may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DevicePolicy {
    All,
    Only(Vec<DeviceRule>),
    /// Each in effect over those before it, the first over nothing.
    Listed(Vec<DeviceVerdict>),
}

/// Accesses, as the kernel counts them for programs.
const MKNOD: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;
const EVERY: u8 = MKNOD | READ | WRITE;

fn access(rule: &DeviceRule) -> u8 {
    let bits = [(rule.read, READ), (rule.write, WRITE), (rule.mknod, MKNOD)];
    bits.into_iter().filter(|(on, _)| *on).fold(0, |all, (_, bit)| all | bit)
}

/// What every container has: it may use the standard nodes and terminals, and make any node, which it can only
/// open if it may use it.
#[must_use]
pub fn standard() -> Vec<DeviceRule> {
    let mut rules: Vec<DeviceRule> = [DeviceKind::Char, DeviceKind::Block]
        .into_iter()
        .map(|kind| DeviceRule { kind, major: None, minor: None, read: false, write: false, mknod: true })
        .collect();
    // null, zero, full, random, urandom; tty, console, ptmx; terminals.
    let nodes = [
        (1, Some(3)),
        (1, Some(5)),
        (1, Some(7)),
        (1, Some(8)),
        (1, Some(9)),
        (5, Some(0)),
        (5, Some(1)),
        (5, Some(2)),
        (136, None),
    ];
    rules.extend(nodes.into_iter().map(|(major, minor)| DeviceRule {
        kind: DeviceKind::Char,
        major: Some(major),
        minor,
        read: true,
        write: true,
        mknod: true,
    }));
    rules
}

/// For a group that nobody has told anything yet.
pub(super) fn apply(group: &Group, policy: &DevicePolicy) -> Result<()> {
    if *policy == DevicePolicy::All {
        return Ok(());
    }
    match group.v1("devices") {
        Some(member) => Exceptions::of(policy)?.write(member),
        None => program::attach(group.v2().ok_or_else(unable)?, policy),
    }
}

/// For a group that has had one of the old ones.
pub(super) fn change(group: &Group, old: &[DevicePolicy], new: &DevicePolicy) -> Result<()> {
    match group.v1("devices") {
        Some(member) => {
            let (old, new) = over(old, new)?;
            new.write_over(&old, member)
        }
        None => program::replace(group.v2().ok_or_else(unable)?, old, new),
    }
}

/// Whether it can be, before anything is written.
pub(super) fn check_change(group: &Group, old: &[DevicePolicy], new: &DevicePolicy) -> Result<()> {
    match group.v1("devices") {
        Some(_) => over(old, new).map(drop),
        None => program::ours(group.v2().ok_or_else(unable)?, old).map(drop),
    }
}

fn over(old: &[DevicePolicy], new: &DevicePolicy) -> Result<(Vec<Exceptions>, Exceptions)> {
    let old = old.iter().map(Exceptions::of).collect::<Result<Vec<_>>>()?;
    let new = Exceptions::of(new)?;
    new.check_over(&old)?;
    Ok((old, new))
}

fn unable() -> Error {
    Error::Unsupported("the host has no devices controller")
}

impl DevicePolicy {
    /// Each in effect over those before it, the first over nothing.
    fn verdicts(&self) -> Vec<(Verdict, DeviceRule)> {
        match self {
            Self::All => {
                let kind = DeviceKind::Any;
                let all = DeviceRule { kind, major: None, minor: None, read: true, write: true, mknod: true };
                vec![(Verdict::Allow, all)]
            }
            Self::Only(rules) => rules.iter().map(|rule| (Verdict::Allow, rule.clone())).collect(),
            Self::Listed(list) => list.iter().map(|each| (each.verdict, each.rule.clone())).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn rule(kind: DeviceKind, major: Option<u32>, minor: Option<u32>, access: &str) -> DeviceRule {
        let has = |letter| access.contains(letter);
        DeviceRule { kind, major, minor, read: has('r'), write: has('w'), mknod: has('m') }
    }
}
