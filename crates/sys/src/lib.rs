//! Every system call and ioctl as a safe function: the only unsafe code outside the machine
//! monitor. Where `rustix` has a safe call it is used as it is; this crate fills the gaps and
//! gives compound calls their contract.
//!
//! No policy here, no names of containers: a function does what its man page says.

#![allow(unsafe_code)]

pub mod bpf;
pub mod failpoint;
pub mod fsid;
pub mod inherit;
pub mod kvm;
pub mod landlock;
pub mod loop_device;
pub mod memory;
pub mod mount;
pub mod netlink;
pub mod process;
pub mod quota;
pub mod random;
pub mod rlimit;
pub mod seccomp;
pub mod socket;
pub mod tty;
pub mod tun;
pub mod verity;
