//! Kernel parameters that a namespace has for itself: namespaces(7), the kernel's `Documentation/admin-guide/sysctl`.

/// Whose parameter it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SysctlOwner {
    Ipc,
    Network,
    Uts,
}

/// Which namespace has the parameter `name` (`net.ipv4.ip_forward`, dots between its parts) for itself;
/// none: it is the host's.
#[must_use]
pub fn sysctl_owner(name: &str) -> Option<SysctlOwner> {
    match name {
        "kernel.msgmax"
        | "kernel.msgmnb"
        | "kernel.msgmni"
        | "kernel.sem"
        | "kernel.shmall"
        | "kernel.shmmax"
        | "kernel.shmmni"
        | "kernel.shm_rmid_forced" => Some(SysctlOwner::Ipc),
        "kernel.domainname" | "kernel.hostname" => Some(SysctlOwner::Uts),
        _ if name.starts_with("fs.mqueue.") => Some(SysctlOwner::Ipc),
        _ if name.starts_with("net.") => Some(SysctlOwner::Network),
        _ => None,
    }
}
