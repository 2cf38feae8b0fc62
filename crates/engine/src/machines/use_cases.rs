//! What is asked about machines.

use std::path::Path;

use insula_host::guest;
use insula_models::{Kernel, KernelUseRequest, MachinesInfo, Template, TemplateRequest, TemplatesPruned};

use insula_spec::machine::{MOST_INTERFACES, TemplateFor};

use super::making;
use super::templates::{Document, Found};

use super::Machines;
use crate::{Engine, Error, Result, blocking};

impl Engine {
    /// What machines run on, for `info`. The first time takes some milliseconds.
    pub(crate) fn machines_info(&self) -> MachinesInfo {
        let machines = &self.0.machines;
        let choice = machines.choice();
        // That there is none is no error of `info`.
        let kernel = machines.kernel().map(|kernel| kernel.release).unwrap_or_default();
        MachinesInfo { backend: choice.backend.name().to_owned(), why: choice.why.clone(), kernel }
    }

    /// Kernels that machines can boot, the one in use first.
    pub async fn kernels(&self) -> Result<Vec<Kernel>> {
        let engine = self.clone();
        let (found, any) = blocking(move || engine.0.machines.kernels()).await?;
        Ok(found.iter().enumerate().map(|(number, kernel)| describe(kernel, any && number == 0)).collect())
    }

    /// Makes machines boot another kernel from now on.
    pub async fn use_kernel(&self, request: KernelUseRequest) -> Result<Kernel> {
        if !Path::new(&request.path).is_absolute() {
            return Err(Error::InvalidArgument(format!(
                "the kernel's path {:?} is not absolute",
                request.path
            )));
        }
        let engine = self.clone();
        let kernel = blocking(move || engine.0.machines.choose(Path::new(&request.path))).await?;
        Ok(describe(&kernel, true))
    }
}

impl Engine {
    /// Templates of machines on disk.
    pub async fn templates(&self) -> Result<Vec<Template>> {
        let engine = self.clone();
        blocking(move || {
            let machines = &engine.0.machines;
            Ok(machines.templates.list()?.iter().map(|found| machines.describe(found)).collect())
        })
        .await
    }

    /// Makes a template for containers with these limits, or for a tenant's machine, if there is none; takes as long
    /// as a boot.
    pub async fn warm(&self, request: TemplateRequest) -> Result<Template> {
        let interfaces = request.interfaces;
        if interfaces > MOST_INTERFACES as u64 || request.nano_cpus < 0 || request.memory < 0 {
            return Err(Error::InvalidArgument(format!(
                "a template of {} CPUs / 10^9, {} bytes of memory and {interfaces} interfaces (at most \
                 {MOST_INTERFACES}) makes no sense",
                request.nano_cpus, request.memory
            )));
        }
        let engine = self.clone();
        let (wanted, there) = blocking(move || {
            let machines = &engine.0.machines;
            let (cpus, memory) = making::sizes(request.nano_cpus, request.memory);
            // At most 16.
            let wanted = match request.tenant.as_str() {
                "" => {
                    machines.check_sockets(request.vsock)?;
                    machines.usual(cpus, memory, interfaces as usize, request.vsock)?
                }
                name => engine.template_of_tenant(name)?,
            };
            let there = machines.find(&wanted.id)?;
            Ok((wanted, there))
        })
        .await?;
        if let Some(there) = there {
            return Ok(there);
        }
        let id = wanted.id.clone();
        self.make_template(wanted, false).await?;
        let engine = self.clone();
        let made = blocking(move || engine.0.machines.find(&id)).await?;
        made.ok_or_else(|| {
            Error::Unavailable("the template was not made; the daemon's log says why".to_owned())
        })
    }

    /// Removes the template whose id begins so; machines that were made of it go on.
    pub async fn remove_template(&self, reference: &str) -> Result<()> {
        let (engine, reference) = (self.clone(), reference.to_owned());
        blocking(move || {
            let templates = &engine.0.machines.templates;
            let found = templates.list()?;
            let mut matching = found.iter().filter(|found| found.id.starts_with(&reference));
            match (matching.next(), matching.next()) {
                (Some(found), None) => templates.remove(&found.id).map(drop),
                (None, _) => Err(Error::NotFound(format!("No such template: {reference}"))),
                _ => Err(Error::InvalidArgument(format!("more than one template begins with {reference}"))),
            }
        })
        .await
    }

    /// Removes templates that no new machine is a copy of, or all of them.
    pub async fn prune_templates(&self, all: bool) -> Result<TemplatesPruned> {
        let engine = self.clone();
        blocking(move || {
            let machines = &engine.0.machines;
            let mut pruned = TemplatesPruned::default();
            for found in machines.templates.list()? {
                if (all || machines.stale(&found)) && machines.templates.remove(&found.id)? {
                    pruned.space_reclaimed += found.size;
                    pruned.templates_deleted.push(found.id);
                }
            }
            Ok(pruned)
        })
        .await
    }
}

impl Machines {
    fn find(&self, id: &str) -> Result<Option<Template>> {
        let found = self.templates.list()?;
        Ok(found.iter().find(|found| found.id == id).map(|found| self.describe(found)))
    }

    pub(super) fn stale(&self, found: &Found) -> bool {
        // One whose kernel is gone is not found again either.
        let now = found.document.as_ref().and_then(|document| self.now(&document.shape).ok());
        now.as_ref() != Some(&found.id)
    }

    fn describe(&self, found: &Found) -> Template {
        let template = Template {
            id: found.id.clone(),
            size: found.size,
            stale: self.stale(found),
            ..Template::default()
        };
        let Some(Document { shape, release, boot, created, .. }) = &found.document else { return template };
        Template {
            backend: shape.backend.name().to_owned(),
            kernel: release.clone(),
            cpus: shape.cpus,
            memory: shape.memory,
            interfaces: shape.interfaces as u64,
            tenant: shape.whom == TemplateFor::Tenant,
            vsock: shape.vsock,
            created: *created,
            boot_milliseconds: *boot,
            ..template
        }
    }
}

fn describe(kernel: &guest::Kernel, current: bool) -> Kernel {
    Kernel {
        release: kernel.release.clone(),
        image: kernel.image.to_string_lossy().into_owned(),
        modules: kernel.modules.to_string_lossy().into_owned(),
        current,
    }
}
