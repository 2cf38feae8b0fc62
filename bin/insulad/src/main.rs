//! The daemon: reads its command line, opens the engine, serves the API until it is told to end.

mod args;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use insula_engine::{Config, Engine};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::args::Args;

/// Stack of a worker thread: the deepest calls are those of the database.
const STACK: usize = 512 << 10;
/// Threads for work that blocks: unpacking images, reading logs, walking trees. They are started as they are
/// needed. Each upload of a client that sends slowly holds one, and the rest of the daemon wants some too.
const BLOCKING_THREADS: usize = 64;
/// Heaps of the allocator.
const ARENAS: i32 = 2;

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
    // First, while this process has opened nothing of its own.
    let ready = args
        .ready_fd
        .map(|number| insula_sys::inherit::take(number).with_context(|| format!("take descriptor {number}")))
        .transpose()?;
    // Whoever starts the daemon: modes of roots of containers are as they are written, and no more.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    start_log(&args.log)?;
    insula_sys::memory::limit_arenas(ARENAS)?;
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_stack_size(STACK)
        .thread_name("insulad")
        .enable_all()
        .build()
        .context("start the runtime")?;
    let served = runtime.block_on(serve(args, ready.map(std::fs::File::from)));
    // Threads that still unpack or walk are not awaited: what they do is taken up or undone at the next start.
    runtime.shutdown_background();
    served
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

async fn serve(args: &Args, ready: Option<std::fs::File>) -> anyhow::Result<()> {
    let (tell, stop) = watch::channel(false);
    let mut terminate = signal(SignalKind::terminate()).context("listen to SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen to SIGINT")?;
    let instance = args.instance().context("the working directory")?;
    let socket = args.socket(&instance).context("the working directory")?;
    let config = Config {
        instance: instance.clone(),
        monitor: args.monitor().context("find insula-monitor")?,
        agent: args.agent().context("find insula-agent")?,
        registries: args.registries().context("--registry-mirror")?,
    };
    // Before the socket is touched: the lock of the root says that no other daemon serves it.
    let engine = Engine::open(config).await?;
    let listener = insula_api::bind(&socket)?;
    tracing::info!(root = %instance.root().display(), socket = %socket.display(), "serving");
    if let Some(mut ready) = ready {
        ready.write_all(b"1").context("say that the API is served")?;
    }
    let server = tokio::spawn(insula_api::serve(listener, engine.clone(), stop));
    let name = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    tracing::info!(signal = name, "ending; containers run on");
    engine.end();
    tell.send_replace(true);
    server.await.context("serve the API")?;
    engine.settle().await;
    Ok(())
}
