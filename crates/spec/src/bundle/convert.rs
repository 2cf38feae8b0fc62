//! A document becomes a plan.

use std::path::Path;

use insula_base::ContainerId;
use serde_json::Value;

use super::document::{Config, Device, Hook, Hooks, Linux};
use super::{
    BundleDevices, BundleMount, BundlePlan, BundleSource, Clock, Entering, HooksPlan, IdMapping, Keyring,
    MountNamespace, NodePlan, RdtPlan, Result, TimePlan, invalid, mounts, placement, process, resources,
    scheduling, unsupported,
};
use crate::plan::{
    CgroupPlan, ContainerPlan, DeviceKind, InitPlan, LogPlan, Namespace, NamespacesPlan, Resources,
    RootfsPlan, SeccompPlan, SecurityPlan, UserNamespace,
};
use crate::sysctl::{SysctlOwner, sysctl_owner};

/// Kinds of file systems that the policy of SELinux labels, or that are labelled once they are there.
const UNLABELLED: [&str; 4] = ["proc", "sysfs", "mqueue", "cgroup2"];

/// Of containers whose document names no control group.
const GROUPS: &str = "insula-runtime";

/// The plan of a bundle in the folder `bundle`, for the container `id`.
pub fn plan(config: &Config, id: &str, bundle: &Path) -> Result<ContainerPlan> {
    version(config.oci_version.as_deref().unwrap_or_default())?;
    absent("vm", config.vm.as_ref())?;
    let linux = config.linux.clone().unwrap_or_default();
    let document = config.process.as_ref().ok_or_else(|| invalid("process", "is missing"))?;
    let mut mounts = mounts_of(config, bundle)?;
    let mount_label = process::label(linux.mount_label.as_ref(), || "linux.mountLabel".to_owned())?;
    if let Some(context) = &mount_label {
        label(&mut mounts, context);
    }
    let mut bundle_plan = bundle_plan(config, &linux, mounts)?;
    bundle_plan.rdt = rdt(&linux, id)?;
    bundle_plan.mount_label = mount_label;
    bundle_plan.mount_namespace = mount_namespace(config, &linux)?;
    let namespaces = namespaces(&linux, &bundle_plan)?;
    let hostname = config.hostname.clone().unwrap_or_default();
    let domainname = config.domainname.clone().unwrap_or_default();
    if !(hostname.is_empty() && domainname.is_empty()) && namespaces.uts == Namespace::Host {
        return Err(invalid("hostname", "would be the host's: the container has no UTS namespace"));
    }
    let mut process = process::process(document, "process")?;
    if let Some(exact) = &mut process.exact {
        exact.personality = scheduling::personality(linux.personality.as_ref())?;
        exact.memory_policy = placement::memory_policy(linux.memory_policy.as_ref())?;
    }
    Ok(ContainerPlan {
        id: ContainerId::random(),
        process,
        init: InitPlan::Process,
        rootfs: rootfs(config, bundle)?,
        mounts: Vec::new(),
        hostname,
        domainname,
        interfaces: Vec::new(),
        resolver: false,
        cgroup: CgroupPlan { path: cgroup_path(&linux, id)?, resources: limits(&linux)? },
        devices: Vec::new(),
        device_rules: Vec::new(),
        security: SecurityPlan {
            seccomp: match linux.seccomp.clone().filter(|value| !value.is_null()) {
                Some(profile) => SeccompPlan::Profile(profile),
                None => SeccompPlan::Unconfined,
            },
            masked_paths: linux.masked_paths.clone().unwrap_or_default(),
            readonly_paths: linux.readonly_paths.clone().unwrap_or_default(),
            privileged: false,
        },
        sysctls: sysctls(&linux, &namespaces)?,
        stdio: process::terminal(document),
        log: LogPlan::None,
        namespaces,
        machine: None,
        bundle: Some(Box::new(bundle_plan)),
    })
}

/// Absent, `null`, empty or zero: nothing is asked for.
pub(super) fn absent(field: &str, value: Option<&Value>) -> Result<()> {
    let empty = match value {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(Value::Array(list)) => list.is_empty(),
        Some(Value::Object(fields)) => fields.is_empty(),
        Some(_) => false,
    };
    if empty { Ok(()) } else { Err(unsupported(field, "this property")) }
}

fn version(text: &str) -> Result<()> {
    let mut numbers = text.split(['.', '-', '+']);
    let mut number = || numbers.next().and_then(|number| number.parse::<u32>().ok());
    match (number(), number(), number()) {
        (Some(1), Some(_), Some(_)) => Ok(()),
        (Some(_), Some(_), Some(_)) => Err(unsupported("ociVersion", format!("{text:?}"))),
        _ => Err(invalid("ociVersion", format!("{text:?} is not a version"))),
    }
}

/// File systems of the kernel's own contents have no label for all of them.
fn label(mounts: &mut [BundleMount], label: &str) {
    for mount in mounts {
        match &mut mount.source {
            BundleSource::New { kind, .. } if UNLABELLED.contains(&kind.as_str()) => {}
            BundleSource::New { options, .. } | BundleSource::Dev { options } => {
                options.push(("context".to_owned(), label.to_owned()));
            }
            BundleSource::Bind { .. } | BundleSource::Remount { .. } | BundleSource::Cgroup => {}
        }
    }
}

fn rootfs(config: &Config, bundle: &Path) -> Result<RootfsPlan> {
    let root = config.root.clone().unwrap_or_default();
    let path = root.path.filter(|path| !path.is_empty());
    let path = path.ok_or_else(|| invalid("root.path", "is missing"))?;
    Ok(RootfsPlan {
        layers: vec![bundle.join(path)],
        idmap: false,
        upper: None,
        readonly: root.readonly.unwrap_or(false),
        whole: true,
        hidden: Vec::new(),
    })
}

fn mounts_of(config: &Config, bundle: &Path) -> Result<Vec<BundleMount>> {
    let list = config.mounts.as_deref().unwrap_or_default();
    let number = |(number, mount)| mounts::mount(mount, &format!("mounts[{number}]"), bundle);
    list.iter().enumerate().map(number).collect()
}

fn bundle_plan(config: &Config, linux: &Linux, mounts: Vec<BundleMount>) -> Result<BundlePlan> {
    let policy = linux.resources.as_ref().and_then(|resources| resources.devices.as_deref());
    let propagation = linux.rootfs_propagation.as_deref().filter(|name| !name.is_empty());
    let unknown = |name: &str| invalid("linux.rootfsPropagation", format!("{name:?} is no propagation"));
    Ok(BundlePlan {
        uid_mappings: linux.uid_mappings.clone().unwrap_or_default(),
        gid_mappings: linux.gid_mappings.clone().unwrap_or_default(),
        devices: nodes(linux.devices.as_deref().unwrap_or_default(), &mounts)?,
        device_policy: match policy {
            Some(list) => resources::devices(list, "linux.resources.devices")?,
            None => BundleDevices::default(),
        },
        propagation: propagation
            .map(|name| mounts::propagation(name).ok_or_else(|| unknown(name)))
            .transpose()?,
        hooks: hooks(config.hooks.clone().unwrap_or_default())?,
        annotations: config.annotations.clone().unwrap_or_default(),
        mounts,
        time: time(linux)?,
        rdt: None,
        interfaces: interfaces(linux)?,
        mount_label: None,
        mount_namespace: MountNamespace::Private,
        entering: Entering::Pivot,
        keyring: Keyring::New,
    })
}

/// Interfaces of the host by the names that they will have.
fn interfaces(linux: &Linux) -> Result<Vec<(String, String)>> {
    let mut all: Vec<(String, String)> = Vec::new();
    for (name, device) in linux.net_devices.iter().flatten() {
        let at = format!("linux.netDevices.{name}");
        let new = device.name.clone().filter(|new| !new.is_empty()).unwrap_or_else(|| name.clone());
        // The kernel puts a number in the place of `%d`.
        let stem = new.strip_suffix("%d").unwrap_or(&new);
        for name in [name.as_str(), stem] {
            let plain = |letter: char| letter.is_ascii_graphic() && !"/:%".contains(letter);
            if name.is_empty() || name == "." || name == ".." || new.len() > 15 || !name.chars().all(plain) {
                return Err(invalid(at, format!("{new:?} is no name of an interface")));
            }
        }
        if stem == new && all.iter().any(|(_, known)| *known == new) {
            return Err(invalid(at, format!("there is another one that becomes {new:?}")));
        }
        all.push((name.clone(), new));
    }
    Ok(all)
}

/// The group is named, and stays, or is the container's own.
fn rdt(linux: &Linux, id: &str) -> Result<Option<RdtPlan>> {
    const AT: &str = "linux.intelRdt";
    let Some(asked) = &linux.intel_rdt else { return Ok(None) };
    let named = asked.clos_id.as_deref().filter(|name| !name.is_empty());
    let group = match named {
        // The group of whoever is in no other.
        Some("/") => "",
        named => named.unwrap_or(id),
    };
    if group == "." || group == ".." || group.contains(['/', '\n', '\0']) {
        return Err(invalid(format!("{AT}.closID"), format!("{group:?} is no name of a group")));
    }
    // The first two are what version 1.3 has put the third one in the place of: the kernel counts everything or nothing.
    let monitoring = [asked.enable_cmt, asked.enable_mbm, asked.enable_monitoring].contains(&Some(true));
    let lines =
        [&asked.l3_cache_schema, &asked.mem_bw_schema].into_iter().flatten().flat_map(|text| text.lines());
    let lines = lines.chain(asked.schemata.iter().flatten().map(String::as_str));
    let schemata: Vec<String> = lines.filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if let Some(line) = schemata.iter().find(|line| line.contains('\n') || !line.contains(':')) {
        return Err(invalid(AT, format!("{line:?} is no line of a schema")));
    }
    let monitor = monitoring.then(|| id.to_owned());
    Ok(Some(RdtPlan { group: group.to_owned(), own: named.is_none(), schemata, monitor }))
}

/// Clocks of the container's own, which exist without being shifted, too.
fn time(linux: &Linux) -> Result<Option<TimePlan>> {
    let offsets = linux.time_offsets.iter().flatten();
    let offsets = offsets.map(|(name, offset)| {
        let clock = match name.as_str() {
            "monotonic" => Clock::Monotonic,
            "boottime" => Clock::Boottime,
            other => {
                return Err(invalid(
                    "linux.timeOffsets",
                    format!("{other:?} is no clock that can be shifted"),
                ));
            }
        };
        if offset.nanosecs >= 1_000_000_000 {
            return Err(invalid(format!("linux.timeOffsets.{name}.nanosecs"), "is a second or more"));
        }
        Ok((clock, *offset))
    });
    let offsets = offsets.collect::<Result<Vec<_>>>()?;
    let namespace = linux.namespaces.iter().flatten().find(|namespace| namespace.kind == "time");
    match namespace.map(|namespace| namespace.path.as_deref().filter(|path| !path.is_empty())) {
        None if offsets.is_empty() => Ok(None),
        None => Err(invalid("linux.timeOffsets", "there is no time namespace to shift clocks in")),
        Some(None) => Ok(Some(TimePlan::Private(offsets))),
        Some(Some(path)) if offsets.is_empty() => Ok(Some(TimePlan::Path(path.into()))),
        Some(Some(_)) => Err(invalid("linux.timeOffsets", "the clocks of an existing time namespace stand")),
    }
}

fn nodes(devices: &[Device], mounts: &[BundleMount]) -> Result<Vec<NodePlan>> {
    let own = mounts.iter().any(|mount| matches!(mount.source, BundleSource::Dev { .. }));
    let one = |(number, device): (usize, &Device)| {
        let at = format!("linux.devices[{number}]");
        if !own {
            return Err(unsupported(at, "a device without a tmpfs at /dev"));
        }
        let kind = match device.kind.as_str() {
            "c" | "u" => Some(DeviceKind::Char),
            "b" => Some(DeviceKind::Block),
            "p" => None,
            other => return Err(invalid(format!("{at}.type"), format!("{other:?} is no kind of device"))),
        };
        if !device.path.starts_with("/dev/") {
            return Err(unsupported(
                format!("{at}.path"),
                format!("{:?}, which is not below /dev,", device.path),
            ));
        }
        let needed = |name: &str, value: Option<u32>| match value {
            None if kind.is_some() => Err(invalid(format!("{at}.{name}"), "is missing")),
            value => Ok(value.unwrap_or(0)),
        };
        Ok(NodePlan {
            path: device.path.clone(),
            kind,
            major: needed("major", device.major)?,
            minor: needed("minor", device.minor)?,
            mode: device.file_mode.unwrap_or(0o666) & 0o7777,
            uid: device.uid.unwrap_or(0),
            gid: device.gid.unwrap_or(0),
        })
    };
    devices.iter().enumerate().map(one).collect()
}

fn hooks(hooks: Hooks) -> Result<HooksPlan> {
    let list = |name: &str, list: Option<Vec<Hook>>| {
        let list = list.unwrap_or_default();
        for (number, hook) in list.iter().enumerate() {
            let at = format!("hooks.{name}[{number}]");
            if !hook.path.starts_with('/') {
                return Err(invalid(
                    format!("{at}.path"),
                    format!("{:?} is not an absolute path", hook.path),
                ));
            }
            if hook.timeout == Some(0) {
                return Err(invalid(format!("{at}.timeout"), "must be greater than zero"));
            }
        }
        Ok(list)
    };
    let mut create_runtime = list("prestart", hooks.prestart)?;
    create_runtime.extend(list("createRuntime", hooks.create_runtime)?);
    Ok(HooksPlan {
        create_runtime,
        create_container: list("createContainer", hooks.create_container)?,
        start_container: list("startContainer", hooks.start_container)?,
        poststart: list("poststart", hooks.poststart)?,
        poststop: list("poststop", hooks.poststop)?,
    })
}

fn namespaces(linux: &Linux, bundle: &BundlePlan) -> Result<NamespacesPlan> {
    let mut all = NamespacesPlan {
        user: UserNamespace::Host,
        pid: Namespace::Host,
        network: Namespace::Host,
        ipc: Namespace::Host,
        uts: Namespace::Host,
        cgroup: Namespace::Host,
    };
    let mut seen: Vec<&str> = Vec::new();
    for (number, namespace) in linux.namespaces.iter().flatten().enumerate() {
        let at = format!("linux.namespaces[{number}]");
        if seen.contains(&namespace.kind.as_str()) {
            return Err(invalid(at, format!("{:?} is there twice", namespace.kind)));
        }
        seen.push(&namespace.kind);
        let path = namespace.path.as_deref().filter(|path| !path.is_empty());
        if path.is_some_and(|path| !path.starts_with('/')) {
            return Err(invalid(format!("{at}.path"), "is not absolute"));
        }
        let own = path.map_or(Namespace::Private, |path| Namespace::Path(path.into()));
        match namespace.kind.as_str() {
            "pid" => all.pid = own,
            "network" => all.network = own,
            "ipc" => all.ipc = own,
            "uts" => all.uts = own,
            "cgroup" => all.cgroup = own,
            "user" => all.user = user(path, bundle)?,
            // They are apart: other containers have no choice.
            "mount" | "time" => {}
            other => return Err(invalid(format!("{at}.type"), format!("{other:?} is no kind of namespace"))),
        }
    }
    if all.network == Namespace::Host && !bundle.interfaces.is_empty() {
        return Err(invalid("linux.netDevices", "the container's network is the host's"));
    }
    let mapped = !(bundle.uid_mappings.is_empty() && bundle.gid_mappings.is_empty());
    if mapped && !seen.contains(&"user") {
        return Err(invalid("linux.uidMappings", "there is no user namespace to map ids in"));
    }
    Ok(all)
}

/// Without one of its own a container has no mounts of its own either: they would be the host's, and stay there.
fn mount_namespace(config: &Config, linux: &Linux) -> Result<MountNamespace> {
    let asked = linux.namespaces.iter().flatten().find(|namespace| namespace.kind == "mount");
    let (found, whose) =
        match asked.map(|namespace| namespace.path.as_deref().filter(|path| !path.is_empty())) {
            Some(None) => return Ok(MountNamespace::Private),
            Some(Some(path)) => (MountNamespace::Path(path.into()), "another's"),
            None => (MountNamespace::Host, "the host's"),
        };
    let some = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
    for (field, asked) in [
        ("mounts", config.mounts.as_ref().is_some_and(|list| !list.is_empty())),
        ("root.readonly", config.root.as_ref().is_some_and(|root| root.readonly == Some(true))),
        ("linux.maskedPaths", some(&linux.masked_paths)),
        ("linux.readonlyPaths", some(&linux.readonly_paths)),
        ("linux.rootfsPropagation", linux.rootfs_propagation.as_ref().is_some_and(|name| !name.is_empty())),
    ] {
        if asked {
            let problem = format!("would be {whose}: the container has no mount namespace of its own");
            return Err(invalid(field, problem));
        }
    }
    Ok(found)
}

fn user(path: Option<&str>, bundle: &BundlePlan) -> Result<UserNamespace> {
    let root = |mappings: &[IdMapping], field: &str| {
        let of_root = mappings.iter().find(|mapping| mapping.inside == 0 && mapping.size > 0);
        let count = mappings.iter().map(|mapping| u64::from(mapping.inside) + u64::from(mapping.size)).max();
        of_root
            .map(|mapping| (mapping.outside, count.unwrap_or(0).min(u64::from(u32::MAX)) as u32))
            .ok_or_else(|| invalid(field, "does not map id 0 of the container"))
    };
    if let (Some(path), true) = (path, bundle.uid_mappings.is_empty()) {
        return Err(unsupported(
            "linux.namespaces",
            format!("the user namespace {path:?} without its linux.uidMappings"),
        ));
    }
    let (first, count) = root(&bundle.uid_mappings, "linux.uidMappings")?;
    root(&bundle.gid_mappings, "linux.gidMappings")?;
    Ok(match path {
        Some(path) => UserNamespace::Path { path: path.into(), first, count },
        None => UserNamespace::Private { first, count },
    })
}

/// Absolute paths begin at the root of the hierarchies, and so do others here.
fn cgroup_path(linux: &Linux, id: &str) -> Result<String> {
    let asked = linux.cgroups_path.as_deref().unwrap_or_default();
    let parts: Vec<&str> = asked.split('/').filter(|part| !part.is_empty()).collect();
    if parts.is_empty() {
        return Ok(format!("{GROUPS}/{id}"));
    }
    if parts.iter().any(|part| matches!(*part, "." | "..")) || asked.contains('\0') {
        return Err(invalid("linux.cgroupsPath", format!("{asked:?} is not plain")));
    }
    Ok(parts.join("/"))
}

fn limits(linux: &Linux) -> Result<Resources> {
    match &linux.resources {
        Some(document) => resources::resources(document, "linux.resources"),
        None => Ok(Resources::default()),
    }
}

/// Those that a namespace of the container's own keeps from the host: namespaces(7).
fn sysctls(linux: &Linux, namespaces: &NamespacesPlan) -> Result<std::collections::BTreeMap<String, String>> {
    let all = linux.sysctl.clone().unwrap_or_default();
    for name in all.keys() {
        let field = || format!("linux.sysctl.{name}");
        let owner = match sysctl_owner(&name.replace('/', ".")) {
            Some(SysctlOwner::Ipc) => &namespaces.ipc,
            Some(SysctlOwner::Network) => &namespaces.network,
            Some(SysctlOwner::Uts) => &namespaces.uts,
            None => return Err(invalid(field(), "belongs to no namespace: it would be the host's")),
        };
        if *owner == Namespace::Host {
            return Err(invalid(field(), "belongs to a namespace that is the host's here"));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{Error, document::parse, template};
    use super::*;

    fn with(change: impl FnOnce(&mut Value)) -> Result<ContainerPlan> {
        let mut value = serde_json::to_value(template()).unwrap();
        change(&mut value);
        plan(&parse(value.to_string().as_bytes(), "config.json")?, "box", Path::new("/bundle"))
    }

    #[test]
    fn the_template_is_a_plan() {
        let plan = with(|_| {}).unwrap();
        assert_eq!(plan.rootfs.layers, [Path::new("/bundle/rootfs")]);
        assert_eq!(plan.cgroup.path, "insula-runtime/box");
        assert_eq!(plan.namespaces.network, Namespace::Private);
        assert_eq!(plan.namespaces.user, UserNamespace::Host);
        let bundle = plan.bundle.unwrap();
        assert!(matches!(bundle.mounts[1].source, BundleSource::Dev { .. }));
        assert_eq!(bundle.device_policy, BundleDevices::Only(Vec::new()));
    }

    #[test]
    fn what_is_not_done_is_refused_by_its_name() {
        let error = with(|document| document["vm"] = json!({"kernel": {"path": "/x"}})).unwrap_err();
        assert!(
            matches!(error, Error::Unsupported { .. }) && error.to_string().starts_with("vm: "),
            "{error}"
        );
    }

    #[test]
    fn without_a_mount_namespace_nothing_is_mounted() {
        let plan = |more: Value| {
            with(|document| {
                document["linux"] = json!({"namespaces": [{"type": "uts"}]});
                document["mounts"] = json!([]);
                document["root"]["readonly"] = json!(false);
                for (name, value) in more.as_object().unwrap() {
                    document[name] = value.clone();
                }
            })
        };
        assert_eq!(plan(json!({})).unwrap().bundle.unwrap().mount_namespace, MountNamespace::Host);
        let refused = |more: Value| plan(more).unwrap_err().to_string();
        let told = "would be the host's: the container has no mount namespace of its own";
        assert_eq!(
            refused(json!({"mounts": [{"destination": "/proc", "type": "proc"}]})),
            format!("mounts: {told}")
        );
        let there =
            json!({"linux": {"namespaces": [{"type": "mount", "path": "/proc/7/ns/mnt"}, {"type": "uts"}]}});
        let found = plan(there).unwrap().bundle.unwrap().mount_namespace;
        assert_eq!(found, MountNamespace::Path("/proc/7/ns/mnt".into()));
        let masked = json!({"linux": {"namespaces": [{"type": "uts"}], "maskedPaths": ["/proc/kcore"]}});
        assert_eq!(refused(masked), format!("linux.maskedPaths: {told}"));
        let readonly = json!({"root": {"path": "rootfs", "readonly": true}});
        assert_eq!(refused(readonly), format!("root.readonly: {told}"));
    }

    #[test]
    fn shares_are_of_a_group_that_is_named_or_the_containers_own() {
        let rdt = |asked: Value| with(|document| document["linux"]["intelRdt"] = asked);
        let rdt = |asked: Value| rdt(asked).unwrap().bundle.unwrap().rdt.unwrap();
        let found = rdt(json!({"schemata": ["L2:0=f"], "enableMBM": true}));
        assert_eq!((found.group.as_str(), found.own, found.monitor.as_deref()), ("box", true, Some("box")));
        let found = rdt(json!({"closID": "gold", "enableMonitoring": false}));
        assert_eq!((found.group.as_str(), found.own, found.monitor), ("gold", false, None));
        let found = rdt(json!({"closID": "/", "enableMonitoring": true}));
        assert_eq!((found.group.as_str(), found.own, found.monitor.as_deref()), ("", false, Some("box")));
        assert!(with(|document| document["linux"]["intelRdt"] = json!({"closID": "a/b"})).is_err());
    }

    #[test]
    fn labels_go_to_file_systems_that_take_them() {
        let context = "system_u:object_r:container_file_t:s0:c1,c2";
        let plan = with(|document| {
            document["linux"]["mountLabel"] = json!(context);
            document["process"]["selinuxLabel"] = json!("system_u:system_r:container_t:s0");
        })
        .unwrap();
        let bundle = plan.bundle.unwrap();
        let labelled = bundle.mounts.iter().filter(|mount| match &mount.source {
            BundleSource::New { options, .. } | BundleSource::Dev { options } => {
                options.iter().any(|(key, value)| key == "context" && value == context)
            }
            _ => false,
        });
        let targets: Vec<&str> = labelled.map(|mount| mount.target.as_str()).collect();
        assert_eq!(targets, ["/dev", "/dev/pts", "/dev/shm"]);
        assert_eq!(plan.process.exact.unwrap().selinux.unwrap(), "system_u:system_r:container_t:s0");
        let error = with(|document| document["linux"]["mountLabel"] = json!("label")).unwrap_err();
        assert_eq!(error.to_string(), "linux.mountLabel: \"label\" is no context of SELinux");
    }

    #[test]
    fn interfaces_get_names_that_the_kernel_takes() {
        let named = |devices: Value| {
            with(|document| document["linux"]["netDevices"] = devices)
                .map(|plan| plan.bundle.unwrap().interfaces)
        };
        let is = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(name, new)| ((*name).to_owned(), (*new).to_owned())).collect()
        };
        let found = named(json!({"eth0": {}, "lan1": {"name": "net%d"}, "lan2": {"name": "net%d"}})).unwrap();
        assert_eq!(found, is(&[("eth0", "eth0"), ("lan1", "net%d"), ("lan2", "net%d")]));
        for wrong in [
            json!({"eth0": {"name": "a/b"}}),
            json!({"eth0": {"name": "sixteen-letters!"}}),
            json!({"eth0": {"name": "%d"}}),
            json!({"eth%d": {}}),
            json!({"a": {"name": "x"}, "b": {"name": "x"}}),
        ] {
            let error = named(wrong).unwrap_err().to_string();
            assert!(error.starts_with("linux.netDevices."), "{error}");
        }
        let error = with(|document| {
            document["linux"]["netDevices"] = json!({"eth0": {}});
            document["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "uts"}]);
        });
        assert_eq!(error.unwrap_err().to_string(), "linux.netDevices: the container's network is the host's");
    }

    #[test]
    fn clocks_are_shifted_in_a_namespace_of_the_containers_own() {
        let time = |namespace: Value, offsets: Value| {
            let plan = with(|document| {
                document["linux"]["namespaces"].as_array_mut().unwrap().push(namespace);
                document["linux"]["timeOffsets"] = offsets;
            });
            plan.map(|plan| plan.bundle.unwrap().time)
        };
        let shifted = json!({"monotonic": {"secs": -3, "nanosecs": 5}});
        let offset = super::super::document::TimeOffset { secs: -3, nanosecs: 5 };
        let own = json!({"type": "time"});
        let found = time(own.clone(), shifted.clone()).unwrap();
        assert_eq!(found, Some(TimePlan::Private(vec![(Clock::Monotonic, offset)])));
        assert_eq!(time(own.clone(), Value::Null).unwrap(), Some(TimePlan::Private(Vec::new())));
        let existing = json!({"type": "time", "path": "/proc/7/ns/time"});
        assert_eq!(
            time(existing.clone(), json!({})).unwrap(),
            Some(TimePlan::Path("/proc/7/ns/time".into()))
        );
        assert!(time(existing, shifted.clone()).is_err());
        assert!(time(own.clone(), json!({"realtime": {"secs": 1}})).is_err());
        assert!(time(own, json!({"monotonic": {"nanosecs": 1_000_000_000}})).is_err());
        assert!(with(|document| document["linux"]["timeOffsets"] = shifted).is_err());
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        for (change, text) in [
            (
                json!({"process": {"args": [3]}}),
                "process.args[0]: invalid type: integer `3`, expected a string",
            ),
            (json!({"ociVersion": "2.0.0"}), "ociVersion: \"2.0.0\" is not supported"),
            (json!({"process": {"args": [], "cwd": "/"}}), "process.args: names no program"),
            (json!({"process": {"args": ["x"], "cwd": "x"}}), "process.cwd: \"x\" is not an absolute path"),
            (json!({"root": {}}), "root.path: is missing"),
            (
                json!({"hooks": {"poststop": [{"path": "x"}]}}),
                "hooks.poststop[0].path: \"x\" is not an absolute path",
            ),
        ] {
            let error = with(|document| {
                for (name, value) in change.as_object().unwrap() {
                    document[name] = value.clone();
                }
            })
            .unwrap_err();
            assert!(error.to_string().starts_with(text), "{error}");
        }
    }

    #[test]
    fn kernel_parameters_of_the_host_are_refused() {
        let set = |name: &str| with(|document| document["linux"]["sysctl"] = json!({name: "1"}));
        assert!(set("net.ipv4.ip_forward").is_ok() && set("kernel.shmmax").is_ok());
        assert!(set("kernel.panic").is_err());
        let error = with(|document| {
            document["linux"]["sysctl"] = json!({"net.core.somaxconn": "1"});
            document["linux"]["namespaces"] = json!([{"type": "mount"}]);
            document["hostname"] = json!("");
        })
        .unwrap_err();
        assert!(error.to_string().contains("is the host's here"), "{error}");
    }

    #[test]
    fn ids_are_mapped_in_a_namespace_of_the_containers_own() {
        let mapping = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
        let plan = with(|document| {
            document["linux"]["uidMappings"] = mapping.clone();
            document["linux"]["gidMappings"] = mapping.clone();
            document["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "user"}, {"type": "uts"}]);
        })
        .unwrap();
        assert_eq!(plan.namespaces.user, UserNamespace::Private { first: 100_000, count: 65536 });
        assert!(with(|document| document["linux"]["uidMappings"] = mapping.clone()).is_err());
    }

    #[test]
    fn groups_stay_below_the_root_of_their_hierarchy() {
        let path = |path: &str| with(|document| document["linux"]["cgroupsPath"] = json!(path));
        assert_eq!(path("/a//b").unwrap().cgroup.path, "a/b");
        assert_eq!(path("docker/x").unwrap().cgroup.path, "docker/x");
        assert!(path("/a/../b").is_err());
    }
}
