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
        let counted = self.fill(plan, &group, made).and_then(|()| self.count(plan));
        let joined = counted.and_then(|()| {
            self.add(plan, pid).inspect_err(|_| {
                // The first error is the one to report, here and below.
                let _ = self.monitor(plan).map(std::fs::remove_dir);
            })
        });
        if joined.is_err() && made {
            let _ = std::fs::remove_dir(&group);
        }
        joined
    }

    /// Puts a process, and with it what it forks, into the group that there is.
    pub fn add(&self, plan: &RdtPlan, pid: i32) -> Result<(), Error> {
        // That it is counted in takes only who is in the one above.
        let groups = [Some(self.root.join(&plan.group)), self.monitor(plan)];
        groups.into_iter().flatten().try_for_each(|group| {
            let tasks = group.join("tasks");
            context(std::fs::write(&tasks, pid.to_string()), "write", &tasks)
        })
    }

    fn count(&self, plan: &RdtPlan) -> Result<(), Error> {
        let Some(folder) = self.monitor(plan) else { return Ok(()) };
        match std::fs::create_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(Error::Exists(folder.display().to_string()))
            }
            made => context(made, "mkdir", &folder),
        }
    }

    /// The folder of what is counted for this container alone.
    fn monitor(&self, plan: &RdtPlan) -> Option<PathBuf> {
        Some(monitor(&self.root, &plan.group, plan.monitor.as_ref()?))
    }

    /// Has the calling process go back to the group that it is in now when the result is dropped. Whatever it makes
    /// meanwhile stays where it began.
    pub fn visit(&self) -> Result<Visit, Error> {
        const OWN: &str = "/proc/self/cpu_resctrl_groups";
        let said = match std::fs::read_to_string(OWN) {
            // A kernel that does not say it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            said => context(said, "read", Path::new(OWN))?,
        };
        Ok(Visit { homes: own_groups(&self.root, &said) })
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

    /// Removes what is its own of the groups of a container that has ended.
    pub fn leave(&self, plan: &RdtPlan) -> Result<(), Error> {
        let own = plan.own.then(|| self.root.join(&plan.group));
        self.monitor(plan).into_iter().chain(own).try_for_each(|group| match std::fs::remove_dir(&group) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => context(removed, "rmdir", &group),
        })
    }
}

fn monitor(root: &Path, group: &str, name: &str) -> PathBuf {
    root.join(group).join("mon_groups").join(name)
}

/// Of `res:NAME` and `mon:NAME`, in the order in which they are entered. The group of all others is `/`, and that of who
/// is not counted apart has no name.
fn own_groups(root: &Path, said: &str) -> Vec<PathBuf> {
    let name = |key| {
        let line = said.lines().find_map(|line: &str| line.strip_prefix(key));
        line.map_or("", |path| path.trim().trim_matches('/'))
    };
    match (name("res:"), name("mon:")) {
        (group, "") => vec![root.join(group)],
        (group, counted) => vec![root.join(group), monitor(root, group, counted)],
    }
}

/// The calling process as a guest in another group.
#[derive(Debug)]
pub struct Visit {
    homes: Vec<PathBuf>,
}

impl Drop for Visit {
    fn drop(&mut self) {
        // That it is counted in takes only who is in the one above. Where its own group is gone meanwhile it stays.
        for home in &self.homes {
            let _ = std::fs::write(home.join("tasks"), std::process::id().to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_visits_goes_home() {
        let homes = |said: &str| own_groups(Path::new("/r"), said);
        let paths = |list: &[&str]| list.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(homes("res:gold\nmon:\n"), paths(&["/r/gold"]));
        assert_eq!(homes("res:gold\nmon:box\n"), paths(&["/r/gold", "/r/gold/mon_groups/box"]));
        assert_eq!(homes("res:/\nmon:box\n"), paths(&["/r/", "/r/mon_groups/box"]));
        for nowhere in ["res:/\nmon:\n", "res:\nmon:\n", ""] {
            assert_eq!(homes(nowhere), paths(&["/r"]));
        }
        let (folder, resctrl) = host();
        std::fs::create_dir_all(folder.path().join("mon_groups/box")).unwrap();
        drop(Visit { homes: own_groups(&resctrl.root, "res:/\nmon:box\n") });
        for tasks in ["tasks", "mon_groups/box/tasks"] {
            let tasks = std::fs::read_to_string(folder.path().join(tasks)).unwrap();
            assert_eq!(tasks, std::process::id().to_string());
        }
    }

    /// What the kernel would fill a new folder with is written by hand.
    fn host() -> (tempfile::TempDir, Resctrl) {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_owned();
        (folder, Resctrl { root })
    }

    fn plan(group: &str, own: bool, lines: &[&str]) -> RdtPlan {
        let schemata = lines.iter().map(|line| (*line).to_owned()).collect();
        RdtPlan { group: group.into(), own, schemata, monitor: None }
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
    #[test]
    fn a_container_is_counted_in_a_group_of_its_own() {
        let (folder, resctrl) = host();
        std::fs::create_dir(folder.path().join("mon_groups")).unwrap();
        std::fs::write(folder.path().join("schemata"), "L3:0=ff\n").unwrap();
        let counted = RdtPlan { monitor: Some("box".to_owned()), ..plan("", false, &[]) };
        resctrl.join(&counted, 7).unwrap();
        for tasks in ["tasks", "mon_groups/box/tasks"] {
            assert_eq!(std::fs::read_to_string(folder.path().join(tasks)).unwrap(), "7", "{tasks}");
        }
        // The kernel's files go with their folder.
        std::fs::remove_file(folder.path().join("mon_groups/box/tasks")).unwrap();
        resctrl.leave(&counted).unwrap();
        assert!(!folder.path().join("mon_groups/box").exists() && folder.path().join("tasks").exists());
        resctrl.leave(&counted).unwrap();
        // The one of somebody else is left as it is.
        std::fs::create_dir(folder.path().join("mon_groups/box")).unwrap();
        assert!(matches!(resctrl.join(&counted, 7), Err(Error::Exists(_))));
        assert!(folder.path().join("mon_groups/box").exists());
        // Where nothing can be counted nothing is left.
        let own = RdtPlan { monitor: Some("box".to_owned()), ..plan("box", true, &[]) };
        assert!(resctrl.join(&own, 7).is_err() && !folder.path().join("box").exists());
    }
}
