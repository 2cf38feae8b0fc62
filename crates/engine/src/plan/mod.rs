//! From a container's row to the plan that a wall builds. Pure, but for looking at devices and at
//! the kinds of file systems that are bound.

pub(crate) mod devices;
pub(crate) mod log;
pub(crate) mod resources;
pub(crate) mod security;

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use insula_host::confine::{capabilities, paths};
use insula_models::HostConfig;
use insula_spec::machine::MachinePlan;
use insula_spec::plan::{
    CgroupPlan, ContainerPlan, DeviceRule, InitPlan, InterfacePlan, MountPlan, MountSource, Namespace,
    NamespacesPlan, ProcessPlan, Propagation, RootfsPlan, SeccompPlan, SecurityPlan, StdioPlan, UpperPlan,
    UserNamespace,
};
use insula_store::ContainerDir;

use crate::Result;
use crate::containers::merge::{command, environment};
use crate::containers::row::{IdRange, MountRow, Row, SourceRow};

/// Bytes of `/dev/shm` unless asked otherwise.
pub(crate) const SHM_SIZE: i64 = 64 << 20;

/// What is hidden on this host; it is looked for once.
static MASKED: LazyLock<Vec<String>> = LazyLock::new(paths::masked);

/// What a plan is made of beside the row.
#[derive(Debug)]
pub(crate) struct Inputs<'a> {
    pub(crate) row: &'a Row,
    pub(crate) folder: &'a ContainerDir,
    /// Folder with `resolv.conf`, `hosts` and `hostname`: its own, or that of whose network it shares.
    pub(crate) names: &'a Path,
    pub(crate) cgroup: String,
    pub(crate) interfaces: Vec<InterfacePlan>,
    /// Whether a name server of the engine's answers inside.
    pub(crate) resolver: bool,
    pub(crate) joined: Joined,
    /// Folder of all volumes.
    pub(crate) volumes: &'a Path,
    /// The layer below those of the image: what the engine mounts on.
    pub(crate) points: &'a Path,
    /// Of a container with a kernel of its own.
    pub(crate) machine: Option<MachinePlan>,
}

/// First processes of the containers whose namespaces it shares.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Joined {
    pub(crate) pid: Option<i32>,
    pub(crate) network: Option<i32>,
    /// The ids of those containers; they are its own too.
    pub(crate) ids: Option<IdRange>,
}

/// Builds the plan.
pub(crate) fn build(inputs: Inputs<'_>) -> Result<ContainerPlan> {
    let Inputs { row, folder, .. } = inputs;
    let (config, host) = (&row.config, &row.host);
    let options = security::options(&host.security_opt)?;
    let namespaces = namespaces(row, &inputs.joined);
    let mut devices = devices::of(host)?;
    // A kernel of its own has devices of its own.
    if host.privileged && inputs.machine.is_none() {
        devices.extend(devices::of_the_host()?);
    }
    Ok(ContainerPlan {
        id: row.id.clone(),
        process: process(row)?,
        init: init(row),
        rootfs: RootfsPlan {
            layers: layers(&row.image.layers, inputs.points),
            idmap: true,
            // What goes at its end goes with a crash of the host too: there is nothing to wait for a disk for.
            upper: Some(UpperPlan { upper: folder.upper(), work: folder.work(), volatile: host.auto_remove }),
            readonly: host.readonly_rootfs,
            hidden: row.image.hidden.clone(),
            whole: false,
        },
        mounts: mounts(&inputs),
        hostname: config.hostname.clone(),
        domainname: config.domainname.clone(),
        cgroup: CgroupPlan { path: inputs.cgroup, resources: resources::of(host)? },
        device_rules: device_rules(host)?,
        devices,
        security: SecurityPlan {
            seccomp: match options.seccomp {
                SeccompPlan::Default if host.privileged => SeccompPlan::Unconfined,
                SeccompPlan::Default if inputs.machine.as_ref().is_some_and(|plan| plan.vsock.is_some()) => {
                    SeccompPlan::DefaultWithVsock
                }
                chosen => chosen,
            },
            masked_paths: host.masked_paths.clone().unwrap_or_default(),
            readonly_paths: host.readonly_paths.clone().unwrap_or_default(),
            privileged: host.privileged,
        },
        sysctls: security::sysctls(&host.sysctls, &namespaces),
        stdio: stdio(row),
        log: log::plan(&host.log_config, &folder.logs(), &log::Subject::of(row))?,
        interfaces: inputs.interfaces,
        resolver: inputs.resolver,
        namespaces,
        machine: inputs.machine,
        bundle: None,
    })
}

/// The host's own system has all that is mounted on; of an image nobody knows.
pub(crate) fn layers(image: &[PathBuf], points: &Path) -> Vec<PathBuf> {
    let below =
        if image.iter().any(|layer| layer == Path::new("/")) { None } else { Some(points.to_owned()) };
    below.into_iter().chain(image.iter().cloned()).collect()
}

/// The first process; others of the container have its limits and capabilities.
pub(crate) fn process(row: &Row) -> Result<ProcessPlan> {
    let (config, host) = (&row.config, &row.host);
    let no_new_privileges = security::options(&host.security_opt)?.no_new_privileges;
    Ok(ProcessPlan {
        args: command(config).map(str::to_owned).collect(),
        env: environment(config, &config.hostname),
        cwd: if config.working_dir.is_empty() { "/".to_owned() } else { config.working_dir.clone() },
        user: config.user.clone(),
        groups: host.group_add.clone(),
        capabilities: capabilities::effective(&host.cap_add, &host.cap_drop, host.privileged)?,
        no_new_privileges,
        rlimits: crate::containers::check::rlimits_of(&host.ulimits)?,
        // Bounded by the check at create.
        oom_score_adj: Some(host.oom_score_adj as i32).filter(|adj| *adj != 0),
        exact: None,
    })
}

/// `--init=systemd`, or an init system for a command.
pub(crate) fn init(row: &Row) -> InitPlan {
    const PATHS: [&str; 5] =
        ["/sbin/init", "/usr/sbin/init", "/lib/systemd/systemd", "/usr/lib/systemd/systemd", "/bin/systemd"];
    let program = command(&row.config).next().unwrap_or_default();
    match (row.host.init_system.as_str(), row.host.init) {
        ("systemd", _) => InitPlan::System,
        (_, Some(true)) => InitPlan::Reaper,
        (_, None) if PATHS.contains(&program) => InitPlan::System,
        _ => InitPlan::Process,
    }
}

fn stdio(row: &Row) -> StdioPlan {
    let [rows, columns] = row.host.console_size;
    let bounded = |value: u32| u16::try_from(value).unwrap_or(0);
    StdioPlan {
        tty: row.config.tty,
        columns: bounded(columns),
        rows: bounded(rows),
        open_stdin: row.config.open_stdin,
        stdin_once: row.config.stdin_once,
    }
}

fn namespaces(row: &Row, joined: &Joined) -> NamespacesPlan {
    let host = &row.host;
    let of = |mode: &str| if mode == "host" { Namespace::Host } else { Namespace::Private };
    let join = |pid: Option<i32>, kind: &str, mode: &str| match pid {
        Some(pid) => Namespace::Path(PathBuf::from(format!("/proc/{pid}/ns/{kind}"))),
        None => of(mode),
    };
    let user = match (joined.pid.or(joined.network), joined.ids, row.ids) {
        (Some(pid), Some(IdRange { first, count }), _) => {
            UserNamespace::Path { path: PathBuf::from(format!("/proc/{pid}/ns/user")), first, count }
        }
        (None, _, Some(IdRange { first, count })) => UserNamespace::Private { first, count },
        _ => UserNamespace::Host,
    };
    NamespacesPlan {
        user,
        pid: join(joined.pid, "pid", &host.pid_mode),
        network: join(joined.network, "net", &host.network_mode),
        ipc: of(&host.ipc_mode),
        uts: of(&host.uts_mode),
        cgroup: of(&host.cgroupns_mode),
    }
}

/// The engine's own mounts, but where the user mounts something else, and the user's: what is mounted in a folder is
/// not hidden by what is mounted on the folder. The kernel's file systems come before all that, so that who mounts a
/// folder at `/sys` gets it as it is.
///
/// Where the user shares the host's own mounts (`rshared`), the engine's come before all of the user's: whatever is
/// mounted in such a folder is mounted on the host too, and a link of the image may lead there.
fn mounts(inputs: &Inputs<'_>) -> Vec<MountPlan> {
    let row = inputs.row;
    let of_the_users = |own: &MountPlan| row.mounts.iter().any(|mount| mount.target == own.target);
    let mut mounts = of_the_kernel(&row.host);
    mounts.retain(|own| !of_the_users(own));
    let first = mounts.len();
    mounts.extend(shared_memory(row).filter(|own| !of_the_users(own)));
    for name in ["resolv.conf", "hosts", "hostname"] {
        // They belong to the container's root as they are.
        let path = inputs.names.join(name);
        let source =
            MountSource::Bind { path, recursive: false, propagation: Propagation::Private, idmap: false };
        let target = format!("/etc/{name}");
        // A bind is not read-only because the root is.
        let own = MountPlan { readonly: row.host.readonly_rootfs, ..plain(&target, source) };
        mounts.extend(Some(own).filter(|own| !of_the_users(own)));
    }
    let own = mounts.len();
    mounts.extend(row.mounts.iter().map(|mount| of_the_user(mount, inputs.volumes)));
    let reaches_the_host = |mount: &MountPlan| {
        matches!(mount.source, MountSource::Bind { propagation: Propagation::Shared, .. })
    };
    let sorted = if mounts[own..].iter().any(reaches_the_host) { own } else { first };
    mounts[sorted..].sort_by_key(|mount| mount.target.split('/').count());
    mounts
}

fn shared_memory(row: &Row) -> Option<MountPlan> {
    let host = &row.host;
    match host.ipc_mode.as_str() {
        // Whose `/dev` it is, is theirs as a whole, as with Docker.
        "" | "private" if row.mounts.iter().any(|mount| mount.target == "/dev") => None,
        "host" => Some(plain("/dev/shm", bind("/dev/shm".into(), false, Propagation::Private))),
        "none" => None,
        _ => {
            let size = u64::try_from(host.shm_size).ok().filter(|size| *size > 0);
            let source = MountSource::Tmpfs { size, mode: Some(0o1777), uid: None, gid: None };
            Some(MountPlan { nosuid: true, nodev: true, noexec: true, ..plain("/dev/shm", source) })
        }
    }
}

/// File systems in which the kernel shows itself.
fn of_the_kernel(host: &HostConfig) -> Vec<MountPlan> {
    let mut mounts = Vec::new();
    let hardened =
        |target, source| MountPlan { nosuid: true, nodev: true, noexec: true, ..plain(target, source) };
    // That of the host only its root may mount.
    let is_root = || host.userns_mode == "host" && !insula_sys::process::in_user_namespace();
    if host.ipc_mode != "host" || is_root() {
        mounts.push(hardened("/dev/mqueue", MountSource::Mqueue));
    }
    if crate::rootless::without_groups() {
        return mounts;
    }
    // Who owns no cgroup namespace may not mount what it shows: the host's own mounts are bound then.
    let source = match (host.cgroupns_mode.as_str(), host.userns_mode.as_str()) {
        ("host", "private") => MountSource::Bind {
            path: "/sys/fs/cgroup".into(),
            recursive: true,
            propagation: Propagation::Private,
            idmap: false,
        },
        _ => MountSource::Cgroup,
    };
    let cgroup = hardened("/sys/fs/cgroup", source);
    mounts.push(MountPlan { readonly: !host.privileged, ..cgroup });
    mounts
}

fn plain(target: &str, source: MountSource) -> MountPlan {
    let target = target.to_owned();
    MountPlan { target, source, readonly: false, nosuid: false, nodev: false, noexec: false }
}

fn bind(path: PathBuf, recursive: bool, propagation: Propagation) -> MountSource {
    let idmap = !owned_by_the_kernel(&path);
    MountSource::Bind { path, recursive, propagation, idmap }
}

fn of_the_user(mount: &MountRow, volumes: &Path) -> MountPlan {
    let path = mount.host_path(volumes).unwrap_or_default();
    let plan = match &mount.source {
        SourceRow::Bind { recursive, propagation, .. } => {
            let propagation = match propagation.trim_start_matches('r') {
                "shared" => Propagation::Shared,
                "slave" => Propagation::Slave,
                _ => Propagation::Private,
            };
            plain(&mount.target, bind(path, *recursive, propagation))
        }
        SourceRow::Volume { folder: Some(_), .. } => {
            plain(&mount.target, bind(path, true, Propagation::Private))
        }
        SourceRow::Volume { .. } => plain(&mount.target, bind(path, false, Propagation::Private)),
        SourceRow::Tmpfs { size, mode, nosuid, nodev, noexec, uid, gid } => MountPlan {
            nosuid: *nosuid,
            nodev: *nodev,
            noexec: *noexec,
            ..plain(&mount.target, MountSource::Tmpfs { size: *size, mode: *mode, uid: *uid, gid: *gid })
        },
        SourceRow::Own { mapped, .. } => {
            let propagation = Propagation::Private;
            plain(&mount.target, MountSource::Bind { path, recursive: false, propagation, idmap: *mapped })
        }
        SourceRow::Merged { layers, changes } => {
            let upper = changes.as_ref().map(|folder| UpperPlan {
                upper: folder.join("upper"),
                work: folder.join("work"),
                volatile: false,
            });
            plain(&mount.target, MountSource::Merged { layers: layers.clone(), upper })
        }
    };
    MountPlan { readonly: mount.readonly, ..plan }
}

/// Whether it is on a file system in which the kernel shows itself: ids are not mapped there, and owners
/// mean little.
pub(crate) fn owned_by_the_kernel(path: &Path) -> bool {
    /// From linux/magic.h: proc, sysfs, both cgroups, devpts, debugfs, tracefs, securityfs, bpf, mqueue.
    const KINDS: [u32; 10] = [
        0x9fa0,
        0x6265_6572,
        0x0027_e0eb,
        0x6367_7270,
        0x1cd1,
        0x6462_6720,
        0x7472_6163,
        0x7363_6673,
        0xcafe_4a11,
        0x1980_0202,
    ];
    // What cannot be looked at is the wall's to report.
    rustix::fs::statfs(path).is_ok_and(|found| KINDS.contains(&(found.f_type as u32)))
}

fn device_rules(host: &HostConfig) -> Result<Vec<DeviceRule>> {
    if host.privileged {
        return Ok(vec![devices::all()]);
    }
    let mut rules = devices::default_rules();
    rules.extend(devices::rules(&host.device_cgroup_rules)?);
    Ok(rules)
}

/// Fills in what the user left open, so that inspection shows what is in effect.
pub(crate) fn complete(host: &mut HostConfig) {
    let fill = |field: &mut String, value: &str| {
        if field.is_empty() {
            value.clone_into(field);
        }
    };
    if matches!(host.network_mode.as_str(), "" | "default") {
        "bridge".clone_into(&mut host.network_mode);
    }
    fill(&mut host.ipc_mode, "private");
    let machine = crate::machines::wanted(&host.isolation);
    fill(&mut host.cgroupns_mode, if host.privileged && !machine { "host" } else { "private" });
    fill(&mut host.restart_policy.name, "no");
    fill(&mut host.runtime, "insula");
    if matches!(host.isolation.as_str(), "" | "default") {
        "process".clone_into(&mut host.isolation);
    }
    if host.shm_size == 0 {
        host.shm_size = SHM_SIZE;
    }
    if host.memory > 0 && host.memory_swap == 0 {
        host.memory_swap = host.memory.saturating_mul(2);
    }
    log::complete(&mut host.log_config);
    let unmasked =
        host.privileged || security::options(&host.security_opt).is_ok_and(|options| options.unmasked);
    let masked = host.masked_paths.take().unwrap_or_else(|| MASKED.clone());
    let readonly = host
        .readonly_paths
        .take()
        .unwrap_or_else(|| paths::READONLY.iter().map(|path| (*path).to_owned()).collect());
    host.masked_paths = Some(if unmasked { Vec::new() } else { masked });
    host.readonly_paths = Some(if unmasked { Vec::new() } else { readonly });
    if shares_host(host) {
        "host".clone_into(&mut host.userns_mode);
    }
    fill(&mut host.userns_mode, "private");
}

/// Whether it needs the host's own user namespace: what it shares belongs to that.
pub(crate) fn shares_host(host: &HostConfig) -> bool {
    let shared = [&host.pid_mode, &host.network_mode, &host.ipc_mode];
    // Privileges in a kernel of its own are none on the host.
    let privileged = host.privileged && !crate::machines::wanted(&host.isolation);
    host.userns_mode == "host" || privileged || shared.iter().any(|mode| *mode == "host")
}

/// Whether it gets a user namespace with ids of its own, where those can be mapped.
pub(crate) fn may_have_own_ids(host: &HostConfig) -> bool {
    let joined = [&host.network_mode, &host.pid_mode];
    !shares_host(host) && !joined.iter().any(|mode| mode.starts_with("container:"))
}

#[cfg(test)]
mod tests;
