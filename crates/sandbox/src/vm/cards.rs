//! The host's ends of a machine's network cards: taps. A machine gets no card once it runs, so it has more
//! than it needs; the taps of those wait where nobody is.

use std::num::NonZeroU64;

use insula_host::netlink::{self, EmptyNamespace};
use insula_spec::machine::{card, spare_cards};
use insula_spec::plan::{InterfaceKind, InterfacePlan};

use super::backend::{Interface, Sending};
use crate::{Error, Result};

/// Largest packet where a plan says nothing: Ethernet's.
const USUAL_MTU: u32 = 1500;

/// All of them, by their places.
#[derive(Debug)]
pub(super) struct Cards {
    aside: Option<EmptyNamespace>,
    /// Names of those in use, inside and on the host.
    used: Vec<Option<(String, String)>>,
    /// When each was last unplugged, counted: the one that has waited longest comes first, since a guest may need a
    /// while to get one back.
    waits: Vec<u64>,
    unplugged: u64,
    /// What each may send.
    sending: Vec<Sending>,
}

impl Cards {
    /// Makes the taps and plugs those that `plans` are for. `copy`: of a template, whose cards have other
    /// addresses at first.
    pub(super) fn open(plans: &[InterfacePlan], copy: bool) -> Result<(Self, Vec<Interface>)> {
        let mut cards = Vec::new();
        let mut used = Vec::new();
        for (place, plan) in plans.iter().enumerate() {
            let (interface, sending) = plug(place, plan, copy)?;
            sending.hold(plan.rate)?;
            cards.push((interface, sending));
            used.push(Some((plan.name.clone(), plan.host_name.clone())));
        }
        let aside = spare(spare_cards(plans.len()), &mut used, &mut cards)?;
        Ok(Self::of(aside, used, cards))
    }

    /// So many that wait, for a machine whose containers come later.
    pub(super) fn all_spare(count: usize) -> Result<(Self, Vec<Interface>)> {
        let (mut used, mut cards) = (Vec::new(), Vec::new());
        let aside = spare(count, &mut used, &mut cards)?;
        Ok(Self::of(aside, used, cards))
    }

    fn of(
        aside: Option<EmptyNamespace>,
        used: Vec<Option<(String, String)>>,
        cards: Vec<(Interface, Sending)>,
    ) -> (Self, Vec<Interface>) {
        let waits = vec![0; used.len()];
        let (interfaces, sending) = cards.into_iter().unzip();
        (Self { aside, used, waits, unplugged: 0, sending }, interfaces)
    }

    /// How many wait.
    pub(super) fn free(&self) -> usize {
        self.used.iter().filter(|used| used.is_none()).count()
    }

    /// Puts a card that waits into a network; its place, and the plan as it was carried out.
    pub(super) fn plug(&mut self, plan: &InterfacePlan) -> Result<(usize, InterfacePlan)> {
        bridged(plan)?;
        let free = (0..self.used.len())
            .filter(|place| self.used[*place].is_none())
            .min_by_key(|place| self.waits[*place]);
        let (Some(place), Some(aside)) = (free, &self.aside) else {
            return Err(Error::Full(format!(
                "the container's machine has {} network cards, and all are in use: stop it, then start it again \
                 to have more",
                self.used.len()
            )));
        };
        // It may have had another one before.
        let mtu = if plan.mtu == 0 { USUAL_MTU } else { plan.mtu };
        let plan = InterfacePlan { mtu, ..plan.clone() };
        // Before anybody could hear it.
        self.hold(place, plan.rate)?;
        aside.take(&waiting(place), &plan.host_name).map_err(of_network)?;
        if let Err(error) = netlink::plug_existing(&plan) {
            // The first error is the one to report.
            let _ = aside.put(&plan.host_name, &waiting(place));
            return Err(of_network(error));
        }
        self.used[place] = Some((plan.name.clone(), plan.host_name.clone()));
        Ok((place, plan))
    }

    /// Lets the guest send so many bits a second by a card, or as many as it can.
    pub(super) fn hold(&self, place: usize, rate: Option<NonZeroU64>) -> Result<()> {
        self.sending.get(place).map_or(Ok(()), |sending| sending.hold(rate))
    }

    /// The place of the card that has this name inside.
    pub(super) fn place(&self, name: &str) -> Option<usize> {
        self.used.iter().position(|used| used.as_ref().is_some_and(|(inside, _)| inside == name))
    }

    /// Takes a card out of its network.
    pub(super) fn unplug(&mut self, place: usize) -> Result<()> {
        let Some((_, host_name)) = self.used.get_mut(place).and_then(Option::take) else { return Ok(()) };
        self.unplugged += 1;
        self.waits[place] = self.unplugged;
        match &self.aside {
            Some(aside) => aside.put(&host_name, &waiting(place)).map_err(of_network),
            None => Ok(()),
        }
    }

    /// Names of those in use, inside and on the host.
    pub(super) fn names(&self) -> Vec<(String, String)> {
        self.used.iter().flatten().cloned().collect()
    }
}

/// Adds taps that wait where nobody is.
fn spare(
    count: usize,
    used: &mut Vec<Option<(String, String)>>,
    cards: &mut Vec<(Interface, Sending)>,
) -> Result<Option<EmptyNamespace>> {
    if count == 0 {
        return Ok(None);
    }
    let aside = EmptyNamespace::new().map_err(of_network)?;
    for place in used.len()..used.len() + count {
        let tap = aside.inside(|| insula_sys::tun::open_tap(&waiting(place))).map_err(of_network)?;
        cards.push(Interface::new(card(place), 0, tap.map_err(no_tap)?)?);
        used.push(None);
    }
    Ok(Some(aside))
}

/// Name of an interface that waits, by its place.
fn waiting(place: usize) -> String {
    format!("card{place}")
}

/// A tap that is a port of its bridge.
fn plug(place: usize, plan: &InterfacePlan, copy: bool) -> Result<(Interface, Sending)> {
    bridged(plan)?;
    let tap = insula_sys::tun::open_tap(&plan.host_name).map_err(no_tap)?;
    netlink::plug_existing(plan).map_err(of_network)?;
    // A copy has what its template had until the agent changes it.
    let (mac, mtu) = if copy { (card(place), 0) } else { (plan.mac.clone(), plan.mtu) };
    Interface::new(mac, mtu, tap)
}

fn bridged(plan: &InterfacePlan) -> Result<()> {
    if plan.kind == InterfaceKind::Veth {
        return Ok(());
    }
    Err(Error::Unsupported("a machine is in networks of the bridge driver alone: not in macvlans"))
}

fn no_tap(source: rustix::io::Errno) -> Error {
    Error::call("ioctl TUNSETIFF", "/dev/net/tun", source)
}

fn of_network(error: netlink::Error) -> Error {
    insula_container::Error::from(error).into()
}
