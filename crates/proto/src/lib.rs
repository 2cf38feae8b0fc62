//! The task protocol: what the daemon asks of a monitor, and a guest's agent is asked in turn.
//!
//! A connection is a stream of frames in both directions: a length in four bytes, little endian,
//! then one protobuf message, [`Request`] towards the monitor and [`Reply`] back. Descriptors
//! travel by SCM_RIGHTS (unix(7)) with the first byte of the frame whose message counts them.
//! Requests carry an id that their reply repeats; replies with id 0 are events. Requests on one
//! connection may be sent without waiting and are carried out in order.
//!
//! Bulk data never passes here: who attaches hands in a socket, and the monitor speaks Docker's
//! stream format on it until one side is gone.
//!
//! Evolution: tags are never used again for something else; a new call that an old monitor does not
//! know arrives there as a request without a call and is answered `Unsupported`.

pub mod channel;
mod entry;
mod frame;
mod message;

pub use entry::{Damaged, LogEntry, MAX_ENTRY, PartialLogEntry, RotatedFrom};
pub use frame::{FrameError, FrameReader, MAX_DESCRIPTORS, MAX_FRAME, decode, encode};
pub use message::*;

/// Version of the protocol; a change that an older peer would misread raises it.
pub const VERSION: u32 = 1;

/// Exit code of `insula-monitor probe` where the file system cannot hold containers.
pub const NO_LAYERS: u8 = 3;
