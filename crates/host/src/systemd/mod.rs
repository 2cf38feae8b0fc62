//! systemd as the maker of control groups: transient scopes over D-Bus, without any program of systemd's.
//!
//! The few calls that this takes speak the protocol themselves ([`message`]): a library for all of D-Bus would be
//! larger than the runtime, which is started for every call of an engine.

mod bus;
mod error;
mod message;
mod properties;
#[cfg(test)]
mod tests;
mod units;

pub use error::{Error, Result};
pub use message::{LONGEST, Message, length};
pub use properties::properties;
pub use units::{Manager, Whose};
