//! Contexts that the daemon fetches: repositories, archives and Dockerfiles at addresses.

use insula_tests::images::Layer;
use insula_tests::registry::Wants;
use insula_tests::{Outcome, daemon, registry, text};
use serde_json::json;

use crate::build::{build, context, gzip, run, serve};
use crate::git::{git, repository, serve as serve_git};

fn archive() -> Vec<u8> {
    Layer::default()
        .file("Dockerfile", 0o644, b"FROM busybox\nCOPY . /all/\n")
        .file("other/Df", 0o644, b"FROM busybox\nCOPY kept /kept\n")
        .file(".dockerignore", 0o644, b"left\n")
        .file("kept", 0o604, b"kept")
        .file("left", 0o644, b"left")
        .bytes()
}

#[test]
fn contexts_are_fetched() {
    let daemon = daemon!();
    let remote = |flags: &[&str], address: &str| {
        daemon.insula(&[&["build", "--network", "none", "-t", "made"], flags, &[address]].concat())
    };
    // An archive, whatever it is called and packed with.
    for file in [archive(), gzip(&archive())] {
        let address = format!("http://127.0.0.1:{}/file?token=Zk7", serve(file));
        let built = remote(&[], &address);
        assert!(built.ok().contains("Fetching the context http://127.0.0.1:"), "{built}");
        assert!(!built.stdout.contains("Zk7"), "{built}");
        assert_eq!(
            run(&daemon, "made", "ls -A /all; stat -c %a /all/kept"),
            ".dockerignore\nDockerfile\nkept\nother\n604"
        );
        remote(&["-f", "other/Df"], &address).ok();
        assert_eq!(run(&daemon, "made", "cat /kept"), "kept");
    }
    // A file is the Dockerfile.
    let port = serve(b"FROM busybox\nRUN echo alone > /x\n".to_vec());
    remote(&["-f", "ignored"], &format!("http://127.0.0.1:{port}/Containerfile")).ok();
    assert_eq!(run(&daemon, "made", "cat /x"), "alone");
    remote(&[], &format!("http://127.0.0.1:{port}/absent")).fails(1, &["/absent not found"]);
    // Docker's own request, and addresses that are none.
    let answer = daemon.api("POST", &format!("/build?t=api&remote=http://127.0.0.1:{port}/x"), "");
    assert!(answer.text().contains("Successfully tagged api:latest"), "{}", answer.text());
    for wrong in ["file:///etc", "/etc", "client-session", "-x"] {
        let answer = daemon.api("POST", &format!("/build?remote={wrong}"), "");
        assert_eq!(answer.status, 400, "{wrong}: {}", answer.text());
    }
    assert!(daemon.insula(&["images", "-q", "api"]).ok().len() > 8);
}

#[test]
fn repositories_are_contexts() {
    let daemon = daemon!();
    let served = daemon.folder().join("served");
    let app = served.join("app");
    let files = [
        ("Dockerfile", "FROM busybox\nCOPY . /all/\n"),
        ("sub/Dockerfile", "FROM busybox\nCOPY x /sub\n"),
        ("sub/x", "one"),
    ];
    repository(&app, &files, None);
    git(&app, &["tag", "v1"]);
    std::fs::write(app.join("sub/x"), "two").unwrap();
    std::os::unix::fs::symlink("/etc", app.join("out")).unwrap();
    git(&app, &["add", "--all"]);
    git(&app, &["commit", "--quiet", "-m", "second"]);
    let from = format!("git://127.0.0.1:{}/app", serve_git(&served));
    let remote = |flags: &[&str], address: &str| {
        daemon.insula(&[&["build", "--network", "none", "-t", "made"], flags, &[address]].concat())
    };
    remote(&[], &from).ok();
    assert_eq!(run(&daemon, "made", "ls -A /all; cat /all/sub/x"), "Dockerfile\nout\nsub\ntwo");
    remote(&[], &format!("{from}#v1:sub")).ok();
    assert_eq!(run(&daemon, "made", "cat /sub"), "one");
    remote(&["--build-arg", "BUILDKIT_CONTEXT_KEEP_GIT_DIR=1"], &from).ok();
    assert_eq!(run(&daemon, "made", "ls -d /all/.git/HEAD"), "/all/.git/HEAD");
    // No folder of it leads elsewhere.
    for (address, words) in [
        (format!("{from}#main:out"), "out is no folder of the repository"),
        (format!("{from}#main:../.."), "no folder of the repository"),
        (format!("{from}#nosuch"), "nosuch"),
        ("git@127.0.0.1:x".to_owned(), "by ssh are not fetched"),
    ] {
        remote(&[], &address).fails(1, &[words]);
    }

    // Under names of their own, beside a folder.
    let text =
        "FROM busybox\nCOPY --from=app sub/x /x\nCOPY --from=files kept /kept\nCOPY --from=one file /file\n";
    let folder = context(&daemon, "context", &[("Dockerfile", text)]);
    let app_flag = format!("app={from}#v1");
    let files_flag = format!("files=http://127.0.0.1:{}/x.tar", serve(archive()));
    let one_flag = format!("one=http://127.0.0.1:{}/file", serve(b"file".to_vec()));
    let flags = [
        "-t",
        "made",
        "--build-context",
        &app_flag,
        "--build-context",
        &files_flag,
        "--build-context",
        &one_flag,
    ];
    build(&daemon, &folder, &flags).ok();
    assert_eq!(run(&daemon, "made", "cat /x /kept /file"), "onekeptfile");
    assert_eq!(build(&daemon, &folder, &flags).ok().matches("Using cache").count(), 3);
}

#[test]
fn credentials_go_with_contexts_that_are_not_seen_here() {
    let registry = registry!(&Wants { password: true, ..Wants::default() });
    let daemon = daemon!();
    let name = registry.name("private/base:1");
    let config = daemon.folder().join("docker");
    std::fs::create_dir(&config).unwrap();
    let document = |auths: &serde_json::Value| {
        std::fs::write(config.join("config.json"), json!({"auths": auths}).to_string()).unwrap();
    };
    let insula = |arguments: &[&str], input: &[u8]| {
        Outcome::of(daemon.command(arguments).env("DOCKER_CONFIG", &config), input)
    };
    // YW5uOnNlY3JldA== is ann:secret.
    let known = json!({registry.address().to_string(): {"auth": "YW5uOnNlY3JldA=="}});
    document(&known);
    insula(&["tag", "busybox", &name], b"").ok();
    insula(&["push", &name], b"").ok();
    let file = format!("FROM {name}\nLABEL a=b\n");
    let archive = Layer::default().file("Dockerfile", 0o644, file.as_bytes()).bytes();
    let address = format!("http://127.0.0.1:{}/Dockerfile", serve(file.clone().into_bytes()));
    let folder = context(&daemon, "folder", &[("Dockerfile", &file)]);
    let ways: [(&str, &[u8]); 4] =
        [(&address, b""), ("-", &archive), ("-", file.as_bytes()), (text(&folder), b"")];
    for (path, input) in ways {
        let build = ["build", "--pull", "--network", "none", "-q", "-t", "made", path];
        document(&json!({"other.test": {"auth": "YTpi"}}));
        insula(&build, input).fails(1, &["access denied"]);
        document(&known);
        insula(&build, input).ok();
    }
}
