//! `containerd-shim-insula-v2` runs containers and pods for containerd, which starts it: runtime
//! `io.containerd.insula.v2`; by the name `containerd-shim-insula-vm-v2` runtime `io.containerd.insula-vm.v2`, in
//! which each pod has a machine.

mod args;

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use tracing_subscriber::filter::LevelFilter;

use args::Action;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody may listen any more.
            let _ = writeln!(std::io::stderr(), "containerd-shim-insula-v2: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut words = std::env::args();
    let isolation = args::isolation(&words.next().unwrap_or_default());
    let (action, mut invocation) = args::parse(isolation, words)?;
    if action != Action::Version {
        invocation.bundle = std::path::absolute(&invocation.bundle).context("find the bundle")?;
    }
    match action {
        Action::Version => {
            print(concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION"), "\n").as_bytes())
        }
        Action::Start => {
            let serve = |socket: &std::path::Path, number| {
                args::to_serve(&invocation, &socket.to_string_lossy(), number)
            };
            print(insula_shim_core::start(&invocation, serve)?.as_bytes())
        }
        Action::Delete => print(&insula_shim_core::delete(&invocation)?),
        Action::Serve { socket, number } => {
            log(invocation.debug);
            let descriptor = insula_sys::inherit::take(number).context("take over the socket")?;
            let events = std::env::var(insula_base::env::CONTAINERD_EVENTS)
                .unwrap_or_else(|_| format!("{}.ttrpc", invocation.address));
            Ok(insula_shim_core::serve(&invocation, &socket, descriptor, &events)?)
        }
    }
}

fn log(debug: bool) {
    let level = if debug { LevelFilter::DEBUG } else { LevelFilter::INFO };
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).with_max_level(level).init();
}

fn print(bytes: &[u8]) -> Result<()> {
    std::io::stdout().write_all(bytes).context("write to standard output")
}
