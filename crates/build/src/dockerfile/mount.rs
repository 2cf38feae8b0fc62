//! `RUN --mount`.

use super::flags::Flags;
use crate::Result;
use crate::nearest::hint;

/// What a command sees beside its root, and what leaves no trace in the layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub kind: MountKind,
    /// Where; variables are not replaced. Secrets and agents may have none.
    pub target: Option<String>,
    /// `readonly`; what is usual for the kind if it is not said.
    pub readonly: Option<bool>,
    /// In the stage, image, context or cache; variables are not replaced.
    pub source: Option<String>,
    pub from: Option<String>,
    /// Of the cache, the secret or the agent.
    pub id: Option<String>,
    pub sharing: Sharing,
    /// The build fails without the secret or the agent.
    pub required: bool,
    /// A secret as an environment variable.
    pub env: Option<String>,
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// Bytes of a tmpfs.
    pub size: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountKind {
    Bind,
    Cache,
    Tmpfs,
    Secret,
    Ssh,
}

/// What other builds may do with a cache meanwhile.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Sharing {
    #[default]
    Shared,
    Private,
    Locked,
}

const KEYS: [&str; 19] = [
    "type",
    "from",
    "source",
    "src",
    "target",
    "dst",
    "destination",
    "readonly",
    "ro",
    "readwrite",
    "rw",
    "id",
    "sharing",
    "required",
    "mode",
    "uid",
    "gid",
    "size",
    "env",
];

/// Reads `type=cache,target=/var/cache,…`.
pub(super) fn read(flags: &Flags, text: &str) -> Result<Mount> {
    let wrong = |why: String| flags.wrong("mount", &why);
    let mut mount = Mount {
        kind: MountKind::Bind,
        target: None,
        readonly: None,
        source: None,
        from: None,
        id: None,
        sharing: Sharing::Shared,
        required: false,
        env: None,
        mode: None,
        uid: None,
        gid: None,
        size: None,
    };
    for field in fields(text).ok_or_else(|| wrong(format!("{text:?} has a quote that stays open")))? {
        let (key, value) = field.split_once('=').map_or((field.as_str(), None), |(k, v)| (k, Some(v)));
        let key = key.to_ascii_lowercase();
        set(&mut mount, &key, value).map_err(wrong)?;
    }
    check(&mount).map_err(wrong)?;
    Ok(mount)
}

fn set(mount: &mut Mount, key: &str, value: Option<&str>) -> Result<(), String> {
    let switch = || match value {
        None | Some("true" | "1") => Ok(true),
        Some("false" | "0") => Ok(false),
        Some(other) => Err(format!("{key}={other} is neither true nor false")),
    };
    match key {
        "readonly" | "ro" => return switch().map(|on| mount.readonly = Some(on)),
        "readwrite" | "rw" => return switch().map(|on| mount.readonly = Some(!on)),
        "required" => return switch().map(|on| mount.required = on),
        _ if !KEYS.contains(&key) => return Err(format!("unexpected key {key:?}{}", hint(key, KEYS))),
        _ => {}
    }
    let value = value.ok_or_else(|| format!("{key} needs a value"))?;
    let number =
        |radix| u32::from_str_radix(value, radix).map_err(|_| format!("{key}={value} is not a number"));
    match key {
        "type" => {
            mount.kind = match value.to_ascii_lowercase().as_str() {
                "bind" => MountKind::Bind,
                "cache" => MountKind::Cache,
                "tmpfs" => MountKind::Tmpfs,
                "secret" => MountKind::Secret,
                "ssh" => MountKind::Ssh,
                other => {
                    let hint = hint(other, ["bind", "cache", "tmpfs", "secret", "ssh"]);
                    return Err(format!("unsupported mount type {other:?}{hint}"));
                }
            }
        }
        "from" => mount.from = Some(value.to_owned()),
        "source" | "src" => mount.source = Some(value.to_owned()),
        "target" | "dst" | "destination" => mount.target = Some(value.to_owned()),
        "id" => mount.id = Some(value.to_owned()),
        "env" => mount.env = Some(value.to_owned()),
        "sharing" => {
            mount.sharing = match value.to_ascii_lowercase().as_str() {
                "shared" => Sharing::Shared,
                "private" => Sharing::Private,
                "locked" => Sharing::Locked,
                other => {
                    let hint = hint(other, ["shared", "private", "locked"]);
                    return Err(format!("unsupported sharing value {other:?}{hint}"));
                }
            }
        }
        "mode" => mount.mode = Some(number(8)?),
        "uid" => mount.uid = Some(number(10)?),
        "gid" => mount.gid = Some(number(10)?),
        _ => {
            let size = insula_base::parse_bytes(value)
                .map_err(|_| format!("size={value} is not a number of bytes"))?;
            mount.size = Some(size);
        }
    }
    Ok(())
}

fn check(mount: &Mount) -> Result<(), String> {
    use MountKind::{Bind, Cache, Secret, Ssh, Tmpfs};
    let kind = mount.kind;
    let only = |given: bool, key: &str, kinds: &[MountKind]| match given && !kinds.contains(&kind) {
        true => Err(format!("{key} does not go with this type of mount")),
        false => Ok(()),
    };
    only(mount.from.is_some(), "from", &[Bind, Cache])?;
    only(mount.size.is_some(), "size", &[Tmpfs])?;
    only(mount.env.is_some(), "env", &[Secret])?;
    only(mount.required, "required", &[Secret, Ssh])?;
    only(mount.sharing != Sharing::Shared, "sharing", &[Cache])?;
    only(
        mount.mode.is_some() || mount.uid.is_some() || mount.gid.is_some(),
        "mode, uid or gid",
        &[Cache, Secret, Ssh],
    )?;
    only(mount.readonly.is_some(), "readonly", &[Bind, Cache])?;
    if mount.target.is_none() && matches!(kind, Bind | Cache | Tmpfs) {
        return Err("needs a target".to_owned());
    }
    if kind == Secret && mount.id.is_none() && mount.target.is_none() && mount.source.is_none() {
        return Err("of a secret needs an id".to_owned());
    }
    Ok(())
}

/// Fields of a line of comma-separated values, as `encoding/csv` reads it.
fn fields(text: &str) -> Option<Vec<String>> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut signs = text.chars().peekable();
    while let Some(sign) = signs.next() {
        let field = fields.last_mut()?;
        match sign {
            '"' if quoted && signs.peek() == Some(&'"') => {
                signs.next();
                field.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            _ => field.push(sign),
        }
    }
    (!quoted).then_some(fields)
}
