//! An ordinary user's place to be root in: a user, a mount and a network namespace around the whole engine.
//!
//! ```text
//! host's namespaces, the user          namespaces of the engine, its root
//!   binder   binds ports and hands        insulad    joins before it has a thread
//!            the sockets over             holder     keeps the namespaces while no daemon runs
//!   way out  pasta or slirp4netns ─ tap ─ …
//!
//! RUN/rootless/      the user's alone
//!   lock             one daemon at a time comes in
//!   holder.json      whom the next one joins
//!   way.pid way.log  what pasta says
//!   resolv.conf      name servers, where the host's are not reached from inside
//! ```
//!
//! A daemon that is killed leaves all of it behind; the next one finds it ([`enter`]). One that ends orderly while
//! nothing runs takes it down ([`Outside::leave`]).

mod binder;
mod carrier;
mod error;
mod holder;
mod ids;
mod way;

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use insula_base::Durability;
use insula_spec::outlets::{Outlet, Transport};
use insula_sys::process::{self, CloneFlags};
use rustix::fs::FlockOperation;
use rustix::thread::{Gid, Uid};
use serde::{Deserialize, Serialize};

use self::carrier::Carrier;
use self::error::Context;
pub use self::error::Error;
pub use self::way::WayOut;
use crate::netlink::Routes;
use crate::process::Process;

const RECORD: &str = "holder.json";
const LOCK: &str = "lock";

/// What this process has of the host outside, if it has entered.
static OUTSIDE: OnceLock<Outside> = OnceLock::new();

/// The host, from inside.
#[derive(Debug)]
pub struct Outside {
    folder: PathBuf,
    record: Record,
    binder: Mutex<OwnedFd>,
    carrier: Mutex<Carrier>,
    missing: Vec<String>,
    new: bool,
}

/// What is kept for the next daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    holder: Process,
    /// How many ids the user namespace has.
    ids: u32,
    /// Why they are no more than one.
    #[serde(default)]
    why_one: String,
    way: WayOut,
}

/// The host outside, for who has entered.
#[must_use]
pub fn outside() -> Option<&'static Outside> {
    OUTSIDE.get()
}

/// Makes this process root of the namespaces that belong to this run folder, which are made if nobody holds any. To
/// be called once, by a process of one thread, before it asks whether it is in a user namespace.
pub fn enter(run: &Path, proxy: &Path) -> Result<&'static Outside, Error> {
    let folder = run.join("rootless");
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .context("mkdir", folder.display())?;
    let lock = std::fs::File::create(folder.join(LOCK)).context("create", folder.join(LOCK).display())?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).context("flock", LOCK)?;
    let path = folder.join(RECORD);
    let former = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Record>(&text).ok());
    let (record, missing) = match &former {
        Some(record) if !record.holder.gone() => go_on(record.clone(), &folder)?,
        other => {
            if let Some(record) = other {
                record.way.end();
            }
            anew(&folder)?
        }
    };
    let new = former.is_none_or(|former| former.holder != record.holder);
    keep(&record, &path)?;
    let binder = binder::start()?;
    join(&record, &folder)?;
    // Not by closing it: who was cloned meanwhile may not have closed its own yet.
    rustix::fs::flock(&lock, FlockOperation::Unlock).context("flock", LOCK)?;
    let carrier = Mutex::new(Carrier::new(proxy, &folder));
    let outside = Outside { folder, record, binder: Mutex::new(binder), carrier, missing, new };
    Ok(OUTSIDE.get_or_init(|| outside))
}

/// With a holder that lives. There may be no way out yet, or one that has ended meanwhile.
fn go_on(record: Record, folder: &Path) -> Result<(Record, Vec<String>), Error> {
    let mut missing = ids::missing(record.ids, &record.why_one);
    if !record.way.gone() {
        return Ok((record, missing));
    }
    let (way, why) = way::open(record.holder.pid, folder)?;
    missing.extend(why);
    Ok((Record { way, ..record }, missing))
}

fn anew(folder: &Path) -> Result<(Record, Vec<String>), Error> {
    let held = holder::make()?;
    let (ids, why_one) = ids::map(held.pid())?;
    let record = Record { holder: held.process()?, ids, why_one, way: WayOut::None };
    // From now on it is found by its record, whatever becomes of this process.
    keep(&record, &folder.join(RECORD))?;
    held.stay()?;
    go_on(record, folder)
}

fn keep(record: &Record, path: &Path) -> Result<(), Error> {
    let text = serde_json::to_vec(record).map_err(std::io::Error::from).context("write", path.display())?;
    insula_base::replace(path, &text, 0o600, Durability::Process).context("write", path.display())
}

/// The namespaces of the holder, and id 0 of them.
fn join(record: &Record, folder: &Path) -> Result<(), Error> {
    let pidfd = holder::open(record.holder)?;
    let all = CloneFlags::NEWUSER | CloneFlags::NEWNS | CloneFlags::NEWNET;
    process::join_namespaces(pidfd.as_fd(), all).context("setns", "the namespaces of this user's engine")?;
    match rustix::thread::set_thread_groups(&[]) {
        // With one id alone the kernel does not let groups be given up.
        Err(rustix::io::Errno::PERM) if record.ids == 1 => {}
        result => result.context("setgroups", "to none")?,
    }
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).context("setresgid", 0)?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).context("setresuid", 0)?;
    rustix::process::chdir("/").context("chdir", "/")?;
    // Loopback alone.
    Routes::open()?.configure(&[])?;
    record.way.name_servers(folder)
}

impl Outside {
    /// A socket that is bound on the host, and listens if it is TCP's; an error is the kernel's.
    pub fn bind(&self, transport: Transport, address: SocketAddr) -> rustix::io::Result<OwnedFd> {
        let binder = self.binder.lock().unwrap_or_else(PoisonError::into_inner);
        binder::ask(binder.as_fd(), transport, address)
    }

    /// The ports that are led in at the moment.
    pub fn outlets(&self) -> Result<Vec<Outlet>, Error> {
        self.carrier().list()
    }

    /// Leads these in, by sockets of [`Self::bind`].
    pub fn lead(&self, outlets: &[(Outlet, OwnedFd)]) -> Result<(), Error> {
        if outlets.is_empty() { Ok(()) } else { self.carrier().serve(outlets) }
    }

    /// Leads these, which are led in, elsewhere.
    pub fn turn(&self, outlets: Vec<Outlet>) -> Result<(), Error> {
        self.carrier().turn(outlets)
    }

    /// Closes these.
    pub fn close(&self, outlets: Vec<Outlet>) -> Result<(), Error> {
        self.carrier().stop(outlets)
    }

    fn carrier(&self) -> MutexGuard<'_, Carrier> {
        self.carrier.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this process has made the namespaces.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.new
    }

    /// The folder of what belongs to these namespaces.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// How containers reach other hosts.
    #[must_use]
    pub fn way(&self) -> &WayOut {
        &self.record.way
    }

    /// How many ids there are, the user's own included.
    #[must_use]
    pub fn ids(&self) -> u32 {
        self.record.ids
    }

    /// What is not to be had here, and how to get it.
    #[must_use]
    pub fn missing(&self) -> Vec<String> {
        let gone = self.record.way.gone() && self.record.way != WayOut::None;
        let gone = gone.then(|| {
            format!(
                "{} has ended: containers reach no other host until the daemon is started anew",
                self.record.way
            )
        });
        self.missing.iter().cloned().chain(gone).collect()
    }

    /// Takes the namespaces down, as far as nothing lives in them but this process: for the very end of a daemon that
    /// leaves no container.
    pub fn leave(&self) {
        // One that does not answer is of no use to anybody.
        let _ = self.carrier().end().is_ok();
        self.record.way.end();
        // It may be gone already, and the file with it.
        let _ = process::kill(self.record.holder.pid, 9).is_ok();
        let _ = std::fs::remove_file(self.folder.join(RECORD));
    }
}
