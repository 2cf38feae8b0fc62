//! Version 2: a program of type `BPF_PROG_TYPE_CGROUP_DEVICE` decides.

use std::os::fd::{AsFd, OwnedFd};

use insula_spec::bundle::Verdict;
use insula_spec::plan::{DeviceKind, DeviceRule};
use insula_sys::bpf::{self, Instruction};
use rustix::io::Errno;

use super::super::error::{Context, Error, Result};
use super::super::member::Member;
use super::{DevicePolicy, EVERY, access};

/// Programs add up and a device must pass all of them: a second call narrows.
pub(super) fn attach(member: &Member, policy: &DevicePolicy) -> Result<()> {
    let program = bpf::load_device_program(&assemble(&policy.verdicts()))
        .context("bpf(BPF_PROG_LOAD)", "for device rules")
        .map_err(unsupported)?;
    bpf::attach_device_program(member.folder.as_fd(), program.as_fd())
        .context("bpf(BPF_PROG_ATTACH)", member.path.display())
        .map_err(unsupported)
}

/// In the place of the one that is attached; those of others stay.
pub(super) fn replace(member: &Member, old: &[DevicePolicy], policy: &DevicePolicy) -> Result<()> {
    let folder = member.folder.as_fd();
    let before = ours(member, old)?;
    if *policy != DevicePolicy::All {
        attach(member, policy)?;
    }
    before.iter().try_for_each(|program| {
        bpf::detach_device_program(folder, program.as_fd())
            .context("bpf(BPF_PROG_DETACH)", member.path.display())
    })
}

/// Those that are attached for one of these policies.
pub(super) fn ours(member: &Member, old: &[DevicePolicy]) -> Result<Vec<OwnedFd>> {
    let found = bpf::device_programs(member.folder.as_fd())
        .context("bpf(BPF_PROG_QUERY)", member.path.display())
        .map_err(unsupported)?;
    if found.is_empty() && !old.contains(&DevicePolicy::All) {
        return Err(Error::Unsupported(
            "the program that decides over the devices of this group has no name by which it could be replaced: an \
             earlier version has made it",
        ));
    }
    Ok(found)
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

/// What is asked for and not settled yet.
const ASKED: u8 = 3;

/// From the last entry to the first: each settles, for its devices, the accesses that it is about. The kernel's
/// context, `struct bpf_cgroup_dev_ctx`, is in r1: accesses in the upper and type in the lower half of
/// the first word, then major and minor. 1 allows, 0 denies.
fn assemble(list: &[(Verdict, DeviceRule)]) -> Vec<Instruction> {
    let mut program = vec![
        bpf::load_word(2, 1, 0),
        bpf::move_register(ASKED, 2),
        bpf::and(2, 0xffff),
        bpf::shift_right(ASKED, 16),
        bpf::load_word(4, 1, 4),
        bpf::load_word(5, 1, 8),
    ];
    for (verdict, rule) in list.iter().rev().filter(|(_, rule)| access(rule) != 0) {
        program.extend(one(*verdict, rule));
    }
    program.extend([bpf::move_value(0, 0), bpf::exit()]);
    program
}

fn one(verdict: Verdict, rule: &DeviceRule) -> Vec<Instruction> {
    let kind = match rule.kind {
        DeviceKind::Any => None,
        DeviceKind::Block => Some(1),
        DeviceKind::Char => Some(2),
    };
    let numbers =
        [(4, rule.major), (5, rule.minor)].map(|(register, number)| (register, number.map(u32::cast_signed)));
    let checks: Vec<(u8, i32)> = [(2, kind)]
        .into_iter()
        .chain(numbers)
        .filter_map(|(register, value)| Some((register, value?)))
        .collect();
    let end = match verdict {
        // With nothing left to ask for it may be used.
        Verdict::Allow => vec![
            bpf::and(ASKED, i32::from(EVERY & !access(rule))),
            bpf::jump_unless_equal(ASKED, 0, 2),
            bpf::move_value(0, 1),
            bpf::exit(),
        ],
        Verdict::Deny => vec![
            bpf::move_register(1, ASKED),
            bpf::and(1, i32::from(access(rule))),
            bpf::jump_if_equal(1, 0, 2),
            bpf::move_value(0, 0),
            bpf::exit(),
        ],
    };
    let length = checks.len() + end.len();
    let checks = checks.into_iter().enumerate();
    // Past what comes after it.
    let jumps = checks
        .map(|(at, (register, value))| bpf::jump_unless_equal(register, value, (length - at - 1) as i16));
    jumps.chain(end).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::rule;
    use super::*;

    fn words(list: &[(Verdict, DeviceRule)]) -> Vec<u64> {
        assemble(list).into_iter().map(|instruction| u64::from_le_bytes(instruction.bytes())).collect()
    }

    #[test]
    fn golden_program() {
        let null = rule(DeviceKind::Char, Some(1), Some(3), "rw");
        assert_eq!(
            words(&[(Verdict::Deny, rule(DeviceKind::Any, None, None, "m")), (Verdict::Allow, null)]),
            [
                0x0000_0000_0000_1261, // w2 = *(u32 *)(r1 + 0)
                0x0000_0000_0000_23bf, // r3 = r2
                0x0000_ffff_0000_0257, // r2 &= 0xffff
                0x0000_0010_0000_0377, // r3 >>= 16
                0x0000_0000_0004_1461, // w4 = *(u32 *)(r1 + 4)
                0x0000_0000_0008_1561, // w5 = *(u32 *)(r1 + 8)
                0x0000_0002_0006_0256, // if w2 != 2 goto +6
                0x0000_0001_0005_0456, // if w4 != 1 goto +5
                0x0000_0003_0004_0556, // if w5 != 3 goto +4
                0x0000_0001_0000_0357, // r3 &= 1
                0x0000_0000_0002_0356, // if w3 != 0 goto +2
                0x0000_0001_0000_00b7, // r0 = 1
                0x0000_0000_0000_0095, // exit
                0x0000_0000_0000_31bf, // r1 = r3
                0x0000_0001_0000_0157, // r1 &= 1
                0x0000_0000_0002_0116, // if w1 == 0 goto +2
                0x0000_0000_0000_00b7, // r0 = 0
                0x0000_0000_0000_0095, // exit
                0x0000_0000_0000_00b7, // r0 = 0
                0x0000_0000_0000_0095, // exit
            ]
        );
    }

    #[test]
    fn what_is_about_no_access_is_left_out() {
        let nothing = rule(DeviceKind::Char, Some(1), Some(3), "");
        assert_eq!(words(&[(Verdict::Allow, nothing)]), words(&[]));
    }
}
