//! The built-in profile as libseccomp compiles it, compared with ours number by number. Needs gcc
//! and libseccomp's header (Debian: libseccomp-dev); skipped visibly without them.

#![cfg(target_arch = "x86_64")]

use std::collections::HashSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use insula_sys::seccomp::Instruction;

use super::rules::{Arch, Calls, Condition, Test, X32_BIT};
use super::syscalls::{NONE, TABLE};
use super::tests::{AUDIT_X86, AUDIT_X86_64, run};
use super::*;

/// Reads lines of a name, an action and up to one condition (index, operator, two values); writes
/// the program to standard output and the names that it does not know to standard error.
const SOURCE: &str = r#"
#include <seccomp.h>
#include <stdio.h>
int main(void) {
    scmp_filter_ctx context = seccomp_init(SCMP_ACT_ERRNO(1));
    char name[64];
    unsigned action, count, index, op;
    unsigned long long first, second;
    seccomp_arch_add(context, SCMP_ARCH_X86);
    seccomp_arch_add(context, SCMP_ARCH_X32);
    while (scanf("%63s %u %u %u %u %llu %llu", name, &action, &count, &index, &op, &first, &second) == 7) {
        int number = seccomp_syscall_resolve_name(name);
        struct scmp_arg_cmp test = {index, op, first, second};
        if (number == __NR_SCMP_ERROR) { fprintf(stderr, "%s\n", name); continue; }
        if (seccomp_rule_add_array(context, action, number, count, &test) < 0) return 2;
    }
    return seccomp_export_bpf(context, 1) < 0;
}
"#;

fn names(calls: &Calls) -> impl Iterator<Item = &'static str> + '_ {
    TABLE.iter().map(|(name, _)| *name).filter(|name| {
        let mut one = Calls::NONE;
        one.add(name);
        calls.includes(&one)
    })
}

/// libseccomp's numbers of operators.
fn operands(condition: &Condition) -> (u32, u64, u64) {
    match condition.test {
        Test::NotEqual(value) => (1, value, 0),
        Test::Less(value) => (2, value, 0),
        Test::LessOrEqual(value) => (3, value, 0),
        Test::Equal(value) => (4, value, 0),
        Test::GreaterOrEqual(value) => (5, value, 0),
        Test::Greater(value) => (6, value, 0),
        Test::MaskedEqual { mask, value } => (7, mask, value),
    }
}

fn lines(bounding: Set) -> String {
    let mut text = String::new();
    for rule in &builtin::profile(bounding).rules {
        for name in names(rule.calls) {
            let condition = match rule.conditions {
                [] => "0 0 0 0 0".to_owned(),
                [one] => {
                    let (op, first, second) = operands(one);
                    format!("1 {} {op} {first} {second}", one.index)
                }
                _ => panic!("more than one condition"),
            };
            writeln!(text, "{name} {} {condition}", rule.action).unwrap();
        }
    }
    text
}

/// The program, and the names that this version of libseccomp does not know.
fn export(executable: &std::path::Path, bounding: Set) -> (Vec<Instruction>, HashSet<String>) {
    let mut child = Command::new(executable)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(lines(bounding).as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", output.status);
    let instruction = |bytes: &[u8]| Instruction {
        code: u16::from_le_bytes([bytes[0], bytes[1]]),
        jump_true: bytes[2],
        jump_false: bytes[3],
        k: u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
    };
    let unknown = String::from_utf8(output.stderr).unwrap().lines().map(str::to_owned).collect();
    (output.stdout.chunks_exact(8).map(instruction).collect(), unknown)
}

fn compare(executable: &std::path::Path, bounding: Set) {
    let (theirs, unknown) = export(executable, bounding);
    let ours = default_program(bounding).unwrap();
    let values =
        [0, 1, 8, 11, 12, 16, 38, 39, 40, 45, 46, 0x11, 0x1000_0011, 0x2_0008, 0x4_0000, 0xffff_ffff];
    let tables =
        [(Arch::X86_64, AUDIT_X86_64, 0), (Arch::X86, AUDIT_X86, 0), (Arch::X32, AUDIT_X86_64, X32_BIT)];
    for (arch, audit, base) in tables {
        let column = arch.column();
        let mut compared = 0;
        for (name, numbers) in TABLE.iter().filter(|(_, numbers)| numbers[column] != NONE) {
            if unknown.contains(*name) {
                continue;
            }
            compared += 1;
            for value in values {
                let arguments = [value, 0, 0, 0, 0, 0];
                let number = base + u32::from(numbers[column]);
                let got = run(ours.instructions(), audit, number, &arguments);
                let want = run(&theirs, audit, number, &arguments);
                // What is newer than the profile fails with ENOSYS in ours, on purpose.
                let newer = got == 0x0005_0026 && want == 0x0005_0001;
                assert!(newer || got == want, "{arch:?} {name} {value:#x}: {got:#x}, libseccomp: {want:#x}");
            }
        }
        assert!(compared > 300, "{arch:?}: {compared}");
    }
}

#[test]
fn libseccomp_agrees() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("oracle.c");
    let executable = folder.path().join("oracle");
    std::fs::write(&source, SOURCE).unwrap();
    let built = Command::new("gcc").arg(&source).arg("-o").arg(&executable).arg("-lseccomp").output();
    if !built.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: needs gcc and libseccomp-dev");
        return;
    }
    for bounding in [Set::DEFAULT, Set::EMPTY, Set::NAMED] {
        compare(&executable, bounding);
    }
}
