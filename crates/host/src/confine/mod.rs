//! What a process may still do once it is inside: [`capabilities`], the system call filter
//! ([`seccomp`]), resource limits ([`rlimits`]) and the paths that are hidden from it ([`paths`]).
//!
//! Each module has a part that prepares (parses, allocates, may fail with a name in the message)
//! and a part that applies (few system calls, no allocation), so that a container's init can call
//! the second one between fork and exec. The order in the init:
//!
//! 1. [`rlimits::Prepared::apply`], while still privileged.
//! 2. Without `no_new_privileges`: [`seccomp::Program::install`], since afterwards the right to do
//!    so (`CAP_SYS_ADMIN` in the user namespace) is gone. The filter must allow what follows.
//! 3. [`capabilities::Sets::drop_bounding`], which needs `CAP_SETPCAP`.
//! 4. [`capabilities::Sets::keep_over_setuid`], then setgroups(2), setgid(2), setuid(2).
//! 5. [`capabilities::Sets::apply`].
//! 6. With `no_new_privileges`: prctl(2) `PR_SET_NO_NEW_PRIVS`, then the filter, right before
//!    execve(2).

pub mod capabilities;
mod error;
pub mod paths;
pub mod rlimits;
pub mod seccomp;

pub use error::{Error, Result};

#[cfg(test)]
mod installed;
