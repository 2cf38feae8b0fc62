//! What the agent is told: the plan of a container as the guest sees it.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use insula_container::share::{MOUNTS, ROOT};
use insula_spec::machine::{FilesPlan, GuestPlan, RootPlan, spare_cards};
use insula_spec::plan::{
    ContainerPlan, LogPlan, MountSource, Namespace, NamespacesPlan, Propagation, Resources, RootfsPlan,
    StdioPlan, UserNamespace,
};

/// Where the agent mounts what the host shares.
const SHARE: &str = "/share";

/// What the machine is told about itself.
pub(super) fn machine(plan: &ContainerPlan) -> GuestPlan {
    let machine = plan.machine.as_ref();
    let files = match machine {
        Some(machine) if machine.tenant.is_some() => FilesPlan::Stream,
        Some(machine) if machine.template.is_some() => FilesPlan::Port,
        _ => FilesPlan::Device,
    };
    GuestPlan {
        time: now(),
        entropy: insula_base::random_hex(32),
        hostname: plan.hostname.clone(),
        interfaces: plan.interfaces.clone(),
        spare: spare_cards(plan.interfaces.len()),
        resolver: plan.resolver,
        files,
        root: match machine.and_then(|machine| machine.image.as_ref()) {
            Some(_) if files != FilesPlan::Stream => RootPlan::Image,
            _ => RootPlan::Shared,
        },
    }
}

/// What a tenant's machine is told about itself, with so many cards for its containers.
pub(super) fn tenant(name: &str, cards: usize) -> GuestPlan {
    GuestPlan {
        time: now(),
        entropy: insula_base::random_hex(32),
        hostname: name.to_owned(),
        interfaces: Vec::new(),
        spare: cards,
        resolver: false,
        files: FilesPlan::None,
        root: RootPlan::Shared,
    }
}

/// Nanoseconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// The container's plan: its files are the shared ones, its network is the machine's, and what only the
/// host can do is left out.
pub(super) fn container(plan: &ContainerPlan) -> ContainerPlan {
    let mut guest = plan.clone();
    let seated = plan.machine.as_ref().is_some_and(|machine| machine.tenant.is_some());
    guest.machine = None;
    guest.resolver = false;
    guest.rootfs = RootfsPlan {
        layers: vec![PathBuf::from(SHARE).join(ROOT)],
        idmap: false,
        upper: None,
        readonly: plan.rootfs.readonly,
        whole: true,
        hidden: Vec::new(),
    };
    let mut binds = 0;
    for mount in &mut guest.mounts {
        if mount.source.is_of_the_host() {
            let path = PathBuf::from(SHARE).join(MOUNTS).join(binds.to_string());
            binds += 1;
            mount.source =
                MountSource::Bind { path, recursive: false, propagation: Propagation::Private, idmap: false };
        }
    }
    guest.namespaces = NamespacesPlan {
        // The host has mapped the ids already; the network is what the machine has, unless others are in it: then
        // it is the container's own, or that of another one there.
        user: UserNamespace::Host,
        network: match &plan.namespaces.network {
            joined @ Namespace::Path(_) if seated => joined.clone(),
            _ if seated => Namespace::Private,
            _ => Namespace::Host,
        },
        ..plan.namespaces.clone()
    };
    guest.interfaces.clear();
    guest.cgroup.path = format!("insula/{}", plan.id);
    guest.cgroup.resources = inside(&plan.cgroup.resources);
    // The monitor writes it.
    guest.log = LogPlan::None;
    guest.stdio = stdio(&plan.stdio);
    guest
}

/// The end of input is passed on: whether it is one is the monitor's to say.
pub(super) fn stdio(stdio: &StdioPlan) -> StdioPlan {
    StdioPlan { stdin_once: true, ..stdio.clone() }
}

/// Limits that hold inside: those by number. CPUs and disks by name are the host's.
pub(super) fn inside(all: &Resources) -> Resources {
    Resources {
        cpuset_cpus: None,
        cpuset_mems: None,
        blkio_weight: None,
        device_read_bps: Vec::new(),
        device_write_bps: Vec::new(),
        device_read_iops: Vec::new(),
        device_write_iops: Vec::new(),
        ..all.clone()
    }
}

/// Limits of the machine's own processes on the host: everything but memory and processes, which are the
/// container's inside. What the machine takes at most is its memory, and this much for what runs it.
pub(super) fn outside(all: &Resources, memory: u64) -> Resources {
    const OVERHEAD: u64 = 512 << 20;
    Resources {
        memory: Some(memory + OVERHEAD),
        memory_swap: None,
        memory_reservation: None,
        memory_swappiness: None,
        oom_kill_disable: None,
        pids: None,
        ..all.clone()
    }
}
