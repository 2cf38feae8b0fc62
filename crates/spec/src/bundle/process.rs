//! `process`.

use super::document::{Process, Rlimit as Limit};
use super::{ExactPlan, Result, invalid, placement, scheduling, unsupported};
use crate::plan::{ProcessPlan, Rlimit, StdioPlan};

/// A process of a bundle's container; `at` is what messages call it.
pub fn process(process: &Process, at: &str) -> Result<ProcessPlan> {
    refuse(process, at)?;
    let args = process.args.clone().unwrap_or_default();
    if args.first().is_none_or(String::is_empty) {
        return Err(invalid(format!("{at}.args"), "names no program"));
    }
    let cwd = process.cwd.clone().unwrap_or_default();
    if !cwd.starts_with('/') {
        return Err(invalid(format!("{at}.cwd"), format!("{cwd:?} is not an absolute path")));
    }
    let env = process.env.clone().unwrap_or_default();
    if let Some(number) = env.iter().position(|entry| entry.find('=').is_none_or(|at| at == 0)) {
        return Err(invalid(format!("{at}.env[{number}]"), "is not NAME=value"));
    }
    let user = process.user.clone().unwrap_or_default();
    Ok(ProcessPlan {
        args,
        env,
        cwd,
        no_new_privileges: process.no_new_privileges.unwrap_or(false),
        rlimits: rlimits(process.rlimits.as_deref().unwrap_or_default(), at)?,
        oom_score_adj: oom_score(process.oom_score_adj, at)?,
        exact: Some(Box::new(ExactPlan {
            uid: user.uid.unwrap_or(0),
            gid: user.gid.unwrap_or(0),
            groups: user.additional_gids.unwrap_or_default(),
            umask: user.umask,
            capabilities: process.capabilities.clone().unwrap_or_default(),
            scheduler: scheduling::scheduler(process.scheduler.as_ref(), &format!("{at}.scheduler"))?,
            io_priority: scheduling::io_priority(process.io_priority.as_ref(), &format!("{at}.ioPriority"))?,
            personality: None,
            apparmor: apparmor(process, at)?,
            selinux: label(process.selinux_label.as_ref(), || format!("{at}.selinuxLabel"))?,
            affinity: placement::affinity(
                process.exec_cpu_affinity.as_ref(),
                &format!("{at}.execCPUAffinity"),
            )?,
            memory_policy: None,
        })),
        ..ProcessPlan::default()
    })
}

/// Its standard streams.
#[must_use]
pub fn terminal(process: &Process) -> StdioPlan {
    let size = process.console_size.clone().unwrap_or_default();
    StdioPlan {
        tty: process.terminal.unwrap_or(false),
        columns: size.width.unwrap_or(0),
        rows: size.height.unwrap_or(0),
        ..StdioPlan::default()
    }
}

fn refuse(process: &Process, at: &str) -> Result<()> {
    super::convert::absent(&format!("{at}.commandLine"), process.command_line.as_ref())
}

/// Names of profiles are anything but what ends the kernel's command.
fn apparmor(process: &Process, at: &str) -> Result<Option<String>> {
    let profile = process.apparmor_profile.clone().filter(|profile| !profile.is_empty());
    match profile {
        Some(profile) if profile.contains(['\0', '\n']) => {
            Err(invalid(format!("{at}.apparmorProfile"), format!("{profile:?} is no name of a profile")))
        }
        profile => Ok(profile),
    }
}

/// A context of SELinux: user, role, type and what the policy has besides.
pub(super) fn label(label: Option<&String>, at: impl Fn() -> String) -> Result<Option<String>> {
    match label.filter(|label| !label.is_empty()) {
        Some(label) if label.contains(['\0', '\n', '"']) || label.split(':').count() < 3 => {
            Err(invalid(at(), format!("{label:?} is no context of SELinux")))
        }
        label => Ok(label.cloned()),
    }
}

fn oom_score(score: Option<i32>, at: &str) -> Result<Option<i32>> {
    match score {
        Some(score) if !(-1000..=1000).contains(&score) => {
            Err(invalid(format!("{at}.oomScoreAdj"), format!("{score} is not from -1000 to 1000")))
        }
        score => Ok(score),
    }
}

fn rlimits(limits: &[Limit], at: &str) -> Result<Vec<Rlimit>> {
    let mut all: Vec<Rlimit> = Vec::new();
    for (number, limit) in limits.iter().enumerate() {
        let field = format!("{at}.rlimits[{number}].type");
        let Some(name) = limit.kind.strip_prefix("RLIMIT_").map(str::to_lowercase) else {
            return Err(invalid(field, format!("{:?} is not the name of a limit", limit.kind)));
        };
        if all.iter().any(|known| known.name == name) {
            return Err(invalid(field, format!("{} is there twice", limit.kind)));
        }
        if limit.soft > limit.hard {
            return Err(unsupported(field, "a soft limit above the hard one"));
        }
        all.push(Rlimit { name, soft: limit.soft, hard: limit.hard });
    }
    Ok(all)
}
