//! Limits: from Docker's zero for none to the plan's options.

use insula_models::{ContainerUpdateRequest, HostConfig};
use insula_spec::plan::Resources;

use super::devices;
use crate::Result;

/// Those of a new container.
pub(crate) fn of(host: &HostConfig) -> Result<Resources> {
    let throttles = devices::throttles(host)?;
    Ok(Resources {
        memory: positive(host.memory),
        memory_swap: Some(host.memory_swap).filter(|swap| *swap != 0),
        memory_reservation: positive(host.memory_reservation),
        memory_swappiness: host.memory_swappiness.and_then(|value| u64::try_from(value).ok()),
        oom_kill_disable: host.oom_kill_disable.filter(|disable| *disable),
        nano_cpus: positive(host.nano_cpus),
        cpu_period: positive(host.cpu_period),
        cpu_quota: Some(host.cpu_quota).filter(|quota| *quota != 0),
        cpu_shares: positive(host.cpu_shares),
        cpuset_cpus: text(&host.cpuset_cpus),
        cpuset_mems: text(&host.cpuset_mems),
        pids: host.pids_limit.filter(|limit| *limit > 0),
        blkio_weight: Some(host.blkio_weight).filter(|weight| *weight != 0),
        device_read_bps: throttles.read_bps,
        device_write_bps: throttles.write_bps,
        device_read_iops: throttles.read_iops,
        device_write_iops: throttles.write_iops,
        exact: None,
    })
}

/// What an update changes; the rest is absent.
pub(crate) fn of_update(request: &ContainerUpdateRequest) -> Result<Resources> {
    Ok(Resources {
        memory: positive(request.memory),
        memory_swap: Some(request.memory_swap).filter(|swap| *swap != 0),
        memory_reservation: positive(request.memory_reservation),
        memory_swappiness: None,
        oom_kill_disable: None,
        nano_cpus: positive(request.nano_cpus),
        cpu_period: positive(request.cpu_period),
        cpu_quota: Some(request.cpu_quota).filter(|quota| *quota != 0),
        cpu_shares: positive(request.cpu_shares),
        cpuset_cpus: text(&request.cpuset_cpus),
        cpuset_mems: text(&request.cpuset_mems),
        pids: request.pids_limit.filter(|limit| *limit != 0),
        blkio_weight: Some(request.blkio_weight).filter(|weight| *weight != 0),
        device_read_bps: devices::throttle(&request.blkio_device_read_bps)?,
        device_write_bps: devices::throttle(&request.blkio_device_write_bps)?,
        device_read_iops: devices::throttle(&request.blkio_device_read_iops)?,
        device_write_iops: devices::throttle(&request.blkio_device_write_iops)?,
        exact: None,
    })
}

fn positive(value: i64) -> Option<u64> {
    u64::try_from(value).ok().filter(|value| *value > 0)
}

fn text(value: &str) -> Option<String> {
    Some(value.to_owned()).filter(|value| !value.is_empty())
}
