//! A workload as one file: containers with their images and state, to be brought to another host.
//!
//! ```text
//! insula.json                       what there is; the engine's document
//! oci-layout  index.json  manifest.json  blobs/sha256/…    the images, as `save` writes them
//! insula/state/<hex>.tar            writable layers and volumes, by their SHA-256
//! insula/sha256                     SHA-256 of every byte before this member's content
//! ```
//!
//! It is an OCI layout, so that other tools read the images in it. The last member makes a file that was cut
//! or altered known before anything of it is used.

mod read;
mod spool;
mod write;

pub use read::{WorkloadFile, understand};
pub use spool::Spooled;
pub use write::State;

/// The member that says what there is.
const DOCUMENT: &str = "insula.json";
/// Where writable layers and volumes are.
const STATE: &str = "insula/state/";
/// The last member.
const SUM: &str = "insula/sha256";
/// Bytes of the document. A container's part of it is some kilobytes.
pub const DOCUMENT_MAX: u64 = 16 << 20;
