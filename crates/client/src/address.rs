//! Where a daemon listens.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use insula_base::Kind;

use crate::Error;

/// The address of a daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A unix socket's path.
    Unix(PathBuf),
}

impl Address {
    /// The socket's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        let Self::Unix(path) = self;
        path
    }
}

impl FromStr for Address {
    type Err = Error;

    /// `unix:///absolute/path` or an absolute path.
    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse = |reason, kind| Err(Error::Address { address: text.to_owned(), reason, kind });
        let path = match text.split_once("://") {
            Some(("unix", path)) => path,
            Some(("tcp" | "http" | "https" | "ssh", _)) => {
                return refuse("only unix:// is supported in this version", Kind::Unsupported);
            }
            Some(_) => return refuse("unix:///path is expected", Kind::InvalidArgument),
            None => text,
        };
        if !path.starts_with('/') {
            return refuse("the path of the socket must be absolute", Kind::InvalidArgument);
        }
        Ok(Self::Unix(PathBuf::from(path)))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix://{}", self.path().display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use insula_base::Kinded;

    #[test]
    fn unix_sockets_only() {
        assert_eq!("unix:///a/b".parse::<Address>().unwrap().path(), Path::new("/a/b"));
        assert_eq!("/a/b".parse::<Address>().unwrap().to_string(), "unix:///a/b");
        assert_eq!("tcp://h:1".parse::<Address>().unwrap_err().kind(), Kind::Unsupported);
        for bad in ["", "relative", "unix://relative", "what://x"] {
            assert_eq!(bad.parse::<Address>().unwrap_err().kind(), Kind::InvalidArgument, "{bad}");
        }
    }
}
