//! A network that somebody asks for, and what can be made of it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use insula_spec::plan::MacvlanMode;

use crate::network::{Addressing, BridgeV6, PREDEFINED};
use crate::{Error, Subnet, Subnet6};

/// Subnets that one request may name; more is no use that anybody has.
const MOST_SUBNETS: usize = 16;

/// What is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkRequest {
    pub name: String,
    /// `bridge` or `macvlan`; empty is the first.
    pub driver: String,
    pub subnets: Vec<SubnetRequest>,
    pub ipv6: bool,
    pub internal: bool,
    pub attachable: bool,
    pub options: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
}

/// One subnet and its parts; what is empty is chosen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubnetRequest {
    pub subnet: String,
    pub range: String,
    pub gateway: String,
    pub auxiliary: BTreeMap<String, String>,
}

/// A request that makes sense in itself; subnets that are left open are still to be chosen.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) options: DriverOptions,
    pub(crate) v4: Option<Subnet>,
    pub(crate) gateway: Option<Ipv4Addr>,
    pub(crate) range: Option<Subnet>,
    pub(crate) auxiliary: BTreeMap<String, IpAddr>,
    pub(crate) v6: Option<BridgeV6>,
}

/// Options of the drivers, by Docker's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DriverOptions {
    pub(crate) mtu: Option<u32>,
    pub(crate) interface_prefix: String,
    pub(crate) driver: OptionsOf,
}

/// What each driver has for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum OptionsOf {
    Bridge(BridgeOptions),
    Macvlan { parent: Option<String>, mode: MacvlanMode },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BridgeOptions {
    pub(crate) link: Option<String>,
    pub(crate) masquerade: bool,
    pub(crate) icc: bool,
    pub(crate) guard: bool,
    pub(crate) host_binding: Option<Ipv4Addr>,
}

impl NetworkRequest {
    pub(crate) fn check(&self) -> Result<Wanted, Error> {
        check_name(&self.name)?;
        let driver = match self.driver.as_str() {
            "" | "default" | "bridge" => OptionsOf::bridge(),
            "macvlan" => OptionsOf::Macvlan { parent: None, mode: MacvlanMode::Bridge },
            "ipvlan" => {
                let what = format!("the network driver {} (there are bridge and macvlan)", self.driver);
                return Err(Error::Unsupported { what });
            }
            _ => return Err(Error::UnknownDriver { name: self.driver.clone() }),
        };
        if self.subnets.len() > MOST_SUBNETS {
            return Err(Error::InvalidRequest { what: format!("more than {MOST_SUBNETS} subnets") });
        }
        let options = DriverOptions::parse(driver, &self.options)?;
        let mut wanted =
            Wanted { options, v4: None, gateway: None, range: None, auxiliary: BTreeMap::new(), v6: None };
        let mut has_v6 = false;
        for part in &self.subnets {
            if part.subnet.contains(':') {
                if std::mem::replace(&mut has_v6, true) {
                    return Err(Error::ManySubnets { family: "IPv6" });
                }
                wanted.take_v6(part)?;
            } else {
                wanted.take_v4(part)?;
            }
        }
        // Who names an IPv6 subnet wants one, said or not.
        if self.ipv6 && wanted.v6.is_none() {
            let subnet = Subnet6::random();
            wanted.v6 = Some(BridgeV6 { subnet, gateway: subnet.gateway(), range: None, masquerade: true });
        }
        if let Some(v6) = &mut wanted.v6 {
            v6.masquerade = matches!(&wanted.options.driver, OptionsOf::Bridge(bridge) if bridge.masquerade);
        }
        Ok(wanted)
    }
}

impl Wanted {
    fn take_v4(&mut self, part: &SubnetRequest) -> Result<(), Error> {
        if self.v4.is_some() {
            return Err(Error::ManySubnets { family: "IPv4" });
        }
        if part.subnet.is_empty() {
            if part.range.is_empty() && part.gateway.is_empty() && part.auxiliary.is_empty() {
                return Ok(());
            }
            return Err(Error::WithoutSubnet);
        }
        let subnet: Subnet = part.subnet.parse()?;
        self.v4 = Some(subnet);
        self.gateway = filled(&part.gateway)
            .map(|text| {
                let outside = || Error::OutsideSubnet {
                    what: "gateway",
                    address: text.to_owned(),
                    subnet: subnet.to_string(),
                };
                let address: Ipv4Addr = text.parse().map_err(|_| invalid_address("gateway", text))?;
                if subnet.holds(address) { Ok(address) } else { Err(outside()) }
            })
            .transpose()?;
        self.range = filled(&part.range)
            .map(|text| {
                let range: Subnet = text.parse()?;
                if subnet.contains(range) { Ok(range) } else { Err(outside_range(text, &subnet.to_string())) }
            })
            .transpose()?;
        for (name, text) in &part.auxiliary {
            let address: Ipv4Addr = text.parse().map_err(|_| invalid_address("auxiliary", text))?;
            if !subnet.holds(address) {
                return Err(outside_auxiliary(text, &subnet.to_string()));
            }
            self.keep(name, IpAddr::V4(address))?;
        }
        Ok(())
    }

    fn take_v6(&mut self, part: &SubnetRequest) -> Result<(), Error> {
        let subnet: Subnet6 = part.subnet.parse()?;
        let gateway = match filled(&part.gateway) {
            None => subnet.gateway(),
            Some(text) => {
                // Docker takes a prefix behind it as well.
                let plain = text.split('/').next().unwrap_or(text);
                let address: Ipv6Addr = plain.parse().map_err(|_| invalid_address("gateway", text))?;
                if !subnet.holds(address) {
                    return Err(Error::OutsideSubnet {
                        what: "gateway",
                        address: text.to_owned(),
                        subnet: subnet.to_string(),
                    });
                }
                address
            }
        };
        let range: Option<Subnet6> = filled(&part.range).map(str::parse).transpose()?;
        if range.is_some_and(|range| !subnet.contains(range) || subnet.numbers(Some(range)).is_empty()) {
            return Err(outside_range(&part.range, &subnet.to_string()));
        }
        for (name, text) in &part.auxiliary {
            let address: Ipv6Addr = text.parse().map_err(|_| invalid_address("auxiliary", text))?;
            if !subnet.holds(address) {
                return Err(outside_auxiliary(text, &subnet.to_string()));
            }
            self.keep(name, IpAddr::V6(address))?;
        }
        self.v6 = Some(BridgeV6 { subnet, gateway, range, masquerade: true });
        Ok(())
    }

    fn keep(&mut self, name: &str, address: IpAddr) -> Result<(), Error> {
        if self.auxiliary.values().any(|other| *other == address)
            || self.gateway.map(IpAddr::V4) == Some(address)
        {
            return Err(Error::InvalidRequest { what: format!("the address {address} has two meanings") });
        }
        self.auxiliary.insert(name.to_owned(), address);
        Ok(())
    }

    /// The addresses, with a subnet that was chosen meanwhile.
    pub(crate) fn finish(self, subnet: Subnet, mtu: u32) -> Addressing {
        Addressing {
            mtu: self.options.mtu.unwrap_or(mtu),
            gateway: Some(self.gateway.unwrap_or_else(|| self.free_gateway(subnet))),
            subnet,
            range: self.range,
            auxiliary: self.auxiliary,
            v6: self.v6,
            interface_prefix: self.options.interface_prefix,
        }
    }

    /// The first address that has no other meaning, of the range if there is one.
    fn free_gateway(&self, subnet: Subnet) -> Ipv4Addr {
        let first = self.range.map_or(0, |range| u64::from(u32::from(range.address())));
        let mut numbers = subnet.addresses().filter(|number| *number >= first);
        let taken = |address: Ipv4Addr| self.auxiliary.values().any(|other| *other == IpAddr::V4(address));
        numbers
            .find_map(|number| {
                let address = Ipv4Addr::from(u32::try_from(number).ok()?);
                (!taken(address)).then_some(address)
            })
            .unwrap_or_else(|| subnet.gateway())
    }
}

impl OptionsOf {
    fn bridge() -> Self {
        Self::Bridge(BridgeOptions {
            link: None,
            masquerade: true,
            icc: true,
            guard: true,
            host_binding: None,
        })
    }

    const fn name(&self) -> &'static str {
        match self {
            Self::Bridge(_) => "bridge",
            Self::Macvlan { .. } => "macvlan",
        }
    }

    /// Takes one option, or returns that the driver has not got it.
    fn take(&mut self, name: &str, value: &str) -> Result<Taken, Error> {
        match self {
            Self::Bridge(options) => options.take(name, value),
            Self::Macvlan { parent, mode } => {
                let wrong = || wrong(name, value);
                match name {
                    "parent" => *parent = Some(check_link(value).ok_or_else(wrong)?.to_owned()),
                    "macvlan_mode" => *mode = macvlan_mode(value).ok_or_else(wrong)?,
                    _ => return Ok(Taken::No),
                }
                Ok(Taken::Yes)
            }
        }
    }
}

/// Whether an option is one of the driver's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taken {
    Yes,
    No,
}

impl BridgeOptions {
    fn take(&mut self, name: &str, value: &str) -> Result<Taken, Error> {
        let wrong = || wrong(name, value);
        match name {
            "com.docker.network.bridge.name" => {
                self.link = Some(check_link(value).ok_or_else(wrong)?.to_owned());
            }
            "com.docker.network.bridge.enable_ip_masquerade" => {
                self.masquerade = boolean(value).ok_or_else(wrong)?;
            }
            "com.docker.network.bridge.enable_icc" => self.icc = boolean(value).ok_or_else(wrong)?,
            // insula's own: a router or a virtual address inside sends from other addresses.
            "insula.guard" => self.guard = boolean(value).ok_or_else(wrong)?,
            "com.docker.network.bridge.host_binding_ipv4" => {
                self.host_binding = Some(value.parse().map_err(|_| wrong())?);
            }
            "com.docker.network.bridge.default_bridge" if boolean(value) == Some(false) => {}
            _ => return Ok(Taken::No),
        }
        Ok(Taken::Yes)
    }
}

impl DriverOptions {
    fn parse(driver: OptionsOf, options: &BTreeMap<String, String>) -> Result<Self, Error> {
        let mut parsed = Self { mtu: None, interface_prefix: "eth".to_owned(), driver };
        for (name, value) in options {
            let wrong = || wrong(name, value);
            match name.as_str() {
                "com.docker.network.driver.mtu" | "mtu" => {
                    let mtu =
                        value.parse().ok().filter(|mtu| matches!(mtu, 0 | 68..=65535)).ok_or_else(wrong)?;
                    parsed.mtu = Some(mtu).filter(|mtu| *mtu != 0);
                }
                "com.docker.network.container_iface_prefix" => {
                    let usable = (1..=10).contains(&value.len()) && check_link(value).is_some();
                    parsed.interface_prefix = if usable { value.clone() } else { return Err(wrong()) };
                }
                _ if parsed.driver.take(name, value)? == Taken::Yes => {}
                _ => {
                    let driver = parsed.driver.name();
                    return Err(Error::UnknownOption { driver, name: name.clone() });
                }
            }
        }
        Ok(parsed)
    }
}

fn wrong(name: &str, value: &str) -> Error {
    Error::InvalidOption { name: name.to_owned(), value: value.to_owned() }
}

fn macvlan_mode(text: &str) -> Option<MacvlanMode> {
    match text {
        "" | "bridge" => Some(MacvlanMode::Bridge),
        "private" => Some(MacvlanMode::Private),
        "vepa" => Some(MacvlanMode::Vepa),
        "passthru" => Some(MacvlanMode::Passthru),
        _ => None,
    }
}

fn filled(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

fn invalid_address(what: &'static str, text: &str) -> Error {
    Error::InvalidText { what, text: text.to_owned() }
}

fn outside_range(range: &str, subnet: &str) -> Error {
    Error::OutsideSubnet { what: "ip-range", address: range.to_owned(), subnet: subnet.to_owned() }
}

fn outside_auxiliary(address: &str, subnet: &str) -> Error {
    Error::OutsideSubnet { what: "auxiliary address", address: address.to_owned(), subnet: subnet.to_owned() }
}

/// As Go's `strconv.ParseBool`.
fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn check_name(name: &str) -> Result<(), Error> {
    let sign = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    let plain = name.len() <= 255
        && name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
        && name.bytes().all(sign);
    if !plain {
        return Err(Error::InvalidName { name: name.to_owned() });
    }
    if PREDEFINED.contains(&name) || matches!(name, "default" | "container") {
        return Err(Error::Predefined { name: name.to_owned() });
    }
    Ok(())
}

/// A name that the kernel takes for an interface and that no tool stumbles over.
fn check_link(name: &str) -> Option<&str> {
    let sign = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    let plain = (1..=15).contains(&name.len()) && name.bytes().all(sign);
    (plain && !matches!(name, "." | "..") && !name.starts_with('-')).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Subnet, range, gateway, auxiliary addresses.
    type Part<'a> = (&'a str, &'a str, &'a str, &'a [(&'a str, &'a str)]);

    fn request(subnets: &[Part<'_>]) -> NetworkRequest {
        let part = |(subnet, range, gateway, auxiliary): &Part<'_>| SubnetRequest {
            subnet: (*subnet).to_owned(),
            range: (*range).to_owned(),
            gateway: (*gateway).to_owned(),
            auxiliary: auxiliary.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect(),
        };
        NetworkRequest {
            name: "blue".to_owned(),
            subnets: subnets.iter().map(part).collect(),
            ipv6: subnets.iter().any(|part| part.0.contains(':')),
            ..NetworkRequest::default()
        }
    }

    fn made(request: &NetworkRequest) -> Addressing {
        let wanted = request.check().unwrap();
        let subnet = wanted.v4.unwrap_or_else(|| "10.0.0.0/24".parse().unwrap());
        wanted.finish(subnet, 1500)
    }

    #[test]
    fn subnets_have_parts() {
        let all = [
            ("10.9.0.0/16", "10.9.4.0/24", "10.9.4.254", &[("router", "10.9.4.1")][..]),
            ("2001:db8::/64", "2001:db8::100/120", "2001:db8::ff", &[][..]),
        ];
        let network = made(&request(&all));
        assert_eq!(network.gateway().to_string(), "10.9.4.254");
        assert_eq!(network.numbers().count(), 256);
        assert_eq!(network.kept().count(), 3);
        let v6 = network.v6.unwrap();
        assert_eq!((v6.gateway.to_string(), v6.subnet.prefix()), ("2001:db8::ff".to_owned(), 64));
        let plain = made(&request(&[]));
        assert_eq!((plain.gateway().to_string().as_str(), plain.numbers().count()), ("10.0.0.1", 254));
        let auxiliary = made(&request(&[("10.9.0.0/24", "", "", &[("first", "10.9.0.1")])]));
        assert_eq!(auxiliary.gateway().to_string(), "10.9.0.2");
        let automatic = made(&NetworkRequest { ipv6: true, ..request(&[]) });
        assert!(automatic.v6.unwrap().subnet.to_string().starts_with("fd"));
    }

    #[test]
    fn contradictions_are_refused_by_name() {
        let bad: &[(Part<'_>, &str)] = &[
            (("10.9.0.0/33", "", "", &[]), "invalid subnet 10.9.0.0/33"),
            (("10.9.0.1/16", "", "", &[]), "it should be 10.9.0.0/16"),
            (("10.9.0.0/16", "", "10.8.0.1", &[]), "gateway 10.8.0.1 is not in subnet 10.9.0.0/16"),
            (("10.9.0.0/16", "", "x", &[]), "invalid gateway address \"x\""),
            (("10.9.0.0/16", "10.8.0.0/24", "", &[]), "ip-range 10.8.0.0/24 is not in subnet"),
            (("10.9.0.0/16", "", "", &[("a", "10.8.0.1")]), "auxiliary address 10.8.0.1 is not in"),
            (("10.9.0.0/16", "", "10.9.0.5", &[("a", "10.9.0.5")]), "two meanings"),
            (("", "10.9.0.0/24", "", &[]), "a subnet is needed"),
            (("2001:db8::/64", "", "2001:db9::1", &[]), "gateway 2001:db9::1 is not in"),
        ];
        for (part, text) in bad {
            let error = request(&[*part]).check().unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
        let twice = request(&[("10.9.0.0/16", "", "", &[]), ("10.8.0.0/16", "", "", &[])]);
        assert!(twice.check().unwrap_err().to_string().contains("IPv4"));
        for name in ["", "a b", "-a", "bridge", "host", "none", "default", &"a".repeat(256)] {
            let named = NetworkRequest { name: name.to_owned(), ..NetworkRequest::default() };
            assert!(named.check().is_err(), "{name}");
        }
        let driver = NetworkRequest { driver: "overlay".to_owned(), ..request(&[]) };
        assert!(matches!(driver.check(), Err(Error::UnknownDriver { .. })));
    }

    #[test]
    fn options_are_dockers() {
        let with = |name: &str, value: &str| {
            let options = BTreeMap::from([(name.to_owned(), value.to_owned())]);
            NetworkRequest { options, ..request(&[]) }.check().map(|wanted| wanted.options)
        };
        let bridge = |name: &str, value: &str| match with(name, value).unwrap().driver {
            OptionsOf::Bridge(options) => options,
            OptionsOf::Macvlan { .. } => unreachable!("bridge was asked for"),
        };
        assert_eq!(bridge("com.docker.network.bridge.name", "br-x").link.unwrap(), "br-x");
        assert_eq!(with("com.docker.network.driver.mtu", "9000").unwrap().mtu, Some(9000));
        assert!(!bridge("com.docker.network.bridge.enable_ip_masquerade", "false").masquerade);
        for (name, value) in [
            ("com.docker.network.bridge.name", "much-too-long-name"),
            ("com.docker.network.bridge.name", "a/b"),
            ("com.docker.network.driver.mtu", "5"),
            ("com.docker.network.bridge.host_binding_ipv4", "x"),
            ("com.docker.network.bridge.enable_ip_masquerade", "maybe"),
            ("com.docker.network.container_iface_prefix", ""),
            ("nonsense", "1"),
        ] {
            assert!(with(name, value).is_err(), "{name}={value}");
        }
    }
}
