//! What the daemon keeps on disk: state (a database of declared objects), content (verified
//! blobs), layers (unpacked file systems), images (names, configurations, layers) and the
//! folders of containers and volumes.
//!
//! Everything here is synchronous and may block on the disk; the daemon calls it from threads
//! that may. Nothing here mounts, forks or knows what runs.
//!
//! ```text
//! <root>/                     one daemon at a time: flock on VERSION's sister `lock`
//!   VERSION                   layout number and feature flags, one `key value` a line
//!   state.db                  see `state`
//!   content/blobs/sha256/<64> manifests, configurations, layers that came compressed; verified before
//!                             they are linked in
//!   content/ingest/           bytes on their way in; swept at open
//!   layers/<64>/              one unpacked layer each, named by its chain id
//!   layers/recipes/<64>/      what makes the archive of a layer again, named by its diff id; see `recipe`
//!   layers/files/             a second name of each file that layers may share; see `layers::files`
//!   layers/tmp/               layers not yet complete, or on their way out; swept at open
//!   points/                   what every container has, and what the engine mounts on, empty: their lowest layer
//!   containers/<64>/          upper/ work/ logs/; see `containers`
//!   volumes/<name>/_data/
//!   caches/<key>/             what commands of builds keep from one build to the next
//!   reserve                   room for the records of a removal when the disk is full
//! ```

pub mod archive;
mod caches;
mod containers;
mod content;
mod error;
pub mod images;
pub mod layers;
mod lock;
pub mod recipe;
mod root;
pub mod state;
mod stream;
mod tree;
mod usage;
pub mod workload;

pub use caches::CacheOwner;
pub use containers::{ContainerDir, LayerSize, StagedUpper, Writer};
pub use content::Content;
pub use error::{Error, Result};
pub use images::{
    Attested, BlobReader, CommitOptions, Composed, Described, Difference, Force, Image, ImageKind,
    ImageLease, Images, ImportOptions, IndexParts, Ingested, IngestedBlob, IngestedLayer, LayerBlob,
    LayerLease, LayerPlace, Loaded, ManifestLease, Names, Part, Progress, Removal, Scratch, StagedLayer,
    Standing, StandingIndex, Statement,
};
pub use layers::{Layer, Layers};
pub use lock::take_run;
pub use root::{MOUNT_POINTS, Store};
pub use state::{Allocation, Allocations, Collection, Record, Records, State, Transaction};
pub use stream::decompressed;
pub use usage::{ContainerUsage, SharedFiles, Usage};
