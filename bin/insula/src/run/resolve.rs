//! From flags to the request that makes a container.

use anyhow::{Context as _, bail};
use insula_models::{
    ContainerCreateRequest, Empty, HealthConfig, HostConfig, Labels, LogConfig, ThrottleDevice,
};
use insula_spec::sites::{self, Site};

use super::flags::{CreateFlags, HealthFlags, LimitFlags, NetworkFlags, SecurityFlags, StorageFlags};
use crate::arguments::first_word;
use crate::failure::Failure;
use crate::options::networks::Single;
use crate::options::{self, devices, env, limits, mounts, networks, ports};
use crate::terminal;
use crate::usage::bad_flag;

/// The request; whether the command will stay attached decides about the streams.
pub(crate) fn request(flags: &CreateFlags, detached: bool) -> anyhow::Result<ContainerCreateRequest> {
    let (image, command) = first_word(&flags.words, "an image")?;
    options::content_trust(flags.disable_content_trust)?;
    let mut request = ContainerCreateRequest {
        image: image.to_owned(),
        cmd: (!command.is_empty()).then(|| command.to_vec()),
        entrypoint: flags.entrypoint.clone().map(|program| vec![program]),
        hostname: flags.hostname.clone().unwrap_or_default(),
        domainname: flags.domainname.clone().unwrap_or_default(),
        user: flags.user.clone().unwrap_or_default(),
        working_dir: flags.workdir.clone().unwrap_or_default(),
        env: env::environment(&flags.env_file, &flags.env)?,
        labels: env::labels(&flags.label_file, &flags.label)?,
        stop_signal: flags.stop_signal.clone().unwrap_or_default(),
        stop_timeout: flags.stop_timeout,
        mac_address: flags.network.mac_address.clone().unwrap_or_default(),
        tty: flags.tty,
        open_stdin: flags.interactive,
        ..ContainerCreateRequest::default()
    };
    attach(&mut request, flags, detached)?;
    life(&mut request.host_config, flags)?;
    request.healthcheck = health(&flags.health)?;
    request.host_config.network_rate =
        flags.network.network_rate.as_deref().map_or(Ok(0), limits::network_rate)?;
    request.host_config.health_on_failure = flags.health.health_on_failure.clone().unwrap_or_default();
    storage(&mut request, &flags.storage)?;
    network(&mut request, &flags.network, flags)?;
    resources(&mut request.host_config, &flags.limits)?;
    security(&mut request.host_config, &flags.security)?;
    Ok(request)
}

fn attach(request: &mut ContainerCreateRequest, flags: &CreateFlags, detached: bool) -> anyhow::Result<()> {
    if detached && !flags.attach.is_empty() {
        let message = "conflicting options: cannot specify both --attach and --detach".to_owned();
        return Err(Failure { code: 1, message }.into());
    }
    for stream in &flags.attach {
        match stream.to_ascii_lowercase().as_str() {
            "stdin" => request.attach_stdin = true,
            "stdout" => request.attach_stdout = true,
            "stderr" => request.attach_stderr = true,
            _ => return Err(bad_flag("--attach", stream, "valid streams are STDIN, STDOUT and STDERR")),
        }
    }
    if flags.attach.is_empty() && !detached {
        (request.attach_stdout, request.attach_stderr) = (true, true);
        request.attach_stdin = flags.interactive;
    }
    request.stdin_once = request.open_stdin && request.attach_stdin;
    Ok(())
}

fn life(host: &mut HostConfig, flags: &CreateFlags) -> anyhow::Result<()> {
    host.auto_remove = flags.rm;
    if let Some(policy) = &flags.restart {
        host.restart_policy = limits::restart(policy)?;
        if flags.rm && policy != "no" {
            bail!("conflicting options: cannot specify both --restart and --rm");
        }
    } else {
        host.restart_policy.name = "no".to_owned();
    }
    match flags.init.as_deref() {
        None => {}
        Some("true" | "1") => host.init = Some(true),
        Some("false" | "0") => host.init = Some(false),
        Some("systemd") => host.init_system = "systemd".to_owned(),
        Some(other) => return Err(bad_flag("--init", other, "true, false or systemd is expected")),
    }
    host.log_config = LogConfig {
        r#type: flags.log_driver.clone().unwrap_or_default(),
        config: options::strict_pairs("log-opt", &flags.log_opt)?,
    };
    host.annotations = options::strict_pairs("annotation", &flags.annotation)?;
    host.runtime = flags.runtime.clone().unwrap_or_default();
    host.isolation = flags.isolation.clone().unwrap_or_default();
    host.readonly_rootfs = flags.read_only;
    host.group_add = flags.group_add.clone();
    host.container_id_file = flags.cidfile.clone().unwrap_or_default();
    if flags.tty
        && let Some((rows, columns)) = terminal::size()
    {
        host.console_size = [rows.into(), columns.into()];
    }
    Ok(())
}

/// What is not given is the image's.
fn health(flags: &HealthFlags) -> anyhow::Result<Option<HealthConfig>> {
    let spans = [
        ("interval", flags.health_interval),
        ("timeout", flags.health_timeout),
        ("retries", flags.health_retries),
        ("start-period", flags.health_start_period),
        ("start-interval", flags.health_start_interval),
    ];
    let given = flags.health_cmd.is_some() || spans.iter().any(|(_, value)| value.is_some());
    if flags.no_healthcheck {
        if given {
            bail!("--no-healthcheck conflicts with --health-* options");
        }
        return Ok(Some(HealthConfig { test: vec!["NONE".to_owned()], ..HealthConfig::default() }));
    }
    if let Some((name, _)) = spans.iter().find(|(_, value)| value.is_some_and(|value| value < 0)) {
        bail!("--health-{name} cannot be negative");
    }
    let command = flags.health_cmd.as_deref().filter(|command| !command.is_empty());
    let check = HealthConfig {
        test: command.map_or_else(Vec::new, |command| vec!["CMD-SHELL".to_owned(), command.to_owned()]),
        interval: flags.health_interval.unwrap_or_default(),
        timeout: flags.health_timeout.unwrap_or_default(),
        start_period: flags.health_start_period.unwrap_or_default(),
        start_interval: flags.health_start_interval.unwrap_or_default(),
        retries: flags.health_retries.unwrap_or_default(),
    };
    Ok(given.then_some(check))
}

fn storage(request: &mut ContainerCreateRequest, flags: &StorageFlags) -> anyhow::Result<()> {
    for text in &flags.volume {
        match mounts::volume(text)? {
            mounts::Volume::Bind(bind) => request.host_config.binds.push(bind),
            mounts::Volume::Anonymous(target) => {
                request.volumes.insert(target, Empty {});
            }
        }
    }
    let host = &mut request.host_config;
    host.mounts = flags.mount.iter().map(|text| mounts::mount(text)).collect::<Result<_, _>>()?;
    host.tmpfs = flags.tmpfs.iter().map(|text| mounts::tmpfs(text)).collect::<Result<_, _>>()?;
    host.volume_driver = flags.volume_driver.clone().unwrap_or_default();
    host.volumes_from = flags.volumes_from.clone();
    host.devices = flags.device.iter().map(|text| devices::device(text)).collect::<Result<_, _>>()?;
    for text in &flags.storage_opt {
        let (name, value) = text.split_once('=').ok_or_else(|| anyhow::anyhow!("invalid storage option"))?;
        host.storage_opt.insert(name.to_owned(), value.to_owned());
    }
    if let Some(size) = &flags.shm_size {
        host.shm_size = options::bytes("shm-size", size)?;
    }
    Ok(())
}

fn network(
    request: &mut ContainerCreateRequest,
    network: &NetworkFlags,
    flags: &CreateFlags,
) -> anyhow::Result<()> {
    for text in &network.publish {
        ports::publish(text, &mut request.exposed_ports, &mut request.host_config.port_bindings)?;
    }
    ports::check_count(&request.host_config.port_bindings)?;
    if !network.publish_host.is_empty() {
        publish_hosts(&network.publish_host, &mut request.labels)?;
    }
    for text in &network.expose {
        ports::expose(text, &mut request.exposed_ports)?;
    }
    let host = &mut request.host_config;
    host.publish_all_ports = network.publish_all;
    let single = Single {
        address: network.ip.as_deref(),
        address6: network.ip6.as_deref(),
        aliases: &network.network_alias,
        link_local: &network.link_local_ip,
    };
    let (mode, endpoints) = networks::networks(&network.network, &single)?;
    host.network_mode = mode;
    request.networking_config.endpoints_config = endpoints;
    // They are about the first network, whichever that is.
    host.links = network.link.clone();
    for server in &network.dns {
        let wrong = |_| bad_flag("--dns", server, format!("IP address is not correctly formatted: {server}"));
        server.parse::<std::net::IpAddr>().map_err(wrong)?;
    }
    host.dns = network.dns.clone();
    host.dns_options = network.dns_option.clone();
    host.dns_search = network.dns_search.clone();
    host.extra_hosts = flags.add_host.iter().map(|text| extra_host(text)).collect::<Result<_, _>>()?;
    Ok(())
}

/// Host names are a label, so that other clients have them as well.
fn publish_hosts(texts: &[String], labels: &mut Labels) -> anyhow::Result<()> {
    for text in texts {
        if let Err(error) = text.parse::<Site>() {
            return Err(bad_flag("--publish-host", text, error.to_string()));
        }
    }
    let label = labels.entry(sites::LABEL.to_owned()).or_default();
    let all: Vec<&str> = Some(label.as_str())
        .filter(|label| !label.is_empty())
        .into_iter()
        .chain(texts.iter().map(String::as_str))
        .collect();
    *label = all.join(",");
    Ok(())
}

/// `NAME:ADDRESS` or `NAME=ADDRESS`; the address may be `host-gateway` or stand in brackets.
fn extra_host(text: &str) -> anyhow::Result<String> {
    let wrong = || bad_flag("--add-host", text, format!("bad format for add-host: {text:?}"));
    let (name, address) = text.split_once('=').or_else(|| text.split_once(':')).ok_or_else(wrong)?;
    let address = address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address);
    if name.is_empty() {
        return Err(wrong());
    }
    let parsed = address.parse::<std::net::IpAddr>();
    if address != "host-gateway" && parsed.is_err() {
        return Err(bad_flag("--add-host", text, format!("invalid IP address in add-host: {address:?}")));
    }
    Ok(format!("{name}:{address}"))
}

fn resources(host: &mut HostConfig, flags: &LimitFlags) -> anyhow::Result<()> {
    let bytes = |flag, text: &Option<String>| match text {
        Some(text) => options::bytes(flag, text),
        None => Ok(0),
    };
    host.memory = bytes("memory", &flags.memory)?;
    host.memory_reservation = bytes("memory-reservation", &flags.memory_reservation)?;
    host.memory_swap = flags.memory_swap.as_deref().map_or(Ok(0), limits::memory_swap)?;
    host.memory_swappiness = flags.memory_swappiness;
    host.oom_kill_disable = flags.oom_kill_disable.then_some(true);
    host.oom_score_adj = flags.oom_score_adj.unwrap_or_default();
    host.pids_limit = flags.pids_limit;
    host.cpu_period = flags.cpu_period.unwrap_or_default();
    host.cpu_quota = flags.cpu_quota.unwrap_or_default();
    host.cpu_shares = flags.cpu_shares.unwrap_or_default();
    host.nano_cpus = flags.cpus.as_deref().map_or(Ok(0), limits::cpus)?;
    host.cpuset_cpus = flags.cpuset_cpus.clone().unwrap_or_default();
    host.cpuset_mems = flags.cpuset_mems.clone().unwrap_or_default();
    host.cpu_realtime_period = flags.cpu_rt_period.unwrap_or_default();
    host.cpu_realtime_runtime = flags.cpu_rt_runtime.unwrap_or_default();
    if let Some(size) = &flags.kernel_memory {
        return Err(bad_flag("--kernel-memory", size, options::NO_KERNEL_MEMORY));
    }
    host.cgroup_parent = flags.cgroup_parent.clone().unwrap_or_default();
    host.device_requests = flags.gpus.iter().map(|text| devices::gpus(text)).collect::<Result<_, _>>()?;
    host.blkio_weight = flags.blkio_weight.unwrap_or_default();
    let weights = flags.blkio_weight_device.iter().map(|text| devices::weight(text));
    host.blkio_weight_device = weights.collect::<Result<_, _>>()?;
    let rates = |flag, texts: &[String]| -> anyhow::Result<Vec<ThrottleDevice>> {
        texts.iter().map(|text| devices::throttle(flag, text)).collect()
    };
    host.blkio_device_read_bps = rates("device-read-bps", &flags.device_read_bps)?;
    host.blkio_device_write_bps = rates("device-write-bps", &flags.device_write_bps)?;
    host.blkio_device_read_iops = rates("device-read-iops", &flags.device_read_iops)?;
    host.blkio_device_write_iops = rates("device-write-iops", &flags.device_write_iops)?;
    host.ulimits = flags.ulimit.iter().map(|text| limits::ulimit(text)).collect::<Result<_, _>>()?;
    Ok(())
}

fn security(host: &mut HostConfig, flags: &SecurityFlags) -> anyhow::Result<()> {
    for (flag, name, mode) in
        [("pid", "PID", &flags.pid), ("uts", "UTS", &flags.uts), ("userns", "USER", &flags.userns)]
    {
        let known = match mode.as_deref() {
            None | Some("" | "host" | "private") => true,
            Some(mode) => flag == "pid" && mode.starts_with("container:"),
        };
        if !known {
            bail!("--{flag}: invalid {name} mode");
        }
    }
    host.privileged = flags.privileged;
    host.cap_add = flags.cap_add.clone().into();
    host.cap_drop = flags.cap_drop.clone().into();
    host.cgroupns_mode = flags.cgroupns.clone().unwrap_or_default();
    host.device_cgroup_rules = flags.device_cgroup_rule.clone();
    host.ipc_mode = flags.ipc.clone().unwrap_or_default();
    host.pid_mode = flags.pid.clone().unwrap_or_default();
    host.userns_mode = flags.userns.clone().unwrap_or_default();
    host.uts_mode = flags.uts.clone().unwrap_or_default();
    host.sysctls = options::strict_pairs("sysctl", &flags.sysctl)?;
    host.security_opt =
        flags.security_opt.iter().map(|text| security_option(text)).collect::<Result<_, _>>()?;
    Ok(())
}

/// A profile is sent by content: its file is where the command runs.
pub(crate) fn security_option(text: &str) -> anyhow::Result<String> {
    let Some(("seccomp", value)) = text.split_once('=').or_else(|| text.split_once(':')) else {
        return Ok(text.to_owned());
    };
    if matches!(value, "unconfined" | "builtin") {
        return Ok(format!("seccomp={value}"));
    }
    let profile = std::fs::read_to_string(value)
        .with_context(|| format!("opening seccomp profile ({value}) failed: open {value}"))?;
    let profile: serde_json::Value = serde_json::from_str(&profile)
        .with_context(|| format!("compacting json for seccomp profile ({value}) failed"))?;
    Ok(format!("seccomp={profile}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args, FromArgMatches};

    fn parse(text: &str) -> anyhow::Result<ContainerCreateRequest> {
        let command = CreateFlags::augment_args(clap::Command::new("run")).disable_help_flag(true);
        let matches = command.try_get_matches_from(std::iter::once("run").chain(text.split_whitespace()))?;
        request(&CreateFlags::from_arg_matches(&matches)?, false)
    }

    #[test]
    fn everything_behind_the_image_is_the_command() {
        let request = parse("-it --rm busybox -x --rm ls -l").unwrap();
        assert_eq!(request.image, "busybox");
        assert_eq!(request.cmd.unwrap(), ["-x", "--rm", "ls", "-l"]);
        assert!(request.tty && request.open_stdin && request.stdin_once && request.host_config.auto_remove);
        assert_eq!(parse("busybox").unwrap().cmd, None);
    }

    #[test]
    fn flags_reach_their_fields() {
        let request = parse(
            "-e A=1 -e B=2 -v /a:/b:ro -v /anon -p 8080:80 --cpus 1.5 -m 64m --memory-swap -1 --pids-limit -1 \
             --restart on-failure:2 --init=systemd --add-host a:1.2.3.4 --cap-add NET_ADMIN --userns host \
             --oom-score-adj -500 --security-opt seccomp=unconfined --security-opt no-new-privileges \
             --health-cmd true --health-interval 1m30s --health-retries 2 --health-on-failure kill \
             --sysctl net.core.somaxconn=5 --storage-opt size=1g --device-read-bps /dev/sda:1m --ulimit nofile=5 \
             --blkio-weight-device /dev/sda:100 --cgroup-parent /a --cpu-rt-period 10 --cpu-rt-runtime 5 --gpus all \
             --runtime runc --volume-driver local --disable-content-trust -h box image",
        )
        .unwrap();
        let host = &request.host_config;
        let check = request.healthcheck.as_ref().unwrap();
        assert_eq!(check.test, ["CMD-SHELL", "true"]);
        assert_eq!((check.interval, check.retries, check.timeout), (90_000_000_000, 2, 0));
        assert_eq!(host.health_on_failure, "kill");
        assert_eq!(parse("--no-healthcheck image").unwrap().healthcheck.unwrap().test, ["NONE"]);
        assert_eq!(request.env, ["A=1", "B=2"]);
        assert_eq!(host.binds, ["/a:/b:ro"]);
        assert!(request.volumes.contains_key("/anon") && request.exposed_ports.contains_key("80/tcp"));
        assert_eq!((host.nano_cpus, host.memory, host.memory_swap), (1_500_000_000, 64 << 20, -1));
        assert_eq!((host.pids_limit, host.oom_score_adj), (Some(-1), -500));
        assert_eq!(
            (host.restart_policy.name.as_str(), host.restart_policy.maximum_retry_count),
            ("on-failure", 2)
        );
        assert_eq!((host.init_system.as_str(), host.userns_mode.as_str()), ("systemd", "host"));
        assert_eq!(host.security_opt, ["seccomp=unconfined", "no-new-privileges"]);
        assert_eq!(host.blkio_weight_device[0].weight, 100);
        assert_eq!((host.cpu_realtime_period, host.cpu_realtime_runtime), (10, 5));
        assert_eq!((host.device_requests[0].count, host.cgroup_parent.as_str()), (-1, "/a"));
        assert_eq!((host.runtime.as_str(), host.volume_driver.as_str()), ("runc", "local"));
        assert_eq!((host.extra_hosts[0].as_str(), request.hostname.as_str()), ("a:1.2.3.4", "box"));
    }

    #[test]
    fn contradictions_are_refused() {
        for bad in [
            "--rm --restart always image",
            "-a what image",
            "--init=what image",
            "--dns x image",
            "--add-host x image",
            "--add-host x:y image",
            "--security-opt seccomp=/no/such/file image",
            "--sysctl x image",
            "--memory x image",
            "",
            "--health-cmd x --no-healthcheck image",
            "--health-interval -1s image",
            "--health-interval x image",
            "--health-on-failure what image",
            "--blkio-weight-device /dev/sda:9 image",
            "--blkio-weight-device sda:100 image",
            "--gpus x image",
            "--kernel-memory 8m image",
            "--disable-content-trust=false image",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let flags = CreateFlags {
            attach: vec!["stdin".to_owned()],
            disable_content_trust: true,
            words: vec!["image".to_owned()],
            ..CreateFlags::default()
        };
        assert!(request(&flags, true).unwrap_err().to_string().contains("--detach"));
    }
}
