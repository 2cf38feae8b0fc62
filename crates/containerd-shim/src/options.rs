//! What containerd's configuration, or a client, asks of the runtime. What is not there is refused by name.

use std::path::PathBuf;

use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim::oci;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::stdio::Owner;

/// Options of runc's own shim, whose name they keep.
const RUNC: &str = "containerd.runc.v1.Options";
/// Options of a checkpoint, by the same name.
const CHECKPOINT: &str = "containerd.runc.v1.CheckpointOptions";
/// What containerd makes of the configuration of a runtime that it does not know.
const GENERIC: [&str; 2] = ["runtimeoptions.v1.Options", "cri.runtimeoptions.v1.Options"];

/// What was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) owner: Owner,
    pub(crate) no_pivot: bool,
    pub(crate) no_new_keyring: bool,
    /// Control groups are systemd's, whatever the bundle looks like.
    pub(crate) systemd: bool,
    pub(crate) kept: Kept,
}

/// What has to be known when this process is gone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// Folder of the runtime's state; in the bundle without it.
    pub(crate) root: Option<PathBuf>,
}

impl Options {
    pub(crate) fn of(any: Option<&Any>) -> Result<Self> {
        let Some(any) = any.filter(|any| !any.type_url.is_empty()) else { return Ok(Self::default()) };
        let name = any.type_url.rsplit('/').next().unwrap_or_default();
        if name == RUNC {
            let options = oci::Options::parse_from_bytes(&any.value)
                .map_err(|source| Error::Message { on: "read the options", source })?;
            return Self::runc(&options);
        }
        if GENERIC.contains(&name) && any.value.is_empty() {
            return Ok(Self::default());
        }
        Err(Error::Unsupported(format!("options of the type {:?} with a value", any.type_url)))
    }

    fn runc(options: &oci::Options) -> Result<Self> {
        let refused = [
            ("ShimCgroup", !options.shim_cgroup.is_empty()),
            ("BinaryName", !options.binary_name.is_empty()),
            ("TaskApiAddress", !options.task_api_address.is_empty()),
        ];
        if let Some((name, _)) = refused.iter().find(|(_, asked)| *asked) {
            return Err(Error::Unsupported(format!("the option {name}")));
        }
        let root = Some(&options.root).filter(|root| !root.is_empty()).map(PathBuf::from);
        Ok(Self {
            owner: Owner { uid: options.io_uid, gid: options.io_gid },
            no_pivot: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            systemd: options.systemd_cgroup,
            kept: Kept { root },
        })
    }
}

/// What is to be written of a container, and where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    pub(crate) images: PathBuf,
    /// Folder of CRIU's log.
    pub(crate) work: Option<PathBuf>,
    /// Of `insula-runtime checkpoint`.
    pub(crate) flags: Vec<String>,
}

impl Checkpoint {
    /// `path` is containerd's; a client may name another one.
    pub(crate) fn of(path: &str, any: Option<&Any>) -> Result<Self> {
        let options = match any.filter(|any| !any.type_url.is_empty()) {
            None => oci::CheckpointOptions::default(),
            Some(any) if any.type_url.rsplit('/').next() == Some(CHECKPOINT) => {
                oci::CheckpointOptions::parse_from_bytes(&any.value)
                    .map_err(|source| Error::Message { on: "read the options", source })?
            }
            Some(any) => {
                return Err(Error::Unsupported(format!("options of the type {:?}", any.type_url)));
            }
        };
        if !matches!(options.cgroups_mode.as_str(), "" | "soft") {
            return Err(Error::Unsupported(format!("the option CgroupsMode {:?}", options.cgroups_mode)));
        }
        let images = if path.is_empty() { options.image_path.as_str() } else { path };
        if images.is_empty() {
            return Err(Error::Invalid("a checkpoint needs a folder".to_owned()));
        }
        let mut flags: Vec<String> = [
            (!options.exit, "--leave-running"),
            (options.open_tcp, "--tcp-established"),
            (options.external_unix_sockets, "--ext-unix-sk"),
            (options.terminal, "--shell-job"),
            (options.file_locks, "--file-locks"),
        ]
        .into_iter()
        .filter(|(on, _)| *on)
        .map(|(_, flag)| flag.to_owned())
        .collect();
        flags
            .extend(options.empty_namespaces.iter().flat_map(|name| ["--empty-ns".to_owned(), name.clone()]));
        let work = Some(&options.work_path).filter(|path| !path.is_empty()).map(PathBuf::from);
        Ok(Self { images: images.into(), work, flags })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(options: &oci::Options) -> Any {
        let value = options.write_to_bytes().unwrap();
        Any { type_url: RUNC.to_owned(), value, ..Any::default() }
    }

    #[test]
    fn options_are_taken_or_refused_by_name() {
        assert_eq!(Options::of(None).unwrap(), Options::default());
        let asked = oci::Options { root: "/run/x".to_owned(), io_uid: 5, ..oci::Options::default() };
        let options = Options::of(Some(&any(&asked))).unwrap();
        assert_eq!((options.kept.root, options.owner.uid), (Some(PathBuf::from("/run/x")), 5));
        let asked = oci::Options { systemd_cgroup: true, ..oci::Options::default() };
        assert!(Options::of(Some(&any(&asked))).unwrap().systemd);
        let asked = oci::Options { shim_cgroup: "/x".to_owned(), ..oci::Options::default() };
        let refused = Options::of(Some(&any(&asked))).unwrap_err();
        assert_eq!(refused.to_string(), "the option ShimCgroup is not supported");
    }

    #[test]
    fn options_of_a_checkpoint_become_flags() {
        let found = Checkpoint::of("/images", None).unwrap();
        assert_eq!(
            (found.images, found.flags),
            (PathBuf::from("/images"), vec!["--leave-running".to_owned()])
        );
        assert!(Checkpoint::of("", None).is_err());
        let mut asked = oci::CheckpointOptions { exit: true, open_tcp: true, ..Default::default() };
        asked.empty_namespaces = vec!["network".to_owned()];
        asked.image_path = "/other".to_owned();
        let any = |options: &oci::CheckpointOptions| Any {
            type_url: CHECKPOINT.to_owned(),
            value: options.write_to_bytes().unwrap(),
            ..Any::default()
        };
        let found = Checkpoint::of("", Some(&any(&asked))).unwrap();
        assert_eq!(found.images, PathBuf::from("/other"));
        assert_eq!(found.flags, ["--tcp-established", "--empty-ns", "network"]);
        asked.cgroups_mode = "strict".to_owned();
        assert!(matches!(Checkpoint::of("", Some(&any(&asked))), Err(Error::Unsupported(_))));
    }

    #[test]
    fn unknown_options_are_refused_unless_they_say_nothing() {
        let generic = |value: &[u8]| Any {
            type_url: format!("type.googleapis.com/{}", GENERIC[0]),
            value: value.to_vec(),
            ..Any::default()
        };
        assert!(Options::of(Some(&generic(b""))).is_ok());
        assert!(matches!(Options::of(Some(&generic(b"\x12\x01x"))), Err(Error::Unsupported(_))));
        let broken = Any { type_url: RUNC.to_owned(), value: vec![0xff], ..Any::default() };
        assert!(matches!(Options::of(Some(&broken)), Err(Error::Message { .. })));
    }
}
