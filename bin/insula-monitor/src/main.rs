//! `insula-monitor serve` serves one sandbox to the daemon at the other end of its standard input;
//! `insula-monitor probe FOLDER` says whether containers with mapped ids are possible there.

use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

use insula_monitor_core::Monitor;
use insula_sandbox::ns::Namespaces;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let result = match (arguments.next().as_deref().and_then(|a| a.to_str()), arguments.next()) {
        (Some("serve"), None) => serve(),
        (Some("probe"), Some(folder)) => {
            insula_container::probe(Path::new(&folder)).map_err(|error| insula_base::chain(&error))
        }
        _ => Err("usage: insula-monitor serve | insula-monitor probe FOLDER".to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("insula-monitor: {message}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<(), String> {
    let chain = |error: &dyn std::error::Error| insula_base::chain(error);
    let control = std::io::stdin().as_fd().try_clone_to_owned().map_err(|error| chain(&error))?;
    // It was executed by a descriptor, whose number is its name so far.
    insula_sys::process::set_name(c"insula-monitor").map_err(|error| format!("prctl: {error}"))?;
    insula_sys::process::detach().map_err(|error| format!("setsid: {error}"))?;
    let mut sandbox = Namespaces::new().map_err(|error| chain(&error))?;
    sandbox.warm_up().map_err(|error| chain(&error))?;
    Monitor::new(sandbox, control).and_then(Monitor::run).map_err(|error| chain(&error))
}
