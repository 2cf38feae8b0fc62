//! What can go wrong with a registry.

use std::path::PathBuf;

use insula_base::{Digest, Kind, Kinded};
use insula_spec::image::DocumentError;
use insula_spec::reference::ReferenceError;

/// The result of everything that is asked of a registry.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of a registry, or of the way to it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The registry wants other credentials, or any.
    #[error("{what}: access denied: {why}")]
    Denied { what: String, why: String },
    /// Credentials that the registry did not accept.
    #[error("login to {host}: unauthorized: {why}")]
    Unauthorized { host: String, why: String },
    /// The registry does not have it.
    #[error("{what} not found: {why}")]
    NotFound { what: String, why: String },
    /// The registry cannot be reached, or the connection broke.
    #[error("{doing}")]
    Connection {
        doing: String,
        #[source]
        source: reqwest::Error,
    },
    /// The registry answered with something else than what was asked for.
    #[error("{doing}: the registry answered {status}{why}")]
    Status { doing: String, status: ::http::StatusCode, why: String, wait: Option<std::time::Duration> },
    /// A redirect that is not followed.
    #[error("{doing}: a redirect is not followed: {why}")]
    Redirect { doing: String, why: String },
    /// An answer that breaks the protocol.
    #[error("{doing}: the registry's answer is not valid: {why}")]
    Protocol { doing: String, why: String },
    /// A body that is longer than declared or allowed.
    #[error("{what} is longer than {limit} bytes")]
    TooLong { what: String, limit: u64 },
    /// A body that ended before it was complete.
    #[error("{what} ended after {got} of {size} bytes")]
    Cut { what: String, got: u64, size: u64 },
    /// A body that came to a halt, or to a trickle.
    #[error("{what} came too slowly: less than {least} bytes in {seconds} seconds")]
    Slow { what: String, least: u64, seconds: u64 },
    /// Content is not what its digest says.
    #[error("{what} has the digest {found}, {expected} was expected")]
    Mismatch { what: String, expected: Digest, found: Digest },
    /// The image is not there for the platform.
    #[error("no matching manifest for {wanted} in the manifest list entries of {name}: it has {has}")]
    NoPlatform { name: String, wanted: String, has: String },
    /// What is there is no image.
    #[error("{name} is not an image: {why}")]
    NotAnImage { name: String, why: String },
    /// A registry or a feature that is not spoken.
    #[error("{0}")]
    Unsupported(String),
    /// Credentials, an address or an option that cannot be understood.
    #[error("{0}")]
    Invalid(String),
    /// Content that was to be pushed could not be read.
    #[error("read {what}")]
    Content {
        what: String,
        #[source]
        source: std::io::Error,
    },
    /// A certificate or key cannot be used.
    #[error("{path:?}: {why}")]
    Certificate { path: PathBuf, why: String },
    /// TLS cannot be set up for a host.
    #[error("set up TLS for {host}")]
    Tls {
        host: String,
        #[source]
        source: rustls::Error,
    },
    #[error(transparent)]
    Document(#[from] DocumentError),
    #[error(transparent)]
    Reference(#[from] ReferenceError),
}

impl Error {
    /// Whether the same request may succeed a moment later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            // A certificate does not get better by asking again.
            Self::Connection { source, .. } => !is_certificate(source),
            Self::Status { status, .. } => matches!(status.as_u16(), 408 | 425 | 429 | 500 | 502 | 503 | 504),
            Self::Cut { .. } | Self::Slow { .. } => true,
            _ => false,
        }
    }

    /// Whether another place may have what this one has not, or not right.
    #[must_use]
    pub fn is_local_to_source(&self) -> bool {
        !matches!(self, Self::Content { .. } | Self::Invalid(_))
    }

    pub(crate) fn protocol(doing: &str, why: impl Into<String>) -> Self {
        Self::Protocol { doing: doing.to_owned(), why: why.into() }
    }
}

/// A failure of verification inside of a connection's failure.
pub(crate) fn is_certificate(error: &reqwest::Error) -> bool {
    tls_error(error).is_some_and(|error| {
        matches!(
            error,
            rustls::Error::InvalidCertificate(_)
                | rustls::Error::NoCertificatesPresented
                | rustls::Error::AlertReceived(_)
        )
    })
}

fn tls_error(error: &reqwest::Error) -> Option<&rustls::Error> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        // An i/o error shows what it wraps by another way than its source.
        next = match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

impl Kinded for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Denied { .. } | Self::Unauthorized { .. } => Kind::Denied,
            Self::NotFound { .. } | Self::NoPlatform { .. } => Kind::NotFound,
            Self::Connection { .. } | Self::Slow { .. } | Self::Cut { .. } => Kind::Unavailable,
            Self::Status { .. } if self.is_transient() => Kind::Unavailable,
            Self::Status { .. }
            | Self::Redirect { .. }
            | Self::Protocol { .. }
            | Self::TooLong { .. }
            | Self::Mismatch { .. }
            | Self::Content { .. }
            | Self::Certificate { .. }
            | Self::Tls { .. } => Kind::Internal,
            Self::NotAnImage { .. } | Self::Unsupported(_) => Kind::Unsupported,
            Self::Invalid(_) => Kind::InvalidArgument,
            Self::Document(error) => error.kind(),
            Self::Reference(error) => error.kind(),
        }
    }
}

/// Text from a registry, fit for a message: one line of bounded length without control characters,
/// which a terminal might obey.
pub(crate) fn printable(text: &str) -> String {
    const LONGEST: usize = 300;
    let mut clean: String =
        text.trim().chars().take(LONGEST).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.trim().chars().count() > LONGEST {
        clean.push('…');
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_registries_say_cannot_steer_a_terminal() {
        assert_eq!(printable(" a\x1b[2Jb\r\nc "), "a [2Jb  c");
        assert_eq!(printable(&"x".repeat(1000)).chars().count(), 301);
    }

    #[test]
    fn only_what_may_change_is_tried_again() {
        let status = |code| Error::Status {
            doing: "x".to_owned(),
            status: ::http::StatusCode::from_u16(code).unwrap(),
            why: String::new(),
            wait: None,
        };
        assert!([429, 500, 502, 503, 504].map(status).iter().all(Error::is_transient));
        assert!(![400, 405, 413, 501].map(status).iter().any(Error::is_transient));
        assert!(!Error::NotFound { what: "x".to_owned(), why: String::new() }.is_transient());
    }
}
