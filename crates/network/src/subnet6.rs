//! IPv6 subnets of networks.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use insula_host::netlink::Route6;
use serde::{Deserialize, Serialize};

use crate::Error;

/// Bits of an offset that one pool of the state numbers.
const NUMBERED: u32 = 62;

/// An IPv6 subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet6 {
    address: Ipv6Addr,
    prefix: u8,
}

impl Subnet6 {
    /// A unique local one (RFC 4193) with a random global id.
    #[must_use]
    pub fn random() -> Self {
        let digits = insula_base::random_hex(5);
        let id = u64::from_str_radix(&digits, 16).unwrap_or_default();
        Self { address: Ipv6Addr::from(u128::from(0xfd00_0000_0000 | id) << 80), prefix: 64 }
    }

    /// Its lowest address.
    #[must_use]
    pub const fn address(self) -> Ipv6Addr {
        self.address
    }

    /// Length of the prefix.
    #[must_use]
    pub const fn prefix(self) -> u8 {
        self.prefix
    }

    /// The host's own address unless another is asked for.
    #[must_use]
    pub fn gateway(self) -> Ipv6Addr {
        Ipv6Addr::from(u128::from(self.address) | 1)
    }

    /// Whether a host could have the address: any but the subnet's own, which is for routers.
    #[must_use]
    pub fn holds(self, address: Ipv6Addr) -> bool {
        mask(address, self.prefix) == self.address && address != self.address
    }

    /// Whether the other one is a part of it.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        other.prefix >= self.prefix && mask(other.address, self.prefix) == self.address
    }

    pub(crate) fn touches(self, other: Self) -> bool {
        let common = self.prefix.min(other.prefix);
        mask(self.address, common) == mask(other.address, common)
    }

    /// Whether a route of the host has nothing to do with it; neither default routes nor halves of them have.
    pub(crate) fn is_free(self, route: &Route6) -> bool {
        let common = self.prefix.min(route.prefix);
        route.prefix < 8 || mask(self.address, common) != mask(route.destination, common)
    }

    /// Where an address is in the state's books: what the pool's name ends with, and a number in it.
    pub(crate) fn place(self, address: Ipv6Addr) -> (String, u64) {
        let offset = u128::from(address) - u128::from(self.address).min(u128::from(address));
        let number = offset & ((1 << NUMBERED) - 1);
        let high = offset >> NUMBERED;
        (if high == 0 { String::new() } else { format!(":{high:x}") }, number as u64)
    }

    /// The address at a number of the first pool.
    pub(crate) fn at(self, number: u64) -> Ipv6Addr {
        Ipv6Addr::from(u128::from(self.address) + u128::from(number))
    }

    /// The numbers that are given when nobody asks for a certain address.
    pub(crate) fn numbers(self, range: Option<Self>) -> std::ops::Range<u64> {
        let part = range.unwrap_or(self);
        let (high, first) = self.place(part.address);
        let bits = 128 - u32::from(part.prefix);
        let count = 1u64 << bits.min(32);
        if !high.is_empty() {
            return 0..0;
        }
        first.max(1)..first + count
    }
}

fn mask(address: Ipv6Addr, prefix: u8) -> Ipv6Addr {
    let bits = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
    Ipv6Addr::from(u128::from(address) & bits)
}

impl fmt::Display for Subnet6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Subnet6 {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = || Error::InvalidSubnet { text: text.to_owned() };
        let (address, prefix) = text.split_once('/').ok_or_else(invalid)?;
        let address: Ipv6Addr = address.parse().map_err(|_| invalid())?;
        let prefix: u8 = prefix.parse().map_err(|_| invalid())?;
        let link_local = address.segments()[0] & 0xffc0 == 0xfe80;
        let usable = (8..=126).contains(&prefix)
            && !address.is_multicast()
            && !address.is_unspecified()
            && !address.is_loopback()
            && !link_local
            && address.to_ipv4_mapped().is_none();
        if !usable {
            return Err(invalid());
        }
        let first = mask(address, prefix);
        if first == address {
            return Ok(Self { address, prefix });
        }
        Err(Error::SubnetHostBits { text: text.to_owned(), subnet: format!("{first}/{prefix}") })
    }
}

impl TryFrom<String> for Subnet6 {
    type Error = Error;
    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Subnet6> for String {
    fn from(subnet: Subnet6) -> Self {
        subnet.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_are_parsed_strictly() {
        let subnet: Subnet6 = "2001:db8:1::/64".parse().unwrap();
        assert_eq!(subnet.gateway().to_string(), "2001:db8:1::1");
        assert!(subnet.holds("2001:db8:1::5".parse().unwrap()));
        assert!(!subnet.holds("2001:db8:1::".parse().unwrap()));
        assert!(!subnet.holds("2001:db8:2::5".parse().unwrap()));
        for text in ["", "2001:db8::1/64", "fe80::/64", "::/64", "ff00::/16", "2001:db8::/127", "10.0.0.0/8"]
        {
            assert!(text.parse::<Subnet6>().is_err(), "{text}");
        }
        assert_eq!(Subnet6::random().to_string().parse::<Subnet6>().unwrap().prefix(), 64);
        assert_ne!(Subnet6::random(), Subnet6::random());
    }

    #[test]
    fn every_address_has_a_place_of_its_own() {
        let subnet: Subnet6 = "2001:db8::/32".parse().unwrap();
        let place = |text: &str| subnet.place(text.parse().unwrap());
        assert_eq!(place("2001:db8::5"), (String::new(), 5));
        assert_eq!(place("2001:db8:0:1::5"), (":4".to_owned(), 5));
        assert_ne!(place("2001:db8::8000:0:0:5"), place("2001:db8::5"));
        assert_eq!(subnet.at(5).to_string(), "2001:db8::5");
        let range = "2001:db8::100/120".parse().unwrap();
        assert_eq!(subnet.numbers(Some(range)), 0x100..0x200);
        assert_eq!(subnet.numbers(None), 1..1 << 32);
    }
}
