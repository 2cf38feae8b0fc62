//! What builds say about their images: where they came from, and what is in them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use insula_tests::images::{Compression, busybox};
use insula_tests::{Daemon, Outcome, daemon, registry};
use serde_json::{Value, json};

use crate::build::{build, context, id, run};

const FILE: &str = "\
FROM busybox
ARG WORD
COPY <<EOF /var/lib/dpkg/status
Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.36-9
Maintainer: Somebody <s@example.org>
EOF
COPY <<EOF /etc/os-release
ID=debian
VERSION_ID=\"12\"
EOF
COPY package.json /app/node_modules/left-pad/
RUN --mount=type=secret,id=token test -s /run/secrets/token
";
const MODULE: &str = r#"{"name": "left-pad", "version": "1.3.0", "license": "WTFPL"}"#;
const READ_MODULE: &str = "cat /app/node_modules/left-pad/package.json";
const SPDX: &str = "https://spdx.dev/Document";
const SLSA: &str = "https://slsa.dev/provenance/v1";

/// The members of an archive.
fn members(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(std::fs::File::open(path).unwrap());
    let read = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        (entry.path().unwrap().display().to_string(), bytes)
    });
    read.collect()
}

/// What an archive of one index says: the entries of the image and of the attestation, and predicates by their type.
fn statements(path: &Path) -> (Value, Value, BTreeMap<String, Value>) {
    let members = members(path);
    let blob = |descriptor: &Value| -> Value {
        let name = descriptor["digest"].as_str().unwrap().replace("sha256:", "blobs/sha256/");
        serde_json::from_slice(&members[&name]).unwrap()
    };
    let layout: Value = serde_json::from_slice(&members["index.json"]).unwrap();
    let index = blob(&layout["manifests"][0]);
    let [image, attestation] = &index["manifests"].as_array().unwrap()[..] else { panic!("{index}") };
    assert_eq!(image["platform"]["os"], "linux");
    assert_eq!(attestation["platform"], json!({"architecture": "unknown", "os": "unknown"}));
    let annotations = json!({
        "vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": image["digest"],
    });
    assert_eq!(attestation["annotations"], annotations);
    let found = blob(attestation);
    assert_eq!(found["subject"]["digest"], image["digest"]);
    let layers = found["layers"].as_array().unwrap().iter().map(|layer| {
        assert_eq!(layer["mediaType"], "application/vnd.in-toto+json");
        let statement = blob(layer);
        assert_eq!(layer["annotations"]["in-toto.io/predicate-type"], statement["predicateType"]);
        let digest = format!("sha256:{}", statement["subject"][0]["digest"]["sha256"].as_str().unwrap());
        assert_eq!(image["digest"], digest, "it is about the image");
        (statement["predicateType"].as_str().unwrap().to_owned(), statement["predicate"].clone())
    });
    let layers = layers.collect();
    (image.clone(), attestation.clone(), layers)
}

fn made(daemon: &Daemon, name: &str, flags: &[&str]) -> PathBuf {
    let (folder, outcome) = make(daemon, name, flags);
    outcome.ok();
    folder
}

fn make(daemon: &Daemon, name: &str, flags: &[&str]) -> (PathBuf, Outcome) {
    let folder = context(daemon, "context", &[("Dockerfile", FILE), ("package.json", MODULE)]);
    let source = daemon.folder().join("token");
    std::fs::write(&source, "Zk9-secret").unwrap();
    let secret = format!("id=token,src={}", source.to_str().unwrap());
    let all = ["-t", name, "--secret", &secret, "--build-arg", "WORD=said", "--sbom=true"];
    let outcome = build(daemon, &folder, &[&all[..], flags].concat());
    (folder, outcome)
}

/// Every image and artifact; one with two names counts once.
fn all(daemon: &Daemon) -> usize {
    let ids = daemon.insula(&["images", "-aq"]).ok().to_owned();
    ids.lines().collect::<BTreeSet<_>>().len()
}

#[test]
fn images_say_where_they_came_from_and_what_is_in_them() {
    let registry = registry!();
    let (one, other) = (daemon!(), Daemon::bare());
    let name = registry.name("team/app:1");
    let saved = one.folder().join("saved.tar");
    made(&one, &name, &["--provenance", "mode=max,builder-id=https://ci.example.org"]);
    assert_eq!(run(&one, &name, READ_MODULE), MODULE);
    one.insula(&["save", "-o", saved.to_str().unwrap(), &name]).ok();
    let (image, attestation, said) = statements(&saved);
    // Who gives the image another name by its id means what its name stands for.
    one.insula(&["tag", &id(&one, &name), "named:1"]).ok();
    let named = one.folder().join("named.tar");
    one.insula(&["save", "-o", named.to_str().unwrap(), "named:1"]).ok();
    assert_eq!(statements(&named).0["digest"], image["digest"]);
    one.insula(&["rmi", "named:1"]).ok();

    let parts: Vec<_> = said[SPDX]["packages"].as_array().unwrap().iter().collect();
    let named = |name: &str| *parts.iter().find(|part| part["name"] == name).unwrap();
    let url = |part: &Value| part["externalRefs"][0]["referenceLocator"].as_str().unwrap().to_owned();
    assert_eq!(url(named("libc6")), "pkg:deb/debian/libc6@2.36-9?arch=amd64&distro=debian-12");
    assert_eq!(url(named("left-pad")), "pkg:npm/left-pad@1.3.0");
    assert_eq!(named("left-pad")["licenseDeclared"], "WTFPL");
    let definition = &said[SLSA]["buildDefinition"];
    let request = &definition["externalParameters"]["request"];
    assert_eq!(request["args"]["build-arg:WORD"], "said");
    assert_eq!(request["secrets"], json!([{"id": "token"}]));
    assert_eq!(said[SLSA]["runDetails"]["builder"]["id"], "https://ci.example.org");
    let text = said[SLSA]["runDetails"]["byproducts"][0]["content"].as_str().unwrap();
    assert_eq!(STANDARD.decode(text).unwrap(), FILE.as_bytes());
    let base = &definition["resolvedDependencies"][0];
    assert!(base["uri"].as_str().unwrap().starts_with("pkg:docker/busybox@latest"), "{base}");
    assert_eq!(base["digest"]["sha256"].as_str().unwrap().len(), 64);
    for (name, bytes) in members(&saved) {
        assert!(!bytes.windows(10).any(|piece| piece == b"Zk9-secret"), "{name}");
    }

    // It is one image to whoever lists images, and to whoever pulls a platform.
    let listed =
        |flags: &str| one.insula(&["images", flags, &registry.name("team/app")]).ok().lines().count();
    assert_eq!((listed("-q"), listed("-aq")), (1, 2));
    one.insula(&["images", "--tree", &registry.name("team/app")]).ok();
    one.insula(&["image", "prune", "-f"]).ok();
    one.insula(&["system", "check"]).ok();
    one.insula(&["push", &name]).shows(&["1: digest: sha256:"]);
    let pushed =
        |name: &str| -> Value { serde_json::from_slice(&registry.manifest("team/app", name).body).unwrap() };
    assert_eq!(pushed("1")["manifests"], json!([image, attestation]));
    let digest = image["digest"].as_str().unwrap();
    for layer in pushed(digest)["layers"].as_array().unwrap() {
        assert_eq!(layer["mediaType"], "application/vnd.oci.image.layer.v1.tar+gzip");
    }
    // Debian's registry keeps no account of what refers to what.
    let referrers = pushed(&digest.replace(':', "-"));
    let kind = "application/vnd.docker.attestation.manifest.v1+json";
    assert_eq!(referrers["manifests"][0]["digest"], attestation["digest"]);
    assert_eq!(referrers["manifests"][0]["artifactType"], kind);

    let before = other.insula(&["images", "-aq"]).ok().lines().count();
    other.insula(&["pull", "-q", "--platform", "linux/amd64", &name]).ok();
    assert_eq!(run(&other, &name, "cat /app/node_modules/left-pad/package.json"), MODULE);
    assert_eq!(other.insula(&["images", "-aq"]).ok().lines().count(), before + 1);
    other.insula(&["pull", "-q", "--platform", "all", &name]).ok();
    let again = other.folder().join("again.tar");
    assert_eq!(run(&other, &name, READ_MODULE), MODULE);
    other.insula(&["save", "-o", again.to_str().unwrap(), &name]).ok();
    assert_eq!(statements(&again).2, said);
    // It goes with the name that it stands behind.
    one.insula(&["rmi", &name]).ok();
    assert_eq!(listed("-aq"), 0);
    one.insula(&["load", "-i", again.to_str().unwrap()]).shows(&["team/app:1"]);
    one.insula(&["rmi", &name]).ok();
    one.insula(&["system", "check"]).ok();
}

#[test]
fn a_registry_that_lists_no_referrers_gets_the_image_all_the_same() {
    let registry = registry!();
    let daemon = daemon!();
    let name = registry.name("team/said:1");
    made(&daemon, &name, &["--provenance=true"]);
    let saved = daemon.folder().join("saved.tar");
    daemon.insula(&["save", "-o", saved.to_str().unwrap(), &name]).ok();
    let (image, attestation, _) = statements(&saved);
    // Its place is somebody's, as a tag is that must not change.
    let tag = image["digest"].as_str().unwrap().replace(':', "-");
    registry.put(&busybox(), "team/said", &tag, Compression::Gzip);
    let before = registry.manifest("team/said", &tag).body;
    daemon.insula(&["push", &name]).shows(&["Warning: sha256:", "is no index", "1: digest: sha256:"]);
    let pushed: Value = serde_json::from_slice(&registry.manifest("team/said", "1").body).unwrap();
    assert_eq!(pushed["manifests"], json!([image, attestation]));
    assert_eq!(registry.manifest("team/said", &tag).body, before, "what is somebody's stays");
    // A base that is named by its digest is called so.
    let repository = registry.name("team/said");
    let from = format!("FROM {repository}@{}\n", image["digest"].as_str().unwrap());
    let folder = context(&daemon, "based", &[("Dockerfile", &from)]);
    build(&daemon, &folder, &["-t", "based:1", "--provenance=true"]).ok();
    daemon.insula(&["save", "-o", saved.to_str().unwrap(), "based:1"]).ok();
    let (_, _, said) = statements(&saved);
    let base = &said[SLSA]["buildDefinition"]["resolvedDependencies"][0];
    let url = base["uri"].as_str().unwrap();
    assert!(url.starts_with(&format!("pkg:docker/{repository}?digest=sha256:")), "{url}");
    assert_eq!(format!("sha256:{}", base["digest"]["sha256"].as_str().unwrap()), image["digest"]);
}

#[test]
fn attestations_go_with_their_index() {
    let (one, other) = (daemon!(), Daemon::bare());
    let before = all(&one);
    let folder = made(&one, "app:1", &["--provenance=true"]);
    assert_eq!(all(&one), before + 2);
    // The same image is made at another time: the attestation of before is nobody's.
    let image = one.insula(&["images", "-q", "app:1"]).ok().to_owned();
    made(&one, "app:1", &["--provenance=true"]);
    assert_eq!(one.insula(&["images", "-q", "app:1"]).ok(), image);
    assert_eq!(all(&one), before + 2);
    one.insula(&["tag", "busybox", "app:1"]).ok();
    assert_eq!(all(&one), before + 1, "the image alone is left, without a name");
    one.insula(&["image", "prune", "-f"]).ok();
    assert_eq!(all(&one), before);
    one.insula(&["rmi", "app:1"]).ok();

    // As an archive, with a name and without; `min` tells nothing of what was given.
    let archive = one.folder().join("out.tar");
    let output = format!("type=oci,dest={}", archive.to_str().unwrap());
    made(&one, "app:2", &["--attest", "type=provenance", "-o", &output]);
    let (_, _, said) = statements(&archive);
    let text = said[SLSA].to_string();
    assert!(!text.contains("said") && !text.contains("token") && !text.contains("byproducts"), "{text}");
    assert_eq!(all(&one), before, "nothing of it stays");
    other.insula(&["load", "-i", archive.to_str().unwrap()]).shows(&["app:2"]);
    assert_eq!(run(&other, "app:2", READ_MODULE), MODULE);
    let plain = ["-o", &output, "--sbom", "true", "--secret", "id=token,env=HOME"];
    build(&one, &folder, &plain).ok();
    assert_eq!(statements(&archive).2.keys().collect::<Vec<_>>(), [SPDX]);
    other.insula(&["load", "-i", archive.to_str().unwrap()]).shows(&["Loaded image ID"]);
    other.insula(&["system", "check"]).ok();

    for (flags, words) in [
        (&["--sbom", "true"][..], "one is needed (--tag)"),
        (&["--sbom", "true", "-o", "-"], "an output of files has none"),
        (&["--attest", "type=x"], "provenance or sbom is expected"),
        (&["-t", "ab", "--provenance", "version=v0.2"], "version v1"),
        (&["-t", "ab", "--attest", "type=sbom,generator=a/b"], "no other generator"),
    ] {
        build(&one, &folder, flags).fails(1, &[words]);
    }
}

#[test]
fn a_build_that_is_killed_leaves_nothing_of_its_attestation() {
    let mut daemon = daemon!();
    if !daemon.can_fail() {
        return;
    }
    let before = all(&daemon);
    // Everything is in its place, and no row is written.
    std::fs::write(daemon.failpoint_file(), "load.placed").unwrap();
    make(&daemon, "app:1", &[]).1.exits(1);
    daemon.await_kill();
    assert!(!daemon.failpoint_file().exists(), "the failpoint was passed");
    daemon.restart();
    daemon.insula(&["system", "check"]).ok();
    daemon.insula(&["image", "inspect", "app:1"]).exits(1);
    assert_eq!(all(&daemon), before, "they come together or not at all");
    made(&daemon, "app:1", &[]);
    assert_eq!(all(&daemon), before + 2);
}
