//! Containers with their images, changes, volumes, networks and ports as one file, and back.
//!
//! The file is the store's (`insula_store::workload`); what its document says is here. Why it is as it is:
//! `docs/design/bundle.md`.

mod changes;
mod pack;
mod restore;
mod taken;
mod unfinished;

use insula_base::Digest;
use insula_models::Workload;

pub use self::changes::Changes;
pub use self::pack::BundleRequest;
use crate::{Error, Result};

/// Version of the document.
const VERSION: u32 = 1;
/// Containers, volumes and networks of one file, each.
const PARTS_MAX: usize = 4096;

/// A document from a file, which may come from anywhere.
pub fn read(document: &[u8]) -> Result<Workload> {
    let workload: Workload = insula_models::from_json(document)
        .map_err(|error| Error::InvalidArgument(format!("insula.json: {error}")))?;
    if workload.version > VERSION {
        return Err(Error::Unsupported(format!(
            "the bundle was written by a newer version of insula ({}; this one knows {VERSION})",
            workload.version
        )));
    }
    if workload.version == 0 || workload.containers.is_empty() {
        return Err(Error::InvalidArgument("insula.json: no containers are in it".to_owned()));
    }
    let parts = [workload.containers.len(), workload.volumes.len(), workload.networks.len()];
    if parts.iter().any(|count| *count > PARTS_MAX) {
        return Err(Error::InvalidArgument(format!(
            "insula.json: more than {PARTS_MAX} of a kind are in it"
        )));
    }
    Ok(workload)
}

/// A digest that the document has as a text.
fn digest(text: &str) -> Result<Digest> {
    text.parse().map_err(|error| Error::InvalidArgument(format!("insula.json: {text:?}: {error}")))
}

/// `NAME` of `container:NAME`.
fn joined(mode: &str) -> Option<&str> {
    mode.strip_prefix("container:")
}
