//! Which devices a group may use.

use insula_spec::plan::{DeviceKind, DeviceRule};

use super::error::{Error, Result};
use super::group::Group;

/// Devices that may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DevicePolicy {
    All,
    Only(Vec<DeviceRule>),
}

pub(super) fn apply(group: &Group, policy: &DevicePolicy) -> Result<()> {
    let DevicePolicy::Only(rules) = policy else { return Ok(()) };
    if let Some(member) = group.v1("devices") {
        member.write("devices.deny", "a")?;
        let lines: Vec<String> = rules.iter().map(line).collect();
        return member.write_each("devices.allow", &lines);
    }
    if group.v2().is_some() {
        return Err(Error::Unsupported("devices cannot be limited on version 2 of control groups yet"));
    }
    Err(Error::Unsupported("the host has no devices controller"))
}

/// `c 1:3 rwm`, as `devices.allow` wants it.
fn line(rule: &DeviceRule) -> String {
    let kind = match rule.kind {
        DeviceKind::Any => 'a',
        DeviceKind::Char => 'c',
        DeviceKind::Block => 'b',
    };
    let number = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
    let mut line = format!("{kind} {}:{} ", number(rule.major), number(rule.minor));
    for (allowed, letter) in [(rule.read, 'r'), (rule.write, 'w'), (rule.mknod, 'm')] {
        if allowed {
            line.push(letter);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_written_as_the_kernel_reads_them() {
        let rule = DeviceRule {
            kind: DeviceKind::Char,
            major: Some(1),
            minor: None,
            read: true,
            write: false,
            mknod: true,
        };
        assert_eq!(line(&rule), "c 1:* rm");
    }
}
