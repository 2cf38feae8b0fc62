//! Programs are run by an interpreter and compared with what the profile says when it is read
//! naively, number by number.

#![cfg(target_arch = "x86_64")]

use proptest::prelude::*;
use serde_json::{Value, json};

use super::rules::{Arch, Calls, Condition, RET_ALLOW, Test, X32_BIT};
use super::syscalls::{NONE, TABLE};
use super::*;

pub(super) const AUDIT_X86_64: u32 = 0xc000_003e;
pub(super) const AUDIT_X86: u32 = 0x4000_0003;
const KILL_PROCESS: u32 = 0x8000_0000;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0026;
const CONTEXT: document::Context = document::Context { bounding: Set::DEFAULT, kernel: (6, 1) };

/// What the kernel would make of a program; panics where the kernel would refuse it.
pub(super) fn run(program: &[Instruction], arch: u32, number: u32, arguments: &[u64; 6]) -> u32 {
    let load = |offset: u32| match offset {
        0 => number,
        4 => arch,
        16..=60 if offset.is_multiple_of(4) => {
            let half = (offset - 16) / 4;
            (arguments[half as usize / 2] >> (32 * (half % 2))) as u32
        }
        _ => panic!("load from offset {offset}"),
    };
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let Instruction { code, jump_true, jump_false, k } = program[at];
        at += 1;
        let jump = |condition: bool| usize::from(if condition { jump_true } else { jump_false });
        match code {
            0x20 => accumulator = load(k),
            0x54 => accumulator &= k,
            0x05 => at += k as usize,
            0x15 => at += jump(accumulator == k),
            0x25 => at += jump(accumulator > k),
            0x35 => at += jump(accumulator >= k),
            0x45 => at += jump(accumulator & k != 0),
            0x06 => return k,
            _ => panic!("instruction {code:#x}"),
        }
    }
}

fn number(name: &str, column: usize) -> Option<u32> {
    let found = TABLE.binary_search_by(|(known, _)| (*known).cmp(name)).ok()?;
    let number = TABLE[found].1[column];
    (number != NONE).then(|| u32::from(number))
}

fn holds(test: Test, value: u64) -> bool {
    match test {
        Test::Equal(with) => value == with,
        Test::NotEqual(with) => value != with,
        Test::Less(with) => value < with,
        Test::LessOrEqual(with) => value <= with,
        Test::Greater(with) => value > with,
        Test::GreaterOrEqual(with) => value >= with,
        Test::MaskedEqual { mask, value: with } => value & mask == with & mask,
    }
}

/// One rule of a naive profile.
#[derive(Debug, Clone)]
struct Plain {
    names: Vec<&'static str>,
    action: u32,
    conditions: Vec<Condition>,
}

fn matches(conditions: &[Condition], arguments: &[u64; 6]) -> bool {
    let one = |condition: &Condition| holds(condition.test, arguments[usize::from(condition.index)]);
    let mut indices: Vec<u8> = conditions.iter().map(|condition| condition.index).collect();
    indices.sort_unstable();
    indices.dedup();
    if indices.len() < conditions.len() { conditions.iter().any(one) } else { conditions.iter().all(one) }
}

/// The numbers of each rule's names in one column of the table.
fn resolved(rules: &[Plain], column: usize) -> Vec<Vec<u32>> {
    rules.iter().map(|rule| rule.names.iter().filter_map(|name| number(name, column)).collect()).collect()
}

/// What the documentation of `rules` says, for x86-64 (0), x86 (1) and x32 (2).
fn expected(
    default: u32,
    rules: &[Plain],
    numbers: &[Vec<u32>],
    column: usize,
    wanted: u32,
    arguments: &[u64; 6],
) -> u32 {
    let mut applying: Vec<Plain> = Vec::new();
    for (rule, numbers) in rules.iter().zip(numbers).filter(|(rule, _)| rule.action != default) {
        if numbers.contains(&wanted) {
            applying.push(rule.clone());
        }
        for (family, sub, mask) in [(102, 4, u64::MAX), (117, 5, 0xffff)] {
            let skipped = !rule.conditions.is_empty() && rule.action == RET_ALLOW;
            if column != 1 || wanted != family || skipped {
                continue;
            }
            for value in rule.names.iter().filter_map(|name| number(name, sub)) {
                let test = Test::MaskedEqual { mask, value: value.into() };
                applying.push(Plain { conditions: vec![Condition { index: 0, test }], ..rule.clone() });
            }
        }
    }
    if let Some(rule) = applying.iter().find(|rule| rule.conditions.is_empty()) {
        return rule.action;
    }
    if let Some(rule) = applying.iter().find(|rule| matches(&rule.conditions, arguments)) {
        return rule.action;
    }
    let last = numbers.iter().flatten().copied().chain(multiplexed(default, rules, column)).max();
    let denies = !matches!(default & 0xffff_0000, 0x7fff_0000 | 0x7ff0_0000 | 0x7ffc_0000);
    if denies && last.is_some_and(|last| wanted > last) { ENOSYS } else { default }
}

/// The calls that others are reached through by what the rules name.
fn multiplexed(default: u32, rules: &[Plain], column: usize) -> Vec<u32> {
    let applied = |rule: &&Plain| {
        column == 1 && rule.action != default && (rule.conditions.is_empty() || rule.action != RET_ALLOW)
    };
    let through = |rule: &Plain| {
        let has = |sub| rule.names.iter().any(|name| number(name, sub).is_some());
        [(102, 4), (117, 5)]
            .into_iter()
            .filter(|(_, sub)| has(*sub))
            .map(|(call, _)| call)
            .collect::<Vec<_>>()
    };
    rules.iter().filter(applied).flat_map(through).collect()
}

fn compile_plain(default: u32, rules: &[Plain]) -> Vec<Instruction> {
    let calls: Vec<Calls> = rules
        .iter()
        .map(|rule| {
            let mut calls = Calls::NONE;
            rule.names.iter().for_each(|name| assert!(calls.add(name)));
            calls
        })
        .collect();
    let rules = rules.iter().zip(&calls).map(|(rule, calls)| rules::Rule {
        calls,
        action: rule.action,
        conditions: &rule.conditions,
    });
    let profile =
        rules::Profile { default, arches: vec![Arch::X86, Arch::X32], rules: rules.collect(), flags: 0 };
    program::compile(&profile).unwrap()
}

/// Every number of every table, and numbers around and above them.
fn compare_all(default: u32, rules: &[Plain], arguments: &[u64; 6]) {
    let program = compile_plain(default, rules);
    assert!(program.len() <= 4096);
    for (column, arch, base) in [(0, AUDIT_X86_64, 0), (1, AUDIT_X86, 0), (2, AUDIT_X86_64, X32_BIT)] {
        let numbers = resolved(rules, column);
        for number in (0..600).chain([1000, 4096, 0xffff, 0x3fff_ffff]) {
            let got = run(&program, arch, base + number, arguments);
            let want = expected(default, rules, &numbers, column, number, arguments);
            assert_eq!(got, want, "table {column}, number {number}, arguments {arguments:x?}: {got:#x}");
        }
    }
    assert_eq!(run(&program, 0xc000_00b7, 0, arguments), KILL_PROCESS);
}

fn interesting() -> impl Strategy<Value = u64> {
    let edges =
        [0, 1, 12, 38, 39, 40, 0xffff_ffff, 1 << 32, u64::MAX, 0x7e02_0000, 0x8000_0000, 0x1_0000_000c];
    prop_oneof![
        proptest::sample::select(edges.to_vec()),
        0_u64..50,
        any::<u64>(),
        any::<u32>().prop_map(u64::from)
    ]
}

fn tests() -> impl Strategy<Value = Test> {
    prop_oneof![
        interesting().prop_map(Test::Equal),
        interesting().prop_map(Test::Equal),
        interesting().prop_map(Test::NotEqual),
        interesting().prop_map(Test::Less),
        interesting().prop_map(Test::LessOrEqual),
        interesting().prop_map(Test::Greater),
        interesting().prop_map(Test::GreaterOrEqual),
        (interesting(), interesting()).prop_map(|(mask, value)| Test::MaskedEqual { mask, value }),
    ]
}

fn actions() -> impl Strategy<Value = u32> {
    proptest::sample::select(vec![
        RET_ALLOW,
        RET_ALLOW,
        EPERM,
        ENOSYS,
        0,
        KILL_PROCESS,
        0x0003_0000,
        0x7ff0_0001,
        0x7ffc_0000,
    ])
}

fn plain_rules() -> impl Strategy<Value = Vec<Plain>> {
    // Few names, so that rules meet; socket, recv and semop for x86's multiplexed calls.
    let few = vec!["socket", "recv", "semop", "socketcall", "ipc", "clone", "read", "mmap"];
    let names = prop_oneof![
        proptest::collection::vec(proptest::sample::select(few), 1..3),
        proptest::collection::vec(any::<proptest::sample::Index>(), 1..120)
            .prop_map(|all| all.iter().map(|index| TABLE[index.index(TABLE.len())].0).collect()),
    ];
    let condition = (0_u8..6, tests()).prop_map(|(index, test)| Condition { index, test });
    let conditions = prop_oneof![Just(Vec::new()), proptest::collection::vec(condition, 1..5)];
    let rule = (names, actions(), conditions).prop_map(|(names, action, conditions)| Plain {
        names,
        action,
        conditions,
    });
    proptest::collection::vec(rule, 0..16)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn programs_do_what_profiles_say(
        default in actions(),
        rules in plain_rules(),
        arguments in proptest::array::uniform6(interesting()),
    ) {
        let conditions = rules.iter().map(|rule| rule.conditions.len() * rule.names.len()).sum::<usize>();
        prop_assume!(conditions < 120);
        compare_all(default, &rules, &arguments);
    }
}

#[test]
fn a_rule_reaches_a_multiplexed_call_above_all_numbers() {
    let plain = |name, action| Plain { names: vec![name], action, conditions: Vec::new() };
    // ipc(2) is 117 on x86, socketcall(2) 102, and semop(2) has no number of its own there.
    let rules = [plain("socketcall", RET_ALLOW), plain("semop", 0)];
    for call in [0, 1, 2] {
        compare_all(EPERM, &rules, &[call, 0, 0, 0, 0, 0]);
    }
    let program = compile_plain(EPERM, &rules);
    assert_eq!(run(&program, AUDIT_X86, 117, &[1, 0, 0, 0, 0, 0]), 0);
    assert_eq!(run(&program, AUDIT_X86, 118, &[1, 0, 0, 0, 0, 0]), ENOSYS);
}

/// Everything that a document may hold, in shapes near to right ones.
fn documents() -> impl Strategy<Value = Value> {
    let word = prop_oneof![
        proptest::sample::select(vec![
            "defaultAction",
            "defaultErrnoRet",
            "archMap",
            "architectures",
            "architecture",
            "subArchitectures",
            "syscalls",
            "names",
            "name",
            "action",
            "args",
            "index",
            "value",
            "valueTwo",
            "op",
            "includes",
            "excludes",
            "caps",
            "arches",
            "minKernel",
            "flags",
            "errnoRet",
            "SCMP_ACT_ALLOW",
            "SCMP_ACT_ERRNO",
            "SCMP_ACT_NOTIFY",
            "SCMP_CMP_EQ",
            "SCMP_CMP_MASKED_EQ",
            "SCMP_ARCH_X86_64",
            "SCMP_ARCH_X32",
            "read",
            "clone",
            "CAP_SYS_ADMIN",
            "4.8",
            "amd64",
        ])
        .prop_map(str::to_owned),
        ".{0,8}",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (0_i64..7).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word.clone().prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 96, 8, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::vec((word.clone(), inner), 0..8)
                .prop_map(|pairs| pairs.into_iter().collect()),
        ]
    })
}

proptest! {
    #[test]
    fn no_document_makes_it_panic(
        document in documents(),
        syscalls in documents(),
        group in documents(),
        arguments in documents(),
    ) {
        let _ = compile(&document, Set::DEFAULT);
        let mut near = json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": syscalls});
        let _ = compile(&near, Set::DEFAULT);
        near["syscalls"] = json!([group]);
        let _ = compile(&near, Set::DEFAULT);
        near["syscalls"] = json!([{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": arguments}]);
        let _ = compile(&near, Set::DEFAULT);
    }
}

fn default_for(bounding: Set) -> Vec<Instruction> {
    default_program(bounding).unwrap().instructions().to_vec()
}

fn native(program: &[Instruction], name: &str, first: u64) -> u32 {
    run(program, AUDIT_X86_64, number(name, 0).unwrap(), &[first, 0, 0, 0, 0, 0])
}

#[test]
fn sockets_to_the_host_are_for_whom_they_were_given_to() {
    const VSOCK: u64 = 40;
    const ALG: u64 = 38;
    let given = default_program_with_vsock(Set::DEFAULT).unwrap();
    let given = given.instructions();
    let asked = [1, 10, VSOCK, ALG];
    let denied = native(&default_for(Set::DEFAULT), "socket", VSOCK);
    assert_eq!(
        asked.map(|family| native(given, "socket", family)),
        [RET_ALLOW, RET_ALLOW, RET_ALLOW, denied]
    );
    assert_ne!(denied, RET_ALLOW);
}

#[test]
fn the_default_profile_allows_and_denies() {
    let program = default_for(Set::DEFAULT);
    for name in ["read", "execve", "openat", "futex", "ptrace", "removexattrat", "chroot", "arch_prctl"] {
        assert_eq!(native(&program, name, 0), RET_ALLOW, "{name}");
    }
    for name in [
        "mount",
        "unshare",
        "setns",
        "reboot",
        "bpf",
        "keyctl",
        "add_key",
        "io_uring_setup",
        "kexec_load",
        "open_by_handle_at",
        "syslog",
        "init_module",
        "userfaultfd",
        "perf_event_open",
        "acct",
        "swapon",
    ] {
        assert_eq!(native(&program, name, 0), EPERM, "{name}");
    }
    assert_eq!(native(&program, "clone3", 0), ENOSYS);
    assert_eq!(run(&program, AUDIT_X86_64, 467, &[0; 6]), ENOSYS);
    assert_eq!(run(&program, AUDIT_X86, 102, &[1, 0, 0, 0, 0, 0]), RET_ALLOW);
}

#[test]
fn the_default_profile_looks_at_arguments() {
    let program = default_for(Set::DEFAULT);
    assert_eq!(native(&program, "clone", 0x0120_0011), RET_ALLOW);
    for flag in [0x2_0000, 0x200_0000, 0x400_0000, 0x800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000] {
        assert_eq!(native(&program, "clone", 0x11 | flag), EPERM, "{flag:#x}");
    }
    for family in 0..64 {
        let denied = matches!(family, 12 | 19 | 20 | 23 | 25 | 34 | 37 | 38 | 40 | 46..);
        let want = if denied { EPERM } else { RET_ALLOW };
        assert_eq!(native(&program, "socket", family), want, "family {family}");
        assert_eq!(native(&program, "socket", family | 1 << 32), EPERM, "family {family}, upper half set");
    }
    for (persona, want) in [
        (0, RET_ALLOW),
        (8, RET_ALLOW),
        (0x2_0008, RET_ALLOW),
        (0xffff_ffff, RET_ALLOW),
        (0x4_0000, EPERM),
        (u64::MAX, EPERM),
    ] {
        assert_eq!(native(&program, "personality", persona), want, "{persona:#x}");
    }
}

#[test]
fn capabilities_open_more() {
    let program = default_for(Set::DEFAULT | Set::of(&["CAP_SYS_ADMIN"]));
    for name in ["mount", "unshare", "clone3", "setns", "bpf", "umount2"] {
        assert_eq!(native(&program, name, 0), RET_ALLOW, "{name}");
    }
    assert_eq!(native(&program, "clone", 0x1000_0011), RET_ALLOW);
    assert_eq!(native(&program, "init_module", 0), EPERM);
    let program = default_for(Set::EMPTY);
    assert_eq!(native(&program, "chroot", 0), EPERM);
    let program = default_for(Set::NAMED);
    for name in ["init_module", "reboot", "iopl", "clock_settime", "open_by_handle_at", "mbind", "kcmp"] {
        assert_eq!(native(&program, name, 0), RET_ALLOW, "{name}");
    }
    assert_eq!(native(&program, "io_uring_setup", 0), EPERM);
}

#[test]
fn other_architectures_are_killed() {
    let program = default_for(Set::DEFAULT);
    assert_eq!(run(&program, 0xc000_00b7, 63, &[0; 6]), KILL_PROCESS);
    let alone = json!({"defaultAction": "SCMP_ACT_ALLOW"});
    let program = compile(&alone, Set::DEFAULT).unwrap();
    assert_eq!(run(program.instructions(), AUDIT_X86_64, 1, &[0; 6]), RET_ALLOW);
    assert_eq!(run(program.instructions(), AUDIT_X86, 1, &[0; 6]), KILL_PROCESS);
    assert_eq!(run(program.instructions(), AUDIT_X86_64, X32_BIT, &[0; 6]), KILL_PROCESS);
    assert_eq!(run(program.instructions(), AUDIT_X86_64, u32::MAX, &[0; 6]), RET_ALLOW);
}

#[test]
fn numbers_without_conditions_are_decided_before_arguments_are_loaded() {
    // What lets the kernel skip the filter: only the number and the architecture are looked at.
    let program = default_for(Set::DEFAULT);
    let mut at = 0;
    let mut steps = 0;
    let wanted = number("read", 0).unwrap();
    let mut accumulator = 0;
    loop {
        let Instruction { code, jump_true, jump_false, k } = program[at];
        steps += 1;
        at += 1;
        match code {
            0x20 => {
                accumulator = if k == 0 {
                    wanted
                } else {
                    assert_eq!(k, 4);
                    AUDIT_X86_64
                }
            }
            0x15 => at += usize::from(if accumulator == k { jump_true } else { jump_false }),
            0x35 => at += usize::from(if accumulator >= k { jump_true } else { jump_false }),
            0x05 => at += k as usize,
            0x06 => break assert_eq!(k, RET_ALLOW),
            _ => panic!("{code:#x}"),
        }
    }
    assert!(steps <= 14, "{steps} steps");
}

fn failure(profile: Value) -> String {
    insula_base::chain(&compile(&profile, Set::DEFAULT).unwrap_err())
}

#[test]
fn errors_name_the_field() {
    let with = |group: Value| failure(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [group]}));
    assert_eq!(failure(json!([])), "seccomp profile: profile: is not an object");
    assert_eq!(failure(json!({})), "seccomp profile: defaultAction: is missing");
    assert_eq!(
        failure(json!({"defaultAction": "ALLOW"})),
        "seccomp profile: defaultAction: unknown action \"ALLOW\""
    );
    assert_eq!(
        failure(json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 4096})),
        "seccomp profile: defaultErrnoRet: is not a number from 0 to 4095"
    );
    assert_eq!(
        failure(json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["x86"]})),
        "seccomp profile: architectures[0]: unknown architecture \"x86\""
    );
    assert_eq!(
        with(json!({"names": ["mount"], "action": "SCMP_ACT_NOTIFY"})),
        "seccomp profile: syscalls[0].action: SCMP_ACT_NOTIFY is not supported"
    );
    assert_eq!(
        with(json!({"names": ["mount", 7], "action": "SCMP_ACT_ALLOW"})),
        "seccomp profile: syscalls[0].names[1]: is not a string"
    );
    let argument =
        |argument: Value| with(json!({"names": ["mount"], "action": "SCMP_ACT_KILL", "args": [argument]}));
    assert_eq!(
        argument(json!({"index": 6, "op": "SCMP_CMP_EQ"})),
        "seccomp profile: syscalls[0].args[0].index: 6 is not from 0 to 5"
    );
    assert_eq!(
        argument(json!({"index": 0, "op": "=="})),
        "seccomp profile: syscalls[0].args[0].op: unknown operator \"==\""
    );
    assert_eq!(
        argument(json!({"index": 0, "value": -1, "op": "SCMP_CMP_EQ"})),
        "seccomp profile: syscalls[0].args[0].value: is not a number of 64 bits without sign"
    );
}

#[test]
fn a_profile_that_is_too_long_is_refused() {
    let arguments: Vec<Value> = (0..3000)
        .map(|value| {
            json!({"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": value,
            "args": [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}]})
        })
        .collect();
    let text = failure(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": arguments}));
    assert!(text.starts_with("seccomp profile: compiles to "), "{text}");
    let all: Vec<&str> = TABLE.iter().map(|(name, _)| *name).collect();
    let groups: Vec<Value> = (0..100)
        .map(|value| {
            json!({"names": all, "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": value,
            "op": "SCMP_CMP_NE"}]})
        })
        .collect();
    let text = failure(json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": groups}));
    assert_eq!(text, "seccomp profile: syscalls: more than 4096 rules with conditions");
}

#[test]
fn long_lists_of_conditions_keep_their_jumps() {
    let rules: Vec<Plain> = (0..600)
        .map(|value| Plain {
            names: vec!["read"],
            action: RET_ALLOW,
            conditions: vec![Condition { index: 2, test: Test::Equal(value * 3) }],
        })
        .collect();
    for value in [0, 1, 3, 900, 1797, 1798, 1800, 3 | 1 << 32] {
        compare_all(EPERM, &rules, &[0, 0, value, 0, 0, 0]);
    }
}

#[test]
fn groups_follow_capabilities_kernels_and_architectures() {
    let value = json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "archMap": [
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
        ],
        "syscalls": [
            {"names": ["read", "no_such_call"], "action": "SCMP_ACT_ALLOW", "args": [], "comment": "", "includes": {}},
            {"name": "write", "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "6.1"}},
            {"names": ["open"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "6.2"}},
            {"names": ["close"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_CHOWN", "CAP_SYS_ADMIN"]}},
            {"names": ["stat"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN", "CAP_CHOWN"]}},
            {"names": ["fstat"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["s390x", "amd64"]}},
            {"names": ["lstat"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["amd64"]}},
            {"names": ["poll"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13},
            {"names": ["removexattrat"], "action": "SCMP_ACT_LOG"},
        ],
    });
    let document = document::Document::parse(&value, CONTEXT).unwrap();
    let program = program::compile(&document.profile()).unwrap();
    let got = |name| native(&program, name, 0);
    assert_eq!([got("read"), got("write"), got("fstat")], [RET_ALLOW; 3]);
    assert_eq!([got("open"), got("close"), got("stat"), got("lstat")], [EPERM; 4]);
    assert_eq!(got("poll"), 0x0005_000d);
    assert_eq!(got("removexattrat"), 0x7ffc_0000);
    assert_eq!(run(&program, AUDIT_X86, 3, &[0; 6]), RET_ALLOW);
    assert_eq!(run(&program, AUDIT_X86_64, X32_BIT, &[0; 6]), KILL_PROCESS);
}

#[test]
fn versions_are_read() {
    assert_eq!(document::kernel_version("6.18.44-custom"), Some((6, 18)));
    assert_eq!(document::kernel_version("5.15-rc1"), Some((5, 15)));
    assert_eq!(document::kernel_version("six"), None);
}

#[test]
fn the_table_is_sorted_and_within_bounds() {
    assert!(TABLE.is_sorted_by(|left, right| left.0.as_bytes() < right.0.as_bytes()));
    for (name, numbers) in &TABLE {
        assert!(
            numbers[..4].iter().all(|number| *number == NONE || usize::from(*number) < rules::NUMBERS),
            "{name}"
        );
        assert!(numbers[4..].iter().all(|number| *number == NONE || *number < 32), "{name}");
        assert!(numbers.iter().any(|number| *number != NONE), "{name}");
    }
}
