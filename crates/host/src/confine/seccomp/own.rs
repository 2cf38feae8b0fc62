//! Filters of our own programs: what is not listed ends the process.

use super::rules::{Arch, Calls, Condition, Profile, RET_ALLOW, Rule, Test};
use super::{Error, Program, Result};

const RET_KILL_PROCESS: u32 = 0x8000_0000;

/// A system call that a program needs.
#[derive(Debug, Clone, Copy)]
pub struct Allowed<'a> {
    pub name: &'a str,
    /// Only with such an argument, counted from 0.
    pub only: Option<(u8, Argument)>,
}

/// What an argument has to be.
#[derive(Debug, Clone, Copy)]
pub enum Argument {
    Is(u64),
    /// It has none of these bits.
    Without(u64),
}

impl<'a> Allowed<'a> {
    /// Whatever its arguments are.
    #[must_use]
    pub const fn any(name: &'a str) -> Self {
        Self { name, only: None }
    }

    /// With the argument number `index`, from 0, being `value`.
    #[must_use]
    pub const fn with(name: &'a str, index: u8, value: u64) -> Self {
        Self { name, only: Some((index, Argument::Is(value))) }
    }

    /// With none of `bits` in the argument number `index`.
    #[must_use]
    pub const fn without(name: &'a str, index: u8, bits: u64) -> Self {
        Self { name, only: Some((index, Argument::Without(bits))) }
    }
}

/// A filter that lets these calls pass, each by any of its entries. Others end the process; those that are newer
/// than all of these are not there (ENOSYS).
pub fn allow_only(calls: &[Allowed<'_>]) -> Result<Program> {
    let prepared = calls.iter().map(prepare).collect::<Result<Vec<_>>>()?;
    let rules: Vec<_> =
        prepared.iter().map(|(calls, conditions)| Rule { calls, action: RET_ALLOW, conditions }).collect();
    Program::new(&Profile { default: RET_KILL_PROCESS, arches: vec![Arch::NATIVE], rules, flags: 0 })
}

fn prepare(allowed: &Allowed<'_>) -> Result<(Calls, Vec<Condition>)> {
    let mut calls = Calls::NONE;
    if !calls.add(allowed.name) {
        let problem = "is no system call".to_owned();
        return Err(Error::Profile { field: allowed.name.to_owned(), problem });
    }
    let condition = |(index, argument)| {
        let test = match argument {
            Argument::Is(value) => Test::Equal(value),
            Argument::Without(mask) => Test::MaskedEqual { mask, value: 0 },
        };
        Condition { index, test }
    };
    Ok((calls, allowed.only.into_iter().map(condition).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_calls_are_refused_and_known_ones_compile() {
        let error = allow_only(&[Allowed::any("read"), Allowed::any("raed")]).unwrap_err();
        assert!(error.to_string().contains("raed"), "{error}");
        let program = allow_only(&[
            Allowed::any("read"),
            Allowed::with("ioctl", 1, 0xae80),
            Allowed::with("ioctl", 1, 7),
            Allowed::without("mmap", 2, 4),
        ]);
        assert!(program.unwrap().instructions().len() > 10);
    }
}
