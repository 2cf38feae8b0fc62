//! The flags of `run` and `create`. Data only; `resolve` gives them their meaning.

use clap::{ArgAction, Args};
use insula_base::parse_duration;

/// What both have.
#[derive(Debug, Default, Args)]
pub(crate) struct CreateFlags {
    /// Add a host to the container's /etc/hosts: NAME:ADDRESS
    #[arg(long, value_name = "HOST:IP")]
    pub(crate) add_host: Vec<String>,
    /// Add a note for the engine: NAME=VALUE
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) annotation: Vec<String>,
    /// Attach to stdin, stdout or stderr
    #[arg(short, long, value_name = "STREAM")]
    pub(crate) attach: Vec<String>,
    /// Write the container's id to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) cidfile: Option<String>,
    /// Images are not verified by content trust, which there is not: =false is refused
    #[arg(long, value_name = "BOOL", default_value = "true", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", hide_default_value = true, action = ArgAction::Set)]
    pub(crate) disable_content_trust: bool,
    /// Domain name of the container
    #[arg(long, value_name = "NAME")]
    pub(crate) domainname: Option<String>,
    /// Program to run in place of the image's entrypoint
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) entrypoint: Option<String>,
    /// Set an environment variable; a name alone takes the value from here
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// Read environment variables from a file
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<String>,
    /// Another group of the user
    #[arg(long, value_name = "GROUP")]
    pub(crate) group_add: Vec<String>,
    /// Host name of the container
    #[arg(short = 'h', long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,
    /// PID 1: a reaper that forwards signals; =systemd for the image's own init system
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "KIND")]
    pub(crate) init: Option<String>,
    /// Keep standard input open
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// The wall: process (the host's kernel), vm (a kernel of its own), tenant:NAME (that of a tenant's machine)
    #[arg(long, value_name = "WALL")]
    pub(crate) isolation: Option<String>,
    /// Set a label: NAME=VALUE
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) label: Vec<String>,
    /// Read labels from a file
    #[arg(long, value_name = "FILE")]
    pub(crate) label_file: Vec<String>,
    /// Where output goes: json-file, local, syslog, journald, none
    #[arg(long, value_name = "DRIVER")]
    pub(crate) log_driver: Option<String>,
    /// Option of the log driver: max-size=10m, max-file=3
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) log_opt: Vec<String>,
    /// Name of the container
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Of a multi-platform image this one: os/architecture[/variant]
    #[arg(long, value_name = "PLATFORM", default_value = "", hide_default_value = true)]
    pub(crate) platform: String,
    /// When to pull the image: missing, never, always
    #[arg(long, value_name = "POLICY", default_value = "missing", value_parser = ["always", "missing", "never"])]
    pub(crate) pull: String,
    /// Do not show what is pulled
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Mount the root file system read-only
    #[arg(long)]
    pub(crate) read_only: bool,
    /// When to start the container again: no, on-failure[:N], unhealthy[:N], always, unless-stopped
    #[arg(long, value_name = "POLICY")]
    pub(crate) restart: Option<String>,
    /// Remove the container and its anonymous volumes when it ends
    #[arg(long)]
    pub(crate) rm: bool,
    /// Runtime: runc and insula name the one that there is
    #[arg(long, value_name = "RUNTIME")]
    pub(crate) runtime: Option<String>,
    /// Signal that stops the container
    #[arg(long, value_name = "SIGNAL")]
    pub(crate) stop_signal: Option<String>,
    /// Seconds to wait for the container to stop before it is killed
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    pub(crate) stop_timeout: Option<i64>,
    /// Give the container a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// User and group: name or number [:name or number]
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,
    /// Working directory in the container
    #[arg(short, long, value_name = "PATH")]
    pub(crate) workdir: Option<String>,
    /// Print help
    #[arg(long, action = ArgAction::Help)]
    pub(crate) help: Option<bool>,
    /// Image, and the command to run in place of its own
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "IMAGE")]
    pub(crate) words: Vec<String>,
    #[command(flatten)]
    pub(crate) health: HealthFlags,
    #[command(flatten)]
    pub(crate) storage: StorageFlags,
    #[command(flatten)]
    pub(crate) network: NetworkFlags,
    #[command(flatten)]
    pub(crate) limits: LimitFlags,
    #[command(flatten)]
    pub(crate) security: SecurityFlags,
}

/// Health.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Health")]
pub(crate) struct HealthFlags {
    /// Command that tells whether the container is well
    #[arg(long, value_name = "COMMAND")]
    pub(crate) health_cmd: Option<String>,
    /// Time between two checks: 30s, 1m30s
    #[arg(long, value_name = "DURATION", value_parser = span, allow_negative_numbers = true)]
    pub(crate) health_interval: Option<i64>,
    /// What is done when the container becomes unhealthy: none, kill, restart, stop
    #[arg(long, value_name = "ACTION", value_parser = ["none", "kill", "restart", "stop"])]
    pub(crate) health_on_failure: Option<String>,
    /// Failures in a row that make the container unhealthy
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub(crate) health_retries: Option<i64>,
    /// Time between two checks in the start period
    #[arg(long, value_name = "DURATION", value_parser = span, allow_negative_numbers = true)]
    pub(crate) health_start_interval: Option<i64>,
    /// Time in which failures do not count, from the start on
    #[arg(long, value_name = "DURATION", value_parser = span, allow_negative_numbers = true)]
    pub(crate) health_start_period: Option<i64>,
    /// How long one check may take
    #[arg(long, value_name = "DURATION", value_parser = span, allow_negative_numbers = true)]
    pub(crate) health_timeout: Option<i64>,
    /// Do not run the image's health check
    #[arg(long)]
    pub(crate) no_healthcheck: bool,
}

/// Nanoseconds.
fn span(text: &str) -> Result<i64, String> {
    parse_duration(text).map_err(|_| format!("invalid duration {text:?}"))
}

/// Files.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Files")]
pub(crate) struct StorageFlags {
    /// Give the container a device of the host: HOST[:CONTAINER][:rwm]
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Vec<String>,
    /// Mount a file system: type=bind|volume|tmpfs,source=…,target=…[,readonly]
    #[arg(long, value_name = "MOUNT")]
    pub(crate) mount: Vec<String>,
    /// Size of /dev/shm
    #[arg(long, value_name = "BYTES")]
    pub(crate) shm_size: Option<String>,
    /// Option of the writable layer: size=10g, what it and all that is written to it may take
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) storage_opt: Vec<String>,
    /// Mount a tmpfs: PATH[:OPTIONS]
    #[arg(long, value_name = "PATH")]
    pub(crate) tmpfs: Vec<String>,
    /// Mount a folder of the host or a volume: [SOURCE:]TARGET[:ro]
    #[arg(short, long, value_name = "VOLUME")]
    pub(crate) volume: Vec<String>,
    /// Driver of the volumes that --volume makes: local
    #[arg(long, value_name = "DRIVER")]
    pub(crate) volume_driver: Option<String>,
    /// Mount the volumes of another container: CONTAINER[:ro]
    #[arg(long, value_name = "CONTAINER")]
    pub(crate) volumes_from: Vec<String>,
}

/// Network.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Network")]
pub(crate) struct NetworkFlags {
    /// DNS server
    #[arg(long, value_name = "IP")]
    pub(crate) dns: Vec<String>,
    /// Option of the resolver
    #[arg(long, visible_alias = "dns-opt", value_name = "OPTION")]
    pub(crate) dns_option: Vec<String>,
    /// DNS search domain
    #[arg(long, value_name = "DOMAIN")]
    pub(crate) dns_search: Vec<String>,
    /// Name a port without publishing it
    #[arg(long, value_name = "PORT")]
    pub(crate) expose: Vec<String>,
    /// IPv4 address in the network
    #[arg(long, value_name = "IP")]
    pub(crate) ip: Option<String>,
    /// IPv6 address in the network
    #[arg(long, value_name = "IP")]
    pub(crate) ip6: Option<String>,
    /// A name for another container, in this one: CONTAINER[:ALIAS]
    #[arg(long, value_name = "CONTAINER")]
    pub(crate) link: Vec<String>,
    /// Link-local address in the network
    #[arg(long, value_name = "IP")]
    pub(crate) link_local_ip: Vec<String>,
    /// MAC address of the container
    #[arg(long, value_name = "MAC")]
    pub(crate) mac_address: Option<String>,
    /// Network: a name, bridge, none, host, container:NAME, or name=NAME,alias=…,ip=…,ip6=…,mac-address=…
    #[arg(long, visible_alias = "net", value_name = "NETWORK")]
    pub(crate) network: Vec<String>,
    /// Another name of the container in the network
    #[arg(long, visible_alias = "net-alias", value_name = "NAME")]
    pub(crate) network_alias: Vec<String>,
    /// Limit what each interface sends and what it receives: 10mbit, 1.5gbit
    #[arg(long, value_name = "RATE")]
    pub(crate) network_rate: Option<String>,
    /// Publish a port: [[IP:]HOST_PORT:]PORT[/PROTOCOL]
    #[arg(short, long, value_name = "PORT")]
    pub(crate) publish: Vec<String>,
    /// Serve a host name at the host's ports 80 and 443: NAME[:PORT][/PROTOCOL]. Where there is a certificate of it,
    /// who comes without TLS is sent there, unless the protocol is http, or h2c (HTTP/2, for gRPC); with tls the
    /// container has TLS of its own
    #[arg(long, value_name = "NAME")]
    pub(crate) publish_host: Vec<String>,
    /// Publish all exposed ports to free ports
    #[arg(short = 'P', long)]
    pub(crate) publish_all: bool,
}

/// Limits.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Limits")]
pub(crate) struct LimitFlags {
    /// Weight of block I/O: 10 to 1000, 0 is not set
    #[arg(long, value_name = "WEIGHT")]
    pub(crate) blkio_weight: Option<u16>,
    /// Weight of block I/O of one device: DEVICE:WEIGHT
    #[arg(long, value_name = "DEVICE:WEIGHT")]
    pub(crate) blkio_weight_device: Vec<String>,
    /// Control group that the container's is made in
    #[arg(long, value_name = "GROUP")]
    pub(crate) cgroup_parent: Option<String>,
    /// Period of the CPU quota, microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    pub(crate) cpu_period: Option<i64>,
    /// CPU quota in each period, microseconds
    #[arg(long, value_name = "MICROSECONDS", allow_negative_numbers = true)]
    pub(crate) cpu_quota: Option<i64>,
    /// Period of real-time scheduling, microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    pub(crate) cpu_rt_period: Option<i64>,
    /// Real-time scheduling in each period, microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    pub(crate) cpu_rt_runtime: Option<i64>,
    /// Weight of CPU time
    #[arg(short, long, value_name = "SHARES")]
    pub(crate) cpu_shares: Option<i64>,
    /// CPUs: 1.5
    #[arg(long, value_name = "NUMBER")]
    pub(crate) cpus: Option<String>,
    /// CPUs that may be used: 0-2,4
    #[arg(long, value_name = "LIST")]
    pub(crate) cpuset_cpus: Option<String>,
    /// Memory nodes that may be used
    #[arg(long, value_name = "LIST")]
    pub(crate) cpuset_mems: Option<String>,
    /// Bytes a second read from a device: DEVICE:RATE
    #[arg(long, value_name = "DEVICE:RATE")]
    pub(crate) device_read_bps: Vec<String>,
    /// Reads a second from a device: DEVICE:RATE
    #[arg(long, value_name = "DEVICE:RATE")]
    pub(crate) device_read_iops: Vec<String>,
    /// Bytes a second written to a device: DEVICE:RATE
    #[arg(long, value_name = "DEVICE:RATE")]
    pub(crate) device_write_bps: Vec<String>,
    /// Writes a second to a device: DEVICE:RATE
    #[arg(long, value_name = "DEVICE:RATE")]
    pub(crate) device_write_iops: Vec<String>,
    /// GPUs: all, a number, or device=…,capabilities=…
    #[arg(long, value_name = "GPUS")]
    pub(crate) gpus: Vec<String>,
    /// Memory of the kernel's own
    #[arg(long, value_name = "BYTES")]
    pub(crate) kernel_memory: Option<String>,
    /// Memory
    #[arg(short, long, value_name = "BYTES")]
    pub(crate) memory: Option<String>,
    /// Soft limit of memory
    #[arg(long, value_name = "BYTES")]
    pub(crate) memory_reservation: Option<String>,
    /// Memory and swap together; -1 is unlimited
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true)]
    pub(crate) memory_swap: Option<String>,
    /// Readiness to swap: 0 to 100
    #[arg(long, value_name = "PERCENT", allow_negative_numbers = true)]
    pub(crate) memory_swappiness: Option<i64>,
    /// Do not kill when memory runs out
    #[arg(long)]
    pub(crate) oom_kill_disable: bool,
    /// Readiness of the host to kill the container: -1000 to 1000
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub(crate) oom_score_adj: Option<i64>,
    /// Processes and threads; -1 is unlimited
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub(crate) pids_limit: Option<i64>,
    /// Resource limit: NAME=SOFT[:HARD]
    #[arg(long, value_name = "LIMIT")]
    pub(crate) ulimit: Vec<String>,
}

/// Walls.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Rights and namespaces")]
pub(crate) struct SecurityFlags {
    /// Add a capability
    #[arg(long, value_name = "CAPABILITY")]
    pub(crate) cap_add: Vec<String>,
    /// Drop a capability
    #[arg(long, value_name = "CAPABILITY")]
    pub(crate) cap_drop: Vec<String>,
    /// Cgroup namespace: private, host
    #[arg(long, value_name = "NAMESPACE", value_parser = ["private", "host"])]
    pub(crate) cgroupns: Option<String>,
    /// Rule for devices: 'c 13:* rwm'
    #[arg(long, value_name = "RULE")]
    pub(crate) device_cgroup_rule: Vec<String>,
    /// IPC namespace: private, shareable, host, none
    #[arg(long, value_name = "NAMESPACE")]
    pub(crate) ipc: Option<String>,
    /// PID namespace: host, container:NAME
    #[arg(long, value_name = "NAMESPACE")]
    pub(crate) pid: Option<String>,
    /// All rights of the host's root
    #[arg(long)]
    pub(crate) privileged: bool,
    /// seccomp=FILE, seccomp=unconfined, no-new-privileges
    #[arg(long, value_name = "OPTION")]
    pub(crate) security_opt: Vec<String>,
    /// Kernel parameter of the container: NAME=VALUE
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) sysctl: Vec<String>,
    /// User namespace: host for none
    #[arg(long, value_name = "NAMESPACE")]
    pub(crate) userns: Option<String>,
    /// Host name namespace: host
    #[arg(long, value_name = "NAMESPACE")]
    pub(crate) uts: Option<String>,
}
