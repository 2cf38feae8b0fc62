//! One facility of the kernel a module; no idea of containers.

pub mod cgroup;
pub mod confine;
pub mod disk;
pub mod firewall;
pub mod guest;
pub mod hardware;
pub mod netlink;
pub mod process;
pub mod quota;
pub mod resctrl;
pub mod resolver;
pub mod rootless;
pub mod systemd;
