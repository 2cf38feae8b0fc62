//! The system call filter: profiles in Docker's format, and a built-in one equivalent to
//! Docker's, compiled to classic BPF. seccomp(2).

use insula_sys::seccomp::Instruction;

use super::capabilities::Set;
use super::{Error, Result};

/// A compiled filter, ready for the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    instructions: Vec<Instruction>,
}

impl Program {
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
        insula_sys::seccomp::set_filter(&self.instructions, 0).map_err(|source| Error::Call {
            call: "seccomp",
            operand: "SECCOMP_SET_MODE_FILTER",
            source,
        })
    }
}

/// The built-in profile for a process with this bounding set.
pub fn default_program(bounding: Set) -> Result<Program> {
    let _ = bounding;
    Err(Error::ProfileUnsupported { field: "default".to_owned(), what: "the built-in profile".to_owned() })
}

/// Compiles a profile in Docker's JSON format for a process with this bounding set.
pub fn compile(profile: &serde_json::Value, bounding: Set) -> Result<Program> {
    let _ = (profile, bounding);
    Err(Error::ProfileUnsupported { field: "profile".to_owned(), what: "a profile of one's own".to_owned() })
}
