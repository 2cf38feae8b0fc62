//! A KVM machine: memory, vcpus, boot, virtio devices, snapshots. It runs one guest in one process
//! and knows nothing of containers, images or the engine.
//!
//! # Whom it trusts
//!
//! The guest is hostile, its kernel included. Whatever it can write (registers, memory, virtqueues,
//! device configuration) is read with bounds: no value of its makes this process panic, loop without
//! end or allocate more than the machine was given. Who makes the machine is trusted, as are the
//! files and descriptors handed over with it.
//!
//! # Threads
//!
//! One for each vcpu, which serves the guest's accesses to ports and registers, and one for all
//! devices, which works off the queues. A device is behind a lock that both hold only for one access
//! or one round of a queue.

#![allow(
    unsafe_code,
    reason = "maps guest memory and calls ioctls that have no safe wrapper; each block says why it is sound"
)]

mod boot;
mod bus;
mod error;
pub mod jail;
mod layout;
mod legacy;
mod machine;
mod marks;
mod memory;
pub mod relay;
mod vcpu;
pub mod virtio;

pub use boot::{Kernel, KernelFormat};
pub use error::{Error, Result};
pub use legacy::{Console, Ports};
pub use machine::{Host, Machine, Running, Shape, Snapshot, Stop};
pub use memory::{GuestRam, Memory};
