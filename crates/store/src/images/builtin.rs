//! `host` and `host:full`: the host's own root file system as an image. Nothing is stored, and
//! nothing of the host is written: the container's writable layer lies on top.
//!
//! `host` hides the homes, the engine's own folders and the places where hosts keep secrets.
//! User namespaces keep a container's root from reading what is root's alone only where layers
//! are not idmapped; they are, so what must not be read must be hidden. `host:full` hides the
//! engine's root alone, which would otherwise contain itself.
//!
//! `/boot` stays: kernels are public and tools look for their configuration there.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use insula_base::{ChainId, DiffId, Digest};
use insula_spec::image::{History, ImageConfig, RootFs, RunConfig};
use insula_spec::reference::Reference;

use super::{Image, ImageKind};
use crate::{Layer, content};

/// The name of both; the tag tells them apart.
const NAME: &str = "docker.io/library/host";
const FULL: &str = "full";
const TAGS: [&str; 2] = ["latest", FULL];

/// Homes, then secrets: password hashes, keys, credentials, other engines' state, logs, mail,
/// jobs that carry passwords on their command lines.
const HIDDEN: &[&str] = &[
    "/home",
    "/root",
    "/run",
    "/etc/shadow",
    "/etc/shadow-",
    "/etc/gshadow",
    "/etc/gshadow-",
    "/etc/sudoers",
    "/etc/sudoers.d",
    "/etc/ssl/private",
    "/etc/letsencrypt",
    "/etc/pki/tls/private",
    "/etc/kubernetes",
    "/etc/rancher",
    "/etc/docker",
    "/etc/wireguard",
    "/etc/ipsec.secrets",
    "/etc/ipsec.d",
    "/etc/openvpn",
    "/etc/ppp",
    "/etc/NetworkManager/system-connections",
    "/etc/netplan",
    "/etc/krb5.keytab",
    "/etc/crypttab",
    "/etc/luks-keys",
    "/etc/credstore",
    "/etc/credstore.encrypted",
    "/etc/machine-id",
    "/var/lib/docker",
    "/var/lib/containerd",
    "/var/lib/containers",
    "/var/lib/kubelet",
    "/var/lib/rancher",
    "/var/lib/etcd",
    "/var/lib/lxc",
    "/var/lib/lxd",
    "/var/lib/incus",
    "/var/lib/machines",
    "/var/lib/libvirt",
    "/var/lib/cloud",
    "/var/lib/mysql",
    "/var/lib/postgresql",
    "/var/lib/redis",
    "/var/lib/private",
    "/var/lib/NetworkManager",
    "/var/lib/systemd/credential.secret",
    "/var/lib/systemd/random-seed",
    "/var/lib/systemd/coredump",
    "/var/log",
    "/var/mail",
    "/var/spool/cron",
    "/var/spool/at",
    "/var/spool/mail",
    "/var/spool/postfix",
    "/var/spool/exim4",
    "/var/backups",
    "/var/crash",
    "/var/tmp",
    "/tmp",
    "/lost+found",
    // The memory of other processes.
    "/swapfile",
    "/swap.img",
    "/swap",
    "/var/swap",
    // Keys of networks and devices, passwords of services.
    "/etc/wpa_supplicant",
    "/etc/swanctl",
    "/etc/strongswan",
    "/etc/cifs-credentials",
    "/etc/postfix/sasl_passwd",
    "/etc/exim4/passwd.client",
    "/etc/msmtprc",
    "/etc/vault.d",
    "/etc/gitlab",
    "/etc/gitlab-runner",
    "/etc/grafana",
    "/etc/ceph",
    "/etc/tor",
    "/etc/salt/pki",
    "/etc/puppetlabs",
    "/var/lib/iwd",
    "/var/lib/bluetooth",
    "/var/lib/tailscale",
    "/var/lib/zerotier-one",
    "/var/lib/tor",
    "/var/lib/samba",
    "/var/lib/sss",
    "/var/lib/ldap",
    "/var/lib/krb5kdc",
    "/var/lib/vault",
    "/var/lib/consul",
    "/var/lib/nomad",
    "/var/lib/jenkins",
    "/var/lib/gitlab-runner",
    "/var/lib/grafana",
    "/var/lib/mongodb",
    "/var/lib/rabbitmq",
    "/var/lib/influxdb",
    "/var/lib/ceph",
    "/var/lib/rook",
    "/var/lib/insula",
    "/var/lib/k0s",
    "/var/lib/microk8s",
    "/var/opt",
    "/var/cache/debconf",
];

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The built-in image of this name or complete id, if there is one.
pub(super) fn resolve(text: &str, root: &Path) -> Option<Image> {
    let tag = match Reference::parse(text) {
        Ok(reference) if is_builtin(&reference) => reference.tag()?.to_owned(),
        _ => tag_of(text)?.to_owned(),
    };
    build(&tag, root)
}

/// Whether an id is a built-in image's.
pub(super) fn is_builtin_id(id: &Digest) -> bool {
    tag_of(id.as_str()).is_some()
}

/// Whether a name belongs to a built-in image.
pub(super) fn is_builtin(reference: &Reference) -> bool {
    reference.name() == NAME
        && reference.digest().is_none()
        && reference.tag().is_some_and(|tag| TAGS.contains(&tag))
}

/// Both built-in images.
pub(super) fn all(root: &Path) -> Vec<Image> {
    TAGS.iter().filter_map(|tag| build(tag, root)).collect()
}

/// By id, complete or at least as long as it is shown.
fn tag_of(id: &str) -> Option<&'static str> {
    const SHOWN: usize = 12;
    static IDS: OnceLock<Vec<(&str, Digest)>> = OnceLock::new();
    let ids = IDS.get_or_init(|| {
        let id = |tag| Some((tag, content::digest(&serde_json::to_vec(&config(tag)).ok()?)));
        TAGS.into_iter().filter_map(id).collect()
    });
    let hex = id.strip_prefix("sha256:").unwrap_or(id);
    let found = ids.iter().find(|(_, known)| hex.len() >= SHOWN && known.hex().starts_with(hex));
    found.map(|(tag, _)| *tag)
}

/// OpenSSH's private host keys; the rest of its folder is harmless and clients need it.
fn host_keys() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/etc/ssh") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.path().to_str().map(str::to_owned))
        .filter(|path| path.contains("/ssh_host_") && path.ends_with("_key"))
        .collect()
}

/// What is not there need not be hidden, and symbolic links (`/var/mail`) are hidden at their target.
fn existing(paths: impl Iterator<Item = String>) -> Vec<String> {
    let mut real: Vec<String> =
        paths.filter_map(|path| fs::canonicalize(path).ok()?.to_str().map(str::to_owned)).collect();
    real.sort();
    real.dedup();
    real
}

fn build(tag: &str, root: &Path) -> Option<Image> {
    let own = root.to_str().map(str::to_owned);
    let hidden = match tag {
        FULL => existing(own.into_iter()),
        _ => existing(HIDDEN.iter().map(|path| (*path).to_owned()).chain(host_keys()).chain(own)),
    };
    let config = config(tag);
    let identity = identity(tag);
    Some(Image {
        id: content::digest(&serde_json::to_vec(&config).ok()?),
        kind: ImageKind::Host { hidden },
        references: Reference::parse(&format!("{NAME}:{tag}")).into_iter().collect(),
        config,
        layers: vec![Layer {
            diff_id: DiffId(identity.clone()),
            chain_id: ChainId(identity),
            path: "/".into(),
            size: 0,
        }],
        size: 0,
        manifest: None,
    })
}

fn config(tag: &str) -> ImageConfig {
    let shell =
        ["/bin/bash", "/bin/sh"].into_iter().find(|path| Path::new(path).exists()).unwrap_or("/bin/sh");
    ImageConfig {
        architecture: architecture().to_owned(),
        os: "linux".to_owned(),
        config: RunConfig { env: vec![PATH.to_owned()], cmd: vec![shell.to_owned()], ..RunConfig::default() },
        history: vec![History {
            comment: "the host's own root file system".to_owned(),
            ..History::default()
        }],
        rootfs: RootFs { diff_ids: vec![DiffId(identity(tag))], ..RootFs::default() },
        ..ImageConfig::default()
    }
}

/// A digest for documents that want one; no layer has it, since no archive has these bytes.
fn identity(tag: &str) -> Digest {
    content::digest(format!("insula built-in image host:{tag}").as_bytes())
}

/// This machine, in Go's words, which images use.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_ids_lead_to_the_same_image() {
        let root = Path::new("/nowhere");
        let host = resolve("host", root).unwrap();
        assert_eq!(host.layer_paths(), [Path::new("/")]);
        assert_eq!(host.references[0].familiar(), "host:latest");
        assert_eq!(resolve("host:latest", root).unwrap(), host);
        assert_eq!(resolve(host.id.as_str(), root).unwrap(), host);
        assert_eq!(resolve(host.id.hex(), root).unwrap(), host);
        assert_eq!(resolve(host.id.short(), root).unwrap(), host);
        assert!(is_builtin_id(&host.id));
        let full = resolve("host:full", root).unwrap();
        assert_ne!(full.id, host.id);
        assert_eq!(all(root), [host, full]);
        for other in ["host:other", "user/host", "localhost/host", "hos", ""] {
            assert!(resolve(other, root).is_none(), "{other}");
        }
    }

    #[test]
    fn secrets_and_the_own_root_are_hidden() {
        let own = tempfile::tempdir().unwrap();
        let path = own.path().canonicalize().unwrap().to_str().unwrap().to_owned();
        let host = resolve("host", own.path()).unwrap();
        for place in ["/root", "/etc/shadow", &path] {
            let there = Path::new(place).exists();
            assert_eq!(host.hidden().iter().any(|hidden| hidden == place), there, "{place}");
        }
        assert_eq!(resolve("host:full", own.path()).unwrap().hidden(), [path]);
    }
}
