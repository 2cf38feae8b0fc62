//! Machines for containers that have a kernel of their own: which kernel, how large, run by what.

mod check;
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

use insula_host::guest::{self, Features};
use insula_spec::machine::{Backend, MachinePlan};

pub(crate) use self::check::check;
use self::images::Images;
pub(crate) use self::images::WantedImage;
pub(crate) use self::making::Wanted;
use self::templates::Templates;
use crate::containers::row::Row;
use crate::{Config, Error, Result, tenants};

/// Value of `HostConfig.Isolation` for a machine of its own.
pub(crate) const ISOLATION: &str = "vm";

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
        let mut plan = self.machine(self.choice().backend, row.host.privileged, cpus, memory)?;
        folder.clone_into(&mut plan.folder);
        Ok(plan)
    }

    /// The machine of a tenant whose containers have this together.
    pub(crate) fn tenant(&self, nano_cpus: i64, memory: u64) -> Result<MachinePlan> {
        let host = insula_models::HostConfig {
            nano_cpus,
            memory: i64::try_from(memory).unwrap_or(i64::MAX),
            ..Default::default()
        };
        self.machine(self.choice().backend, false, size::cpus(&host), size::memory(&host))
    }

    /// A machine of this size that boots.
    fn machine(&self, backend: Backend, engine: bool, cpus: u32, memory: u64) -> Result<MachinePlan> {
        if !self.agent.is_file() {
            return Err(Error::Unavailable(format!(
                "{} is missing, the first program of a container's own kernel: it is installed beside the daemon",
                self.agent.display()
            )));
        }
        let kernel = self.kernel()?;
        let features = if engine { Features::Engine } else { Features::Containers };
        let images = if backend == Backend::Kvm { guest::Images::Mapped } else { guest::Images::Served };
        let initramfs = guest::initramfs(&kernel, &self.agent, (features, images), &self.folder)?;
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
        })
    }
}
