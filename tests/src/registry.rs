//! A registry for one test: Debian's docker-registry, on a port of loopback.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::images::{Compression, Image, digest};
use crate::{Response, eventually};

const PROGRAM: &str = "docker-registry";
/// `ann` with the password `secret`.
const HTPASSWD: &str = "ann:$2b$04$TyyEsP.hxTISEvvJBXjIVuiY1sLT9vEhsP/Vx8HWgAqir47K7Lvbi\n";

/// What is asked of it beyond the plain one.
#[derive(Debug, Clone, Default)]
pub struct Wants {
    /// Basic authentication of `ann` with `secret`.
    pub password: bool,
    /// A certificate and its key: it speaks TLS.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Authorities of its clients' certificates.
    pub clients: Option<PathBuf>,
    /// A token server's address, and the certificate that its tokens are signed with.
    pub tokens: Option<(String, PathBuf)>,
}

/// Ends with the test.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    address: SocketAddr,
    folder: TempDir,
}

impl Registry {
    /// Whether there can be one here.
    #[must_use]
    pub fn is_installed() -> bool {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|folder| folder.join(PROGRAM).is_file())
    }

    /// Without TLS or passwords.
    #[must_use]
    pub fn start() -> Self {
        Self::with(&Wants::default())
    }

    #[must_use]
    pub fn with(wants: &Wants) -> Self {
        let folder = tempfile::Builder::new().prefix("insula-registry-").tempdir().unwrap();
        // Somebody may take the port before it does.
        let tries = std::iter::repeat_with(|| Self::try_start(wants, &folder)).take(5).flatten().next();
        let (child, address) = tries.unwrap_or_else(|| panic!("{PROGRAM} does not start: {}", log(&folder)));
        Self { child, address, folder }
    }

    fn try_start(wants: &Wants, folder: &TempDir) -> Option<(Child, SocketAddr)> {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let path = folder.path().join("config.yml");
        fs::write(&path, configuration(wants, folder.path(), address).to_string()).unwrap();
        let log = fs::File::options().create(true).append(true).open(folder.path().join("log")).unwrap();
        let mut command = Command::new(PROGRAM);
        command.arg("serve").arg(&path).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let mut child = command.spawn().unwrap();
        let up = eventually("the registry listens", || match TcpStream::connect(address) {
            Ok(_) => Some(true),
            Err(_) => child.try_wait().unwrap().map(|_| false),
        });
        up.then_some((child, address))
    }

    /// `HOST:PORT`.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A complete name in it.
    #[must_use]
    pub fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    /// The blob's file in its storage.
    #[must_use]
    pub fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        let blobs = self.folder.path().join("data/docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(hex).join("data")
    }

    /// Its requests so far, a line each.
    #[must_use]
    pub fn log(&self) -> String {
        log(&self.folder)
    }

    /// Puts an image into a repository, without any program of ours; the manifest's digest.
    pub fn put(&self, image: &Image, repository: &str, tag: &str, compression: Compression) -> String {
        let manifest = self.put_parts(image, repository, compression);
        self.put_manifest(repository, tag, &manifest)
    }

    /// Puts the layers and the configuration; the manifest that goes with them.
    pub fn put_parts(&self, image: &Image, repository: &str, compression: Compression) -> Value {
        let oci = "application/vnd.oci.image";
        let layers: Vec<Value> = image
            .layers
            .iter()
            .map(|layer| {
                let media = format!("{oci}.layer.v1.tar{}", compression.suffix());
                self.put_blob(repository, &media, &compression.pack(layer))
            })
            .collect();
        let config = self.put_blob(repository, &format!("{oci}.config.v1+json"), &image.document());
        json!({
            "schemaVersion": 2, "mediaType": format!("{oci}.manifest.v1+json"),
            "config": config, "layers": layers,
        })
    }

    /// Puts a blob; its descriptor.
    pub fn put_blob(&self, repository: &str, media_type: &str, bytes: &[u8]) -> Value {
        let begun = self.request("POST", &format!("/v2/{repository}/blobs/uploads/"), "", b"");
        assert_eq!(begun.status, 202, "{}", begun.text());
        let location = begun.header("location").unwrap();
        let path = location.split_once(&self.address.to_string()).map_or(location, |(_, path)| path);
        let path = format!("{path}&digest={}", digest(bytes));
        let done = self.request("PUT", &path, "application/octet-stream", bytes);
        assert_eq!(done.status, 201, "{}", done.text());
        json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
    }

    /// Puts a document under a tag; its digest.
    pub fn put_manifest(&self, repository: &str, tag: &str, manifest: &Value) -> String {
        let bytes = manifest.to_string();
        let media = manifest["mediaType"].as_str().unwrap();
        let path = format!("/v2/{repository}/manifests/{tag}");
        let done = self.request("PUT", &path, media, bytes.as_bytes());
        assert_eq!(done.status, 201, "{}", done.text());
        digest(bytes.as_bytes())
    }

    /// The document under a tag.
    #[must_use]
    pub fn manifest(&self, repository: &str, tag: &str) -> Response {
        let media =
            ["manifest.v1+json", "index.v1+json"].map(|kind| format!("application/vnd.oci.image.{kind}"));
        let docker = ["manifest.v2+json", "manifest.list.v2+json"]
            .map(|kind| format!("application/vnd.docker.distribution.{kind}"));
        let accept = [media.join(", "), docker.join(", ")].join(", ");
        self.ask(&format!("GET /v2/{repository}/manifests/{tag}"), &format!("Accept: {accept}\r\n"), b"")
    }

    fn request(&self, method: &str, path: &str, media_type: &str, body: &[u8]) -> Response {
        self.ask(&format!("{method} {path}"), &format!("Content-Type: {media_type}\r\n"), body)
    }

    fn ask(&self, line: &str, headers: &str, body: &[u8]) -> Response {
        let mut stream = TcpStream::connect(self.address).unwrap();
        let head = format!(
            "{line} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        Response::parse(&bytes).unwrap_or_else(|| panic!("{line}: no HTTP"))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("-- the registry's log\n{}", self.log());
        }
    }
}

fn log(folder: &TempDir) -> String {
    fs::read_to_string(folder.path().join("log")).unwrap_or_default()
}

/// JSON is YAML.
fn configuration(wants: &Wants, folder: &Path, address: SocketAddr) -> Value {
    let mut config = json!({
        "version": 0.1,
        "log": {"accesslog": {"disabled": false}, "level": "warn"},
        "storage": {"filesystem": {"rootdirectory": folder.join("data")}, "delete": {"enabled": true}},
        "http": {"addr": address.to_string()},
    });
    if wants.password {
        let path = folder.join("htpasswd");
        fs::write(&path, HTPASSWD).unwrap();
        config["auth"] = json!({"htpasswd": {"realm": "test", "path": path}});
    }
    if let Some((certificate, key)) = &wants.tls {
        config["http"]["tls"] = json!({"certificate": certificate, "key": key});
        if let Some(clients) = &wants.clients {
            config["http"]["tls"]["clientcas"] = json!([clients]);
        }
    }
    if let Some((realm, certificate)) = &wants.tokens {
        config["auth"] = json!({"token":
            {"realm": realm, "service": "test", "issuer": "insula-test", "rootcertbundle": certificate}});
    }
    config
}

/// A daemon and a registry, or the end of the test where there cannot be both.
#[macro_export]
macro_rules! registry {
    () => {
        $crate::registry!(&$crate::registry::Wants::default())
    };
    ($wants:expr) => {{
        if !$crate::is_root() {
            $crate::skip("root", "the daemon makes namespaces, cgroups and networks");
            return;
        }
        if !$crate::registry::Registry::is_installed() {
            $crate::skip("root", "docker-registry (Debian package docker-registry) is missing");
            return;
        }
        $crate::registry::Registry::with($wants)
    }};
}
