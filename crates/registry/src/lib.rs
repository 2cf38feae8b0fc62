//! Client of OCI and Docker registries (OCI distribution specification 1.1; Docker's token
//! authentication): manifests, blobs, uploads, login, search.
//!
//! A registry is not trusted. Everything it sends is bounded, its redirects never carry
//! credentials to another host, and what has a digest is verified by whoever takes it in.
//! Nothing here touches the disk but certificates, or knows what an image is made of: that is the
//! store's.
//!
//! Runs on tokio, since only the daemon uses it.

mod auth;
mod blob;
mod error;
mod fetch;
mod http;
mod login;
mod manifest;
mod options;
mod platform;
mod referrers;
mod registries;
mod repository;
mod retry;
mod search;
mod tls;
mod upload;

pub use auth::{Challenge, Credentials, challenges};
pub use blob::Blob;
pub use error::{Error, Result};
pub use fetch::Fetch;
pub use login::Login;
pub use manifest::{Document, DocumentKind, Resolved, Stored};
pub use options::{Insecure, Limits, Mirror, OptionError, Options};
pub use platform::{PlatformError, Wanted};
pub use registries::Registries;
pub use repository::Repository;
pub use search::{Found, Search};
pub use upload::{Content, Pushed, Sent};
