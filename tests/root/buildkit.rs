//! Builds of clients that speak BuildKit's protocol: Docker's command line before version 23, which has it built in.

use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use insula_tests::images::{Layer, debian};
use insula_tests::{Daemon, Outcome, daemon, eventually, text};

use crate::build::{context, id, run};

/// The client with BuildKit built in; later ones need a plugin.
fn client() -> Option<PathBuf> {
    insula_tests::dockers().into_iter().find(|program| {
        let told = Outcome::of(Command::new(program).arg("--version"), b"");
        let version =
            told.stdout.split_whitespace().nth(2).and_then(|text| text.split('.').next()?.parse().ok());
        version.is_some_and(|major: u32| (18..23).contains(&major))
    })
}

struct Docker {
    program: PathBuf,
    socket: String,
    config: PathBuf,
}

impl Docker {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .env("DOCKER_HOST", &self.socket)
            .env("DOCKER_BUILDKIT", "1")
            .env("DOCKER_CONFIG", &self.config);
        command.env_remove("DOCKER_CONTEXT").args(["build", "--network", "none", "--progress", "plain"]);
        command.args(arguments);
        command
    }

    fn build(&self, arguments: &[&str]) -> Outcome {
        Outcome::of(&mut self.command(arguments), b"")
    }

    fn build_with(&self, arguments: &[&str], input: &[u8]) -> Outcome {
        Outcome::of(&mut self.command(arguments), input)
    }
}

fn docker(daemon: &Daemon) -> Option<Docker> {
    let Some(program) = client() else {
        insula_tests::skip("docker", "docker's command line of a version from 18.09 to 22 is missing");
        return None;
    };
    let socket = format!("unix://{}", daemon.instance().socket().display());
    Some(Docker { program, socket, config: daemon.folder() })
}

const FILES: &str = "\
# syntax=docker/dockerfile:1
FROM busybox AS one
RUN echo made; echo one > /one
FROM busybox
COPY --from=one /one /one
COPY . /all/
RUN cd /all; find . | sort > /list; stat -c '%a %u %n' run big > /modes; sha256sum < big > /sum; readlink link > /link
";

#[test]
fn files_of_a_client_become_an_image() {
    let daemon = daemon!();
    let Some(docker) = docker(&daemon) else { return };
    // More small files than are asked for ahead, one that is larger than what may come ahead, and empty ones.
    let many: Vec<String> = (0..300).map(|number| format!("many/{}/{number}", number % 7)).collect();
    let mut files =
        vec![("Dockerfile", FILES), (".dockerignore", "/Dockerfile\n*.o\n!kept.o\nsub/\n"), ("run", "x")];
    files.extend([("a.o", ""), ("kept.o", "kept"), ("sub/x", "x"), ("empty", ""), ("also/ignored.o", "")]);
    files.extend(many.iter().map(|name| (name.as_str(), name.as_str())));
    let folder = context(&daemon, "context", &files);
    let big: Vec<u8> = (0..6_000_000u32).flat_map(|number| [number as u8, (number >> 9) as u8]).collect();
    std::fs::write(folder.join("big"), &big).unwrap();
    std::fs::set_permissions(folder.join("run"), std::fs::Permissions::from_mode(0o4750)).unwrap();
    symlink("/nowhere/../x", folder.join("link")).unwrap();
    let iid = daemon.folder().join("iid");
    let place = text(&folder);
    let built = docker.build(&["-t", "made", "--iidfile", text(&iid), place]);
    built.exits(0);
    for words in ["[stage-1 3/4] COPY . /all/", "[one 2/2] RUN echo made", "made\n"] {
        assert!(built.stderr.contains(words), "{words}: {built}");
    }
    assert_eq!(std::fs::read_to_string(iid).unwrap(), id(&daemon, "made"));
    let mut names: Vec<String> =
        ["", "/.dockerignore", "/also", "/also/ignored.o", "/big", "/empty", "/kept.o"]
            .into_iter()
            .chain(["/link", "/many", "/run"])
            .map(|name| format!(".{name}"))
            .chain((0..7).map(|number| format!("./many/{number}")))
            .chain(many.iter().map(|name| format!("./{name}")))
            .collect();
    names.sort();
    assert_eq!(run(&daemon, "made", "cat /list").lines().collect::<Vec<_>>(), names);
    let digest = insula_tests::images::digest(&big);
    let seen = run(&daemon, "made", "cat /one /modes /sum /link; cat /all/many/6/*");
    let contents = many.iter().filter(|name| name.starts_with("many/6/")).cloned();
    let mut contents: Vec<String> = contents.collect();
    contents.sort();
    let expected = format!(
        "one\n4750 0 run\n644 0 big\n{}  -\n/nowhere/../x\n{}",
        digest.trim_start_matches("sha256:"),
        contents.concat()
    );
    assert_eq!(seen, expected);

    // What did not change is not done again; the id is all that is shown quietly.
    let again = docker.build(&["-t", "made", place]);
    again.exits(0);
    assert_eq!(again.stderr.matches("CACHED").count(), 4, "{again}");
    let quiet = docker.build(&["-q", place]);
    assert_eq!((quiet.ok(), quiet.stderr.as_str()), (id(&daemon, "made").as_str(), ""));

    // A Dockerfile that is elsewhere, with patterns of its own.
    let beside = context(
        &daemon,
        "beside",
        &[("Other", "FROM busybox\nCOPY . /all/\n"), ("Other.dockerignore", "many\n")],
    );
    docker.build(&["-t", "other", "-f", text(&beside.join("Other")), place]).exits(0);
    assert_eq!(
        run(&daemon, "other", "ls -d /all/sub /all/a.o; ls /all/many 2>&1 | wc -l"),
        "/all/a.o\n/all/sub\n1"
    );
}

#[test]
fn what_goes_wrong_is_told_to_the_client() {
    let daemon = daemon!();
    let Some(docker) = docker(&daemon) else { return };
    let build = |text: &str, flags: &[&str]| {
        let folder = context(&daemon, "wrong", &[("Dockerfile", text)]);
        docker.build(&[flags, &[folder.to_str().unwrap()]].concat())
    };
    build("FROM busybox\nRUN echo before; exit 3\n", &[])
        .fails(1, &["before", "returned a non-zero code: 3"]);
    build("FROM busybox\nCPOY a b\n", &[]).fails(1, &["did you mean COPY"]);
    build("FROM busybox\nCOPY absent /\n", &[]).fails(1, &["absent does not exist"]);
    build("FROM busybox\n", &["--target", "nosuch"])
        .fails(1, &["target stage \"nosuch\" could not be found"]);
    build("FROM busybox\n", &["-f", "/nosuch/Dockerfile"]).fails(1, &[]);
    let out = daemon.folder().join("out");
    let oci = format!("type=oci,dest={}", out.to_str().unwrap());
    build("FROM busybox\n", &["-o", &oci]).fails(1, &["output type oci is not available"]);
    assert_eq!(daemon.insula(&["ps", "-aq"]).ok(), "");
    // Without a session, or with somebody else's words.
    let answer = daemon.api("POST", "/build?version=2&session=nosuch&buildid=a", "");
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert_eq!(daemon.api("POST", "/session", "").status, 400);
    assert_eq!(daemon.api("POST", "/build/cancel?id=nosuch", "").status, 200);
}

#[test]
fn a_build_ends_with_its_client() {
    let daemon = daemon!();
    let Some(docker) = docker(&daemon) else { return };
    let folder = context(&daemon, "context", &[("Dockerfile", "FROM busybox\nRUN sleep 100000\n")]);
    let mut command = docker.command(&[text(&folder)]);
    let mut client = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually("the command runs", || (!daemon.insula(&["ps", "-q"]).ok().is_empty()).then_some(()));
    client.kill().unwrap();
    client.wait().unwrap();
    eventually("it is gone", || daemon.insula(&["ps", "-aq"]).ok().is_empty().then_some(()));
}

const PUT_OUT: &str = "\
FROM busybox AS made
WORKDIR /out/sub.d
WORKDIR /out/sub
RUN head -c 300000 /dev/zero | tr '\\0' x > /out/big && ln -s ../nowhere link && mkfifo /out/fifo && : > /out/empty && \\
    ln /out/big same && ln /out/big ../sub.d/same && chmod 4640 /out/big && chmod 711 . && touch -d @1000000000 /out/big
FROM scratch
COPY --from=made /out /
";

const SECRETS: &str = "\
FROM busybox
RUN --mount=type=secret,id=word --mount=type=secret,id=absent cat /run/secrets/* | wc -c > /seen
RUN test ! -e /run/secrets/word
";

#[test]
fn secrets_archives_and_outputs_go_through_a_session() {
    let daemon = daemon!();
    let Some(docker) = docker(&daemon) else { return };
    let folder = context(&daemon, "context", &[("Dockerfile", SECRETS)]);
    let word = daemon.folder().join("word");
    std::fs::write(&word, "Zk9-secret").unwrap();
    let secret = format!("id=word,src={}", text(&word));
    let built = docker.build(&["-t", "made", "--secret", &secret, text(&folder)]);
    built.exits(0);
    assert!(!built.stderr.contains("Zk9"), "{built}");
    assert_eq!(run(&daemon, "made", "cat /seen"), "10");
    let required = "FROM busybox\nRUN --mount=type=secret,id=absent,required true\n";
    let required = context(&daemon, "required", &[("Dockerfile", required)]);
    docker.build(&[text(&required)]).fails(1, &["secret absent: not found"]);

    // Files of the last stage, as an archive.
    let out = daemon.folder().join("out.tar");
    let files = "FROM busybox AS made\nRUN echo x > /x\nFROM scratch\nCOPY --from=made /x /y/x\n";
    let files = context(&daemon, "files", &[("Dockerfile", files)]);
    docker.build(&["-o", &format!("type=tar,dest={}", text(&out)), text(&files)]).exits(0);
    let mut archive = tar::Archive::new(std::fs::File::open(out).unwrap());
    let names = archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string());
    assert_eq!(names.collect::<Vec<_>>(), ["y/", "y/x"]);

    // The same, one by one into a folder: kinds, modes, times and names as they are.
    let out = daemon.folder().join("out");
    docker.build(&["-o", text(&out), text(&context(&daemon, "local", &[("Dockerfile", PUT_OUT)]))]).exits(0);
    let at = |name: &str| std::fs::symlink_metadata(out.join(name)).unwrap();
    assert_eq!(std::fs::read(out.join("big")).unwrap(), vec![b'x'; 300_000]);
    assert_eq!((at("big").mode() & 0o7777, at("big").mtime()), (0o4640, 1_000_000_000));
    assert_eq!((at("big").ino(), at("sub.d/same").ino()), (at("sub/same").ino(), at("sub/same").ino()));
    assert_eq!((at("sub").mode() & 0o7777, at("empty").len()), (0o711, 0));
    assert_eq!(out.join("sub/link").read_link().unwrap(), Path::new("../nowhere"));
    assert!(at("fifo").file_type().is_fifo());
    assert_eq!(out.read_dir().unwrap().count(), 5);
    let failed = context(&daemon, "failed", &[("Dockerfile", "FROM busybox\nRUN exit 3\n")]);
    docker.build(&["-o", text(&out), text(&failed)]).fails(1, &["non-zero code: 3"]);

    // A context that is an archive, and a Dockerfile without one.
    let sent = Layer::default()
        .file("Df", 0o644, b"FROM busybox\nCOPY sent /sent\n")
        .file("sent", 0o604, b"through standard input")
        .bytes();
    docker.build_with(&["-t", "sent", "-f", "Df", "-"], &sent).exits(0);
    assert_eq!(run(&daemon, "sent", "cat /sent"), "through standard input");
    docker.build_with(&["-t", "alone", "-"], b"FROM busybox\nRUN echo alone > /x\n").exits(0);
    assert_eq!(run(&daemon, "alone", "cat /x"), "alone");
}

/// What an agent answers that has no keys.
const NO_KEYS: [u8; 9] = [0, 0, 0, 5, 12, 0, 0, 0, 0];

const ASKS: &str = "\
FROM debian
RUN --mount=type=ssh for n in 1 2 3; do perl -MIO::Socket::UNIX -e \
 'my $s = IO::Socket::UNIX->new(Peer => $ENV{SSH_AUTH_SOCK}) or die; \
 $s->syswrite(pack(q(NC), 1, 11)); my $a = q(); \
 while (length($a) < 9) { $s->sysread($a, 9 - length($a), length($a)) or die } \
 print unpack(q(H*), $a), qq(\\n);'; done > /seen
";

#[test]
fn agents_of_a_client_are_asked() {
    let daemon = daemon!();
    let Some(docker) = docker(&daemon) else { return };
    daemon.insula(&["import", text(&debian(&[])), "debian"]).ok();
    let place = daemon.folder().join("agent");
    answer_without_keys(&place);
    let folder = context(&daemon, "context", &[("Dockerfile", ASKS)]);
    docker.build(&["-t", "made", "--ssh", &format!("default={}", text(&place)), text(&folder)]).exits(0);
    assert_eq!(run(&daemon, "made", "cat /seen"), ["000000050c00000000"; 3].join("\n"));
    let required = "FROM debian\nRUN --mount=type=ssh,required true\n";
    let required = context(&daemon, "required", &[("Dockerfile", required)]);
    docker.build(&[text(&required)]).fails(1, &["there is no agent default"]);
}

fn answer_without_keys(path: &Path) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                // A question of five bytes may come in pieces.
                let mut asked = [0; 5];
                while stream.read_exact(&mut asked).is_ok() {
                    // A client that has heard enough.
                    let _ = stream.write_all(&NO_KEYS);
                }
            });
        }
    });
}
