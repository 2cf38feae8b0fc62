//! `run` and `create`: flags, the request they make, and being attached.

pub(crate) mod attached;
pub(crate) mod create;
pub(crate) mod exit;
pub(crate) mod flags;
pub(crate) mod resolve;
pub(crate) mod start;
mod timing;
