//! Images from a registry.

use insula_tests::images::{Compression, Image, Layer, busybox, digest};
use insula_tests::proxy::{Fault, Proxy};
use insula_tests::{Daemon, daemon, eventually, registry};
use serde_json::json;

const ALONE: [&str; 4] = ["run", "--rm", "--network", "none"];

/// Three layers; the middle one is large, and does not compress.
fn image() -> Image {
    let mut image = busybox();
    let mut seed = 1u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as u8
    })
    .take(3 << 20)
    .collect();
    image.layers.push(Layer::default().file("noise", 0o644, &noise).bytes());
    image.layers.push(Layer::default().file("hello", 0o644, b"hello\n").bytes());
    image.config["Cmd"] = json!(["cat", "/hello"]);
    image
}

/// Nothing is there but the built-in images, and nothing is left of what was on its way.
fn is_empty(daemon: &Daemon) {
    let root = daemon.instance().root();
    let count = |folder: &str| std::fs::read_dir(root.join(folder)).unwrap().count();
    // The download of a pull that was given up ends a moment later.
    let busy = || count("layers/tmp") + count("content/ingest");
    eventually("nothing is left", || (busy() == 0).then_some(()));
    let layers = std::fs::read_dir(root.join("layers")).unwrap();
    assert_eq!(layers.filter(|layer| layer.as_ref().unwrap().file_name().len() == 64).count(), 0);
    assert_eq!(count("content/blobs/sha256"), 0);
    assert!(!daemon.insula(&["images"]).ok().contains("app"));
}

#[test]
fn pull_run_and_remove() {
    let registry = registry!();
    let daemon = daemon!(bare);
    let top = registry.put(&image(), "some/app", "1", Compression::Gzip);
    let name = registry.name("some/app:1");
    let pulled = daemon.insula(&["pull", &name]);
    let status = format!("Status: Downloaded newer image for {name}");
    pulled.shows(&["1: Pulling from some/app", ": Pull complete", &format!("Digest: {top}"), &status, &name]);
    assert_eq!(daemon.insula(&[&ALONE[..], &[&name]].concat()).ok(), "hello");
    daemon.insula(&["pull", &name]).shows(&["Already exists", "Status: Image is up to date for"]);
    assert_eq!(daemon.insula(&["pull", "-q", &name]).ok(), name);
    let by_digest = registry.name(&format!("some/app@{top}"));
    let shown = daemon.insula(&["image", "inspect", "-f", "{{json .RepoDigests}}", &name]);
    assert_eq!(shown.ok(), format!("[\"{by_digest}\"]"));
    assert_eq!(daemon.insula(&[&ALONE[..], &[&by_digest]].concat()).ok(), "hello");
    daemon.insula(&["rmi", &name]).shows(&[&format!("Untagged: {name}"), &format!("Untagged: {by_digest}")]);
    is_empty(&daemon);
    daemon.insula(&["pull", "-q", &by_digest]).ok();
    daemon.insula(&["images", "--digests"]).shows(&["<none>", &top]);
    daemon.insula(&["rmi", &by_digest]).shows(&["Deleted: sha256:"]);
    // What is not there, and nobody.
    let missing = registry.name("some/app:nope");
    daemon
        .insula(&["pull", &missing])
        .fails(1, &[&format!("manifest for {missing} not found: manifest unknown")]);
    daemon.insula(&["pull", "127.0.0.1:1/x"]).fails(1, &["Connection refused"]);
    is_empty(&daemon);
}

#[test]
fn run_pulls_as_it_is_told() {
    let registry = registry!();
    let daemon = daemon!(bare);
    registry.put(&image(), "app", "latest", Compression::Zstd);
    let name = registry.name("app");
    let run = |flags: &[&str]| daemon.insula(&[&ALONE[..], flags, &[&name]].concat());
    run(&["--pull", "never"]).fails(125, &["No such image"]);
    let first = run(&[]);
    assert_eq!(first.stdout, "hello\n");
    assert!(first.stderr.contains(&format!("Unable to find image '{name}:latest' locally")), "{first}");
    assert_eq!(run(&[]).stderr, "");
    let mut other = image();
    other.config["Cmd"] = json!(["echo", "newer"]);
    registry.put(&other, "app", "latest", Compression::Gzip);
    assert_eq!(run(&[]).ok(), "hello");
    let quiet = run(&["--pull", "always", "-q"]);
    assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), ("newer\n", ""));
    let id = daemon.insula(&["create", "--pull", "always", &name]);
    daemon.insula(&["rm", id.ok()]).ok();
}

#[test]
fn every_form_of_an_image() {
    let registry = registry!();
    let daemon = daemon!(bare);
    for (tag, compression) in [("plain", Compression::Plain), ("zstd", Compression::Zstd)] {
        registry.put(&image(), "app", tag, compression);
        let name = registry.name(&format!("app:{tag}"));
        daemon.insula(&["pull", &name]).ok();
        assert_eq!(daemon.insula(&[&ALONE[..], &[&name]].concat()).ok(), "hello");
        daemon.insula(&["rmi", &name]).ok();
    }
    // Docker's media types, and of many platforms this one, or another if asked for.
    let docker = "application/vnd.docker";
    let mut manifest = registry.put_parts(&image(), "app", Compression::Gzip);
    manifest["mediaType"] = json!(format!("{docker}.distribution.manifest.v2+json"));
    manifest["config"]["mediaType"] = json!(format!("{docker}.container.image.v1+json"));
    for layer in manifest["layers"].as_array_mut().unwrap() {
        layer["mediaType"] = json!(format!("{docker}.image.rootfs.diff.tar.gzip"));
    }
    let mut foreign = image();
    foreign.config["Cmd"] = json!(["foreign"]);
    let mut other = registry.put_parts(&foreign, "app", Compression::Gzip);
    let document = String::from_utf8(foreign.document()).unwrap();
    let document = document.replace("\"amd64\"", "\"s390x\"").replace("\"arm64\"", "\"s390x\"");
    other["config"] =
        registry.put_blob("app", "application/vnd.oci.image.config.v1+json", document.as_bytes());
    let host = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let entries: Vec<_> = [("s390x", &other), (host, &manifest)]
        .into_iter()
        .map(|(architecture, manifest)| {
            let digest = registry.put_manifest("app", architecture, manifest);
            json!({"mediaType": manifest["mediaType"], "digest": digest, "size": manifest.to_string().len(),
                "platform": {"os": "linux", "architecture": architecture}})
        })
        .collect();
    let list = json!({"schemaVersion": 2, "manifests": entries,
        "mediaType": format!("{docker}.distribution.manifest.list.v2+json")});
    let top = registry.put_manifest("app", "many", &list);
    let name = registry.name("app:many");
    daemon.insula(&["pull", &name]).shows(&[&format!("Digest: {top}")]);
    assert_eq!(daemon.insula(&[&ALONE[..], &[&name]].concat()).ok(), "hello");
    daemon.insula(&["pull", "--platform", "linux/s390x", &name]).ok();
    let architecture = daemon.insula(&["image", "inspect", "-f", "{{.Architecture}}", &name]);
    assert_eq!(architecture.ok(), "s390x");
    let none = ["no matching manifest for linux/riscv64", "linux/s390x"];
    daemon.insula(&["pull", "--platform", "linux/riscv64", &name]).fails(1, &none);
    daemon.insula(&["pull", "--platform", "a/b/c/d", &name]).fails(1, &["platform"]);
    daemon.insula(&["manifest", "inspect", &name]).shows(&["manifest.list.v2+json", "s390x"]);
    daemon.insula(&["manifest", "inspect", "-v", &name]).shows(&[
        "\"Ref\"",
        "SchemaV2Manifest",
        "OCIManifest",
    ]);
    // All tags: those for other machines come too, as Docker has it.
    daemon.insula(&["pull", "-aq", &registry.name("app")]).ok();
    daemon.insula(&["images"]).shows(&["zstd", "plain", "many"]);
    daemon.insula(&["pull", "-a", &name]).fails(1, &["tag can't be used with --all-tags/-a"]);
}

#[test]
fn what_is_no_image_is_named() {
    let registry = registry!();
    let daemon = daemon!(bare);
    let empty = registry.put_blob("app", "application/vnd.oci.empty.v1+json", b"{}");
    let artifact = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/x.sbom", "config": empty, "layers": [empty]});
    registry.put_manifest("app", "artifact", &artifact);
    let name = registry.name("app:artifact");
    daemon.insula(&["pull", &name]).ok();
    daemon.insula(&["run", "--rm", &name]).fails(125, &["not an image", "application/x.sbom"]);
    daemon.insula(&["rmi", &name]).ok();
    is_empty(&daemon);
    // Layers that are not what the configuration says.
    let mut wrong = registry.put_parts(&image(), "app", Compression::Gzip);
    wrong["layers"].as_array_mut().unwrap().swap(0, 1);
    registry.put_manifest("app", "wrong", &wrong);
    daemon.insula(&["pull", &registry.name("app:wrong")]).fails(1, &["has the digest"]);
    let mut less = registry.put_parts(&image(), "app", Compression::Gzip);
    less["layers"].as_array_mut().unwrap().pop();
    registry.put_manifest("app", "less", &less);
    daemon.insula(&["pull", &registry.name("app:less")]).fails(1, &["has 2 layers, its configuration 3"]);
    // Blobs that the registry's disk lost, cut short and spoiled.
    registry.put(&image(), "app", "1", Compression::Gzip);
    let blob = registry.blob(&digest(&Compression::Gzip.pack(&image().layers[1])));
    let whole = std::fs::read(&blob).unwrap();
    let mut spoiled = whole.clone();
    spoiled[whole.len() / 2] ^= 1;
    let longer = [whole.as_slice(), &[0; 1000]].concat();
    for (bytes, why) in [(&spoiled, ""), (&longer, "longer than")] {
        std::fs::write(&blob, bytes).unwrap();
        daemon.insula(&["pull", &registry.name("app:1")]).fails(1, &[why]);
        is_empty(&daemon);
    }
    std::fs::write(&blob, whole).unwrap();
    daemon.insula(&["pull", &registry.name("app:1")]).ok();
}

#[test]
fn broken_connections_are_taken_up_again() {
    let registry = registry!();
    let daemon = daemon!(bare);
    registry.put(&image(), "app", "1", Compression::Gzip);
    let size = Compression::Gzip.pack(&image().layers[1]).len() as u64;
    let proxy = Proxy::start(registry.address(), Fault::Cut(2 << 20), 1);
    daemon.insula(&["pull", &proxy.name("app:1")]).ok();
    assert_eq!(proxy.faults(), 1);
    // The large layer did not come twice.
    let came = proxy.bytes();
    assert!(came < size + (2 << 20), "{came} bytes for a layer of {size}");
    assert_eq!(daemon.insula(&[&ALONE[..], &[&proxy.name("app:1")]].concat()).ok(), "hello");
}

#[test]
fn what_comes_wrong_is_refused_or_comes_from_elsewhere() {
    let registry = registry!();
    let mut daemon = daemon!(absent);
    let [proxy, mirror] =
        [(); 2].map(|()| Proxy::start(registry.address(), Fault::Corrupt(1 << 20), usize::MAX));
    // A mirror that spoils what it gives, after one that does not answer.
    let broken = format!("{}=http://{}", registry.address(), mirror.address());
    let dead = format!("{}=http://127.0.0.1:1", registry.address());
    daemon.restart_with(&["--registry-mirror", &dead, "--registry-mirror", &broken]);
    registry.put(&image(), "app", "1", Compression::Plain);
    daemon.insula(&["pull", &proxy.name("app:1")]).fails(1, &["has the digest"]);
    is_empty(&daemon);
    daemon.insula(&["pull", &registry.name("app:1")]).ok();
    assert!(mirror.faults() > 0, "the mirror was asked first");
    assert_eq!(daemon.insula(&[&ALONE[..], &[&registry.name("app:1")]].concat()).ok(), "hello");
}

/// Pulls in the background, through a proxy that lets a part of the large layer pass.
fn stalled(daemon: &Daemon, proxy: &Proxy) -> std::process::Child {
    let mut command = daemon.command(&["pull", &proxy.name("app:1")]);
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let child = command.spawn().unwrap();
    eventually("the download is under way", || (proxy.faults() > 0).then_some(()));
    child
}

#[test]
fn a_pull_that_is_killed_leaves_nothing() {
    let registry = registry!();
    let mut daemon = daemon!(bare);
    registry.put(&image(), "app", "1", Compression::Gzip);
    let proxy = Proxy::start(registry.address(), Fault::Stall(1 << 20), 2);
    // The client goes away, and with it the pull.
    let mut child = stalled(&daemon, &proxy);
    child.kill().unwrap();
    child.wait().unwrap();
    is_empty(&daemon);
    // The daemon dies, and the next one tidies up.
    let mut child = stalled(&daemon, &proxy);
    eventually("twice", || (proxy.faults() == 2).then_some(()));
    // The small layers may be complete already; it is the stalled one that stays half made.
    let begun = daemon.instance().root().join("layers/tmp");
    let half_made = || {
        let mut folders = std::fs::read_dir(&begun).unwrap();
        folders.any(|folder| folder.unwrap().path().join("noise").exists())
    };
    eventually("the large layer is being unpacked", || half_made().then_some(()));
    daemon.kill();
    child.wait().unwrap();
    assert!(half_made());
    daemon.restart();
    is_empty(&daemon);
    proxy.release();
    daemon.insula(&["pull", &proxy.name("app:1")]).ok();
    assert_eq!(daemon.insula(&[&ALONE[..], &[&proxy.name("app:1")]].concat()).ok(), "hello");
}

#[test]
fn pulls_of_the_same_image_share_the_work() {
    let registry = registry!();
    let daemon = daemon!(bare);
    registry.put(&image(), "app", "1", Compression::Gzip);
    let proxy = Proxy::start(registry.address(), Fault::Stall(1 << 20), 1);
    let mut first = stalled(&daemon, &proxy);
    let others: Vec<_> = (0..3)
        .map(|_| {
            let mut command = daemon.command(&["pull", &proxy.name("app:1")]);
            std::thread::spawn(move || insula_tests::Outcome::of(&mut command, b""))
        })
        .collect();
    // Each of them has read the manifest and waits for the layers.
    let manifests = || registry.log().matches("GET /v2/app/manifests/1").count();
    eventually("all have begun", || (manifests() >= 4).then_some(()));
    proxy.release();
    for other in others {
        other.join().unwrap().ok();
    }
    assert!(first.wait().unwrap().success());
    let large = digest(&Compression::Gzip.pack(&image().layers[1]));
    assert_eq!(registry.log().matches(&format!("GET /v2/app/blobs/{large}")).count(), 1);
}

#[test]
fn passwords_and_who_keeps_them() {
    let registry = registry!(&insula_tests::registry::Wants { password: true, ..Default::default() });
    let daemon = daemon!(bare);
    let address = registry.address().to_string();
    let name = registry.name("app:1");
    daemon.insula(&["pull", &name]).fails(1, &["pull access denied", "insula login"]);
    let login =
        |password: &[u8]| daemon.insula_with(&["login", "-u", "ann", "--password-stdin", &address], password);
    login(b"wrong\n").fails(1, &["unauthorized"]);
    login(b"secret\n").shows(&["Login Succeeded"]);
    // Allowed, and not there: it is another answer now.
    daemon.insula(&["pull", &name]).fails(1, &["not found"]);
    daemon
        .insula(&["login", &address])
        .shows(&["Authenticating with existing credentials", "Login Succeeded"]);
    daemon.insula(&["logout", &address]).shows(&["Removing login credentials"]);
    daemon.insula(&["pull", &name]).fails(1, &["pull access denied"]);
    daemon.insula(&["logout", &address]).shows(&["Not logged in"]);
}
