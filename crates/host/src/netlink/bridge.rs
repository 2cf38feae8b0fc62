//! Bridges.

use std::net::{IpAddr, Ipv6Addr};

use super::link::{
    IFLA_ADDRESS, IFLA_IFNAME, IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_LINKINFO, IFLA_MTU, RTM_NEWLINK, UP,
    add_address, link_header,
};
use super::message::{Batch, CREATE};
use super::{Error, Routes};

const IFLA_BR_FORWARD_DELAY: u16 = 1;
const IFLA_BR_MCAST_SNOOPING: u16 = 23;

/// A bridge of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridge {
    /// At most 15 bytes.
    pub name: String,
    /// Given, since a bridge without one takes that of a port and changes it when the port goes.
    pub mac: [u8; 6],
    /// 0 is the kernel's choice.
    pub mtu: u32,
    /// The host's addresses on it, with the length of their prefix.
    pub addresses: Vec<(IpAddr, u8)>,
}

impl Routes {
    /// Makes the bridge be there, up and addressed. What exists is completed, not made anew.
    pub fn ensure_bridge(&self, bridge: &Bridge) -> Result<(), Error> {
        let mut batch = Batch::new();
        batch.begin(RTM_NEWLINK, CREATE, &link_header(0, UP, UP), "create bridge", &bridge.name);
        batch.text(IFLA_IFNAME, &bridge.name);
        batch.attribute(IFLA_ADDRESS, &bridge.mac);
        if bridge.mtu != 0 {
            batch.attribute(IFLA_MTU, &bridge.mtu.to_ne_bytes());
        }
        let info = batch.nest(IFLA_LINKINFO);
        batch.text(IFLA_INFO_KIND, "bridge");
        let data = batch.nest(IFLA_INFO_DATA);
        // Without it a new port would listen for 15 seconds before it forwards.
        batch.attribute(IFLA_BR_FORWARD_DELAY, &0u32.to_ne_bytes());
        // Ports come and go by the hundred; queries and timers for each buy nothing here.
        batch.attribute(IFLA_BR_MCAST_SNOOPING, &[0]);
        batch.close(&data);
        batch.close(&info);
        batch.acknowledge();
        batch.run(&self.socket)?;
        if bridge.addresses.is_empty() {
            return Ok(());
        }
        let index =
            self.link(&bridge.name)?.ok_or_else(|| Error::NoLink { name: bridge.name.clone() })?.index;
        let mut batch = Batch::new();
        for (address, prefix) in &bridge.addresses {
            add_address(&mut batch, index, *address, *prefix, &bridge.name);
        }
        if bridge.addresses.iter().any(|(address, _)| address.is_ipv6()) {
            // What asks for neighbours on behalf of others. The kernel's own, which is the same, would first be
            // looked for on the link, for two seconds in which nobody from elsewhere reaches a container.
            add_address(&mut batch, index, link_local(bridge.mac).into(), 64, &bridge.name);
        }
        batch.acknowledge();
        batch.run(&self.socket)
    }
}

/// RFC 4291, appendix A.
fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let tail = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    Ipv6Addr::from(0xfe80_u128 << 112 | u128::from(tail))
}
