//! What containers may not ask of the host, whoever asks: for daemons whose socket is given to
//! people who are not root.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use insula_models::{ExecCreateRequest, HostConfig};

use crate::containers::row::{MountRow, SourceRow};
use crate::{Error, Result};

/// Folders of the host that give it away to who can write, or read, them.
const PRECIOUS: [&str; 12] =
    ["/bin", "/boot", "/dev", "/etc", "/lib", "/proc", "/root", "/run", "/sbin", "/sys", "/usr", "/var"];

/// One thing that is forbidden.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Forbidden {
    /// `--privileged`, of containers and of `exec`.
    Privileged,
    /// Bind mounts of `/` and of the folders that hold the system, and the built-in image `host`.
    HostRoot,
    /// All bind mounts.
    BindMounts,
    /// Network, process, IPC, UTS, user and cgroup namespaces of the host.
    HostNamespaces,
    /// Devices of the host.
    Devices,
    /// More capabilities than containers have.
    Capabilities,
    /// `--security-opt` that lifts the system call filter or shows masked paths.
    Unconfined,
}

impl Forbidden {
    /// All, by the names that they are configured with.
    pub const ALL: [(&'static str, Self); 7] = [
        ("privileged", Self::Privileged),
        ("host-root", Self::HostRoot),
        ("bind-mounts", Self::BindMounts),
        ("host-namespaces", Self::HostNamespaces),
        ("devices", Self::Devices),
        ("capabilities", Self::Capabilities),
        ("unconfined", Self::Unconfined),
    ];
}

/// No such thing can be forbidden.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} cannot be forbidden: {names} can", names = Forbidden::ALL.map(|(name, _)| name).join(", "))]
pub struct UnknownForbidden(String);

impl FromStr for Forbidden {
    type Err = UnknownForbidden;

    fn from_str(text: &str) -> Result<Self, UnknownForbidden> {
        let found = Self::ALL.into_iter().find(|(name, _)| *name == text);
        found.map(|(_, forbidden)| forbidden).ok_or_else(|| UnknownForbidden(text.to_owned()))
    }
}

/// The rules of one daemon; without any, everything that root may do is allowed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    pub forbidden: Vec<Forbidden>,
    /// Bind mounts are allowed below these folders alone, where there are any.
    pub bind_below: Vec<PathBuf>,
}

fn denied<T>(what: &str) -> Result<T> {
    Err(Error::Denied(format!("{what} is forbidden by the policy of this daemon")))
}

impl Policy {
    fn forbids(&self, what: Forbidden) -> bool {
        self.forbidden.contains(&what)
    }

    /// What a container asks for, mounts apart. `builtin` are the images that show the host itself.
    pub(crate) fn check(&self, host: &HostConfig, builtin: bool) -> Result<()> {
        if self.forbids(Forbidden::Privileged) && host.privileged {
            return denied("HostConfig.Privileged");
        }
        if self.forbids(Forbidden::HostRoot) && builtin {
            return denied("the image host, which shows the files of the host,");
        }
        if self.forbids(Forbidden::HostNamespaces) {
            let modes = [
                ("NetworkMode", &host.network_mode),
                ("PidMode", &host.pid_mode),
                ("IpcMode", &host.ipc_mode),
                ("UTSMode", &host.uts_mode),
                ("UsernsMode", &host.userns_mode),
                ("CgroupnsMode", &host.cgroupns_mode),
            ];
            if let Some((field, _)) = modes.iter().find(|(_, mode)| *mode == "host") {
                return denied(&format!("HostConfig.{field} \"host\""));
            }
        }
        let devices = !host.devices.is_empty()
            || !host.device_cgroup_rules.is_empty()
            || !host.device_requests.is_empty();
        // A privileged container has all of them.
        if self.forbids(Forbidden::Devices) && (devices || host.privileged) {
            return denied("a device of the host");
        }
        if self.forbids(Forbidden::Capabilities) && (!host.cap_add.is_empty() || host.privileged) {
            return denied("HostConfig.CapAdd");
        }
        if self.forbids(Forbidden::Unconfined) {
            let lifted = |option: &&String| {
                option.contains("unconfined")
                    || option.starts_with("seccomp")
                    || option.starts_with("label")
                    || option.starts_with("apparmor")
            };
            if let Some(option) = host.security_opt.iter().find(lifted) {
                return denied(&format!("HostConfig.SecurityOpt {option:?}"));
            }
            if host.masked_paths.is_some() || host.readonly_paths.is_some() || host.privileged {
                return denied("showing paths that are masked");
            }
        }
        Ok(())
    }

    /// A process beside a container's first one.
    pub(crate) fn check_exec(&self, request: &ExecCreateRequest) -> Result<()> {
        if request.privileged
            && (self.forbids(Forbidden::Privileged) || self.forbids(Forbidden::Capabilities))
        {
            return denied("Privileged");
        }
        Ok(())
    }

    /// Bind mounts by what they lead to. The path is kept without links, so that whoever can write
    /// below an allowed folder cannot lead it elsewhere afterwards without being noticed.
    pub(crate) fn check_mounts(&self, mounts: &mut [MountRow]) -> Result<()> {
        for mount in mounts {
            if let SourceRow::Bind { path, .. } | SourceRow::Volume { folder: Some(path), .. } =
                &mut mount.source
            {
                *path = self.bind_source(path)?;
            }
        }
        Ok(())
    }

    /// As [`Policy::check_mounts`] right before a start.
    pub(crate) fn check_again(&self, mounts: &[MountRow]) -> Result<()> {
        for mount in mounts {
            let (SourceRow::Bind { path, .. } | SourceRow::Volume { folder: Some(path), .. }) = &mount.source
            else {
                continue;
            };
            let real = self.bind_source(path)?;
            if real != *path {
                return denied(&format!(
                    "the bind mount of {}, which leads to {} now,",
                    path.display(),
                    real.display()
                ));
            }
        }
        Ok(())
    }

    fn bind_source(&self, path: &Path) -> Result<PathBuf> {
        let restricted = self.forbids(Forbidden::HostRoot) || !self.bind_below.is_empty();
        let what = || format!("the bind mount of {}", path.display());
        if self.forbids(Forbidden::BindMounts) {
            return denied(&what());
        }
        if !restricted {
            return Ok(path.to_owned());
        }
        let real = resolve(path)?;
        // An own folder in a precious one, and one that holds a precious one, are as good as it.
        let precious =
            || PRECIOUS.iter().any(|folder| real.starts_with(folder) || Path::new(folder).starts_with(&real));
        if self.forbids(Forbidden::HostRoot) && precious() && !self.below(&real) {
            return denied(&what());
        }
        if !self.bind_below.is_empty() && !self.below(&real) {
            return denied(&what());
        }
        Ok(real)
    }

    fn below(&self, path: &Path) -> bool {
        self.bind_below.iter().any(|folder| path.starts_with(folder))
    }
}

/// The path with its links resolved; what is not there yet is made as written below what is there.
fn resolve(path: &Path) -> Result<PathBuf> {
    let mut there = path;
    let mut missing = Vec::new();
    loop {
        match there.canonicalize() {
            Ok(real) => return Ok(missing.iter().rev().fold(real, |real, name| real.join(name))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let (Some(parent), Some(name)) = (there.parent(), there.file_name()) else {
                    return Err(Error::io("realpath", path, error));
                };
                // A link that leads nowhere yet would lead somewhere later.
                if there.is_symlink() {
                    return denied(&format!(
                        "the bind mount of {}, a link that leads nowhere,",
                        path.display()
                    ));
                }
                missing.push(name);
                there = parent;
            }
            Err(error) => return Err(Error::io("realpath", path, error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(forbidden: &[Forbidden]) -> Policy {
        Policy { forbidden: forbidden.to_vec(), ..Policy::default() }
    }

    #[test]
    fn what_is_forbidden_is_refused_and_the_rest_is_not() {
        let plain = HostConfig::default();
        let privileged = HostConfig { privileged: true, ..HostConfig::default() };
        let network = HostConfig { network_mode: "host".to_owned(), ..HostConfig::default() };
        let adding = HostConfig { cap_add: vec!["SYS_ADMIN".to_owned()].into(), ..HostConfig::default() };
        let open =
            HostConfig { security_opt: vec!["seccomp=unconfined".to_owned()], ..HostConfig::default() };
        for (_, forbidden) in Forbidden::ALL {
            policy(&[forbidden]).check(&plain, false).unwrap();
        }
        let refused = |forbidden, host: &HostConfig| policy(&[forbidden]).check(host, false).is_err();
        assert!(refused(Forbidden::Privileged, &privileged) && refused(Forbidden::Devices, &privileged));
        assert!(refused(Forbidden::HostNamespaces, &network) && !refused(Forbidden::Privileged, &network));
        assert!(refused(Forbidden::Capabilities, &adding) && refused(Forbidden::Unconfined, &open));
        assert!(policy(&[Forbidden::HostRoot]).check(&plain, true).is_err());
        let error = policy(&[Forbidden::Privileged]).check(&privileged, false).unwrap_err().to_string();
        assert_eq!(error, "HostConfig.Privileged is forbidden by the policy of this daemon");
        let exec = ExecCreateRequest { privileged: true, ..ExecCreateRequest::default() };
        assert!(policy(&[Forbidden::Privileged]).check_exec(&exec).is_err());
        assert!(Policy::default().check_exec(&exec).is_ok());
    }

    #[test]
    fn binds_are_judged_by_what_they_lead_to() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().canonicalize().unwrap();
        let allowed = base.join("allowed");
        std::fs::create_dir_all(allowed.join("in")).unwrap();
        std::os::unix::fs::symlink("/", allowed.join("out")).unwrap();
        std::os::unix::fs::symlink("/nowhere/at/all", allowed.join("dangling")).unwrap();
        let below = Policy { bind_below: vec![allowed.clone()], ..Policy::default() };
        assert_eq!(below.bind_source(&allowed.join("in")).unwrap(), allowed.join("in"));
        assert_eq!(below.bind_source(&allowed.join("new/one")).unwrap(), allowed.join("new/one"));
        for bad in
            [base.clone(), "/".into(), allowed.join("out"), allowed.join("out/etc"), allowed.join("dangling")]
        {
            assert!(below.bind_source(&bad).is_err(), "{}", bad.display());
        }
        let root = policy(&[Forbidden::HostRoot]);
        for bad in ["/", "/etc", "/etc/passwd", "/usr/bin", "/var/run/docker.sock", "/proc/1/root"] {
            assert!(root.bind_source(Path::new(bad)).is_err(), "{bad}");
        }
        assert!(root.bind_source(Path::new("/srv/data")).is_ok());
        assert!(root.bind_source(&allowed.join("out")).is_err());
        assert!(policy(&[Forbidden::BindMounts]).bind_source(&allowed).is_err());
    }

    #[test]
    fn a_volume_leads_no_further_than_a_bind() {
        let volume = |folder: &str| {
            let folder = Some(PathBuf::from(folder));
            let source = SourceRow::Volume { name: "v".into(), anonymous: false, copy: false, folder };
            [MountRow { target: "/v".into(), source, readonly: false, mode: String::new() }]
        };
        for policy in [policy(&[Forbidden::HostRoot]), policy(&[Forbidden::BindMounts])] {
            assert!(policy.check_mounts(&mut volume("/etc")).is_err());
            assert!(policy.check_again(&volume("/etc")).is_err());
        }
        assert!(policy(&[Forbidden::HostRoot]).check_mounts(&mut volume("/srv/data")).is_ok());
    }

    #[test]
    fn names_are_those_of_the_configuration() {
        for (name, forbidden) in Forbidden::ALL {
            assert_eq!(name.parse(), Ok(forbidden));
        }
        assert!("everything".parse::<Forbidden>().unwrap_err().to_string().contains("host-root"));
    }
}
