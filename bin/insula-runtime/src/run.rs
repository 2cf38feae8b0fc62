//! Commands.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, Result, bail};
use insula_runtime_core::{self as core, After, Grouping, Groups, Maker, Reach};
use insula_spec::bundle::document::{self, BlockIo, Cpu, Memory, Pids, Resources};
use insula_spec::bundle::{self, Entering, Keyring, LARGEST};
use insula_spec::plan::{ProcessPlan, StdioPlan};

use crate::args::{Arguments, Checkpoint, Command, Create, Exec, Global, Images, Restore, Run, Update};
use crate::log::Log;
use crate::{features, show};

/// 126 and 127 where a program cannot be executed, as a shell has it.
pub(crate) fn exit_code(error: &anyhow::Error) -> u8 {
    error.downcast_ref::<core::Error>().and_then(core::Error::exit_code).unwrap_or(1)
}

pub(crate) fn run(arguments: &Arguments, log: &Log) -> Result<u8> {
    let global = &arguments.global;
    let grouping = check(global)?;
    let root = global.root.as_path();
    match &arguments.command {
        Command::Create(create) => {
            prepare()?;
            create_one(create, root, grouping, log)?;
        }
        Command::Start { id } => {
            prepare()?;
            log.warn(&core::start(root, id)?);
        }
        Command::Run(run) => return run_one(run, root, grouping, log),
        Command::State { id } => show::state(&core::find(root, id)?)?,
        Command::Kill { id, signal, all } => {
            let number = core::signal_number(signal).with_context(|| format!("unknown signal {signal:?}"))?;
            core::kill(root, id, number, *all)?;
        }
        Command::Delete { id, force } => {
            prepare()?;
            log.warn(&core::delete(root, id, *force)?);
        }
        Command::Exec(exec) => return exec_one(exec, root, log),
        Command::Ps { id, format, options } => {
            show::processes(&core::processes(root, id)?, *format, options)?
        }
        Command::List { format, quiet } => show::list(&core::list(root)?, *format, *quiet)?,
        Command::Pause { id } => core::freeze(root, id, true)?,
        Command::Resume { id } => core::freeze(root, id, false)?,
        Command::Update(update) => log.warn(&core::update(root, &update.id, &limits(update)?)?),
        Command::Events { id, stats: true, .. } => show::stats(id, &core::stats(root, id)?)?,
        Command::Events { id, interval, .. } => {
            core::watch(root, id, *interval, |event| match event {
                core::Event::Stats(stats) => show::stats(id, &stats),
                core::Event::OutOfMemory => show::out_of_memory(id),
            })?;
        }
        Command::Checkpoint(checkpoint) => {
            prepare()?;
            log.warn(&checkpoint_one(checkpoint, root)?);
        }
        Command::Restore(restore) => return restore_one(restore, root, grouping, log),
        Command::Spec { bundle } => spec(bundle)?,
        Command::Features => features::print()?,
    }
    Ok(0)
}

fn check(global: &Global) -> Result<Grouping> {
    let groups = match global.rootless.as_str() {
        "auto" if insula_sys::process::in_user_namespace() => Groups::Wanted,
        "auto" | "false" => Groups::Needed,
        "true" => Groups::Wanted,
        other => bail!("--rootless={other:?}: it is \"true\", \"false\" or \"auto\""),
    };
    let maker = if global.systemd_cgroup { Maker::Systemd } else { Maker::Runtime };
    Ok(Grouping { groups, maker })
}

/// Modes are meant as they are written; signals have their default action, but broken pipes are errors.
fn prepare() -> Result<()> {
    rustix::process::umask(rustix::fs::Mode::empty());
    insula_sys::process::default_signals();
    insula_sys::process::ignore_broken_pipes(true);
    Ok(())
}

/// The descriptors that the caller names by their count.
fn preserved(count: u16) -> Result<Vec<OwnedFd>> {
    let take = |number: i32| {
        insula_sys::inherit::take(number).with_context(|| format!("--preserve-fds: descriptor {number}"))
    };
    (3..3 + i32::from(count)).map(take).collect()
}

fn create_one(create: &Create, root: &Path, grouping: Grouping, log: &Log) -> Result<()> {
    core::protect()?;
    let preserved = preserved(create.preserve_fds)?;
    let warnings = core::create(&core::CreateRequest {
        root,
        id: &create.id,
        bundle: &create.bundle,
        console_socket: create.console_socket.as_deref(),
        pid_file: create.pid_file.as_deref(),
        preserved: &preserved,
        entering: if create.no_pivot { Entering::Chroot } else { Entering::Pivot },
        grouping,
        keyring: if create.no_new_keyring { Keyring::Inherited } else { Keyring::New },
    })?;
    log.warn(&warnings);
    Ok(())
}

fn run_one(run: &Run, root: &Path, grouping: Grouping, log: &Log) -> Result<u8> {
    prepare()?;
    let id = &run.create.id;
    if !run.detach {
        insula_sys::process::become_subreaper().context("prctl PR_SET_CHILD_SUBREAPER")?;
    }
    create_one(&run.create, root, grouping, log)?;
    let start = || core::start(root, id).map(|warnings| log.warn(&warnings));
    if run.detach {
        return match start() {
            Ok(()) => Ok(0),
            Err(error) => Err(give_up(root, id, error)),
        };
    }
    let pid = core::find(root, id)?.record.pid;
    let code = core::wait(pid, start).map_err(|error| give_up(root, id, error))?;
    if !run.keep {
        log.warn(&core::delete(root, id, true)?);
    }
    Ok(code as u8)
}

fn reach(images: &Images) -> Reach {
    Reach {
        tcp_established: images.tcp_established,
        external_unix_sockets: images.ext_unix_sk,
        file_locks: images.file_locks,
        shell_job: images.shell_job,
        empty_network: !images.empty_ns.is_empty(),
    }
}

fn checkpoint_one(checkpoint: &Checkpoint, root: &Path) -> Result<Vec<String>> {
    let images = &checkpoint.images;
    let after = if checkpoint.leave_running { After::Running } else { After::Gone };
    Ok(core::checkpoint(&core::CheckpointRequest {
        root,
        id: &checkpoint.id,
        images: &images.image_path,
        work: images.work_path.as_deref(),
        after,
        reach: reach(images),
    })?)
}

fn restore_one(restore: &Restore, root: &Path, grouping: Grouping, log: &Log) -> Result<u8> {
    prepare()?;
    if !(restore.detach || restore.no_subreaper) {
        insula_sys::process::become_subreaper().context("prctl PR_SET_CHILD_SUBREAPER")?;
    }
    let (id, images) = (restore.id.as_str(), &restore.images);
    log.warn(&core::restore(&core::RestoreRequest {
        root,
        id,
        bundle: &restore.bundle,
        images: &images.image_path,
        work: images.work_path.as_deref(),
        pid_file: restore.pid_file.as_deref(),
        grouping,
        reach: reach(images),
    })?);
    if restore.detach {
        return Ok(0);
    }
    let code = core::wait(core::find(root, id)?.record.pid, || Ok(()))?;
    log.warn(&core::delete(root, id, true)?);
    Ok(code as u8)
}

/// What did not start is not left behind; the first error is the one to report.
fn give_up(root: &Path, id: &str, error: core::Error) -> anyhow::Error {
    let _ = core::delete(root, id, true);
    error.into()
}

fn exec_one(exec: &Exec, root: &Path, log: &Log) -> Result<u8> {
    core::protect()?;
    prepare()?;
    let preserved = preserved(exec.preserve_fds)?;
    let found = core::find(root, &exec.id)?;
    let (process, stdio) = process(exec, &found.record.plan.process)?;
    if !exec.detach {
        insula_sys::process::become_subreaper().context("prctl PR_SET_CHILD_SUBREAPER")?;
    }
    let executed = core::exec(&core::ExecRequest {
        folder: &found.folder,
        record: &found.record,
        process: &process,
        stdio: &stdio,
        console_socket: exec.console_socket.as_deref(),
        pid_file: exec.pid_file.as_deref(),
        preserved: &preserved,
    })?;
    log.warn(&executed.warnings);
    if exec.detach { Ok(0) } else { Ok(core::wait(executed.pid, || Ok(()))? as u8) }
}

/// As a file says it, or as the container's own with another program.
fn process(exec: &Exec, own: &ProcessPlan) -> Result<(ProcessPlan, StdioPlan)> {
    if let Some(path) = &exec.process {
        let document = document::parse(&bounded(path)?, "process")?;
        let mut stdio = bundle::terminal(&document);
        stdio.tty |= exec.tty;
        let mut process = bundle::process(&document, "process")?;
        // How the kernel looks is the container's, not the process'.
        if let (Some(exact), Some(own)) = (&mut process.exact, &own.exact) {
            exact.personality = own.personality;
            exact.apparmor = exact.apparmor.take().or_else(|| own.apparmor.clone());
            exact.selinux = exact.selinux.take().or_else(|| own.selinux.clone());
            exact.memory_policy.clone_from(&own.memory_policy);
        }
        return Ok((process, stdio));
    }
    if exec.command.is_empty() {
        bail!("exec needs a program, or --process");
    }
    let mut process = ProcessPlan { args: exec.command.clone(), ..own.clone() };
    process.env.extend(exec.env.iter().cloned());
    if let Some(cwd) = &exec.cwd {
        process.cwd.clone_from(cwd);
    }
    process.no_new_privileges |= exec.no_new_privs;
    let exact = process.exact.get_or_insert_default();
    if let Some(user) = &exec.user {
        let (uid, gid) = user.split_once(':').unwrap_or((user, "0"));
        let number = |text: &str| text.parse().with_context(|| format!("--user {user:?} is not UID[:GID]"));
        (exact.uid, exact.gid) = (number(uid)?, number(gid)?);
    }
    exact.groups.extend(&exec.additional_gids);
    let sets = &mut exact.capabilities;
    for set in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted] {
        set.get_or_insert_default().extend(exec.cap.iter().cloned());
    }
    Ok((process, StdioPlan { tty: exec.tty, ..StdioPlan::default() }))
}

fn bounded(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().take(LARGEST + 1).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes))
    };
    read.with_context(|| format!("read {}", path.display()))?;
    Ok(bytes)
}

fn limits(update: &Update) -> Result<Resources> {
    let document = match &update.resources {
        Some(path) => document::parse(&bounded(path)?, "resources")?,
        None => Resources {
            memory: Some(Memory {
                limit: update.memory,
                reservation: update.memory_reservation,
                swap: update.memory_swap,
                ..Memory::default()
            }),
            cpu: Some(Cpu {
                shares: update.cpu_share,
                quota: update.cpu_quota,
                period: update.cpu_period,
                cpus: update.cpuset_cpus.clone(),
                mems: update.cpuset_mems.clone(),
                ..Cpu::default()
            }),
            pids: Some(Pids { limit: update.pids_limit }),
            block_io: Some(BlockIo { weight: update.blkio_weight, ..BlockIo::default() }),
            ..Resources::default()
        },
    };
    Ok(document)
}

fn spec(bundle: &Path) -> Result<()> {
    let path = bundle.join("config.json");
    if path.exists() {
        bail!("{} exists", path.display());
    }
    let mut text = serde_json::to_vec_pretty(&bundle::template())?;
    text.push(b'\n');
    std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
}
