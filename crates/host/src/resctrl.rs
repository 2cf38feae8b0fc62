//! Shares of caches and of memory bandwidth: the kernel's document `filesystems/resctrl`.

use std::io;
use std::path::{Path, PathBuf};

use insula_base::{Kind, Kinded};
use insula_spec::bundle::RdtPlan;

/// Where distributions mount it.
const ROOT: &str = "/sys/fs/resctrl";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "linux.intelRdt: the host has no {ROOT}: mount -t resctrl resctrl {ROOT}, if the processor has it"
    )]
    Missing,
    #[error("linux.intelRdt: there is a group {0:?} that is not the container's")]
    Exists(String),
    #[error("linux.intelRdt.closID: there is no group {0:?}, and nothing is said of what it should have")]
    Unknown(String),
    #[error("linux.intelRdt: the group {group:?} has not the line {line:?}")]
    Different { group: String, line: String },
    #[error("{call} {on}")]
    Call { call: &'static str, on: String, source: io::Error },
}

impl Kinded for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Missing => Kind::Unsupported,
            Self::Exists(_) => Kind::AlreadyExists,
            Self::Unknown(_) | Self::Different { .. } => Kind::InvalidArgument,
            Self::Call { .. } => Kind::Internal,
        }
    }
}

fn context<T>(result: io::Result<T>, call: &'static str, on: &Path) -> Result<T, Error> {
    result.map_err(|source| Error::Call { call, on: on.display().to_string(), source })
}

/// The groups of this host.
#[derive(Debug)]
pub struct Resctrl {
    root: PathBuf,
}

impl Resctrl {
    /// Looks whether there are any.
    pub fn probe() -> Result<Self, Error> {
        if Path::new(ROOT).join("schemata").is_file() {
            Ok(Self { root: ROOT.into() })
        } else {
            Err(Error::Missing)
        }
    }

    /// Makes the group of the plan where it is the container's own, or says what it should have, and puts a process
    /// into it.
    pub fn join(&self, plan: &RdtPlan, pid: i32) -> Result<(), Error> {
        let group = self.root.join(&plan.group);
        let made = match std::fs::create_dir(&group) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && plan.own => {
                return Err(Error::Exists(plan.group.clone()));
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            made => context(made, "mkdir", &group).map(|()| true)?,
        };
        let joined = self.fill(plan, &group, made).and_then(|()| self.add(plan, pid));
        if joined.is_err() && made {
            // The first error is the one to report.
            let _ = std::fs::remove_dir(&group);
        }
        joined
    }

    /// Puts a process, and with it what it forks, into the group that there is.
    pub fn add(&self, plan: &RdtPlan, pid: i32) -> Result<(), Error> {
        let tasks = self.root.join(&plan.group).join("tasks");
        context(std::fs::write(&tasks, pid.to_string()), "write", &tasks)
    }

    /// Has the calling process go back to the group that it is in now when the result is dropped. Whatever it makes
    /// meanwhile stays where it began.
    pub fn visit(&self) -> Result<Visit<'_>, Error> {
        const OWN: &str = "/proc/self/cpu_resctrl_groups";
        let said = match std::fs::read_to_string(OWN) {
            // A kernel that does not say it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            said => context(said, "read", Path::new(OWN))?,
        };
        Ok(Visit { resctrl: self, group: own_group(&said).to_owned() })
    }

    fn fill(&self, plan: &RdtPlan, group: &Path, made: bool) -> Result<(), Error> {
        let schemata = group.join("schemata");
        if made && !plan.own && plan.schemata.is_empty() {
            return Err(Error::Unknown(plan.group.clone()));
        }
        if made || plan.own {
            // The kernel takes one line at a time.
            return plan.schemata.iter().try_for_each(|line| {
                context(std::fs::write(&schemata, format!("{line}\n")), "write", &schemata)
            });
        }
        let there = context(std::fs::read_to_string(&schemata), "read", &schemata)?;
        let lines: Vec<&str> = there.lines().map(str::trim).collect();
        match plan.schemata.iter().find(|line| !lines.contains(&line.trim())) {
            None => Ok(()),
            Some(line) => Err(Error::Different { group: plan.group.clone(), line: line.clone() }),
        }
    }

    /// Removes the group of a container that has ended, where it is its own.
    pub fn leave(&self, plan: &RdtPlan) -> Result<(), Error> {
        if !plan.own {
            return Ok(());
        }
        let group = self.root.join(&plan.group);
        match std::fs::remove_dir(&group) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => context(removed, "rmdir", &group),
        }
    }
}

/// Of `res:/NAME` and a line on what is monitored. The group of all others is the root.
fn own_group(said: &str) -> &str {
    said.lines().find_map(|line| line.strip_prefix("res:")).map_or("", |path| path.trim().trim_matches('/'))
}

/// The calling process as a guest in another group.
#[derive(Debug)]
pub struct Visit<'a> {
    resctrl: &'a Resctrl,
    group: String,
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        let tasks = self.resctrl.root.join(&self.group).join("tasks");
        // Where its own group is gone meanwhile it stays.
        let _ = std::fs::write(tasks, std::process::id().to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_visits_goes_home() {
        assert_eq!(own_group("res:/gold\nmon:/\n"), "gold");
        assert_eq!((own_group("res:/\nmon:\n"), own_group("res:\nmon:\n"), own_group("")), ("", "", ""));
        let (folder, resctrl) = host();
        drop(Visit { resctrl: &resctrl, group: String::new() });
        let tasks = std::fs::read_to_string(folder.path().join("tasks")).unwrap();
        assert_eq!(tasks, std::process::id().to_string());
    }

    /// What the kernel would fill a new folder with is written by hand.
    fn host() -> (tempfile::TempDir, Resctrl) {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_owned();
        (folder, Resctrl { root })
    }

    fn plan(group: &str, own: bool, lines: &[&str]) -> RdtPlan {
        RdtPlan { group: group.into(), own, schemata: lines.iter().map(|line| (*line).to_owned()).collect() }
    }

    #[test]
    fn a_group_of_its_own_is_made_and_filled() {
        let (folder, resctrl) = host();
        resctrl.join(&plan("box", true, &["L3:0=f"]), 7).unwrap();
        let taken = resctrl.join(&plan("box", true, &["L3:0=1"]), 8).unwrap_err();
        assert_eq!(taken.to_string(), "linux.intelRdt: there is a group \"box\" that is not the container's");
        let read = |name: &str| std::fs::read_to_string(folder.path().join("box").join(name)).unwrap();
        assert_eq!((read("schemata").as_str(), read("tasks").as_str()), ("L3:0=f\n", "7"));
        resctrl.add(&plan("box", true, &[]), 9).unwrap();
        assert_eq!(std::fs::read_to_string(folder.path().join("box/tasks")).unwrap(), "9");
        for name in ["schemata", "tasks"] {
            std::fs::remove_file(folder.path().join("box").join(name)).unwrap();
        }
        resctrl.leave(&plan("box", true, &[])).unwrap();
        assert!(!folder.path().join("box").exists());
        resctrl.leave(&plan("box", true, &[])).unwrap();
    }

    #[test]
    fn a_group_of_others_is_left_as_it_is() {
        let (folder, resctrl) = host();
        let shared = folder.path().join("gold");
        std::fs::create_dir(&shared).unwrap();
        std::fs::write(shared.join("schemata"), "    L3:0=ff;1=f0\n    MB:0=50\n").unwrap();
        resctrl.join(&plan("gold", false, &["MB:0=50"]), 9).unwrap();
        let error = resctrl.join(&plan("gold", false, &["MB:0=60"]), 9).unwrap_err();
        assert_eq!(error.to_string(), "linux.intelRdt: the group \"gold\" has not the line \"MB:0=60\"");
        resctrl.leave(&plan("gold", false, &[])).unwrap();
        assert!(shared.join("tasks").exists());
        let error = resctrl.join(&plan("none", false, &[]), 9).unwrap_err();
        assert!(matches!(error, Error::Unknown(_)) && !folder.path().join("none").exists());
    }
}
