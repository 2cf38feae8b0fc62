//! What a guest boots: kernels of distributions that are on this host, and the initial RAM disk that insula
//! makes for one of them.

mod cpio;
mod elf;
mod emulator;
pub mod erofs;
mod error;
mod initramfs;
mod kernel;
mod modules;

pub use cpio::Archive;
pub use emulator::emulator;
pub use error::Error;
pub use initramfs::{Features, Images, Sockets, check, drivers, initramfs, maps_images};
pub use kernel::{Kernel, find, installed};
pub use modules::Modules;
