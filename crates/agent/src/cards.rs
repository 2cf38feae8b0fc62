//! Network cards of a machine, by their places: in a network, or waiting where containers do not see them.

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::Duration;

use insula_host::netlink::{self, EmptyNamespace, Routes};
use insula_spec::machine::{CardsChange, card};
use insula_spec::plan::InterfacePlan;

use crate::error::{Context, Error, Result};

/// The cards of a machine that has some.
#[derive(Debug)]
pub(crate) struct Cards {
    aside: EmptyNamespace,
}

impl Cards {
    /// Puts the spare cards of a machine away that has `first` others; none if it has no cards at all.
    pub(crate) fn put_away(first: usize, count: usize) -> Result<Option<Self>> {
        if first + count == 0 {
            return Ok(None);
        }
        let aside = EmptyNamespace::new()?;
        for place in first..first + count {
            aside.put(&named(&card(place))?, &waiting(place))?;
        }
        Ok(Some(Self { aside }))
    }

    /// Carries a change out. Cards that could not be plugged wait as before.
    pub(crate) fn change(&self, change: &CardsChange) -> Result<()> {
        let done = self.carry_out(change);
        if done.is_err() {
            for (place, plan) in &change.plug {
                // The first error is the one to report; most of them may wait still.
                let _ = self.aside.put(&plan.name, &waiting(*place));
            }
        }
        done
    }

    fn carry_out(&self, change: &CardsChange) -> Result<()> {
        for (place, plan) in &change.plug {
            self.aside.set_hardware(&waiting(*place), plan)?;
            self.aside.take(&waiting(*place), &plan.name)?;
        }
        for (place, name) in &change.unplug {
            self.aside.put(name, &waiting(*place))?;
        }
        let plans: Vec<_> = change
            .plug
            .iter()
            .map(|(_, plan)| InterfacePlan { gateway: None, gateway6: None, ..plan.clone() })
            .collect();
        netlink::configure_all(&plans)?;
        let routes = Routes::open()?;
        change.shape.iter().try_for_each(|plan| routes.shape(&plan.name, plan.rate))?;
        routes.set_default_route(change.gateway.as_ref(), false)?;
        Ok(routes.set_default_route(change.gateway6.as_ref(), true)?)
    }
}

fn waiting(place: usize) -> String {
    format!("card{place}")
}

/// The cards of a tenant's machine by their places: what each is plugged into. One that no container has is in the
/// first process' own network namespace, where no container is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Devices(pub(crate) Vec<PathBuf>);

impl Devices {
    /// Name of a card that no container has.
    pub(crate) fn waiting(place: usize) -> String {
        waiting(place)
    }

    /// Carries a change out in a container's network namespace. What could not be plugged waits as before.
    pub(crate) fn change(&self, change: &CardsChange, namespace: BorrowedFd<'_>) -> Result<()> {
        let done = self.carry_out(change, namespace);
        if done.is_err() {
            for (place, plan) in &change.plug {
                // The first error is the one to report; most of them may wait still.
                let _ = self.take_back(*place, &plan.name, namespace);
            }
        }
        done
    }

    fn carry_out(&self, change: &CardsChange, namespace: BorrowedFd<'_>) -> Result<()> {
        for (place, plan) in &change.plug {
            let (card, routes) = (self.fetch(*place)?, Routes::open()?);
            routes.set_hardware(&card, plan)?;
            routes.hand_over(&card, namespace)?;
            netlink::inside(namespace, || Routes::open()?.rename(&card, &plan.name))??;
        }
        for (place, name) in &change.unplug {
            self.take_back(*place, name, namespace)?;
        }
        let plans = change
            .plug
            .iter()
            .map(|(_, plan)| InterfacePlan { gateway: None, gateway6: None, ..plan.clone() })
            .collect::<Vec<_>>();
        let routes = netlink::inside(namespace, Routes::open)??;
        routes.configure(&plans)?;
        change.shape.iter().try_for_each(|plan| routes.shape(&plan.name, plan.rate))?;
        routes.set_default_route(change.gateway.as_ref(), false)?;
        Ok(routes.set_default_route(change.gateway6.as_ref(), true)?)
    }

    /// Makes a card wait in the first process' namespace; its name there.
    ///
    /// It comes back by itself from a namespace that ends, which the kernel destroys in its own time.
    fn fetch(&self, place: usize) -> Result<String> {
        // Together less than the host waits for an answer.
        const INSTANTS: u32 = 10_000;
        const INSTANT: Duration = Duration::from_millis(5);
        let device = self.0.get(place).ok_or(Error::NoCards)?;
        for _ in 0..INSTANTS {
            if let Some(name) = plugged_into(device)? {
                let (waiting, routes) = (waiting(place), Routes::open()?);
                routes.set_up(&name, false)?;
                if name != waiting {
                    routes.rename(&name, &waiting)?;
                }
                return Ok(waiting);
            }
            std::thread::sleep(INSTANT);
        }
        Err(Error::NoInterface(waiting(place)))
    }

    fn take_back(&self, place: usize, name: &str, namespace: BorrowedFd<'_>) -> Result<()> {
        let path = "/proc/thread-self/ns/net";
        let own = File::open(path).context("open", path)?;
        let back = || {
            let routes = Routes::open()?;
            routes.set_up(name, false)?;
            routes.rename(name, &waiting(place))?;
            routes.hand_over(&waiting(place), own.as_fd())
        };
        Ok(netlink::inside(namespace, back)??)
    }
}

/// The interface that is plugged into a device, if it is in this process' namespace.
fn plugged_into(device: &PathBuf) -> Result<Option<String>> {
    let folder = "/sys/class/net";
    for entry in fs::read_dir(folder).context("open", folder)? {
        let entry = entry.context("read", folder)?;
        if fs::read_link(entry.path().join("device")).is_ok_and(|link| link == *device) {
            return Ok(entry.file_name().into_string().ok());
        }
    }
    Ok(None)
}

/// The interface with this hardware address.
pub(crate) fn named(mac: &str) -> Result<String> {
    let folder = "/sys/class/net";
    for entry in fs::read_dir(folder).context("open", folder)? {
        let entry = entry.context("read", folder)?;
        let address = fs::read_to_string(entry.path().join("address")).unwrap_or_default();
        if address.trim().eq_ignore_ascii_case(mac)
            && let Ok(name) = entry.file_name().into_string()
        {
            return Ok(name);
        }
    }
    Err(Error::NoInterface(mac.to_owned()))
}
