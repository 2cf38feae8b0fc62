//! `insula-proxy FOLDER` serves host names on sockets that the daemon hands to its standard input, and sees nothing
//! of the file system but FOLDER, which is empty. It is started by insulad alone and outlives it.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use insula_base::env;
use insula_proxy_core::Listeners;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};

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
    let mut arguments = std::env::args_os().skip(1);
    let (Some(folder), None) = (arguments.next(), arguments.next()) else {
        bail!("usage: insula-proxy FOLDER; insulad starts it when a container has a host name");
    };
    let listeners = listeners()?;
    insula_sys::process::detach().context("leave the daemon's session")?;
    let descriptors = raise_descriptor_limit();
    confine(Path::new(&folder))?;
    start_log()?;
    insula_sys::memory::limit_arenas(ARENAS)?;
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(WORKERS);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .thread_name("insula-proxy")
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(insula_proxy_core::serve(listeners, descriptors))?;
    runtime.shutdown_background();
    Ok(())
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
    let (user, group) = (rustix::process::Uid::from_raw(NOBODY), rustix::process::Gid::from_raw(NOBODY));
    set_thread_groups(&[]).context("setgroups")?;
    set_thread_gid(group).context("setgid")?;
    set_thread_uid(user).context("setuid")?;
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
