//! Subnets: which there are to choose from, and which of their addresses are whose.

use std::fmt;
use std::net::Ipv4Addr;
use std::ops::Range;
use std::str::FromStr;

use insula_host::netlink::Route;
use serde::{Deserialize, Serialize};

use crate::Error;

/// Private ranges away from those that dockerd takes first (172.17.0.0/16 and following) and
/// podman takes (10.88.0.0/16).
const DEFAULT: [&str; 14] = [
    "172.30.0.0/16",
    "172.31.0.0/16",
    "172.29.0.0/16",
    "10.230.0.0/16",
    "10.231.0.0/16",
    "10.232.0.0/16",
    "10.233.0.0/16",
    "10.234.0.0/16",
    "10.235.0.0/16",
    "10.236.0.0/16",
    "10.237.0.0/16",
    "10.238.0.0/16",
    "10.239.0.0/16",
    "192.168.208.0/20",
];

/// An IPv4 subnet whose first host address is its gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    address: Ipv4Addr,
    prefix: u8,
}

impl Subnet {
    /// The subnets that are chosen from unless others are configured.
    #[must_use]
    pub fn defaults() -> Vec<Self> {
        DEFAULT.iter().filter_map(|text| text.parse().ok()).collect()
    }

    /// Its lowest address.
    #[must_use]
    pub const fn address(self) -> Ipv4Addr {
        self.address
    }

    /// Length of the prefix.
    #[must_use]
    pub const fn prefix(self) -> u8 {
        self.prefix
    }

    /// The host's own address.
    #[must_use]
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.address) | 1)
    }

    /// Addresses for containers as numbers: neither the gateway nor broadcast.
    #[must_use]
    pub fn hosts(self) -> Range<u64> {
        let first = u64::from(u32::from(self.address));
        first + 2..first + (1u64 << (32 - u32::from(self.prefix))) - 1
    }

    fn overlaps(self, address: Ipv4Addr, prefix: u8) -> bool {
        // Below /8 are the halves of the internet by which VPNs replace the default route.
        let common = u32::from(self.prefix.min(prefix));
        prefix >= 8 && mask(u32::from(self.address), common) == mask(u32::from(address), common)
    }

    /// The first subnet that no route of the host touches, but for routes by `own`.
    pub(crate) fn choose(pools: &[Self], routes: &[Route], own: Option<u32>) -> Result<Self, Error> {
        pools.iter().copied().find(|pool| pool.is_free(routes, own)).ok_or_else(|| Error::PoolsExhausted {
            pools: pools.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        })
    }

    pub(crate) fn is_free(self, routes: &[Route], own: Option<u32>) -> bool {
        !routes
            .iter()
            .filter(|route| own.is_none() || route.link != own)
            .any(|route| self.overlaps(route.destination, route.prefix))
    }
}

fn mask(address: u32, prefix: u32) -> u32 {
    address & u32::MAX.checked_shl(32 - prefix).unwrap_or(0)
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = || Error::InvalidPool { text: text.to_owned() };
        let (address, prefix) = text.split_once('/').ok_or_else(invalid)?;
        let address: Ipv4Addr = address.parse().map_err(|_| invalid())?;
        let prefix: u8 = prefix.parse().map_err(|_| invalid())?;
        let usable = (8..=29).contains(&prefix)
            && mask(u32::from(address), u32::from(prefix)) == u32::from(address)
            && !address.is_loopback()
            && !address.is_multicast()
            && !address.is_unspecified();
        if usable { Ok(Self { address, prefix }) } else { Err(invalid()) }
    }
}

impl TryFrom<String> for Subnet {
    type Error = Error;
    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> Self {
        subnet.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(text: &str, link: u32) -> Route {
        let (address, prefix) = text.split_once('/').unwrap();
        Route { destination: address.parse().unwrap(), prefix: prefix.parse().unwrap(), link: Some(link) }
    }

    #[test]
    fn subnets_are_parsed_strictly() {
        let subnet: Subnet = "172.30.0.0/16".parse().unwrap();
        assert_eq!(subnet.gateway(), Ipv4Addr::new(172, 30, 0, 1));
        let hosts = subnet.hosts();
        assert_eq!(Ipv4Addr::from(hosts.start as u32), Ipv4Addr::new(172, 30, 0, 2));
        assert_eq!(Ipv4Addr::from(hosts.end as u32 - 1), Ipv4Addr::new(172, 30, 255, 254));
        for text in ["", "172.30.0.0", "172.30.0.1/16", "10.0.0.0/7", "10.0.0.0/30", "127.0.0.0/8", "x/8"] {
            assert!(text.parse::<Subnet>().is_err(), "{text}");
        }
        assert_eq!(Subnet::defaults().len(), DEFAULT.len());
        assert_eq!("10.0.0.0/29".parse::<Subnet>().unwrap().hosts().count(), 5);
    }

    #[test]
    fn the_first_free_subnet_is_chosen() {
        let pools = Subnet::defaults();
        let choose = |routes: &[Route], own| Subnet::choose(&pools, routes, own).unwrap().to_string();
        assert_eq!(choose(&[route("0.0.0.0/0", 2), route("128.0.0.0/1", 2)], None), "172.30.0.0/16");
        assert_eq!(choose(&[route("172.30.5.0/24", 3)], None), "172.31.0.0/16");
        assert_eq!(choose(&[route("172.30.0.0/16", 3)], Some(3)), "172.30.0.0/16");
        assert_eq!(choose(&[route("172.16.0.0/12", 3)], None), "10.230.0.0/16");
        let all = [route("172.16.0.0/12", 3), route("10.0.0.0/8", 3), route("192.168.0.0/16", 3)];
        assert!(
            Subnet::choose(&pools, &all, None).unwrap_err().to_string().contains("172.30.0.0/16, 172.31")
        );
    }
}
