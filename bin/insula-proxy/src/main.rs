//! `insula-proxy FOLDER` serves host names on sockets that the daemon hands to its standard input, and sees nothing
//! of the file system but FOLDER, which is empty. `insula-proxy outlets FOLDER` carries what comes to published ports of an
//! ordinary user's engine, as the daemon orders on the socket at standard input. It is started by insulad alone and
//! outlives it.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use insula_base::env;
use insula_proxy_core::Listeners;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, set_capabilities, set_thread_gid, set_thread_groups, set_thread_uid,
};

/// Who it is once it has its sockets: nobody, and nobody's group.
const NOBODY: u32 = 65_534;
const WORKERS: usize = 4;
/// Heaps of the allocator.
const ARENAS: i32 = 2;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "insula-proxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let (work, folder) = match arguments.as_slice() {
        [folder] => (Work::Sites(listeners()?), folder),
        [word, folder] if word == "outlets" => {
            let control = std::io::stdin().as_fd().try_clone_to_owned().context("dup the daemon's socket")?;
            (Work::Outlets(control), folder)
        }
        _ => bail!(
            "usage: insula-proxy [outlets] FOLDER; insulad starts it when a container has a host name, or a port and \
             the engine is an ordinary user's"
        ),
    };
    insula_sys::process::detach().context("leave the daemon's session")?;
    let descriptors = raise_descriptor_limit();
    confine(Path::new(folder))?;
    start_log()?;
    insula_sys::memory::limit_arenas(ARENAS)?;
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(WORKERS);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .thread_name("insula-proxy")
        .enable_all()
        .build()
        .context("start the runtime")?;
    match work {
        Work::Sites(listeners) => runtime.block_on(insula_proxy_core::serve(listeners, descriptors))?,
        Work::Outlets(control) => {
            runtime.block_on(insula_proxy_core::outlets::carry(control, descriptors))?
        }
    }
    runtime.shutdown_background();
    Ok(())
}

/// What it is started for.
#[derive(Debug)]
enum Work {
    Sites(Listeners),
    /// The socket on which orders come.
    Outlets(OwnedFd),
}

/// The daemon's one message: how many sockets there are for HTTP and for TLS, behind the one for its orders.
fn listeners() -> Result<Listeners> {
    let mut counts = [0; 2];
    let (length, sockets) =
        insula_sys::socket::receive(std::io::stdin().as_fd(), &mut counts).context("receive sockets")?;
    let [http, https] = counts.map(usize::from);
    ensure!(
        length == counts.len() && sockets.len() == 1 + http + https,
        "the daemon sent something else than sockets"
    );
    let mut sockets = sockets.into_iter();
    let mut take = |count: usize| sockets.by_ref().take(count).collect::<Vec<OwnedFd>>();
    let control = take(1).pop().context("the daemon sent no socket for orders")?;
    Ok(Listeners { control, http: take(http), https: take(https) })
}

/// Soft limit of open files up to the hard one; what it is then.
fn raise_descriptor_limit() -> usize {
    const USUAL: u64 = 1024;
    let limit = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    let able = if raised.is_ok() { limit.maximum } else { limit.current };
    usize::try_from(able.unwrap_or(u64::MAX).max(USUAL)).unwrap_or(usize::MAX)
}

/// What it gives up before it reads the first byte of a client: the file system, the user, and every capability,
/// which go with the user (capabilities(7)). There is one thread.
fn confine(folder: &Path) -> Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .context("setrlimit RLIMIT_CORE")?;
    rustix::process::chroot(folder).with_context(|| format!("chroot {}", folder.display()))?;
    rustix::process::chdir("/").context("chdir /")?;
    match set_thread_groups(&[]) {
        Err(Errno::PERM) if insula_sys::process::in_user_namespace() => {}
        changed => changed.context("setgroups")?,
    }
    let (user, group) = (rustix::process::Uid::from_raw(NOBODY), rustix::process::Gid::from_raw(NOBODY));
    match set_thread_gid(group).and_then(|()| set_thread_uid(user)) {
        // An ordinary user's engine may have one id and no other: root of it is that user, who is to have no
        // capability from here on.
        Err(Errno::INVAL) if insula_sys::process::in_user_namespace() => {
            let none = CapabilitySets {
                effective: CapabilitySet::empty(),
                permitted: CapabilitySet::empty(),
                inheritable: CapabilitySet::empty(),
            };
            set_capabilities(None, none).context("capset")?;
        }
        changed => changed.context("setgid, setuid")?,
    }
    insula_sys::process::no_new_privileges().context("prctl PR_SET_NO_NEW_PRIVS")?;
    insula_sys::process::become_undumpable().context("prctl PR_SET_DUMPABLE")
}

/// To the daemon's log, as long as that can be written to.
fn start_log() -> Result<()> {
    let filter = std::env::var(env::LOG).unwrap_or_else(|_| "info".to_owned());
    let filter =
        tracing_subscriber::EnvFilter::try_new(&filter).with_context(|| format!("{} {filter}", env::LOG))?;
    // A log that is gone with the daemon is no reason to say so to it.
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .log_internal_errors(false)
        .init();
    Ok(())
}
