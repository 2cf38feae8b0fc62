//! Capabilities, filter and limits of a process: prepared before the clone, where a mistake in the
//! plan still has a good place to be reported.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use insula_host::confine::capabilities::{self, Set, Sets};
use insula_host::confine::rlimits::{self, Prepared};
use insula_host::confine::seccomp::{self, Listener};
use insula_spec::bundle::State;
use insula_spec::plan::{ContainerPlan, ProcessPlan, SeccompPlan, UserNamespace};
use insula_sys::process;
use rustix::process::Pid;

use crate::error::{Context, Error, Result};

/// Ready to be applied with few calls.
#[derive(Debug)]
pub(crate) struct Confinement {
    wanted: Set,
    /// In place of Docker's five, for a bundle.
    exact: Option<Sets>,
    last: u8,
    filter: Option<seccomp::Program>,
    /// Who decides about system calls that the filter leaves open.
    notified: Option<Notified>,
    limits: Vec<Prepared>,
    no_new_privileges: bool,
    /// What the host does not give.
    pub(crate) warnings: Vec<String>,
}

/// A receiver of the filter's descriptor: runtime specification, "The Container Process State".
#[derive(Debug)]
struct Notified {
    socket: OwnedFd,
    metadata: String,
}

impl Notified {
    /// With the rights of the host, and by a path of its.
    fn connect(listener: &Listener) -> Result<Self> {
        let path = listener.path.display();
        let socket = UnixStream::connect(&listener.path)
            .context("connect", format_args!("linux.seccomp.listenerPath {path}"))?;
        Ok(Self { socket: socket.into(), metadata: listener.metadata.clone() })
    }
}

/// Does once what every container does, for a builder that waits for one: the first time takes several
/// times as long. What fails here fails again, and is said, where it is needed.
pub fn warm_up() {
    let _ = capabilities::last();
    let _ = seccomp::default_program(Set::DEFAULT);
}

impl Confinement {
    /// For a process of the container that the plan describes.
    pub(crate) fn prepare(plan: &ContainerPlan, process: &ProcessPlan, filter: &SeccompPlan) -> Result<Self> {
        let profile = process.exact.as_ref().and_then(|exact| exact.apparmor.as_ref());
        if profile.is_some() && !has_apparmor() {
            return Err(Error::Unsupported("process.apparmorProfile: the host has no AppArmor".to_owned()));
        }
        let context = process.exact.as_ref().and_then(|exact| exact.selinux.as_ref());
        if context.is_some() && !has_selinux() {
            return Err(Error::Unsupported("process.selinuxLabel: the host has no SELinux".to_owned()));
        }
        let last = capabilities::last()?;
        let asked = Set::from_names(&process.capabilities)?;
        let mut warnings = Vec::new();
        let exact = process.exact.as_ref().map(|exact| exact_sets(&exact.capabilities, &mut warnings));
        let exact = match exact {
            Some(sets) if plan.namespaces.user == UserNamespace::Host => {
                Some(clamp(sets, capabilities::own(last)?, &mut warnings))
            }
            sets => sets,
        };
        let exact = exact.map(|sets| without_bare_ambient(sets, &mut warnings));
        let asked = exact.map_or(asked, |sets| sets.bounding);
        let wanted = if exact.is_some() {
            asked
        } else if plan.namespaces.user == UserNamespace::Host {
            let clamped = capabilities::clamp(asked, capabilities::own(last)?);
            if !clamped.missing.is_empty() && !plan.security.privileged {
                let names: Vec<_> = clamped.missing.names().collect();
                warnings.push(format!("the host does not grant {}", names.join(", ")));
            }
            clamped.kept
        } else {
            asked
        };
        let mut notified = None;
        let filter = match filter {
            SeccompPlan::Unconfined => None,
            SeccompPlan::Default => Some(seccomp::default_program(wanted)?),
            SeccompPlan::DefaultWithVsock => Some(seccomp::default_program_with_vsock(wanted)?),
            SeccompPlan::Profile(profile) if plan.bundle.is_some() => {
                let (filter, listener) = seccomp::compile_with_listener(profile, wanted)?;
                notified = listener.as_ref().map(Notified::connect).transpose()?;
                Some(filter)
            }
            SeccompPlan::Profile(profile) => Some(seccomp::compile(profile, wanted)?),
        };
        let limits = rlimits::prepare(&process.rlimits)?;
        let no_new_privileges = process.no_new_privileges;
        Ok(Self { wanted, exact, last, filter, notified, limits, no_new_privileges, warnings })
    }

    /// A descriptor to be kept until the program is executed.
    pub(crate) fn listener(&self) -> Option<BorrowedFd<'_>> {
        self.notified.as_ref().map(|notified| notified.socket.as_fd())
    }

    /// What goes with the filter's descriptor, composed while nobody decides about calls yet.
    pub(crate) fn letter(&self, told: Option<(&State, i32)>) -> Result<Vec<u8>> {
        let (Some(notified), Some((state, pid))) = (&self.notified, told) else { return Ok(Vec::new()) };
        let letter = serde_json::json!({
            "ociVersion": state.oci_version,
            "fds": ["seccompFd"],
            "pid": pid,
            "metadata": notified.metadata,
            "state": state,
        });
        Ok(letter.to_string().into_bytes())
    }

    /// Right after it is installed the filter's descriptor goes to who listens: whatever comes next may have to
    /// wait for an answer.
    fn install(&self, letter: &[u8]) -> Result<()> {
        let Some(filter) = &self.filter else { return Ok(()) };
        if let (Some(descriptor), Some(notified)) = (filter.install()?, &self.notified) {
            insula_sys::socket::send_all(notified.socket.as_fd(), letter, &[descriptor.as_fd()])
                .context("sendmsg", "to linux.seccomp.listenerPath")?;
        }
        Ok(())
    }

    /// The part that needs rights on the host: room for limits and the score for the killer of processes.
    pub(crate) fn apply_from_outside(&self, pid: i32, process: &ProcessPlan) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        for limit in &self.limits {
            warnings.extend(limit.make_room(Pid::from_raw(pid))?.map(|warning| warning.to_string()));
        }
        if let Some(score) = process.oom_score_adj {
            let path = format!("/proc/{pid}/oom_score_adj");
            match std::fs::write(&path, score.to_string()) {
                Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                    warnings.push(format!("the host does not allow an OOM score adjustment of {score}"));
                }
                result => result.context("write", path)?,
            }
        }
        Ok(warnings)
    }

    /// What comes before the change of user. Limits are the last thing before the filter, which may forbid to
    /// set them: with a few open files, or none, nothing could be received or opened.
    pub(crate) fn apply_privileged(&self, root: bool, letter: &[u8]) -> Result<Sets> {
        for limit in &self.limits {
            // What the host does not give was said already.
            limit.apply()?;
        }
        if !self.no_new_privileges {
            self.install(letter)?;
        }
        let sets = self.exact.unwrap_or_else(|| Sets::docker(self.wanted, root));
        sets.drop_bounding(self.last)?;
        sets.keep_over_setuid()?;
        Ok(sets)
    }

    /// What comes right before the execution.
    pub(crate) fn apply_last(&self, sets: &Sets, letter: &[u8]) -> Result<()> {
        sets.apply()?;
        if self.no_new_privileges {
            process::no_new_privileges().context("prctl", "PR_SET_NO_NEW_PRIVS")?;
            self.install(letter)?;
        }
        Ok(())
    }

    /// For an init of ours, which only reaps and passes signals on to a child of any user.
    pub(crate) fn apply_for_reaper(&self) -> Result<()> {
        let kill = Set::of(&["CAP_KILL"]);
        let sets = Sets { effective: kill, permitted: kill, ..Sets::default() };
        sets.drop_bounding(self.last)?;
        sets.apply()?;
        process::no_new_privileges().context("prctl", "PR_SET_NO_NEW_PRIVS")
    }
}

/// selinux(8): its file system is there where it is on.
pub(crate) fn has_selinux() -> bool {
    std::path::Path::new("/sys/fs/selinux/enforce").is_file()
}

fn has_apparmor() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'))
}

/// The five sets of a bundle's process. What has no name here is said and left out, as the standard wants it.
fn exact_sets(lists: &insula_spec::bundle::document::Capabilities, warnings: &mut Vec<String>) -> Sets {
    let mut unknown: Vec<String> = Vec::new();
    let mut set = |list: &Option<Vec<String>>| {
        let mut bits = 0;
        for name in list.iter().flatten() {
            match capabilities::number(name) {
                Ok(number) => bits |= 1_u64 << number,
                Err(_) => unknown.push(name.clone()),
            }
        }
        Set::from_bits(bits)
    };
    let sets = Sets {
        bounding: set(&lists.bounding),
        effective: set(&lists.effective),
        permitted: set(&lists.permitted),
        inheritable: set(&lists.inheritable),
        ambient: set(&lists.ambient),
    };
    unknown.sort_unstable();
    unknown.dedup();
    warnings.extend(unknown.iter().map(|name| format!("no capability is called {name}")));
    sets
}

/// The kernel has nothing ambient that is not permitted and inheritable: capabilities(7). Some engines ask for it.
fn without_bare_ambient(sets: Sets, warnings: &mut Vec<String>) -> Sets {
    let possible = sets.permitted & sets.inheritable;
    let bare = sets.ambient - possible;
    if !bare.is_empty() {
        let names: Vec<_> = bare.names().collect();
        warnings
            .push(format!("not ambient, since they are not permitted and inheritable: {}", names.join(", ")));
    }
    Sets { ambient: sets.ambient & possible, ..sets }
}

/// What the builder can hand on of them.
fn clamp(sets: Sets, available: Set, warnings: &mut Vec<String>) -> Sets {
    let missing = (sets.bounding | sets.permitted | sets.inheritable) - available;
    if !missing.is_empty() {
        let names: Vec<_> = missing.names().collect();
        warnings.push(format!("the host does not grant {}", names.join(", ")));
    }
    Sets {
        bounding: sets.bounding & available,
        effective: sets.effective & available,
        permitted: sets.permitted & available,
        inheritable: sets.inheritable & available,
        ambient: sets.ambient & available,
    }
}
