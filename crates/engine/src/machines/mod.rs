//! Machines for containers that have a kernel of their own: which kernel, how large, run by what.

mod check;
mod dirty;
mod disk;
mod hardware;
mod images;
mod kernels;
mod making;
mod size;
mod templates;
mod use_cases;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use insula_host::guest::{self, Features, Sockets};
use insula_models::HostConfig;
use insula_spec::machine::{Backend, MachinePlan};

pub(crate) use self::check::{VSOCK, check, wants_sockets};
pub(crate) use self::dirty::Counting;
use self::images::Images;
pub(crate) use self::images::WantedImage;
pub(crate) use self::making::Wanted;
use self::templates::Templates;
use crate::containers::row::Row;
use crate::{Config, Error, Result, tenants};

/// Value of `HostConfig.Isolation` for a machine of its own.
pub(crate) const ISOLATION: &str = "vm";

/// Those below are the host's and the guest's own: vsock(7).
const FIRST_ADDRESS: u32 = 3;

/// Whether a container has another kernel than the host's: one of its own, or its tenant's.
pub(crate) fn wanted(isolation: &str) -> bool {
    isolation == ISOLATION || tenants::of(isolation).is_some()
}

/// What every machine of this engine is made with.
#[derive(Debug)]
pub(crate) struct Machines {
    /// Chosen kernel, initial RAM disks.
    folder: PathBuf,
    agent: PathBuf,
    vmm: PathBuf,
    monitor: PathBuf,
    wanted: Option<Backend>,
    templates: Templates,
    images: Images,
    /// Templates are made of machines that were booted.
    makes_templates: bool,
    /// Seconds that one may take to boot.
    patience: u32,
    choice: OnceLock<hardware::Choice>,
}

impl Machines {
    /// That the agent is missing is said when it is needed.
    pub(crate) fn new(root: &Path, config: &Config) -> Self {
        Self {
            folder: root.join("machines"),
            agent: config.agent.clone(),
            vmm: config.vmm.clone(),
            monitor: config.monitor.clone(),
            wanted: config.vm_backend,
            templates: Templates::new(root.join("templates")),
            images: Images::new(root.join("machines/images")),
            makes_templates: config.vm_templates,
            patience: config.vm_boot_timeout,
            choice: OnceLock::new(),
        }
    }

    /// Frees memory and files that are not used any more; to be called regularly.
    pub(crate) fn rest(&self) {
        self.templates.rest();
        self.images.rest();
    }

    /// Removes what a daemon that was killed has left; to be called before templates are made.
    pub(crate) fn tidy_up(&self) -> Result<()> {
        self.images.tidy_up()?;
        self.templates.tidy_up()
    }

    /// The machine of a container whose sandbox has `folder`. Reads and perhaps writes files.
    pub(crate) fn plan(&self, row: &Row, folder: &Path) -> Result<MachinePlan> {
        let (cpus, memory) = (size::cpus(&row.host), size::memory(&row.host));
        let sockets = wants_sockets(&row.host);
        let mut plan = self.machine(self.choice().backend, row.host.privileged, sockets, cpus, memory)?;
        plan.vsock = sockets.then(|| address(row.id.as_str()));
        folder.clone_into(&mut plan.folder);
        Ok(plan)
    }

    /// The machine of a tenant whose containers have this together.
    pub(crate) fn tenant(&self, nano_cpus: i64, memory: u64) -> Result<MachinePlan> {
        let host =
            HostConfig { nano_cpus, memory: i64::try_from(memory).unwrap_or(i64::MAX), ..Default::default() };
        self.machine(self.choice().backend, false, false, size::cpus(&host), size::memory(&host))
    }

    /// A machine of this size that boots; with `sockets` its guest has a driver for such.
    fn machine(
        &self,
        backend: Backend,
        engine: bool,
        sockets: bool,
        cpus: u32,
        memory: u64,
    ) -> Result<MachinePlan> {
        if !self.agent.is_file() {
            return Err(Error::Unavailable(format!(
                "{} is missing, the first program of a container's own kernel: it is installed beside the daemon",
                self.agent.display()
            )));
        }
        let kernel = self.kernel()?;
        let features = if engine { Features::Engine } else { Features::Containers };
        let images = if backend == Backend::Kvm { guest::Images::Mapped } else { guest::Images::Served };
        let vsock = if sockets { Sockets::Vsock } else { Sockets::None };
        let initramfs = guest::initramfs(&kernel, &self.agent, (features, images, vsock), &self.folder)?;
        Ok(MachinePlan {
            backend,
            vmm: self.vmm.clone(),
            kernel,
            initramfs,
            cpus,
            memory,
            patience: self.patience,
            folder: PathBuf::new(),
            template: None,
            image: None,
            tenant: None,
            // Of a template; each copy has its own.
            vsock: sockets.then_some(FIRST_ADDRESS),
        })
    }

    /// That machines have sockets to the host where they are wanted.
    pub(crate) fn check_sockets(&self, wanted: bool) -> Result<()> {
        if wanted && self.choice().backend == Backend::Qemu {
            return Err(Error::Unsupported(format!(
                "--device {VSOCK} is available where insula's own machine runs, and machines are QEMU's here"
            )));
        }
        Ok(())
    }
}

/// The address of a guest's sockets, from its container's id: others have other ones, nearly always, and who sees one
/// in a log can tell whose it was. Nothing depends on it, since each machine has one guest.
fn address(container: &str) -> u32 {
    let digits = container.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or(0);
    FIRST_ADDRESS + digits % (u32::MAX - FIRST_ADDRESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_guests_are_none_that_mean_something() {
        let id = |first: &str| format!("{first}{}", "0".repeat(56));
        assert_eq!(address(&id("00000000")), 3);
        assert_eq!(address(&id("00000001")), 4);
        for first in ["fffffffb", "fffffffc", "fffffffd", "fffffffe", "ffffffff"] {
            assert!((3..u32::MAX).contains(&address(&id(first))), "{first}");
        }
    }
}
