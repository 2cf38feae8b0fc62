//! The eight kinds of error. Each crate has its own error enum; `kind()` maps it once to what
//! the edges need: an HTTP status, an exit code.

use std::error::Error;

/// What went wrong, seen from who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request itself is malformed or contradicts itself.
    InvalidArgument,
    /// The named object does not exist.
    NotFound,
    /// The name or object is taken.
    AlreadyExists,
    /// The object is in a state that forbids the request.
    Conflict,
    /// The caller or the engine lacks the right.
    Denied,
    /// A resource or peer is not there now; trying again may help.
    Unavailable,
    /// The host, the wall or this version cannot do it.
    Unsupported,
    /// A defect or an unexpected answer of the system.
    Internal,
}

impl Kind {
    /// The HTTP status that Docker's API uses for this kind.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        match self {
            Self::InvalidArgument => 400,
            Self::Denied => 403,
            Self::NotFound => 404,
            Self::AlreadyExists | Self::Conflict => 409,
            Self::Unsupported => 501,
            Self::Unavailable => 503,
            Self::Internal => 500,
        }
    }

    /// The stable wire number, used by the task protocol.
    #[must_use]
    pub const fn code(self) -> u32 {
        match self {
            Self::InvalidArgument => 1,
            Self::NotFound => 2,
            Self::AlreadyExists => 3,
            Self::Conflict => 4,
            Self::Denied => 5,
            Self::Unavailable => 6,
            Self::Unsupported => 7,
            Self::Internal => 8,
        }
    }

    /// The inverse of [`Kind::code`]; what a newer peer may send and we do not know is internal.
    #[must_use]
    pub const fn from_code(code: u32) -> Self {
        match code {
            1 => Self::InvalidArgument,
            2 => Self::NotFound,
            3 => Self::AlreadyExists,
            4 => Self::Conflict,
            5 => Self::Denied,
            6 => Self::Unavailable,
            7 => Self::Unsupported,
            _ => Self::Internal,
        }
    }
}

/// An error that knows its kind.
pub trait Kinded: Error {
    /// The kind that the edge maps to a status or an exit code.
    fn kind(&self) -> Kind;
}

/// The message of an error and of everything that caused it, `: ` between them.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = plain(&error.to_string()).to_owned();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(plain(&cause.to_string()));
        source = cause.source();
    }
    text
}

/// Without the number that the standard library puts behind the name of a system error.
fn plain(message: &str) -> &str {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match message.strip_suffix(')').and_then(|text| text.rsplit_once(" (os error ")) {
        Some((name, code)) if number(code) => name,
        _ => message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_round_trip() {
        for code in 1..=8 {
            assert_eq!(Kind::from_code(code).code(), code);
        }
        assert_eq!(Kind::from_code(0), Kind::Internal);
    }

    #[test]
    fn chain_prints_each_cause_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("open /x")]
        struct Open(#[source] std::io::Error);
        let error = Open(std::io::Error::other("no luck"));
        assert_eq!(chain(&error), "open /x: no luck");
        let error = Open(std::io::Error::from_raw_os_error(2));
        assert_eq!(chain(&error), "open /x: No such file or directory");
    }
}
