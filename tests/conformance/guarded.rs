//! A daemon that is open to others: TLS, authorization, policy.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use insula_tests::{Outcome, daemon, docker, text};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

/// An authority, a server's and a client's certificate in PEM files.
fn certificates(folder: &Path) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).unwrap();
    let issuer = Issuer::new(params, key);
    std::fs::write(folder.join("ca.pem"), authority.pem()).unwrap();
    for (name, purpose) in
        [("server", ExtendedKeyUsagePurpose::ServerAuth), ("client", ExtendedKeyUsagePurpose::ClientAuth)]
    {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.extended_key_usages = vec![purpose];
        let certificate = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(folder.join(format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

/// Docker's command line over TCP, with a certificate or without.
fn over_tls(program: &PathBuf, port: u16, folder: &Path, known: bool, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.env("DOCKER_CONFIG", folder).env_remove("DOCKER_CONTEXT").env_remove("DOCKER_HOST");
    command.arg("-H").arg(format!("tcp://127.0.0.1:{port}")).arg("--tlscacert").arg(folder.join("ca.pem"));
    if known {
        command
            .arg("--tlscert")
            .arg(folder.join("client.pem"))
            .arg("--tlskey")
            .arg(folder.join("client.key"));
    }
    command.arg("--tlsverify").args(arguments);
    command
}

#[test]
fn tcp_is_for_clients_with_a_certificate() {
    let mut daemon = daemon!();
    let Some(program) = docker() else { return insula_tests::skip("root", "docker.io is missing") };
    let folder = daemon.folder();
    certificates(&folder);
    // A port that is free now; nobody else asks for it in between but by chance.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    assert_eq!(daemon.stop(), Some(0));
    let file = |name: &str| format!("{:?}", text(&folder.join(name)));
    daemon.restart_with_config(&format!(
        "hosts = [\"unix://{}\", \"tcp://127.0.0.1:{port}\"]\ntlscacert = {}\ntlscert = {}\ntlskey = {}\n",
        daemon.instance().socket().display(),
        file("ca.pem"),
        file("server.pem"),
        file("server.key")
    ));
    let run = ["run", "-i", "--rm", "--network", "none", "busybox", "sh", "-c", "cat; exit 3"];
    let said = Outcome::of(&mut over_tls(&program, port, &folder, true, &run), b"through");
    assert_eq!((said.code, said.stdout.as_str()), (3, "through"), "{said}");
    let stranger = Outcome::of(&mut over_tls(&program, port, &folder, false, &["ps"]), b"");
    assert_ne!(stranger.code, 0, "{stranger}");
    let mut plain = Command::new(&program);
    plain.arg("-H").arg(format!("tcp://127.0.0.1:{port}")).arg("ps").env_remove("DOCKER_HOST");
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
        &["--device", "/dev/null"],
        &["--security-opt", "seccomp=unconfined"],
    ] {
        run(flags).fails(125, &["forbidden by the policy"]);
    }
    daemon.insula(&["run", "--rm", "host", "true"]).fails(125, &["forbidden by the policy"]);
    let inside = format!("{}:/m", allowed.display());
    run(&["--network", "none", "-v", &inside]).ok();
    let id = daemon.sleeper(&["--network", "none"]);
    daemon.insula(&["exec", "--privileged", &id, "true"]).fails(1, &["forbidden by the policy"]);
    daemon.insula(&["exec", &id, "true"]).ok();
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
