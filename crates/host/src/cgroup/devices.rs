//! Which devices a group may use.

use std::os::fd::AsFd;

use insula_spec::plan::{DeviceKind, DeviceRule};
use insula_sys::bpf::{self, Instruction};
use rustix::io::Errno;

use super::error::{Context, Error, Result};
use super::group::Group;
use super::member::Member;

/// Devices that may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DevicePolicy {
    All,
    Only(Vec<DeviceRule>),
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

pub(super) fn apply(group: &Group, policy: &DevicePolicy) -> Result<()> {
    let DevicePolicy::Only(rules) = policy else { return Ok(()) };
    if let Some(member) = group.v1("devices") {
        member.write("devices.deny", "a")?;
        let lines: Vec<String> = rules.iter().flat_map(lines).collect();
        return member.write_each("devices.allow", &lines);
    }
    let member = group.v2().ok_or(Error::Unsupported("the host has no devices controller"))?;
    attach(member, rules)
}

/// Programs add up and a device must pass all of them: a second call narrows.
fn attach(member: &Member, rules: &[DeviceRule]) -> Result<()> {
    let program = bpf::load_device_program(&assemble(rules))
        .context("bpf(BPF_PROG_LOAD)", "for device rules")
        .map_err(unsupported)?;
    bpf::attach_device_program(member.folder.as_fd(), program.as_fd())
        .context("bpf(BPF_PROG_ATTACH)", member.path.display())
        .map_err(unsupported)
}

/// A kernel without CONFIG_BPF_SYSCALL has no such call, one without CONFIG_CGROUP_BPF no such program.
fn unsupported(error: Error) -> Error {
    if error.is(Errno::NOSYS) || error.is(Errno::INVAL) {
        return Error::Unsupported(
            "the kernel cannot restrict devices: it lacks device programs of control groups (CONFIG_CGROUP_BPF)",
        );
    }
    error
}

/// A version 1 rule of type `a` ignores its numbers and allows everything, hence a line per type.
fn lines(rule: &DeviceRule) -> impl Iterator<Item = String> {
    let access: String = [(rule.read, 'r'), (rule.write, 'w'), (rule.mknod, 'm')]
        .into_iter()
        .filter_map(|(on, letter)| on.then_some(letter))
        .collect();
    let kinds = match rule.kind {
        DeviceKind::Any => "bc",
        DeviceKind::Block => "b",
        DeviceKind::Char => "c",
    };
    let number = |n: Option<u32>| n.map_or_else(|| String::from("*"), |n| n.to_string());
    let numbers = format!("{}:{}", number(rule.major), number(rule.minor));
    let kinds = if access.is_empty() { "" } else { kinds };
    kinds.chars().map(move |kind| format!("{kind} {numbers} {access}"))
}

const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;

/// The program of type `BPF_PROG_TYPE_CGROUP_DEVICE` that allows what a rule allows. The kernel's
/// context, `struct bpf_cgroup_dev_ctx`, is in r1: access in the upper and type in the lower half of
/// the first word, then major and minor. 1 allows, 0 denies.
fn assemble(rules: &[DeviceRule]) -> Vec<Instruction> {
    let mut program = vec![
        bpf::load_word(2, 1, 0),
        bpf::move_register(3, 2),
        bpf::and(2, 0xffff),
        bpf::shift_right(3, 16),
        bpf::load_word(4, 1, 4),
        bpf::load_word(5, 1, 8),
    ];
    for rule in rules {
        program.extend(assemble_rule(rule));
        if allows_all(rule) {
            // The verifier refuses what cannot be reached.
            return program;
        }
    }
    program.extend([bpf::move_value(0, 0), bpf::exit()]);
    program
}

fn allows_all(rule: &DeviceRule) -> bool {
    let any = rule.kind == DeviceKind::Any && rule.major.is_none() && rule.minor.is_none();
    any && rule.read && rule.write && rule.mknod
}

fn assemble_rule(rule: &DeviceRule) -> Vec<Instruction> {
    let kind = match rule.kind {
        DeviceKind::Any => None,
        DeviceKind::Block => Some(1),
        DeviceKind::Char => Some(2),
    };
    let access = [(rule.read, READ), (rule.write, WRITE), (rule.mknod, MKNOD)];
    let denied = access.into_iter().filter(|(on, _)| !on).fold(0, |mask, (_, bit)| mask | bit);
    // Each check is taken apart from its jump, whose distance to the next rule is known last.
    let mut checks: Vec<(Vec<Instruction>, u8, i32)> = Vec::new();
    if let Some(kind) = kind {
        checks.push((vec![], 2, kind));
    }
    if denied != 0 {
        checks.push((vec![bpf::move_register(1, 3), bpf::and(1, denied)], 1, 0));
    }
    checks.extend(rule.major.map(|major| (vec![], 4, major.cast_signed())));
    checks.extend(rule.minor.map(|minor| (vec![], 5, minor.cast_signed())));
    let length = checks.iter().map(|(before, ..)| before.len() + 1).sum::<usize>() + 2;
    let mut program = Vec::with_capacity(length);
    for (before, register, value) in checks {
        program.extend(before);
        let distance = (length - program.len() - 1) as i16;
        program.push(bpf::jump_unless_equal(register, value, distance));
    }
    program.extend([bpf::move_value(0, 1), bpf::exit()]);
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(kind: DeviceKind, major: Option<u32>, minor: Option<u32>, access: &str) -> DeviceRule {
        let has = |letter| access.contains(letter);
        DeviceRule { kind, major, minor, read: has('r'), write: has('w'), mknod: has('m') }
    }

    #[test]
    fn lines_of_version_1() {
        let text = |rule: DeviceRule| lines(&rule).collect::<Vec<_>>();
        assert_eq!(text(rule(DeviceKind::Char, Some(13), None, "rwm")), ["c 13:* rwm"]);
        assert_eq!(text(rule(DeviceKind::Any, None, None, "m")), ["b *:* m", "c *:* m"]);
        assert_eq!(text(rule(DeviceKind::Block, Some(8), Some(0), "")), Vec::<String>::new());
    }

    #[test]
    fn nothing_follows_what_allows_all() {
        let all = rule(DeviceKind::Any, None, None, "rwm");
        let program = assemble(&[all.clone(), rule(DeviceKind::Char, Some(1), None, "r")]);
        assert_eq!(program, assemble(&[all]));
        assert_eq!(program[6..], [bpf::move_value(0, 1), bpf::exit()]);
    }

    #[test]
    fn golden_program() {
        let words: Vec<u64> = assemble(&[rule(DeviceKind::Char, Some(1), Some(3), "rw")])
            .into_iter()
            .map(|instruction| u64::from_le_bytes(instruction.bytes()))
            .collect();
        assert_eq!(
            words,
            [
                0x0000_0000_0000_1261, // w2 = *(u32 *)(r1 + 0)
                0x0000_0000_0000_23bf, // r3 = r2
                0x0000_ffff_0000_0257, // r2 &= 0xffff
                0x0000_0010_0000_0377, // r3 >>= 16
                0x0000_0000_0004_1461, // w4 = *(u32 *)(r1 + 4)
                0x0000_0000_0008_1561, // w5 = *(u32 *)(r1 + 8)
                0x0000_0002_0007_0256, // if w2 != 2 goto +7
                0x0000_0000_0000_31bf, // r1 = r3
                0x0000_0001_0000_0157, // r1 &= 1
                0x0000_0000_0004_0156, // if w1 != 0 goto +4
                0x0000_0001_0003_0456, // if w4 != 1 goto +3
                0x0000_0003_0002_0556, // if w5 != 3 goto +2
                0x0000_0001_0000_00b7, // r0 = 1
                0x0000_0000_0000_0095, // exit
                0x0000_0000_0000_00b7, // r0 = 0
                0x0000_0000_0000_0095, // exit
            ]
        );
    }
}
