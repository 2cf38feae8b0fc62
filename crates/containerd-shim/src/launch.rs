//! What containerd runs this program for: `start` says at which socket a container's shim is, and makes one
//! where there is none; `delete` removes what a shim left that was killed.
//!
//! The containers of a pod have one shim, which is found by the pod's name.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use containerd_shim_protos::api::ConnectRequest;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::ttrpc::context::with_duration;
use containerd_shim_protos::{Client, TaskClient, create_task, ttrpc};
use insula_base::{Durability, replace};
use insula_spec::bundle::{LARGEST, document};
use jiff::Timestamp;
use rustix::fs::{FlockOperation, OFlags};
use rustix::io::FdFlags;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tracing::warn;

use crate::children::{Children, Exit};
use crate::error::{Context, Error, Result};
use crate::events::Publisher;
use crate::machine::{self, Pod};
use crate::rootfs;
use crate::runtime::{PID_FILE, Runtime};
use crate::service::{self, Service, Walls};

/// Where sockets are: paths of containerd's own state may be too long, unix(7).
const SOCKETS: &str = "/run/containerd/s";
/// containerd finds a running shim by this file in the bundle.
const ADDRESS: &str = "address";
const SHIM_PID: &str = "shim.pid";
/// A pipe on which containerd listens.
const LOG: &str = "log";
/// Containers of one pod have the same value.
const GROUPS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];
const KILLED: i32 = 137;
/// How long a shim that lives may take to say so.
const PATIENCE: Duration = Duration::from_secs(2);
/// The service was renamed with containerd 2, which still speaks to the old one.
const SERVICES: (&str, &str) = ("/containerd.task.v3.Task/", "/containerd.task.v2.Task/");

/// What containerd says on the command line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Invocation {
    pub namespace: String,
    pub id: String,
    /// containerd's socket.
    pub address: String,
    /// The container's folder.
    pub bundle: PathBuf,
    pub debug: bool,
    pub isolation: Isolation,
}

/// What the containers of a shim share with the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Isolation {
    /// Its kernel.
    #[default]
    Process,
    /// Nothing: a pod has a machine.
    Machine,
}

#[derive(Debug, Default, Deserialize)]
struct Annotated {
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// Where the container's shim listens; starts it if need be, as another run of this program with
/// `serve(socket)` for arguments.
pub fn start(invocation: &Invocation, serve: impl Fn(&Path, i32) -> Vec<String>) -> Result<String> {
    let path = socket(invocation, &group(invocation)?);
    let address = format!("unix://{}", path.display());
    let _alone = alone()?;
    if UnixStream::connect(&path).is_err() {
        remove(&path)?;
        let listener = UnixListener::bind(&path).context("bind", path.display())?;
        if let Err(error) = spawn(invocation, &listener, |number| serve(&path, number)) {
            // The first error is the one to report.
            let _ = remove(&path);
            return Err(error);
        }
    }
    write(&invocation.bundle.join(ADDRESS), &address)?;
    Ok(address)
}

/// Two containers of one pod may come at once; and what is left of one is removed before another gets its name.
fn alone() -> Result<File> {
    let mut make = std::fs::DirBuilder::new();
    make.recursive(true).mode(0o711).create(SOCKETS).context("mkdir", SOCKETS)?;
    let folder = File::open(SOCKETS).context("open", SOCKETS)?;
    rustix::io::retry_on_intr(|| rustix::fs::flock(&folder, FlockOperation::LockExclusive))
        .context("flock", SOCKETS)?;
    Ok(folder)
}

fn group(invocation: &Invocation) -> Result<String> {
    let path = invocation.bundle.join("config.json");
    let file = File::open(&path).context("open", path.display())?;
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(file, LARGEST + 1), &mut bytes)
        .context("read", path.display())?;
    let annotated: Annotated = document::parse(&bytes, "config.json")?;
    let named = GROUPS.iter().find_map(|name| annotated.annotations.get(*name));
    Ok(named.unwrap_or(&invocation.id).clone())
}

/// One for each containerd, namespace and pod.
fn socket(invocation: &Invocation, group: &str) -> PathBuf {
    let mut hash = Sha256::new();
    let wall = match invocation.isolation {
        Isolation::Process => "insula",
        Isolation::Machine => "insula-vm",
    };
    for part in [invocation.address.as_str(), &invocation.namespace, group, wall] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let name: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Path::new(SOCKETS).join(name)
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.context("unlink", path.display()),
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    replace(path, text.as_bytes(), 0o600, Durability::Process).context("write", path.display())
}

fn spawn(invocation: &Invocation, listener: &UnixListener, serve: impl Fn(i32) -> Vec<String>) -> Result<()> {
    rustix::io::fcntl_setfd(listener, FdFlags::empty()).context("fcntl", "a socket")?;
    let own = std::env::current_exe().context("readlink", "/proc/self/exe")?;
    // Opened for both, it neither waits for a reader nor breaks without one.
    let mut log = std::fs::OpenOptions::new();
    log.read(true).write(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed());
    let log = log.open(invocation.bundle.join(LOG)).map_or_else(|_| Stdio::null(), Stdio::from);
    let mut command = Command::new(own);
    command.args(serve(listener.as_raw_fd())).process_group(0).current_dir(&invocation.bundle);
    // containerd reads both until nobody has them open.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let child = command.spawn().context("execute", "this program")?;
    write(&invocation.bundle.join(SHIM_PID), &child.id().to_string())
}

/// Serves the containers of one group at a socket that listens, until the last one is removed. To be called
/// before there is another thread.
pub fn serve(invocation: &Invocation, path: &Path, socket: OwnedFd, events: &str) -> Result<()> {
    insula_sys::process::detach().context("setsid", "to leave containerd's session")?;
    more_likely_killed();
    let children = Children::watch()?;
    let publisher = Publisher::start(&invocation.namespace, events)?;
    let (done, finished) = mpsc::channel();
    let last = {
        let path = path.to_owned();
        move || {
            // Before containerd hears of it: another container may come with this one's name.
            if let Err(error) = remove(&path) {
                warn!(error = insula_base::chain(&error), "the socket is left");
            }
            // It has been told before when nobody listens.
            let _ = done.send(());
        }
    };
    let (walls, pod) = match invocation.isolation {
        Isolation::Process => (Walls::Process { namespace: invocation.namespace.clone(), children }, None),
        Isolation::Machine => {
            let pod = Arc::new(Pod::new(path, &children));
            (Walls::Machine(Arc::clone(&pod)), Some(pod))
        }
    };
    let service = Service::new(walls, Arc::clone(&publisher), Box::new(last));
    let mut server = ttrpc::Server::new()
        .add_listener(socket.into_raw_fd())
        .map_err(|source| Error::Rpc { on: "listen", source })?;
    let service: Arc<dyn containerd_shim_protos::Task + Send + Sync> = Arc::new(service);
    server = server.register_service(create_task(Arc::clone(&service)));
    let renamed =
        create_task(service).into_iter().map(|(name, method)| (name.replace(SERVICES.0, SERVICES.1), method));
    server = server.register_service(renamed.collect());
    server.start().map_err(|source| Error::Rpc { on: "serve", source })?;
    // The sender lives in the server.
    let _ = finished.recv();
    if let Some(pod) = pod {
        pod.end();
    }
    publisher.close();
    Ok(())
}

/// Before containerd, which comes with less.
fn more_likely_killed() {
    const SCORE: &str = "/proc/self/oom_score_adj";
    let score = std::fs::read_to_string(SCORE).ok().and_then(|text| text.trim().parse::<i32>().ok());
    if let Some(score) = score.filter(|score| *score < 1000)
        && let Err(error) = std::fs::write(SCORE, (score + 1).to_string())
    {
        warn!(%error, "{SCORE} cannot be written");
    }
}

/// Removes what is left of a container whose shim is gone; the message for containerd, which asks for it after
/// an orderly end too, when another container may have the name already.
pub fn delete(invocation: &Invocation) -> Result<Vec<u8>> {
    let bundle = invocation.bundle.as_path();
    let _alone = alone()?;
    let left = left_socket(bundle);
    if left.as_deref().is_none_or(|path| !answers(path, &invocation.id)) {
        match invocation.isolation {
            Isolation::Process => {
                let children = Children::watch()?;
                let runtime = Runtime::found(&children, &invocation.namespace, &invocation.id, bundle)?;
                runtime.call(&["delete", "--force", &invocation.id])?;
            }
            Isolation::Machine => machine::delete(bundle, left.as_deref())?,
        }
        rootfs::unmount(&bundle.join("rootfs"))?;
        if let Some(path) = left.filter(|path| is_dead(path)) {
            remove(&path)?;
        }
    }
    let pid = std::fs::read_to_string(bundle.join(PID_FILE)).ok().and_then(|text| text.trim().parse().ok());
    let response = service::response(pid.unwrap_or(0), Exit { code: KILLED, at: Timestamp::now() });
    response.write_to_bytes().map_err(|source| Error::Message { on: "write the answer", source })
}

/// Where the shim of a bundle listens, or has listened.
fn left_socket(bundle: &Path) -> Option<PathBuf> {
    let address = std::fs::read_to_string(bundle.join(ADDRESS)).ok()?;
    let path = PathBuf::from(address.trim().strip_prefix("unix://")?);
    (path.parent() == Some(Path::new(SOCKETS))).then_some(path)
}

fn is_dead(path: &Path) -> bool {
    UnixStream::connect(path).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}

/// Whether a shim lives there, which then looks after its containers itself.
fn answers(path: &Path, id: &str) -> bool {
    let request = ConnectRequest { id: id.to_owned(), ..ConnectRequest::default() };
    UnixStream::connect(path).is_ok()
        && Client::connect(&format!("unix://{}", path.display()))
            .is_ok_and(|client| TaskClient::new(client).connect(with_duration(PATIENCE), &request).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_of_a_pod_have_one_socket() {
        let folder = tempfile::tempdir().unwrap();
        let with = |id: &str, config: &str| {
            let bundle = folder.path().join(id);
            std::fs::create_dir(&bundle).unwrap();
            std::fs::write(bundle.join("config.json"), config).unwrap();
            let invocation = Invocation { id: id.to_owned(), bundle, ..Invocation::default() };
            socket(&invocation, &group(&invocation).unwrap())
        };
        let pod = r#"{"annotations": {"io.kubernetes.cri.sandbox-id": "pod"}, "ociVersion": "1.0.2"}"#;
        assert_eq!(with("one", pod), with("two", pod));
        assert_ne!(with("three", "{}"), with("four", "{}"));
        assert_eq!(socket(&Invocation::default(), "a").as_os_str().len(), SOCKETS.len() + 65);
    }

    #[test]
    fn both_names_of_the_service_are_served() {
        let publisher = Publisher::start("n", "/no/such/socket").unwrap();
        let walls = Walls::Process { namespace: "n".to_owned(), children: Arc::default() };
        let service = Service::new(walls, publisher, Box::new(|| ()));
        let methods = create_task(Arc::new(service));
        assert!(!methods.is_empty());
        assert!(methods.keys().all(|name| name.starts_with(SERVICES.0)), "{:?}", methods.keys());
    }
}
