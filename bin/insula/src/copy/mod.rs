//! Files between the host and tar streams.

pub(crate) mod context;
pub(crate) mod pack;
pub(crate) mod unpack;
