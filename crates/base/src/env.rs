//! Every environment variable that insula reads, declared once.

/// Folder of persistent state; `/var/lib/insula` without it. The flag `--root` wins.
pub const ROOT: &str = "INSULA_ROOT";
/// Folder of run-time state; `/run/insula` without it. The flag `--run` wins.
pub const RUN: &str = "INSULA_RUN";
/// Where the CLI finds the daemon (`unix:///run/insula/insula.sock`). The flag `--host` wins.
pub const HOST: &str = "INSULA_HOST";
/// What is logged, in `tracing`'s filter syntax (`info`, `insula_engine=debug`).
pub const LOG: &str = "INSULA_LOG";
/// Folder in which the CLI and the daemon look for their sister programs before their own folder.
pub const LIBEXEC: &str = "INSULA_LIBEXEC";
/// Folder of Docker's configuration, where credentials for registries are; `.docker` in [`HOME`] without
/// it.
pub const DOCKER_CONFIG: &str = "DOCKER_CONFIG";
/// The user's own folder.
pub const HOME: &str = "HOME";

/// Folder of what a user's programs keep; `.local/share` in [`HOME`] without it.
pub const XDG_DATA_HOME: &str = "XDG_DATA_HOME";
/// Folder of what lives as long as a user's session; `/run/user/UID` without it.
pub const XDG_RUNTIME_DIR: &str = "XDG_RUNTIME_DIR";
/// Folder of a user's configuration; `.config` in [`HOME`] without it.
pub const XDG_CONFIG_HOME: &str = "XDG_CONFIG_HOME";

/// Where the host's bus of messages is, `unix:path=…`; `/run/dbus/system_bus_socket` without it.
pub const DBUS_SYSTEM_BUS_ADDRESS: &str = "DBUS_SYSTEM_BUS_ADDRESS";
/// Where that of the user's session is; `bus` in [`XDG_RUNTIME_DIR`] without it.
pub const DBUS_SESSION_BUS_ADDRESS: &str = "DBUS_SESSION_BUS_ADDRESS";

/// Path of the socket at which containerd takes events of its shims, which it tells them.
pub const CONTAINERD_EVENTS: &str = "TTRPC_ADDRESS";

/// The daemon's configuration file. The flag `--config` wins.
pub const CONFIG: &str = "INSULA_CONFIG";

/// The default of [`CONFIG`]; it need not be there.
pub const DEFAULT_CONFIG: &str = "/etc/insula/insulad.toml";

/// File that names the failpoint at which the daemon or a monitor is to be killed. Read by builds for
/// development only.
pub const FAILPOINT: &str = "INSULA_FAILPOINT";

/// The default of [`ROOT`].
pub const DEFAULT_ROOT: &str = "/var/lib/insula";
/// The default of [`RUN`].
pub const DEFAULT_RUN: &str = "/run/insula";
