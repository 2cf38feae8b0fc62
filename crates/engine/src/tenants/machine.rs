//! Who owns a tenant's machine: started here, found again here, and spoken to.
//!
//! ```text
//! RUN/tenants/NAME/machine.sock   where it listens; gone when it ends
//! RUN/tenants/NAME/owner.json     its pid
//! ```

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use insula_base::Kind;
use insula_spec::machine::{DirtyRate, MachinePlan, TenantAnswer, TenantCall, TenantMachine, TenantOrder};
use insula_sys::failpoint::failpoint;

use super::{Admission, TenantRow, Tenants, group};
use crate::containers::leftovers;
use crate::containers::row::Row;
use crate::machines::{Counting, Wanted};
use crate::monitor::Process;
use crate::{Engine, Error, Result, blocking};

const OWNER: &str = "owner.json";
/// The longest answer.
const LARGEST: u64 = 1 << 20;
/// How long one that ends may take.
const ENDING: Duration = Duration::from_secs(30);
const INSTANT: Duration = Duration::from_millis(20);
/// How long one that stands may take for an answer, and how much longer than its boot one that begins.
const ANSWER: Duration = Duration::from_secs(30);
const SLACK: Duration = Duration::from_secs(120);

/// A tenant's machine that does not end before this is gone, and a container's place in it.
#[derive(Debug)]
pub(crate) struct Lease {
    _connection: UnixStream,
    _admission: Admission,
}

impl Engine {
    /// The machine for a container of a tenant, which is made if it is not there: as its plan has it.
    pub(crate) async fn tenant_machine(
        &self,
        name: &str,
        row: &Row,
        folder: PathBuf,
    ) -> Result<(MachinePlan, Lease)> {
        let turn = self.0.tenants.turn(name);
        let _turn = turn.lock().await;
        let tenant = self.0.tenants.get(name)?;
        let admission = self.admit(&tenant, row)?;
        let engine = self.clone();
        let (plan, connection, wanted) = aside(move || {
            let tenants = &engine.0.tenants;
            let socket = tenants.folder_of(&tenant.name).join(TenantOrder::SOCKET);
            let mut plan = engine.0.machines.tenant(tenant.nano_cpus, tenant.memory)?;
            let ((connection, machine), wanted) = match tenants.connect(&tenant.name)? {
                Some(found) => (found, None),
                None => engine.make_tenant_machine(&tenant, plan.clone())?,
            };
            plan.backend = machine.backend;
            (plan.cpus, plan.memory) = (machine.cpus, machine.memory);
            plan.folder = folder;
            plan.tenant = Some(socket);
            Ok((plan, connection, wanted))
        })
        .await?;
        if let Some(wanted) = wanted {
            self.make_template_soon(wanted);
        }
        Ok((plan, Lease { _connection: connection, _admission: admission }))
    }

    /// A machine that is a copy of its template, or one that boots and the template that it would have used.
    fn make_tenant_machine(
        &self,
        tenant: &TenantRow,
        mut plan: MachinePlan,
    ) -> Result<((UnixStream, TenantMachine), Option<Wanted>)> {
        let mut wanted = Wanted::by_tenant(&plan, cards(tenant))?;
        let copy = self.0.machines.use_template(&mut plan, &mut wanted);
        let (connection, machine) = self.0.tenants.start(tenant, plan, copy)?;
        let wanted = self.0.machines.next_template(wanted, machine.refused);
        Ok(((connection, machine), wanted))
    }

    /// What the machine of a tenant would be a copy of.
    pub(crate) fn template_of_tenant(&self, name: &str) -> Result<Wanted> {
        let tenant = self.0.tenants.get(name)?;
        let plan = self.0.machines.tenant(tenant.nano_cpus, tenant.memory)?;
        Wanted::by_tenant(&plan, cards(&tenant))
    }
}

/// How many its machine has.
fn cards(tenant: &TenantRow) -> usize {
    usize::try_from(tenant.cards).unwrap_or(usize::MAX)
}

/// As long as a boot takes, on no thread of the runtime: the daemon does not wait for it when it ends.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("tenant".to_owned())
        .spawn(move || {
            // Who asked may have gone away.
            let _ = sender.send(work());
        })
        .map_err(|error| Error::io("start", Path::new("a thread"), error))?;
    receiver.await.unwrap_or_else(|_| Err(Error::Internal("a tenant's thread ended".to_owned())))
}

impl Tenants {
    fn folder_of(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn cgroup_of(&self, name: &str) -> String {
        format!("{}/{}", self.cgroup, group(name))
    }

    /// The machine that runs, if one does.
    pub(super) fn status(&self, name: &str) -> Option<TenantMachine> {
        let mut connection = open(&self.folder_of(name)).ok()?;
        match ask(&mut connection, &TenantCall::Status, ANSWER) {
            Ok(Some(TenantAnswer::Status(machine))) => Some(machine),
            _ => None,
        }
    }

    /// A connection to the machine that runs, which keeps it; none if there is none.
    fn connect(&self, name: &str) -> Result<Option<(UnixStream, TenantMachine)>> {
        let mut connection = match open(&self.folder_of(name)) {
            Ok(connection) => connection,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                return Ok(None);
            }
            Err(error) => return Err(Error::io("connect", &self.folder_of(name), error)),
        };
        loop {
            match ask(&mut connection, &TenantCall::Status, ANSWER)? {
                // One that another daemon has begun boots; it gives up by itself if that takes too long.
                Some(TenantAnswer::Status(machine)) if machine.kernel.is_empty() => {
                    std::thread::sleep(INSTANT);
                }
                Some(TenantAnswer::Status(machine)) => return Ok(Some((connection, machine))),
                Some(other) => return Err(unexpected(&other)),
                // It was about to end.
                None => return Ok(None),
            }
        }
    }

    /// Starts the machine and waits until it stands. What a former one left is freed first.
    fn start(
        &self,
        row: &TenantRow,
        machine: MachinePlan,
        template: Option<[OwnedFd; 2]>,
    ) -> Result<(UnixStream, TenantMachine)> {
        self.clear(&row.name)?;
        let folder = self.folder_of(&row.name);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(|error| Error::io("mkdir", &folder, error))?;
        let patience = Duration::from_secs(machine.patience.into());
        let mut connection = self.spawn(row, machine, template, &folder)?;
        let answer = receive(&mut connection, patience + SLACK);
        match answer {
            Ok(Some(TenantAnswer::Status(machine))) => Ok((connection, machine)),
            Ok(Some(TenantAnswer::Failed { kind, message })) => {
                Err(Error::Wall { kind: Kind::from_code(kind), message, exit_code: None })
            }
            Ok(Some(other)) => Err(unexpected(&other)),
            Ok(None) => Err(Error::Unavailable(format!(
                "the machine of tenant {} ended before it stood; the daemon's log may say why",
                row.name
            ))),
            Err(error) => Err(error),
        }
    }

    fn spawn(
        &self,
        row: &TenantRow,
        mut machine: MachinePlan,
        template: Option<[OwnedFd; 2]>,
        folder: &Path,
    ) -> Result<UnixStream> {
        let failed = |call: &'static str| move |error| Error::io(call, &self.monitor, error);
        machine.folder = folder.to_owned();
        let order = TenantOrder {
            tenant: row.name.clone(),
            machine,
            cards: cards(row),
            // Nothing in a container has the last id of a range, and no container has this range.
            user: row.ids.first + row.ids.count - 1,
            cgroup: self.cgroup_of(&row.name),
            nano_cpus: row.nano_cpus.unsigned_abs(),
            keep: row.keep,
        };
        let (ours, theirs) = UnixStream::pair().map_err(failed("socketpair"))?;
        let mut child = Command::new(&self.monitor)
            .arg("tenant")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .map_err(failed("execute"))?;
        failpoint("tenant.spawned");
        // The kernel's pids fit.
        let pid = child.id() as i32;
        let process = Process { pid, started: Process::start_time(pid).unwrap_or_default() };
        std::thread::Builder::new()
            .name("tenant".to_owned())
            .spawn(move || child.wait())
            .map_err(failed("start a thread for"))?;
        let path = folder.join(OWNER);
        let write = |document: &[u8]| {
            insula_base::replace(&path, document, 0o600, insula_base::Durability::Process)
                .map_err(|error| Error::io("write", &path, error))
        };
        write(&json(&process)?)?;
        let mut line = json(&order)?;
        line.push(b'\n');
        let gift: Vec<_> = template.iter().flatten().map(AsFd::as_fd).collect();
        insula_sys::socket::send_all(ours.as_fd(), &line, &gift)
            .map_err(|error| failed("write to")(error.into()))?;
        failpoint("tenant.ordered");
        Ok(ours)
    }

    /// Has the machine count what its guest writes, which it does as long as the answer is there.
    pub(crate) fn measure_dirty_rate(&self, name: &str, milliseconds: u32) -> Result<Measuring> {
        let row = self.get(name)?;
        let Some((mut connection, _)) = self.connect(&row.name)? else {
            return Err(Error::Conflict(format!("the machine of tenant {name} does not run")));
        };
        match ask(&mut connection, &TenantCall::MeasureDirtyRate { milliseconds }, ANSWER)? {
            Some(TenantAnswer::Done) => Ok(Measuring(connection)),
            other => Err(refused(other)),
        }
    }

    /// Ends the machine, in which nobody is.
    pub(super) fn stop(&self, row: &TenantRow) -> Result<()> {
        if let Some((mut connection, _)) = self.connect(&row.name)? {
            match ask(&mut connection, &TenantCall::Stop, ANSWER)? {
                Some(TenantAnswer::Done) | None => {}
                other => return Err(refused(other)),
            }
        }
        self.clear(&row.name)
    }

    /// Waits until who owned a machine has ended, and frees what it left.
    fn clear(&self, name: &str) -> Result<()> {
        let folder = self.folder_of(name);
        let ended = owner(&folder).map_or(Ok(true), |owner| owner.ended_within(ENDING));
        if !ended.map_err(|error| Error::io("wait for", &folder, error))? {
            return Err(Error::Conflict(format!("the machine of tenant {name} is ending: try again")));
        }
        leftovers::free(&self.cgroup_of(name))?;
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", &folder, error)),
            _ => Ok(()),
        }
    }

    /// Frees what machines have left that are not there any more. Those that run go on.
    pub(crate) fn reconcile(&self) -> Result<()> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::io("readdir", &self.folder, error)),
        };
        for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
            // Who begins or ends may not listen: nothing is waited for here.
            let owned = owner(&self.folder_of(&name)).is_some_and(|owner| !owner.gone());
            if !owned && let Err(error) = self.clear(&name) {
                tracing::warn!(
                    tenant = name,
                    error = insula_base::chain(&error),
                    "what a tenant's machine left"
                );
            }
        }
        Ok(())
    }
}

/// A connection to a machine that counts for it.
#[derive(Debug)]
pub(crate) struct Measuring(UnixStream);

impl Counting for Measuring {
    async fn look(mut self) -> Result<(Self, Option<DirtyRate>)> {
        blocking(move || match ask(&mut self.0, &TenantCall::DirtyRate, ANSWER)? {
            Some(TenantAnswer::DirtyRate(rate)) => Ok((self, rate)),
            other => Err(refused(other)),
        })
        .await
    }
}

/// What was not to be the answer.
fn refused(answer: Option<TenantAnswer>) -> Error {
    match answer {
        Some(TenantAnswer::Failed { kind, message }) => {
            Error::Wall { kind: Kind::from_code(kind), message, exit_code: None }
        }
        Some(TenantAnswer::Ended { why }) => {
            Error::Wall { kind: Kind::Unavailable, message: why, exit_code: None }
        }
        Some(other) => unexpected(&other),
        None => Error::Unavailable("the tenant's machine has ended".to_owned()),
    }
}

fn owner(folder: &Path) -> Option<Process> {
    serde_json::from_slice(&fs::read(folder.join(OWNER)).ok()?).ok()
}

/// However long the folder's path is.
fn open(folder: &Path) -> std::io::Result<UnixStream> {
    let opened = fs::File::open(folder)?;
    UnixStream::connect(insula_sys::socket::path_in(opened.as_fd(), TenantOrder::SOCKET))
}

fn ask(connection: &mut UnixStream, call: &TenantCall, patience: Duration) -> Result<Option<TenantAnswer>> {
    let mut line = json(call)?;
    line.push(b'\n');
    match connection.write_all(&line) {
        Err(error) if gone(&error) => return Ok(None),
        written => written.map_err(failed("write to"))?,
    }
    receive(connection, patience)
}

/// The next answer; none if it has ended.
fn receive(connection: &mut UnixStream, patience: Duration) -> Result<Option<TenantAnswer>> {
    connection.set_read_timeout(Some(patience)).map_err(failed("setsockopt"))?;
    let mut line = Vec::new();
    // Nothing comes behind an answer that nobody has asked for.
    let mut reader = BufReader::new(std::io::Read::take(&*connection, LARGEST));
    match reader.read_until(b'\n', &mut line) {
        Ok(0) => return Ok(None),
        Err(error) if gone(&error) => return Ok(None),
        read => read.map_err(failed("read from"))?,
    };
    serde_json::from_slice(&line).map(Some).map_err(|error| {
        Error::Internal(format!("what owns a tenant's machine is not to be understood: {error}"))
    })
}

fn gone(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset)
}

fn failed(call: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |error| Error::io(call, Path::new("a tenant's machine"), error)
}

fn json(document: &impl serde::Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(document)
        .map_err(|error| Error::Internal(format!("write to a tenant's machine: {error}")))
}

fn unexpected(answer: &TenantAnswer) -> Error {
    Error::Internal(format!("what owns a tenant's machine answered {answer:?}"))
}
