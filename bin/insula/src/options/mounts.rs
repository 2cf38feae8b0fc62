//! `-v`, `--mount`, `--tmpfs`.

use anyhow::{Context as _, bail};
use insula_models::{BindOptions, Mount, TmpfsOptions, VolumeDriver, VolumeOptions};

use crate::usage::bad_flag;

/// What one `-v` asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Volume {
    /// `SOURCE:TARGET[:OPTIONS]` with the source made absolute if it is a path.
    Bind(String),
    /// A volume without a name.
    Anonymous(String),
}

/// Reads `-v`.
pub(crate) fn volume(text: &str) -> anyhow::Result<Volume> {
    let parts: Vec<&str> = text.split(':').collect();
    match parts[..] {
        [""] => bail!("invalid empty volume spec"),
        [target] => {
            check_target(target, text)?;
            Ok(Volume::Anonymous(target.to_owned()))
        }
        [source, target] => {
            Ok(Volume::Bind(format!("{}:{}", source_of(source, text)?, checked(target, text)?)))
        }
        [source, target, options] => {
            check_options(options, text)?;
            Ok(Volume::Bind(format!("{}:{}:{options}", source_of(source, text)?, checked(target, text)?)))
        }
        _ => bail!("invalid spec: {text:?}: SOURCE:TARGET[:OPTIONS] is expected"),
    }
}

fn source_of(source: &str, text: &str) -> anyhow::Result<String> {
    if source.is_empty() {
        bail!("invalid spec: {text:?}: the source is empty");
    }
    let is_path = source.starts_with('/') || source.starts_with('.') || source.starts_with('~');
    if !is_path {
        return Ok(source.to_owned());
    }
    absolute(source)
}

fn absolute(path: &str) -> anyhow::Result<String> {
    let absolute = std::path::absolute(path).with_context(|| format!("make {path:?} absolute"))?;
    absolute.into_os_string().into_string().map_err(|path| anyhow::anyhow!("{path:?} is not UTF-8"))
}

fn checked<'a>(target: &'a str, text: &str) -> anyhow::Result<&'a str> {
    check_target(target, text)?;
    Ok(target)
}

fn check_target(target: &str, text: &str) -> anyhow::Result<()> {
    if !target.starts_with('/') {
        bail!("invalid spec: {text:?}: the path in the container, {target:?}, must be absolute");
    }
    Ok(())
}

fn check_options(options: &str, text: &str) -> anyhow::Result<()> {
    for option in options.split(',') {
        let known = matches!(
            option,
            "ro" | "rw"
                | "z"
                | "Z"
                | "nocopy"
                | "private"
                | "rprivate"
                | "shared"
                | "rshared"
                | "slave"
                | "rslave"
        );
        if !known {
            bail!("invalid spec: {text:?}: unknown option {option:?}");
        }
    }
    Ok(())
}

/// Reads `--tmpfs TARGET[:OPTIONS]`.
pub(crate) fn tmpfs(text: &str) -> anyhow::Result<(String, String)> {
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    check_target(target, text)?;
    Ok((target.to_owned(), options.to_owned()))
}

/// Reads `--mount type=…,source=…,target=…`: fields separated by commas, as in CSV (a field with a
/// comma is put in double quotes as a whole).
pub(crate) fn mount(text: &str) -> anyhow::Result<Mount> {
    let mut mount = Mount { r#type: "volume".to_owned(), ..Mount::default() };
    for field in csv(text)? {
        let (name, value) = field.split_once('=').map_or((field.as_str(), None), |(n, v)| (n, Some(v)));
        apply(&mut mount, &name.to_ascii_lowercase(), value)
            .map_err(|error| bad_flag("--mount", text, error))?;
    }
    check(&mount).map_err(|error| bad_flag("--mount", text, error))?;
    if mount.r#type == "bind" {
        mount.source = absolute(&mount.source)?;
    }
    Ok(mount)
}

fn apply(mount: &mut Mount, name: &str, value: Option<&str>) -> anyhow::Result<()> {
    let needed = || value.with_context(|| format!("invalid field '{name}' must be a key=value pair"));
    match name {
        "type" => mount.r#type = needed()?.to_ascii_lowercase(),
        "source" | "src" => mount.source = needed()?.to_owned(),
        "target" | "dst" | "destination" => mount.target = needed()?.to_owned(),
        "readonly" | "ro" => mount.read_only = truth(name, value)?,
        "consistency" => mount.consistency = needed()?.to_ascii_lowercase(),
        "bind-propagation" => bind(mount).propagation = needed()?.to_ascii_lowercase(),
        "bind-nonrecursive" => bind(mount).non_recursive = truth(name, value)?,
        "bind-recursive" => recursive(bind(mount), needed()?)?,
        "volume-nocopy" => volume_options(mount).no_copy = truth(name, value)?,
        "volume-subpath" => volume_options(mount).subpath = needed()?.to_owned(),
        "volume-label" => {
            let (label, text) = needed()?.split_once('=').unwrap_or((needed()?, ""));
            volume_options(mount).labels.insert(label.to_owned(), text.to_owned());
        }
        "volume-driver" => driver(mount).name = needed()?.to_owned(),
        "volume-opt" => {
            let (option, text) = needed()?.split_once('=').unwrap_or((needed()?, ""));
            driver(mount).options.insert(option.to_owned(), text.to_owned());
        }
        "tmpfs-size" => tmpfs_options(mount).size_bytes = super::bytes("mount tmpfs-size", needed()?)?,
        "tmpfs-mode" => {
            tmpfs_options(mount).mode = u32::from_str_radix(needed()?, 8)
                .ok()
                .filter(|mode| *mode <= 0o7777)
                .with_context(|| format!("invalid value for tmpfs-mode: {}", value.unwrap_or_default()))?;
        }
        other => bail!("unexpected key '{other}'"),
    }
    Ok(())
}

fn recursive(options: &mut BindOptions, value: &str) -> anyhow::Result<()> {
    match value {
        "enabled" => {}
        "disabled" => options.non_recursive = true,
        "writable" => options.read_only_non_recursive = true,
        "readonly" => options.read_only_force_recursive = true,
        other => bail!(
            "invalid value for bind-recursive: {other}: enabled, disabled, writable or readonly is expected"
        ),
    }
    Ok(())
}

fn bind(mount: &mut Mount) -> &mut BindOptions {
    mount.bind_options.get_or_insert_default()
}

fn volume_options(mount: &mut Mount) -> &mut VolumeOptions {
    mount.volume_options.get_or_insert_default()
}

fn driver(mount: &mut Mount) -> &mut VolumeDriver {
    volume_options(mount).driver_config.get_or_insert_default()
}

fn tmpfs_options(mount: &mut Mount) -> &mut TmpfsOptions {
    mount.tmpfs_options.get_or_insert_default()
}

fn truth(name: &str, value: Option<&str>) -> anyhow::Result<bool> {
    match value {
        None | Some("true" | "1") => Ok(true),
        Some("false" | "0") => Ok(false),
        Some(other) => bail!("invalid value for {name}: {other}"),
    }
}

fn check(mount: &Mount) -> anyhow::Result<()> {
    if !matches!(mount.r#type.as_str(), "bind" | "volume" | "tmpfs") {
        bail!("mount type {:?} is not supported: bind, volume or tmpfs is expected", mount.r#type);
    }
    if mount.target.is_empty() {
        bail!("target is required");
    }
    if mount.bind_options.is_some() && mount.r#type != "bind" {
        bail!("cannot mix 'bind-*' options with mount type '{}'", mount.r#type);
    }
    if mount.volume_options.is_some() && mount.r#type != "volume" {
        bail!("cannot mix 'volume-*' options with mount type '{}'", mount.r#type);
    }
    if mount.tmpfs_options.is_some() && mount.r#type != "tmpfs" {
        bail!("cannot mix 'tmpfs-*' options with mount type '{}'", mount.r#type);
    }
    if mount.r#type == "bind" && mount.source.is_empty() {
        bail!("source is required for a bind mount");
    }
    if mount.r#type == "tmpfs" && !mount.source.is_empty() {
        bail!("a tmpfs has no source");
    }
    Ok(())
}

/// The fields of one line of CSV (RFC 4180).
fn csv(text: &str) -> anyhow::Result<Vec<String>> {
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let (field, after) = match rest.strip_prefix('"') {
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                (rest[..end].to_owned(), &rest[end..])
            }
            Some(quoted) => quoted_field(quoted).with_context(|| format!("unbalanced quotes in {text:?}"))?,
        };
        fields.push(field);
        match after.strip_prefix(',') {
            Some(next) => rest = next,
            None if after.is_empty() => return Ok(fields),
            None => bail!("a comma is expected before {after:?} in {text:?}"),
        }
    }
}

fn quoted_field(text: &str) -> Option<(String, &str)> {
    let mut field = String::new();
    let mut rest = text;
    loop {
        let end = rest.find('"')?;
        field.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(more) => {
                field.push('"');
                rest = more;
            }
            None => return Some((field, rest)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes() {
        let bind = |text: &str| match volume(text).unwrap() {
            Volume::Bind(bind) => bind,
            Volume::Anonymous(target) => panic!("{target}"),
        };
        assert_eq!(volume("/data").unwrap(), Volume::Anonymous("/data".to_owned()));
        assert_eq!(bind("/a:/b:ro,rslave"), "/a:/b:ro,rslave");
        assert_eq!(bind("name:/b"), "name:/b");
        assert_eq!(bind("./x:/b"), format!("{}/x:/b", std::env::current_dir().unwrap().display()));
        for bad in ["", "rel", "/a:b", ":/b", "/a:/b:what", "/a:/b:ro:x"] {
            assert!(volume(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn mounts() {
        let of = |text| mount(text).unwrap();
        let bound = of("type=bind,src=/a,dst=/b,readonly,bind-propagation=rshared");
        assert!(bound.read_only && bound.source == "/a" && bound.target == "/b");
        assert_eq!(bound.bind_options.unwrap().propagation, "rshared");
        let volume = of("source=v,target=/b,\"volume-label=a=1,2\",volume-nocopy=true");
        assert_eq!((volume.r#type.as_str(), volume.source.as_str()), ("volume", "v"));
        let options = volume.volume_options.unwrap();
        assert!(options.no_copy && options.labels["a"] == "1,2");
        let tmpfs = of("type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1770").tmpfs_options.unwrap();
        assert_eq!((tmpfs.size_bytes, tmpfs.mode), (1 << 20, 0o1770));
        for bad in [
            "",
            "type=bind,target=/b",
            "type=what,target=/b",
            "target=/b,what=1",
            "type=tmpfs,target=/b,bind-propagation=shared",
            "type=tmpfs,source=x,target=/b",
            "type=tmpfs,target=/t,tmpfs-mode=9",
            "target=/b,ro=maybe",
            "\"target=/b",
            "target",
        ] {
            assert!(mount(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn tmpfs_flags() {
        assert_eq!(tmpfs("/t:size=1m,noexec").unwrap(), ("/t".to_owned(), "size=1m,noexec".to_owned()));
        assert_eq!(tmpfs("/t").unwrap().1, "");
        assert!(tmpfs("t").is_err());
    }
}
