//! Resource limits by name: getrlimit(2).

use std::fmt;

use insula_spec::plan::Rlimit;
use rustix::io::Errno;
use rustix::process::{Pid, Resource};
use rustix::thread::CapabilitySet;

use super::{Error, Result};

/// Docker's names, and `as`.
const RESOURCES: [(&str, Resource); 16] = [
    ("as", Resource::As),
    ("core", Resource::Core),
    ("cpu", Resource::Cpu),
    ("data", Resource::Data),
    ("fsize", Resource::Fsize),
    ("locks", Resource::Locks),
    ("memlock", Resource::Memlock),
    ("msgqueue", Resource::Msgqueue),
    ("nice", Resource::Nice),
    ("nofile", Resource::Nofile),
    ("nproc", Resource::Nproc),
    ("rss", Resource::Rss),
    ("rtprio", Resource::Rtprio),
    ("rttime", Resource::Rttime),
    ("sigpending", Resource::Sigpending),
    ("stack", Resource::Stack),
];

/// The names that are understood, sorted.
pub fn names() -> impl Iterator<Item = &'static str> {
    RESOURCES.iter().map(|(name, _)| *name)
}

/// A limit that was asked for and not given in full: the host lacks `CAP_SYS_RESOURCE`, without
/// which hard limits go down only, or it exceeds a maximum of the kernel (`fs.nr_open`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Warning {
    pub name: &'static str,
    /// `u64::MAX` is unlimited.
    pub wanted: u64,
    pub granted: u64,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, wanted, granted } = self;
        let shown = |limit: u64| if limit == u64::MAX { "unlimited".to_owned() } else { limit.to_string() };
        write!(
            f,
            "ulimit {name}: {} is above the host's limit and was lowered to {}",
            shown(*wanted),
            shown(*granted)
        )
    }
}

/// A limit with its name resolved; applying it allocates nothing.
#[derive(Debug, Clone, Copy)]
pub struct Prepared {
    name: &'static str,
    resource: Resource,
    soft: u64,
    hard: u64,
}

/// Resolves names (lower case, without prefix) and checks that no soft limit is above its hard one.
pub fn prepare(limits: &[Rlimit]) -> Result<Vec<Prepared>> {
    limits.iter().map(prepare_one).collect()
}

fn prepare_one(limit: &Rlimit) -> Result<Prepared> {
    let Rlimit { name, soft, hard } = limit;
    let Some(&(name, resource)) = RESOURCES.iter().find(|(known, _)| known == name) else {
        return Err(Error::UnknownLimit { name: name.clone() });
    };
    if soft > hard {
        return Err(Error::LimitOrder { name: name.to_owned(), soft: *soft, hard: *hard });
    }
    Ok(Prepared { name, resource, soft: *soft, hard: *hard })
}

/// Lowers a limit to a hard limit that cannot be raised.
#[must_use]
pub fn clamp(limit: &Prepared, current_hard: u64) -> (Prepared, Option<Warning>) {
    let Prepared { name, hard, .. } = *limit;
    if hard <= current_hard {
        return (*limit, None);
    }
    let lowered = Prepared { hard: current_hard, soft: limit.soft.min(current_hard), ..*limit };
    (lowered, Some(Warning { name, wanted: hard, granted: current_hard }))
}

/// What of these limits this process could not give, judged by its own limits and rights; said before
/// anything is started.
pub fn foresee(limits: &[Prepared]) -> Result<Vec<Warning>> {
    let may_raise = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_RESOURCE));
    if may_raise {
        return Ok(Vec::new());
    }
    let warnings = limits.iter().map(|limit| Ok(clamp(limit, limit.current_hard(None)?).1));
    warnings.filter_map(Result::transpose).collect()
}

impl Prepared {
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    #[must_use]
    pub fn soft(&self) -> u64 {
        self.soft
    }

    #[must_use]
    pub fn hard(&self) -> u64 {
        self.hard
    }

    /// Sets the limit of this process, or what the host allows of it and says so.
    ///
    /// Only `CAP_SYS_RESOURCE` of the initial user namespace raises hard limits: see [`Self::make_room`].
    pub fn apply(&self) -> Result<Option<Warning>> {
        self.apply_to(None)
    }

    /// The same for another process, from outside of its user namespace.
    pub fn apply_to(&self, process: Option<Pid>) -> Result<Option<Warning>> {
        match self.set(process) {
            Ok(()) => Ok(None),
            Err(Errno::PERM) => {
                let (lowered, warning) = clamp(self, self.current_hard(process)?);
                if warning.is_none() {
                    return Err(self.failed(Errno::PERM));
                }
                lowered.set(process).map_err(|source| self.failed(source))?;
                Ok(warning)
            }
            Err(source) => Err(self.failed(source)),
        }
    }

    /// Only raises another process' hard limit to this one's, so that the process can [`Self::apply`] it
    /// itself: lowered from outside it would hinder what is still to be done.
    pub fn make_room(&self, process: Option<Pid>) -> Result<Option<Warning>> {
        if self.current_hard(process)? >= self.hard {
            return Ok(None);
        }
        Self { soft: self.hard, ..*self }.apply_to(process)
    }

    fn set(&self, process: Option<Pid>) -> rustix::io::Result<()> {
        let finite = |limit: u64| (limit != u64::MAX).then_some(limit);
        let wanted = rustix::process::Rlimit { current: finite(self.soft), maximum: finite(self.hard) };
        rustix::process::prlimit(process, self.resource, wanted).map(drop)
    }

    fn current_hard(&self, process: Option<Pid>) -> Result<u64> {
        let Some(process) = process else {
            return Ok(rustix::process::getrlimit(self.resource).maximum.unwrap_or(u64::MAX));
        };
        insula_sys::rlimit::hard(process, self.resource).map_err(|source| self.failed(source))
    }

    fn failed(&self, source: Errno) -> Error {
        Error::Call { call: "prlimit", operand: self.name, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(name: &str, soft: u64, hard: u64) -> Rlimit {
        Rlimit { name: name.to_owned(), soft, hard }
    }

    #[test]
    fn unknown_names_and_wrong_orders_are_named() {
        let error = prepare(&[limit("nofiles", 1, 1)]).unwrap_err();
        assert_eq!(error.to_string(), "invalid ulimit type: nofiles");
        let error = prepare(&[limit("nofile", 2048, 1024)]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "ulimit nofile: soft limit must be less than or equal to hard limit: 2048 > 1024"
        );
    }

    #[test]
    fn every_name_is_prepared() {
        let all: Vec<Rlimit> = names().map(|name| limit(name, 0, u64::MAX)).collect();
        let prepared = prepare(&all).unwrap();
        assert_eq!(prepared.iter().map(Prepared::name).collect::<Vec<_>>(), names().collect::<Vec<_>>());
    }

    #[test]
    fn clamping_lowers_both_and_says_so() {
        let wanted = prepare_one(&limit("nofile", 5000, u64::MAX)).unwrap();
        let (lowered, warning) = clamp(&wanted, 1024);
        assert_eq!((lowered.soft(), lowered.hard()), (1024, 1024));
        assert_eq!(
            warning.unwrap().to_string(),
            "ulimit nofile: unlimited is above the host's limit and was lowered to 1024"
        );
        assert_eq!(clamp(&wanted, u64::MAX).1, None);
    }

    #[test]
    fn a_limit_of_a_child_is_set_and_above_the_kernels_maximum_clamped() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        let lower = prepare_one(&limit("nofile", 64, 128)).unwrap();
        assert_eq!(lower.make_room(pid).unwrap(), None);
        let before = std::fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
        assert!(!before.contains(" 128 "), "{before}");
        let set = lower.apply_to(pid);
        let read = std::fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
        // Above fs.nr_open no capability helps, so that this is refused on every host.
        let raised = prepare_one(&limit("nofile", u64::MAX, u64::MAX)).unwrap().apply_to(pid);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(set.unwrap(), None);
        let line = read.lines().find(|line| line.starts_with("Max open files")).unwrap();
        assert_eq!(line.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["64", "128"]);
        assert_eq!(raised.unwrap(), Some(Warning { name: "nofile", wanted: u64::MAX, granted: 128 }));
    }
}
