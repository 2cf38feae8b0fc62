//! Repositories as sources of `ADD`.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use insula_tests::daemon;

use crate::build::{build, context, run};

/// Runs git in a folder; returns what it tells.
pub(crate) fn git(folder: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("git");
    command.args(["-c", "init.defaultBranch=main"]).args(arguments).current_dir(folder);
    for name in ["GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"] {
        command.env(name, "test@example.org");
    }
    for name in ["GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE"] {
        command.env(name, "1000000000 +0000");
    }
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A repository of some files, all in one commit; returns the commit.
pub(crate) fn repository(folder: &Path, files: &[(&str, &str)], module: Option<(&str, &str)>) -> String {
    std::fs::create_dir_all(folder).unwrap();
    git(folder, &["init", "--quiet"]);
    for (name, content) in files {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    git(folder, &["add", "--all"]);
    if let Some((path, commit)) = module {
        git(folder, &["update-index", "--add", "--cacheinfo", &format!("160000,{commit},{path}")]);
    }
    git(folder, &["commit", "--quiet", "-m", "first"]);
    git(folder, &["rev-parse", "HEAD"])
}

/// Serves the repositories below a folder until the test ends.
pub(crate) fn serve(folder: &Path) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let base = format!("--base-path={}", folder.to_str().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let ends = (stream.try_clone().unwrap(), stream);
            let mut command = Command::new("git");
            command.args(["daemon", "--inetd", "--export-all", &base]).stderr(Stdio::null());
            command.stdin(OwnedFd::from(ends.0)).stdout(OwnedFd::from(ends.1));
            let mut serving = command.spawn().unwrap();
            std::thread::spawn(move || serving.wait());
        }
    });
    port
}

const MODULES: &str = "[submodule \"x\"]\n\tpath = deps/lib\n\turl = ../lib\n";

#[test]
fn repositories_are_added() {
    let daemon = daemon!();
    let served = daemon.folder().join("served");
    let lib = repository(&served.join("lib"), &[("lib.c", "lib")], None);
    let app = served.join("app");
    let files = [
        ("README", "one"),
        ("bin/run", "run"),
        ("v.id", "$Format:%H$"),
        // These would change what comes out, or run programs.
        (".gitattributes", "README export-ignore\n*.id export-subst\n* filter=evil\n"),
        (".gitmodules", MODULES),
    ];
    let first = repository(&app, &files, Some(("deps/lib", &lib)));
    git(&app, &["tag", "v1"]);
    std::fs::write(app.join("README"), "two").unwrap();
    git(&app, &["commit", "--quiet", "-m", "second", "README"]);
    let hostile = [("x", "x"), (".gitmodules", "[submodule \"x\"]\n\tpath = m\n\turl = file:///etc\n")];
    repository(&served.join("hostile"), &hostile, Some(("m", &lib)));
    let port = serve(&served);
    let from = format!("git://127.0.0.1:{port}");
    let text = format!(
        "FROM busybox\n\
         ADD {from}/app#v1 /v1/\n\
         ADD --keep-git-dir=true {from}/app /main/\n\
         ADD --chown=5:6 {from}/app#main:bin /sub\n\
         ADD --checksum={first} {from}/app#{first} /sum/\n"
    );
    let folder = context(&daemon, "context", &[("Dockerfile", &text)]);
    build(&daemon, &folder, &["-t", "made"]).ok();
    let script = "cd /; ls -A v1; stat -c '%a %u %g %Y %n' v1/README v1/deps/lib/lib.c sub/run; cat v1/README \
                  v1/v.id v1/deps/lib/lib.c; echo; cat main/README; ls -d main/.git/HEAD main/deps/lib/.git; \
                  cat main/.git/HEAD; cmp v1/README sum/README && echo same; ls sub";
    let second = git(&app, &["rev-parse", "HEAD"]);
    assert_eq!(
        run(&daemon, "made", script).lines().collect::<Vec<_>>(),
        [
            ".gitattributes",
            ".gitmodules",
            "README",
            "bin",
            "deps",
            "v.id",
            "644 0 0 1000000000 v1/README",
            "644 0 0 1000000000 v1/deps/lib/lib.c",
            "644 5 6 1000000000 sub/run",
            "one$Format:%H$lib",
            "twomain/.git/HEAD",
            "main/deps/lib/.git",
            &second,
            "same",
            "run",
        ]
    );
    // The same commit is the same layer, and another one is not.
    let one = context(&daemon, "one", &[("Dockerfile", &format!("FROM busybox\nADD {from}/app /x\n"))]);
    let cached = || build(&daemon, &one, &[]).ok().matches("Using cache").count();
    assert_eq!((cached(), cached()), (0, 1));
    std::fs::write(app.join("README"), "three").unwrap();
    git(&app, &["commit", "--quiet", "-m", "third", "README"]);
    assert_eq!(cached(), 0);
    let refused = |line: &str, words: &[&str]| {
        let folder = context(&daemon, "wrong", &[("Dockerfile", &format!("FROM busybox\n{line}\n"))]);
        build(&daemon, &folder, &[]).fails(1, words);
    };
    refused(&format!("ADD {from}/hostile /x"), &["file:///etc is not an address"]);
    refused(&format!("ADD --checksum={lib} {from}/app#v1 /x"), &[&first, "is expected"]);
    refused(&format!("ADD {from}/app#v1:absent /x"), &["absent"]);
    refused(&format!("ADD {from}/app#absent /x"), &["Dockerfile:2", "absent"]);
    refused(&format!("ADD {from}/nosuch /x"), &["Dockerfile:2", "nosuch"]);
    refused("ADD git://127.0.0.1:1/x /x", &["127.0.0.1"]);
}
