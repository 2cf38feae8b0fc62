//! Another process in a container.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use insula_container::{ExecPlan, Streams, Target};
use insula_host::resctrl::Resctrl;
use insula_spec::bundle::Status;
use insula_spec::plan::{ProcessPlan, StdioPlan};

use crate::console;
use crate::create::write_pid;
use crate::error::{Error, Result};
use crate::store::{Folder, Record};

/// What to execute.
#[derive(Debug)]
pub struct ExecRequest<'a> {
    pub folder: &'a Folder,
    pub record: &'a Record,
    pub process: &'a ProcessPlan,
    pub stdio: &'a StdioPlan,
    pub console_socket: Option<&'a Path>,
    pub pid_file: Option<&'a Path>,
    pub preserved: &'a [OwnedFd],
}

/// A process that runs its program: a child of the caller.
#[derive(Debug)]
pub struct Executed {
    pub pid: i32,
    pub warnings: Vec<String>,
}

/// Executes a program in a container that runs. For a process of one thread whose umask is 0.
pub fn exec(request: &ExecRequest<'_>) -> Result<Executed> {
    let ExecRequest { folder, record, .. } = request;
    console::check(request.stdio.tty, request.console_socket)?;
    match folder.status(record)? {
        Status::Running => {}
        Status::Stopped => return Err(Error::NotRunning),
        status => return Err(Error::Phase { verb: "exec in", status }),
    }
    let init = record.init()?.ok_or(Error::NotRunning)?;
    let target = Target { plan: &record.plan, pidfd: init.as_fd() };
    let plan = ExecPlan {
        process: request.process,
        stdio: request.stdio,
        privileged: false,
        preserved: request.preserved,
        state: Some(&record.state(Status::Running)),
    };
    let entry = record.group()?.entry_to(record.pid)?;
    let resctrl = record.rdt().map(|_| Resctrl::probe()).transpose()?;
    let visit = resctrl.as_ref().map(Resctrl::visit).transpose()?;
    if let (Some(resctrl), Some(rdt)) = (&resctrl, record.rdt()) {
        // Of the caller: its child begins there.
        resctrl.add(rdt, std::process::id().cast_signed())?;
    }
    let executed = insula_container::exec(&target, &plan, &entry)?;
    drop(visit);
    if let (Streams::Terminal(master), Some(socket)) = (&executed.streams, request.console_socket) {
        console::send(socket, master)?;
    }
    if let Some(path) = request.pid_file {
        write_pid(path, executed.pid)?;
    }
    Ok(Executed { pid: executed.pid, warnings: executed.warnings })
}
