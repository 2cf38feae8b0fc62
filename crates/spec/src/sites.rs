//! Host names that lead to containers: what users write (`--publish-host`, the label [`LABEL`]), and the
//! [`Table`] that the daemon gives the proxy that serves them.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The label of a container that says the same as `--publish-host`: sites, separated by commas.
pub const LABEL: &str = "insula.http.host";
/// Sites of one container.
pub const MOST_SITES: usize = 1024;
/// Raised when an older proxy could not read what it is told any more, or an older daemon its answers.
pub const VERSION: u32 = 2;
/// Bytes of one message between daemon and proxy.
pub const LARGEST_MESSAGE: usize = 64 << 20;

/// A text that is no site, or no host name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error(
        "invalid host name {0:?}: letters, digits and hyphens between dots are expected, at most 253, as in \
         www.example.org or *.example.org; names of other scripts in their xn-- form"
    )]
    Name(String),
    #[error("invalid site {0:?}: NAME[:PORT][/PROTOCOL] is expected, PORT a number from 1 to 65535")]
    Port(String),
    #[error(
        "invalid site {0:?}: NAME[:PORT][/PROTOCOL] is expected rather than a URL, as in www.example.org or \
         www.example.org:8080"
    )]
    Url(String),
    #[error("invalid site {0:?}: the protocol is http, h2c or tls")]
    Protocol(String),
    #[error("{count} host names are more than the {MOST_SITES} of one container")]
    TooMany { count: usize },
}

/// A host name (RFC 1123) in lower case and without the closing dot; in a site, `*.` may stand for one or more
/// labels at its beginning.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostName(String);

impl HostName {
    /// The name in a `Host` header or an authority: without the port.
    ///
    /// # Errors
    /// [`Error::Name`] for what is no name, addresses of IPv6 among it.
    pub fn of_authority(text: &str) -> Result<Self, Error> {
        let wrong = || Error::Name(shortened(text));
        let (name, port) = text.rsplit_once(':').unwrap_or((text, ""));
        if !port.bytes().all(|byte| byte.is_ascii_digit()) || name.starts_with("*.") {
            return Err(wrong());
        }
        name.parse().map_err(|_| wrong())
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Itself, then the patterns that it is one of, the closest first.
    pub fn patterns(&self) -> impl Iterator<Item = String> {
        let parents = self.0.match_indices('.').map(|(at, _)| format!("*{}", &self.0[at..]));
        std::iter::once(self.0.clone()).chain(parents)
    }
}

impl FromStr for HostName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || Error::Name(shortened(text));
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let plain = name.strip_prefix("*.").unwrap_or(&name);
        let sign =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(sign)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if name.len() > 253 || !plain.split('.').all(label) {
            return Err(wrong());
        }
        Ok(Self(name))
    }
}

impl TryFrom<String> for HostName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<HostName> for String {
    fn from(name: HostName) -> Self {
        name.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a container speaks at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Speech {
    /// HTTP/1.1; connections with TLS are decrypted before. Where there is a certificate of the name, who comes
    /// without TLS is sent there.
    Http,
    /// The same, and who comes without TLS is served as well.
    Plain,
    /// HTTP/2 without TLS, as servers of gRPC speak it; who comes without TLS is served as well.
    H2c,
    /// TLS of its own: connections are passed on unread.
    Tls,
}

/// One host name of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    pub name: HostName,
    /// The container's port; what follows from what it exposes without it.
    pub port: Option<u16>,
    pub speech: Speech,
}

impl Site {
    /// Those of a label, in which each name stands once.
    ///
    /// # Errors
    /// Those of one site, and [`Error::TooMany`].
    pub fn list(text: &str) -> Result<Vec<Self>, Error> {
        let count = text.split(',').count();
        if count > MOST_SITES {
            return Err(Error::TooMany { count });
        }
        let sites = text.split(',').map(str::trim).filter(|site| !site.is_empty()).map(str::parse);
        let mut by_name = BTreeMap::new();
        for site in sites {
            let site: Self = site?;
            by_name.insert(site.name.clone(), site);
        }
        Ok(by_name.into_values().collect())
    }
}

impl FromStr for Site {
    type Err = Error;

    /// `NAME[:PORT][/PROTOCOL]`.
    fn from_str(text: &str) -> Result<Self, Error> {
        if text.contains("://") {
            return Err(Error::Url(shortened(text)));
        }
        let (place, protocol) = text.split_once('/').unwrap_or((text, ""));
        let speech = match protocol {
            "" if place == text => Speech::Http,
            "http" => Speech::Plain,
            "h2c" => Speech::H2c,
            "tls" => Speech::Tls,
            _ => return Err(Error::Protocol(shortened(text))),
        };
        let (name, port) = match place.split_once(':') {
            None => (place, None),
            Some((name, port)) => {
                let wrong = || Error::Port(shortened(text));
                let digits = port.bytes().all(|byte| byte.is_ascii_digit());
                let port = port.parse::<u16>().ok().filter(|port| digits && *port != 0);
                (name, Some(port.ok_or_else(wrong)?))
            }
        };
        Ok(Self { name: name.parse()?, port, speech })
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)?;
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        f.write_str(match self.speech {
            Speech::Http => "",
            Speech::Plain => "/http",
            Speech::H2c => "/h2c",
            Speech::Tls => "/tls",
        })
    }
}

/// Foreign text in messages is not longer than anybody reads.
fn shortened(text: &str) -> String {
    text.chars().take(64).collect()
}

/// Everything that the proxy serves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    pub sites: Vec<Served>,
    pub certificates: Vec<Certificate>,
}

/// Who answers to a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    pub name: HostName,
    pub speech: Speech,
    /// Those that are up; empty while none is.
    pub targets: Vec<SocketAddr>,
}

/// A certificate as its files have it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// What it is called in messages.
    pub source: String,
    /// PEM, the site's own first.
    pub chain: String,
    /// PEM.
    pub key: String,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("source", &self.source).finish_non_exhaustive()
    }
}

/// What the daemon says to the proxy. Each message is JSON behind its length, four bytes, the highest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Who are you?
    Hello,
    /// Serve this from now on.
    Serve(Table),
    /// Answer when none of these, which are served no longer, has a request under way, or after so many
    /// milliseconds. Connections that have changed their protocol, or that are passed on unread, are not waited for.
    Drain { targets: Vec<SocketAddr>, within: u64 },
    /// Take no connections any more, and end when those that there are have ended.
    End,
}

/// What the proxy answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    Hello(Hello),
    /// It is served, but for what the warnings are about.
    Served {
        warnings: Vec<String>,
    },
    /// So many requests are still under way.
    Drained {
        left: usize,
    },
    /// The addresses are free again.
    Ended,
    /// The order makes no sense to this proxy.
    Refused {
        why: String,
    },
}

/// What a proxy is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Of what it understands: [`VERSION`].
    pub version: u32,
    pub http: Vec<SocketAddr>,
    pub https: Vec<SocketAddr>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_is_a_name_with_a_port_and_a_protocol() {
        let site = |text: &str| text.parse::<Site>().unwrap();
        assert_eq!(
            site("WWW.Example.org.:8080"),
            Site { name: HostName("www.example.org".into()), port: Some(8080), speech: Speech::Http }
        );
        for (text, speech) in [
            ("a", Speech::Http),
            ("a:81/http", Speech::Plain),
            ("*.a.b:50051/h2c", Speech::H2c),
            ("a/tls", Speech::Tls),
        ] {
            assert_eq!((site(text).speech, site(text).to_string().as_str()), (speech, text));
        }
        let url = "https://a:80/x".parse::<Site>().unwrap_err();
        assert!(matches!(&url, Error::Url(text) if text == "https://a:80/x"), "{url}");
        assert_eq!(site("*.example.org").name.as_str(), "*.example.org");
        for bad in [
            "",
            ":80",
            "a:",
            "a:0",
            "a:65536",
            "a:+1",
            "a:80/udp",
            "a/",
            "-a",
            "a..b",
            "*",
            "a.*.b",
            "ä.de",
            "a b",
            "[::1]:80",
            "a/http/tls",
            "*.*.a",
        ] {
            assert!(bad.parse::<Site>().is_err(), "{bad}");
        }
        assert!("a".repeat(64).parse::<HostName>().is_err());
        assert!(["a"; 128].join(".").parse::<HostName>().is_err());
    }

    #[test]
    fn a_label_has_many() {
        let names = |text: &str| {
            Site::list(text).map(|sites| sites.iter().map(|site| site.name.to_string()).collect::<Vec<_>>())
        };
        assert_eq!(names("b.org, a.org:81,,b.org/tls").unwrap(), ["a.org", "b.org"]);
        assert_eq!(names("").unwrap(), Vec::<String>::new());
        assert_eq!(names(&["x"; 1025].join(",")), Err(Error::TooMany { count: 1025 }));
    }

    #[test]
    fn headers_have_names_and_ports() {
        let name = |text: &str| HostName::of_authority(text).map(|name| name.0).ok();
        assert_eq!(name("Example.ORG:8080").as_deref(), Some("example.org"));
        assert_eq!(name("example.org:").as_deref(), Some("example.org"));
        assert_eq!(name("192.0.2.1").as_deref(), Some("192.0.2.1"));
        for bad in ["", "[::1]:80", "user@host", "*.example.org", "a:b", "a/b", "a,b"] {
            assert_eq!(name(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_closest_pattern_comes_first() {
        let name: HostName = "a.b.org".parse().unwrap();
        assert_eq!(name.patterns().collect::<Vec<_>>(), ["a.b.org", "*.b.org", "*.org"]);
    }
}
