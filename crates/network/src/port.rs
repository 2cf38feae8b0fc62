//! What may be published and what is.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use insula_spec::outlets::Transport;
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

    /// What an ordinary user's engine leads in; it has no way for the others.
    #[must_use]
    pub const fn transport(self) -> Option<Transport> {
        match self {
            Self::Tcp => Some(Transport::Tcp),
            Self::Udp => Some(Transport::Udp),
            Self::Sctp => None,
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
            // Link-local packets are not forwarded (RFC 4291, 2.5.6).
            Some(IpAddr::V6(address))
                if address.is_multicast()
                    || address.is_unicast_link_local()
                    || address.to_ipv4_mapped().is_some() =>
            {
                Err(Error::PublishNowhere { address: address.into() })
            }
            Some(IpAddr::V4(address)) if address.is_multicast() || address.is_broadcast() => {
                Err(Error::PublishNowhere { address: address.into() })
            }
            _ => Ok(()),
        }
    }

    /// The host's addresses, unspecified for all of a family; no word means both, as far as the container
    /// has both.
    pub(crate) fn addresses(&self, v6: bool) -> Vec<IpAddr> {
        let all = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        match self.host_ip {
            Some(address) => vec![address],
            None => all[..if v6 { 2 } else { 1 }].to_vec(),
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
        let on =
            |address: &str| PortRequest { host_ip: Some(address.parse().unwrap()), ..request() }.validate();
        for address in ["::1", "::", "2001:db8::1", "0.0.0.0", "127.0.0.1"] {
            on(address).unwrap();
        }
        for address in ["fe80::1", "ff02::1", "::ffff:127.0.0.1", "224.0.0.1", "255.255.255.255"] {
            assert!(matches!(on(address), Err(Error::PublishNowhere { .. })), "{address}");
        }
    }

    #[test]
    fn no_address_is_every_address_of_both_families() {
        let on = |host_ip: Option<&str>, v6| {
            let host_ip = host_ip.map(|text| text.parse().unwrap());
            let addresses = PortRequest { host_ip, ..request() }.addresses(v6);
            addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(on(None, true), "0.0.0.0 ::");
        assert_eq!(on(None, false), "0.0.0.0");
        assert_eq!(on(Some("0.0.0.0"), true), "0.0.0.0");
        assert_eq!(on(Some("::"), true), "::");
    }
}
