//! Typed client of the Engine API: one method a route, documents of `insula-models` in and out.
//!
//! A [`Client`] keeps connections that are idle and opens another when all are busy (a stream that
//! is being read, a hijacked one). Nothing is retried. Nothing here prints or reads terminals.

mod address;
mod body;
mod calls;
mod connection;
mod error;
mod hijack;
mod query;
mod stdcopy;
mod stream;

pub use address::Address;
pub use body::{RequestBody, Upload};
pub use calls::archive::{Archive, FileUpload};
pub use calls::build::{BuildAnswer, BuildOptions, BuildOutput, BuildPart, KeptContext, NamedContext};
pub use calls::containers::{AttachOptions, ListOptions, LogsOptions, Removal};
pub use calls::images::{CommitOptions, ImportOptions, Platform};
pub use calls::system::EventsOptions;
pub use calls::workload::UnbundleOptions;
pub use connection::Client;
pub use error::{Error, Result};
pub use hijack::Hijacked;
pub use query::{Filters, Query, encode};
pub use stdcopy::{Demultiplexer, Frames, Source, StdcopyError};
pub use stream::{ByteStream, JsonStream};
