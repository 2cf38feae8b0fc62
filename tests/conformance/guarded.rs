//! A daemon that is open to others: TLS, authorization, policy.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use insula_tests::clients::client_files;
use insula_tests::{Outcome, daemon, docker, holds, own_loopback, text};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};

/// An authority with its certificate in a PEM file.
fn authority(folder: &Path, name: &str) -> Issuer<'static, KeyPair> {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    std::fs::write(folder.join(format!("{name}.pem")), params.self_signed(&key).unwrap().pem()).unwrap();
    Issuer::new(params, key)
}

/// A certificate with its key; the last year that it is valid in.
fn certificate(
    folder: &Path,
    issuer: &Issuer<'_, KeyPair>,
    name: &str,
    purpose: ExtendedKeyUsagePurpose,
    year: i32,
) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![own_loopback()]).unwrap();
    params.extended_key_usages = vec![purpose];
    params.not_before = date_time_ymd(2001, 1, 1);
    params.not_after = date_time_ymd(year, 12, 31);
    let certificate = params.signed_by(&key, issuer).unwrap();
    std::fs::write(folder.join(format!("{name}.pem")), certificate.pem()).unwrap();
    std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).unwrap();
}

/// Two authorities, and certificates of a server and of clients, good ones and others.
fn certificates(folder: &Path) {
    use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
    let (own, other) = (authority(folder, "ca"), authority(folder, "other-ca"));
    certificate(folder, &own, "server", ServerAuth, 2990);
    certificate(folder, &own, "client", ClientAuth, 2990);
    certificate(folder, &own, "expired", ClientAuth, 2020);
    certificate(folder, &own, "wrong-purpose", ServerAuth, 2990);
    certificate(folder, &other, "stranger", ClientAuth, 2990);
}

/// Docker's command line over TCP: what it trusts, and the certificate that it has.
struct OverTls<'a> {
    program: &'a Path,
    address: &'a str,
    folder: &'a Path,
}

impl OverTls<'_> {
    fn command(&self, trusted: &str, own: Option<&str>, arguments: &[&str]) -> Command {
        let file = |name: &str, kind: &str| self.folder.join(format!("{name}.{kind}"));
        let mut command = Command::new(self.program);
        command.env("DOCKER_CONFIG", self.folder).env_remove("DOCKER_CONTEXT").env_remove("DOCKER_HOST");
        command.arg("-H").arg(format!("tcp://{}", self.address));
        command.arg("--tlscacert").arg(file(trusted, "pem"));
        if let Some(own) = own {
            command.arg("--tlscert").arg(file(own, "pem")).arg("--tlskey").arg(file(own, "key"));
        }
        command.arg("--tlsverify").args(arguments);
        command
    }
}

#[test]
fn tcp_is_for_clients_with_a_certificate() {
    let mut daemon = daemon!();
    let Some(program) = docker() else { return insula_tests::skip("root", "docker.io is missing") };
    let folder = daemon.folder();
    certificates(&folder);
    let address = format!("{}:2376", own_loopback());
    assert_eq!(daemon.stop(), Some(0));
    let file = |name: &str| format!("{:?}", text(&folder.join(name)));
    daemon.restart_with_config(&format!(
        "hosts = [\"unix://{}\", \"tcp://{address}\"]\ntlscacert = {}\ntlscert = {}\ntlskey = {}\n",
        daemon.instance().socket().display(),
        file("ca.pem"),
        file("server.pem"),
        file("server.key")
    ));
    let over = OverTls { program: &program, address: &address, folder: &folder };
    let run = ["run", "-i", "--rm", "--network", "none", "busybox", "sh", "-c", "cat; exit 3"];
    let said = Outcome::of(&mut over.command("ca", Some("client"), &run), b"through");
    assert_eq!((said.code, said.stdout.as_str()), (3, "through"), "{said}");
    // Without a certificate, with another authority's, an old one, a server's: nobody gets in.
    for own in [None, Some("stranger"), Some("expired"), Some("wrong-purpose")] {
        let refused = Outcome::of(&mut over.command("ca", own, &["create", "busybox"]), b"");
        assert_ne!(refused.code, 0, "{own:?}: {refused}");
        assert!(refused.stderr.contains("tls:"), "{own:?}: {refused}");
    }
    // A client that trusts another authority does not speak to this daemon.
    let refused = Outcome::of(&mut over.command("other-ca", Some("client"), &["ps"]), b"");
    assert_ne!(refused.code, 0, "{refused}");
    assert!(refused.stderr.contains("x509"), "{refused}");
    assert_eq!(daemon.insula(&["ps", "-aq"]).ok(), "");
    let mut plain = Command::new(&program);
    plain.arg("-H").arg(format!("tcp://{address}")).arg("ps").env_remove("DOCKER_HOST");
    assert_ne!(Outcome::of(&mut plain, b"").code, 0);
}

#[test]
fn what_gives_the_host_away_can_be_forbidden() {
    let mut daemon = daemon!();
    let folder = daemon.folder();
    let allowed = folder.join("allowed");
    std::fs::create_dir_all(&allowed).unwrap();
    std::os::unix::fs::symlink("/", allowed.join("out")).unwrap();
    assert_eq!(daemon.stop(), Some(0));
    daemon.restart_with_config(&format!(
        "forbid = [\"privileged\", \"host-root\", \"host-namespaces\", \"devices\", \"unconfined\"]\nbind-below = [{:?}]\n",
        text(&allowed)
    ));
    let Some(program) = docker() else { return insula_tests::skip("root", "docker.io is missing") };
    let host = format!("unix://{}", daemon.instance().socket().display());
    let docker = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.env("DOCKER_HOST", &host).env("DOCKER_CONFIG", &folder).env_remove("DOCKER_CONTEXT");
        Outcome::of(command.args(arguments), b"")
    };
    let run = |flags: &[&str]| daemon.insula(&[&["run", "--rm"], flags, &["busybox", "true"]].concat());
    let out = format!("{}:/m", allowed.join("out").display());
    for flags in [
        &["--privileged"][..],
        &["-v", "/:/m"],
        &["-v", "/etc:/m:ro"],
        &["-v", "/var/run:/m"],
        &["-v", &out],
        &["--network", "host"],
        &["--pid", "host"],
        &["--ipc", "host"],
        &["--uts", "host"],
        &["--userns", "host"],
        &["--mount", "type=bind,source=/,target=/m"],
        &["--device", "/dev/null"],
        &["--security-opt", "seccomp=unconfined"],
    ] {
        run(flags).fails(125, &["forbidden by the policy"]);
        docker(&[&["run", "--rm"], flags, &["busybox", "true"]].concat())
            .fails(125, &["forbidden by the policy"]);
    }
    daemon.insula(&["run", "--rm", "host", "true"]).fails(125, &["forbidden by the policy"]);
    let inside = format!("{}:/m", allowed.display());
    run(&["--network", "none", "-v", &inside]).ok();
    let id = daemon.sleeper(&["--network", "none"]);
    daemon.insula(&["exec", "--privileged", &id, "true"]).fails(1, &["forbidden by the policy"]);
    docker(&["exec", "--privileged", &id, "true"]).fails(1, &["forbidden by the policy"]);
    daemon.insula(&["exec", &id, "true"]).ok();
}

/// A plugin in a process of its own.
struct Guard {
    child: Child,
    folder: PathBuf,
}

impl Guard {
    fn start(folder: &Path) -> Self {
        let file = |name: &str| folder.join(name);
        std::fs::write(file("mode"), "allow").unwrap();
        let mut command = Command::new("/usr/bin/python3");
        command.arg(client_files().join("guard.py")).args([file("guard.sock"), file("mode"), file("log")]);
        let child = command.spawn().unwrap();
        let guard = Self { child, folder: folder.to_owned() };
        holds("the plugin listens", || UnixStream::connect(file("guard.sock")).is_ok());
        guard
    }

    /// Whole at once: it is read at any time.
    fn turn(&self, mode: &str) {
        std::fs::write(self.folder.join("mode.new"), mode).unwrap();
        std::fs::rename(self.folder.join("mode.new"), self.folder.join("mode")).unwrap();
    }

    /// What it was asked.
    fn asked(&self) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        // The last line may be on its way.
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_plugin_is_asked_and_nothing_passes_without_it() {
    let mut daemon = daemon!();
    let Some(program) = docker() else { return insula_tests::skip("root", "docker.io is missing") };
    let folder = daemon.folder();
    let guard = Guard::start(&folder);
    assert_eq!(daemon.stop(), Some(0));
    daemon.restart_with(&["--authorization", text(&folder.join("guard.sock"))]);
    let host = format!("unix://{}", daemon.instance().socket().display());
    let command = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.env("DOCKER_HOST", &host).env("DOCKER_CONFIG", &folder).env_remove("DOCKER_CONTEXT");
        command.args(arguments);
        command
    };
    let docker = |arguments: &[&str]| Outcome::of(&mut command(arguments), b"");
    let create = || docker(&["create", "--network", "none", "busybox", "true"]);
    let run = ["run", "--rm", "--network", "none", "busybox", "echo", "passed"];
    assert_eq!(docker(&run).ok(), "passed");
    let asked = guard.asked();
    let created = asked.iter().find(|one| {
        one["Call"] == "AuthZReq" && one["RequestUri"].as_str().unwrap().contains("/containers/create")
    });
    let body = STANDARD.decode(created.unwrap()["RequestBody"].as_str().unwrap()).unwrap();
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["Image"], "busybox");
    assert!(asked.iter().any(|one| one["Call"] == "AuthZRes" && one["ResponseStatusCode"] == 201));

    guard.turn("deny");
    create().fails(1, &["authorization denied by plugin guard: no creations"]);
    assert_eq!(docker(&["ps", "-aq"]).ok(), "");
    guard.turn("deny-answers");
    docker(&["ps"]).fails(1, &["authorization denied by plugin guard: no answers"]);
    for mode in ["rubbish", "no-json", "ill-typed", "status", "fails"] {
        guard.turn(mode);
        create().fails(1, &["plugin guard failed with error"]);
    }
    guard.turn("no-verdict");
    create().fails(1, &["authorization denied by plugin guard"]);

    // One that hangs holds the request up, and refuses it when it dies of that.
    guard.turn("hang");
    let before = guard.asked().len();
    let waiting =
        command(&["create", "busybox"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    holds("it was asked", || guard.asked().len() > before);
    drop(guard);
    let refused = waiting.wait_with_output().unwrap();
    assert!(!refused.status.success(), "{refused:?}");
    // And while there is none, nothing passes.
    create().fails(1, &["plugin guard failed with error"]);
    let guard = Guard::start(&folder);
    assert_eq!(docker(&["ps", "-aq"]).ok(), "");
    guard.turn("dies");
    create().fails(1, &["plugin guard failed with error"]);
    drop(guard);
    let _guard = Guard::start(&folder);
    assert_eq!(docker(&run).ok(), "passed");
    // It goes on without one: its end is not the plugin's to prevent.
    assert_eq!(daemon.stop(), Some(0));
    daemon.restart();
}

#[test]
fn a_configuration_is_checked_before_it_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("insulad.toml");
    let check = |configuration: &str| {
        std::fs::write(&file, configuration).unwrap();
        let mut command = Command::new(insula_tests::program("insulad"));
        Outcome::of(command.arg("--config").arg(&file).arg("--check"), b"")
    };
    let good = "forbid = [\"privileged\"]\nbind-below = [\"/srv\"]\nauthorization = [\"guard\"]\n";
    assert_eq!(check(good).ok(), "the configuration is valid");
    check("forbid = [\"fun\"]").fails(1, &["\"fun\"", "cannot be forbidden"]);
    check("hosts = [\"tcp://127.0.0.1:2375\"]").fails(1, &["TLS"]);
}
