//! The system call filter: profiles in Docker's format, and a built-in one equivalent to
//! Docker's, compiled to classic BPF. seccomp(2).
//!
//! [`default_program`] and [`compile`] prepare; [`Program::install`] applies. Filters cover x86-64
//! with, where the profile says so, the 32-bit and x32 system calls of such kernels, or AArch64
//! alone. Every other architecture kills the process.

mod builtin;
mod document;
mod own;
mod program;
mod rules;
mod syscalls;

use insula_sys::seccomp::Instruction;

use super::capabilities::Set;
use super::{Error, Result};

pub use own::{Allowed, Argument, allow_only};

/// `SECCOMP_FILTER_FLAG_…`
const FLAG_TSYNC: u32 = 1;
const FLAG_LOG: u32 = 2;
/// The default of runc: a filter does not switch off speculative store bypass (which kernels from
/// 5.16 on leave alone anyway).
const FLAG_SPEC_ALLOW: u32 = 4;

/// A compiled filter, ready for the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    instructions: Vec<Instruction>,
    flags: u32,
}

impl Program {
    fn new(profile: &rules::Profile<'_>) -> Result<Self> {
        Ok(Self { instructions: program::compile(profile)?, flags: profile.flags })
    }

    /// What the kernel will run.
    #[must_use]
    pub fn instructions(&self) -> &[Instruction] {
        &self.instructions
    }

    /// Puts the filter before every later system call of this thread and its descendants.
    ///
    /// Needs `no_new_privs`, or `CAP_SYS_ADMIN` in the thread's user namespace; where the first is
    /// not wanted, install before capabilities are dropped (see [`crate::confine`]). One system
    /// call, no allocation.
    pub fn install(&self) -> Result<()> {
        insula_sys::seccomp::set_filter(&self.instructions, self.flags).map_err(|source| Error::Call {
            call: "seccomp",
            operand: "SECCOMP_SET_MODE_FILTER",
            source,
        })
    }
}

/// The built-in profile for a process with this bounding set.
pub fn default_program(bounding: Set) -> Result<Program> {
    Program::new(&builtin::profile(bounding))
}

/// Compiles a profile in Docker's JSON format for a process with this bounding set. Errors name
/// the field of the profile.
pub fn compile(profile: &serde_json::Value, bounding: Set) -> Result<Program> {
    let system = rustix::system::uname();
    let release = system.release().to_string_lossy();
    let Some(kernel) = document::kernel_version(&release) else {
        return Err(Error::Content { path: "uname", content: release.into_owned() });
    };
    let context = document::Context { bounding, kernel };
    Program::new(&document::Document::parse(profile, context)?.profile())
}

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod tests;
