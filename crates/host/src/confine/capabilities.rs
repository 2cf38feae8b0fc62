//! Capabilities by name and number, the algebra of `--cap-add` and `--cap-drop`, and their way
//! into a process: capabilities(7).

use std::fmt;
use std::ops::{BitAnd, BitOr, Sub};
use std::sync::OnceLock;

use rustix::thread::{CapabilitySet, CapabilitySets};

use super::{Error, Result};

/// Names in the order of their numbers, from `CAP_CHOWN` (0) to `CAP_CHECKPOINT_RESTORE` (40).
pub const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

const ALL: &str = "ALL";
const LAST_PATH: &str = "/proc/sys/kernel/cap_last_cap";

/// A set of capabilities, one bit for each number.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Set(u64);

impl Set {
    pub const EMPTY: Self = Self(0);
    /// Everything that has a name here.
    pub const NAMED: Self = Self((1 << NAMES.len()) - 1);
    /// What a container has when nothing was asked for: Docker's fourteen.
    pub const DEFAULT: Self = Self::of(&[
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_FOWNER",
        "CAP_MKNOD",
        "CAP_NET_RAW",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETFCAP",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_SYS_CHROOT",
        "CAP_KILL",
        "CAP_AUDIT_WRITE",
    ]);

    /// A set of names known while compiling; a wrong one does not compile.
    #[must_use]
    pub const fn of(names: &[&str]) -> Self {
        let mut bits = 0;
        let mut index = 0;
        while index < names.len() {
            let mut number = 0;
            while !same(NAMES[number], names[index]) {
                number += 1;
            }
            bits |= 1 << number;
            index += 1;
        }
        Self(bits)
    }

    /// The set with these bits, as in `/proc/PID/status`.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether every capability of `other` is in this set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether the capability with this number is in the set.
    #[must_use]
    pub const fn has(self, number: u8) -> bool {
        number < 64 && self.0 & (1 << number) != 0
    }

    /// The capabilities with these names: any case, with or without `CAP_`.
    pub fn from_names<S: AsRef<str>>(names: &[S]) -> Result<Self> {
        let mut set = Self::EMPTY;
        for name in names {
            set = set | Self(1 << number(name.as_ref())?);
        }
        Ok(set)
    }

    /// Names in the order of their numbers; bits without a name are left out.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        NAMES.iter().enumerate().filter(move |(number, _)| self.0 & (1 << number) != 0).map(|(_, name)| *name)
    }

    /// Everything up to a number.
    const fn up_to(last: u8) -> Self {
        if last >= 63 { Self(u64::MAX) } else { Self((1 << (last + 1)) - 1) }
    }
}

const fn same(left: &str, right: &str) -> bool {
    let (left, right) = (left.as_bytes(), right.as_bytes());
    if left.len() != right.len() {
        return false;
    }
    let mut index = 0;
    while index < left.len() {
        if left[index] != right[index] {
            return false;
        }
        index += 1;
    }
    true
}

impl BitOr for Set {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitAnd for Set {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl Sub for Set {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl fmt::Debug for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

/// The number of a capability: any case, with or without `CAP_`.
pub fn number(name: &str) -> Result<u8> {
    let short = |name: &'static str| &name["CAP_".len()..];
    let bare = match name.get(.."CAP_".len()) {
        Some(prefix) if prefix.eq_ignore_ascii_case("CAP_") => &name["CAP_".len()..],
        _ => name,
    };
    (0_u8..)
        .zip(NAMES)
        .find(|(_, known)| short(known).eq_ignore_ascii_case(bare))
        .map(|(number, _)| number)
        .ok_or_else(|| Error::UnknownCapability { name: name.to_owned() })
}

/// The highest capability that the running kernel knows.
pub fn last() -> Result<u8> {
    // It does not change while a kernel runs.
    static LAST: OnceLock<u8> = OnceLock::new();
    match LAST.get() {
        Some(last) => Ok(*last),
        None => read_last().map(|last| *LAST.get_or_init(|| last)),
    }
}

fn read_last() -> Result<u8> {
    let text =
        std::fs::read_to_string(LAST_PATH).map_err(|source| Error::Read { path: LAST_PATH, source })?;
    text.trim().parse().map_err(|_| Error::Content { path: LAST_PATH, content: text })
}

/// What a container gets for `--cap-add`, `--cap-drop` and `--privileged`, by Docker's rules, in
/// upper case with prefix and in the order of the numbers.
///
/// `ALL` among the additions takes everything but what is dropped by name; otherwise `ALL` among
/// the drops leaves the additions alone; otherwise drops go first, so that a capability named in
/// both lists is kept. `--privileged` is everything, and the lists are checked but not used.
pub fn effective(add: &[String], drop: &[String], privileged: bool) -> Result<Vec<String>> {
    let everything = Set::up_to(last()?) & Set::NAMED;
    Ok(combine(add, drop, privileged, everything)?.names().map(str::to_owned).collect())
}

fn combine(add: &[String], drop: &[String], privileged: bool, everything: Set) -> Result<Set> {
    let (add, add_all) = split_all(add)?;
    let (drop, drop_all) = split_all(drop)?;
    let set = if privileged {
        everything
    } else if add_all {
        everything - drop
    } else if drop_all {
        add
    } else {
        (Set::DEFAULT - drop) | add
    };
    Ok(set & everything)
}

/// The named capabilities, and whether `ALL` was among the names.
fn split_all(names: &[String]) -> Result<(Set, bool)> {
    let is_all = |name: &&String| name.eq_ignore_ascii_case(ALL);
    let named: Vec<&String> = names.iter().filter(|name| !is_all(name)).collect();
    Ok((Set::from_names(&named)?, named.len() < names.len()))
}

/// What this thread could hand on: what is both in its permitted and in its bounding set. In a
/// user namespace of its own a process has everything, whatever its parent lacks.
pub fn own(last: u8) -> Result<Set> {
    let sets = rustix::thread::capabilities(None).map_err(|source| Error::Call {
        call: "capget",
        operand: "this thread",
        source,
    })?;
    let mut bounding = Set::EMPTY;
    for number in 0..=last.min(63) {
        let inside =
            rustix::thread::capability_is_in_bounding_set(CapabilitySet::from_bits_retain(1 << number))
                .map_err(|source| Error::Call {
                    call: "prctl PR_CAPBSET_READ",
                    operand: name_of(number),
                    source,
                })?;
        if inside {
            bounding = bounding | Set(1 << number);
        }
    }
    Ok(Set(sets.permitted.bits()) & bounding)
}

/// What is left of a wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clamped {
    pub kept: Set,
    /// Wished for, but the engine itself does not have it.
    pub missing: Set,
}

/// Limits a wish to what is available ([`own`]).
#[must_use]
pub fn clamp(wanted: Set, available: Set) -> Clamped {
    Clamped { kept: wanted & available, missing: wanted - available }
}

fn name_of(number: u8) -> &'static str {
    NAMES.get(usize::from(number)).copied().unwrap_or("a capability that has no name here")
}

/// The five sets of a thread, to be applied in the container's init.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sets {
    pub bounding: Set,
    pub effective: Set,
    pub permitted: Set,
    pub inheritable: Set,
    pub ambient: Set,
}

impl Sets {
    /// Docker's: root has them bounding, effective and permitted; another user has them bounding
    /// only, so that a set-user-ID program can give them but nothing else does. Nothing is
    /// inheritable or ambient for either.
    #[must_use]
    pub const fn docker(wanted: Set, root: bool) -> Self {
        let held = if root { wanted } else { Set::EMPTY };
        Self {
            bounding: wanted,
            effective: held,
            permitted: held,
            inheritable: Set::EMPTY,
            ambient: Set::EMPTY,
        }
    }

    /// First step: takes what is not in the bounding set out of that of the thread, forever.
    /// Needs `CAP_SETPCAP`. `last` is that of [`last`], read before the fork.
    pub fn drop_bounding(&self, last: u8) -> Result<()> {
        for number in 0..=last.min(63) {
            if self.bounding.has(number) {
                continue;
            }
            rustix::thread::remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number))
                .map_err(|source| Error::Call {
                    call: "prctl PR_CAPBSET_DROP",
                    operand: name_of(number),
                    source,
                })?;
        }
        Ok(())
    }

    /// Second step, before setuid(2): asks the kernel to keep the permitted set when the user
    /// changes from root to another, where the sets want something of it afterwards. Docker's do
    /// not, and then this makes no system call.
    pub fn keep_over_setuid(&self) -> Result<()> {
        if (self.permitted | self.effective | self.ambient).is_empty() {
            return Ok(());
        }
        set_keep(true)
    }

    /// Last step, after setuid(2): sets effective, permitted and inheritable, then ambient. The
    /// next execve(2) clears the flag of [`Sets::keep_over_setuid`]; it is cleared here all the
    /// same.
    pub fn apply(&self) -> Result<()> {
        if !(self.permitted | self.effective | self.ambient).is_empty() {
            set_keep(false)?;
        }
        let sets = CapabilitySets {
            effective: CapabilitySet::from_bits_retain(self.effective.0),
            permitted: CapabilitySet::from_bits_retain(self.permitted.0),
            inheritable: CapabilitySet::from_bits_retain(self.inheritable.0),
        };
        rustix::thread::set_capabilities(None, sets).map_err(|source| Error::Call {
            call: "capset",
            operand: "this thread",
            source,
        })?;
        self.apply_ambient()
    }

    fn apply_ambient(&self) -> Result<()> {
        rustix::thread::clear_ambient_capability_set().map_err(|source| Error::Call {
            call: "prctl PR_CAP_AMBIENT_CLEAR_ALL",
            operand: "this thread",
            source,
        })?;
        for number in 0..64 {
            if !self.ambient.has(number) {
                continue;
            }
            let capability = CapabilitySet::from_bits_retain(1 << number);
            rustix::thread::configure_capability_in_ambient_set(capability, true).map_err(|source| {
                Error::Call { call: "prctl PR_CAP_AMBIENT_RAISE", operand: name_of(number), source }
            })?;
        }
        Ok(())
    }
}

fn set_keep(keep: bool) -> Result<()> {
    rustix::thread::set_keep_capabilities(keep).map_err(|source| Error::Call {
        call: "prctl PR_SET_KEEPCAPS",
        operand: "this thread",
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn combined(add: &[&str], drop: &[&str], privileged: bool) -> Set {
        combine(&owned(add), &owned(drop), privileged, Set::NAMED).unwrap()
    }

    #[test]
    fn names_agree_with_the_kernel_headers() {
        for (number, flag) in [(0, "CHOWN"), (21, "SYS_ADMIN"), (38, "PERFMON"), (40, "CHECKPOINT_RESTORE")] {
            assert_eq!(NAMES[number], format!("CAP_{flag}"));
        }
        for (number, name) in NAMES.iter().enumerate() {
            let known = CapabilitySet::from_name(&name["CAP_".len()..]).unwrap();
            assert_eq!(known.bits(), 1 << number, "{name}");
        }
    }

    #[test]
    fn names_are_read_in_any_case_with_or_without_prefix() {
        for name in ["CAP_NET_ADMIN", "cap_net_admin", "net_admin", "NET_ADMIN", "Cap_Net_Admin"] {
            assert_eq!(number(name).unwrap(), 12);
        }
    }

    #[test]
    fn a_bad_name_is_named() {
        for name in ["", "CAP_", "NET", "CAP_NET_ADMIN ", "CAP_CAP_CHOWN", "é", "cap\u{e9}"] {
            let error = effective(&owned(&[name]), &[], false).unwrap_err();
            assert_eq!(error.to_string(), format!("unknown capability: {name:?}"));
            assert!(matches!(effective(&[], &owned(&[name]), true), Err(Error::UnknownCapability { .. })));
        }
    }

    #[test]
    fn nothing_asked_is_the_default() {
        assert_eq!(combined(&[], &[], false), Set::DEFAULT);
        assert_eq!(Set::DEFAULT.bits(), 0xa804_25fb);
        assert_eq!(effective(&[], &[], false).unwrap().len(), 14);
    }

    #[test]
    fn additions_and_drops_follow_docker() {
        let one = Set::of;
        assert_eq!(
            combined(&["sys_admin"], &["MKNOD"], false),
            (Set::DEFAULT - one(&["CAP_MKNOD"])) | one(&["CAP_SYS_ADMIN"])
        );
        assert_eq!(combined(&[], &["all"], false), Set::EMPTY);
        assert_eq!(combined(&["chown"], &["ALL"], false), one(&["CAP_CHOWN"]));
        assert_eq!(combined(&["ALL"], &["chown"], false), Set::NAMED - one(&["CAP_CHOWN"]));
        assert_eq!(combined(&["ALL"], &["ALL"], false), Set::NAMED);
        assert_eq!(combined(&["chown"], &["chown"], false), Set::DEFAULT);
        assert_eq!(combined(&[], &["ALL"], true), Set::NAMED);
    }

    #[test]
    fn an_older_kernel_knows_fewer() {
        let everything = Set::up_to(37) & Set::NAMED;
        let set = combine(&owned(&["ALL"]), &[], false, everything).unwrap();
        assert!(!set.has(38) && set.has(37));
        assert_eq!(Set::up_to(63).bits(), u64::MAX);
    }

    #[test]
    fn clamping_reports_what_is_missing() {
        let wanted = Set::of(&["CAP_CHOWN", "CAP_SYS_RESOURCE"]);
        let clamped = clamp(wanted, Set::DEFAULT);
        assert_eq!(clamped.kept.names().collect::<Vec<_>>(), ["CAP_CHOWN"]);
        assert_eq!(clamped.missing.names().collect::<Vec<_>>(), ["CAP_SYS_RESOURCE"]);
    }

    #[test]
    fn own_is_what_proc_says() {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let bits = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        assert_eq!(own(last().unwrap()).unwrap().bits(), bits("CapPrm:") & bits("CapBnd:"));
    }

    #[test]
    fn docker_gives_another_user_the_bounding_set_only() {
        let sets = Sets::docker(Set::DEFAULT, false);
        assert_eq!(sets, Sets { bounding: Set::DEFAULT, ..Sets::default() });
        let sets = Sets::docker(Set::DEFAULT, true);
        assert_eq!((sets.effective, sets.permitted), (Set::DEFAULT, Set::DEFAULT));
        assert_eq!((sets.inheritable, sets.ambient), (Set::EMPTY, Set::EMPTY));
    }
}
