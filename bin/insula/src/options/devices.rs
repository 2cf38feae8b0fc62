//! `--device`, `--device-read-bps` and their kind.

use anyhow::bail;
use insula_models::{DeviceMapping, ThrottleDevice};

use crate::usage::bad_flag;

/// `HOST[:CONTAINER][:rwm]`.
pub(crate) fn device(text: &str) -> anyhow::Result<DeviceMapping> {
    let parts: Vec<&str> = text.split(':').collect();
    let (host, container, permissions) = match parts[..] {
        [host] => (host, host, "rwm"),
        [host, second] if is_permissions(second) => (host, host, second),
        [host, container] => (host, container, "rwm"),
        [host, container, permissions] => (host, container, permissions),
        _ => bail!("invalid device specification: {text}"),
    };
    if !host.starts_with('/') || !container.starts_with('/') {
        bail!("{text} is not an absolute path");
    }
    if !is_permissions(permissions) {
        bail!("bad mode specified: {permissions}: letters of rwm are expected in {text}");
    }
    Ok(DeviceMapping {
        path_on_host: host.to_owned(),
        path_in_container: container.to_owned(),
        cgroup_permissions: permissions.to_owned(),
    })
}

fn is_permissions(text: &str) -> bool {
    let once = |letter| text.matches(letter).count() <= 1;
    !text.is_empty() && text.chars().all(|letter| "rwm".contains(letter)) && "rwm".chars().all(once)
}

/// `PATH:RATE` with the rate in bytes and units, or plain operations.
pub(crate) fn throttle(flag: &str, text: &str) -> anyhow::Result<ThrottleDevice> {
    let wrong = || bad_flag(&format!("--{flag}"), text, "bad format: /dev/DEVICE:RATE is expected");
    let (path, rate) = text.rsplit_once(':').ok_or_else(wrong)?;
    if !path.starts_with("/dev/") {
        return Err(wrong());
    }
    let rate = if flag.ends_with("bps") {
        insula_base::parse_bytes(rate).map_err(|_| wrong())?
    } else {
        rate.parse().map_err(|_| wrong())?
    };
    Ok(ThrottleDevice { path: path.to_owned(), rate })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices() {
        let of = |text| {
            let device = device(text).unwrap();
            format!("{} {} {}", device.path_on_host, device.path_in_container, device.cgroup_permissions)
        };
        assert_eq!(of("/dev/fuse"), "/dev/fuse /dev/fuse rwm");
        assert_eq!(of("/dev/a:r"), "/dev/a /dev/a r");
        assert_eq!(of("/dev/a:/dev/b"), "/dev/a /dev/b rwm");
        assert_eq!(of("/dev/a:/dev/b:mw"), "/dev/a /dev/b mw");
        for bad in ["", "fuse", "/dev/a:x", "/dev/a:/dev/b:rr", "/dev/a:/dev/b:q", "/a:/b:r:w"] {
            assert!(device(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn rates() {
        assert_eq!(throttle("device-read-bps", "/dev/sda:1mb").unwrap().rate, 1 << 20);
        assert_eq!(throttle("device-read-iops", "/dev/sda:100").unwrap().rate, 100);
        for bad in ["/dev/sda", "sda:1", "/dev/sda:x", "/dev/sda:-1"] {
            assert!(throttle("device-read-iops", bad).is_err(), "{bad}");
        }
    }
}
