//! A bundle behind a kernel of its own. The guest makes `/proc`, `/sys` and `/dev` by itself, files of the host
//! come to it by a server, and other containers of the pod are in the same guest: so the plan becomes one in
//! the words of ordinary containers. What only the host's own kernel could do is refused by its name.

use std::path::{Path, PathBuf};

use super::{
    BundleDevices, BundleMount, BundleSource, Content, HooksPlan, MountNamespace, Result, RootPropagation,
    invalid, unsupported,
};
use crate::plan::{
    ContainerPlan, MountPlan, MountSource, Namespace, NamespacesPlan, Propagation, UserNamespace,
};

const RDONLY: u64 = 0x1;
const NOSUID: u64 = 0x2;
const NODEV: u64 = 0x4;
const NOEXEC: u64 = 0x8;
const NOSYMFOLLOW: u64 = 0x20_0000;

/// What every container has in the guest, and where.
const OWN: [(&str, &str); 3] = [("proc", "/proc"), ("sysfs", "/sys"), ("devpts", "/dev/pts")];
/// Shared memory of a pod is a tmpfs of the host, which two servers of files would not keep the same.
const SHARED_MEMORY: &str = "/dev/shm";
const SHARED_MEMORY_SIZE: u64 = 64 << 20;
const TMPFS_OPTIONS: [&str; 4] = ["size", "mode", "uid", "gid"];

/// The plan of [`super::plan`] for a guest. `first` is the pod's first process as the guest's kernel counts: its
/// namespaces are those that others join. Without it this container is the first.
pub fn for_machine(mut plan: ContainerPlan, first: Option<i32>) -> Result<ContainerPlan> {
    let bundle = plan.bundle.take().ok_or_else(|| invalid("config.json", "is no bundle's"))?;
    if bundle.hooks != HooksPlan::default() {
        return Err(behind("hooks", "a program of the host's"));
    }
    if !bundle.devices.is_empty() {
        return Err(behind("linux.devices", "a device of the host"));
    }
    if plan.process.exact.as_ref().is_some_and(|exact| exact.personality.is_some()) {
        return Err(behind("linux.personality", "another look of the kernel"));
    }
    if plan.process.exact.as_ref().is_some_and(|exact| exact.apparmor.is_some()) {
        return Err(behind("process.apparmorProfile", "a profile of the host's kernel"));
    }
    if plan.process.exact.as_ref().is_some_and(|exact| exact.memory_policy.is_some()) {
        return Err(behind("linux.memoryPolicy", "nodes of the host's memory"));
    }
    if plan.process.exact.as_ref().is_some_and(|exact| exact.selinux.is_some()) {
        return Err(behind("process.selinuxLabel", "a context of the host's kernel"));
    }
    if bundle.mount_label.is_some() {
        return Err(behind("linux.mountLabel", "a context of the host's kernel"));
    }
    if bundle.rdt.is_some() {
        return Err(behind("linux.intelRdt", "a share of the host's caches"));
    }
    if !bundle.interfaces.is_empty() {
        return Err(behind("linux.netDevices", "an interface of the host"));
    }
    if bundle.mount_namespace != MountNamespace::Private {
        return Err(behind("linux.namespaces", "a container without a mount namespace of its own"));
    }
    if bundle.time.is_some() {
        return Err(behind("linux.namespaces", "a time namespace"));
    }
    if let Some((RootPropagation::Shared, _)) = bundle.propagation {
        return Err(behind("linux.rootfsPropagation", "\"shared\""));
    }
    plan.device_rules = match bundle.device_policy {
        BundleDevices::Only(rules) => rules,
        BundleDevices::All => {
            return Err(behind(
                "linux.resources.devices",
                "all devices, as a privileged container has them,",
            ));
        }
        BundleDevices::Listed(_) => {
            return Err(behind("linux.resources.devices", "denying a part of the allowed devices"));
        }
    };
    if bundle.uid_mappings.len() > 1 || bundle.uid_mappings != bundle.gid_mappings {
        return Err(behind("linux.uidMappings", "more than one range of ids"));
    }
    plan.namespaces = namespaces(&plan.namespaces, first)?;
    let mounts = bundle.mounts.iter().enumerate();
    let mounts = mounts.map(|(number, mount)| one(mount, &format!("mounts[{number}]")));
    plan.mounts = mounts.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
    Ok(plan)
}

/// Where the host's part of the container's network is: a namespace that somebody has made for it.
#[must_use]
pub fn network(plan: &ContainerPlan) -> Option<&Path> {
    match &plan.namespaces.network {
        Namespace::Path(path) => Some(path),
        _ => None,
    }
}

fn behind(field: impl Into<String>, what: &str) -> super::Error {
    unsupported(field, format!("{what} behind the VM wall"))
}

fn namespaces(all: &NamespacesPlan, first: Option<i32>) -> Result<NamespacesPlan> {
    let one = |name: &str, namespace: &Namespace| match (namespace, first) {
        (Namespace::Private, _) => Ok(Namespace::Private),
        (Namespace::Host, _) => {
            Err(behind("linux.namespaces", &format!("the host's namespace of the kind {name:?}")))
        }
        (Namespace::Path(_), Some(pid)) => {
            let name = if name == "network" { "net" } else { name };
            Ok(Namespace::Path(PathBuf::from(format!("/proc/{pid}/ns/{name}"))))
        }
        // The machine's cards are in it, and the container has those.
        (Namespace::Path(_), None) if name == "network" => Ok(Namespace::Private),
        (Namespace::Path(path), None) => Err(behind(
            "linux.namespaces",
            &format!("the namespace {}, which is the host's,", path.display()),
        )),
    };
    if let UserNamespace::Path { .. } = all.user {
        return Err(behind("linux.namespaces", "an existing user namespace"));
    }
    Ok(NamespacesPlan {
        user: all.user.clone(),
        pid: one("pid", &all.pid)?,
        network: one("network", &all.network)?,
        ipc: one("ipc", &all.ipc)?,
        uts: one("uts", &all.uts)?,
        cgroup: match &all.cgroup {
            // The guest's, which has nothing but the pod's.
            Namespace::Host => Namespace::Private,
            own => one("cgroup", own)?,
        },
    })
}

/// None where the guest has it by itself.
fn one(mount: &BundleMount, at: &str) -> Result<Option<MountPlan>> {
    // A guest sees one mount where the host has several.
    let set = mount.attributes.set | mount.recursive.set;
    let has = |bit: u64| set & bit != 0;
    if has(NOSYMFOLLOW) {
        return Err(behind(format!("{at}.options"), "\"nosymfollow\""));
    }
    let target = normal(&mount.target);
    let source = match &mount.source {
        BundleSource::Dev { .. } => return Ok(None),
        BundleSource::Remount { .. } => return Err(behind(format!("{at}.options"), "\"remount\"")),
        BundleSource::New { content: Content::Copy, .. } => {
            return Err(behind(format!("{at}.options"), "\"tmpcopyup\""));
        }
        BundleSource::New { kind, .. } if kind == "mqueue" => MountSource::Mqueue,
        BundleSource::New { kind, .. } if OWN.contains(&(kind.as_str(), target.as_str())) => return Ok(None),
        BundleSource::New { kind, options, .. } if kind == "tmpfs" => tmpfs(options, at)?,
        BundleSource::New { kind, .. } => {
            return Err(behind(format!("{at}.type"), &format!("a file system of the type {kind:?}")));
        }
        BundleSource::Cgroup => MountSource::Cgroup,
        BundleSource::Bind { .. } if target == SHARED_MEMORY => {
            MountSource::Tmpfs { size: Some(SHARED_MEMORY_SIZE), mode: Some(0o1777), uid: None, gid: None }
        }
        BundleSource::Bind { path, recursive, idmap } => {
            if idmap.is_some() {
                return Err(behind(format!("{at}.options"), "mapping ids"));
            }
            // What the host mounts later does not come to a guest, nor back.
            if let Some((RootPropagation::Slave | RootPropagation::Shared, _)) = mount.propagation {
                return Err(behind(format!("{at}.options"), "propagation of mounts"));
            }
            MountSource::Bind {
                path: path.clone(),
                recursive: *recursive,
                propagation: Propagation::Private,
                idmap: false,
            }
        }
    };
    Ok(Some(MountPlan {
        target,
        source,
        readonly: has(RDONLY),
        nosuid: has(NOSUID),
        nodev: has(NODEV),
        noexec: has(NOEXEC),
    }))
}

fn normal(target: &str) -> String {
    let parts: Vec<&str> = target.split('/').filter(|part| !part.is_empty()).collect();
    format!("/{}", parts.join("/"))
}

fn tmpfs(options: &[(String, String)], at: &str) -> Result<MountSource> {
    let value =
        |name: &str| options.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    if let Some((key, _)) = options.iter().find(|(key, _)| !TMPFS_OPTIONS.contains(&key.as_str())) {
        return Err(behind(format!("{at}.options"), &format!("{key:?} of a tmpfs")));
    }
    let wrong =
        |name: &str, text: &str| invalid(format!("{at}.options"), format!("{name}={text} is no number"));
    let number = |name: &str, radix| {
        let parse = |text| u32::from_str_radix(text, radix).map_err(|_| wrong(name, text));
        value(name).map(parse).transpose()
    };
    Ok(MountSource::Tmpfs {
        size: value("size").map(|text| bytes(text).ok_or_else(|| wrong("size", text))).transpose()?,
        mode: number("mode", 8)?,
        uid: number("uid", 10)?,
        gid: number("gid", 10)?,
    })
}

/// tmpfs(5): a number with `k`, `m` or `g`.
fn bytes(text: &str) -> Option<u64> {
    let (digits, shift) = match text.to_ascii_lowercase().bytes().last()? {
        b'k' => (&text[..text.len() - 1], 10),
        b'm' => (&text[..text.len() - 1], 20),
        b'g' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::{Error, document::parse, plan, template};
    use super::*;

    fn with(first: Option<i32>, change: impl FnOnce(&mut Value)) -> Result<ContainerPlan> {
        let mut value = serde_json::to_value(template()).unwrap();
        change(&mut value);
        let config = parse(value.to_string().as_bytes(), "config.json")?;
        for_machine(plan(&config, "box", Path::new("/bundle"))?, first)
    }

    #[test]
    fn the_template_is_an_ordinary_container() {
        let plan = with(None, |_| {}).unwrap();
        assert!(plan.bundle.is_none() && plan.process.exact.is_some());
        assert_eq!(plan.namespaces.network, Namespace::Private);
        let targets: Vec<_> = plan.mounts.iter().map(|mount| mount.target.as_str()).collect();
        assert!(
            !targets.iter().any(|target| ["/proc", "/sys", "/dev", "/dev/pts"].contains(target)),
            "{targets:?}"
        );
        assert!(targets.contains(&"/dev/shm") && targets.contains(&"/dev/mqueue"), "{targets:?}");
    }

    #[test]
    fn others_join_the_first_of_the_pod() {
        let namespaces = json!([
            {"type": "mount"},
            {"type": "pid"},
            {"type": "network", "path": "/run/netns/pod"},
            {"type": "ipc", "path": "/proc/77/ns/ipc"},
            {"type": "uts", "path": "/proc/77/ns/uts"},
        ]);
        let change = |document: &mut Value| {
            document["linux"]["namespaces"] = namespaces.clone();
            document["hostname"] = json!("");
        };
        let plan = with(Some(5), change).unwrap();
        assert_eq!(plan.namespaces.network, Namespace::Path("/proc/5/ns/net".into()));
        assert_eq!(plan.namespaces.ipc, Namespace::Path("/proc/5/ns/ipc".into()));
        assert_eq!(plan.namespaces.pid, Namespace::Private);
        let refused = with(None, change).unwrap_err();
        assert!(refused.to_string().contains("/proc/77/ns/ipc"), "{refused}");
    }

    #[test]
    fn the_first_has_the_network_that_was_made_for_the_pod() {
        let plan = with(None, |document| {
            document["linux"]["namespaces"] = json!([
                {"type": "mount"}, {"type": "pid"}, {"type": "ipc"}, {"type": "uts"},
                {"type": "network", "path": "/run/netns/pod"},
            ]);
        })
        .unwrap();
        assert_eq!(plan.namespaces.network, Namespace::Private);
    }

    #[test]
    fn what_only_the_host_can_do_is_refused_by_its_name() {
        let mount = |mount: Value| json!([mount]);
        for (path, value) in [
            ("/hooks", json!({"prestart": [{"path": "/bin/true"}]})),
            ("/linux/rootfsPropagation", json!("shared")),
            ("/linux/personality", json!({"domain": "LINUX32"})),
            ("/linux/resources", json!({"devices": [{"allow": true, "access": "rwm"}]})),
            ("/linux/namespaces", json!([{"type": "mount"}, {"type": "uts"}])),
            ("/mounts", mount(json!({"destination": "/x", "type": "tmpfs", "options": ["nosymfollow"]}))),
            ("/mounts", mount(json!({"destination": "/x", "type": "ext4", "source": "/dev/sda"}))),
            ("/mounts", mount(json!({"destination": "/x", "source": "/y", "options": ["rbind", "rslave"]}))),
            ("/mounts", mount(json!({"destination": "/x", "type": "tmpfs", "options": ["huge=always"]}))),
        ] {
            let error = with(None, |document| {
                let (parent, name) = path.rsplit_once('/').unwrap();
                document.pointer_mut(parent).unwrap()[name] = value;
            })
            .unwrap_err();
            assert!(matches!(error, Error::Unsupported { .. }), "{path}: {error}");
            assert!(error.to_string().contains("behind the VM wall"), "{error}");
        }
    }

    #[test]
    fn mounts_keep_their_options() {
        let plan = with(None, |document| {
            document["mounts"] = json!([
                {"destination": "/run//x", "type": "tmpfs", "options": ["nosuid", "size=65536k", "mode=755"]},
                {"destination": "/etc/hosts", "source": "/h", "options": ["rbind", "rprivate", "rro"]},
                {"destination": "/dev/shm", "source": "/shm", "options": ["rbind", "rw"]},
            ]);
        })
        .unwrap();
        let tmpfs = MountSource::Tmpfs { size: Some(64 << 20), mode: Some(0o755), uid: None, gid: None };
        assert_eq!((plan.mounts[0].target.as_str(), &plan.mounts[0].source), ("/run/x", &tmpfs));
        assert!(plan.mounts[0].nosuid && !plan.mounts[0].readonly);
        assert!(plan.mounts[1].readonly);
        assert!(matches!(plan.mounts[2].source, MountSource::Tmpfs { .. }));
    }
}
