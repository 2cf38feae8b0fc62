//! `insula-monitor serve [GROUP]` serves one sandbox to the daemon at the other end of its standard input, whose
//! container is to have this control group most likely; `insula-monitor probe FOLDER` says whether containers with mapped ids are possible there, and sends a user
//! namespace to try other file systems with to a socket at its standard input. It ends with 3 where no
//! containers are possible at all. `insula-monitor hardware` prints what `/dev/kvm` can do. `insula-monitor
//! template FOLDER` makes a template of a machine, as one line of standard input says, and ends when that is
//! closed. `insula-monitor tenant` owns the machine of a tenant, as one line of the socket at its standard input
//! says, which comes with the descriptors of a template, until nobody wants it any more.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

use insula_monitor_core::Monitor;
use insula_sandbox::Wall;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let result = match (arguments.next().as_deref().and_then(|a| a.to_str()), arguments.next()) {
        (Some("serve"), group) => serve(group.as_deref()).map_err(|why| (ExitCode::FAILURE, why)),
        (Some("probe"), Some(folder)) => probe(Path::new(&folder)),
        (Some("tenant"), None) => tenant().map_err(|why| (ExitCode::FAILURE, why)),
        (Some("hardware"), None) => hardware().map_err(|why| (ExitCode::FAILURE, why)),
        (Some("template"), Some(folder)) => {
            template(Path::new(&folder)).map_err(|why| (ExitCode::FAILURE, why))
        }
        _ => Err((
            ExitCode::FAILURE,
            "usage: insula-monitor serve [GROUP] | probe FOLDER | hardware | template FOLDER | tenant"
                .to_owned(),
        )),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, message)) => {
            eprintln!("insula-monitor: {message}");
            code
        }
    }
}

/// Prints what the host's hardware does for machines.
fn hardware() -> Result<(), String> {
    let found = serde_json::to_vec(&insula_host::hardware::probe()).map_err(|error| error.to_string())?;
    std::io::Write::write_all(&mut std::io::stdout(), &found).map_err(|error| format!("write: {error}"))
}

/// Makes a template.
fn template(folder: &Path) -> Result<(), String> {
    const NICE: i32 = 5;
    rustix::process::umask(rustix::fs::Mode::empty());
    let mut order = String::new();
    std::io::stdin().read_line(&mut order).map_err(|error| format!("read: {error}"))?;
    let order: insula_spec::machine::TemplateOrder =
        serde_json::from_str(&order).map_err(|error| format!("the order: {error}"))?;
    if order.patient {
        rustix::process::nice(NICE).map_err(|error| format!("nice: {error}"))?;
    }
    let made = insula_sandbox::vm::make_template(&order, folder, std::io::stdin().as_fd())
        .map_err(|error| insula_base::chain(&error))?;
    let made = serde_json::to_vec(&made).map_err(|error| error.to_string())?;
    std::io::Write::write_all(&mut std::io::stdout(), &made).map_err(|error| format!("write: {error}"))
}

/// Owns a tenant's machine.
fn tenant() -> Result<(), String> {
    let chain = |error: &dyn std::error::Error| insula_base::chain(error);
    let control = std::io::stdin().as_fd().try_clone_to_owned().map_err(|error| chain(&error))?;
    let (order, _template) =
        insula_sandbox::vm::receive_tenant_order(control.as_fd()).map_err(|error| chain(&error))?;
    insula_sys::process::detach().map_err(|error| format!("detach: {error}"))?;
    rustix::process::umask(rustix::fs::Mode::empty());
    insula_sandbox::vm::serve_tenant(&order, control).map_err(|error| chain(&error))
}

fn probe(folder: &Path) -> Result<(), (ExitCode, String)> {
    insula_container::probe_layers(folder)
        .map_err(|error| (ExitCode::from(insula_proto::NO_LAYERS), insula_base::chain(&error)))?;
    share_namespace(folder).map_err(|why| (ExitCode::FAILURE, why))
}

fn share_namespace(folder: &Path) -> Result<(), String> {
    let namespace = insula_container::probe(folder).map_err(|error| insula_base::chain(&error))?;
    match insula_sys::socket::send(std::io::stdin().as_fd(), b"n", &[namespace.as_fd()]) {
        // Somebody asks at a terminal.
        Ok(_) | Err(rustix::io::Errno::NOTSOCK) => Ok(()),
        Err(error) => Err(format!("sendmsg: {error}")),
    }
}

fn serve(group: Option<&OsStr>) -> Result<(), String> {
    let chain = |error: &dyn std::error::Error| insula_base::chain(error);
    let control = std::io::stdin().as_fd().try_clone_to_owned().map_err(|error| chain(&error))?;
    // It was executed by a descriptor, whose number is its name so far.
    insula_sys::process::set_name(c"insula-monitor").map_err(|error| format!("prctl: {error}"))?;
    insula_sys::process::detach().map_err(|error| format!("detach: {error}"))?;
    let group = group.map(|group| group.to_str().ok_or("the name of the group is no text")).transpose()?;
    let sandbox = Wall::new(group).map_err(|error| chain(&error))?;
    Monitor::new(sandbox, control).and_then(Monitor::run).map_err(|error| chain(&error))
}
