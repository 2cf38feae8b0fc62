//! A container is made of the files that it was written to.

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use insula_host::cgroup::Group;
use insula_host::resctrl::Resctrl;
use insula_spec::bundle::document::{self, Config};
use insula_spec::bundle::{self, BundleMount, BundlePlan, BundleSource, TimePlan};
use insula_sys::mount::{MountAttributes, set_attributes};
use insula_sys::process::{self, Clone, CloneFlags};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::{Errno, FdFlags};
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags};

use crate::create::{read, write_pid};
use crate::criu::{self, External, NETWORK, Reach, STREAMS};
use crate::error::{Context, Error, Result};
use crate::groups::{self, Grouping, Wanted};
use crate::life::signal_all;
use crate::store::{Folder, Record, start_time};

const SIGKILL: i32 = 9;
const SIGCONT: i32 = 18;

/// What to make, and of what.
#[derive(Debug)]
pub struct RestoreRequest<'a> {
    pub root: &'a Path,
    pub id: &'a str,
    /// Folder with `config.json`.
    pub bundle: &'a Path,
    pub images: &'a Path,
    /// Folder of the log; that of the images where there is none.
    pub work: Option<&'a Path>,
    pub pid_file: Option<&'a Path>,
    pub grouping: Grouping,
    pub reach: Reach,
}

/// Makes a container that runs on, a child of the caller; returns what the user should know. On failure nothing is
/// left. For a process of one thread.
pub fn restore(request: &RestoreRequest<'_>) -> Result<Vec<String>> {
    let program = criu::program()?;
    let bundle = std::fs::canonicalize(request.bundle).context("open", request.bundle.display())?;
    let config: Config = document::parse(&read(&bundle.join("config.json"))?, "config.json")?;
    let plan = bundle::plan(&config, request.id, &bundle)?;
    criu::check(&plan)?;
    if plan.bundle.as_deref().is_some_and(has_hooks) {
        return Err(Error::Unsupported("a restore with hooks that run before the program".to_owned()));
    }
    let mut record = Record::new(request.id, bundle, plan);
    let wanted = Wanted::new(request.grouping, &config, &mut record)?;
    let folder = Folder::create(request.root, request.id)?;
    groups::within(&wanted, folder, record, |folder, record, group| {
        Restore { request, program: &program, folder, group }.run(record)
    })
}

/// Those that are there to change a container which is being made.
fn has_hooks(bundle: &BundlePlan) -> bool {
    let hooks = &bundle.hooks;
    [&hooks.create_runtime, &hooks.create_container, &hooks.start_container]
        .into_iter()
        .any(|list| !list.is_empty())
}

struct Restore<'a> {
    request: &'a RestoreRequest<'a>,
    program: &'a Path,
    folder: &'a Folder,
    group: &'a Group,
}

impl Restore<'_> {
    fn run(&self, mut record: Record) -> Result<Vec<String>> {
        let rdt =
            record.rdt().cloned().map(|rdt| Resctrl::probe().map(|resctrl| (resctrl, rdt))).transpose()?;
        let visit = rdt.as_ref().map(|(resctrl, _)| resctrl.visit()).transpose()?;
        if let Some((resctrl, rdt)) = &rdt {
            // Of the caller: whatever criu makes begins there, with all its threads.
            resctrl.join(rdt, std::process::id().cast_signed())?;
        }
        let made = self.make(&record);
        drop(visit);
        let stood = made.and_then(|pid| {
            record.pid = pid;
            self.take_over(&mut record)
        });
        if stood.is_err() {
            // All of it, not the first process alone, which others may outlive. It may have ended; the first error is
            // the one to report.
            let _ = self.group.kill();
            if record.pid > 0 {
                // Where there is no group that has held nobody.
                let _ = process::kill(record.pid, SIGKILL);
                let _ = process::wait_for(record.pid);
            }
            let _ = rdt.map(|(resctrl, rdt)| resctrl.leave(&rdt));
        }
        stood.map(|()| Vec::new())
    }

    /// The pid of the first process, which runs or is stopped.
    fn make(&self, record: &Record) -> Result<i32> {
        let open = |path: &Path| std::fs::canonicalize(path).context("open", path.display());
        let images = open(self.request.images)?;
        let work = self.request.work.map_or_else(|| Ok(images.clone()), open)?;
        [&images, &work].into_iter().try_for_each(|folder| criu::check_folder(folder))?;
        let (root, told) = (self.folder.path().join("root"), self.folder.path().join("restored.pid"));
        std::fs::create_dir(&root).context("mkdir", root.display())?;
        let mut arguments = criu::arguments("restore", &images, &work, self.request.reach);
        arguments.extend(["--restore-detached".into(), "--restore-sibling".into()]);
        arguments.extend(["--root".into(), root.clone().into(), "--pidfile".into(), told.clone().into()]);
        arguments.extend(["--cgroup-root".into(), format!("/{}", record.plan.cgroup.path).into()]);
        arguments.extend(streams(&images)?);
        let mut kept = Vec::new();
        for external in criu::external(&record.plan, self.request.reach)? {
            arguments.extend(given(&external, &mut kept)?);
        }
        if record.plan.rootfs.readonly {
            arguments.push("--leave-stopped".into());
        }
        let code = self.execute(record, &root, &arguments, &kept)?;
        if code != 0 {
            return Err(criu::failure("restore", &work, &format!("exit code {code}")));
        }
        let text = std::fs::read_to_string(&told).context("read", told.display())?;
        // They are part of the folder, and go with it.
        let _ = (std::fs::remove_file(&told), std::fs::remove_dir(&root));
        text.trim().parse().map_err(|_| Error::Invalid(format!("criu tells pid {text:?}")))
    }

    fn take_over(&self, record: &mut Record) -> Result<()> {
        record.start_time = start_time(record.pid)?.ok_or(Error::NotRunning)?;
        own_clocks(record)?;
        if record.plan.rootfs.readonly {
            protect_root(record)?;
            signal_all(record, SIGCONT)?;
        }
        self.folder.write(record)?;
        match self.request.pid_file {
            Some(path) => write_pid(path, record.pid),
            None => Ok(()),
        }
    }

    /// In the container's control groups, in a mount namespace where its root is a mount.
    fn execute(&self, record: &Record, root: &Path, arguments: &[OsString], kept: &[OwnedFd]) -> Result<i32> {
        let entry = self.group.entry()?;
        match process::clone(CloneFlags::NEWNS, entry.birthplace()).context("clone3", "for criu")? {
            Clone::Parent { pid, .. } => Ok(process::wait_for(pid).context("waitpid", "criu")?.code),
            Clone::Child => {
                criu::private_files();
                let Err(error) = entry
                    .enter()
                    .map_err(Error::from)
                    .and_then(|()| self.become_criu(record, root, arguments, kept));
                // Where criu would have said it: standard error is the container's.
                let log = self.request.work.unwrap_or(self.request.images).join("restore.log");
                let _ = std::fs::write(log, format!("Error: {}\n", insula_base::chain(&error)));
                process::exit_now(1)
            }
        }
    }

    fn become_criu(
        &self,
        record: &Record,
        root: &Path,
        arguments: &[OsString],
        kept: &[OwnedFd],
    ) -> Result<Infallible> {
        mount_root(record, root)?;
        check_targets(record, root)?;
        // What the caller has open besides is nobody's, by whatever number the images ask for it.
        process::close_on_exec_from(3).context("close_range", "from 3 on")?;
        for file in kept {
            rustix::io::fcntl_setfd(file, FdFlags::empty()).context("fcntl F_SETFD", "a namespace")?;
        }
        let text = |text: OsString| {
            CString::new(text.into_vec()).map_err(|_| Error::Invalid("a path holds a zero byte".to_owned()))
        };
        let program = text(self.program.into())?;
        let first = std::iter::once(OsString::from("criu"));
        let arguments = first.chain(arguments.iter().cloned()).map(text).collect::<Result<Vec<CString>>>()?;
        let environment = std::env::vars_os()
            .map(|(name, value)| text([name, value].join("=".as_ref())))
            .collect::<Result<Vec<CString>>>()?;
        Err(process::execve(&program, &arguments, &environment)).context("execve", self.program.display())
    }
}

/// Clocks go on from where they were, which takes a time namespace that the bundle may not have asked for.
fn own_clocks(record: &mut Record) -> Result<()> {
    let clocks = |pid: &str| {
        let path = format!("/proc/{pid}/ns/time");
        std::fs::read_link(&path).context("readlink", path)
    };
    if let Some(bundle) = &mut record.plan.bundle
        && bundle.time.is_none()
        && clocks(&record.pid.to_string())? != clocks("self")?
    {
        bundle.time = Some(TimePlan::Private(Vec::new()));
    }
    Ok(())
}

/// criu wants the root to be a mount of its own.
fn mount_root(record: &Record, root: &Path) -> Result<()> {
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", flags).context("mount", "/ as a slave")?;
    let layer = record.plan.rootfs.layers.first().map(PathBuf::as_path).unwrap_or(Path::new(""));
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = rustix::mount::open_tree(CWD, layer, flags).context("open_tree", layer.display())?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&tree, "", CWD, root, flags).context("move_mount", root.display())
}

/// criu mounts by names, on which links of the container's files, or of a volume's, would lead it elsewhere.
fn check_targets(record: &Record, root: &Path) -> Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags, Mode::empty()).context("open", root.display())?;
    let mounts: Vec<&BundleMount> = record.plan.bundle.iter().flat_map(|bundle| &bundle.mounts).collect();
    (0..mounts.len()).try_for_each(|number| check_target(&root, &mounts[..number], mounts[number]))
}

fn check_target(root: &OwnedFd, earlier: &[&BundleMount], mount: &BundleMount) -> Result<()> {
    let refused = |problem: &str| Err(Error::Invalid(format!("mounts: {}: {problem}", mount.target)));
    let target = Path::new(&mount.target);
    if target.components().any(|part| part == Component::ParentDir) {
        return refused("a way back cannot be restored");
    }
    // The innermost of those that it is in, and of several at one place the last.
    let around = earlier
        .iter()
        .rev()
        .filter(|outer| !matches!(outer.source, BundleSource::Remount { .. }))
        .filter_map(|outer| Some((&outer.source, target.strip_prefix(&outer.target).ok()?)))
        .min_by_key(|(_, rest)| rest.components().count());
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let source = match around {
        None => None,
        Some((BundleSource::Bind { path, .. }, _)) => {
            Some(rustix::fs::open(path, flags, Mode::empty()).context("open", path.display())?)
        }
        // What is in it comes from the images.
        Some(_) => return Ok(()),
    };
    let rest = around.map_or_else(|| target.strip_prefix("/").unwrap_or(target), |(_, rest)| rest);
    if rest.as_os_str().is_empty() {
        return Ok(());
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match rustix::fs::openat2(source.as_ref().unwrap_or(root), rest, flags, Mode::empty(), resolve) {
        Ok(_) => Ok(()),
        // Nobody else changes the root meanwhile; a volume others may.
        Err(Errno::NOENT) if around.is_none() => Ok(()),
        Err(Errno::LOOP | Errno::XDEV) => {
            refused("a link of the container's files leads to this mount, or away from it")
        }
        Err(error) => Err(error).context("openat2", target.display()),
    }
}

/// criu makes a folder in the root on its way, and leaves it as it found it: so it is made read-only afterwards,
/// while nobody inside runs yet.
fn protect_root(record: &Record) -> Result<()> {
    let init = record.init()?.ok_or(Error::NotRunning)?;
    let protect = || -> Result<()> {
        process::join_namespaces(init.as_fd(), CloneFlags::NEWNS)
            .context("setns", "the container's mounts")?;
        let root =
            rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).context("open", "/")?;
        let readonly = MountAttributes { readonly: true, ..MountAttributes::default() };
        set_attributes(root.as_fd(), readonly, false).context("mount_setattr", "/ read-only")
    };
    match process::clone(CloneFlags::empty(), None).context("clone3", "to join a container")? {
        Clone::Child => process::exit_now(i32::from(protect().is_err())),
        Clone::Parent { pid, .. } => match process::wait_for(pid).context("waitpid", pid)?.code {
            0 => Ok(()),
            _ => Err(Error::Invalid("the restored root cannot be made read-only".to_owned())),
        },
    }
}

/// Pipes that somebody outside had the other end of are now the caller's streams.
fn streams(images: &Path) -> Result<Vec<OsString>> {
    let path = images.join(STREAMS);
    let names: Vec<String> = serde_json::from_slice(&read(&path)?)
        .map_err(|source| Error::Damaged { on: path.display().to_string(), source })?;
    // No more than there are: another number would be something else that is open here.
    let pipes = names.iter().take(3).enumerate().filter(|(_, name)| is_pipe(name));
    Ok(pipes
        .flat_map(|(number, name)| ["--inherit-fd".into(), format!("fd[{number}]:{name}").into()])
        .collect())
}

fn is_pipe(name: &str) -> bool {
    let number = name.strip_prefix("pipe:[").and_then(|rest| rest.strip_suffix(']'));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

fn given(external: &External, kept: &mut Vec<OwnedFd>) -> Result<[OsString; 2]> {
    match external {
        External::Mount { target, source } => {
            Ok(["--external".into(), format!("mnt[{target}]:{}", source.display()).into()])
        }
        External::Network { path, .. } => {
            let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .context("open", path.display())?;
            let said = format!("fd[{}]:{NETWORK}", file.as_raw_fd());
            kept.push(file);
            Ok(["--inherit-fd".into(), said.into()])
        }
    }
}

#[cfg(test)]
mod tests {
    use insula_spec::bundle::Attributes;

    use super::*;

    #[test]
    fn links_of_a_volume_lead_no_mount_elsewhere() {
        let (root, volume) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir(volume.path().join("fine")).unwrap();
        std::os::unix::fs::symlink("/etc", volume.path().join("x")).unwrap();
        let mount = |target: &str, source| BundleMount {
            target: target.to_owned(),
            source,
            attributes: Attributes::default(),
            recursive: Attributes::default(),
            propagation: None,
        };
        let bind = |target: &str| {
            mount(
                target,
                BundleSource::Bind { path: volume.path().to_owned(), recursive: false, idmap: None },
            )
        };
        let file = std::fs::File::open(root.path()).unwrap().into();
        let check = |targets: &[&BundleMount]| {
            let (last, earlier) = targets.split_last().unwrap();
            check_target(&file, earlier, last).map_err(|error| error.to_string())
        };
        let again = mount("/data", BundleSource::Remount { options: Vec::new() });
        let outer = bind("/data");
        check(&[&outer, &again, &bind("/data/fine")]).unwrap();
        check(&[&outer, &bind("/data")]).unwrap();
        check(&[&bind("/database/x")]).unwrap();
        for target in ["/data/x", "/data//x/below", "/data/./x"] {
            let error = check(&[&outer, &again, &bind(target)]).unwrap_err();
            assert!(error.contains("a link of the container's files"), "{target}: {error}");
        }
        // Within what is mounted within.
        assert!(check(&[&outer, &bind("/data/fine"), &bind("/data/fine/x")]).is_err());
        assert!(check(&[&outer, &bind("/data/none")]).is_err());
        assert!(check(&[&outer, &bind("/other/../data/x")]).is_err());
        std::os::unix::fs::symlink("/etc", root.path().join("link")).unwrap();
        assert!(check(&[&bind("/link/x")]).is_err());
    }

    #[test]
    fn streams_are_three_and_pipes() {
        let folder = tempfile::tempdir().unwrap();
        let names = r#"["pipe:[7]","/dev/null","pipe:[8]:x]","pipe:[9]","pipe:[10]"]"#;
        std::fs::write(folder.path().join(STREAMS), names).unwrap();
        assert_eq!(streams(folder.path()).unwrap(), ["--inherit-fd", "fd[0]:pipe:[7]"]);
    }
}
