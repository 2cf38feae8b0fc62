//! Profiles in Docker's JSON format.
//!
//! Read as moby and runc do: unknown fields and system calls that no architecture has are ignored;
//! groups whose `includes` or `excludes` do not fit the process, the architecture or the kernel
//! are left out. Differences: a profile without `defaultAction` is an error and not the absence
//! of a profile, and who is notified hears nothing of sendmsg(2), by which the listener is handed over.

use serde_json::{Map, Value};

use super::super::capabilities::{self, Set};
use super::super::{Error, Result};
use super::rules::{Arch, Calls, Condition, Profile, RET_ALLOW, Rule, Test};

/// Bounds on what is read; Docker's own profile has 60 groups with 450 names.
const MAX_GROUPS: usize = 4096;
const MAX_NAMES: usize = 65_536;
const MAX_CONDITIONS: usize = 64;

const RET_KILL_PROCESS: u32 = 0x8000_0000;
const RET_KILL_THREAD: u32 = 0;
const RET_TRAP: u32 = 0x0003_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_TRACE: u32 = 0x7ff0_0000;
const RET_LOG: u32 = 0x7ffc_0000;
const RET_USER_NOTIF: u32 = 0x7fc0_0000;
const EPERM: u64 = 1;
/// The kernel's own bound on error numbers.
const MAX_ERRNO: u64 = 4095;

/// The host and the process that conditions of a profile are about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Context {
    pub(super) bounding: Set,
    /// Version and patch level, as in 6.18.
    pub(super) kernel: (u64, u64),
}

/// A profile as read; borrowed by [`Document::profile`].
#[derive(Debug)]
pub(super) struct Document {
    default: u32,
    arches: Vec<Arch>,
    groups: Vec<Group>,
    flags: u32,
    /// Where the first call is that somebody else decides about.
    pub(super) notifies: Option<String>,
    pub(super) listener: Option<super::Listener>,
}

#[derive(Debug)]
struct Group {
    calls: Calls,
    action: u32,
    conditions: Vec<Condition>,
}

impl Document {
    pub(super) fn parse(value: &Value, context: Context) -> Result<Self> {
        let root = object(value, "profile")?;
        let default = action(root, "defaultAction", "defaultErrnoRet", "")?;
        if default == RET_USER_NOTIF {
            return Err(bad("defaultAction", "cannot be SCMP_ACT_NOTIFY: nobody could be told of it"));
        }
        let listener = listener(root)?;
        let arches = arches(root)?;
        let mut flags = flags(root)?;
        let list = array(root, "syscalls", "syscalls", MAX_GROUPS)?;
        let mut groups = Vec::new();
        let mut names = 0;
        let mut notifies = None;
        for (index, entry) in list.iter().enumerate() {
            let path = format!("syscalls[{index}]");
            let fields = object(entry, &path)?;
            let group = group(fields, &path, &mut names)?;
            if applies(fields, &path, context)? {
                if group.action == RET_USER_NOTIF {
                    notifies.get_or_insert(format!("{path}.action"));
                }
                groups.push(group);
            }
        }
        if notifies.is_some() {
            // The kernel takes no other threads along where it makes a listener: seccomp(2).
            flags = (flags | super::FLAG_NEW_LISTENER) & !super::FLAG_TSYNC;
        } else {
            // It says how somebody waits for a listener, and is an error for the kernel where none is asked.
            flags &= !super::FLAG_WAIT_KILLABLE;
        }
        Ok(Self { default, arches, groups, flags, notifies, listener })
    }

    pub(super) fn profile<'a>(&'a self) -> Profile<'a> {
        let rule = |group: &'a Group| Rule {
            calls: &group.calls,
            action: group.action,
            conditions: &group.conditions,
        };
        let rules = self.groups.iter().map(rule).collect();
        Profile { default: self.default, arches: self.arches.clone(), rules, flags: self.flags }
    }
}

fn bad(field: impl Into<String>, problem: impl Into<String>) -> Error {
    Error::Profile { field: field.into(), problem: problem.into() }
}

fn object<'a>(value: &'a Value, path: &str) -> Result<&'a Map<String, Value>> {
    value.as_object().ok_or_else(|| bad(path, "is not an object"))
}

/// A field that is there and not null.
fn field<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    fields.get(name).filter(|value| !value.is_null())
}

/// An array, empty if absent.
fn array<'a>(fields: &'a Map<String, Value>, name: &str, path: &str, most: usize) -> Result<&'a [Value]> {
    let Some(value) = field(fields, name) else { return Ok(&[]) };
    let list = value.as_array().ok_or_else(|| bad(path, "is not an array"))?;
    if list.len() > most {
        return Err(bad(path, format!("has {} entries, more than {most}", list.len())));
    }
    Ok(list)
}

fn text<'a>(value: &'a Value, path: &str) -> Result<&'a str> {
    value.as_str().ok_or_else(|| bad(path, "is not a string"))
}

/// A name from the document for an error message, cut if it is long.
fn quoted(name: &str) -> String {
    let short: String = name.chars().take(64).collect();
    if short.len() < name.len() { format!("{short:?}…") } else { format!("{short:?}") }
}

fn listener(root: &Map<String, Value>) -> Result<Option<super::Listener>> {
    let get = |name: &str| field(root, name).map_or(Ok(""), |value| text(value, name));
    let (path, metadata) = (get("listenerPath")?, get("listenerMetadata")?);
    Ok((!path.is_empty()).then(|| super::Listener { path: path.into(), metadata: metadata.to_owned() }))
}

fn action(fields: &Map<String, Value>, name: &str, errno: &str, prefix: &str) -> Result<u32> {
    let path = format!("{prefix}{name}");
    let value = field(fields, name).ok_or_else(|| bad(&path, "is missing"))?;
    let errno_path = format!("{prefix}{errno}");
    let data = |most: u64| match field(fields, errno) {
        None => Ok(EPERM as u32),
        Some(value) => match value.as_u64() {
            Some(number) if number <= most => Ok(number as u32),
            _ => Err(bad(&errno_path, format!("is not a number from 0 to {most}"))),
        },
    };
    match text(value, &path)? {
        "SCMP_ACT_ALLOW" => Ok(RET_ALLOW),
        "SCMP_ACT_ERRNO" => Ok(RET_ERRNO | data(MAX_ERRNO)?),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Ok(RET_KILL_THREAD),
        "SCMP_ACT_KILL_PROCESS" => Ok(RET_KILL_PROCESS),
        "SCMP_ACT_TRAP" => Ok(RET_TRAP),
        "SCMP_ACT_TRACE" => Ok(RET_TRACE | data(u64::from(u16::MAX))?),
        "SCMP_ACT_LOG" => Ok(RET_LOG),
        "SCMP_ACT_NOTIFY" => Ok(RET_USER_NOTIF),
        other => Err(bad(path, format!("unknown action {}", quoted(other)))),
    }
}

/// `architectures` lists all; `archMap` has for each native one what goes with it.
fn arches(root: &Map<String, Value>) -> Result<Vec<Arch>> {
    let list = array(root, "architectures", "architectures", 64)?;
    let map = array(root, "archMap", "archMap", 64)?;
    if !list.is_empty() && !map.is_empty() {
        return Err(bad("archMap", "cannot be together with architectures"));
    }
    let mut found = Vec::new();
    for (index, value) in list.iter().enumerate() {
        found.extend(arch(value, &format!("architectures[{index}]"))?);
    }
    for (index, value) in map.iter().enumerate() {
        let path = format!("archMap[{index}]");
        let fields = object(value, &path)?;
        let name_path = format!("{path}.architecture");
        let name = field(fields, "architecture").ok_or_else(|| bad(&name_path, "is missing"))?;
        let native = arch(name, &name_path)? == Some(Arch::NATIVE);
        let path = format!("{path}.subArchitectures");
        for (index, value) in array(fields, "subArchitectures", &path, 64)?.iter().enumerate() {
            let sub = arch(value, &format!("{path}[{index}]"))?;
            found.extend(sub.filter(|_| native));
        }
    }
    Ok(found)
}

/// Architectures of other machines are understood and have no effect on this one.
fn arch(value: &Value, path: &str) -> Result<Option<Arch>> {
    match text(value, path)? {
        "SCMP_ARCH_X86_64" => Ok(Some(Arch::X86_64)),
        "SCMP_ARCH_X86" => Ok(Some(Arch::X86)),
        "SCMP_ARCH_X32" => Ok(Some(Arch::X32)),
        "SCMP_ARCH_AARCH64" => Ok(Some(Arch::Aarch64)),
        "SCMP_ARCH_NATIVE" => Ok(Some(Arch::NATIVE)),
        "SCMP_ARCH_ARM"
        | "SCMP_ARCH_MIPS"
        | "SCMP_ARCH_MIPS64"
        | "SCMP_ARCH_MIPS64N32"
        | "SCMP_ARCH_MIPSEL"
        | "SCMP_ARCH_MIPSEL64"
        | "SCMP_ARCH_MIPSEL64N32"
        | "SCMP_ARCH_PPC"
        | "SCMP_ARCH_PPC64"
        | "SCMP_ARCH_PPC64LE"
        | "SCMP_ARCH_S390"
        | "SCMP_ARCH_S390X"
        | "SCMP_ARCH_PARISC"
        | "SCMP_ARCH_PARISC64"
        | "SCMP_ARCH_RISCV64"
        | "SCMP_ARCH_LOONGARCH64"
        | "SCMP_ARCH_M68K"
        | "SCMP_ARCH_SH"
        | "SCMP_ARCH_SHEB" => Ok(None),
        other => Err(bad(path, format!("unknown architecture {}", quoted(other)))),
    }
}

fn flags(root: &Map<String, Value>) -> Result<u32> {
    if field(root, "flags").is_none() {
        return Ok(super::FLAG_SPEC_ALLOW);
    }
    let mut flags = 0;
    for (index, value) in array(root, "flags", "flags", 64)?.iter().enumerate() {
        let path = format!("flags[{index}]");
        flags |= match text(value, &path)? {
            "SECCOMP_FILTER_FLAG_TSYNC" => super::FLAG_TSYNC,
            "SECCOMP_FILTER_FLAG_LOG" => super::FLAG_LOG,
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => super::FLAG_SPEC_ALLOW,
            "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => super::FLAG_WAIT_KILLABLE,
            other => return Err(bad(path, format!("unknown flag {}", quoted(other)))),
        };
    }
    Ok(flags)
}

fn group(fields: &Map<String, Value>, path: &str, total: &mut usize) -> Result<Group> {
    let single = match field(fields, "name") {
        Some(name) => text(name, &format!("{path}.name"))?,
        None => "",
    };
    let names_path = format!("{path}.names");
    let names = array(fields, "names", &names_path, MAX_NAMES)?;
    if !single.is_empty() && !names.is_empty() {
        return Err(bad(path, "has both name and names"));
    }
    *total += names.len();
    if *total > MAX_NAMES {
        return Err(bad("syscalls", format!("have more than {MAX_NAMES} names")));
    }
    let mut calls = Calls::NONE;
    calls.add(single);
    for (index, name) in names.iter().enumerate() {
        let name = name.as_str().ok_or_else(|| bad(format!("{names_path}[{index}]"), "is not a string"))?;
        calls.add(name);
    }
    let action = action(fields, "action", "errnoRet", &format!("{path}."))?;
    if action == RET_USER_NOTIF && calls.includes(&Calls::of(&["sendmsg"])) {
        return Err(bad(
            format!("{path}.action"),
            "SCMP_ACT_NOTIFY cannot be for sendmsg: it hands the listener over",
        ));
    }
    Ok(Group { calls, action, conditions: conditions(fields, path)? })
}

fn conditions(fields: &Map<String, Value>, path: &str) -> Result<Vec<Condition>> {
    let path = format!("{path}.args");
    let list = array(fields, "args", &path, MAX_CONDITIONS)?;
    list.iter().enumerate().map(|(index, value)| condition(value, &format!("{path}[{index}]"))).collect()
}

fn condition(value: &Value, path: &str) -> Result<Condition> {
    let fields = object(value, path)?;
    let number = |name: &str| match field(fields, name) {
        None => Ok(0),
        Some(value) => value
            .as_u64()
            .ok_or_else(|| bad(format!("{path}.{name}"), "is not a number of 64 bits without sign")),
    };
    let index = match number("index")? {
        index @ 0..=5 => index as u8,
        index => return Err(bad(format!("{path}.index"), format!("{index} is not from 0 to 5"))),
    };
    let (value, second) = (number("value")?, number("valueTwo")?);
    let op_path = format!("{path}.op");
    let op = field(fields, "op").ok_or_else(|| bad(&op_path, "is missing"))?;
    let test = match text(op, &op_path)? {
        "SCMP_CMP_EQ" => Test::Equal(value),
        "SCMP_CMP_NE" => Test::NotEqual(value),
        "SCMP_CMP_LT" => Test::Less(value),
        "SCMP_CMP_LE" => Test::LessOrEqual(value),
        "SCMP_CMP_GT" => Test::Greater(value),
        "SCMP_CMP_GE" => Test::GreaterOrEqual(value),
        "SCMP_CMP_MASKED_EQ" => Test::MaskedEqual { mask: value, value: second },
        other => return Err(bad(op_path, format!("unknown operator {}", quoted(other)))),
    };
    Ok(Condition { index, test })
}

/// Whether a group is for this process, architecture and kernel.
fn applies(fields: &Map<String, Value>, path: &str, context: Context) -> Result<bool> {
    let includes = Filter::parse(fields, "includes", path)?;
    let excludes = Filter::parse(fields, "excludes", path)?;
    let arch = if Arch::NATIVE == Arch::Aarch64 { "arm64" } else { "amd64" };
    let has = |name: &str| capabilities::number(name).is_ok_and(|number| context.bounding.has(number));
    let reached = |minimum: Option<(u64, u64)>| minimum.map(|minimum| context.kernel >= minimum);
    let excluded = excludes.arches.contains(&arch)
        || excludes.caps.iter().copied().any(has)
        || reached(excludes.min_kernel) == Some(true);
    let included = (includes.arches.is_empty() || includes.arches.contains(&arch))
        && includes.caps.iter().copied().all(has)
        && reached(includes.min_kernel) != Some(false);
    Ok(included && !excluded)
}

#[derive(Debug, Default)]
struct Filter<'a> {
    caps: Vec<&'a str>,
    arches: Vec<&'a str>,
    min_kernel: Option<(u64, u64)>,
}

impl<'a> Filter<'a> {
    fn parse(fields: &'a Map<String, Value>, name: &str, path: &str) -> Result<Self> {
        let Some(value) = field(fields, name) else { return Ok(Self::default()) };
        let path = format!("{path}.{name}");
        let fields = object(value, &path)?;
        let texts = |name: &str| -> Result<Vec<&'a str>> {
            let path = format!("{path}.{name}");
            let list = array(fields, name, &path, 256)?;
            list.iter().enumerate().map(|(index, value)| text(value, &format!("{path}[{index}]"))).collect()
        };
        let min_kernel = match field(fields, "minKernel") {
            None => None,
            Some(value) => {
                let path = format!("{path}.minKernel");
                let version = text(value, &path)?;
                let parsed = parse_version(version);
                Some(parsed.ok_or_else(|| bad(path, format!("{} is not a version", quoted(version))))?)
            }
        };
        Ok(Self { caps: texts("caps")?, arches: texts("arches")?, min_kernel })
    }
}

/// `4.8`.
fn parse_version(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The version of the running kernel: `6.18.44-rc1` is (6, 18).
pub(super) fn kernel_version(release: &str) -> Option<(u64, u64)> {
    let mut parts = release.splitn(3, '.');
    let digits = |part: &str| {
        let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        part[..end].parse().ok()
    };
    Some((digits(parts.next()?)?, digits(parts.next()?)?))
}
