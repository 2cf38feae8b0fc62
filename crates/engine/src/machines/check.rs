//! What a container with a kernel of its own may not ask for.

use insula_models::HostConfig;

use super::wanted;
use crate::{Error, Result, tenants};

/// Fails for an isolation that there is not, and for what the asked one cannot do.
pub(crate) fn check(host: &HostConfig) -> Result<()> {
    if matches!(host.isolation.as_str(), "" | "default" | "process") {
        return Ok(());
    }
    if !wanted(&host.isolation) {
        return Err(Error::Unsupported(format!(
            "isolation {:?} is not available in this version: process, vm and tenant:NAME are",
            host.isolation
        )));
    }
    // With the host's, or with those of a container that is on another kernel.
    let elsewhere = |mode: &str| mode == "host" || mode.starts_with("container:");
    let shared = [
        ("network", elsewhere(&host.network_mode)),
        ("PID namespace", elsewhere(&host.pid_mode)),
        ("IPC namespace", elsewhere(&host.ipc_mode)),
        ("UTS namespace", host.uts_mode == "host"),
    ];
    if let Some((what, _)) = shared.iter().find(|(_, asked)| *asked) {
        return Err(Error::Unsupported(format!(
            "a container with a kernel of its own cannot share the {what} of the host or of another container"
        )));
    }
    if host.privileged && tenants::of(&host.isolation).is_some() {
        return Err(Error::Unsupported(
            "a privileged container is not available in a tenant's machine: the kernel is not its own"
                .to_owned(),
        ));
    }
    if !host.devices.is_empty() || !host.device_cgroup_rules.is_empty() {
        return Err(Error::Unsupported(
            "a container with a kernel of its own cannot have devices of the host".to_owned(),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm() -> HostConfig {
        HostConfig { isolation: "vm".into(), ..HostConfig::default() }
    }

    #[test]
    fn what_only_the_hosts_kernel_has_is_refused() {
        check(&vm()).unwrap();
        check(&HostConfig { network_mode: "none".into(), ..vm() }).unwrap();
        for bad in [
            HostConfig { network_mode: "host".into(), ..vm() },
            HostConfig { network_mode: "container:web".into(), ..vm() },
            HostConfig { pid_mode: "host".into(), ..vm() },
            HostConfig { ipc_mode: "host".into(), ..vm() },
            HostConfig { uts_mode: "host".into(), ..vm() },
            HostConfig { device_cgroup_rules: vec!["c 1:3 r".into()], ..vm() },
            HostConfig { isolation: "hyperv".into(), ..HostConfig::default() },
            HostConfig { isolation: "tenant:acme".into(), privileged: true, ..HostConfig::default() },
        ] {
            assert!(matches!(check(&bad), Err(Error::Unsupported(_))), "{bad:?}");
        }
    }
}
