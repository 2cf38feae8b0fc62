//! Published ports of an ordinary user's engine: its firewall is that of its own network namespace, so what comes to
//! the host's ports is carried in by a program with the host's sockets. Elsewhere nothing of this does anything.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use insula_host::rootless;
use insula_spec::outlets::Outlet;

use super::{Inner, plumbing};
use crate::{Endpoint, Error, PublishedPort};

/// What leads to an endpoint at the moment.
fn of(endpoint: &Endpoint) -> Vec<Outlet> {
    let forwards = plumbing::forwards(endpoint);
    let outlet = |published: &PublishedPort| {
        let forward = forwards.iter().find(|forward| {
            let address = Some(published.host_ip).filter(|address| !address.is_unspecified());
            (forward.proto, forward.address, forward.port)
                == (published.proto.number(), address, published.host_port)
                && forward.to.is_ipv4() == published.host_ip.is_ipv4()
        });
        let to = forward.map(|forward| SocketAddr::new(forward.to, forward.to_port));
        outlet(published, to.unwrap_or_else(|| nowhere(published.host_ip)))
    };
    endpoint.ports.iter().filter_map(outlet).collect()
}

fn outlet(published: &PublishedPort, to: SocketAddr) -> Option<Outlet> {
    let host = SocketAddr::new(published.host_ip, published.host_port);
    Some(Outlet { transport: published.proto.transport()?, host, to })
}

fn nowhere(like: IpAddr) -> SocketAddr {
    match like {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

fn same(one: &Outlet, other: &Outlet) -> bool {
    (one.transport, one.host) == (other.transport, other.host)
}

/// Whether the port is among those that are led in.
pub(super) fn is_led(published: &PublishedPort, led: &[Outlet]) -> bool {
    let wanted = outlet(published, nowhere(published.host_ip));
    wanted.is_some_and(|wanted| led.iter().any(|outlet| same(outlet, &wanted)))
}

/// Leads an endpoint's ports in. Those whose sockets were handed over before lead to where it is now.
pub(super) fn lead(inner: &mut Inner, endpoint: &Endpoint) -> Result<(), Error> {
    let Some(outside) = rootless::outside() else { return Ok(()) };
    let (mut new, mut known) = (Vec::new(), Vec::new());
    let mut reservations = inner.reserved.get_mut(&endpoint.container);
    for outlet in of(endpoint) {
        let mut held = reservations.iter_mut().flat_map(|all| all.iter_mut());
        let own = held.find(|reservation| is_led(&reservation.published, &[outlet]));
        match own.map(|reservation| reservation.socket.take()) {
            Some(Some(socket)) => new.push((outlet, socket)),
            Some(None) => known.push(outlet),
            // Somebody else has it, which was said.
            None => {}
        }
    }
    outside.lead(&new)?;
    Ok(outside.turn(known)?)
}

/// What led to where the container is no more leads nowhere: somebody else may get the address.
pub(super) fn turn_away(before: &Endpoint, after: &Endpoint) -> Result<(), Error> {
    let Some(outside) = rootless::outside() else { return Ok(()) };
    let stays = of(after);
    let gone = of(before).into_iter().filter(|outlet| !stays.contains(outlet));
    Ok(outside.turn(gone.map(|outlet| Outlet { to: nowhere(outlet.to.ip()), ..outlet }).collect())?)
}

/// Closes an endpoint's ports.
pub(super) fn close(endpoint: &Endpoint) {
    let Some(outside) = rootless::outside() else { return };
    if let Err(error) = outside.close(of(endpoint)) {
        tracing::warn!(
            container = endpoint.container.short(),
            error = insula_base::chain(&error),
            "its ports are open still"
        );
    }
}

/// The ports that were led in for a former daemon and go on; the others are closed.
pub(super) fn keep(kept: &[Endpoint], warnings: &mut Vec<String>) -> Result<Vec<Outlet>, Error> {
    let Some(outside) = rootless::outside() else { return Ok(Vec::new()) };
    let wanted: Vec<Outlet> = kept.iter().flat_map(of).collect();
    let (led, stale): (Vec<Outlet>, Vec<Outlet>) =
        outside.outlets()?.into_iter().partition(|outlet| wanted.iter().any(|wanted| same(wanted, outlet)));
    if let Err(error) = outside.close(stale) {
        warnings.push(insula_base::chain(&error));
    }
    Ok(led)
}
