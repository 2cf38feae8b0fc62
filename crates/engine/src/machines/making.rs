//! Templates, made by a program of their own.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::Arc;

use insula_spec::machine::{MachinePlan, TemplateFor, TemplateMade, TemplateOrder};

use super::templates::{self, Document, Loaded, Making, Shape};
use super::{Machines, size};
use crate::{Engine, Error, Result};

/// What is said of a failure at most.
const LARGEST_REASON: u64 = 16 << 10;

/// A template that a machine could be a copy of, and how to make it.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) id: String,
    engine: bool,
    whom: TemplateFor,
    interfaces: usize,
    machine: MachinePlan,
    /// The template that a copy was begun of.
    used: Option<Arc<Loaded>>,
}

impl Wanted {
    /// Of a container's machine, with that many networks; `engine`: enough for a container engine in it.
    pub(crate) fn by_container(machine: &MachinePlan, engine: bool, interfaces: usize) -> Result<Self> {
        let (whom, machine) = (TemplateFor::Container, machine.clone());
        let id = templates::id(&machine, whom, interfaces)?;
        Ok(Self { id, engine, whom, interfaces, machine, used: None })
    }

    /// Of a tenant's machine, with that many cards.
    pub(crate) fn by_tenant(machine: &MachinePlan, cards: usize) -> Result<Self> {
        let (whom, machine) = (TemplateFor::Tenant, machine.clone());
        let id = templates::id(&machine, whom, cards)?;
        Ok(Self { id, engine: false, whom, interfaces: cards, machine, used: None })
    }
}

impl Machines {
    /// Makes `plan` a copy of its template. Without one it boots.
    pub(crate) fn use_template(&self, plan: &mut MachinePlan, wanted: &mut Wanted) -> Option<[OwnedFd; 2]> {
        let (used, (template, descriptors)) = self.templates.copy(&wanted.id)?;
        wanted.used = Some(used);
        plan.template = Some(template);
        Some(descriptors)
    }

    /// After a machine was made: the template that is to be made now, if there are to be templates. One of which
    /// the machine should have been a copy, and which was `refused`, is of no use, and goes; what else kept the
    /// machine from being one says nothing of it. Removes files.
    pub(crate) fn next_template(&self, mut wanted: Wanted, refused: bool) -> Option<Wanted> {
        if let Some(used) = wanted.used.take() {
            if !refused {
                return None;
            }
            if let Err(error) = self.templates.remove_used(&wanted.id, &used) {
                tracing::warn!(template = wanted.id, error = insula_base::chain(&error), "it stays");
            }
        }
        Some(wanted).filter(|_| self.makes_templates)
    }

    /// What a container of this size would use, with that many interfaces and perhaps sockets to the host.
    pub(super) fn usual(&self, cpus: u32, memory: u64, interfaces: usize, sockets: bool) -> Result<Wanted> {
        let machine = self.machine(self.choice().backend, false, sockets, cpus, memory)?;
        Wanted::by_container(&machine, false, interfaces)
    }

    /// The template that one of this shape would have now: another one if something has changed.
    pub(super) fn now(&self, shape: &Shape) -> Result<String> {
        let machine = self.machine(shape.backend, shape.engine, shape.vsock, shape.cpus, shape.memory)?;
        templates::id(&machine, shape.whom, shape.interfaces)
    }

    /// Makes a template; none if somebody else does, who is waited for. Takes as long as a boot.
    pub(super) fn make(&self, wanted: Wanted, cgroups: &str, patient: bool) -> Result<Option<Document>> {
        let Wanted { id, engine, whom, interfaces, machine, used: _ } = wanted;
        let Some(making) = self.templates.begin(&id)? else {
            self.templates.await_maker(&id);
            return Ok(None);
        };
        let shape = Shape {
            backend: machine.backend,
            release: machine.kernel.release.clone(),
            cpus: machine.cpus,
            memory: machine.memory,
            interfaces,
            engine,
            whom,
            vsock: machine.vsock.is_some(),
        };
        let cgroup = format!("{cgroups}/template-{id}");
        let order = TemplateOrder { machine, whom, interfaces, cgroup, patient };
        let made = self.carry_out(&order, &making)?;
        making.finish(shape, made).map(Some)
    }

    fn carry_out(&self, order: &TemplateOrder, making: &Making<'_>) -> Result<TemplateMade> {
        let failed = |call: &'static str| move |error| Error::io(call, &self.monitor, error);
        let mut order = serde_json::to_vec(order)
            .map_err(|error| Error::Internal(format!("write an order for a template: {error}")))?;
        order.push(b'\n');
        let mut child = Command::new(&self.monitor)
            .arg("template")
            .arg(making.folder())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed("execute"))?;
        // Open until it has ended: it ends with this process.
        let mut input = child.stdin.take();
        let given = input.as_mut().map_or(Ok(()), |input| input.write_all(&order));
        let (said, why) = (told(child.stdout.take()), told(child.stderr.take()));
        let status = child.wait().map_err(failed("wait for"))?;
        drop(input);
        given.map_err(failed("write to"))?;
        if !status.success() {
            let why = why.trim().trim_start_matches("insula-monitor: ");
            return Err(Error::Unavailable(format!("a machine could not be saved as a template: {why}")));
        }
        serde_json::from_str(&said)
            .map_err(|error| Error::Internal(format!("what a template's maker said cannot be read: {error}")))
    }
}

fn told(stream: Option<impl Read>) -> String {
    let mut said = Vec::new();
    if let Some(stream) = stream {
        // As far as it goes.
        let _ = stream.take(LARGEST_REASON).read_to_end(&mut said);
    }
    String::from_utf8_lossy(&said).into_owned()
}

impl Engine {
    /// Makes a template when there is time for it.
    pub(crate) fn make_template_soon(&self, wanted: Wanted) {
        let engine = self.clone();
        tokio::spawn(async move {
            let id = wanted.id.clone();
            match engine.make_template(wanted, true).await {
                Ok(Some(_)) => tracing::info!(template = id, "a template was made"),
                Ok(None) => {}
                Err(error) => {
                    let error = insula_base::chain(&error);
                    tracing::warn!(template = id, error, "a template could not be made");
                }
            }
        });
    }

    pub(super) async fn make_template(&self, wanted: Wanted, patient: bool) -> Result<Option<Document>> {
        let engine = self.clone();
        let cgroups = self.instance().cgroup();
        let (sender, receiver) = tokio::sync::oneshot::channel();
        // No thread of the runtime: the daemon does not wait for it when it ends.
        std::thread::Builder::new()
            .name("template".to_owned())
            .spawn(move || {
                // Who asked may have gone away.
                let _ = sender.send(engine.0.machines.make(wanted, &cgroups, patient));
            })
            .map_err(|error| Error::io("start", std::path::Path::new("a thread"), error))?;
        receiver.await.unwrap_or_else(|_| Err(Error::Internal("a template's thread ended".to_owned())))
    }
}

/// Sizes as for a container with these limits; 0 for none.
pub(super) fn sizes(nano_cpus: i64, memory: i64) -> (u32, u64) {
    let host = insula_models::HostConfig { nano_cpus, memory, ..Default::default() };
    (size::cpus(&host), size::memory(&host))
}
