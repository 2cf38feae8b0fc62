//! Mounts: from `-v`, `--mount`, `--tmpfs`, `--volumes-from` and the image's volumes to one list.

use std::path::{Component, Path, PathBuf};

use insula_models::{ContainerConfig, HostConfig, Labels, Mount};

use super::row::{MountRow, SourceRow};
use crate::{Error, Result};

/// Words that may follow the target of a bind.
const PROPAGATIONS: [&str; 6] = ["private", "rprivate", "shared", "rshared", "slave", "rslave"];

/// A mount as asked for: a volume without a name has not got one yet.
pub(super) type Wanted = MountRow;

/// Every mount that the request and the image ask for, parents before children. `others` gives the
/// mounts of a container that is named by `--volumes-from`.
pub(super) fn collect(
    config: &ContainerConfig,
    host: &HostConfig,
    others: &dyn Fn(&str) -> Result<Vec<MountRow>>,
) -> Result<Vec<Wanted>> {
    let mut mounts: Vec<Wanted> = Vec::new();
    for from in &host.volumes_from {
        for mount in volumes_from(from, others)? {
            // Later ones win over earlier containers.
            mounts.retain(|have| have.target != mount.target);
            mounts.push(mount);
        }
    }
    let inherited = mounts.len();
    let mut own: Vec<Wanted> = Vec::new();
    for bind in &host.binds {
        own.push(bind_of(bind)?);
    }
    for mount in &host.mounts {
        own.push(mount_of(mount)?);
    }
    for (target, options) in &host.tmpfs {
        own.push(tmpfs(target, options)?);
    }
    own.sort_by(|a, b| a.target.cmp(&b.target));
    if let Some(pair) = own.windows(2).find(|pair| pair[0].target == pair[1].target) {
        return Err(Error::InvalidArgument(format!("Duplicate mount point: {}", pair[0].target)));
    }
    mounts.retain(|have| !own.iter().any(|mount| mount.target == have.target));
    debug_assert!(mounts.len() <= inherited);
    mounts.append(&mut own);
    for target in config.volumes.keys() {
        let target = plain_target(target)?;
        if !mounts.iter().any(|mount| mount.target == target) {
            mounts.push(MountRow {
                target,
                source: volume("", true, true),
                readonly: false,
                mode: String::new(),
            });
        }
    }
    mounts.sort_by_key(|mount| mount.target.split('/').count());
    Ok(mounts)
}

fn volume(name: &str, anonymous: bool, copy: bool) -> SourceRow {
    SourceRow::Volume { name: name.to_owned(), anonymous, copy, folder: None }
}

/// `CONTAINER[:ro|rw]`. tmpfs is not shared, and what was anonymous is somebody else's now.
/// Puts mounts of the engine's own in place of those with the same targets, parents before children.
pub(super) fn put_over(mounts: &mut Vec<MountRow>, own: Vec<MountRow>) {
    mounts.retain(|have| !own.iter().any(|mount| mount.target == have.target));
    mounts.extend(own);
    mounts.sort_by_key(|mount| mount.target.split('/').count());
}

fn volumes_from(text: &str, others: &dyn Fn(&str) -> Result<Vec<MountRow>>) -> Result<Vec<MountRow>> {
    let (reference, mode) = text.split_once(':').unwrap_or((text, "rw"));
    if !matches!(mode, "ro" | "rw" | "z" | "Z") || reference.is_empty() {
        return Err(Error::InvalidArgument(format!("invalid volumes-from specification: {text:?}")));
    }
    let mut mounts = others(reference)?;
    mounts.retain(|mount| !matches!(mount.source, SourceRow::Tmpfs { .. }));
    for mount in &mut mounts {
        mount.readonly |= mode == "ro";
        if let SourceRow::Volume { copy, .. } = &mut mount.source {
            *copy = false;
        }
    }
    Ok(mounts)
}

/// `[SOURCE:]TARGET[:OPTIONS]`.
fn bind_of(text: &str) -> Result<Wanted> {
    let wrong = |why: &str| Error::InvalidArgument(format!("invalid volume specification: '{text}': {why}"));
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, mode) = match parts.as_slice() {
        [target] => ("", *target, ""),
        [source, target] => (*source, *target, ""),
        [source, target, mode] => (*source, *target, *mode),
        _ => return Err(wrong("SOURCE:TARGET[:OPTIONS] is expected")),
    };
    let target = plain_target(target).map_err(|error| wrong(&error.to_string()))?;
    let mut options = BindOptions::default();
    for word in mode.split(',').filter(|word| !word.is_empty()) {
        options.take(word).ok_or_else(|| wrong(&format!("invalid mode: {mode}")))?;
    }
    let source = match source {
        "" if parts.len() == 1 => volume("", true, !options.nocopy),
        "" => return Err(wrong("empty section between colons")),
        path if path.starts_with('/') => SourceRow::Bind {
            path: plain_host(path).map_err(|error| wrong(&error.to_string()))?,
            recursive: true,
            propagation: options.propagation.unwrap_or("rprivate").to_owned(),
        },
        _ if options.propagation.is_some() => {
            return Err(wrong("a propagation is for bind mounts only"));
        }
        name => volume(name, false, !options.nocopy),
    };
    Ok(MountRow { target, source, readonly: options.readonly, mode: mode.to_owned() })
}

#[derive(Default)]
struct BindOptions<'a> {
    /// Said at most once, as everything here.
    written: bool,
    labelled: bool,
    consistent: bool,
    readonly: bool,
    nocopy: bool,
    propagation: Option<&'a str>,
}

impl<'a> BindOptions<'a> {
    fn take(&mut self, word: &'a str) -> Option<()> {
        // SELinux labels and consistency mean nothing here, as with Docker on such hosts.
        let said = match word {
            "ro" | "readonly" => {
                self.readonly = true;
                std::mem::replace(&mut self.written, true)
            }
            "rw" => std::mem::replace(&mut self.written, true),
            "z" | "Z" => std::mem::replace(&mut self.labelled, true),
            "consistent" | "cached" | "delegated" | "default" => {
                std::mem::replace(&mut self.consistent, true)
            }
            "nocopy" => std::mem::replace(&mut self.nocopy, true),
            word if PROPAGATIONS.contains(&word) => self.propagation.replace(word).is_some(),
            _ => true,
        };
        (!said).then_some(())
    }
}

fn mount_of(mount: &Mount) -> Result<Wanted> {
    let wrong = |why: String| {
        Error::InvalidArgument(format!("invalid mount config for type \"{}\": {why}", mount.r#type))
    };
    let target = plain_target(&mount.target).map_err(|error| wrong(error.to_string()))?;
    let foreign = [
        ("BindOptions", mount.bind_options.is_some() && mount.r#type != "bind"),
        ("VolumeOptions", mount.volume_options.is_some() && mount.r#type != "volume"),
        ("TmpfsOptions", mount.tmpfs_options.is_some() && mount.r#type != "tmpfs"),
    ];
    if let Some((field, _)) = foreign.iter().find(|(_, given)| *given) {
        return Err(wrong(format!("field {field} must not be specified")));
    }
    let source = match mount.r#type.as_str() {
        "bind" => bind_source(mount, &wrong)?,
        "volume" => volume_source(mount, &wrong)?,
        "tmpfs" => tmpfs_source(mount, &wrong)?,
        "" => return Err(Error::InvalidArgument("invalid mount config: the type is missing".to_owned())),
        other => {
            return Err(Error::Unsupported(format!(
                "mount type {other:?} is not supported: bind, volume or tmpfs are"
            )));
        }
    };
    Ok(MountRow { target, source, readonly: mount.read_only, mode: String::new() })
}

fn bind_source(mount: &Mount, wrong: &dyn Fn(String) -> Error) -> Result<SourceRow> {
    let options = mount.bind_options.clone().unwrap_or_default();
    if !(options.propagation.is_empty() || PROPAGATIONS.contains(&options.propagation.as_str())) {
        return Err(wrong(format!("invalid propagation mode: {}", options.propagation)));
    }
    if mount.source.is_empty() {
        return Err(wrong("field Source must not be empty".to_owned()));
    }
    let path = plain_host(&mount.source).map_err(|error| wrong(error.to_string()))?;
    if options.create_mountpoint {
        make_source(&path)?;
    } else if !path.exists() {
        return Err(wrong(format!("bind source path does not exist: {}", path.display())));
    }
    if options.read_only_force_recursive && options.non_recursive {
        return Err(wrong("ReadOnlyForceRecursive needs a recursive bind".to_owned()));
    }
    if options.read_only_non_recursive && mount.read_only && !options.non_recursive {
        return Err(Error::Unsupported(
            "BindOptions.ReadOnlyNonRecursive is not available in this version: submounts of a read-only \
             bind are read-only too"
                .to_owned(),
        ));
    }
    let propagation =
        if options.propagation.is_empty() { "rprivate".to_owned() } else { options.propagation };
    Ok(SourceRow::Bind { path, recursive: !options.non_recursive, propagation })
}

fn volume_source(mount: &Mount, wrong: &dyn Fn(String) -> Error) -> Result<SourceRow> {
    let options = mount.volume_options.clone().unwrap_or_default();
    if !options.subpath.is_empty() {
        return Err(Error::Unsupported(
            "VolumeOptions.Subpath is not available in this version: mount the whole volume".to_owned(),
        ));
    }
    if let Some(driver) = &options.driver_config
        && (!matches!(driver.name.as_str(), "" | "local") || !driver.options.is_empty())
    {
        return Err(Error::Unsupported(format!(
            "VolumeOptions.DriverConfig {:?}: only the driver \"local\" without options is available",
            driver.name
        )));
    }
    if mount.source.starts_with('/') {
        return Err(wrong("the name of a volume must not be a path".to_owned()));
    }
    Ok(volume(&mount.source, mount.source.is_empty(), !options.no_copy))
}

/// What the volume of a mount is labelled with, if it is made for it.
pub(super) fn volume_labels(host: &HostConfig, target: &str) -> Labels {
    let mount = host.mounts.iter().find(|mount| plain_target(&mount.target).is_ok_and(|it| it == target));
    mount
        .and_then(|mount| mount.volume_options.as_ref())
        .map(|options| options.labels.clone())
        .unwrap_or_default()
}

fn tmpfs_source(mount: &Mount, wrong: &dyn Fn(String) -> Error) -> Result<SourceRow> {
    if !mount.source.is_empty() {
        return Err(wrong("field Source must not be specified".to_owned()));
    }
    let options = mount.tmpfs_options.clone().unwrap_or_default();
    let words = options.options.iter().map(|option| option.join("=")).collect::<Vec<_>>().join(",");
    let mut source = tmpfs_options(&words).map_err(|error| wrong(error.to_string()))?.0;
    if let SourceRow::Tmpfs { size, mode, .. } = &mut source {
        *size = u64::try_from(options.size_bytes).ok().filter(|size| *size > 0).or(*size);
        *mode = Some(options.mode).filter(|mode| *mode != 0).or(*mode);
    }
    Ok(source)
}

fn tmpfs(target: &str, options: &str) -> Result<Wanted> {
    let (source, readonly) = tmpfs_options(options)?;
    Ok(MountRow { target: plain_target(target)?, source, readonly, mode: options.to_owned() })
}

/// The options of mount(8) that a tmpfs knows; nosuid, nodev and noexec are on unless undone.
fn tmpfs_options(text: &str) -> Result<(SourceRow, bool)> {
    let wrong = |word: &str| Error::InvalidArgument(format!("invalid tmpfs option {word:?}"));
    let (mut size, mut mode, mut uid, mut gid) = (None, None, None, None);
    let (mut nosuid, mut nodev, mut noexec, mut readonly) = (true, true, true, false);
    for word in text.split(',').filter(|word| !word.is_empty()) {
        match word.split_once('=') {
            Some(("size", value)) => size = Some(insula_base::parse_bytes(value).map_err(|_| wrong(word))?),
            Some(("mode", value)) => mode = Some(u32::from_str_radix(value, 8).map_err(|_| wrong(word))?),
            Some(("uid", value)) => uid = Some(value.parse().map_err(|_| wrong(word))?),
            Some(("gid", value)) => gid = Some(value.parse().map_err(|_| wrong(word))?),
            Some(_) => return Err(wrong(word)),
            None => match word {
                "ro" => readonly = true,
                "rw" => readonly = false,
                "suid" => nosuid = false,
                "nosuid" => nosuid = true,
                "dev" => nodev = false,
                "nodev" => nodev = true,
                "exec" => noexec = false,
                "noexec" => noexec = true,
                _ => return Err(wrong(word)),
            },
        }
    }
    Ok((SourceRow::Tmpfs { size, mode, nosuid, nodev, noexec, uid, gid }, readonly))
}

/// Makes the source of `-v` that is not there, as Docker does: an empty folder.
pub(super) fn make_source(path: &Path) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    std::fs::create_dir_all(path).map_err(|e| Error::io("mkdir", path, e))
}

/// Makes again the sources of `-v` that were removed since, as Docker does at each start; those of `--mount` have
/// to be there.
pub(super) fn make_sources_again(host: &HostConfig, mounts: &[MountRow]) -> Result<()> {
    for bind in &host.binds {
        let target = bind_of(bind)?.target;
        for mount in mounts.iter().filter(|mount| mount.target == target) {
            if let SourceRow::Bind { path, .. } = &mount.source {
                make_source(path)?;
            }
        }
    }
    Ok(())
}

/// Whether the host passes mounts below `path` on, as a bind's propagation asks: mount_namespaces(7).
pub(super) fn check_propagation(path: &Path, propagation: &str) -> Result<()> {
    if !matches!(propagation.trim_start_matches('r'), "shared" | "slave") {
        return Ok(());
    }
    let table = Path::new("/proc/self/mountinfo");
    let mounts = std::fs::read_to_string(table).map_err(|e| Error::io("read", table, e))?;
    let path = path.canonicalize().map_err(|e| Error::io("resolve", path, e))?;
    passes_on(&mounts, &path, propagation)
}

fn passes_on(mounts: &str, path: &Path, propagation: &str) -> Result<()> {
    let fields = |line: &str| -> Option<(PathBuf, String)> {
        let (front, _) = line.split_once(" - ")?;
        let mut fields = front.split(' ');
        let target = fields.nth(4)?.replace("\\040", " ");
        Some((target.into(), fields.skip(1).collect::<Vec<_>>().join(" ")))
    };
    // The last one of equal length lies on top.
    let covering = mounts.lines().filter_map(fields).filter(|(target, _)| path.starts_with(target));
    let Some((target, tags)) = covering.max_by_key(|(target, _)| target.components().count()) else {
        return Ok(());
    };
    let (wanted, suits) = match propagation.trim_start_matches('r') {
        "shared" => ("a shared", tags.contains("shared:")),
        _ => ("a shared or slave", tags.contains("shared:") || tags.contains("master:")),
    };
    if suits {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!(
        "path {} is mounted on {} but it is not {wanted} mount: 'mount --make-rshared {}' makes it one, or leave \
         {propagation} out",
        path.display(),
        target.display(),
        target.display()
    )))
}

/// An absolute path without `.` and `..`, no `/` at its end.
pub(crate) fn plain_target(text: &str) -> Result<String> {
    let path = Path::new(text);
    if !path.is_absolute() {
        return Err(Error::InvalidArgument(format!(
            "invalid mount path: '{text}' mount path must be absolute"
        )));
    }
    let mut plain = String::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => {
                plain.push('/');
                plain.push_str(&name.to_string_lossy());
            }
            Component::ParentDir => {
                let end = plain.rfind('/').unwrap_or(0);
                plain.truncate(end);
            }
            _ => {}
        }
    }
    if plain.is_empty() {
        return Err(Error::InvalidArgument("invalid specification: destination can't be '/'".to_owned()));
    }
    Ok(plain)
}

/// A source is left as it is written, but for what it may not hold.
fn plain_host(text: &str) -> Result<PathBuf> {
    let path = Path::new(text);
    if !path.is_absolute() || text.contains('\0') {
        return Err(Error::InvalidArgument(format!("{text:?} is not an absolute path")));
    }
    Ok(path.components().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use insula_models::{BindOptions as Options, Empty};

    fn none(_: &str) -> Result<Vec<MountRow>> {
        Err(Error::NotFound("none".into()))
    }

    fn binds(binds: &[&str]) -> Result<Vec<Wanted>> {
        let host =
            HostConfig { binds: binds.iter().map(|b| (*b).to_owned()).collect(), ..HostConfig::default() };
        collect(&ContainerConfig::default(), &host, &none)
    }

    #[test]
    fn binds_and_volumes_are_told_apart() {
        let mounts = binds(&["/src:/dst:ro,rslave", "data:/data", "/anon"]).unwrap();
        let by = |target: &str| mounts.iter().find(|mount| mount.target == target).unwrap();
        assert!(by("/dst").readonly);
        assert_eq!(
            by("/dst").source,
            SourceRow::Bind { path: "/src".into(), recursive: true, propagation: "rslave".into() }
        );
        assert_eq!(by("/data").source, volume("data", false, true));
        assert_eq!(by("/anon").source, volume("", true, true));
    }

    #[test]
    fn malformed_binds_name_themselves() {
        for bad in [
            "a:b",
            "/a:/",
            "/a:/b:rw:x",
            "/a:/b:what",
            "/a:/b:ro,rw",
            "/a:/b:z,Z",
            ":/b",
            "data:/d:rslave",
            "relative",
            "",
        ] {
            let error = binds(&[bad]).unwrap_err().to_string();
            assert!(error.contains(bad), "{error}");
        }
        let error = binds(&["/a:/x", "/b:/x/"]).unwrap_err();
        assert_eq!(error.to_string(), "Duplicate mount point: /x");
    }

    #[test]
    fn propagation_needs_a_mount_that_passes_on() {
        let mounts = "1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:5 / /a\\040b rw shared:7 - tmpfs x rw\n\
                      3 1 0:6 / /slave rw master:7 - tmpfs y rw\n";
        let check = |path: &str, propagation| passes_on(mounts, Path::new(path), propagation);
        assert!(check("/a b/c", "rshared").is_ok() && check("/slave", "rslave").is_ok());
        let error = check("/a", "shared").unwrap_err().to_string();
        assert!(error.contains("path /a is mounted on / but it is not a shared mount"), "{error}");
        assert!(check("/slave/x", "rshared").is_err() && check("/srv", "slave").is_err());
    }

    #[test]
    fn parents_come_first_and_images_last() {
        let config = ContainerConfig {
            volumes: [("/data".to_owned(), Empty {}), ("/srv/".to_owned(), Empty {})].into(),
            ..ContainerConfig::default()
        };
        let host = HostConfig {
            binds: vec!["/s:/srv/a/b".into(), "/t:/data".into()],
            tmpfs: Labels::from([("/srv/a".to_owned(), "size=1m,exec".to_owned())]),
            ..HostConfig::default()
        };
        let mounts = collect(&config, &host, &none).unwrap();
        let targets: Vec<_> = mounts.iter().map(|mount| mount.target.as_str()).collect();
        assert_eq!(targets, ["/data", "/srv", "/srv/a", "/srv/a/b"]);
        let SourceRow::Tmpfs { size, noexec, nosuid, .. } = mounts[2].source else { panic!() };
        assert_eq!((size, noexec, nosuid), (Some(1 << 20), false, true));
    }

    #[test]
    fn mounts_are_checked() {
        let mount = |kind: &str, source: &str| Mount {
            r#type: kind.into(),
            source: source.into(),
            target: "/x".into(),
            ..Mount::default()
        };
        let error = mount_of(&mount("bind", "/no/such/path")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "invalid mount config for type \"bind\": bind source path does not exist: /no/such/path"
        );
        assert!(mount_of(&mount("bind", "/")).is_ok());
        assert!(mount_of(&mount("tmpfs", "x")).is_err());
        assert!(mount_of(&mount("volume", "/x")).is_err());
        assert!(matches!(mount_of(&mount("npipe", "x")), Err(Error::Unsupported(_))));
        let wrong = Mount { bind_options: Some(Options::default()), ..mount("volume", "v") };
        assert!(mount_of(&wrong).unwrap_err().to_string().contains("BindOptions"));
    }

    #[test]
    fn sources_are_made_again_where_they_were_made_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let mount =
            Mount { r#type: "bind".into(), source: path("mount"), target: "/m".into(), ..Mount::default() };
        std::fs::create_dir(&mount.source).unwrap();
        let host = HostConfig {
            binds: vec![format!("{}:/v", path("bind"))],
            mounts: vec![mount],
            ..HostConfig::default()
        };
        let mounts = collect(&ContainerConfig::default(), &host, &none).unwrap();
        std::fs::remove_dir(path("mount")).unwrap();
        make_sources_again(&host, &mounts).unwrap();
        assert!(folder.path().join("bind").is_dir());
        assert!(!folder.path().join("mount").exists());
    }

    #[test]
    fn volumes_of_others_are_theirs_to_fill() {
        let others = |_: &str| {
            Ok(vec![
                MountRow {
                    target: "/d".into(),
                    source: volume("v", true, true),
                    readonly: false,
                    mode: "".into(),
                },
                tmpfs("/t", "").unwrap(),
            ])
        };
        let host = HostConfig { volumes_from: vec!["other:ro".into()], ..HostConfig::default() };
        let mounts = collect(&ContainerConfig::default(), &host, &others).unwrap();
        assert_eq!(mounts.len(), 1);
        assert!(mounts[0].readonly);
        assert_eq!(mounts[0].source, volume("v", true, false));
        let host = HostConfig { volumes_from: vec!["other:what".into()], ..HostConfig::default() };
        assert!(collect(&ContainerConfig::default(), &host, &others).is_err());
    }
}
