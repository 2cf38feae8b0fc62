//! Names of images, as people type them and as documents carry them: the grammar of the
//! distribution project's `reference` package, with Docker's short forms.
//!
//! ```text
//! reference := name [ ":" tag ] [ "@" digest ]
//! name      := [ domain "/" ] component { "/" component }
//! domain    := part { "." part } [ ":" port ]  |  "[" ipv6 "]" [ ":" port ]
//! component := [a-z0-9]+ { ( "." | "_" | "__" | "-"+ ) [a-z0-9]+ }
//! tag       := [A-Za-z0-9_] [A-Za-z0-9_.-]{0,127}
//! ```

use std::fmt;
use std::str::FromStr;

use insula_base::{Digest, Kind, Kinded};
use serde::{Deserialize, Serialize};

/// The registry meant when none is written.
pub const DEFAULT_DOMAIN: &str = "docker.io";
/// The tag meant when neither tag nor digest is written.
pub const DEFAULT_TAG: &str = "latest";
const LEGACY_DEFAULT_DOMAIN: &str = "index.docker.io";
const OFFICIAL: &str = "library/";
const NAME_MAX: usize = 255;
const TAG_MAX: usize = 128;
/// Name, tag, digest and the signs between them; what is longer is not looked at.
const TEXT_MAX: usize = NAME_MAX + 1 + TAG_MAX + 1 + 7 + 64;

/// Text that names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid reference format: {why}: {text:?}")]
pub struct ReferenceError {
    text: String,
    why: &'static str,
}

impl Kinded for ReferenceError {
    fn kind(&self) -> Kind {
        Kind::InvalidArgument
    }
}

/// A complete name: `busybox` is read as `docker.io/library/busybox:latest`. What was written
/// with a digest and no tag has no tag.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Reads a name as a user of Docker writes it.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let wrong = |why| ReferenceError { text: text.chars().take(TEXT_MAX).collect(), why };
        if text.is_empty() {
            return Err(wrong("a name is expected"));
        }
        if text.len() > TEXT_MAX {
            return Err(wrong("too long"));
        }
        if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(wrong("a name may not be 64 hexadecimal digits, which is an id"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (
                rest,
                Some(digest.parse::<Digest>().map_err(|_| wrong("the digest is not sha256: and 64 digits"))?),
            ),
            None => (text, None),
        };
        let (name, tag) = split_tag(rest);
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(wrong("the tag may hold letters, digits, '_', '.', '-', 128 at most"));
        }
        let (domain, path) = split_domain(name);
        let path =
            if domain == DEFAULT_DOMAIN && !path.contains('/') { format!("{OFFICIAL}{path}") } else { path };
        check_name(&domain, &path).map_err(wrong)?;
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some(DEFAULT_TAG.to_owned()),
        };
        Ok(Self { domain, path, tag, digest })
    }

    /// Registry host and port.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Repository below the registry (`library/busybox`).
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag; absent only where a digest was written.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest of the manifest, where one was written.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Registry and repository, complete (`docker.io/library/busybox`).
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// Registry and repository as people write them (`busybox`, `user/app`, `localhost:5000/app`).
    #[must_use]
    pub fn familiar_name(&self) -> String {
        if self.domain != DEFAULT_DOMAIN {
            return self.name();
        }
        match self.path.strip_prefix(OFFICIAL) {
            // `docker.io/library/a/b` has no shorter form that reads back as itself.
            Some(short) if !short.contains('/') => short.to_owned(),
            _ => self.path.clone(),
        }
    }

    /// The whole reference as people write it, tag included (`busybox:latest`).
    #[must_use]
    pub fn familiar(&self) -> String {
        self.with_suffix(self.familiar_name())
    }

    /// The same repository with another tag and no digest.
    pub fn with_tag(&self, tag: &str) -> Result<Self, ReferenceError> {
        if !is_tag(tag) {
            return Err(ReferenceError {
                text: tag.chars().take(TAG_MAX).collect(),
                why: "the tag may hold letters, digits, '_', '.', '-', 128 at most",
            });
        }
        Ok(Self { tag: Some(tag.to_owned()), digest: None, ..self.clone() })
    }

    fn with_suffix(&self, mut text: String) -> String {
        if let Some(tag) = &self.tag {
            text.push(':');
            text.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            text.push('@');
            text.push_str(digest.as_str());
        }
        text
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for Reference {
    type Error = ReferenceError;
    fn try_from(text: String) -> Result<Self, ReferenceError> {
        Self::parse(&text)
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.to_string()
    }
}

/// The complete form.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_suffix(self.name()))
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A colon after the last slash begins the tag; one before it belongs to a port.
fn split_tag(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (text, None),
    }
}

/// What stands before the first slash is a registry only if it cannot be a user's name.
fn split_domain(name: &str) -> (String, String) {
    let (domain, path) = match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':', '['])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_DOMAIN, name),
    };
    let domain = if domain == LEGACY_DEFAULT_DOMAIN { DEFAULT_DOMAIN } else { domain };
    (domain.to_owned(), path.to_owned())
}

fn check_name(domain: &str, path: &str) -> Result<(), &'static str> {
    if !is_domain(domain) {
        return Err("the registry is not a host name with an optional port");
    }
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("repository name must be lowercase");
    }
    if !path.split('/').all(is_component) {
        return Err("a repository name holds a-z, 0-9 and single separators between them");
    }
    if domain.len() + 1 + path.len() > NAME_MAX {
        return Err("repository name must not be more than 255 characters");
    }
    Ok(())
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= TAG_MAX
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

fn is_component(text: &str) -> bool {
    let bytes = text.as_bytes();
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    if !bytes.first().is_some_and(alphanumeric) || !bytes.last().is_some_and(alphanumeric) {
        return false;
    }
    bytes.split(alphanumeric).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-')
    })
}

fn is_domain(text: &str) -> bool {
    let (host, port) = match text.rfind(':') {
        Some(at) if !text[at..].contains(']') => (&text[..at], Some(&text[at + 1..])),
        _ => (text, None),
    };
    if port.is_some_and(|port| port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit())) {
        return false;
    }
    if let Some(inner) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return !inner.is_empty() && inner.bytes().all(|b| b.is_ascii_hexdigit() || b == b':');
    }
    host.split('.').all(|part| {
        !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(text: &str) -> String {
        Reference::parse(text).unwrap().to_string()
    }

    #[test]
    fn short_forms_are_completed() {
        assert_eq!(full("busybox"), "docker.io/library/busybox:latest");
        assert_eq!(full("busybox:1.36"), "docker.io/library/busybox:1.36");
        assert_eq!(full("user/app"), "docker.io/user/app:latest");
        assert_eq!(full("index.docker.io/busybox"), "docker.io/library/busybox:latest");
        assert_eq!(full("localhost/app"), "localhost/app:latest");
        assert_eq!(full("localhost:5000/app"), "localhost:5000/app:latest");
        assert_eq!(full("Host/app"), "Host/app:latest");
        assert_eq!(full("[::1]:5000/app:x"), "[::1]:5000/app:x");
        assert_eq!(full("a.b/c/d__e-f.g"), "a.b/c/d__e-f.g:latest");
        assert_eq!(full("a---b"), "docker.io/library/a---b:latest");
    }

    #[test]
    fn a_digest_needs_no_tag() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let reference = Reference::parse(&format!("busybox@{digest}")).unwrap();
        assert_eq!((reference.tag(), reference.digest().unwrap().as_str()), (None, digest.as_str()));
        assert_eq!(reference.familiar(), format!("busybox@{digest}"));
        let both = format!("docker.io/library/busybox:1@{digest}");
        assert_eq!(full(&format!("busybox:1@{digest}")), both);
    }

    #[test]
    fn familiar_forms_read_back_as_themselves() {
        for (text, familiar) in [
            ("busybox", "busybox:latest"),
            ("docker.io/library/busybox:1", "busybox:1"),
            ("docker.io/user/app", "user/app:latest"),
            ("docker.io/library/a/b", "library/a/b:latest"),
            ("localhost:5000/a/b:c", "localhost:5000/a/b:c"),
        ] {
            let reference = Reference::parse(text).unwrap();
            assert_eq!(reference.familiar(), familiar);
            assert_eq!(Reference::parse(familiar).unwrap(), reference);
        }
    }

    #[test]
    fn malformed_names_are_refused() {
        let digits = "a".repeat(64);
        let long = format!("{}/b", "a".repeat(254));
        let tag = format!("a:{}", "t".repeat(129));
        for text in [
            "",
            ":",
            ":tag",
            "a:",
            "a b",
            "a/",
            "/a",
            "a//b",
            "-a",
            "a-",
            "a..b",
            "a._b",
            "a___b",
            "Busybox",
            "user/App",
            "a:tag:tag",
            "a:-x",
            "a@sha256:abc",
            "a@md5:00",
            "a.b:x/c",
            "a_b.c/d",
            "-h.x/a",
            "[::1/a",
            "é",
            "a\0",
            "a\n",
            &digits,
            &long,
            &tag,
        ] {
            assert!(Reference::parse(text).is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn errors_name_the_text_and_the_reason() {
        let error = Reference::parse("user/App").unwrap_err();
        assert_eq!(
            error.to_string(),
            "invalid reference format: repository name must be lowercase: \"user/App\""
        );
        assert!(Reference::parse(&"x".repeat(10_000)).unwrap_err().to_string().len() < 600);
    }

    #[test]
    fn serde_uses_the_complete_form() {
        let reference: Reference = serde_json::from_str("\"busybox\"").unwrap();
        assert_eq!(serde_json::to_string(&reference).unwrap(), "\"docker.io/library/busybox:latest\"");
        assert_eq!(reference.with_tag("2").unwrap().familiar(), "busybox:2");
        assert!(reference.with_tag("a/b").is_err());
    }
}
