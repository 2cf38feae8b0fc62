//! An interface of the host becomes a container's, as it is: runtime specification, "Network Devices".

use std::os::fd::{AsRawFd, BorrowedFd};

use super::link::{IFLA_IFNAME, IFLA_NET_NS_FD, RTM_NEWADDR, RTM_NEWLINK, link_header};
use super::message::{Batch, CREATE, DUMP, EXCLUSIVE, attributes, word};
use super::{Error, Routes, inside};

const RTM_GETADDR: u16 = 22;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;
const IFA_F_PERMANENT: u32 = 0x80;
const UNIVERSE: u8 = 0;
const EEXIST: i32 = 17;

/// What an address consists of, as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Address {
    family: u8,
    prefix: u8,
    parts: Vec<(u16, Vec<u8>)>,
}

/// Moves the interface `name` of the caller's namespace into `namespace`, where it is called `new`, has the addresses
/// that it has had, and is up. A name that ends in `%d` gets a number there.
pub fn carry(name: &str, new: &str, namespace: BorrowedFd<'_>) -> Result<(), Error> {
    let outside = Routes::open()?;
    let link = outside.link(name)?.ok_or_else(|| Error::NoLink { name: name.to_owned() })?;
    let addresses = outside.lasting(link.index, name)?;
    let there = inside(namespace, Routes::open)??;
    if there.link(new)?.is_some() {
        // The kernel would say so when it has moved it already.
        return Err(Error::Refused {
            action: "move to the container",
            operand: name.to_owned(),
            detail: format!("which has an interface {new}"),
            source: std::io::Error::from_raw_os_error(EEXIST),
        });
    }
    let known: Vec<u32> = there.links()?.iter().map(|link| link.index).collect();
    let mut batch = Batch::new();
    batch.begin(RTM_NEWLINK, 0, &link_header(link.index, 0, 0), "move to the container", name);
    batch.attribute(IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes());
    batch.text(IFLA_IFNAME, new);
    batch.acknowledge();
    batch.run(&outside.socket)?;
    // Its number, and with a template its name, is what it could get there.
    let moved = there.links()?.into_iter().find(|link| !known.contains(&link.index));
    let moved = moved.ok_or_else(|| Error::NoLink { name: new.to_owned() })?;
    for address in &addresses {
        there.give(moved.index, address, &moved.name)?;
    }
    there.set_up(&moved.name, true)
}

impl Routes {
    /// Addresses that are meant to last and to be reached from elsewhere.
    fn lasting(&self, index: u32, name: &str) -> Result<Vec<Address>, Error> {
        let mut batch = Batch::new();
        batch.begin(RTM_GETADDR, DUMP, &[0; 8], "list addresses of", name);
        let mut found = Vec::new();
        batch.exchange(&self.socket, |kind, payload| {
            if kind == RTM_NEWADDR && word(payload, 4) == Some(index) {
                found.extend(parse(payload));
            }
        })?;
        Ok(found)
    }

    fn give(&self, index: u32, address: &Address, name: &str) -> Result<(), Error> {
        let mut header = [address.family, address.prefix, 0, UNIVERSE, 0, 0, 0, 0];
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        let mut batch = Batch::new();
        batch.begin(RTM_NEWADDR, CREATE | EXCLUSIVE, &header, "give an address to", name);
        address.parts.iter().for_each(|(kind, value)| batch.attribute(*kind, value));
        batch.acknowledge();
        batch.run(&self.socket)
    }
}

fn parse(payload: &[u8]) -> Option<Address> {
    let header: &[u8; 8] = payload.first_chunk()?;
    let mut flags = u32::from(header[2]);
    let mut parts = Vec::new();
    for (kind, value) in attributes(&payload[8..]) {
        match kind {
            IFA_FLAGS => flags = word(value, 0)?,
            IFA_ADDRESS | IFA_LOCAL | IFA_BROADCAST => parts.push((kind, value.to_vec())),
            _ => {}
        }
    }
    let lasts = flags & IFA_F_PERMANENT != 0 && header[3] == UNIVERSE;
    lasts.then_some(Address { family: header[0], prefix: header[1], parts })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::process::Command;

    use super::*;
    use crate::netlink::tests::{another, inside as in_pod, isolated};

    fn ip(arguments: &str) -> String {
        let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn an_interface_keeps_its_addresses_on_its_way() {
        isolated(|| {
            ip("link add lan0 type veth peer name lan1");
            ip("link set lan1 up");
            ip("address add 10.7.0.2/24 broadcast 10.7.0.255 dev lan0");
            ip("address add 10.8.0.2/32 dev lan0 scope host");
            ip("address add fd07::2/64 dev lan0 nodad");
            ip("link set lan0 mtu 1400");
            let pod = another();
            carry("lan0", "eth7", pod.as_fd()).unwrap();
            assert!(Routes::open().unwrap().link("lan0").unwrap().is_none());
            let shown = in_pod(&pod, || ip("-o address show dev eth7") + &ip("-o link show dev eth7"));
            for part in [
                "inet 10.7.0.2/24 brd 10.7.0.255 scope global",
                "inet6 fd07::2/64 scope global",
                ",UP",
                "mtu 1400",
            ] {
                assert!(shown.contains(part), "{part}: {shown}");
            }
            assert!(!shown.contains("10.8.0.2"), "{shown}");
            // Names are not taken twice, but a template finds one; what fails stays.
            ip("link add eth0 type veth peer name lan2");
            let taken = carry("eth0", "eth7", pod.as_fd()).unwrap_err();
            assert_eq!(taken.errno(), Some(17), "{taken}");
            carry("eth0", "net%d", pod.as_fd()).unwrap();
            let names = in_pod(&pod, || Routes::open().unwrap().links().unwrap());
            let mut names: Vec<_> = names.into_iter().filter(|link| link.name != "lo").collect();
            names.sort_by_key(|link| link.name.clone());
            assert_eq!((names[0].name.as_str(), names[1].name.as_str(), names[1].up), ("eth7", "net0", true));
            assert!(matches!(carry("none", "x", pod.as_fd()), Err(Error::NoLink { .. })));
        });
    }
}
