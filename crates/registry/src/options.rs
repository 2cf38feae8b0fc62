//! What can be configured about registries.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use insula_base::{Kind, Kinded};
use serde::Deserialize;
use url::Url;

/// Where private certificates are looked for: insula's own folder wins over Docker's.
const CERTIFICATES: [&str; 2] = ["/etc/insula/certs.d", "/etc/docker/certs.d"];

/// An option that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct OptionError(String);

impl Kinded for OptionError {
    fn kind(&self) -> Kind {
        Kind::InvalidArgument
    }
}

/// The daemon's configuration of registries.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Options {
    /// Mirrors by registry (`docker.io`, `registry.example:5000`), tried in order before the
    /// registry itself.
    #[serde(deserialize_with = "mirrors_by_registry")]
    pub mirrors: BTreeMap<String, Vec<Mirror>>,
    /// Registries that may be spoken to without TLS, or with a certificate that cannot be verified.
    /// Loopback addresses may anyway.
    pub insecure: Vec<Insecure>,
    /// Folders with a folder for each `HOST[:PORT]`: `*.crt` are authorities, `*.cert` with its
    /// `*.key` a certificate of ours.
    pub certificates: Vec<PathBuf>,
    /// Layers of one image that are downloaded at a time.
    pub downloads: usize,
    /// Layers of one image that are uploaded at a time.
    pub uploads: usize,
    #[serde(skip)]
    pub limits: Limits,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mirrors: BTreeMap::new(),
            insecure: Vec::new(),
            certificates: CERTIFICATES.map(PathBuf::from).to_vec(),
            downloads: 4,
            uploads: 4,
            limits: Limits::default(),
        }
    }
}

impl Options {
    /// Adds a mirror: `REGISTRY=URL`, or a bare URL for Docker Hub.
    pub fn add_mirror(&mut self, text: &str) -> Result<(), OptionError> {
        let (registry, url) = match text.split_once('=') {
            Some((registry, url)) if !registry.contains("://") => (registry, url),
            _ => (insula_spec::reference::DEFAULT_DOMAIN, text),
        };
        self.mirrors.entry(registry_name(registry)?).or_default().push(url.parse()?);
        Ok(())
    }

    /// Whether the registry (`HOST[:PORT]`) may be spoken to without verified TLS.
    #[must_use]
    pub fn is_insecure(&self, domain: &str) -> bool {
        is_loopback(domain) || self.insecure.iter().any(|insecure| insecure.covers(domain))
    }
}

fn registry_name(text: &str) -> Result<String, OptionError> {
    let name = match text {
        "index.docker.io" | "registry-1.docker.io" => insula_spec::reference::DEFAULT_DOMAIN,
        name => name,
    };
    // A name in it reads back with the same registry, or it is none.
    match insula_spec::reference::Reference::parse(&format!("{name}/x/y")) {
        Ok(reference) if reference.domain() == name => Ok(name.to_owned()),
        _ => Err(OptionError(format!("{text:?} is not a registry: HOST[:PORT] is expected"))),
    }
}

fn mirrors_by_registry<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, Vec<Mirror>>, D::Error> {
    let given = BTreeMap::<String, Vec<Mirror>>::deserialize(deserializer)?;
    let named = given.into_iter().map(|(registry, mirrors)| Ok((registry_name(&registry)?, mirrors)));
    named.collect::<Result<_, OptionError>>().map_err(serde::de::Error::custom)
}

/// The address of a registry that has what another one has.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Mirror {
    pub(crate) url: Url,
}

impl std::fmt::Display for Mirror {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.url.fmt(f)
    }
}

impl FromStr for Mirror {
    type Err = OptionError;
    fn from_str(text: &str) -> Result<Self, OptionError> {
        let wrong = |why: &str| OptionError(format!("mirror {text:?}: {why}"));
        let mut url = Url::parse(text).map_err(|error| wrong(&error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
            return Err(wrong("http://HOST or https://HOST is expected"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(OptionError(format!(
                "the mirror at {} may not have credentials in its address",
                url.host_str().unwrap_or_default()
            )));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("it may have neither query nor fragment"));
        }
        if !url.path().ends_with('/') {
            url.set_path(&format!("{}/", url.path()));
        }
        Ok(Self { url })
    }
}

impl TryFrom<String> for Mirror {
    type Error = OptionError;
    fn try_from(text: String) -> Result<Self, OptionError> {
        text.parse()
    }
}

/// A registry or a network whose registries need no verified TLS.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Insecure {
    /// `HOST` or `HOST:PORT`, as it stands in names of images.
    Host(String),
    /// `ADDRESS/BITS`: registries that are named by an address in it.
    Network(IpAddr, u8),
}

impl Insecure {
    fn covers(&self, domain: &str) -> bool {
        let (host, _) = split_port(domain);
        match self {
            Self::Host(name) => name == domain || name == host,
            Self::Network(network, bits) => {
                host.parse().is_ok_and(|address: IpAddr| prefix(address, *bits) == prefix(*network, *bits))
            }
        }
    }
}

/// The first bits of an address; `None` stands for none and equals none of the other family.
fn prefix(address: IpAddr, bits: u8) -> (bool, u128) {
    let (value, width) = match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    };
    (address.is_ipv4(), value.checked_shr(u32::from(width - bits.min(width))).unwrap_or(0))
}

impl FromStr for Insecure {
    type Err = OptionError;
    fn from_str(text: &str) -> Result<Self, OptionError> {
        let wrong = || OptionError(format!("{text:?}: HOST[:PORT] or ADDRESS/BITS is expected"));
        if let Some((address, bits)) = text.split_once('/') {
            let address: IpAddr = address.parse().map_err(|_| wrong())?;
            let bits: u8 = bits.parse().map_err(|_| wrong())?;
            let width = if address.is_ipv4() { 32 } else { 128 };
            return if bits <= width { Ok(Self::Network(address, bits)) } else { Err(wrong()) };
        }
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']');
        if text.is_empty() || !text.bytes().all(plain) {
            return Err(wrong());
        }
        Ok(Self::Host(text.to_owned()))
    }
}

impl TryFrom<String> for Insecure {
    type Error = OptionError;
    fn try_from(text: String) -> Result<Self, OptionError> {
        text.parse()
    }
}

/// Host, without the brackets of IPv6, and port of `HOST[:PORT]`.
pub(crate) fn split_port(domain: &str) -> (&str, Option<&str>) {
    let (host, port) = match domain.rfind(':') {
        Some(at) if !domain[at..].contains(']') => (&domain[..at], Some(&domain[at + 1..])),
        _ => (domain, None),
    };
    (host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host), port)
}

pub(crate) fn is_loopback(domain: &str) -> bool {
    let (host, _) = split_port(domain);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// How much is waited and read. Fixed for users; tests are less patient.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Until a connection stands.
    pub connect: Duration,
    /// Until an answer begins, or goes on.
    pub idle: Duration,
    /// A body has to bring [`Limits::least`] bytes in this time of waiting for it.
    pub window: Duration,
    /// Bytes.
    pub least: u64,
    /// Of one request or download, before it fails.
    pub attempts: u32,
    /// Before the second attempt.
    pub first_pause: Duration,
    pub longest_pause: Duration,
    /// Redirects of one request.
    pub redirects: u32,
    /// Bytes of a token server's or search's answer.
    pub answer: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(30),
            idle: Duration::from_secs(60),
            window: Duration::from_secs(60),
            least: 64 << 10,
            attempts: 5,
            first_pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(30),
            redirects: 5,
            answer: 1 << 20,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_of_any_registry() {
        let mut options = Options::default();
        options.add_mirror("https://mirror.example").unwrap();
        options.add_mirror("index.docker.io=http://second.example:5000/hub").unwrap();
        options.add_mirror("quay.example:5000=https://m.example/a=b/").unwrap();
        let urls = |registry: &str| -> Vec<String> {
            options.mirrors[registry].iter().map(|mirror| mirror.url.to_string()).collect()
        };
        assert_eq!(urls("docker.io"), ["https://mirror.example/", "http://second.example:5000/hub/"]);
        assert_eq!(urls("quay.example:5000"), ["https://m.example/a=b/"]);
        for bad in [
            "x",
            "a b=https://x",
            "docker.io=ftp://x",
            "r.io=https://u:p@x",
            "r.io=https://x/?q",
            "=https://x",
        ] {
            let error = options.add_mirror(bad).unwrap_err().to_string();
            assert!(!error.contains("u:p"), "{error}");
        }
    }

    #[test]
    fn insecure_registries_are_hosts_and_networks() {
        let insecure = ["registry.test:5000", "other.test", "10.0.0.0/8", "fd00::/8"];
        let options = Options {
            insecure: insecure.iter().map(|text| text.parse().unwrap()).collect(),
            ..Options::default()
        };
        for yes in [
            "registry.test:5000",
            "other.test:1",
            "10.9.8.7:5000",
            "[fd00::1]:5000",
            "localhost:5000",
            "127.0.0.9",
        ] {
            assert!(options.is_insecure(yes), "{yes}");
        }
        for no in
            ["registry.test", "registry.test:5001", "11.0.0.1", "[fe80::1]", "localhost.test", "docker.io"]
        {
            assert!(!options.is_insecure(no), "{no}");
        }
        for bad in ["", "a b", "10.0.0.0/33", "x/8", "http://x"] {
            assert!(bad.parse::<Insecure>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_configuration_file_has_the_same() {
        let text =
            r#"{"mirrors": {"docker.io": ["https://m.example"]}, "insecure": ["x:1"], "downloads": 2}"#;
        let options: Options = serde_json::from_str(text).unwrap();
        assert_eq!((options.mirrors.len(), options.insecure.len(), options.downloads), (1, 1, 2));
        assert!(serde_json::from_str::<Options>(r#"{"mirrors": {"a b": ["https://x"]}}"#).is_err());
        assert!(serde_json::from_str::<Options>(r#"{"mirorrs": {}}"#).is_err());
    }
}
