//! An interface of the host becomes a container's, as it is: runtime specification, "Network Devices".

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::empty::here;
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

/// An interface that was moved. It comes back under its old name, with its addresses and up if it was, unless it is
/// said that it stays.
#[derive(Debug)]
pub struct Carried {
    name: String,
    index: u32,
    was_up: bool,
    addresses: Vec<Address>,
    from: File,
    /// Where it is now; as long as this is open that place is there.
    to: OwnedFd,
    stays: bool,
}

impl Carried {
    /// It is the container's now.
    pub fn stay(mut self) {
        self.stays = true;
    }

    fn back(&self) -> Result<(), Error> {
        inside(self.to.as_fd(), || {
            Routes::open()?.send(self.index, &self.name, &self.name, self.from.as_fd())
        })??;
        let routes = Routes::open()?;
        routes.furnish(&self.name, &self.addresses)?;
        if self.was_up { routes.set_up(&self.name, true) } else { Ok(()) }
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        if !self.stays {
            // What has gone wrong before is the error to report.
            let _ = self.back();
        }
    }
}

/// Moves interfaces of the caller's namespace into `namespace`, each under a new name, where they have the addresses
/// that they have had, and are up. A name that ends in `%d` gets a number there. All or none.
pub fn carry(names: &[(String, String)], namespace: BorrowedFd<'_>) -> Result<Vec<Carried>, Error> {
    let (outside, there) = (Routes::open()?, inside(namespace, Routes::open)??);
    for (name, new) in names {
        outside.index(name)?;
        if there.link(new)?.is_some() {
            // The kernel would say so when it has moved it already.
            return Err(taken(name, new));
        }
    }
    names.iter().map(|(name, new)| outside.carry(name, new, &there, namespace)).collect()
}

fn taken(name: &str, new: &str) -> Error {
    Error::Refused {
        action: "move to the container",
        operand: name.to_owned(),
        detail: format!("which has an interface {new}"),
        source: std::io::Error::from_raw_os_error(EEXIST),
    }
}

impl Routes {
    fn carry(
        &self,
        name: &str,
        new: &str,
        there: &Self,
        namespace: BorrowedFd<'_>,
    ) -> Result<Carried, Error> {
        let link = self.link(name)?.ok_or_else(|| Error::NoLink { name: name.to_owned() })?;
        let addresses = self.lasting(link.index, name)?;
        let new = there.number(new)?;
        let refused = |call| move |source| Error::Socket { call, source };
        let to = namespace.try_clone_to_owned().map_err(refused("keep a network namespace"))?;
        let from = here()?;
        let sent = self.send(link.index, name, &new, namespace);
        let quicker = sent.is_err();
        // One whose new name somebody else was quicker to take is there under its old one.
        let its_name = if quicker { name } else { new.as_str() };
        if let Err(error) = sent
            && self.link(name)?.is_some_and(|still| still.index == link.index)
        {
            return Err(error);
        }
        let index = there.index(its_name)?;
        let carried =
            Carried { name: name.to_owned(), index, was_up: link.up, addresses, from, to, stays: false };
        if quicker {
            return Err(taken(name, &new));
        }
        there.furnish(&new, &carried.addresses)?;
        there.set_up(&new, true)?;
        Ok(carried)
    }

    /// The name that the kernel would make of a template: with the first number that nobody has.
    fn number(&self, template: &str) -> Result<String, Error> {
        let Some(begin) = template.strip_suffix("%d") else { return Ok(template.to_owned()) };
        let links = self.links()?;
        let mut names = (0_u32..).map(|number| format!("{begin}{number}"));
        // There are fewer links than numbers.
        Ok(names.find(|name| links.iter().all(|link| link.name != *name)).unwrap_or_default())
    }

    fn send(&self, index: u32, name: &str, new: &str, namespace: BorrowedFd<'_>) -> Result<(), Error> {
        let mut batch = Batch::new();
        batch.begin(RTM_NEWLINK, 0, &link_header(index, 0, 0), "move to another namespace", name);
        batch.attribute(IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes());
        batch.text(IFLA_IFNAME, new);
        batch.acknowledge();
        batch.run(&self.socket)
    }

    fn furnish(&self, name: &str, addresses: &[Address]) -> Result<(), Error> {
        let index = self.index(name)?;
        addresses.iter().try_for_each(|address| self.give(index, address, name))
    }

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
    use std::process::Command;

    use super::*;
    use crate::netlink::tests::{another, inside as in_pod, isolated};

    fn ip(arguments: &str) -> String {
        let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn carry(name: &str, new: &str, namespace: BorrowedFd<'_>) -> Result<Carried, Error> {
        let mut all = super::carry(&[(name.to_owned(), new.to_owned())], namespace)?;
        Ok(all.remove(0))
    }

    /// Another pod's interface may come there at the same time.
    #[test]
    fn an_interface_comes_back_as_it_was() {
        isolated(|| {
            ip("link add lan0 type veth peer name lan1");
            ip("link set lan1 up");
            ip("link set lan0 up");
            ip("address add 10.7.0.2/24 broadcast 10.7.0.255 dev lan0");
            ip("address add fd07::2/64 dev lan0 nodad");
            ip("link add lan2 type veth peer name lan3");
            let pod = another();
            in_pod(&pod, || ip("link add eth8 type veth peer name eth9"));
            let shown = || {
                ["lan0", "lan2"].map(|name| {
                    let all = ip(&format!("-o address show dev {name} scope global"));
                    let lines = all.lines().map(|line| line.split_whitespace().skip(1).take(3));
                    lines.map(|words| words.collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
                })
            };
            let before = shown();
            assert_eq!(before[0], ["lan0 inet 10.7.0.2/24", "lan0 inet6 fd07::2/64"]);
            let pair = |name: &str, new: &str| (name.to_owned(), new.to_owned());
            let all = [pair("lan0", "eth%d"), pair("lan2", "eth1")];
            drop(super::carry(&all, pod.as_fd()).unwrap());
            assert_eq!(shown(), before);
            let up = |name| Routes::open().unwrap().link(name).unwrap().unwrap().up;
            assert_eq!((up("lan0"), up("lan2")), (true, false));
            // None goes where one cannot.
            super::carry(&[pair("lan0", "eth0"), pair("lan2", "eth9")], pod.as_fd()).unwrap_err();
            super::carry(&[pair("lan0", "eth0"), pair("lan2", "eth0")], pod.as_fd()).unwrap_err();
            assert_eq!(shown(), before);
            super::carry(&all, pod.as_fd()).unwrap().into_iter().for_each(Carried::stay);
            assert!(in_pod(&pod, || ip("-o address show dev eth0")).contains("10.7.0.2/24"));
            assert!(Routes::open().unwrap().link("lan0").unwrap().is_none());
        });
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
            carry("lan0", "eth7", pod.as_fd()).unwrap().stay();
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
            carry("eth0", "net%d", pod.as_fd()).unwrap().stay();
            let names = in_pod(&pod, || Routes::open().unwrap().links().unwrap());
            let mut names: Vec<_> = names.into_iter().filter(|link| link.name != "lo").collect();
            names.sort_by_key(|link| link.name.clone());
            assert_eq!((names[0].name.as_str(), names[1].name.as_str(), names[1].up), ("eth7", "net0", true));
            assert!(matches!(carry("none", "x", pod.as_fd()), Err(Error::NoLink { .. })));
        });
    }
}
