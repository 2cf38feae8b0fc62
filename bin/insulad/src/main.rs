//! The daemon: reads its command line, opens the engine, serves the API until it is told to end.

mod args;
mod settings;
mod sites;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use insula_api::Server;
use insula_engine::rootless::{self, Outside};
use insula_engine::{Config, Engine};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::args::Args;
use crate::settings::Settings;

/// Stack of a worker thread: the deepest calls are those of the database.
const STACK: usize = 512 << 10;
/// Threads for work that blocks: reading logs, walking trees, removing. They are started as they are needed.
/// Archives that come from clients or go to them have others (`insula_engine`'s `task`).
const BLOCKING_THREADS: usize = 64;
/// Heaps of the allocator.
const ARENAS: i32 = 2;
/// How long a thread of those waits for more. Whoever trims asks for one before the last of them has gone, so there is
/// always one: where the host has no other left, work waits for it, and without it the runtime would panic.
const KEPT: Duration = Duration::from_secs(3 * TRIM.as_secs());
/// How often memory that was given back to the allocator is given back to the host.
const TRIM: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Written as it is: the log may be filtered.
            let _ = writeln!(std::io::stderr(), "insulad: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    if args.check {
        Settings::of(args)?;
        writeln!(std::io::stdout(), "the configuration is valid")?;
        return Ok(());
    }
    // First, while this process has opened nothing of its own.
    let ready = args
        .ready_fd
        .map(|number| insula_sys::inherit::take(number).with_context(|| format!("take descriptor {number}")))
        .transpose()?;
    // Whoever starts the daemon: modes of roots of containers are as they are written, and no more.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let settings = Settings::of(args)?;
    start_log(&settings.log)?;
    // Before there is a thread, and before anything asks where this process is.
    let outside = enter(&settings)?;
    insula_sys::memory::limit_arenas(ARENAS)?;
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(KEPT)
        .thread_stack_size(STACK)
        .thread_name("insulad")
        .enable_all()
        .build()
        .context("start the runtime")?;
    let served = runtime.block_on(serve(settings, ready.map(std::fs::File::from)));
    // Threads that still unpack or walk are not awaited: what they do is taken up or undone at the next start.
    runtime.shutdown_background();
    if let Some(outside) = outside
        && served.as_ref().map_or(outside.is_new(), |idle| *idle)
    {
        outside.leave();
    }
    served.map(drop)
}

/// An ordinary user's daemon goes on as root of namespaces of that user's.
fn enter(settings: &Settings) -> anyhow::Result<Option<&'static Outside>> {
    if rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let outside = rootless::enter(settings.instance.run(), &settings.sites.proxy).context(
        "an ordinary user's engine needs a user namespace (insulad as root needs none; members of its group, \
         --group, reach it by its socket)",
    )?;
    for missing in outside.missing() {
        tracing::warn!("{missing}");
    }
    Ok(Some(outside))
}

fn start_log(filter: &str) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(filter).with_context(|| format!("--log {filter}"))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    Ok(())
}

/// Soft limit of open files up to the hard one: two descriptors a container and one a client.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, ?limit, "raise the limit of open files");
    }
}

/// Until it is told to end; whether nothing runs then.
async fn serve(settings: Settings, ready: Option<std::fs::File>) -> anyhow::Result<bool> {
    let (tell, stop) = watch::channel(false);
    let mut terminate = signal(SignalKind::terminate()).context("listen to SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen to SIGINT")?;
    let config = Config {
        instance: settings.instance,
        monitor: settings.monitor,
        agent: settings.agent,
        vmm: settings.vmm,
        vm_backend: settings.vm_backend,
        vm_templates: settings.vm_templates,
        vm_boot_timeout: settings.vm_boot_timeout,
        policy: settings.policy,
        registries: settings.registries,
        network: settings.network,
        sites: settings.sites,
        storage: settings.storage,
    };
    let root = config.instance.root().to_owned();
    // Before the socket is touched: the lock of the root says that no other daemon serves it.
    let engine = Engine::open(config).await?;
    let server = Server::guarded(engine.clone(), settings.authorization);
    let mut serving = JoinSet::new();
    for socket in &settings.sockets {
        let listener = insula_api::bind(socket, settings.group.clone())?;
        serving.spawn(server.clone().serve(listener, stop.clone()));
        tracing::info!(root = %root.display(), socket = %socket.display(), "serving");
    }
    if let Some(files) = &settings.tls {
        let tls = insula_api::tls_acceptor(files)?;
        for address in &settings.addresses {
            let listener =
                TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
            serving.spawn(server.clone().serve_tls(listener, tls.clone(), stop.clone()));
            tracing::info!(root = %root.display(), %address, "serving with TLS");
        }
    }
    if let Some(address) = settings.metrics {
        let listener = TcpListener::bind(address).await;
        let listener = listener.with_context(|| format!("metrics-addr: listen on {address}"))?;
        let address = listener.local_addr().context("metrics-addr: its own address")?;
        serving.spawn(server.clone().serve_metrics(listener, stop.clone()));
        tracing::info!(%address, "serving metrics");
    }
    if let Some(mut ready) = ready {
        ready.write_all(b"1").context("say that the API is served")?;
    }
    let trimming = tokio::spawn(trim());
    let name = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    trimming.abort();
    tracing::info!(signal = name, "ending; containers run on");
    engine.end();
    tell.send_replace(true);
    while let Some(served) = serving.join_next().await {
        served.context("serve the API")?;
    }
    engine.settle().await;
    Ok(engine.retire().await)
}

/// The allocator keeps what is free between pieces in use: an image's documents, buffers of a hundred clients.
async fn trim() {
    let mut ticks = tokio::time::interval(TRIM);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // It takes a lock of the allocator for a moment.
        let _ = tokio::task::spawn_blocking(insula_sys::memory::trim_heap).await;
    }
}
