//! Subnets: which there are to choose from, and which of their addresses are whose.

use std::fmt;
use std::net::Ipv4Addr;
use std::ops::Range;
use std::str::FromStr;

use insula_host::netlink::Route;
use serde::{Deserialize, Serialize};

use crate::Error;

/// Private ranges away from those that dockerd takes first (172.17.0.0/16 and following) and
/// podman takes (10.88.0.0/16), each with the size of the subnets that are cut from it.
const DEFAULT: [(&str, u8); 14] = [
    ("172.30.0.0/16", 16),
    ("172.31.0.0/16", 16),
    ("172.29.0.0/16", 16),
    ("10.230.0.0/16", 20),
    ("10.231.0.0/16", 20),
    ("10.232.0.0/16", 20),
    ("10.233.0.0/16", 20),
    ("10.234.0.0/16", 24),
    ("10.235.0.0/16", 24),
    ("10.236.0.0/16", 24),
    ("10.237.0.0/16", 24),
    ("10.238.0.0/16", 24),
    ("10.239.0.0/16", 24),
    ("192.168.208.0/20", 24),
];

/// A range of addresses from which subnets of one size are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    base: Subnet,
    size: u8,
}

impl Pool {
    /// The pools that are chosen from unless others are configured.
    #[must_use]
    pub fn defaults() -> Vec<Self> {
        let pool = |(base, size): (&str, u8)| Some(Self { base: base.parse().ok()?, size });
        DEFAULT.into_iter().filter_map(pool).collect()
    }

    /// One subnet of its own size.
    #[must_use]
    pub const fn single(base: Subnet) -> Self {
        Self { base, size: base.prefix() }
    }

    /// Its subnets, lowest first.
    fn subnets(self) -> impl Iterator<Item = Subnet> {
        let first = u32::from(self.base.address);
        let count = 1u32 << u32::from(self.size.saturating_sub(self.base.prefix)).min(24);
        let step = 1u32.checked_shl(32 - u32::from(self.size)).unwrap_or(u32::MAX);
        (0..count).map(move |number| Subnet {
            address: Ipv4Addr::from(first.wrapping_add(number.wrapping_mul(step))),
            prefix: self.size,
        })
    }

    /// The first subnet that no route of the host touches, but for routes by `own`, and none of `taken`.
    pub(crate) fn choose(
        pools: &[Self],
        routes: &[Route],
        own: Option<u32>,
        taken: &[Subnet],
    ) -> Result<Subnet, Error> {
        let free = |subnet: &Subnet| {
            subnet.is_free(routes, own) && !taken.iter().any(|other| other.touches(*subnet))
        };
        let mut all = pools.iter().flat_map(|pool| pool.subnets());
        all.find(free).ok_or_else(|| Error::PoolsExhausted {
            pools: pools.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        })
    }
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.base.fmt(f)
    }
}

/// `10.0.0.0/16`, or Docker's `base=10.0.0.0/16,size=24`.
impl FromStr for Pool {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = || Error::InvalidPool { text: text.to_owned() };
        let (mut base, mut size) = (None, None);
        for part in text.split(',') {
            match part.split_once('=') {
                Some(("base", value)) => base = Some(value),
                Some(("size", value)) => size = Some(value.parse().map_err(|_| invalid())?),
                Some(_) => return Err(invalid()),
                None => base = Some(part),
            }
        }
        let base: Subnet = base.ok_or_else(invalid)?.parse().map_err(|_| invalid())?;
        let size: u8 = size.unwrap_or(base.prefix);
        if (base.prefix..=29).contains(&size) { Ok(Self { base, size }) } else { Err(invalid()) }
    }
}

/// An IPv4 subnet whose first host address is its gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    address: Ipv4Addr,
    prefix: u8,
}

impl Subnet {
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

    /// The host's own address unless another is asked for.
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

    /// All that a container could have: neither the network's own address nor broadcast.
    #[must_use]
    pub fn addresses(self) -> Range<u64> {
        let first = u64::from(u32::from(self.address));
        first + 1..first + (1u64 << (32 - u32::from(self.prefix))) - 1
    }

    /// Whether a host could have the address.
    #[must_use]
    pub fn holds(self, address: Ipv4Addr) -> bool {
        self.addresses().contains(&u64::from(u32::from(address)))
    }

    /// Whether the other one is a part of it.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        other.prefix >= self.prefix && self.touches(other)
    }

    pub(crate) fn touches(self, other: Self) -> bool {
        let common = u32::from(self.prefix.min(other.prefix));
        mask(u32::from(self.address), common) == mask(u32::from(other.address), common)
    }

    fn overlaps(self, address: Ipv4Addr, prefix: u8) -> bool {
        // Below /8 are the halves of the internet by which VPNs replace the default route.
        let common = u32::from(self.prefix.min(prefix));
        prefix >= 8 && mask(u32::from(self.address), common) == mask(u32::from(address), common)
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
        let invalid = || Error::InvalidSubnet { text: text.to_owned() };
        let (address, prefix) = text.split_once('/').ok_or_else(invalid)?;
        let address: Ipv4Addr = address.parse().map_err(|_| invalid())?;
        let prefix: u8 = prefix.parse().map_err(|_| invalid())?;
        let usable = (8..=30).contains(&prefix)
            && !address.is_loopback()
            && !address.is_multicast()
            && !address.is_unspecified();
        if !usable {
            return Err(invalid());
        }
        let first = Ipv4Addr::from(mask(u32::from(address), u32::from(prefix)));
        if first == address {
            return Ok(Self { address, prefix });
        }
        Err(Error::SubnetHostBits { text: text.to_owned(), subnet: format!("{first}/{prefix}") })
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
        for text in ["", "172.30.0.0", "172.30.0.1/16", "10.0.0.0/7", "10.0.0.0/31", "127.0.0.0/8", "x/8"] {
            assert!(text.parse::<Subnet>().is_err(), "{text}");
        }
        assert_eq!(Pool::defaults().len(), DEFAULT.len());
        let error = "172.30.5.1/16".parse::<Subnet>().unwrap_err();
        assert_eq!(error.to_string(), "invalid subnet 172.30.5.1/16: it should be 172.30.0.0/16");
        assert_eq!("10.0.0.0/29".parse::<Subnet>().unwrap().hosts().count(), 5);
    }

    #[test]
    fn the_first_free_subnet_is_chosen() {
        let pools = Pool::defaults();
        let choose = |routes: &[Route], own| Pool::choose(&pools, routes, own, &[]).unwrap().to_string();
        assert_eq!(choose(&[route("0.0.0.0/0", 2), route("128.0.0.0/1", 2)], None), "172.30.0.0/16");
        assert_eq!(choose(&[route("172.30.5.0/24", 3)], None), "172.31.0.0/16");
        assert_eq!(choose(&[route("172.30.0.0/16", 3)], Some(3)), "172.30.0.0/16");
        assert_eq!(choose(&[route("172.16.0.0/12", 3)], None), "10.230.0.0/20");
        let all = [route("172.16.0.0/12", 3), route("10.0.0.0/8", 3), route("192.168.0.0/16", 3)];
        assert!(
            Pool::choose(&pools, &all, None, &[]).unwrap_err().to_string().contains("172.30.0.0/16, 172.31")
        );
    }

    #[test]
    fn pools_are_cut_into_subnets_that_nobody_has() {
        let pool: Pool = "base=10.77.0.0/16,size=18".parse().unwrap();
        let mut taken: Vec<Subnet> = Vec::new();
        while let Ok(subnet) = Pool::choose(&[pool], &[route("10.77.64.0/24", 3)], None, &taken) {
            taken.push(subnet);
        }
        let texts: Vec<_> = taken.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["10.77.0.0/18", "10.77.128.0/18", "10.77.192.0/18"]);
        for text in ["", "size=24", "base=10.0.0.0/16,size=8", "10.0.0.0/16,size=30", "10.0.0.0/16,x=1"] {
            assert!(text.parse::<Pool>().is_err(), "{text}");
        }
    }
}
