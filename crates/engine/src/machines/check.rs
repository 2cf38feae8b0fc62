//! What a container with a kernel of its own may not ask for.

use insula_models::HostConfig;

use super::wanted;
use crate::{Error, Result, tenants};

/// A node that stands for the sockets between a machine and its host, whether the host has it or not.
pub(crate) const VSOCK: &str = "/dev/vsock";

/// Whether a container wants its machine's sockets to the host.
pub(crate) fn wants_sockets(host: &HostConfig) -> bool {
    wanted(&host.isolation) && host.devices.iter().any(|device| device.path_on_host == VSOCK)
}

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
    if wants_sockets(host) && tenants::of(&host.isolation).is_some() {
        return Err(Error::Unsupported(format!(
            "{VSOCK} is not available in a tenant's machine: its sockets are not one container's"
        )));
    }
    let others = host.devices.iter().any(|device| device.path_on_host != VSOCK);
    if others || !host.device_cgroup_rules.is_empty() {
        return Err(Error::Unsupported(
            "a container with a kernel of its own cannot have devices of the host".to_owned(),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use insula_models::DeviceMapping;

    use super::*;

    fn with(path: &str) -> HostConfig {
        let device = DeviceMapping { path_on_host: path.into(), ..DeviceMapping::default() };
        HostConfig { devices: vec![device], ..vm() }
    }

    #[test]
    fn a_machines_own_sockets_are_no_device_of_the_hosts() {
        let sockets = with(VSOCK);
        check(&sockets).unwrap();
        assert!(wants_sockets(&sockets) && !wants_sockets(&with("/dev/null")) && !wants_sockets(&vm()));
        // Of the host's kernel, with the process wall.
        assert!(!wants_sockets(&HostConfig { isolation: "process".into(), ..sockets.clone() }));
        let tenant = HostConfig { isolation: "tenant:acme".into(), ..sockets };
        assert!(check(&tenant).unwrap_err().to_string().contains("tenant"));
    }

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
            with("/dev/null"),
            HostConfig { device_cgroup_rules: vec!["c 1:3 r".into()], ..vm() },
            HostConfig { isolation: "hyperv".into(), ..HostConfig::default() },
            HostConfig { isolation: "tenant:acme".into(), privileged: true, ..HostConfig::default() },
        ] {
            assert!(matches!(check(&bad), Err(Error::Unsupported(_))), "{bad:?}");
        }
    }
}
