//! What makes a machine the one that the host means: its time, its randomness, its name, its files, its network.
//! A copy of a template has nothing left of the template's after this.

use insula_host::netlink::{self, Routes};
use insula_spec::machine::{FilesPlan, GuestPlan, RootPlan, card};
use insula_spec::plan::InterfacePlan;
use rustix::time::{ClockId, Timespec};

use crate::cards::{Cards, named};
use crate::error::{Context, Result};
use crate::names::Names;
use crate::{files, image};

/// What the agent serves in a machine that is furnished.
#[derive(Debug, Default)]
pub(crate) struct Furnished {
    /// The name server's address, if the machine has one.
    pub(crate) names: Option<Names>,
    /// Spare cards, if it has such.
    pub(crate) cards: Option<Cards>,
    /// The container's root is mapped into its memory.
    pub(crate) mapped: bool,
    /// What could not be done as asked.
    pub(crate) warnings: Vec<String>,
}

/// Carries the plan out.
pub(crate) fn furnish(plan: &[u8]) -> Result<Furnished> {
    let plan: GuestPlan = serde_json::from_slice(plan)?;
    identity(&plan)?;
    files::mount(plan.files)?;
    let root = (plan.root == RootPlan::Image).then(image::mount);
    let mapped = matches!(root, Some(Ok(())));
    connect(&plan.interfaces, plan.files == FilesPlan::Port)?;
    let cards = Cards::put_away(plan.interfaces.len(), plan.spare)?;
    // They are all among those that are served.
    let warning =
        |error| format!("the image's files are not mapped but served: {}", insula_base::chain(&error));
    let warnings = root.and_then(Result::err).map(warning).into_iter().collect();
    Ok(Furnished { names: plan.resolver.then(Names::new).transpose()?, cards, mapped, warnings })
}

/// Time, randomness, name.
pub(crate) fn identity(plan: &GuestPlan) -> Result<()> {
    const SECOND: i64 = 1_000_000_000;
    let time = Timespec { tv_sec: plan.time.div_euclid(SECOND), tv_nsec: plan.time.rem_euclid(SECOND) };
    rustix::time::clock_settime(ClockId::Realtime, time).context("clock_settime", "to the host's time")?;
    insula_sys::random::reseed(plan.entropy.as_bytes()).context("ioctl", "/dev/urandom")?;
    rustix::system::sethostname(plan.hostname.as_bytes()).context("sethostname", &plan.hostname)
}

/// In a copy of a template each interface becomes first what the plan says.
fn connect(plans: &[InterfacePlan], copy: bool) -> Result<()> {
    let routes = Routes::open()?;
    let mut names = Vec::new();
    for (place, plan) in plans.iter().enumerate() {
        let name = if copy {
            let name = named(&card(place))?;
            routes.set_hardware(&name, plan)?;
            name
        } else {
            named(&plan.mac)?
        };
        // Another one may have this one's name so far.
        let between = format!("machine{}", names.len());
        routes.rename(&name, &between)?;
        names.push(between);
    }
    for (between, plan) in names.iter().zip(plans) {
        routes.rename(between, &plan.name)?;
    }
    Ok(netlink::configure_all(plans)?)
}
