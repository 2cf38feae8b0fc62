//! Who we are, to a registry and to the token server that it names.

mod challenge;
mod credentials;
mod token;

pub use challenge::{Challenge, challenges};
pub use credentials::Credentials;
pub(crate) use token::{Session, same_origin};
