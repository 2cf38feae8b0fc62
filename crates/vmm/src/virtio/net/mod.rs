//! Network cards (specification 1.2, 5.1) on a tap.

mod device;
mod limit;
#[cfg(test)]
mod tests;

pub use device::Card;
