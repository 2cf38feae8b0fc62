//! What a container may ask for: conflicts and impossible values in Docker's words, and what this
//! version cannot do by the name of its field. Nothing is ignored in silence.

use std::net::IpAddr;

use insula_host::confine::{capabilities, rlimits};
use insula_models::{ContainerConfig, HealthConfig, HostConfig, RestartPolicy, Ulimit};
use insula_network::Mode;
use insula_spec::plan::Rlimit;

use super::health::{self, OnFailure};
use super::{signals, storage};
use crate::plan::{devices, security};
use crate::{Error, Result};

/// Docker's own floor.
const SMALLEST_MEMORY: i64 = 6 << 20;

/// Checks a request, and returns what a user should know.
pub(super) fn check(config: &ContainerConfig, host: &HostConfig) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    check_config(config)?;
    check_unsupported(host)?;
    check_modes(config, host, &mut warnings)?;
    check_restart(&host.restart_policy, host.auto_remove)?;
    check_memory(&host.into(), &mut warnings)?;
    check_cpu(&host.into())?;
    storage::size(host)?;
    check_rest(host, &mut warnings)?;
    crate::rootless::check(host)?;
    Ok(warnings)
}

fn invalid<T>(message: impl Into<String>) -> Result<T> {
    Err(Error::InvalidArgument(message.into()))
}

fn check_config(config: &ContainerConfig) -> Result<()> {
    if !config.working_dir.is_empty() && !config.working_dir.starts_with('/') {
        return invalid(format!(
            "the working directory '{}' is invalid, it needs to be an absolute path",
            config.working_dir
        ));
    }
    if let Some(line) = config.env.iter().find(|line| line.is_empty() || line.starts_with('=')) {
        return invalid(format!("invalid environment variable: {line}"));
    }
    let texts =
        config.env.iter().chain(config.cmd.iter().flatten()).chain(config.entrypoint.iter().flatten());
    if let Some(text) = texts.into_iter().find(|text| text.contains('\0')) {
        return invalid(format!("{text:?} holds a NUL byte"));
    }
    for (what, name, most) in [("hostname", &config.hostname, 64), ("domainname", &config.domainname, 64)] {
        let sign = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
        if name.len() > most || !name.bytes().all(sign) {
            return invalid(format!("invalid {what} format: {name}"));
        }
    }
    if !config.stop_signal.is_empty() {
        signals::parse(&config.stop_signal)?;
    }
    if config.stop_timeout.is_some_and(|timeout| timeout < -1) {
        return invalid("StopTimeout must be -1 (never) or a number of seconds");
    }
    config.healthcheck.as_ref().map_or(Ok(()), check_health)
}

fn check_health(check: &HealthConfig) -> Result<()> {
    const SHORTEST: i64 = 1_000_000;
    for (what, span) in [
        ("Interval", check.interval),
        ("Timeout", check.timeout),
        ("StartPeriod", check.start_period),
        ("StartInterval", check.start_interval),
    ] {
        if span != 0 && span < SHORTEST {
            return invalid(format!("{what} in Healthcheck cannot be less than 1ms"));
        }
    }
    if check.retries < 0 {
        return invalid("Retries in Healthcheck cannot be negative");
    }
    match check.test.first().map(String::as_str) {
        None | Some("NONE" | "CMD" | "CMD-SHELL") => Ok(()),
        Some(kind) => {
            invalid(format!("Unknown healthcheck type '{kind}' (expected 'CMD', 'CMD-SHELL' or 'NONE')"))
        }
    }
}

/// What is done to unhealthy containers needs something that finds out. `config` has the image's.
pub(super) fn check_health_action(config: &ContainerConfig, host: &HostConfig) -> Result<()> {
    if !matches!(host.health_on_failure.as_str(), "" | "none" | "kill" | "restart" | "stop") {
        return invalid(format!(
            "invalid HealthOnFailure: {:?}; use one of 'none', 'kill', 'restart' or 'stop'",
            host.health_on_failure
        ));
    }
    if OnFailure::of(host) != OnFailure::Nothing && health::command(config).is_none() {
        return invalid(
            "what is to be done with an unhealthy container is said, but nothing finds out: give it a health \
             check (--health-cmd)",
        );
    }
    Ok(())
}

/// What a container sends and receives, where somebody is there to hold it to that.
pub(super) fn check_rate(host: &HostConfig, warnings: &mut Vec<String>) -> Result<()> {
    /// Bits a second: below it a single large packet takes a second and more.
    const LEAST: i64 = 8_000;
    if host.network_rate == 0 {
        return Ok(());
    }
    if host.network_rate < LEAST {
        return invalid(format!(
            "invalid network rate {}: at least {LEAST} bits a second",
            host.network_rate
        ));
    }
    let mode = host.network_mode.as_str();
    if matches!(mode, "host" | "none") || mode.starts_with("container:") {
        return invalid(format!("conflicting options: a network rate and the network mode {mode}"));
    }
    let lifts =
        |name: &String| matches!(name.to_ascii_uppercase().trim_start_matches("CAP_"), "NET_ADMIN" | "ALL");
    if host.privileged || host.cap_add.iter().any(lifts) {
        // Our own machine holds its cards back itself.
        let places =
            if crate::machines::wanted(&host.isolation) { " where QEMU runs its machine" } else { "" };
        warnings.push(format!(
            "a container with NET_ADMIN can lift the limit of what it sends{places}; what it receives stays limited"
        ));
    }
    Ok(())
}

/// Fields that are understood and not served.
fn check_unsupported(host: &HostConfig) -> Result<()> {
    let asked = [
        ("CgroupParent", !host.cgroup_parent.is_empty()),
        ("Cgroup", !host.cgroup.is_empty()),
        ("DeviceRequests", !host.device_requests.is_empty()),
        ("BlkioWeightDevice", !host.blkio_weight_device.is_empty()),
        ("CpuRealtimePeriod", host.cpu_realtime_period != 0),
        ("CpuRealtimeRuntime", host.cpu_realtime_runtime != 0),
        ("KernelMemory", host.kernel_memory != 0),
        ("KernelMemoryTCP", host.kernel_memory_tcp != 0),
        ("CpuCount", host.cpu_count != 0),
        ("CpuPercent", host.cpu_percent != 0),
        ("IOMaximumIOps", host.io_maximum_iops != 0),
        ("IOMaximumBandwidth", host.io_maximum_bandwidth != 0),
    ];
    if let Some((field, _)) = asked.iter().find(|(_, asked)| *asked) {
        return Err(Error::Unsupported(format!("HostConfig.{field} is not available in this version")));
    }
    crate::machines::check(host)?;
    if !matches!(host.runtime.as_str(), "" | "insula" | "runc" | "io.containerd.runc.v2") {
        return invalid(format!("unknown or invalid runtime name: {}", host.runtime));
    }
    if !matches!(host.volume_driver.as_str(), "" | "local") {
        return Err(Error::NotFound(format!("volume driver {:?}: plugin not found", host.volume_driver)));
    }
    crate::plan::log::check(&host.log_config)
}

fn check_modes(config: &ContainerConfig, host: &HostConfig, warnings: &mut Vec<String>) -> Result<()> {
    for (what, mode, known) in [
        ("PID", &host.pid_mode, &["", "host", "private"][..]),
        ("IPC", &host.ipc_mode, &["", "none", "private", "shareable", "host"]),
        ("UTS", &host.uts_mode, &["", "host", "private"]),
        ("USER", &host.userns_mode, &["", "host", "private"]),
        ("CGROUP", &host.cgroupns_mode, &["", "host", "private"]),
    ] {
        let shared = what == "PID" && mode.strip_prefix("container:").is_some_and(|name| !name.is_empty());
        if !(known.contains(&mode.as_str()) || shared) {
            if what == "IPC" && mode.starts_with("container:") {
                return Err(Error::Unsupported(format!(
                    "IpcMode {mode:?} is not available in this version: private, shareable, host or none are"
                )));
            }
            return invalid(format!("invalid {what} mode: {mode}"));
        }
    }
    if host.network_mode == "host" && !host.links.is_empty() {
        return invalid(
            "conflicting options: host type networking can't be used with links. This would result in undefined \
             behavior",
        );
    }
    if host.uts_mode == "host" && !config.hostname.is_empty() {
        return invalid("conflicting options: hostname and the UTS mode");
    }
    if host.userns_mode == "private" && host.privileged {
        return invalid("privileged mode is incompatible with user namespaces: leave one of the two out");
    }
    match Mode::parse(&host.network_mode) {
        Mode::Container(_) => check_shared_network(config, host),
        Mode::Host | Mode::None if !host.port_bindings.is_empty() || host.publish_all_ports => {
            warnings
                .push(format!("Published ports are discarded when using {} network mode", host.network_mode));
            Ok(())
        }
        _ => Ok(()),
    }
}

fn check_shared_network(config: &ContainerConfig, host: &HostConfig) -> Result<()> {
    let conflicts = [
        ("hostname and the network mode", !config.hostname.is_empty()),
        ("dns and the network mode", !host.dns.is_empty()),
        ("links and the network mode", !host.links.is_empty()),
        ("custom host-to-IP mapping and the network mode", !host.extra_hosts.is_empty()),
        ("mac-address and the network mode", !config.mac_address.is_empty()),
        (
            "port publishing and the container type network mode",
            !host.port_bindings.is_empty() || host.publish_all_ports,
        ),
    ];
    match conflicts.iter().find(|(_, conflict)| *conflict) {
        Some((what, _)) => invalid(format!("conflicting options: {what}")),
        None => Ok(()),
    }
}

pub(super) fn check_restart(policy: &RestartPolicy, auto_remove: bool) -> Result<()> {
    match policy.name.as_str() {
        "" | "no" | "always" | "unless-stopped" if policy.maximum_retry_count != 0 => {
            return invalid("invalid restart policy: maximum retry count can only be used with 'on-failure'");
        }
        "on-failure" | "unhealthy" if policy.maximum_retry_count < 0 => {
            return invalid("invalid restart policy: maximum retry count cannot be negative");
        }
        "" | "no" | "always" | "unless-stopped" | "on-failure" | "unhealthy" => {}
        other => {
            return invalid(format!(
                "invalid restart policy: unknown policy '{other}'; use one of 'no', 'always', 'on-failure', \
                 'unhealthy' or 'unless-stopped'"
            ));
        }
    }
    if auto_remove && !matches!(policy.name.as_str(), "" | "no") {
        return invalid("can't create 'AutoRemove' container with restart policy");
    }
    Ok(())
}

/// The limits that create and update have in common.
#[derive(Debug, Clone, Default)]
pub(super) struct Limits {
    pub(super) memory: i64,
    pub(super) memory_swap: i64,
    pub(super) memory_reservation: i64,
    pub(super) memory_swappiness: Option<i64>,
    pub(super) oom_kill_disable: Option<bool>,
    pub(super) nano_cpus: i64,
    pub(super) cpu_period: i64,
    pub(super) cpu_quota: i64,
    pub(super) cpu_shares: i64,
    pub(super) cpuset_cpus: String,
    pub(super) cpuset_mems: String,
    pub(super) blkio_weight: u16,
}

impl From<&HostConfig> for Limits {
    fn from(host: &HostConfig) -> Self {
        Self {
            memory: host.memory,
            memory_swap: host.memory_swap,
            memory_reservation: host.memory_reservation,
            memory_swappiness: host.memory_swappiness,
            oom_kill_disable: host.oom_kill_disable,
            nano_cpus: host.nano_cpus,
            cpu_period: host.cpu_period,
            cpu_quota: host.cpu_quota,
            cpu_shares: host.cpu_shares,
            cpuset_cpus: host.cpuset_cpus.clone(),
            cpuset_mems: host.cpuset_mems.clone(),
            blkio_weight: host.blkio_weight,
        }
    }
}

pub(super) fn check_memory(limits: &Limits, warnings: &mut Vec<String>) -> Result<()> {
    let Limits { memory, memory_swap, memory_reservation, .. } = *limits;
    if memory < 0 || (memory != 0 && memory < SMALLEST_MEMORY) {
        return invalid("Minimum memory limit allowed is 6MB");
    }
    if memory_swap > 0 && memory == 0 {
        return invalid("You should always set the Memory limit when using Memoryswap limit, see usage");
    }
    if memory_swap < -1 {
        return invalid(format!("invalid memory swap limit {memory_swap}: -1 is unlimited"));
    }
    if memory_swap > 0 && memory_swap < memory {
        return invalid("Minimum memoryswap limit should be larger than memory limit, see usage");
    }
    if let Some(swappiness) = limits.memory_swappiness
        && !(-1..=100).contains(&swappiness)
    {
        return invalid(format!("Invalid value: {swappiness}, valid memory swappiness range is 0-100"));
    }
    if memory_reservation < 0 || (memory_reservation != 0 && memory_reservation < SMALLEST_MEMORY) {
        return invalid("Minimum memory reservation allowed is 6MB");
    }
    if memory > 0 && memory < memory_reservation {
        return invalid("Minimum memory limit can not be less than memory reservation limit, see usage");
    }
    if limits.oom_kill_disable == Some(true) && memory == 0 {
        warnings.push(
            "OOM killer is disabled for the container, but no memory limit is set, this can result in the \
             system running out of resources."
                .to_owned(),
        );
    }
    Ok(())
}

pub(super) fn check_cpu(limits: &Limits) -> Result<()> {
    let Limits { nano_cpus, cpu_period, cpu_quota, cpu_shares, .. } = *limits;
    if nano_cpus > 0 && cpu_period > 0 {
        return invalid("Conflicting options: Nano CPUs and CPU Period cannot both be set.");
    }
    if nano_cpus > 0 && cpu_quota > 0 {
        return invalid("Conflicting options: Nano CPUs and CPU Quota cannot both be set.");
    }
    if nano_cpus != 0 {
        let cpus = crate::system::cpus();
        if !(10_000_000..=cpus * 1_000_000_000).contains(&nano_cpus) {
            return invalid(format!(
                "Range of CPUs is from 0.01 to {cpus}.00, as there are only {cpus} CPUs available"
            ));
        }
    }
    if cpu_period != 0 && !(1000..=1_000_000).contains(&cpu_period) {
        return invalid(
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)",
        );
    }
    if cpu_quota > 0 && cpu_quota < 1000 {
        return invalid("CPU cfs quota can not be less than 1ms (i.e. 1000)");
    }
    if cpu_shares < 0 {
        return invalid(format!("invalid CPU shares ({cpu_shares}): value must be a positive integer"));
    }
    check_set(&limits.cpuset_cpus, "cpuset cpus", "CPUs", "/sys/devices/system/cpu/online")?;
    check_set(&limits.cpuset_mems, "cpuset mems", "memory nodes", "/sys/devices/system/node/online")?;
    match limits.blkio_weight {
        0 | 10..=1000 => Ok(()),
        _ => invalid("Range of blkio weight is from 10 to 1000"),
    }
}

fn check_set(text: &str, what: &str, of: &str, available: &str) -> Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    let Some(wanted) = parse_set(text) else {
        return invalid(format!("Invalid value {text} for {what}"));
    };
    // Where the kernel does not say what there is, it will say what there is not.
    let Some(online) = std::fs::read_to_string(available).ok().and_then(|text| parse_set(text.trim())) else {
        return Ok(());
    };
    if wanted.iter().all(|number| online.contains(number)) {
        return Ok(());
    }
    let online: Vec<String> = online.iter().map(u32::to_string).collect();
    invalid(format!("Requested {of} are not available - requested {text}, available: {}", online.join(",")))
}

/// `0-2,4`.
fn parse_set(text: &str) -> Option<std::collections::BTreeSet<u32>> {
    const MOST: u32 = 8192;
    let mut numbers = std::collections::BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last > MOST {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}

fn check_rest(host: &HostConfig, warnings: &mut Vec<String>) -> Result<()> {
    if !(-1000..=1000).contains(&host.oom_score_adj) {
        return invalid(format!(
            "Invalid value {}, range for oom score adj is [-1000, 1000]",
            host.oom_score_adj
        ));
    }
    if host.shm_size < 0 {
        return invalid("SHM size can not be less than 0");
    }
    if host.pids_limit.is_some_and(|limit| limit < -1) {
        return invalid(format!("invalid PidsLimit {:?}: -1 is unlimited", host.pids_limit));
    }
    let limits = rlimits::prepare(&rlimits_of(&host.ulimits)?)?;
    warnings.extend(rlimits::foresee(&limits)?.iter().map(ToString::to_string));
    capabilities::effective(&host.cap_add, &host.cap_drop, host.privileged)?;
    security::options(&host.security_opt)?;
    devices::of(host)?;
    devices::rules(&host.device_cgroup_rules)?;
    devices::throttles(host)?;
    security::check_sysctls(host)?;
    dns(&host.dns)?;
    extra_hosts(&host.extra_hosts).map(drop)
}

/// Docker's -1 is the kernel's all ones.
pub(crate) fn rlimits_of(ulimits: &[Ulimit]) -> Result<Vec<Rlimit>> {
    let value = |value: i64| u64::try_from(value).unwrap_or(u64::MAX);
    ulimits
        .iter()
        .map(|limit| {
            let (soft, hard) = (value(limit.soft), value(limit.hard));
            if soft > hard {
                return invalid(format!(
                    "ulimit soft limit must be less than or equal to hard limit: {} > {}",
                    limit.soft, limit.hard
                ));
            }
            Ok(Rlimit { name: limit.name.clone(), soft, hard })
        })
        .collect()
}

/// Addresses of resolvers.
pub(crate) fn dns(servers: &[String]) -> Result<Vec<IpAddr>> {
    servers
        .iter()
        .map(|text| text.parse().map_err(|_| Error::InvalidArgument(format!("{text} is not an ip address"))))
        .collect()
}

/// `CONTAINER[:ALIAS]`.
pub(super) fn link(text: &str) -> Result<(&str, &str)> {
    let (name, alias) = text.split_once(':').unwrap_or((text, text));
    let alias = alias.rsplit('/').next().unwrap_or(alias);
    let sign = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    if name.is_empty() || alias.is_empty() || alias.len() > 253 || !alias.bytes().all(sign) {
        return Err(Error::InvalidArgument(format!("bad format for links: {text}")));
    }
    Ok((name.trim_start_matches('/'), alias.trim_start_matches('/')))
}

/// `NAME:ADDRESS`; `host-gateway` is filled in when the network is known.
pub(crate) fn extra_hosts(lines: &[String]) -> Result<Vec<(String, Option<IpAddr>)>> {
    lines
        .iter()
        .map(|line| {
            let wrong = || Error::InvalidArgument(format!("bad format for add-host: {line:?}"));
            let (name, address) = line.split_once([':', '=']).ok_or_else(wrong)?;
            if name.is_empty() || name.contains(char::is_whitespace) {
                return Err(wrong());
            }
            if address == "host-gateway" {
                return Ok((name.to_owned(), None));
            }
            let plain = address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address);
            let address = plain.parse().map_err(|_| {
                Error::InvalidArgument(format!("invalid IP address in add-host: {address:?}"))
            })?;
            Ok((name.to_owned(), Some(address)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machines;
    use insula_base::{Kind, Kinded};
    use insula_models::DeviceMapping;

    fn refused(host: HostConfig) -> String {
        check(&ContainerConfig::default(), &host).unwrap_err().to_string()
    }

    fn policy(name: &str, maximum_retry_count: i64) -> RestartPolicy {
        RestartPolicy { name: name.into(), maximum_retry_count }
    }

    #[test]
    fn an_empty_request_is_fine() {
        assert!(check(&ContainerConfig::default(), &HostConfig::default()).unwrap().is_empty());
    }

    #[test]
    fn limits_are_refused_in_dockers_words() {
        let host = HostConfig::default;
        assert_eq!(refused(HostConfig { memory: 1 << 20, ..host() }), "Minimum memory limit allowed is 6MB");
        assert!(refused(HostConfig { memory_swap: 1 << 30, ..host() }).starts_with("You should always set"));
        let swap = HostConfig { memory: 64 << 20, memory_swap: 32 << 20, ..host() };
        assert!(refused(swap).starts_with("Minimum memoryswap limit"));
        let swappiness = HostConfig { memory_swappiness: Some(101), ..host() };
        assert!(refused(swappiness).contains("0-100"));
        let both = HostConfig { nano_cpus: 500_000_000, cpu_quota: 5000, ..host() };
        assert!(refused(both).starts_with("Conflicting options: Nano CPUs and CPU Quota"));
        assert!(refused(HostConfig { nano_cpus: 1 << 60, ..host() }).starts_with("Range of CPUs"));
        assert!(refused(HostConfig { cpuset_cpus: "0-x".into(), ..host() }).contains("Invalid value 0-x"));
        assert!(refused(HostConfig { cpuset_cpus: "4000".into(), ..host() }).contains("not available"));
        assert!(refused(HostConfig { blkio_weight: 5, ..host() }).contains("10 to 1000"));
        assert!(refused(HostConfig { oom_score_adj: 2000, ..host() }).contains("[-1000, 1000]"));
    }

    #[test]
    fn restart_policies_have_rules() {
        let of = |name: &str, count, remove| {
            check_restart(&policy(name, count), remove).err().map(|error| error.to_string())
        };
        assert_eq!(of("always", 0, false), None);
        assert_eq!(of("on-failure", 3, false), None);
        assert!(of("always", 3, false).unwrap().contains("maximum retry count can only"));
        assert!(of("on-failure", -1, false).unwrap().contains("negative"));
        assert!(of("sometimes", 0, false).unwrap().contains("unknown policy 'sometimes'"));
        assert!(of("always", 0, true).unwrap().contains("AutoRemove"));
    }

    #[test]
    fn what_is_not_served_is_named() {
        let below = HostConfig { cgroup_parent: "/mine".into(), ..HostConfig::default() };
        let error = check(&ContainerConfig::default(), &below).unwrap_err();
        assert_eq!((error.kind(), error.to_string().contains("CgroupParent")), (Kind::Unsupported, true));
        let other = HostConfig { isolation: "hyperv".into(), ..HostConfig::default() };
        assert!(refused(other).contains("\"hyperv\""));
        let ipc = HostConfig { ipc_mode: "container:x".into(), ..HostConfig::default() };
        assert!(refused(ipc).contains("IpcMode"));
    }

    #[test]
    fn a_machine_has_its_sockets_though_the_host_has_no_such_node() {
        let node = DeviceMapping { path_on_host: machines::VSOCK.into(), ..DeviceMapping::default() };
        let host = HostConfig { devices: vec![node], ..HostConfig::default() };
        let machine = HostConfig { isolation: machines::ISOLATION.into(), ..host.clone() };
        assert!(check(&ContainerConfig::default(), &machine).unwrap().is_empty());
        if !std::path::Path::new(machines::VSOCK).exists() {
            assert!(refused(host).contains("no such file"));
        }
    }

    #[test]
    fn modes_conflict() {
        let shared = |config: ContainerConfig, host: HostConfig| {
            let host = HostConfig { network_mode: "container:x".into(), ..host };
            check(&config, &host).unwrap_err().to_string()
        };
        let named = ContainerConfig { hostname: "h".into(), ..ContainerConfig::default() };
        assert_eq!(
            shared(named, HostConfig::default()),
            "conflicting options: hostname and the network mode"
        );
        let dns = HostConfig { dns: vec!["1.1.1.1".into()], ..HostConfig::default() };
        assert!(shared(ContainerConfig::default(), dns).contains("dns"));
        let published =
            HostConfig { publish_all_ports: true, network_mode: "host".into(), ..Default::default() };
        assert_eq!(check(&ContainerConfig::default(), &published).unwrap().len(), 1);
        let userns = HostConfig { userns_mode: "private".into(), privileged: true, ..Default::default() };
        assert!(refused(userns).contains("privileged"));
    }

    #[test]
    fn hosts_are_names_with_addresses() {
        let parse = |line: &str| extra_hosts(&[line.to_owned()]);
        assert_eq!(parse("db:10.0.0.1").unwrap()[0].1, Some("10.0.0.1".parse().unwrap()));
        assert_eq!(parse("six:[::1]").unwrap()[0].1, Some("::1".parse().unwrap()));
        assert_eq!(parse("gw:host-gateway").unwrap()[0].1, None);
        for bad in ["db", "db:", ":1.2.3.4", "a b:1.2.3.4", "db:999.1.1.1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
