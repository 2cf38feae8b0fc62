//! The rules that both kinds of profile become, and their meaning for one architecture.
//!
//! What a rule means is what runc and libseccomp make of it:
//! - a rule whose action is the default one is no rule;
//! - the first rule without conditions for a system call beats all others for it;
//! - among rules with conditions the first that matches wins, in the order of the profile;
//! - the conditions of a rule must all hold, but if two of them are about the same argument, each
//!   condition is a rule of its own;
//! - numbers above the highest that the profile names are newer than the profile: if its default
//!   action denies, they fail with ENOSYS, so that programs fall back to what they did before. Who names a
//!   call that x86 has in socketcall(2) or ipc(2) names that one too.

use super::syscalls::{NONE, TABLE};
use super::{Error, Result};

/// A bound on numbers in the tables.
pub(super) const NUMBERS: usize = 576;
const WORDS: usize = NUMBERS / 64;

/// The most rules with conditions that one architecture may have; the kernel's bound on the length
/// of a program is reached before, this one bounds the work until then.
const MAX_CLAUSES: usize = 4096;

/// A table of system calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arch {
    X86_64,
    X86,
    /// 32-bit pointers on x86-64: shares its `AUDIT_ARCH`, told apart by a bit of the number.
    X32,
    Aarch64,
}

pub(super) const X32_BIT: u32 = 0x4000_0000;

impl Arch {
    pub(super) const NATIVE: Self = if cfg!(target_arch = "aarch64") { Self::Aarch64 } else { Self::X86_64 };

    pub(super) const fn column(self) -> usize {
        match self {
            Self::X86_64 => 0,
            Self::X86 => 1,
            Self::X32 => 2,
            Self::Aarch64 => 3,
        }
    }
}

/// Some system calls, by their numbers on each architecture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Calls {
    direct: [[u64; WORDS]; 4],
    /// Sub-calls of x86's socketcall(2), one bit for each.
    socketcall: u32,
    /// And of its ipc(2).
    ipc: u32,
}

impl Calls {
    pub(super) const NONE: Self = Self { direct: [[0; WORDS]; 4], socketcall: 0, ipc: 0 };

    /// Names known while compiling; a wrong one does not compile.
    pub(super) const fn of(names: &[&str]) -> Self {
        let mut calls = Self::NONE;
        let mut index = 0;
        while index < names.len() {
            assert!(calls.add(names[index]), "no architecture has this system call");
            index += 1;
        }
        calls
    }

    /// Adds a name; false if no architecture has it.
    pub(super) const fn add(&mut self, name: &str) -> bool {
        let Some(numbers) = find(name) else { return false };
        let mut column = 0;
        while column < 4 {
            let number = numbers[column] as usize;
            if numbers[column] != NONE {
                self.direct[column][number / 64] |= 1 << (number % 64);
            }
            column += 1;
        }
        if numbers[4] != NONE {
            self.socketcall |= 1 << numbers[4];
        }
        if numbers[5] != NONE {
            self.ipc |= 1 << numbers[5];
        }
        true
    }

    pub(super) fn includes(&self, other: &Self) -> bool {
        let words = self.direct.as_flattened().iter().zip(other.direct.as_flattened());
        words.into_iter().all(|(ours, theirs)| ours & theirs == *theirs)
            && self.socketcall & other.socketcall == other.socketcall
            && self.ipc & other.ipc == other.ipc
    }

    fn numbers(&self, arch: Arch) -> impl Iterator<Item = usize> + '_ {
        self.direct[arch.column()]
            .iter()
            .enumerate()
            .flat_map(|(word, bits)| Bits(*bits).map(move |bit| word * 64 + bit))
    }
}

/// The positions of the bits that are set, from the lowest.
struct Bits(u64);

impl Iterator for Bits {
    type Item = usize;
    fn next(&mut self) -> Option<usize> {
        if self.0 == 0 {
            return None;
        }
        let bit = self.0.trailing_zeros() as usize;
        self.0 &= self.0 - 1;
        Some(bit)
    }
}

const fn find(name: &str) -> Option<[u16; 6]> {
    let (mut low, mut high) = (0, TABLE.len());
    while low < high {
        let middle = low + (high - low) / 2;
        match compare(TABLE[middle].0.as_bytes(), name.as_bytes()) {
            0 => return Some(TABLE[middle].1),
            1 => high = middle,
            _ => low = middle + 1,
        }
    }
    None
}

/// -1, 0 or 1, as `Ord` would say if it were const.
const fn compare(left: &[u8], right: &[u8]) -> i8 {
    let mut index = 0;
    while index < left.len() && index < right.len() {
        if left[index] != right[index] {
            return if left[index] < right[index] { -1 } else { 1 };
        }
        index += 1;
    }
    if left.len() == right.len() {
        0
    } else if left.len() < right.len() {
        -1
    } else {
        1
    }
}

/// A comparison of an argument, all 64 bits of it and unsigned, with a constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Test {
    Equal(u64),
    NotEqual(u64),
    Less(u64),
    LessOrEqual(u64),
    Greater(u64),
    GreaterOrEqual(u64),
    /// The bits under the mask are those of the value under the mask.
    MaskedEqual {
        mask: u64,
        value: u64,
    },
}

/// A test of one of the six arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) index: u8,
    pub(super) test: Test,
}

/// What happens to some system calls, given that all conditions hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rule<'a> {
    pub(super) calls: &'a Calls,
    /// What the kernel takes from the filter: `SECCOMP_RET_…` and its data.
    pub(super) action: u32,
    pub(super) conditions: &'a [Condition],
}

/// A profile whose conditions on the process and the host have been evaluated.
#[derive(Debug, Clone)]
pub(super) struct Profile<'a> {
    pub(super) default: u32,
    /// Beside the native one, which is always there.
    pub(super) arches: Vec<Arch>,
    pub(super) rules: Vec<Rule<'a>>,
    /// `SECCOMP_FILTER_FLAG_…`
    pub(super) flags: u32,
}

/// A rule with conditions, for one system call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clause<'a> {
    pub(super) conditions: &'a [Condition],
    pub(super) action: u32,
}

/// What the filter does with a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Always(u32),
    /// Index of the clauses to try; none matching is the default.
    When(usize),
}

/// Consecutive numbers with the same verdict, up to where the next range starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: u32,
    pub(super) verdict: Verdict,
}

/// All that one architecture needs: ranges from 0, sorted, without gaps.
#[derive(Debug)]
pub(super) struct Lowered<'a> {
    pub(super) ranges: Vec<Range>,
    pub(super) clauses: Vec<Vec<Clause<'a>>>,
    pub(super) default: u32,
}

const RET_ERRNO: u32 = 0x0005_0000;
const RET_TRACE: u32 = 0x7ff0_0000;
const RET_LOG: u32 = 0x7ffc_0000;
pub(super) const RET_ALLOW: u32 = 0x7fff_0000;
const ENOSYS: u32 = 38;
const ACTION: u32 = 0xffff_0000;

/// Numbers of x86's two calls that stand for many.
const X86_SOCKETCALL: usize = 102;
const X86_IPC: usize = 117;

struct Lowering<'a> {
    /// `None` is the default.
    verdicts: [Option<Verdict>; NUMBERS],
    clauses: Vec<Vec<Clause<'a>>>,
    count: usize,
    last: Option<usize>,
}

/// What a profile means for one architecture.
pub(super) fn lower<'a>(profile: &Profile<'a>, arch: Arch) -> Result<Lowered<'a>> {
    let mut lowering = Lowering { verdicts: [None; NUMBERS], clauses: Vec::new(), count: 0, last: None };
    for rule in &profile.rules {
        let is_default = rule.action == profile.default;
        for number in rule.calls.numbers(arch) {
            lowering.last = lowering.last.max(Some(number));
            if !is_default {
                lowering.add(number, rule.conditions, rule.action)?;
            }
        }
        if arch == Arch::X86 && !is_default {
            lowering.add_multiplexed(rule)?;
        }
    }
    Ok(Lowered {
        ranges: lowering.ranges(profile.default),
        clauses: lowering.clauses,
        default: profile.default,
    })
}

impl<'a> Lowering<'a> {
    fn add(&mut self, number: usize, conditions: &'a [Condition], action: u32) -> Result<()> {
        let Some(verdict) = self.verdicts.get_mut(number) else { return Ok(()) };
        if conditions.is_empty() {
            if !matches!(verdict, Some(Verdict::Always(_))) {
                *verdict = Some(Verdict::Always(action));
            }
            return Ok(());
        }
        let index = match *verdict {
            Some(Verdict::Always(_)) => return Ok(()),
            Some(Verdict::When(index)) => index,
            None => {
                *verdict = Some(Verdict::When(self.clauses.len()));
                self.clauses.push(Vec::new());
                self.clauses.len() - 1
            }
        };
        let list = &mut self.clauses[index];
        let before = list.len();
        if about_one_argument_twice(conditions) {
            list.extend(conditions.chunks(1).map(|conditions| Clause { conditions, action }));
        } else {
            list.push(Clause { conditions, action });
        }
        self.count += list.len() - before;
        if self.count > MAX_CLAUSES {
            return Err(Error::Profile {
                field: "syscalls".to_owned(),
                problem: format!("more than {MAX_CLAUSES} rules with conditions"),
            });
        }
        Ok(())
    }

    /// What 32-bit programs reach through socketcall(2) and ipc(2) too. The arguments are behind a
    /// pointer there, which no filter can follow: a rule with conditions that allows is left out,
    /// one that denies is applied whatever the arguments are.
    fn add_multiplexed(&mut self, rule: &Rule<'a>) -> Result<()> {
        if !rule.conditions.is_empty() && rule.action & ACTION == RET_ALLOW {
            return Ok(());
        }
        for call in Bits(rule.calls.socketcall.into()) {
            self.last = self.last.max(Some(X86_SOCKETCALL));
            self.add(X86_SOCKETCALL, std::slice::from_ref(&SOCKETCALLS[call]), rule.action)?;
        }
        for call in Bits(rule.calls.ipc.into()) {
            self.last = self.last.max(Some(X86_IPC));
            self.add(X86_IPC, std::slice::from_ref(&IPCS[call]), rule.action)?;
        }
        Ok(())
    }

    fn ranges(&self, default: u32) -> Vec<Range> {
        let mut ranges: Vec<Range> = Vec::with_capacity(128);
        let mut push = |start: usize, verdict| {
            if ranges.last().is_none_or(|range| range.verdict != verdict) {
                ranges.push(Range { start: start as u32, verdict });
            }
        };
        for (number, verdict) in self.verdicts.iter().enumerate() {
            push(number, verdict.unwrap_or(Verdict::Always(default)));
        }
        if let Some(last) = self.last
            && !matches!(default & ACTION, RET_ALLOW | RET_LOG | RET_TRACE)
        {
            // Nothing above `last` has a verdict of its own.
            ranges.retain(|range| range.start as usize <= last);
            let newer = Verdict::Always(RET_ERRNO | ENOSYS);
            if ranges.last().is_none_or(|range| range.verdict != newer) {
                ranges.push(Range { start: last as u32 + 1, verdict: newer });
            }
        }
        ranges
    }
}

fn about_one_argument_twice(conditions: &[Condition]) -> bool {
    let mut seen = 0_u8;
    conditions.iter().any(|condition| {
        let bit = 1 << condition.index;
        let twice = seen & bit != 0;
        seen |= bit;
        twice
    })
}

static SOCKETCALLS: [Condition; 32] = first_argument(u64::MAX);
/// The upper half of ipc(2)'s first argument is a version.
static IPCS: [Condition; 32] = first_argument(0xffff);

/// For each sub-call the condition that it is the one which is called.
const fn first_argument(mask: u64) -> [Condition; 32] {
    let mut conditions = [Condition { index: 0, test: Test::MaskedEqual { mask, value: 0 } }; 32];
    let mut call = 0;
    while call < conditions.len() {
        conditions[call].test = Test::MaskedEqual { mask, value: call as u64 };
        call += 1;
    }
    conditions
}
