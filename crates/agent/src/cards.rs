//! Network cards of a machine, by their places: in a network, or waiting where containers do not see them.

use std::fs;

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
        routes.set_default_route(change.gateway.as_ref(), false)?;
        Ok(routes.set_default_route(change.gateway6.as_ref(), true)?)
    }
}

fn waiting(place: usize) -> String {
    format!("card{place}")
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
