//! Content digests of the OCI image specification ("Descriptors", section "Digests").

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Kind, Kinded};

/// A string that is not a digest that insula accepts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a digest: sha256: and 64 lowercase hexadecimal digits are expected")]
pub struct DigestError(String);

impl Kinded for DigestError {
    fn kind(&self) -> Kind {
        Kind::InvalidArgument
    }
}

/// `sha256:` and 64 lowercase hexadecimal digits. Other algorithms are registered (sha512), but
/// no registry in use produces them, so they are refused rather than half supported.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

const PREFIX: &str = "sha256:";

impl Digest {
    /// The digest whose 32 bytes a hash function returned.
    #[must_use]
    pub fn from_sha256(raw: &[u8; 32]) -> Self {
        Self(format!("{PREFIX}{}", crate::id::hex(raw)))
    }

    /// Algorithm and digits, as documents write it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The 64 digits alone: a safe file name.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.0[PREFIX.len()..]
    }

    /// The first 12 digits, which is how people meet an image.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.hex()[..12]
    }
}

impl FromStr for Digest {
    type Err = DigestError;
    fn from_str(text: &str) -> Result<Self, DigestError> {
        Self::try_from(text.to_owned())
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;
    fn try_from(text: String) -> Result<Self, DigestError> {
        let valid = text.strip_prefix(PREFIX).is_some_and(|hex| {
            hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        });
        if valid { Ok(Self(text)) } else { Err(DigestError(text)) }
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

macro_rules! digest_of {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Debug)]
        #[serde(transparent)]
        pub struct $name(pub Digest);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

digest_of! {
    /// Digest of a layer's uncompressed tar (OCI image configuration, `rootfs.diff_ids`).
    DiffId
}
digest_of! {
    /// Digest that names a stack of layers (OCI image configuration, "Layer ChainID").
    ChainId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sha256_is_accepted() {
        let good = format!("sha256:{}", "a".repeat(64));
        assert_eq!(good.parse::<Digest>().unwrap().hex(), "a".repeat(64));
        for bad in ["", "sha256:", "sha256:zz", &format!("sha512:{}", "a".repeat(128)), &"a".repeat(64)] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }
}
