//! Links, addresses and routes by rtnetlink: synchronous, several requests a datagram.
//!
//! [`plug`] is what the monitor calls on the host's side, [`configure`] what a container's first
//! process calls on its own; [`Routes`] is for the daemon. A veth pair is never deleted here: that
//! waits for an RCU grace period of many milliseconds, and the pair dies with its namespace anyway.

mod bridge;
mod carry;
mod empty;
mod error;
mod forwarding;
mod lend;
mod link;
mod macvlan;
pub(crate) mod message;
mod shaper;

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use insula_spec::plan::{InterfacePlan, NetworkChange};

pub use bridge::Bridge;
pub use carry::{Carried, carry};
pub use empty::EmptyNamespace;
pub use error::Error;
pub use forwarding::{
    Former, advertised, before_forwarding, before_forwarding6, disable_forwarding, disable_forwarding6,
    enable_forwarding, enable_forwarding6, forwarding, forwarding6, ignore_advertisements, route_loopback,
};
pub use link::{Link, Route, Route6, Routes};
pub use macvlan::peer_of;

/// Makes an interface from the host's namespace: a veth pair, the host's end up and a port of its bridge, the
/// other in `namespace` with its name and hardware address; or there a macvlan of an interface of the host.
pub fn plug(plan: &InterfacePlan, namespace: BorrowedFd<'_>) -> Result<(), Error> {
    plug_by(&Routes::open()?, plan, namespace)
}

fn plug_by(routes: &Routes, plan: &InterfacePlan, namespace: BorrowedFd<'_>) -> Result<(), Error> {
    routes.plug(plan, namespace)?;
    match plan.rate {
        // What the host's end sends is what the container receives.
        Some(rate) if !plan.host_name.is_empty() => routes.shape(&plan.host_name, Some(rate)),
        _ => Ok(()),
    }
}

/// As [`plug`], for an interface that exists already under the plan's name of the host's end.
pub fn plug_existing(plan: &InterfacePlan) -> Result<(), Error> {
    let routes = Routes::open()?;
    routes.plug_existing(plan)?;
    if plan.rate.is_some() { routes.shape(&plan.host_name, plan.rate) } else { Ok(()) }
}

/// Has the host's ends of interfaces send at other rates, or as fast as they can.
pub fn shape(plans: &[InterfacePlan]) -> Result<(), Error> {
    let routes = Routes::open()?;
    plans.iter().try_for_each(|plan| routes.shape(&plan.host_name, plan.rate))
}

/// Brings the loopback of the caller's network namespace up.
pub fn configure_loopback() -> Result<(), Error> {
    Routes::open()?.configure(&[])
}

/// Brings loopback and one interface of the caller's network namespace up, with its addresses and
/// default routes.
pub fn configure(plan: &InterfacePlan) -> Result<(), Error> {
    configure_all(std::slice::from_ref(plan))
}

/// As [`configure`], for several interfaces.
pub fn configure_all(plans: &[InterfacePlan]) -> Result<(), Error> {
    Routes::open()?.configure(plans)
}

/// Changes the interfaces of a container that runs, from the host's namespace. The calling thread visits
/// `namespace` meanwhile.
pub fn change(change: &NetworkChange, namespace: BorrowedFd<'_>) -> Result<(), Error> {
    let outside = Routes::open()?;
    for plan in &change.plug {
        plug_by(&outside, plan, namespace)?;
    }
    for plan in &change.shape {
        outside.shape(&plan.host_name, plan.rate)?;
    }
    let inside = inside(namespace, Routes::open)??;
    change.shape.iter().try_for_each(|plan| inside.shape(&plan.name, plan.rate))?;
    change.unplug.iter().try_for_each(|name| inside.delete(name))?;
    let plans: Vec<_> = change
        .plug
        .iter()
        .map(|plan| InterfacePlan { gateway: None, gateway6: None, ..plan.clone() })
        .collect();
    inside.configure(&plans)?;
    inside.set_default_route(change.gateway.as_ref(), false)?;
    inside.set_default_route(change.gateway6.as_ref(), true)
}

/// Runs `work` on this thread while it is in another network namespace. What it opens there stays there.
pub fn inside<T>(namespace: BorrowedFd<'_>, work: impl FnOnce() -> T) -> Result<T, Error> {
    let refused = |call| move |source| Error::Socket { call, source };
    let own = std::fs::File::open("/proc/thread-self/ns/net").map_err(refused("open the own namespace"))?;
    insula_sys::netlink::enter_network(namespace)
        .map_err(refused("enter a container's network namespace"))?;
    let result = work();
    insula_sys::netlink::enter_network(own.as_fd())
        .map_err(refused("return to the own network namespace"))?;
    Ok(result)
}

/// Waits until nobody else chooses what all of the caller's network namespace share, subnets for one: who holds
/// the result may look, choose and make before others look. The lock is on the namespace itself, see flock(2) and
/// namespaces(7), and ends with the process at the latest. Who holds it and takes it again waits for ever.
pub fn claim() -> Result<Claim, Error> {
    let refused = |call| move |source| Error::Socket { call, source };
    let namespace =
        std::fs::File::open("/proc/thread-self/ns/net").map_err(refused("open the own network namespace"))?;
    let exclusive = rustix::fs::FlockOperation::LockExclusive;
    rustix::io::retry_on_intr(|| rustix::fs::flock(&namespace, exclusive))
        .map_err(|errno| refused("lock the own network namespace")(errno.into()))?;
    Ok(Claim(namespace))
}

/// See [`claim`].
#[derive(Debug)]
#[must_use = "others may choose as soon as it is dropped"]
pub struct Claim(#[expect(dead_code, reason = "open as long as the lock")] std::fs::File);

/// An address with the length of its prefix.
fn parse_address(plan: &InterfacePlan, text: &str) -> Result<(IpAddr, u8), Error> {
    let malformed = || malformed(plan, "address", text);
    let (address, prefix) = text.split_once('/').ok_or_else(malformed)?;
    let address: IpAddr = address.parse().map_err(|_| malformed())?;
    let prefix: u8 = prefix.parse().map_err(|_| malformed())?;
    let limit = if address.is_ipv4() { 32 } else { 128 };
    if prefix > limit { Err(malformed()) } else { Ok((address, prefix)) }
}

/// `02:42:ac:11:00:02`.
fn parse_mac(plan: &InterfacePlan) -> Result<[u8; 6], Error> {
    let malformed = || malformed(plan, "hardware address", &plan.mac);
    let mut mac = [0; 6];
    let mut parts = plan.mac.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2).ok_or_else(malformed)?;
        *byte = u8::from_str_radix(part, 16).map_err(|_| malformed())?;
    }
    if parts.next().is_some() { Err(malformed()) } else { Ok(mac) }
}

fn malformed(plan: &InterfacePlan, what: &'static str, text: &str) -> Error {
    Error::Malformed { name: plan.name.clone(), what, text: text.to_owned() }
}

fn octets(address: IpAddr) -> ([u8; 16], usize) {
    let mut bytes = [0; 16];
    match address {
        IpAddr::V4(address) => {
            bytes[..4].copy_from_slice(&address.octets());
            (bytes, 4)
        }
        IpAddr::V6(address) => (address.octets(), 16),
    }
}

#[cfg(test)]
pub(crate) mod tests;
