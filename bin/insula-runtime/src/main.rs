//! `insula-runtime` runs bundles of the OCI runtime specification with runc's command line, so that podman,
//! Docker and containerd can use it. No process of its own stays beside a container.

mod args;
mod features;
mod log;
mod run;
mod show;

use std::process::ExitCode;

use clap::Parser;

use args::Arguments;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let code = if error.use_stderr() { 1 } else { 0 };
            // Nobody may listen any more.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let log = match log::Log::open(&arguments.global) {
        Ok(log) => log,
        Err(error) => {
            log::stderr(&error);
            return ExitCode::FAILURE;
        }
    };
    match run::run(&arguments, &log) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            log.error(&error);
            ExitCode::from(run::exit_code(&error))
        }
    }
}
