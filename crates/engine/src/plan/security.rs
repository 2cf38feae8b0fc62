//! Options of security, and kernel parameters that a container may set.

use std::sync::LazyLock;

use insula_models::{HostConfig, Labels};
use insula_spec::plan::{Namespace, NamespacesPlan, SeccompPlan, UserNamespace};
use insula_spec::sysctl::{SysctlOwner, sysctl_owner};

use crate::{Error, Result};

/// `--security-opt`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Options {
    pub(crate) seccomp: SeccompPlan,
    pub(crate) no_new_privileges: bool,
    /// `systempaths=unconfined`: nothing is masked.
    pub(crate) unmasked: bool,
}

pub(crate) fn options(texts: &[String]) -> Result<Options> {
    let mut options = Options { seccomp: SeccompPlan::Default, no_new_privileges: false, unmasked: false };
    for text in texts {
        let wrong = || Error::InvalidArgument(format!("invalid --security-opt: {text:?}"));
        let (name, value) = match text.split_once(['=', ':']) {
            Some((name, value)) => (name, value),
            None => (text.as_str(), ""),
        };
        match (name, value) {
            ("no-new-privileges", "" | "true") => options.no_new_privileges = true,
            ("no-new-privileges", "false") => options.no_new_privileges = false,
            ("seccomp", "unconfined") => options.seccomp = SeccompPlan::Unconfined,
            ("seccomp", "builtin" | "default") => options.seccomp = SeccompPlan::Default,
            ("seccomp", profile) => options.seccomp = profile_of(profile)?,
            ("apparmor", "unconfined") | ("label", "disable") => {}
            ("apparmor", _) => {
                return Err(Error::Unsupported(format!(
                    "{text:?}: AppArmor profiles are not available in this version: apparmor=unconfined is"
                )));
            }
            ("label", _) => {
                return Err(Error::Unsupported(format!(
                    "{text:?}: SELinux labels are not available in this version: label=disable is"
                )));
            }
            ("systempaths", "unconfined") => options.unmasked = true,
            _ => return Err(wrong()),
        }
    }
    Ok(options)
}

/// A profile travels as its text, which the client has read from a file.
fn profile_of(text: &str) -> Result<SeccompPlan> {
    let profile: serde_json::Value = serde_json::from_str(text)
        .map_err(|error| Error::InvalidArgument(format!("decoding seccomp profile failed: {error}")))?;
    if !profile.is_object() {
        return Err(Error::InvalidArgument(
            "decoding seccomp profile failed: an object is expected".to_owned(),
        ));
    }
    Ok(SeccompPlan::Profile(profile))
}

/// Kernel parameters belong to namespaces: only those of the container's own may be set.
pub(crate) fn check_sysctls(host: &HostConfig) -> Result<()> {
    let shared_network = host.network_mode == "host" || host.network_mode.starts_with("container:");
    for name in host.sysctls.keys() {
        let refused = |why: &str| Err(Error::InvalidArgument(format!("sysctl '{name}' is not allowed{why}")));
        if name.contains('/') || name.contains("..") {
            return refused(": dots between its parts are expected");
        }
        match sysctl_owner(name) {
            Some(SysctlOwner::Network) if shared_network => return refused(" in a shared network namespace"),
            Some(SysctlOwner::Ipc) if host.ipc_mode == "host" => {
                return refused(" in the host ipc namespace");
            }
            Some(SysctlOwner::Network | SysctlOwner::Ipc) => {}
            // The names of a host and its domain have options of their own.
            Some(SysctlOwner::Uts) | None => return refused(", as it does not belong to a namespace"),
        }
    }
    Ok(())
}

/// Those asked for and, in a network of its own, Docker's defaults since 20.10: any user of the container may listen
/// on any port and send pings, as there is nobody else whose they could be.
pub(crate) fn sysctls(asked: &Labels, namespaces: &NamespacesPlan) -> Labels {
    let mut all = asked.clone();
    if namespaces.network == Namespace::Private {
        let groups = match namespaces.user {
            UserNamespace::Private { count, .. } | UserNamespace::Path { count, .. } => count,
            UserNamespace::Host => *OWN_GROUPS,
        };
        // The kernel takes groups that are mapped, and none beyond a signed number.
        let last = groups.saturating_sub(1).min(i32::MAX.unsigned_abs());
        all.entry("net.ipv4.ip_unprivileged_port_start".to_owned()).or_insert_with(|| "0".to_owned());
        all.entry("net.ipv4.ping_group_range".to_owned()).or_insert_with(|| format!("0 {last}"));
    }
    all
}

/// How many groups there are from 0 on in the engine's own user namespace, user_namespaces(7).
static OWN_GROUPS: LazyLock<u32> = LazyLock::new(|| {
    let map = std::fs::read_to_string("/proc/self/gid_map").unwrap_or_default();
    groups_from_0(&map)
});

fn groups_from_0(map: &str) -> u32 {
    let lines = map.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let first = lines.into_iter().find(|line| line.first() == Some(&"0"));
    first.and_then(|line| line.get(2)?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Result<Options> {
        options(&[text.to_owned()])
    }

    #[test]
    fn options_have_two_spellings() {
        for text in ["no-new-privileges", "no-new-privileges=true", "no-new-privileges:true"] {
            assert!(one(text).unwrap().no_new_privileges, "{text}");
        }
        assert_eq!(one("seccomp=unconfined").unwrap().seccomp, SeccompPlan::Unconfined);
        let profile = one(r#"seccomp={"defaultAction":"SCMP_ACT_ALLOW"}"#).unwrap();
        assert!(matches!(profile.seccomp, SeccompPlan::Profile(_)));
        assert!(one("systempaths=unconfined").unwrap().unmasked);
        for bad in ["seccomp=/a/file", "seccomp=[]", "apparmor=mine", "label=type:x", "what", "seccomp"] {
            assert!(one(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn parameters_need_their_namespace() {
        let host = |name: &str| HostConfig {
            sysctls: Labels::from([(name.to_owned(), "1".to_owned())]),
            ..HostConfig::default()
        };
        check_sysctls(&host("net.core.somaxconn")).unwrap();
        check_sysctls(&host("kernel.shmmax")).unwrap();
        for bad in ["kernel.panic", "vm.swappiness", "net/../kernel", "net.ipv4/x"] {
            assert!(check_sysctls(&host(bad)).is_err(), "{bad}");
        }
        let shared = HostConfig { network_mode: "host".into(), ..host("net.core.somaxconn") };
        assert!(check_sysctls(&shared).unwrap_err().to_string().contains("shared network"));
    }

    #[test]
    fn a_network_of_its_own_has_dockers_defaults() {
        let namespaces = |user, network| NamespacesPlan {
            user,
            network,
            pid: Namespace::Private,
            ipc: Namespace::Private,
            uts: Namespace::Private,
            cgroup: Namespace::Private,
        };
        let own = namespaces(UserNamespace::Private { first: 1000, count: 65536 }, Namespace::Private);
        let (port, ping) = ("net.ipv4.ip_unprivileged_port_start", "net.ipv4.ping_group_range");
        let found = sysctls(&Labels::new(), &own);
        assert_eq!((&*found[port], &*found[ping]), ("0", "0 65535"));
        let asked = Labels::from([(port.to_owned(), "1024".to_owned())]);
        assert_eq!(sysctls(&asked, &own)[port], "1024");
        let shared = namespaces(UserNamespace::Host, Namespace::Path("/proc/1/ns/net".into()));
        assert!(sysctls(&Labels::new(), &shared).is_empty());
        assert_eq!(groups_from_0("         0          0 4294967295\n"), u32::MAX);
        assert_eq!(groups_from_0("1000 5 1\n0 100000 65536\n"), 65536);
        assert_eq!(groups_from_0(""), 0);
    }
}
