//! Images to a registry, and from one host to another.

use std::path::{Path, PathBuf};
use std::process::Command;

use insula_tests::images::{Compression, Image, Layer, busybox};
use insula_tests::proxy::{Fault, Proxy};
use insula_tests::registry::Wants;
use insula_tests::{Daemon, Outcome, daemon, eventually, registry, text};
use serde_json::{Value, json};

use crate::build::{build, context};

const ALONE: [&str; 4] = ["run", "--rm", "--network", "none"];

fn image() -> Image {
    let mut image = busybox();
    image.layers.push(Layer::default().file("hello", 0o644, b"hello\n").bytes());
    image.config["Cmd"] = json!(["cat", "/hello"]);
    image.name = "app:1".into();
    image
}

#[test]
fn from_one_host_to_another() {
    let registry = registry!();
    let (one, other) = (daemon!(bare), Daemon::bare());
    let name = registry.name("team/app:1");
    one.load(&image().docker_archive()).ok();
    one.insula(&["tag", "app:1", &name]).ok();
    let pushed = one.insula(&["push", &name]);
    pushed.shows(&[
        &format!("The push refers to repository [{}]", registry.name("team/app")),
        ": Pushed",
        "1: digest: sha256:",
    ]);
    other.insula(&["pull", &name]).ok();
    assert_eq!(other.insula(&[&ALONE[..], &[&name]].concat()).ok(), "hello");
    let digests_of = |daemon: &Daemon, name: &str| -> Value {
        let shown = daemon.insula(&["image", "inspect", name]);
        let shown: Value = serde_json::from_str(shown.ok()).unwrap();
        json!([shown[0]["Id"], shown[0]["RepoDigests"], shown[0]["RootFS"]])
    };
    assert_eq!(digests_of(&one, &name), digests_of(&other, &name));
    // What is there is not sent again, by either of them, nor under another name.
    one.insula(&["push", &name]).shows(&["Layer already exists"]);
    other.insula(&["push", &name]).shows(&["Layer already exists"]);
    let second = registry.name("team/second:1");
    other.insula(&["tag", &name, &second]).ok();
    let mounted = other.insula(&["push", &second]);
    mounted.shows(&["Mounted from team/app"]);
    assert!(!mounted.stdout.contains(": Pushed"), "{mounted}");
    let manifests = ["team/app", "team/second"].map(|repository| registry.manifest(repository, "1").body);
    assert_eq!(manifests[0], manifests[1]);
    // All tags.
    one.insula(&["tag", &name, &registry.name("team/app:2")]).ok();
    one.insula(&["push", "-a", &registry.name("team/app")]).shows(&["1: digest:", "2: digest:"]);
    assert_eq!(one.insula(&["push", "-q", &name]).ok(), name);
    one.insula(&["push", &registry.name("nosuch")])
        .fails(1, &["An image does not exist locally with the tag"]);
    one.insula(&["push", &format!("{name}@sha256:{:064}", 1)]).exits(1);
}

#[test]
fn what_was_pulled_is_pushed_as_it_was() {
    let (from, to) = (registry!(), registry!());
    let daemon = daemon!(bare);
    for (tag, compression) in
        [("gzip", Compression::Gzip), ("zstd", Compression::Zstd), ("plain", Compression::Plain)]
    {
        let top = from.put(&image(), "app", tag, compression);
        let (source, target) = (from.name(&format!("app:{tag}")), to.name(&format!("copy/app:{tag}")));
        daemon.insula(&["pull", &source]).ok();
        daemon.insula(&["tag", &source, &target]).ok();
        daemon.insula(&["push", &target]).shows(&[&format!("{tag}: digest: {top}")]);
        assert_eq!(to.manifest("copy/app", tag).body, from.manifest("app", tag).body);
        daemon.insula(&["rmi", &source, &target]).ok();
        // It is whole there.
        daemon.insula(&["pull", &target]).ok();
        daemon.insula(&["rmi", &target]).ok();
    }
}

#[test]
fn an_upload_that_breaks_goes_on() {
    let registry = registry!();
    let daemon = daemon!(bare);
    daemon.load(&image().docker_archive()).ok();
    // The connection breaks when answers of some requests have come back.
    let proxy = Proxy::start(registry.address(), Fault::Cut(1 << 10), 3);
    let name = proxy.name("app:1");
    daemon.insula(&["tag", "app:1", &name]).ok();
    daemon.insula(&["push", &name]).ok();
    assert!(proxy.faults() > 0);
    let direct = registry.name("app:1");
    daemon.insula(&["rmi", &name, "app:1"]).ok();
    daemon.insula(&["pull", &direct]).ok();
    assert_eq!(daemon.insula(&[&ALONE[..], &[&direct]].concat()).ok(), "hello");
}

#[test]
fn what_is_removed_meanwhile_is_pushed_to_its_end() {
    removed_while_it_is_pushed(|daemon, name| {
        daemon.insula(&["tag", "app:1", name]).ok();
    });
    // An index of an image and of what is said about it.
    removed_while_it_is_pushed(|daemon, name| {
        let folder = context(daemon, "context", &[("Dockerfile", "FROM app:1\nLABEL a=b\n")]);
        build(daemon, &folder, &["-t", name, "--provenance=true"]).ok();
    });
}

fn removed_while_it_is_pushed(make: impl Fn(&Daemon, &str)) {
    let registry = registry!();
    let (daemon, other) = (daemon!(bare), Daemon::bare());
    daemon.load(&image().docker_archive()).ok();
    let proxy = Proxy::start(registry.address(), Fault::Stall(1), 1);
    let name = proxy.name("app:1");
    make(&daemon, &name);
    let mut command = daemon.command(&["push", &name]);
    let pushing = std::thread::spawn(move || Outcome::of(&mut command, b""));
    eventually("the registry is asked", || (proxy.faults() == 1).then_some(()));
    daemon.insula(&["rmi", &name, "app:1"]).ok();
    proxy.release();
    pushing.join().unwrap().shows(&["1: digest: sha256:"]);
    let direct = registry.name("app:1");
    other.insula(&["pull", "--platform", "all", &direct]).ok();
    assert_eq!(other.insula(&[&ALONE[..], &[&direct]].concat()).ok(), "hello");
    daemon.insula(&["system", "check"]).ok();
}

/// A key, a certificate of it by an authority or by itself.
fn certificate(folder: &Path, name: &str, extension: &str, by: Option<&str>) -> (PathBuf, PathBuf) {
    let [key, file] = ["key", "pem"].map(|end| folder.join(format!("{name}.{end}")));
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj"]);
    command.arg(format!("/CN={name}")).args(["-addext", extension]);
    command.arg("-keyout").arg(&key).arg("-out").arg(&file);
    if let Some(by) = by {
        command.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
        command.arg("-CA").arg(folder.join(format!("{by}.pem")));
        command.arg("-CAkey").arg(folder.join(format!("{by}.key")));
    }
    Outcome::of(&mut command, b"").exits(0);
    (file, key)
}

#[test]
fn tls_with_an_authority_of_ones_own() {
    let folder = tempfile::tempdir().unwrap();
    let authority = certificate(folder.path(), "authority", "keyUsage=critical,keyCertSign", None).0;
    let server = certificate(folder.path(), "server", "subjectAltName=IP:127.0.0.1", Some("authority"));
    let client = certificate(folder.path(), "client", "extendedKeyUsage=clientAuth", Some("authority"));
    let wants =
        Wants { tls: Some(server), clients: Some(authority.clone()), password: true, ..Wants::default() };
    let registry = registry!(&wants);
    let mut daemon = daemon!(absent);
    let certificates = daemon.folder().join("certs.d");
    let of_registry = certificates.join(registry.address().to_string());
    std::fs::create_dir_all(&of_registry).unwrap();
    // Another authority than the server's: who answers is not believed, though it is on loopback.
    let other = certificate(folder.path(), "other", "keyUsage=critical,keyCertSign", None).0;
    std::fs::copy(other, of_registry.join("ca.crt")).unwrap();
    daemon.restart_with(&["--registry-certs", text(&certificates)]);
    let name = registry.name("app:1");
    daemon.insula(&["pull", &name]).fails(1, &["certificate"]);
    std::fs::copy(authority, of_registry.join("ca.crt")).unwrap();
    std::fs::copy(client.0, of_registry.join("client.cert")).unwrap();
    std::fs::copy(client.1, of_registry.join("client.key")).unwrap();
    let address = registry.address().to_string();
    let login = ["login", "-u", "ann", "--password-stdin", &address];
    daemon.insula_with(&login, b"secret").shows(&["Login Succeeded"]);
    daemon.load(&image().docker_archive()).ok();
    daemon.insula(&["tag", "app:1", &name]).ok();
    daemon.insula(&["push", &name]).ok();
    daemon.insula(&["rmi", "app:1", &name]).ok();
    assert_eq!(daemon.insula(&[&ALONE[..], &[&name]].concat()).ok(), "hello");
}

#[test]
fn a_certificate_that_nobody_vouches_for_is_believed_when_asked_to() {
    let folder = tempfile::tempdir().unwrap();
    let server = certificate(folder.path(), "server", "subjectAltName=DNS:elsewhere.test", None);
    let registry = registry!(&Wants { tls: Some(server), ..Wants::default() });
    let daemon = daemon!(bare);
    daemon.load(&image().docker_archive()).ok();
    // On loopback nobody needs to be vouched for.
    let name = registry.name("app:1");
    daemon.insula(&["tag", "app:1", &name]).ok();
    daemon.insula(&["push", &name]).ok();
    // The same by an address that is no loopback's, though it leads there.
    let name = format!("0.0.0.0:{}/app:1", registry.address().port());
    daemon.insula(&["manifest", "inspect", &name]).fails(1, &["certificate"]);
    daemon.insula(&["pull", &name]).fails(1, &["certificate"]);
    daemon.insula(&["manifest", "inspect", "--insecure", &name]).shows(&["\"layers\"", "\"config\""]);
    // It was believed once.
    daemon.insula(&["manifest", "inspect", &name]).fails(1, &["certificate"]);
}

#[test]
fn credentials_are_kept_by_a_helper() {
    use std::os::unix::fs::PermissionsExt as _;

    let registry = registry!(&Wants { password: true, ..Wants::default() });
    let daemon = daemon!(bare);
    let folder = daemon.folder();
    let helper = folder.join("docker-credential-test");
    let kept = folder.join("kept");
    let script = format!(
        "#!/bin/sh\ncase $1 in\nstore) cat >{0};;\nerase) rm -f {0};;\n\
         get) cat {0} 2>/dev/null || {{ echo 'credentials not found in native keychain'; exit 1; }};;\nesac\n",
        kept.display()
    );
    std::fs::write(&helper, script).unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    let address = registry.address().to_string();
    let config = folder.join("docker");
    std::fs::create_dir(&config).unwrap();
    let document = json!({"credHelpers": {&address: "test"}, "detachKeys": "ctrl-x"});
    std::fs::write(config.join("config.json"), document.to_string()).unwrap();
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    let insula = |arguments: &[&str], input: &[u8]| {
        let mut command = daemon.command(arguments);
        Outcome::of(command.env("DOCKER_CONFIG", &config).env("PATH", &path), input)
    };
    insula(&["login", "-u", "ann", "--password-stdin", &address], b"secret").shows(&["Login Succeeded"]);
    assert!(std::fs::read_to_string(&kept).unwrap().contains("\"Secret\":\"secret\""));
    let file = std::fs::read_to_string(config.join("config.json")).unwrap();
    assert!(!file.contains("c2VjcmV0") && file.contains("detachKeys"), "{file}");
    insula(&["pull", &registry.name("app:1")], b"").fails(1, &["not found"]);
    insula(&["logout", &address], b"").shows(&["Removing login credentials"]);
    assert!(!kept.exists());
    insula(&["pull", &registry.name("app:1")], b"").fails(1, &["pull access denied"]);
}
