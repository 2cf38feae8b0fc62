//! Interfaces with addresses of their own on an interface of the host, and what they hang on.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use insula_spec::plan::{InterfacePlan, MacvlanMode};

use super::link::{
    IFLA_ADDRESS, IFLA_IFNAME, IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_LINKINFO, IFLA_NET_NS_FD, RTM_NEWLINK,
    UP, VETH_INFO_PEER, link_header, mtu,
};
use super::message::{Batch, CREATE, EXCLUSIVE};
use super::{Error, Routes, parse_mac};

/// The other end of what [`Routes::ensure_alone`] makes.
#[must_use]
pub fn peer_of(name: &str) -> String {
    format!("{name}p")
}

/// How often, and in what steps, an interface is tried again.
const INSTANTS: u32 = 400;
const INSTANT: Duration = Duration::from_millis(5);

const IFLA_LINK: u16 = 5;
const IFLA_MACVLAN_MODE: u16 = 1;
const IFLA_VLAN_ID: u16 = 1;

impl Routes {
    /// A macvlan of the interface that the plan names, made in `namespace` right away.
    pub(super) fn plug_macvlan(
        &self,
        plan: &InterfacePlan,
        mode: MacvlanMode,
        namespace: BorrowedFd<'_>,
    ) -> Result<(), Error> {
        let mac = parse_mac(plan)?;
        let parent = self.index(&plan.bridge)?;
        let mut batch = Batch::new();
        let flags = CREATE | EXCLUSIVE;
        batch.begin(RTM_NEWLINK, flags, &link_header(0, 0, 0), "create a macvlan of", &plan.bridge);
        batch.text(IFLA_IFNAME, &plan.name);
        batch.attribute(IFLA_LINK, &parent.to_ne_bytes());
        batch.attribute(IFLA_ADDRESS, &mac);
        mtu(&mut batch, plan.mtu);
        batch.attribute(IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes());
        let info = batch.nest(IFLA_LINKINFO);
        batch.text(IFLA_INFO_KIND, "macvlan");
        let data = batch.nest(IFLA_INFO_DATA);
        batch.attribute(IFLA_MACVLAN_MODE, &(mode as u32).to_ne_bytes());
        batch.close(&data);
        batch.close(&info);
        batch.acknowledge();
        batch.run(&self.socket)
    }

    /// Brings a macvlan up. Its hardware address may still be that of a former container's, whose namespace the
    /// kernel destroys in its own time.
    pub(super) fn set_up_patiently(&self, name: &str) -> Result<(), Error> {
        const EADDRINUSE: i32 = 98;
        for _ in 0..INSTANTS {
            match self.set_up(name, true) {
                Err(error) if error.errno() == Some(EADDRINUSE) => std::thread::sleep(INSTANT),
                result => return result,
            }
        }
        self.set_up(name, true)
    }

    /// Makes an interface that leads nowhere be there and up: one end of a pair, since not every kernel has
    /// dummies, and a bridge without ports has no carrier. The other end has a `p` more in its name.
    pub fn ensure_alone(&self, name: &str) -> Result<(), Error> {
        if self.link(name)?.is_some_and(|link| link.up) {
            return Ok(());
        }
        let peer_name = peer_of(name);
        self.delete(name)?;
        let mut batch = Batch::new();
        let flags = CREATE | EXCLUSIVE;
        batch.begin(RTM_NEWLINK, flags, &link_header(0, 0, 0), "create veth pair", name);
        batch.text(IFLA_IFNAME, name);
        let info = batch.nest(IFLA_LINKINFO);
        batch.text(IFLA_INFO_KIND, "veth");
        let data = batch.nest(IFLA_INFO_DATA);
        let peer = batch.nest(VETH_INFO_PEER);
        batch.raw(&link_header(0, 0, 0));
        batch.text(IFLA_IFNAME, &peer_name);
        batch.close(&peer);
        batch.close(&data);
        batch.close(&info);
        batch.acknowledge();
        batch.run(&self.socket)?;
        self.set_up(&peer_name, true)?;
        self.set_up(name, true)
    }

    /// Makes the part of an interface that has a VLAN number (IEEE 802.1Q) be there and up.
    pub fn ensure_vlan(&self, name: &str, device: &str, number: u16) -> Result<(), Error> {
        match self.link(name)? {
            Some(link) if link.up => return Ok(()),
            Some(_) => return self.set_up(name, true),
            None => {}
        }
        let parent = self.index(device)?;
        let mut batch = Batch::new();
        let flags = CREATE | EXCLUSIVE;
        batch.begin(RTM_NEWLINK, flags, &link_header(0, UP, UP), "create VLAN interface", name);
        batch.text(IFLA_IFNAME, name);
        batch.attribute(IFLA_LINK, &parent.to_ne_bytes());
        let info = batch.nest(IFLA_LINKINFO);
        batch.text(IFLA_INFO_KIND, "vlan");
        let data = batch.nest(IFLA_INFO_DATA);
        batch.attribute(IFLA_VLAN_ID, &number.to_ne_bytes());
        batch.close(&data);
        batch.close(&info);
        batch.acknowledge();
        batch.run(&self.socket)
    }
}
