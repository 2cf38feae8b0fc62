//! Disks (specification 1.2, 5.2).

mod backend;
mod device;
mod request;

pub use backend::Access;
pub use device::Disk;
