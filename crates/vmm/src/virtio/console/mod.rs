//! Ports of bytes between guest and host (specification 1.2, 5.3): channels with a name, such as the
//! one of the guest's agent, found there below `/dev/virtio-ports/`.

mod device;
mod port;
mod request;

pub use device::Console;
