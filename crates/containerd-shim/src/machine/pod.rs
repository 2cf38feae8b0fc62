//! The machine of a pod, which the first of its containers brings with it and which goes with the shim.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use insula_base::{Durability, Kind, replace};
use insula_host::cgroup::{Group, Layout};
use insula_host::guest::{Features, Images, Sockets, initramfs};
use insula_host::hardware::Hardware;
use insula_host::netlink::{self, Routes};
use insula_host::process::Process;
use insula_spec::bundle;
use insula_spec::machine::{Backend, MachinePlan, TenantAnswer, TenantCall, TenantOrder, USUAL_PATIENCE};
use insula_spec::plan::{ContainerPlan, InterfacePlan};
use serde::{Deserialize, Serialize};

use super::size::size;
use super::{folder, kernel, monitor};
use crate::children::Children;
use crate::error::{Context, Error, Result};
use crate::lock;
use crate::runtime::program;

/// How much longer than its boot a machine may take to answer.
const SLACK: Duration = Duration::from_secs(120);
/// A pod's program has no sockets to the host beside its network.
const DRIVERS: (Features, Images, Sockets) = (Features::Containers, Images::Served, Sockets::None);
/// The longest answer.
const LARGEST: u64 = 1 << 20;
/// Behind the path of the shim's socket: the machine's own folder.
const SUFFIX: &str = ".machine";
const KEPT: &str = "pod.json";
/// User and group of a machine whose containers have no ids of their own.
const NOBODY: u32 = 65534;

/// What has to be known of a machine whose shim is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    cgroup: String,
    /// Who owns it, once there is somebody.
    owner: Option<Process>,
}

/// A pod, with its machine once it has a container.
#[derive(Debug)]
pub(crate) struct Pod {
    folder: PathBuf,
    children: Arc<Children>,
    machine: Mutex<Option<Machine>>,
}

#[derive(Debug)]
struct Machine {
    plan: MachinePlan,
    interfaces: Vec<InterfacePlan>,
    /// It stays as long as somebody is connected.
    connection: UnixStream,
    kept: Kept,
    /// Of the first container, as the guest counts.
    first: Option<i32>,
}

/// The folder of the machine whose shim listens at `socket`.
pub(super) fn folder_of(socket: &Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(SUFFIX);
    path.into()
}

impl Pod {
    /// Of the shim that listens at `socket`.
    pub(crate) fn new(socket: &Path, children: &Arc<Children>) -> Self {
        Self { folder: folder_of(socket), children: Arc::clone(children), machine: Mutex::default() }
    }

    /// What a bundle's plan becomes in this pod's machine, which is made if this is the first container: as long as
    /// a boot takes. `folder` is that of the container's monitor.
    pub(super) fn seat(&self, plan: ContainerPlan, folder: &Path) -> Result<ContainerPlan> {
        let mut machine = lock(&self.machine);
        let first = match machine.as_ref() {
            Some(Machine { first: None, .. }) => {
                return Err(Error::Invalid("the pod's first container is not there yet".to_owned()));
            }
            Some(Machine { first, .. }) => *first,
            None => None,
        };
        // What cannot be is refused before anything boots.
        let mut seated = bundle::for_machine(plan.clone(), first)?;
        let machine = match machine.as_mut() {
            Some(machine) => machine,
            None => machine.insert(self.make(&plan)?),
        };
        if first.is_none() {
            seated.interfaces.clone_from(&machine.interfaces);
        }
        seated.machine = Some(MachinePlan { folder: folder.to_owned(), ..machine.plan.clone() });
        Ok(seated)
    }

    /// The first container stands, or does not.
    pub(super) fn settle(&self, first: Option<i32>) {
        let mut machine = lock(&self.machine);
        match (machine.as_mut(), first) {
            (Some(machine), Some(pid)) => {
                machine.first.get_or_insert(pid);
            }
            (Some(Machine { first: None, .. }), None) => {
                if let Some(machine) = machine.take() {
                    end(&self.folder, machine);
                }
            }
            _ => {}
        }
    }

    /// Ends the machine with everything in it.
    pub(crate) fn end(&self) {
        if let Some(machine) = lock(&self.machine).take() {
            end(&self.folder, machine);
        }
    }

    fn make(&self, plan: &ContainerPlan) -> Result<Machine> {
        let annotations = plan.bundle.as_ref().map(|bundle| &bundle.annotations);
        let size = size(annotations.unwrap_or(&BTreeMap::new()), &plan.cgroup.resources)?;
        let (machines, vmm, agent) = (folder(), program("insula-vmm")?, program("insula-agent")?);
        let kernel = kernel(&machines)?;
        let machine = MachinePlan {
            backend: self.backend()?,
            vmm,
            initramfs: initramfs(&kernel, &agent, DRIVERS, &machines)?,
            kernel,
            cpus: size.cpus,
            memory: size.memory,
            patience: USUAL_PATIENCE,
            folder: self.folder.clone(),
            template: None,
            image: None,
            tenant: None,
            vsock: None,
        };
        let cgroup = format!("{}-machine", bundle::in_slice(&plan.cgroup.path));
        let mut kept = Kept { cgroup: cgroup.clone(), owner: None };
        self.keep(&kept)?;
        let network = bundle::network(plan).map(Path::to_owned);
        let order = |interfaces: &[InterfacePlan]| TenantOrder {
            tenant: plan.hostname.clone(),
            machine: machine.clone(),
            cards: interfaces.len(),
            user: plan.namespaces.user.range().map_or(NOBODY, |(first, count)| first + count - 1),
            cgroup: cgroup.clone(),
            nano_cpus: 0,
            keep: false,
        };
        let (connection, owner, interfaces) = begin(network.as_deref())?;
        kept.owner = Some(owner);
        let stands = self.keep(&kept).and_then(|()| stand(&connection, &order(&interfaces)));
        if let Err(error) = stands {
            drop(connection);
            // The first error is the one to report.
            let _ = free(&self.folder, &kept);
            return Err(error);
        }
        let plan = MachinePlan { tenant: Some(self.folder.join(TenantOrder::SOCKET)), ..machine };
        Ok(Machine { plan, interfaces, connection, kept, first: None })
    }

    fn keep(&self, kept: &Kept) -> Result<()> {
        let mut make = std::fs::DirBuilder::new();
        make.recursive(true).mode(0o700).create(&self.folder).context("mkdir", self.folder.display())?;
        let path = self.folder.join(KEPT);
        let text = json(kept)?;
        replace(&path, &text, 0o600, Durability::Process).context("write", path.display())
    }

    /// What the hardware can do: `insula-monitor` looks, this program makes no machines.
    fn backend(&self) -> Result<Backend> {
        let (reader, writer) = std::io::pipe().context("pipe2", "for an answer")?;
        let mut command = Command::new(program("insula-monitor")?);
        command.arg("hardware").stdin(Stdio::null()).stdout(writer).stderr(Stdio::null());
        let code = self.children.run(&mut command)?;
        drop(command);
        let mut said = Vec::new();
        reader.take(LARGEST).read_to_end(&mut said).context("read", "what the hardware can do")?;
        match serde_json::from_slice(&said) {
            Ok(Hardware::Full) if code == 0 => Ok(Backend::Kvm),
            _ => Ok(Backend::Qemu),
        }
    }
}

/// Who is to own the machine, in the pod's network, whose interfaces become the machine's.
fn begin(network: Option<&Path>) -> Result<(UnixStream, Process, Vec<InterfacePlan>)> {
    let execute = |interfaces| monitor::execute("tenant").map(|(socket, owner)| (socket, owner, interfaces));
    // A thread of its own: one that has been in another network is of no more use here.
    std::thread::scope(|scope| {
        let begun = scope.spawn(|| match network {
            Some(path) => {
                let namespace = std::fs::File::open(path).context("open", path.display())?;
                netlink::inside(namespace.as_fd(), || lend().and_then(execute))?
            }
            None => execute(Vec::new()),
        });
        begun.join().unwrap_or_else(|_| Err(Error::Invalid("a thread has panicked".to_owned())))
    })
}

/// Has the machine made, and waits until it stands.
fn stand(mut connection: &UnixStream, order: &TenantOrder) -> Result<()> {
    let patience = Duration::from_secs(order.machine.patience.into()) + SLACK;
    let mut line = json(order)?;
    line.push(b'\n');
    connection.write_all(&line).context("write", "who owns a machine")?;
    match receive(connection, patience)? {
        Some(TenantAnswer::Status(_)) => Ok(()),
        Some(TenantAnswer::Failed { kind, message }) => {
            Err(Error::Wall { kind: Kind::from_code(kind), message })
        }
        _ => Err(Error::Invalid("the pod's machine ended before it stood".to_owned())),
    }
}

/// What the interfaces of the calling thread's network become.
fn lend() -> Result<Vec<InterfacePlan>> {
    let routes = Routes::open()?;
    let names = routes.links()?.into_iter().filter(|link| link.up && link.name != "lo");
    names
        .enumerate()
        .map(|(place, link)| {
            Ok(routes.lend(&link.name, &format!("machine{place}"), &format!("card-in{place}"))?)
        })
        .collect()
}

/// Asks who owns a machine to end it, and frees what it leaves.
fn end(folder: &Path, machine: Machine) {
    let Machine { connection, kept, .. } = machine;
    if let Err(error) = stop(connection).and_then(|()| free(folder, &kept)) {
        tracing::warn!(error = insula_base::chain(&error), "a pod's machine");
    }
}

/// Ends a machine that nobody is in, and waits for its end.
pub(super) fn stop(mut connection: UnixStream) -> Result<()> {
    let mut line = json(&TenantCall::Stop)?;
    line.push(b'\n');
    // One that has ended hears nothing.
    let _ = connection.write_all(&line);
    while let Some(answer) = receive(&connection, SLACK)? {
        if let TenantAnswer::Failed { kind, message } = answer {
            return Err(Error::Wall { kind: Kind::from_code(kind), message });
        }
    }
    Ok(())
}

/// Waits until who owns a machine has ended, and removes the machine's folder and what was left of its group.
pub(super) fn free(folder: &Path, kept: &Kept) -> Result<()> {
    if let Some(owner) = kept.owner {
        await_end(owner)?;
    }
    let group = Group::open(&Layout::probe()?, &kept.cgroup)?;
    group.kill()?;
    group.remove()?;
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.context("rmdir", folder.display()),
    }
}

fn await_end(owner: Process) -> Result<()> {
    match owner.ended_within(SLACK).context("wait", owner.pid)? {
        true => Ok(()),
        false => {
            Err(Error::Invalid(format!("process {}, which owns a pod's machine, does not end", owner.pid)))
        }
    }
}

/// What is known of the machine in `folder`; none where there is none.
pub(super) fn kept(folder: &Path) -> Result<Option<Kept>> {
    let path = folder.join(KEPT);
    match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        text => serde_json::from_slice(&text.context("read", path.display())?)
            .map(Some)
            .map_err(|source| Error::Damaged { on: path.display().to_string(), source }),
    }
}

/// The next answer; none at the end.
fn receive(connection: &UnixStream, patience: Duration) -> Result<Option<TenantAnswer>> {
    const OWNER: &str = "who owns a pod's machine";
    connection.set_read_timeout(Some(patience)).context("setsockopt", OWNER)?;
    let mut line = Vec::new();
    // Nothing comes behind an answer that nobody has asked for.
    match BufReader::new(connection.take(LARGEST)).read_until(b'\n', &mut line) {
        Ok(0) => return Ok(None),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(None),
        read => read.context("read", OWNER)?,
    };
    serde_json::from_slice(&line)
        .map(Some)
        .map_err(|source| Error::Damaged { on: format!("what {OWNER} says"), source })
}

fn json(document: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(document).map_err(|source| Error::Damaged { on: "a document".to_owned(), source })
}
