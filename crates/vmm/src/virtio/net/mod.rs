//! Network cards (specification 1.2, 5.1) on a tap.

mod device;

pub use device::Card;
