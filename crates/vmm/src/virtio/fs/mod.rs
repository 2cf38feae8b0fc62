//! Shared folders (specification 1.2, 5.11), served by a process of their own that speaks the
//! vhost-user protocol, such as virtiofsd: it works the queues off in the guest's memory itself.

pub(crate) mod backend;
mod device;

pub use device::SharedFolder;
