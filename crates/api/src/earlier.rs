//! What requests of earlier versions mean: fields that a version did not have are not heard, and
//! defaults are those of the version.

use insula_models::{ApiVersion, ContainerCreateRequest, Mount};

use crate::error::ApiError;

/// A request for a container as the newest version would write it.
pub(crate) fn container(
    version: ApiVersion,
    mut request: ContainerCreateRequest,
) -> Result<ContainerCreateRequest, ApiError> {
    let before = |minor: u16| version < ApiVersion::v1(minor);
    let host = &mut request.host_config;
    if before(25) {
        // The client removed the container itself.
        host.auto_remove = false;
    }
    if before(40) {
        host.device_requests.clear();
        if host.ipc_mode.is_empty() {
            "shareable".clone_into(&mut host.ipc_mode);
        }
    }
    if before(41) {
        host.cgroupns_mode.clear();
    }
    if before(42) {
        host.console_size = [0, 0];
    } else {
        // Gone, and ignored ever since.
        host.kernel_memory = 0;
    }
    if before(43) {
        host.annotations.clear();
    }
    for mount in &mut host.mounts {
        mount_of(version, mount);
    }
    if let Some(health) = request.healthcheck.as_mut().filter(|_| before(44)) {
        health.start_interval = 0;
    }
    let networks = &mut request.networking_config.endpoints_config;
    if before(44) && networks.len() > 1 {
        let names: Vec<&str> = networks.keys().map(String::as_str).collect();
        return Err(ApiError::invalid(format!(
            "Container cannot be created with multiple network endpoints: {}",
            names.join(", ")
        )));
    }
    for endpoint in networks.values_mut().filter(|_| before(44)) {
        endpoint.mac_address.clear();
    }
    Ok(request)
}

fn mount_of(version: ApiVersion, mount: &mut Mount) {
    let before = |minor: u16| version < ApiVersion::v1(minor);
    if let Some(bind) = &mut mount.bind_options {
        bind.non_recursive &= !before(40);
        bind.create_mountpoint &= !before(42);
        bind.read_only_non_recursive &= !before(44);
        bind.read_only_force_recursive &= !before(44);
    }
    if let Some(volume) = mount.volume_options.as_mut().filter(|_| before(45)) {
        volume.subpath.clear();
    }
    if let Some(tmpfs) = mount.tmpfs_options.as_mut().filter(|_| before(46)) {
        tmpfs.options.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use insula_models::EndpointSettings;

    #[test]
    fn what_a_version_did_not_have_is_not_heard() {
        let mut request = ContainerCreateRequest::default();
        request.host_config.auto_remove = true;
        "host".clone_into(&mut request.host_config.cgroupns_mode);
        request.host_config.kernel_memory = 7;
        let at = |minor| container(ApiVersion::v1(minor), request.clone()).unwrap().host_config;
        assert!(!at(24).auto_remove && at(25).auto_remove);
        assert_eq!((at(39).ipc_mode.as_str(), at(40).ipc_mode.as_str()), ("shareable", ""));
        assert_eq!((at(40).cgroupns_mode.as_str(), at(41).cgroupns_mode.as_str()), ("", "host"));
        assert_eq!((at(41).kernel_memory, at(42).kernel_memory), (7, 0));
    }

    #[test]
    fn one_network_was_the_limit() {
        let mut request = ContainerCreateRequest::default();
        for name in ["a", "b"] {
            let endpoints = &mut request.networking_config.endpoints_config;
            endpoints.insert(name.to_owned(), EndpointSettings::default());
        }
        let refused = container(ApiVersion::v1(43), request.clone()).unwrap_err();
        assert!(refused.to_string().ends_with("multiple network endpoints: a, b"), "{refused}");
        container(ApiVersion::v1(44), request).unwrap();
    }
}
