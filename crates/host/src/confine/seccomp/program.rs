//! From ranges to classic BPF.
//!
//! A program is written from its end to its start, since jumps go forward only: a target is
//! known when the jump to it is written. System call numbers are found by a balanced search over
//! ranges. No instruction looks at the arguments before the number is known to need it, so that
//! the kernel (5.11 and later) finds out by itself which numbers are always allowed and runs no
//! filter for them.

use insula_sys::seccomp::{Instruction, MAX_INSTRUCTIONS};

use super::rules::{Arch, Clause, Condition, Lowered, Profile, Range, Test, Verdict, X32_BIT, lower};
use super::{Error, Result};

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

const RET_KILL_PROCESS: u32 = 0x8000_0000;
const AUDIT_X86_64: u32 = 0xc000_003e;
const AUDIT_X86: u32 = 0x4000_0003;
const AUDIT_AARCH64: u32 = 0xc000_00b7;

/// A place in the program, counted from its end.
type Label = usize;

#[derive(Default)]
struct Writer {
    /// Last instruction first.
    code: Vec<Instruction>,
    /// Where values are returned, to be shared by jumps that reach so far.
    returns: Vec<(u32, Label)>,
}

/// Compiles a profile for the architecture of this host and those that it names beside.
pub(super) fn compile(profile: &Profile<'_>) -> Result<Vec<Instruction>> {
    let mut writer = Writer::default();
    let native = Arch::NATIVE;
    let other = if native == Arch::X86_64 && profile.arches.contains(&Arch::X86) {
        Some((AUDIT_X86, writer.section(&lower(profile, Arch::X86)?, 0)?))
    } else {
        None
    };
    let table = if native == Arch::X86_64 { writer.x86_64(profile)? } else { writer.native(profile)? };
    let mut next = writer.result(RET_KILL_PROCESS);
    if let Some((audit, entry)) = other {
        next = writer.branch(JUMP_EQUAL, audit, entry, next);
    }
    let audit = if native == Arch::X86_64 { AUDIT_X86_64 } else { AUDIT_AARCH64 };
    writer.branch(JUMP_EQUAL, audit, table, next);
    writer.push(LOAD, ARCH);
    writer.finish()
}

impl Writer {
    fn push(&mut self, code: u16, k: u32) -> Label {
        self.code.push(Instruction { code, jump_true: 0, jump_false: 0, k });
        self.code.len()
    }

    /// How many instructions are jumped over to get from the next one written to a label.
    fn distance(&self, to: Label) -> usize {
        self.code.len() - to
    }

    /// A label that can be reached by one of the short jumps in the next two instructions.
    fn near(&mut self, label: Label) -> Label {
        // Two jumps may be inserted before the branch itself.
        if self.distance(label) + 2 <= usize::from(u8::MAX) {
            return label;
        }
        let distance = self.distance(label);
        self.push(JUMP, u32::try_from(distance).unwrap_or(u32::MAX))
    }

    fn branch(&mut self, code: u16, k: u32, on_true: Label, on_false: Label) -> Label {
        let on_true = self.near(on_true);
        let on_false = self.near(on_false);
        let offset = |writer: &Self, label| u8::try_from(writer.distance(label)).unwrap_or(u8::MAX);
        let (jump_true, jump_false) = (offset(self, on_true), offset(self, on_false));
        self.code.push(Instruction { code, jump_true, jump_false, k });
        self.code.len()
    }

    fn result(&mut self, value: u32) -> Label {
        let length = self.code.len();
        let known = self.returns.iter_mut().find(|(known, _)| *known == value);
        // Some way short of the longest jump, so that the branches that follow reach it too.
        match known {
            Some((_, label)) if length - *label < 128 => *label,
            Some((_, label)) => {
                *label = length + 1;
                self.push(RETURN, value)
            }
            None => {
                self.returns.push((value, length + 1));
                self.push(RETURN, value)
            }
        }
    }

    fn native(&mut self, profile: &Profile<'_>) -> Result<Label> {
        self.section(&lower(profile, Arch::NATIVE)?, 0)
    }

    /// x86-64 and x32 share a value of the architecture field.
    fn x86_64(&mut self, profile: &Profile<'_>) -> Result<Label> {
        let x32 = if profile.arches.contains(&Arch::X32) {
            self.search(&lower(profile, Arch::X32)?, X32_BIT)?
        } else {
            // -1 is what a tracer leaves in place of a system call that it skipped.
            let skipped = self.result(profile.default);
            let kill = self.result(RET_KILL_PROCESS);
            self.branch(JUMP_EQUAL, u32::MAX, skipped, kill)
        };
        let x86_64 = self.search(&lower(profile, Arch::X86_64)?, 0)?;
        self.branch(JUMP_GREATER_OR_EQUAL, X32_BIT, x32, x86_64);
        Ok(self.push(LOAD, NUMBER))
    }

    /// Loads the number and searches it.
    fn section(&mut self, lowered: &Lowered<'_>, base: u32) -> Result<Label> {
        self.search(lowered, base)?;
        Ok(self.push(LOAD, NUMBER))
    }

    /// With the number loaded: searches it in ranges that start at `base`.
    fn search(&mut self, lowered: &Lowered<'_>, base: u32) -> Result<Label> {
        let clauses: Vec<Label> =
            lowered.clauses.iter().map(|list| self.clauses(list, lowered.default)).collect::<Result<_>>()?;
        let entry = self.tree(&lowered.ranges, base, &clauses)?;
        let distance = self.distance(entry);
        if distance == 0 {
            return Ok(entry);
        }
        // A lone range needs no comparison: it may be answered by what was written long ago.
        Ok(self.push(JUMP, u32::try_from(distance).unwrap_or(u32::MAX)))
    }

    fn tree(&mut self, ranges: &[Range], base: u32, clauses: &[Label]) -> Result<Label> {
        if self.code.len() > 2 * MAX_INSTRUCTIONS {
            return Err(too_long(self.code.len()));
        }
        if let [range] = ranges {
            return Ok(self.verdict(range.verdict, clauses));
        }
        let (below, above) = ranges.split_at(middle(ranges));
        let on_true = self.tree(above, base, clauses)?;
        let on_false = self.tree(below, base, clauses)?;
        Ok(self.branch(JUMP_GREATER_OR_EQUAL, base + above[0].start, on_true, on_false))
    }

    fn verdict(&mut self, verdict: Verdict, clauses: &[Label]) -> Label {
        match verdict {
            Verdict::Always(value) => self.result(value),
            Verdict::When(index) => clauses[index],
        }
    }

    /// Tries clauses in order.
    fn clauses(&mut self, clauses: &[Clause<'_>], default: u32) -> Result<Label> {
        let mut next = self.result(default);
        let mut rest = clauses;
        while let [.., last] = rest {
            if self.code.len() > 2 * MAX_INSTRUCTIONS {
                return Err(too_long(self.code.len()));
            }
            let alike = rest.iter().rev().take_while(|clause| same_load(clause, last)).count();
            let (before, group) = rest.split_at(rest.len() - alike.max(1));
            next = if alike > 1 { self.any_equal(group, next) } else { self.clause(last, next) };
            rest = before;
        }
        Ok(next)
    }

    fn clause(&mut self, clause: &Clause<'_>, no: Label) -> Label {
        let mut yes = self.result(clause.action);
        for condition in clause.conditions.iter().rev() {
            yes = self.condition(condition, yes, no);
        }
        yes
    }

    /// Several values of one argument with the same upper half and the same action: one load each.
    fn any_equal(&mut self, group: &[Clause<'_>], no: Label) -> Label {
        let mut next = no;
        let (mut index, mut upper) = (0, 0);
        for clause in group.iter().rev() {
            let Some((argument, value)) = equality(clause) else { continue };
            (index, upper) = (argument, high(value));
            let yes = self.result(clause.action);
            next = self.branch(JUMP_EQUAL, low(value), yes, next);
        }
        let lower = self.push(LOAD, ARGUMENTS + 8 * u32::from(index));
        debug_assert_eq!(lower, self.code.len());
        self.branch(JUMP_EQUAL, upper, lower, no);
        self.push(LOAD, ARGUMENTS + 8 * u32::from(index) + 4)
    }

    fn condition(&mut self, condition: &Condition, yes: Label, no: Label) -> Label {
        let index = condition.index;
        match condition.test {
            Test::Equal(value) => self.equal(index, u64::MAX, value, yes, no),
            Test::NotEqual(value) => self.equal(index, u64::MAX, value, no, yes),
            Test::MaskedEqual { mask, value } => self.equal(index, mask, value & mask, yes, no),
            Test::Greater(value) => self.above(JUMP_GREATER, index, value, yes, no),
            Test::LessOrEqual(value) => self.above(JUMP_GREATER, index, value, no, yes),
            Test::GreaterOrEqual(value) => self.above(JUMP_GREATER_OR_EQUAL, index, value, yes, no),
            Test::Less(value) => self.above(JUMP_GREATER_OR_EQUAL, index, value, no, yes),
        }
    }

    fn equal(&mut self, index: u8, mask: u64, value: u64, yes: Label, no: Label) -> Label {
        let offset = ARGUMENTS + 8 * u32::from(index);
        let lower = self.half_equal(offset, low(mask), low(value), yes, no);
        if high(mask) == 0 {
            return lower;
        }
        self.half_equal(offset + 4, high(mask), high(value), lower, no)
    }

    fn half_equal(&mut self, offset: u32, mask: u32, value: u32, yes: Label, no: Label) -> Label {
        self.branch(JUMP_EQUAL, value, yes, no);
        if mask != u32::MAX {
            self.push(AND, mask);
        }
        self.push(LOAD, offset)
    }

    /// Compares the upper halves and, where they are the same, the lower ones by `code`.
    fn above(&mut self, code: u16, index: u8, value: u64, yes: Label, no: Label) -> Label {
        let offset = ARGUMENTS + 8 * u32::from(index);
        self.branch(code, low(value), yes, no);
        let lower = self.push(LOAD, offset);
        let same = self.branch(JUMP_EQUAL, high(value), lower, no);
        self.branch(JUMP_GREATER, high(value), yes, same);
        self.push(LOAD, offset + 4)
    }

    fn finish(mut self) -> Result<Vec<Instruction>> {
        if self.code.len() > MAX_INSTRUCTIONS {
            return Err(too_long(self.code.len()));
        }
        self.code.reverse();
        Ok(self.code)
    }
}

fn too_long(instructions: usize) -> Error {
    Error::ProfileTooLong { instructions, maximum: MAX_INSTRUCTIONS }
}

const fn low(value: u64) -> u32 {
    value as u32
}

const fn high(value: u64) -> u32 {
    (value >> 32) as u32
}

fn equality(clause: &Clause<'_>) -> Option<(u8, u64)> {
    match clause.conditions {
        [Condition { index, test: Test::Equal(value) }] => Some((*index, *value)),
        _ => None,
    }
}

fn same_load(left: &Clause<'_>, right: &Clause<'_>) -> bool {
    match (equality(left), equality(right)) {
        (Some((a, x)), Some((b, y))) => a == b && high(x) == high(y) && left.action == right.action,
        _ => false,
    }
}

/// Where to cut ranges in two, so that wide ones, which hold more of the calls, are found sooner:
/// each range weighs its width within bounds. At least one range on each side.
fn middle(ranges: &[Range]) -> usize {
    let weight = |pair: &[Range]| u64::from((pair[1].start - pair[0].start).min(16) + 4);
    let total: u64 = ranges.windows(2).map(weight).sum();
    let mut sum = 0;
    for (index, pair) in ranges.windows(2).enumerate() {
        sum += weight(pair);
        if 2 * sum >= total {
            return index + 1;
        }
    }
    1
}
