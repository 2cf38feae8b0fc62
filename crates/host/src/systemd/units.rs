//! Calls of systemd: org.freedesktop.systemd1(5).

use std::path::PathBuf;

use insula_base::env;
use insula_spec::bundle::UnitValue;
use serde::{Deserialize, Serialize};

use super::bus::{Address, Bus, sockets};
use super::error::{Error, Result};
use super::message::{Body, Target};

pub(super) const MANAGER: Target = Target {
    destination: "org.freedesktop.systemd1",
    path: "/org/freedesktop/systemd1",
    interface: "org.freedesktop.systemd1.Manager",
};
/// What tells of the end of jobs.
const ENDS: &str = "type='signal',sender='org.freedesktop.systemd1',path='/org/freedesktop/systemd1',\
                    interface='org.freedesktop.systemd1.Manager',member='JobRemoved'";
const EXISTS: &str = "org.freedesktop.systemd1.UnitExists";
const UNKNOWN: &str = "org.freedesktop.systemd1.NoSuchUnit";
const INVALID: &str = "org.freedesktop.DBus.Error.InvalidArgs";
/// Where the host's own bus is, and where it is asked without one.
const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";
const SYSTEM: &str = "/run/systemd/private";

/// Which of the host's managers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Whose {
    /// Of the whole host.
    System,
    /// Of the user who calls.
    User,
}

impl Whose {
    /// An ordinary user has one of its own; so has who is in a user namespace of such a user, but not in that of a
    /// container with a systemd in it.
    #[must_use]
    pub fn of_caller() -> Self {
        let root = rustix::process::geteuid().is_root();
        let inside = insula_sys::process::in_user_namespace();
        let own = || Self::User.addresses().iter().any(Address::exists);
        if !root || (inside && own()) { Self::User } else { Self::System }
    }

    /// The slice of units that name none.
    #[must_use]
    pub fn slice(self) -> &'static str {
        match self {
            Self::System => "system.slice",
            Self::User => "user.slice",
        }
    }

    /// Where it may be found, the best first.
    fn addresses(self) -> Vec<Address> {
        let said = |name| std::env::var(name).ok().filter(|said| !said.is_empty());
        match self {
            Self::System => match said(env::DBUS_SYSTEM_BUS_ADDRESS) {
                Some(address) => sockets(&address).into_iter().map(Address::Bus).collect(),
                None => vec![Address::Bus(SYSTEM_BUS.into()), Address::Itself(SYSTEM.into())],
            },
            Self::User => {
                let runtime = said(env::XDG_RUNTIME_DIR).map(PathBuf::from);
                let buses = match said(env::DBUS_SESSION_BUS_ADDRESS) {
                    Some(address) => sockets(&address),
                    None => runtime.iter().map(|folder| folder.join("bus")).collect(),
                };
                let itself = runtime.map(|folder| Address::Itself(folder.join("systemd/private")));
                buses.into_iter().map(Address::Bus).chain(itself).collect()
            }
        }
    }
}

/// A manager of units, connected.
#[derive(Debug)]
pub struct Manager {
    bus: Bus,
}

impl Manager {
    /// Connects to the first that answers.
    pub fn connect(whose: Whose) -> Result<Self> {
        let mut wrong = Vec::new();
        for address in whose.addresses() {
            match Self::at(&address) {
                Ok(manager) => return Ok(manager),
                Err(error) => wrong.push(insula_base::chain(&error)),
            }
        }
        if wrong.is_empty() {
            wrong.push("there is no address to try".to_owned());
        }
        Err(Error::Nowhere(wrong.join("; ")))
    }

    pub(super) fn at(address: &Address) -> Result<Self> {
        let mut bus = Bus::connect(address)?;
        if matches!(address, Address::Bus(_)) {
            // Who asks it without a bus is told of everything.
            bus.watch(ENDS, MANAGER, "Subscribe")?;
        }
        Ok(Self { bus })
    }

    /// Makes a scope; returns when it stands.
    pub fn start(&mut self, unit: &str, properties: &[(String, UnitValue)]) -> Result<()> {
        let body = || Body::default().text(unit).text("replace").properties(properties).no_others();
        let started = match self.bus.call(MANAGER, "StartTransientUnit", &body()) {
            // One that has failed keeps its name until somebody says that it has been seen.
            Err(error) if error.is(EXISTS) && self.forget(unit).is_ok() => {
                self.bus.call(MANAGER, "StartTransientUnit", &body())
            }
            started => started,
        };
        let job = started?.said();
        self.wait(unit, &job)
    }

    /// Ends what is left of a unit; one that is gone is gone.
    pub fn stop(&mut self, unit: &str) -> Result<()> {
        let stopped = match self.bus.call(MANAGER, "StopUnit", &Body::default().text(unit).text("replace")) {
            Err(error) if error.is(UNKNOWN) => return Ok(()),
            job => self.wait(unit, &job?.said()),
        };
        // It is mostly gone by now.
        let _ = self.forget(unit);
        stopped
    }

    fn forget(&mut self, unit: &str) -> Result<()> {
        self.bus.call(MANAGER, "ResetFailedUnit", &Body::default().text(unit)).map(drop)
    }

    /// Tells what holds for a unit until it ends.
    pub fn limit(&mut self, unit: &str, mut properties: Vec<(String, UnitValue)>) -> Result<()> {
        match self.set(unit, &properties) {
            // Before version 252 there are no idle units.
            Err(error) if error.is(INVALID) && properties.contains(&super::properties::idle()) => {
                properties.retain(|property| *property != super::properties::idle());
                self.set(unit, &properties)
            }
            told => told,
        }
    }

    /// Changes properties until the unit ends.
    pub fn set(&mut self, unit: &str, properties: &[(String, UnitValue)]) -> Result<()> {
        let body = Body::default().text(unit).flag(true).properties(properties);
        self.bus.call(MANAGER, "SetUnitProperties", &body).map(drop)
    }

    fn wait(&mut self, unit: &str, job: &str) -> Result<()> {
        match self.bus.end_of(job)? {
            result if result == "done" => Ok(()),
            result => Err(Error::Job { unit: unit.to_owned(), result }),
        }
    }
}
