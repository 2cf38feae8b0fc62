//! Rename, and update: limits of a container that runs or will.

use insula_models::{ContainerUpdateRequest, HostConfig, Warnings};
use insula_proto::{Call, Outcome, Update};
use insula_store::Collection;

use super::check::{self, Limits};
use super::start::not_running;
use super::{create, names};
use crate::plan::resources;
use crate::{Engine, Error, Result};

impl Engine {
    pub async fn rename_container(&self, reference: &str, name: &str) -> Result<()> {
        let container = self.find(reference)?;
        let _turn = container.turn.lock().await;
        let name = names::check(name)?.to_owned();
        let row = container.row();
        if row.name == name {
            return Err(Error::InvalidArgument(format!(
                "Renaming a container with the same name as its current name: {name}"
            )));
        }
        let mut renamed = (*row).clone();
        renamed.name.clone_from(&name);
        let records = self.store().state().records(Collection::Containers);
        records.replace(&renamed.record()?).map_err(|error| create::rename_taken(error, &name))?;
        container.amend(|row| row.name.clone_from(&name));
        self.0.containers.rename(&container.id, &name);
        self.networks().rename(&container.id, &name)?;
        let old = format!("/{}", row.name);
        self.publish(&container.row(), "rename", &[("oldName", &old)]);
        Ok(())
    }

    pub async fn update_container(
        &self,
        reference: &str,
        request: ContainerUpdateRequest,
    ) -> Result<Warnings> {
        let container = self.find(reference)?;
        let _turn = container.turn.lock().await;
        let row = container.row();
        check_unsupported(&request)?;
        let mut host = row.host.clone();
        apply(&mut host, &request);
        let mut warnings = Vec::new();
        check::check_memory(&Limits::from(&host), &mut warnings)?;
        check::check_cpu(&Limits::from(&host))?;
        check::check_restart(&host.restart_policy, host.auto_remove)?;
        check::check_health_action(&row.config, &host)?;
        check::check_rate(&host, &mut warnings)?;
        self.check_tenant_again(&row, &host)?;
        let resources = resources::of_update(&request)?;
        crate::rootless::check_limits(&resources)?;
        if row.running() && resources != Default::default() {
            let resources = serde_json::to_vec(&resources)
                .map_err(|error| Error::Internal(format!("write limits: {error}")))?;
            let answer = container.task()?.call(Call::Update(Update { resources }), &[]).await;
            match answer.map_err(|error| not_running(error, &container.id))? {
                Outcome::Done(done) => warnings.extend(done.warnings),
                other => {
                    return Err(Error::Internal(format!("the monitor answered an update with {other:?}")));
                }
            }
        }
        if row.running() && host.network_rate != row.host.network_rate {
            self.change_rate(&container, &row, &host).await?;
        }
        let row = container.change(self.store(), |row| row.host = host)?;
        self.publish(&row, "update", &[]);
        Ok(Warnings { warnings })
    }
}

fn check_unsupported(request: &ContainerUpdateRequest) -> Result<()> {
    let asked = [
        ("CgroupParent", !request.cgroup_parent.is_empty()),
        ("BlkioWeightDevice", !request.blkio_weight_device.is_empty()),
        ("CpuRealtimePeriod", request.cpu_realtime_period != 0),
        ("CpuRealtimeRuntime", request.cpu_realtime_runtime != 0),
        ("Devices", !request.devices.is_empty()),
        ("DeviceCgroupRules", !request.device_cgroup_rules.is_empty()),
        ("DeviceRequests", !request.device_requests.is_empty()),
        ("MemorySwappiness", request.memory_swappiness.is_some_and(|value| value >= 0)),
        ("OomKillDisable", request.oom_kill_disable == Some(true)),
        ("Ulimits", !request.ulimits.is_empty()),
        ("CpuCount", request.cpu_count != 0),
        ("CpuPercent", request.cpu_percent != 0),
        ("IOMaximumIOps", request.io_maximum_iops != 0),
        ("IOMaximumBandwidth", request.io_maximum_bandwidth != 0),
        ("KernelMemory", request.kernel_memory != 0),
        ("KernelMemoryTCP", request.kernel_memory_tcp != 0),
    ];
    match asked.iter().find(|(_, asked)| *asked) {
        Some((field, _)) => {
            Err(Error::Unsupported(format!("an update of {field} is not available in this version")))
        }
        None => Ok(()),
    }
}

/// Zero is no change.
fn apply(host: &mut HostConfig, request: &ContainerUpdateRequest) {
    fn set<T: Default + PartialEq + Clone>(field: &mut T, value: &T) {
        if *value != T::default() {
            field.clone_from(value);
        }
    }
    if request.nano_cpus != 0 {
        // One way to say it replaces the other.
        (host.cpu_period, host.cpu_quota) = (0, 0);
    }
    if request.cpu_quota != 0 || request.cpu_period != 0 {
        host.nano_cpus = 0;
    }
    set(&mut host.memory, &request.memory);
    set(&mut host.memory_swap, &request.memory_swap);
    set(&mut host.memory_reservation, &request.memory_reservation);
    set(&mut host.nano_cpus, &request.nano_cpus);
    set(&mut host.cpu_period, &request.cpu_period);
    set(&mut host.cpu_quota, &request.cpu_quota);
    set(&mut host.cpu_shares, &request.cpu_shares);
    set(&mut host.cpuset_cpus, &request.cpuset_cpus);
    set(&mut host.cpuset_mems, &request.cpuset_mems);
    set(&mut host.blkio_weight, &request.blkio_weight);
    set(&mut host.blkio_device_read_bps, &request.blkio_device_read_bps);
    set(&mut host.blkio_device_write_bps, &request.blkio_device_write_bps);
    set(&mut host.blkio_device_read_iops, &request.blkio_device_read_iops);
    set(&mut host.blkio_device_write_iops, &request.blkio_device_write_iops);
    // -1 lifts it, as it does of others.
    if request.network_rate != 0 {
        host.network_rate = request.network_rate.max(0);
    }
    if request.pids_limit.is_some_and(|limit| limit != 0) {
        host.pids_limit = request.pids_limit;
    }
    if !request.restart_policy.name.is_empty() {
        host.restart_policy = request.restart_policy.clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_no_change() {
        let mut host = HostConfig { memory: 5, cpu_quota: 7, pids_limit: Some(9), ..HostConfig::default() };
        apply(&mut host, &ContainerUpdateRequest { cpu_shares: 3, ..Default::default() });
        assert_eq!((host.memory, host.cpu_quota, host.cpu_shares, host.pids_limit), (5, 7, 3, Some(9)));
        apply(
            &mut host,
            &ContainerUpdateRequest { nano_cpus: 1, pids_limit: Some(-1), ..Default::default() },
        );
        assert_eq!((host.cpu_quota, host.nano_cpus, host.pids_limit), (0, 1, Some(-1)));
    }

    #[test]
    fn what_cannot_be_updated_is_named() {
        let request = ContainerUpdateRequest { kernel_memory: 1, ..Default::default() };
        assert!(check_unsupported(&request).unwrap_err().to_string().contains("KernelMemory"));
        check_unsupported(&ContainerUpdateRequest::default()).unwrap();
    }
}
