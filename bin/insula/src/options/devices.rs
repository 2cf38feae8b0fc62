//! `--device`, `--device-read-bps` and their kind.

use anyhow::bail;
use insula_models::{DeviceMapping, DeviceRequest, ThrottleDevice, WeightDevice};

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

/// `PATH:WEIGHT`.
pub(crate) fn weight(text: &str) -> anyhow::Result<WeightDevice> {
    let wrong = || {
        bad_flag("--blkio-weight-device", text, "/dev/DEVICE:WEIGHT is expected, and 10 to 1000 for a weight")
    };
    let (path, weight) = text.rsplit_once(':').ok_or_else(wrong)?;
    let weight = weight.parse().ok().filter(|weight| *weight == 0 || (10..=1000).contains(weight));
    match weight {
        Some(weight) if path.starts_with("/dev/") => Ok(WeightDevice { path: path.to_owned(), weight }),
        _ => Err(wrong()),
    }
}

/// `all`, a number, or `NAME=VALUE,…` with lists in quotes, as in CSV: `"capabilities=compute,utility"`.
pub(crate) fn gpus(text: &str) -> anyhow::Result<DeviceRequest> {
    let wrong = |why: &str| bad_flag("--gpus", text, why);
    let list = |value: &str| value.split(',').map(str::to_owned).collect::<Vec<_>>();
    let mut request = DeviceRequest::default();
    let (mut count, mut capabilities) = (None, vec!["gpu".to_owned()]);
    for field in fields(text) {
        let (name, value) = field.split_once('=').unwrap_or(("count", &field));
        match name {
            "count" if value == "all" => count = Some(-1),
            "count" => count = Some(value.parse().map_err(|_| wrong("count is all or a number"))?),
            "driver" => value.clone_into(&mut request.driver),
            "device" => request.device_ids = list(value),
            "capabilities" => capabilities.extend(list(value)),
            "options" => {
                request.options = super::strict_pairs("gpus", &list(value))?.into_iter().collect();
            }
            _ => return Err(wrong(&format!("unexpected key {name:?}"))),
        }
    }
    if count.is_some() && !request.device_ids.is_empty() {
        return Err(wrong("a count and devices exclude each other"));
    }
    request.count = count.unwrap_or(i64::from(request.device_ids.is_empty()));
    request.capabilities = vec![capabilities];
    Ok(request)
}

/// Parts between commas that are in no quotes.
fn fields(text: &str) -> Vec<String> {
    let (mut all, mut field, mut quoted) = (Vec::new(), String::new(), false);
    for sign in text.chars() {
        match sign {
            '"' => quoted = !quoted,
            ',' if !quoted => all.push(std::mem::take(&mut field)),
            sign => field.push(sign),
        }
    }
    all.push(field);
    all
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

    #[test]
    fn graphics() {
        let of = |text| gpus(text).unwrap();
        assert_eq!((of("all").count, of("2").count, of("driver=x").count), (-1, 2, 1));
        assert_eq!(of("all").capabilities, [["gpu"]]);
        let some = of("\"device=0,1\",\"capabilities=compute,utility\"");
        assert_eq!((some.count, some.device_ids), (0, vec!["0".to_owned(), "1".to_owned()]));
        assert_eq!(some.capabilities, [["gpu", "compute", "utility"]]);
        for bad in ["", "some", "count=1,device=0", "colour=red"] {
            assert!(gpus(bad).is_err(), "{bad}");
        }
    }
}
