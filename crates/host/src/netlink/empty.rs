//! Network namespaces that nobody is in. Interfaces of machines wait there that are in no network at the
//! moment: taps on the host, cards in the guest.

use std::fs::File;
use std::os::fd::AsFd;

use insula_spec::plan::InterfacePlan;

use super::{Error, Routes, inside};

/// A network namespace without processes; what is in it is gone with it.
#[derive(Debug)]
pub struct EmptyNamespace(File);

impl EmptyNamespace {
    /// Makes one. The calling thread visits it.
    pub fn new() -> Result<Self, Error> {
        let refused = |call| move |source| Error::Socket { call, source };
        let own = here()?;
        insula_sys::netlink::unshare_network().map_err(refused("make a network namespace"))?;
        let made = here();
        insula_sys::netlink::enter_network(own.as_fd())
            .map_err(refused("return to the own network namespace"))?;
        Ok(Self(made?))
    }

    /// Runs `work` there, on this thread.
    pub fn inside<T>(&self, work: impl FnOnce() -> T) -> Result<T, Error> {
        inside(self.0.as_fd(), work)
    }

    /// Puts an interface of the caller's namespace away, under another name.
    pub fn put(&self, name: &str, new: &str) -> Result<(), Error> {
        let routes = Routes::open()?;
        routes.set_up(name, false)?;
        routes.rename(name, new)?;
        routes.hand_over(new, self.0.as_fd())
    }

    /// Brings an interface back to the caller's namespace, under the name `new`. One that cannot come stays as it
    /// was.
    pub fn take(&self, name: &str, new: &str) -> Result<(), Error> {
        let own = here()?;
        self.inside(|| {
            let routes = Routes::open()?;
            routes.rename(name, new)?;
            routes.hand_over(new, own.as_fd()).inspect_err(|_| {
                // The first error is the one to report.
                let _ = routes.rename(new, name);
            })
        })?
    }

    /// Gives an interface that waits the hardware address and the largest packet of a plan.
    pub fn set_hardware(&self, name: &str, plan: &InterfacePlan) -> Result<(), Error> {
        self.inside(|| Routes::open()?.set_hardware(name, plan))?
    }
}

pub(super) fn here() -> Result<File, Error> {
    File::open("/proc/thread-self/ns/net")
        .map_err(|source| Error::Socket { call: "open the own network namespace", source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::tests::{bridge, isolated, plan};

    #[test]
    fn an_interface_waits_and_comes_back() {
        isolated(|| {
            let waiting = EmptyNamespace::new().unwrap();
            let routes = Routes::open().unwrap();
            routes.ensure_bridge(&bridge()).unwrap();
            let plan = plan(7);
            // What has the name already stays, and so does what cannot come.
            let tap = waiting.inside(|| insula_sys::tun::open_tap("card0")).unwrap().unwrap();
            routes.ensure_alone(&plan.host_name).unwrap();
            waiting.take("card0", &plan.host_name).unwrap_err();
            routes.delete(&plan.host_name).unwrap();

            waiting.take("card0", &plan.host_name).unwrap();
            routes.plug_existing(&plan).unwrap();
            let link = routes.link(&plan.host_name).unwrap().unwrap();
            assert!(link.up && link.mtu == plan.mtu && link.master.is_some(), "{link:?}");

            waiting.put(&plan.host_name, "card0").unwrap();
            assert_eq!(routes.link(&plan.host_name).unwrap(), None);
            let waits = waiting.inside(|| Routes::open().unwrap().link("card0").unwrap().unwrap()).unwrap();
            assert!(!waits.up && waits.master.is_none(), "{waits:?}");
            drop(tap);
        });
    }
}
