//! Images, written on the spot: nothing prebuilt is kept in the repository.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

use crate::Outcome;
use crate::product::fixtures;

/// A layer being written.
#[derive(Default)]
pub struct Layer(Vec<u8>);

impl std::fmt::Debug for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Layer({} bytes)", self.0.len())
    }
}

impl Layer {
    /// Adds an entry as it is told, sane or not.
    #[must_use]
    pub fn entry(
        mut self,
        kind: EntryType,
        name: &str,
        link: &str,
        mode: u32,
        owner: u32,
        content: &[u8],
    ) -> Self {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner.into());
        header.set_gid(owner.into());
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        // Directly into the fields: the library refuses the names that some tests are about.
        header.as_ustar_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_ustar_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    #[must_use]
    pub fn folder(self, name: &str, mode: u32) -> Self {
        self.entry(EntryType::Directory, name, "", mode, 0, b"")
    }

    #[must_use]
    pub fn file(self, name: &str, mode: u32, content: &[u8]) -> Self {
        self.entry(EntryType::Regular, name, "", mode, 0, content)
    }

    #[must_use]
    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, name, target, 0o777, 0, b"")
    }

    /// The archive.
    #[must_use]
    pub fn bytes(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

/// How layers are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    Plain,
    Gzip,
    Zstd,
}

impl Compression {
    /// Of a media type.
    #[must_use]
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Gzip => "+gzip",
            Self::Zstd => "+zstd",
        }
    }

    /// `bytes`, compressed.
    #[must_use]
    pub fn pack(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::Plain => bytes.to_vec(),
            Self::Gzip => {
                let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                packer.write_all(bytes).unwrap();
                packer.finish().unwrap()
            }
            Self::Zstd => zstd::encode_all(bytes, 1).unwrap(),
        }
    }
}

/// `sha256:` and digits.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    insula_base::Digest::from_sha256(&Sha256::digest(bytes).into()).as_str().to_owned()
}

/// An image to archive.
#[derive(Debug, Clone)]
pub struct Image {
    /// With a tag.
    pub name: String,
    /// The `config` of the configuration: `Cmd`, `Env` and so on.
    pub config: Value,
    /// Lowest first, not compressed.
    pub layers: Vec<Vec<u8>>,
}

impl Image {
    /// Docker's own fields beside `config`.
    #[must_use]
    pub fn document(&self) -> Vec<u8> {
        let diff_ids: Vec<String> = self.layers.iter().map(|layer| digest(layer)).collect();
        let document = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "created": "2026-01-02T03:04:05Z",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        serde_json::to_vec(&document).unwrap()
    }

    /// As `docker save` writes it.
    #[must_use]
    pub fn docker_archive(&self) -> Vec<u8> {
        let names: Vec<String> = (0..self.layers.len()).map(|n| format!("layer{n}/layer.tar")).collect();
        let manifest = json!([{"Config": "config.json", "RepoTags": [self.name], "Layers": names}]);
        let mut archive = Layer::default()
            .file("manifest.json", 0o644, manifest.to_string().as_bytes())
            .file("config.json", 0o644, &self.document());
        for (name, layer) in names.iter().zip(&self.layers) {
            archive = archive.file(name, 0o644, layer);
        }
        archive.bytes()
    }

    /// As an OCI image layout in a tar.
    #[must_use]
    pub fn oci_layout(&self, compression: Compression) -> Vec<u8> {
        let mut blobs = Vec::new();
        let mut add = |media: &str, bytes: Vec<u8>| {
            let descriptor = json!({"mediaType": media, "digest": digest(&bytes), "size": bytes.len()});
            blobs.push(bytes);
            descriptor
        };
        let layer = format!("application/vnd.oci.image.layer.v1.tar{}", compression.suffix());
        let layers: Vec<Value> =
            self.layers.iter().map(|bytes| add(&layer, compression.pack(bytes))).collect();
        let config = add("application/vnd.oci.image.config.v1+json", self.document());
        let media = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({"schemaVersion": 2, "mediaType": media, "config": config, "layers": layers});
        let mut descriptor = add(media, manifest.to_string().into_bytes());
        descriptor["annotations"] = json!({
            "io.containerd.image.name": self.name,
            "org.opencontainers.image.ref.name": self.name.rsplit(':').next(),
        });
        let index = json!({"schemaVersion": 2, "manifests": [descriptor]});
        let mut archive = Layer::default()
            .file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)
            .file("index.json", 0o644, index.to_string().as_bytes());
        for blob in &blobs {
            let name = digest(blob).replace("sha256:", "blobs/sha256/");
            archive = archive.file(&name, 0o644, blob);
        }
        archive.bytes()
    }
}

const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n\
    alice:x:1000:1000:Alice:/home/alice:/bin/sh\n";
const GROUP: &[u8] = b"root:x:0:\nnogroup:x:65534:\nalice:x:1000:\nstaff:x:50:alice\nvideo:x:44:\n";

/// Debian's static busybox with a few users, a folder for volumes and a file that cannot be run.
#[must_use]
pub fn busybox() -> Image {
    let program = ["/bin/busybox", "/usr/bin/busybox"].iter().find_map(|path| fs::read(path).ok());
    let program = program.unwrap_or_else(|| panic!("busybox is missing: install busybox-static"));
    let applets = Outcome::of(Command::new("busybox").arg("--list"), b"");
    let mut layer = Layer::default();
    for folder in ["bin/", "dev/", "etc/", "home/", "proc/", "root/", "sys/", "usr/", "var/"] {
        layer = layer.folder(folder, 0o755);
    }
    layer = layer
        .folder("tmp/", 0o1777)
        .entry(EntryType::Directory, "home/alice/", "", 0o755, 1000, b"")
        .entry(EntryType::Directory, "data/", "", 0o750, 1000, b"")
        .entry(EntryType::Regular, "data/seed", "", 0o640, 1000, b"from the image\n")
        .file("bin/busybox", 0o755, &program)
        .file("etc/passwd", 0o644, PASSWD)
        .file("etc/group", 0o644, GROUP)
        .file("etc/plain", 0o644, b"not a program\n");
    for applet in applets.ok().lines().filter(|applet| *applet != "busybox") {
        layer = layer.symlink(&format!("bin/{applet}"), "busybox");
    }
    Image {
        name: "busybox:latest".into(),
        config: json!({"Cmd": ["sh"], "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"]}),
        layers: vec![layer.bytes()],
    }
}

/// A Debian root file system with `packages`, made once and kept. The package mirror is all it
/// needs of the network.
#[must_use]
pub fn debian(packages: &[&str]) -> PathBuf {
    let name = std::iter::once("debian").chain(packages.iter().copied()).collect::<Vec<_>>().join("-");
    let path = fixtures().join(format!("{name}.tar"));
    let lock = fs::File::create(fixtures().join(format!("{name}.lock"))).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    if !path.exists() {
        let partial = fixtures().join(format!("{name}.partial.tar"));
        let mut command = Command::new("mmdebstrap");
        command.arg("--variant=minbase");
        if !packages.is_empty() {
            command.arg(format!("--include={}", packages.join(",")));
        }
        Outcome::of(command.arg("bookworm").arg(&partial), b"").exits(0);
        fs::rename(&partial, &path).unwrap();
    }
    path
}
