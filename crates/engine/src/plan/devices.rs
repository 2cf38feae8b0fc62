//! Devices: nodes, allowances and rates.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use insula_models::{DeviceMapping, HostConfig};
use insula_spec::plan::{DeviceKind, DevicePlan, DeviceRule, ThrottleDevice};

use crate::machines::{self, VSOCK};
use crate::{Error, Result};

/// What every container may use, beside what the wall makes: any node may be made, terminals and
/// the harmless devices may be opened.
pub(crate) fn default_rules() -> Vec<DeviceRule> {
    let rule = |kind, major, minor, access: bool| DeviceRule {
        kind,
        major,
        minor,
        read: access,
        write: access,
        mknod: true,
    };
    let character = |major, minor| rule(DeviceKind::Char, Some(major), minor, true);
    vec![
        rule(DeviceKind::Char, None, None, false),
        rule(DeviceKind::Block, None, None, false),
        character(1, Some(3)),
        character(1, Some(5)),
        character(1, Some(7)),
        character(1, Some(8)),
        character(1, Some(9)),
        character(5, Some(0)),
        character(5, Some(1)),
        character(5, Some(2)),
        character(136, None),
    ]
}

/// Everything.
pub(crate) fn all() -> DeviceRule {
    DeviceRule { kind: DeviceKind::Any, major: None, minor: None, read: true, write: true, mknod: true }
}

/// `--device`, of the kernel that the container is to have.
pub(crate) fn of(host: &HostConfig) -> Result<Vec<DevicePlan>> {
    if machines::wanted(&host.isolation) { of_the_machine(&host.devices) } else { devices(&host.devices) }
}

/// Of the host's kernel; a folder stands for the nodes in it.
fn devices(mappings: &[DeviceMapping]) -> Result<Vec<DevicePlan>> {
    let mut plans = Vec::new();
    for mapping in mappings {
        let host = Path::new(&mapping.path_on_host);
        let path = if mapping.path_in_container.is_empty() {
            mapping.path_on_host.clone()
        } else {
            mapping.path_in_container.clone()
        };
        let permissions = permissions(mapping);
        let failed = |why: &str| {
            Error::InvalidArgument(format!(
                "error gathering device information while adding custom device \"{}\": {why}",
                mapping.path_on_host
            ))
        };
        let meta = std::fs::metadata(host).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => failed("no such file or directory"),
            _ => Error::io("stat", host, error),
        })?;
        if meta.is_dir() {
            let before = plans.len();
            folder(host, &path, permissions, &mut plans)?;
            if plans.len() == before {
                return Err(failed("not a device node"));
            }
        } else {
            plans.push(node(host, path, permissions, &meta)?.ok_or_else(|| failed("not a device node"))?);
        }
    }
    Ok(plans)
}

/// Of a machine of its own: the machine's sockets are the only one there is. The host may not have the node, and the
/// guest gives it a number of its own among the miscellaneous ones.
fn of_the_machine(mappings: &[DeviceMapping]) -> Result<Vec<DevicePlan>> {
    const MISCELLANEOUS: u32 = 10;
    let plan = |mapping: &DeviceMapping| {
        let inside = &mapping.path_in_container;
        let path = if inside.is_empty() { VSOCK } else { inside }.to_owned();
        let (read, write, mknod) = access(permissions(mapping))?;
        let (kind, major) = (DeviceKind::Char, Some(MISCELLANEOUS));
        let rule = DeviceRule { kind, major, minor: None, read, write, mknod };
        Ok(DevicePlan { host_path: PathBuf::from(VSOCK), path, rule })
    };
    mappings.iter().map(plan).collect()
}

fn permissions(mapping: &DeviceMapping) -> &str {
    match mapping.cgroup_permissions.as_str() {
        "" => "rwm",
        permissions => permissions,
    }
}

fn folder(host: &Path, path: &str, permissions: &str, plans: &mut Vec<DevicePlan>) -> Result<()> {
    let entries = std::fs::read_dir(host).map_err(|e| Error::io("readdir", host, e))?;
    for entry in entries {
        let entry = entry.map_err(|e| Error::io("readdir", host, e))?;
        let Ok(meta) = entry.metadata() else { continue };
        let inside = format!("{}/{}", path.trim_end_matches('/'), entry.file_name().to_string_lossy());
        if meta.is_dir() {
            folder(&entry.path(), &inside, permissions, plans)?;
        } else {
            plans.extend(node(&entry.path(), inside, permissions, &meta)?);
        }
    }
    Ok(())
}

/// What `--privileged` gets: the nodes of the host's `/dev`, but for those that a container has its
/// own of.
pub(crate) fn of_the_host() -> Result<Vec<DevicePlan>> {
    const OWN: [&str; 6] = ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/console", "/dev/ptmx", "/dev/fd"];
    let mut plans = Vec::new();
    folder(Path::new("/dev"), "/dev", "rwm", &mut plans)?;
    plans.retain(|plan| !OWN.iter().any(|own| Path::new(&plan.path).starts_with(own)));
    Ok(plans)
}

fn node(
    host: &Path,
    path: String,
    permissions: &str,
    meta: &std::fs::Metadata,
) -> Result<Option<DevicePlan>> {
    let kind = meta.file_type();
    let kind = if kind.is_char_device() {
        DeviceKind::Char
    } else if kind.is_block_device() {
        DeviceKind::Block
    } else {
        return Ok(None);
    };
    let (read, write, mknod) = access(permissions)?;
    let (major, minor) = numbers(meta.rdev());
    let rule = DeviceRule { kind, major: Some(major), minor: Some(minor), read, write, mknod };
    Ok(Some(DevicePlan { host_path: PathBuf::from(host), path, rule }))
}

fn numbers(device: u64) -> (u32, u32) {
    (rustix::fs::major(device), rustix::fs::minor(device))
}

/// A word of `r`, `w` and `m`.
fn access(text: &str) -> Result<(bool, bool, bool)> {
    if text.is_empty() || !text.bytes().all(|b| b"rwm".contains(&b)) {
        return Err(Error::InvalidArgument(format!(
            "invalid device permissions {text:?}: r, w and m are known"
        )));
    }
    Ok((text.contains('r'), text.contains('w'), text.contains('m')))
}

/// `--device-cgroup-rule`: `c 13:* rwm`.
pub(crate) fn rules(texts: &[String]) -> Result<Vec<DeviceRule>> {
    texts.iter().map(|text| rule(text)).collect()
}

fn rule(text: &str) -> Result<DeviceRule> {
    let wrong = || Error::InvalidArgument(format!("invalid device cgroup rule format: '{text}'"));
    let mut words = text.split_ascii_whitespace();
    let (Some(kind), Some(device), Some(permissions), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(wrong());
    };
    let kind = match kind {
        "a" => DeviceKind::Any,
        "b" => DeviceKind::Block,
        "c" => DeviceKind::Char,
        _ => return Err(wrong()),
    };
    let number = |text: &str| match text {
        "*" => Ok(None),
        digits => digits.parse().map(Some).map_err(|_| wrong()),
    };
    let (major, minor) = device.split_once(':').ok_or_else(wrong)?;
    let (read, write, mknod) = access(permissions).map_err(|_| wrong())?;
    Ok(DeviceRule { kind, major: number(major)?, minor: number(minor)?, read, write, mknod })
}

/// The four lists of rates.
#[derive(Debug, Default)]
pub(crate) struct Throttles {
    pub(crate) read_bps: Vec<ThrottleDevice>,
    pub(crate) write_bps: Vec<ThrottleDevice>,
    pub(crate) read_iops: Vec<ThrottleDevice>,
    pub(crate) write_iops: Vec<ThrottleDevice>,
}

pub(crate) fn throttles(host: &HostConfig) -> Result<Throttles> {
    Ok(Throttles {
        read_bps: throttle(&host.blkio_device_read_bps)?,
        write_bps: throttle(&host.blkio_device_write_bps)?,
        read_iops: throttle(&host.blkio_device_read_iops)?,
        write_iops: throttle(&host.blkio_device_write_iops)?,
    })
}

pub(crate) fn throttle(devices: &[insula_models::ThrottleDevice]) -> Result<Vec<ThrottleDevice>> {
    devices
        .iter()
        .map(|device| {
            let path = Path::new(&device.path);
            let meta = std::fs::metadata(path).ok().filter(|meta| meta.file_type().is_block_device());
            let meta = meta.ok_or_else(|| {
                Error::InvalidArgument(format!(
                    "{:?} is not a block device: its rate cannot be limited",
                    device.path
                ))
            })?;
            let (major, minor) = numbers(meta.rdev());
            Ok(ThrottleDevice { major, minor, rate: device.rate })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(host: &str, inside: &str, permissions: &str) -> DeviceMapping {
        DeviceMapping {
            path_on_host: host.into(),
            path_in_container: inside.into(),
            cgroup_permissions: permissions.into(),
        }
    }

    #[test]
    fn nodes_are_looked_up_on_the_host() {
        let found = devices(&[mapping("/dev/null", "/dev/nil", "r")]).unwrap();
        assert_eq!(found[0].path, "/dev/nil");
        let DeviceRule { kind, major, minor, read, write, mknod } = found[0].rule;
        assert_eq!((kind, major, minor), (DeviceKind::Char, Some(1), Some(3)));
        assert_eq!((read, write, mknod), (true, false, false));
        for (path, why) in [("/etc/passwd", "not a device node"), ("/dev/nope", "no such file")] {
            let error = devices(&[mapping(path, "", "")]).unwrap_err().to_string();
            assert!(error.contains(path) && error.contains(why), "{error}");
        }
        assert!(devices(&[mapping("/dev/null", "", "x")]).is_err());
    }

    #[test]
    fn a_machines_sockets_are_not_looked_for_on_the_host() {
        let with = |devices: Vec<DeviceMapping>| {
            let isolation = machines::ISOLATION.to_owned();
            of(&HostConfig { isolation, devices, ..HostConfig::default() })
        };
        let found = with(vec![mapping(VSOCK, "", ""), mapping(VSOCK, "/dev/other", "r")]).unwrap();
        assert_eq!(found.iter().map(|plan| plan.path.as_str()).collect::<Vec<_>>(), [VSOCK, "/dev/other"]);
        assert!(found.iter().all(|plan| plan.host_path == Path::new(VSOCK)));
        let DeviceRule { major, minor, read, write, mknod, .. } = found[1].rule;
        assert_eq!((major, minor, read, write, mknod), (Some(10), None, true, false, false));
        assert!(with(vec![mapping(VSOCK, "", "x")]).is_err());
        let of_the_host = HostConfig { devices: vec![mapping("/dev/null", "", "")], ..HostConfig::default() };
        assert_eq!(of(&of_the_host).unwrap()[0].host_path, Path::new("/dev/null"));
    }

    #[test]
    fn rules_are_parsed() {
        let parsed = rule("c 13:* rm").unwrap();
        assert_eq!((parsed.kind, parsed.major, parsed.minor), (DeviceKind::Char, Some(13), None));
        assert_eq!((parsed.read, parsed.write, parsed.mknod), (true, false, true));
        for bad in ["", "x 1:2 r", "c 1 r", "c 1:2", "c 1:2 rx", "c a:2 r", "c 1:2 r w"] {
            assert!(rule(bad).unwrap_err().to_string().contains(bad), "{bad}");
        }
    }
}
