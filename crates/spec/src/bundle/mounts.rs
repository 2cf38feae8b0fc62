//! Options of `mounts`: runtime specification, "Linux mount options".

use super::document::Mount;
use super::{
    Attributes, BundleMount, BundleSource, Content, IdMapping, MountIds, Result, RootPropagation, invalid,
    unsupported,
};

const RDONLY: u64 = 0x1;
const NOSUID: u64 = 0x2;
const NODEV: u64 = 0x4;
const NOEXEC: u64 = 0x8;
const ATIME: u64 = 0x70;
const NOATIME: u64 = 0x10;
const STRICTATIME: u64 = 0x20;
const NODIRATIME: u64 = 0x80;
const NOSYMFOLLOW: u64 = 0x20_0000;

/// Name, bits to set, bits to clear. With an `r` in front they are of all mounts below, too.
const BITS: [(&str, u64, u64); 18] = [
    ("ro", RDONLY, 0),
    ("rw", 0, RDONLY),
    ("nosuid", NOSUID, 0),
    ("suid", 0, NOSUID),
    ("nodev", NODEV, 0),
    ("dev", 0, NODEV),
    ("noexec", NOEXEC, 0),
    ("exec", 0, NOEXEC),
    ("noatime", NOATIME, ATIME),
    ("atime", 0, ATIME),
    ("strictatime", STRICTATIME, ATIME),
    ("nostrictatime", 0, ATIME),
    ("relatime", 0, ATIME),
    ("norelatime", STRICTATIME, ATIME),
    ("nodiratime", NODIRATIME, 0),
    ("diratime", 0, NODIRATIME),
    ("nosymfollow", NOSYMFOLLOW, 0),
    ("symfollow", 0, NOSYMFOLLOW),
];

/// Of a file system, not of a mount: what a new instance is told.
const INSTANCE: [&str; 6] = ["sync", "dirsync", "lazytime", "mand", "iversion", "silent"];
/// What a new instance has by itself.
const INSTANCE_DEFAULTS: [&str; 5] = ["async", "nolazytime", "nomand", "noiversion", "loud"];

const PROPAGATION: [(&str, RootPropagation); 4] = [
    ("private", RootPropagation::Private),
    ("slave", RootPropagation::Slave),
    ("shared", RootPropagation::Shared),
    ("unbindable", RootPropagation::Unbindable),
];

/// Every option that is understood, for `features`.
pub const OPTIONS: [&str; 62] = [
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "idmap",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "noiversion",
    "nolazytime",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "remount",
    "rexec",
    "ridmap",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "runbindable",
    "rw",
    "shared",
    "silent",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
    "sync",
    "tmpcopyup",
    "unbindable",
];

/// `shared` or, with what is below, `rshared`.
pub(super) fn propagation(name: &str) -> Option<(RootPropagation, bool)> {
    let find = |name: &str| PROPAGATION.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind);
    find(name).map(|kind| (kind, false)).or_else(|| find(name.strip_prefix('r')?).map(|kind| (kind, true)))
}

/// What the options of one mount add up to.
#[derive(Default)]
struct Options {
    attributes: Attributes,
    recursive: Attributes,
    propagation: Option<(RootPropagation, bool)>,
    /// Whether recursively.
    bind: Option<bool>,
    remount: bool,
    content: Content,
    idmap: Option<bool>,
    instance: Vec<&'static str>,
    data: Vec<(String, String)>,
}

/// One mount; `bundle` is where relative sources begin.
pub(super) fn mount(mount: &Mount, at: &str, bundle: &std::path::Path) -> Result<BundleMount> {
    let target = &mount.destination;
    // Before version 1.0 of the specification it was allowed not to be absolute.
    if !target.starts_with('/') || target.contains('\0') {
        return Err(invalid(format!("{at}.destination"), format!("{target:?} is not an absolute path")));
    }
    let options = read(mount, at)?;
    let kind = mount.kind.as_deref().unwrap_or_default();
    let source = match options.bind.or((kind == "bind").then_some(false)) {
        _ if options.remount => remount(at, &options)?,
        Some(recursive) => bind(mount, at, &options, recursive, bundle)?,
        None => instance(mount, at, &options)?,
    };
    Ok(BundleMount {
        target: target.clone(),
        source,
        attributes: options.attributes,
        recursive: options.recursive,
        propagation: options.propagation,
    })
}

fn read(mount: &Mount, at: &str) -> Result<Options> {
    let mut all = Options::default();
    for (number, option) in mount.options.iter().flatten().enumerate() {
        let name = option.as_str();
        let field = || format!("{at}.options[{number}]");
        if let Some((_, set, clear)) = BITS.iter().find(|(known, ..)| *known == name) {
            change(&mut all.attributes, *set, *clear);
        } else if let Some(found) = propagation(name) {
            all.propagation = Some(found);
        } else if let Some((_, set, clear)) =
            name.strip_prefix('r').and_then(|name| BITS.iter().find(|(known, ..)| *known == name))
        {
            change(&mut all.recursive, *set, *clear);
        } else if let Some(flag) = INSTANCE.iter().find(|known| **known == name) {
            all.instance.push(flag);
        } else {
            match name {
                "bind" => all.bind = Some(all.bind.unwrap_or(false)),
                "rbind" => all.bind = Some(true),
                "idmap" => all.idmap = Some(all.idmap.unwrap_or(false)),
                "ridmap" => all.idmap = Some(true),
                "defaults" => {}
                _ if INSTANCE_DEFAULTS.contains(&name) => {}
                "remount" => all.remount = true,
                "tmpcopyup" => all.content = Content::Copy,
                _ => {
                    let (key, value) = name.split_once('=').unwrap_or((name, ""));
                    if key.is_empty() || name.contains('\0') {
                        return Err(invalid(field(), format!("{name:?} is not an option")));
                    }
                    all.data.push((key.to_owned(), value.to_owned()));
                }
            }
        }
    }
    Ok(all)
}

/// What is mounted there keeps what is not said.
fn remount(at: &str, options: &Options) -> Result<BundleSource> {
    if options.idmap.is_some() || options.content != Content::Nothing {
        return Err(invalid(format!("{at}.options"), "\"remount\" changes no ids and no content"));
    }
    let mut data = options.data.clone();
    data.extend(options.instance.iter().map(|name| ((*name).to_owned(), String::new())));
    if let (Some(_), Some((key, _))) = (options.bind, data.first()) {
        return Err(invalid(format!("{at}.options"), format!("{key:?} is not an option of bind mounts")));
    }
    Ok(BundleSource::Remount { options: data })
}

/// What comes later wins.
fn change(attributes: &mut Attributes, set: u64, clear: u64) {
    attributes.set = (attributes.set & !clear) | set;
    attributes.clear = (attributes.clear & !(set & !ATIME)) | clear;
}

fn bind(
    mount: &Mount,
    at: &str,
    options: &Options,
    recursive: bool,
    bundle: &std::path::Path,
) -> Result<BundleSource> {
    let source = mount.source.as_deref().filter(|source| !source.is_empty());
    let source = source.ok_or_else(|| invalid(format!("{at}.source"), "a bind mount needs one"))?;
    if let Some((key, _)) = options.data.first() {
        return Err(invalid(format!("{at}.options"), format!("{key:?} is not an option of bind mounts")));
    }
    if options.content == Content::Copy {
        return Err(invalid(format!("{at}.options"), "\"tmpcopyup\" is for a tmpfs"));
    }
    if let Some(name) = options.instance.first() {
        return Err(unsupported(format!("{at}.options"), format!("{name:?} of a bind mount")));
    }
    let (uids, gids) = (list(&mount.uid_mappings), list(&mount.gid_mappings));
    if uids.is_empty() != gids.is_empty() {
        return Err(invalid(format!("{at}.uidMappings"), "both kinds of ids are to be mapped, or none"));
    }
    let mapped = options.idmap.is_some() || !uids.is_empty();
    let idmap = mapped.then(|| MountIds { uids, gids, recursive: options.idmap == Some(true) });
    Ok(BundleSource::Bind { path: bundle.join(source), recursive, idmap })
}

fn list(mappings: &Option<Vec<IdMapping>>) -> Vec<IdMapping> {
    mappings.clone().unwrap_or_default()
}

fn instance(mount: &Mount, at: &str, options: &Options) -> Result<BundleSource> {
    let kind = mount.kind.as_deref().unwrap_or_default();
    if kind.is_empty() || kind == "none" {
        return Err(invalid(format!("{at}.type"), "is missing, and the mount is no bind mount"));
    }
    if options.idmap.is_some() || mount.uid_mappings.is_some() || mount.gid_mappings.is_some() {
        return Err(unsupported(format!("{at}.options"), "mapping ids of what is no bind mount"));
    }
    if options.recursive != Attributes::default() {
        return Err(invalid(format!("{at}.options"), "a new file system has nothing below it"));
    }
    let dev = std::path::Path::new(&mount.destination) == std::path::Path::new("/dev");
    if options.content == Content::Copy && (kind != "tmpfs" || dev) {
        return Err(invalid(format!("{at}.options"), "\"tmpcopyup\" is for a tmpfs that is not /dev"));
    }
    let mut data = options.data.clone();
    data.extend(options.instance.iter().map(|name| ((*name).to_owned(), String::new())));
    Ok(match kind {
        // Its options are those of the host's hierarchies, which exist already.
        "cgroup" | "cgroup2" => BundleSource::Cgroup,
        "tmpfs" if dev => BundleSource::Dev { options: data },
        kind => {
            let device = mount.source.clone().filter(|source| !source.is_empty());
            BundleSource::New {
                kind: kind.to_owned(),
                device: device.unwrap_or_else(|| kind.to_owned()),
                options: data,
                content: options.content,
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(kind: &str, options: &[&str]) -> Result<BundleMount> {
        let mount_ = Mount {
            destination: "/x".into(),
            kind: Some(kind.into()),
            source: Some("src".into()),
            options: Some(options.iter().map(|option| (*option).to_owned()).collect()),
            ..Mount::default()
        };
        mount(&mount_, "mounts[0]", std::path::Path::new("/bundle"))
    }

    #[test]
    fn the_last_of_two_options_wins() {
        let found = parsed("bind", &["ro", "noatime", "rw", "relatime", "nosuid"]).unwrap().attributes;
        assert_eq!(found, Attributes { set: NOSUID, clear: RDONLY | ATIME });
        let found = parsed("bind", &["rw", "ro", "strictatime"]).unwrap().attributes;
        assert_eq!(found, Attributes { set: RDONLY | STRICTATIME, clear: ATIME });
    }

    #[test]
    fn an_r_in_front_is_recursive() {
        let found = parsed("bind", &["rbind", "rro", "rslave"]).unwrap();
        assert_eq!(found.recursive, Attributes { set: RDONLY, clear: 0 });
        assert_eq!(found.attributes, Attributes::default());
        assert_eq!(found.propagation, Some((RootPropagation::Slave, true)));
        let BundleSource::Bind { path, recursive, .. } = found.source else { panic!() };
        assert!(recursive && path == std::path::Path::new("/bundle/src"));
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        let error = parsed("bind", &["nosuid", "tmpcopyup"]).unwrap_err();
        assert_eq!(error.to_string(), "mounts[0].options: \"tmpcopyup\" is for a tmpfs");
        let error = parsed("bind", &["size=3"]).unwrap_err();
        assert_eq!(error.to_string(), "mounts[0].options: \"size\" is not an option of bind mounts");
        assert!(parsed("bind", &["sync"]).is_err() && parsed("", &[]).is_err());
    }

    #[test]
    fn every_option_that_is_understood_is_told() {
        let bits = BITS.iter().flat_map(|(name, ..)| [(*name).to_owned(), format!("r{name}")]);
        let spread = PROPAGATION.iter().flat_map(|(name, _)| [(*name).to_owned(), format!("r{name}")]);
        let rest = ["bind", "rbind", "idmap", "ridmap", "remount", "tmpcopyup"];
        let others = INSTANCE.iter().chain(&INSTANCE_DEFAULTS).chain(&rest);
        let all = bits.chain(spread).chain(others.map(|name| (*name).to_owned()));
        let missing: Vec<_> = all.filter(|name| !OPTIONS.contains(&name.as_str())).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn every_option_that_is_told_is_understood() {
        assert!(OPTIONS.is_sorted());
        for option in OPTIONS {
            let found = parsed("bind", &[option]).or_else(|_| parsed("tmpfs", &[option])).unwrap();
            let unknown = matches!(&found.source, BundleSource::New { options, .. }
                if options.iter().any(|(key, _)| key == option && !INSTANCE.contains(&option)));
            assert!(!unknown, "{option}");
        }
    }
}
