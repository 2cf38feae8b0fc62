//! Capabilities, filter and limits of a process: prepared before the clone, where a mistake in the
//! plan still has a good place to be reported.

use insula_host::confine::capabilities::{self, Set, Sets};
use insula_host::confine::rlimits::{self, Prepared};
use insula_host::confine::seccomp;
use insula_spec::plan::{ContainerPlan, ProcessPlan, SeccompPlan, UserNamespace};
use insula_sys::process;
use rustix::process::Pid;

use crate::error::{Context, Result};

/// Ready to be applied with few calls.
#[derive(Debug)]
pub(crate) struct Confinement {
    wanted: Set,
    last: u8,
    filter: Option<seccomp::Program>,
    limits: Vec<Prepared>,
    no_new_privileges: bool,
    /// What the host does not give.
    pub(crate) warnings: Vec<String>,
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
        let last = capabilities::last()?;
        let asked = Set::from_names(&process.capabilities)?;
        let mut warnings = Vec::new();
        let wanted = if plan.namespaces.user == UserNamespace::Host {
            let clamped = capabilities::clamp(asked, capabilities::own(last)?);
            if !clamped.missing.is_empty() && !plan.security.privileged {
                let names: Vec<_> = clamped.missing.names().collect();
                warnings.push(format!("the host does not grant {}", names.join(", ")));
            }
            clamped.kept
        } else {
            asked
        };
        let filter = match filter {
            SeccompPlan::Unconfined => None,
            SeccompPlan::Default => Some(seccomp::default_program(wanted)?),
            SeccompPlan::Profile(profile) => Some(seccomp::compile(profile, wanted)?),
        };
        let limits = rlimits::prepare(&process.rlimits)?;
        let no_new_privileges = process.no_new_privileges;
        Ok(Self { wanted, last, filter, limits, no_new_privileges, warnings })
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
    pub(crate) fn apply_privileged(&self, root: bool) -> Result<Sets> {
        for limit in &self.limits {
            // What the host does not give was said already.
            limit.apply()?;
        }
        if !self.no_new_privileges
            && let Some(filter) = &self.filter
        {
            filter.install()?;
        }
        let sets = Sets::docker(self.wanted, root);
        sets.drop_bounding(self.last)?;
        sets.keep_over_setuid()?;
        Ok(sets)
    }

    /// What comes right before the execution.
    pub(crate) fn apply_last(&self, sets: &Sets) -> Result<()> {
        sets.apply()?;
        if self.no_new_privileges {
            process::no_new_privileges().context("prctl", "PR_SET_NO_NEW_PRIVS")?;
            if let Some(filter) = &self.filter {
                filter.install()?;
            }
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
