//! Images of one host, served to others as a registry.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use insula_tests::images::{Compression, Image, Layer, busybox};
use insula_tests::registry::Registry;
use insula_tests::{Daemon, Outcome, daemon, registry, text};
use serde_json::{Value, json};
use sha2::Digest as _;

const ALONE: [&str; 4] = ["run", "--rm", "--network", "none"];
/// `ann` with the password `secret`.
const HTPASSWD: &str = "ann:$2b$04$TyyEsP.hxTISEvvJBXjIVuiY1sLT9vEhsP/Vx8HWgAqir47K7Lvbi\n";

fn image(name: &str, content: &[u8]) -> Image {
    let mut image = busybox();
    image.layers.push(Layer::default().file("hello", 0o644, content).bytes());
    image.config["Cmd"] = json!(["cat", "/hello"]);
    image.name = name.into();
    image
}

/// `insula serve-images`, until it is dropped.
struct Served {
    child: Child,
    address: String,
}

impl Served {
    #[track_caller]
    fn start(daemon: &Daemon, options: &[&str]) -> Self {
        let words = [&["serve-images", "--listen", "127.0.0.1:0"], options].concat();
        let mut child = daemon.command(&words).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.strip_prefix("Serving images on ").and_then(|rest| rest.split(' ').next());
        let address = address.unwrap_or_else(|| panic!("it says {line:?}")).to_owned();
        Self { child, address }
    }

    fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    /// Status, head and body.
    fn ask(&self, line: &str, headers: &str) -> (u16, String, Vec<u8>) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let head =
            format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n{headers}\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        (head[9..12].parse().unwrap(), head.to_lowercase(), bytes[end..].to_vec())
    }

    fn json(&self, path: &str) -> Value {
        let (status, _, body) = self.ask(&format!("GET {path}"), "");
        assert_eq!(status, 200, "{path}");
        serde_json::from_slice(&body).unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn others_pull_what_is_here() {
    let (one, other) = (daemon!(bare), Daemon::bare());
    one.load(&image("app:1", b"hello\n").docker_archive()).ok();
    one.load(&image("team/app:2", b"second\n").docker_archive()).ok();
    let served = Served::start(&one, &[]);
    assert_eq!(served.json("/v2/"), json!({}));
    assert_eq!(served.json("/v2/_catalog"), json!({"repositories": ["app", "team/app"]}));
    assert_eq!(served.json("/v2/team/app/tags/list"), json!({"name": "team/app", "tags": ["2"]}));
    let (_, head, body) = served.ask("GET /v2/_catalog?n=1", "");
    assert!(head.contains("link: </v2/_catalog?last=app&n=1>"), "{head}");
    assert_eq!(serde_json::from_slice::<Value>(&body).unwrap(), json!({"repositories": ["app"]}));
    let name = served.name("app:1");
    other.insula(&["pull", &name]).shows(&["Pull complete"]);
    assert_eq!(other.insula(&[&ALONE[..], &[&name]].concat()).ok(), "hello");
    // Only what is missing travels.
    other.insula(&["pull", &served.name("team/app:2")]).shows(&["Already exists", "Pull complete"]);
    let ids = |daemon: &Daemon, name: &str| {
        daemon.insula(&["image", "inspect", "-f", "{{.Id}}", name]).ok().to_owned()
    };
    assert_eq!(ids(&one, "app:1"), ids(&other, &name));
    other.insula(&["push", &name]).fails(1, &["read only"]);
    other.insula(&["pull", &served.name("nosuch:1")]).fails(1, &["nosuch"]);
    ranges(&served);
    for outside in ["/info", "/v2/../info", "/insula/registry/", "/v1.43/containers/json"] {
        assert_eq!(served.ask(&format!("GET {outside}"), "").0, 404, "{outside}");
    }
    assert_eq!(served.ask("DELETE /v2/app/manifests/1", "").0, 405);
}

/// Parts of a layer that is made again, and of a document that is a file.
fn ranges(served: &Served) {
    let manifest = served.json("/v2/app/manifests/1");
    for blob in [&manifest["layers"][0], &manifest["config"]] {
        let path = format!("/v2/app/blobs/{}", blob["digest"].as_str().unwrap());
        let whole = served.ask(&format!("GET {path}"), "").2;
        assert_eq!(whole.len() as u64, blob["size"].as_u64().unwrap());
        let end = whole.len() - 1;
        for (asked, from, to) in [
            ("bytes=100-199", 100, 199),
            ("bytes=0-0", 0, 0),
            ("bytes=-7", end - 6, end),
            (&format!("bytes={}-", end - 9), end - 9, end),
        ] {
            let (status, head, part) = served.ask(&format!("GET {path}"), &format!("Range: {asked}\r\n"));
            assert_eq!((status, &part[..]), (206, &whole[from..=to]), "{asked}");
            assert!(head.contains(&format!("content-range: bytes {from}-{to}/{}", whole.len())), "{head}");
        }
        assert_eq!(served.ask(&format!("GET {path}"), &format!("Range: bytes={}-\r\n", whole.len())).0, 416);
        let (status, head, body) = served.ask(&format!("HEAD {path}"), "");
        assert_eq!((status, body.len()), (200, 0));
        assert!(head.contains(&format!("content-length: {}", whole.len())), "{head}");
    }
    assert_eq!(served.ask(&format!("GET /v2/app/blobs/sha256:{:064}", 1), "").0, 404);
    assert_eq!(served.ask("GET /v2/app/blobs/sha256:xyz", "").0, 400);
}

#[test]
fn a_damaged_layer_does_not_leave_as_a_whole_one() {
    let one = daemon!(bare);
    one.load(&image("app:1", b"hello\n").docker_archive()).ok();
    let layers = fs::read_dir(one.instance().root().join("layers")).unwrap();
    let hello = layers.map(|layer| layer.unwrap().path().join("hello")).find(|path| path.exists()).unwrap();
    fs::write(hello, b"jello\n").unwrap();
    let served = Served::start(&one, &[]);
    let manifest = served.json("/v2/app/manifests/1");
    let layer = &manifest["layers"][1];
    let (status, _, body) =
        served.ask(&format!("GET /v2/app/blobs/{}", layer["digest"].as_str().unwrap()), "");
    assert_eq!(status, 500);
    assert!(String::from_utf8(body).unwrap().contains("is damaged"));
}

fn certificate(folder: &Path) -> (PathBuf, PathBuf) {
    let (certificate, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
    command.args(["-days", "2", "-subj", "/CN=insula", "-addext", "subjectAltName=IP:127.0.0.1"]);
    // An authority is no server.
    command.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
    command.args(["-keyout", text(&key), "-out", text(&certificate)]);
    Outcome::of(&mut command, b"").ok();
    (certificate, key)
}

#[test]
fn others_push_with_a_password() {
    let registry = registry!();
    let (one, mut other) = (daemon!(bare), Daemon::bare());
    let (chain, key) = certificate(&one.folder());
    let users = one.folder().join("htpasswd");
    fs::write(&users, HTPASSWD).unwrap();
    let options =
        ["--writable", "--htpasswd", text(&users), "--tls-cert", text(&chain), "--tls-key", text(&key)];
    let served = Served::start(&one, &options);
    let certificates = other.folder().join("certs.d");
    fs::create_dir_all(certificates.join(&served.address)).unwrap();
    fs::copy(&chain, certificates.join(&served.address).join("ca.crt")).unwrap();
    other.stop();
    other.restart_with(&["--registry-certs", text(&certificates)]);
    // One that came compressed, and one that did not.
    registry.put(&image("app:1", b"hello\n"), "app", "1", Compression::Gzip);
    other.insula(&["pull", &registry.name("app:1")]).ok();
    other.insula(&["tag", &registry.name("app:1"), &served.name("team/app:1")]).ok();
    other.load(&image("plain:1", b"plain\n").docker_archive()).ok();
    other.insula(&["tag", "plain:1", &served.name("plain:1")]).ok();
    other.insula(&["push", &served.name("team/app:1")]).exits(1);
    let login = |password: &str| {
        let words = ["login", "-u", "ann", "--password-stdin", &served.address];
        other.insula_with(&words, password.as_bytes())
    };
    login("wrong").exits(1);
    login("secret").shows(&["Login Succeeded"]);
    let pushed = other.insula(&["push", &served.name("team/app:1")]);
    pushed.shows(&[": Pushed", "1: digest: sha256:"]);
    other.insula(&["push", &served.name("team/app:1")]).shows(&["Layer already exists"]);
    other.insula(&["push", &served.name("plain:1")]).shows(&["1: digest: sha256:"]);
    assert_eq!(one.insula(&[&ALONE[..], &["team/app:1"]].concat()).ok(), "hello");
    assert_eq!(one.insula(&[&ALONE[..], &["plain:1"]].concat()).ok(), "plain");
    // What was pushed compressed is served as it came.
    let digest = |daemon: &Daemon, name: &str| -> Value {
        serde_json::from_str(daemon.insula(&["image", "inspect", "-f", "{{json .RepoDigests}}", name]).ok())
            .unwrap()
    };
    other.insula(&["rmi", &served.name("team/app:1"), &registry.name("app:1")]).ok();
    other.insula(&["pull", &served.name("team/app:1")]).ok();
    let digests = digest(&other, &served.name("team/app:1")).to_string();
    assert!(
        digests.contains(&registry.manifest("app", "1").header("docker-content-digest").unwrap().to_owned())
    );
}

/// An artifact about another manifest, in a registry; its digest.
fn put_artifact(registry: &Registry, repository: &str, tag: &str, about: &Value) -> String {
    let config = registry.put_blob(repository, "application/vnd.oci.empty.v1+json", b"{}");
    let parts = registry.put_blob(repository, "text/spdx+json", br#"{"spdxVersion":"SPDX-2.3"}"#);
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "text/spdx+json", "config": config, "layers": [parts], "subject": about,
        "annotations": {"by": "a test"},
    });
    registry.put_manifest(repository, tag, &manifest)
}

/// An index of an image for this host and one for another in a registry; its descriptor.
fn put_index(registry: &Registry, repository: &str, tag: &str) -> Value {
    let mut entries = Vec::new();
    let host = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    for (architecture, content) in [("s390x", b"foreign\n"), (host, b"at home\n")] {
        let image = image("multi:1", content);
        let manifest = registry.put_parts(&image, repository, Compression::Gzip);
        let digest = registry.put_manifest(repository, architecture, &manifest);
        entries.push(json!({
            "mediaType": manifest["mediaType"], "digest": digest, "size": manifest.to_string().len(),
            "platform": {"os": "linux", "architecture": architecture}, "annotations": {"kept": "as it is"},
        }));
    }
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries,
        "annotations": {"unknown": "to insula"},
    });
    let digest = registry.put_manifest(repository, tag, &index);
    json!({"mediaType": index["mediaType"], "digest": digest, "size": index.to_string().len()})
}

fn digest_of(registry: &Registry, repository: &str, tag: &str) -> String {
    registry.manifest(repository, tag).header("docker-content-digest").unwrap().to_owned()
}

#[test]
fn indexes_and_artifacts_go_through_as_they_are() {
    let registry = registry!();
    let (one, other) = (daemon!(bare), Daemon::bare());
    let index = put_index(&registry, "multi", "1");
    let index_digest = index["digest"].as_str().unwrap();
    let parts = put_artifact(&registry, "multi", "parts", &index);
    for name in ["multi:1", "multi:parts"] {
        one.insula(&["pull", "-q", "--platform", "all", &registry.name(name)]).ok();
    }
    assert_eq!(one.insula(&[&ALONE[..], &[&registry.name("multi:1")]].concat()).ok(), "at home");
    one.insula(&["run", "--rm", &registry.name("multi:parts")]).fails(125, &["artifact of type", "spdx"]);
    // Under other names and in another repository they are the same.
    for (from, to, digest) in [("multi:1", "copy:1", index_digest), ("multi:parts", "copy:parts", &parts)] {
        one.insula(&["tag", &registry.name(from), &registry.name(to)]).ok();
        one.insula(&["push", &registry.name(to)]).shows(&[&format!("digest: {digest}")]);
        let (repository, tag) = to.split_once(':').unwrap();
        assert_eq!(digest_of(&registry, repository, tag), digest);
    }
    let served = Served::start(&one, &[]);
    let referrers = served.json(&format!("/v2/multi/referrers/{index_digest}"));
    assert_eq!(referrers["manifests"].as_array().unwrap().len(), 1, "{referrers}");
    let found = &referrers["manifests"][0];
    assert_eq!(
        (found["digest"].as_str(), &found["annotations"]["by"]),
        (Some(parts.as_str()), &json!("a test"))
    );
    assert_eq!(found["artifactType"], "text/spdx+json");
    let path = format!("/v2/multi/referrers/{index_digest}?artifactType=x");
    let (status, head, body) = served.ask(&format!("GET {path}"), "");
    assert!(status == 200 && head.contains("oci-filters-applied: artifacttype"), "{head}");
    assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["manifests"], json!([]));
    assert_eq!(served.json(&format!("/v2/nosuch/referrers/{index_digest}"))["manifests"], json!([]));
    let by_digest = format!("multi@{index_digest}");
    for name in ["multi:1", &by_digest] {
        other.insula(&["pull", "-q", "--platform", "all", &served.name(name)]).ok();
        let digests = other.insula(&["image", "inspect", "-f", "{{json .RepoDigests}}", &served.name(name)]);
        assert!(digests.ok().contains(index_digest), "{}", digests.ok());
    }
    other
        .insula(&["manifest", "inspect", "--insecure", &served.name("multi:1")])
        .shows(&["s390x", "as it is"]);
    // With its names goes all of it.
    for name in ["multi:1", "multi:parts", "copy:1", "copy:parts"] {
        one.insula(&["rmi", &registry.name(name)]).ok();
    }
    assert_eq!(one.insula(&["images", "-aq", "--filter", "reference=*/*"]).ok(), "");
    let blobs = one.instance().root().join("content/blobs/sha256");
    assert_eq!(fs::read_dir(&blobs).unwrap().count(), 0, "{blobs:?}");
    one.insula(&["system", "check"]).ok();
}

#[test]
fn indexes_and_artifacts_leave_as_a_file_and_come_back() {
    let registry = registry!();
    let (one, other) = (daemon!(bare), Daemon::bare());
    let index = put_index(&registry, "multi", "1");
    let index_digest = index["digest"].as_str().unwrap();
    let parts = put_artifact(&registry, "multi", "parts", &index);
    let (multi, artifact) = (registry.name("multi:1"), registry.name("multi:parts"));
    for name in [&multi, &artifact] {
        one.insula(&["pull", "-q", "--platform", "all", name]).ok();
    }
    // The parts have no names of their own, and are not left over for that.
    one.insula(&["image", "prune", "-f"]).ok();
    let saved = one.folder().join("saved.tar");
    one.insula(&["save", "-o", text(&saved), &multi, &artifact]).ok();
    other
        .insula(&["load", "-i", text(&saved)])
        .shows(&[&format!("Loaded image: {multi}"), &format!("Loaded image: {artifact}")]);
    assert_eq!(other.insula(&[&ALONE[..], &[&multi]].concat()).ok(), "at home");
    for (name, to, digest) in [(&multi, "moved:1", index_digest), (&artifact, "moved:parts", &parts)] {
        other.insula(&["tag", name, &registry.name(to)]).ok();
        other.insula(&["push", &registry.name(to)]).shows(&[&format!("digest: {digest}")]);
    }
    for name in [&multi, &artifact, &registry.name("moved:1"), &registry.name("moved:parts")] {
        other.insula(&["rmi", name]).ok();
    }
    let blobs = other.instance().root().join("content/blobs/sha256");
    assert_eq!(fs::read_dir(&blobs).unwrap().count(), 0, "{blobs:?}");
    // An archive of somebody else's, which has its documents last.
    let copied = one.folder().join("copied.tar");
    let (from, to) =
        (format!("docker://{multi}"), format!("oci-archive:{}:here.example/multi:1", text(&copied)));
    let copy = [
        "--insecure-policy",
        "copy",
        "-q",
        "--all",
        "--preserve-digests",
        "--src-tls-verify=false",
        &from,
        &to,
    ];
    Outcome::of(Command::new("skopeo").args(copy), b"").ok();
    other.insula(&["load", "-i", text(&copied)]).shows(&["Loaded image: here.example/multi:1"]);
    other.insula(&["tag", "here.example/multi:1", &registry.name("again:1")]).ok();
    other.insula(&["push", &registry.name("again:1")]).shows(&[&format!("digest: {index_digest}")]);
    // Of one platform it is an image as any other.
    let host = if cfg!(target_arch = "aarch64") { "linux/arm64" } else { "linux/amd64" };
    one.insula(&["save", "--platform", host, "-o", text(&saved), &multi]).ok();
    other.insula(&["rmi", "here.example/multi:1", &registry.name("again:1")]).ok();
    other.insula(&["load", "-i", text(&saved)]).shows(&[&format!("Loaded image: {multi}")]);
    let images = other.insula(&["images", "-aq", "--filter", "reference=*/*"]);
    assert_eq!(images.ok().lines().count(), 1, "{images}");
    other.insula(&["system", "check"]).ok();
}

/// An index that lists an index and an artifact; the digests of both indexes.
fn put_nested(registry: &Registry, repository: &str, tag: &str) -> [String; 2] {
    let mut inner = put_index(registry, repository, "inner");
    let digest = inner["digest"].as_str().unwrap().to_owned();
    put_artifact(registry, repository, "parts", &inner);
    let parts = registry.manifest(repository, "parts");
    inner["platform"] =
        json!({"os": "linux", "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }});
    let parts = json!({
        "mediaType": parts.header("content-type"), "digest": parts.header("docker-content-digest"),
        "size": parts.body.len(), "platform": {"os": "unknown", "architecture": "unknown"},
    });
    let outer = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [inner, parts],
    });
    [registry.put_manifest(repository, tag, &outer), digest]
}

#[test]
fn indexes_within_indexes_go_through_as_they_are() {
    let registry = registry!();
    let (mut one, other) = (daemon!(absent), Daemon::bare());
    // Nobody answers there: all of it comes from the registry itself.
    one.restart_with(&["--registry-mirror", &format!("{}=http://127.0.0.1:1", registry.address())]);
    let [outer, inner] = put_nested(&registry, "multi", "1");
    let from = registry.name("multi:1");
    // One platform of it is an image, wherever it is listed.
    one.insula(&["pull", "-q", &from]).ok();
    assert_eq!(one.insula(&[&ALONE[..], &[&from]].concat()).ok(), "at home");
    one.insula(&["push", &from]).shows(&["are not here"]);
    let [outer_again, _] = put_nested(&registry, "multi", "1");
    assert_eq!(outer, outer_again);
    one.insula(&["pull", "-q", "--platform", "all", &from]).ok();
    let push = |daemon: &Daemon, from: &str, to: &str| {
        let name = registry.name(&format!("{to}:1"));
        daemon.insula(&["tag", from, &name]).ok();
        daemon.insula(&["push", &name]).shows(&[&format!("digest: {outer}")]);
        assert_eq!(
            [digest_of(&registry, to, "1"), digest_of(&registry, to, &inner)],
            [outer.clone(), inner.clone()]
        );
    };
    push(&one, &from, "copy");
    let saved = one.folder().join("saved.tar");
    one.insula(&["save", "-o", text(&saved), &from]).ok();
    other.insula(&["load", "-i", text(&saved)]).shows(&[&format!("Loaded image: {from}")]);
    assert_eq!(other.insula(&[&ALONE[..], &[&from]].concat()).ok(), "at home");
    push(&other, &from, "loaded");
    for name in [&from, &registry.name("loaded:1")] {
        other.insula(&["rmi", name]).ok();
    }
    let blobs = other.instance().root().join("content/blobs/sha256");
    assert_eq!(fs::read_dir(&blobs).unwrap().count(), 0, "{blobs:?}");
    let users = one.folder().join("htpasswd");
    fs::write(&users, HTPASSWD).unwrap();
    let served = Served::start(&one, &["--writable", "--htpasswd", text(&users)]);
    other.insula_with(&["login", "-u", "ann", "--password-stdin", &served.address], b"secret").ok();
    other.insula(&["pull", "-q", "--platform", "all", &served.name("multi:1")]).ok();
    other.insula(&["tag", &served.name("multi:1"), &served.name("team/multi:1")]).ok();
    other.insula(&["push", &served.name("team/multi:1")]).shows(&[&format!("digest: {outer}")]);
    push(&one, "team/multi:1", "served");
    one.insula(&["system", "check"]).ok();
}

#[test]
fn what_was_pushed_in_two_forms_is_pulled_by_both_digests() {
    let registry = registry!();
    let (one, other) = (daemon!(bare), Daemon::bare());
    let served = Served::start(
        &one,
        &[
            "--writable",
            "--htpasswd",
            text(&{
                let users = one.folder().join("htpasswd");
                fs::write(&users, HTPASSWD).unwrap();
                users
            }),
        ],
    );
    let login = ["login", "-u", "ann", "--password-stdin", &served.address];
    other.insula_with(&login, b"secret").shows(&["Login Succeeded"]);
    let mut digests = Vec::new();
    for (tag, compression) in
        [("plain", Compression::Plain), ("gzip", Compression::Gzip), ("zstd", Compression::Zstd)]
    {
        let digest = registry.put(&image("app:1", b"hello\n"), "app", tag, compression);
        let (from, to) = (registry.name(&format!("app:{tag}")), served.name("app:1"));
        other.insula(&["pull", "-q", &from]).ok();
        other.insula(&["tag", &from, &to]).ok();
        other.insula(&["push", &to]).shows(&[&format!("1: digest: {digest}")]);
        digests.push(digest);
    }
    for digest in &digests {
        let third = Daemon::bare();
        third.insula_with(&login, b"secret").ok();
        let name = served.name(&format!("app@{digest}"));
        third.insula(&["pull", "-q", &name]).ok();
        assert_eq!(third.insula(&[&ALONE[..], &[&name]].concat()).ok(), "hello");
    }
}

#[test]
fn what_is_pushed_for_an_index_waits_for_it() {
    let daemon = daemon!(bare);
    daemon.load(&image("app:1", b"x").docker_archive()).ok();
    let id = daemon.insula(&["image", "inspect", "-f", "{{.Id}}", "app:1"]).ok().to_owned();
    // All of whose blobs are here.
    let part = json!({"schemaVersion": 2, "artifactType": "x/part", "layers": [],
        "config": {"mediaType": "x/config", "digest": id, "size": 1}})
    .to_string();
    let digest = sha2::Sha256::digest(&part).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let digest = format!("sha256:{digest}");
    let index =
        json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [
            {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": part.len()},
        ]})
        .to_string();
    let put = |name: &str, document: &str| {
        let path = format!("/insula/registry/team/parts/manifests/{name}");
        let answer = daemon.api("PUT", &path, document);
        assert_eq!(answer.status, 201, "{}", String::from_utf8_lossy(&answer.body));
    };
    let pruned = || daemon.insula(&["image", "prune", "-f"]).ok().contains(&digest);
    put(&digest, &part);
    assert!(!pruned(), "its index is on the way");
    put("1", &index);
    assert!(!pruned(), "the index lists it");
    daemon.insula(&["tag", "app:1", "team/parts:1"]).ok();
    assert!(pruned(), "nothing lists it");
}

#[test]
fn what_would_be_open_to_everyone_is_refused() {
    let one = daemon!(bare);
    one.insula(&["serve-images", "--listen", "0.0.0.0:0"]).fails(1, &["without TLS", "--tls-cert"]);
    one.insula(&["serve-images", "--listen", "127.0.0.1:0", "--writable"]).fails(1, &["--user NAME"]);
    one.insula(&["serve-images", "--tls-cert", "x"]).fails(1, &["--tls-key"]);
    let users = one.folder().join("users");
    fs::write(&users, "ann:plain\n").unwrap();
    one.insula(&["serve-images", "--htpasswd", text(&users)]).fails(1, &["line 1", "bcrypt"]);
    one.insula_with(&["serve-images", "--user", "ann"], b"").fails(1, &["--password-stdin"]);
}
