//! What may be published and what is.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Error;

/// A transport that ports belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proto {
    Tcp,
    Udp,
    Sctp,
}

impl Proto {
    /// The name as in `80/tcp`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    /// The number in the IP header.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Proto {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text.to_ascii_lowercase().as_str() {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            "sctp" => Ok(Self::Sctp),
            _ => Err(Error::InvalidProto { text: text.to_owned() }),
        }
    }
}

/// One container port that somebody asks to publish (`-p 127.0.0.1:8000-8010:80/tcp`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortRequest {
    /// 1 to 65,535.
    pub container_port: u16,
    pub proto: Proto,
    /// Address of the host; `None` and the unspecified address are all of them.
    pub host_ip: Option<IpAddr>,
    /// Any free port of the range; `None` and `0..=0` leave the choice to the kernel.
    pub host_ports: Option<RangeInclusive<u16>>,
}

impl PortRequest {
    /// Checks what no host could publish.
    pub fn validate(&self) -> Result<(), Error> {
        if self.container_port == 0 {
            return Err(Error::InvalidPort { text: "0".to_owned() });
        }
        match &self.host_ports {
            Some(range) if range.is_empty() || (*range.start() == 0 && *range.end() != 0) => {
                return Err(Error::InvalidPort { text: format!("{}-{}", range.start(), range.end()) });
            }
            _ => {}
        }
        match self.host_ip {
            Some(IpAddr::V6(address)) => Err(Error::PublishV6 { address }),
            _ => Ok(()),
        }
    }

    /// The host's address, unspecified for all.
    pub(crate) fn address(&self) -> Ipv4Addr {
        match self.host_ip {
            Some(IpAddr::V4(address)) => address,
            _ => Ipv4Addr::UNSPECIFIED,
        }
    }
}

/// A port of the host that leads into a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PublishedPort {
    pub container_port: u16,
    pub proto: Proto,
    /// Unspecified is every address of the host.
    pub host_ip: IpAddr,
    pub host_port: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> PortRequest {
        PortRequest { container_port: 80, proto: Proto::Tcp, host_ip: None, host_ports: None }
    }

    #[test]
    fn protocols_are_named_as_docker_names_them() {
        for proto in [Proto::Tcp, Proto::Udp, Proto::Sctp] {
            assert_eq!(proto.name().parse::<Proto>().unwrap(), proto);
        }
        assert_eq!("TCP".parse::<Proto>().unwrap(), Proto::Tcp);
        assert!("icmp".parse::<Proto>().is_err());
    }

    #[test]
    fn impossible_requests_are_refused() {
        request().validate().unwrap();
        assert!(PortRequest { container_port: 0, ..request() }.validate().is_err());
        #[expect(clippy::reversed_empty_ranges, reason = "it is what must be refused")]
        let backwards = Some(90..=80);
        assert!(PortRequest { host_ports: backwards, ..request() }.validate().is_err());
        assert!(PortRequest { host_ports: Some(0..=80), ..request() }.validate().is_err());
        PortRequest { host_ports: Some(0..=0), ..request() }.validate().unwrap();
        let v6 = Some("::1".parse().unwrap());
        assert!(PortRequest { host_ip: v6, ..request() }.validate().is_err());
    }
}
