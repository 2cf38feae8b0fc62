//! What can go wrong in the store.

use std::io;
use std::path::{Path, PathBuf};

use insula_base::{DiffId, Digest, DigestError, Kind, Kinded};
use insula_spec::image::DocumentError;
use insula_spec::reference::ReferenceError;

use crate::Collection;

/// The result of everything that the store does.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call on a file failed.
    #[error("{call} {path:?}")]
    Io {
        call: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The stream that an image is read from failed.
    #[error("read the image archive")]
    Input(#[source] io::Error),
    /// Who an image archive is written for took no more.
    #[error("write the image archive")]
    Output(#[source] io::Error),
    /// The host has none left for the moment.
    #[error(transparent)]
    Thread(io::Error),
    /// A statement of the state database failed.
    #[error("{doing} in the state database {path:?}")]
    Database {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    /// The state database cannot grow.
    #[error(
        "{doing} in the state database {path:?}: the disk is full; remove containers or images, or make room"
    )]
    Full { doing: &'static str, path: PathBuf },
    /// Files are to be verified by the kernel, and cannot be.
    #[error(
        "the kernel cannot verify files below {path:?}, as storage-opt verity=true asks: it needs CONFIG_FS_VERITY and \
         a file system with that feature (ext4: tune2fs -O verity)"
    )]
    NoVerity {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The state database cannot be read.
    #[error(
        "the state database {path:?} is damaged ({why}); restore it from a backup, or move it away to begin anew"
    )]
    Damaged { path: PathBuf, why: String },
    /// What is on disk was written by a later version.
    #[error("{path:?} was written by a newer version of insula ({found}; this one knows {known})")]
    Newer { path: PathBuf, found: String, known: String },
    /// Another daemon has the root, or the run folder.
    #[error("the folder {0:?} is in use by another daemon")]
    Locked(PathBuf),
    /// Containers of another root live in the run folder.
    #[error(
        "containers of the root {root:?} live in {run:?}: give this daemon a run folder of its own (--run)"
    )]
    Foreign { run: PathBuf, root: PathBuf },
    /// A record with this id is there already.
    #[error("{collection} {id} exists already")]
    IdTaken { collection: Collection, id: String },
    /// A record with this name is there already.
    #[error("the {collection} name {name:?} is already in use by {owner}")]
    NameTaken { collection: Collection, name: String, owner: String },
    /// No record with this id or name.
    #[error("no such {collection}: {id}")]
    NoRecord { collection: Collection, id: String },
    /// A number was wanted that another owner has.
    #[error("{number} of {pool} is taken by {owner}")]
    NumberTaken { pool: String, number: u64, owner: String },
    /// A number was wanted that is outside of the pool's range.
    #[error("{number} is outside of {pool} ({first} to {last})")]
    NumberOutside { pool: String, number: u64, first: u64, last: u64 },
    /// Every number of the range is taken.
    #[error("{pool} is exhausted: all numbers from {first} to {last} are taken")]
    PoolExhausted { pool: String, first: u64, last: u64 },
    /// No image by this name or id.
    #[error("No such image: {0}")]
    NoImage(String),
    /// More than one image begins with these digits.
    #[error("the id {0} is ambiguous: several images begin with it")]
    AmbiguousImage(String),
    /// The image cannot be removed as things are; Docker's words.
    #[error("conflict: unable to {what} ({force}) - {why}")]
    ImageInUse { what: String, force: &'static str, why: String },
    /// A built-in image can neither be removed nor renamed over.
    #[error("{0} is a built-in image")]
    Builtin(String),
    /// An archive that is malformed or hostile.
    #[error("invalid image archive: {0}")]
    Archive(String),
    /// A tar entry that is malformed or hostile, or that could not be made.
    #[error("layer entry {path:?}: {why}")]
    Entry {
        path: PathBuf,
        why: String,
        #[source]
        source: Option<io::Error>,
    },
    /// Content is not what its digest says.
    #[error("{what} has the digest {found}, {expected} was declared")]
    Mismatch { what: String, expected: Digest, found: Digest },
    /// A bound was exceeded.
    #[error("{what} exceeds the limit of {limit}")]
    Limit { what: String, limit: u64 },
    /// A layer that an image needs is neither here nor came with it.
    #[error("the layer {0} is missing")]
    NoLayer(String),
    /// A layer of a store that kept no recipes yet.
    #[error(
        "the archive of layer {0} cannot be made again: it was taken in by an older version; load or pull its image again"
    )]
    NoRecipe(DiffId),
    /// What makes a layer's archive again is damaged.
    #[error("the recipe {path:?} is damaged: {why}")]
    Recipe { path: PathBuf, why: &'static str },
    /// A blob that is not stored.
    #[error("no such content: {0}")]
    NoContent(Digest),
    /// A name that cannot be a folder of its own.
    #[error("{name:?} is not a valid {what} name")]
    BadName { what: &'static str, name: String },
    #[error(transparent)]
    Document(#[from] DocumentError),
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// The disk of a writable layer.
    #[error(transparent)]
    Disk(#[from] insula_host::disk::Error),
    /// A defect of this program.
    #[error("{0}")]
    Defect(&'static str),
    /// The image or host needs what this version or host has not.
    #[error("{0}")]
    Unsupported(String),
}

impl Error {
    pub(crate) fn io(call: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io { call, path: path.to_owned(), source: source.into() }
    }
}

/// How a failed call on the engine's own files is seen from outside.
fn io_kind(error: &io::Error) -> Kind {
    match error.kind() {
        io::ErrorKind::PermissionDenied => Kind::Denied,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Kind::Unavailable,
        io::ErrorKind::Unsupported => Kind::Unsupported,
        _ => Kind::Internal,
    }
}

impl Kinded for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Io { source, .. } => io_kind(source),
            Self::Entry { source: Some(source), .. } => match io_kind(source) {
                Kind::Internal => Kind::InvalidArgument,
                kind => kind,
            },
            Self::Input(_)
            | Self::Output(_)
            | Self::NumberOutside { .. }
            | Self::Archive(_)
            | Self::Entry { source: None, .. }
            | Self::Mismatch { .. }
            | Self::Limit { .. }
            | Self::NoLayer(_)
            | Self::BadName { .. } => Kind::InvalidArgument,
            Self::Database { .. } | Self::Damaged { .. } | Self::Recipe { .. } | Self::Defect(_) => {
                Kind::Internal
            }
            Self::Newer { .. } | Self::NoVerity { .. } | Self::Unsupported(_) => Kind::Unsupported,
            Self::Locked(_)
            | Self::Foreign { .. }
            | Self::AmbiguousImage(_)
            | Self::ImageInUse { .. }
            | Self::Builtin(_) => Kind::Conflict,
            Self::IdTaken { .. } | Self::NameTaken { .. } | Self::NumberTaken { .. } => Kind::AlreadyExists,
            Self::NoRecord { .. } | Self::NoImage(_) | Self::NoContent(_) | Self::NoRecipe(_) => {
                Kind::NotFound
            }
            Self::PoolExhausted { .. } | Self::Full { .. } | Self::Thread(_) => Kind::Unavailable,
            Self::Document(error) => error.kind(),
            Self::Reference(error) => error.kind(),
            Self::Digest(error) => error.kind(),
            Self::Disk(error) => error.kind(),
        }
    }
}
