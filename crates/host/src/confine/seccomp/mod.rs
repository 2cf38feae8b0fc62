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

use std::os::fd::OwnedFd;
use std::path::PathBuf;

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
const FLAG_NEW_LISTENER: u32 = 8;
/// Who waits for an answer can only be killed once its call is looked at (Linux 5.19).
const FLAG_WAIT_KILLABLE: u32 = 32;

/// Who decides about calls whose action is `SCMP_ACT_NOTIFY`: seccomp_unotify(2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Socket of the host that gets the descriptor.
    pub path: PathBuf,
    /// Told as it is.
    pub metadata: String,
}

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

    /// Puts the filter before every later system call of this thread and its descendants; returns the descriptor
    /// by which the calls that somebody else decides about are told.
    ///
    /// Needs `no_new_privs`, or `CAP_SYS_ADMIN` in the thread's user namespace; where the first is
    /// not wanted, install before capabilities are dropped (see [`crate::confine`]). One system
    /// call, no allocation.
    pub fn install(&self) -> Result<Option<OwnedFd>> {
        let installed = if self.flags & FLAG_NEW_LISTENER == 0 {
            insula_sys::seccomp::set_filter(&self.instructions, self.flags).map(|()| None)
        } else {
            insula_sys::seccomp::set_filter_with_listener(&self.instructions, self.flags).map(Some)
        };
        installed.map_err(|source| Error::Call {
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

/// The same with sockets of the family VSOCK.
pub fn default_program_with_vsock(bounding: Set) -> Result<Program> {
    Program::new(&builtin::profile_with_vsock(bounding))
}

/// Compiles a profile in Docker's JSON format for a process with this bounding set. Errors name
/// the field of the profile. One that leaves decisions to others is refused: nobody listens.
pub fn compile(profile: &serde_json::Value, bounding: Set) -> Result<Program> {
    let document = parse(profile, bounding)?;
    match document.notifies {
        Some(field) => Err(Error::ProfileUnsupported { field, what: "SCMP_ACT_NOTIFY".to_owned() }),
        None => Program::new(&document.profile()),
    }
}

/// The same for a bundle, whose profile may leave decisions to who listens somewhere.
pub fn compile_with_listener(
    profile: &serde_json::Value,
    bounding: Set,
) -> Result<(Program, Option<Listener>)> {
    let document = parse(profile, bounding)?;
    let listener = match (&document.notifies, &document.listener) {
        (None, _) => None,
        (Some(_), Some(listener)) => Some(listener.clone()),
        (Some(field), None) => {
            let problem = "SCMP_ACT_NOTIFY needs listenerPath".to_owned();
            return Err(Error::Profile { field: field.clone(), problem });
        }
    };
    Ok((Program::new(&document.profile())?, listener))
}

fn parse(profile: &serde_json::Value, bounding: Set) -> Result<document::Document> {
    let system = rustix::system::uname();
    let release = system.release().to_string_lossy();
    let Some(kernel) = document::kernel_version(&release) else {
        return Err(Error::Content { path: "uname", content: release.into_owned() });
    };
    let context = document::Context { bounding, kernel };
    document::Document::parse(profile, context)
}

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod tests;
