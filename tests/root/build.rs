//! Builds, from a folder or a tar to an image.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use insula_tests::{Daemon, daemon, eventually};

/// Makes a context of files; a name that ends with a slash is a folder.
pub(crate) fn context(daemon: &Daemon, name: &str, files: &[(&str, &str)]) -> PathBuf {
    let folder = daemon.folder().join(name);
    for (name, content) in files {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    folder
}

pub(crate) fn build(daemon: &Daemon, folder: &Path, flags: &[&str]) -> insula_tests::Outcome {
    daemon.insula(&[&["build", "--network", "none"], flags, &[folder.to_str().unwrap()]].concat())
}

pub(crate) fn run(daemon: &Daemon, image: &str, script: &str) -> String {
    daemon.insula(&["run", "--rm", "--network", "none", image, "sh", "-c", script]).ok().to_owned()
}

pub(crate) fn id(daemon: &Daemon, image: &str) -> String {
    daemon.insula(&["images", "-q", "--no-trunc", image]).ok().to_owned()
}

const STAGES: &str = "\
ARG BASE=busybox
FROM $BASE AS one
ARG VERSION=1
ENV NAME=value
WORKDIR /work/deep
RUN echo $NAME $VERSION > out && chown 7:8 out && chmod 4711 out
FROM nosuch:image AS dead
RUN false
FROM busybox
COPY --from=one /work /from/
COPY --chown=7:8 --chmod=640 a.txt dir /files/
COPY dir/*.c dir/named /c/
COPY --parents dir/x.c /kept/
COPY <<motd /etc/
hi $PATH
motd
RUN <<end
set -e
rm -r /home
ln -s /files /link
end
ADD a.txt /link/added
ENTRYPOINT [\"sh\", \"-c\"]
CMD [\"cat /from/deep/out\"]
LABEL a=\"b c\"
EXPOSE 80
";

#[test]
fn stages_and_files_become_an_image() {
    let daemon = daemon!();
    let files = [
        ("Dockerfile", STAGES),
        (".dockerignore", "**/*.o\nDockerfile\n"),
        ("a.txt", "a"),
        ("dir/x.c", "x"),
        ("dir/y.o", "y"),
        ("dir/sub/z.c", "z"),
    ];
    let folder = context(&daemon, "context", &files);
    // Its file is copied, under its own name.
    std::os::unix::fs::symlink("x.c", folder.join("dir/named")).unwrap();
    let file = daemon.folder().join("id");
    let flags = ["-t", "made:1", "-t", "other", "--build-arg", "VERSION=2", "--label", "l=m", "--iidfile"];
    let built = build(&daemon, &folder, &[&flags[..], &[file.to_str().unwrap()]].concat());
    built.shows(&[
        "Step 1/",
        "Successfully built",
        "Successfully tagged made:1",
        "Successfully tagged other:latest",
    ]);
    assert!(!built.stdout.contains("Using cache") && !built.stdout.contains("nosuch"), "{built}");
    assert_eq!(std::fs::read_to_string(file).unwrap(), id(&daemon, "made:1"));
    assert_eq!(daemon.insula(&["run", "--rm", "--network", "none", "other"]).ok(), "value 2");
    let script = "stat -c '%a %u %g %n' /from/deep/out /files/a.txt /files/sub /link/added /c/x.c /kept/dir/x.c; \
                  ls /files /c; cat /etc/motd; test ! -e /home && echo gone";
    let seen = daemon.insula(&["run", "--rm", "--network", "none", "made:1", script]).ok().to_owned();
    assert_eq!(
        seen.lines().collect::<Vec<_>>(),
        [
            "4711 7 8 /from/deep/out",
            "640 7 8 /files/a.txt",
            "640 7 8 /files/sub",
            "644 0 0 /link/added",
            "644 0 0 /c/x.c",
            "644 0 0 /kept/dir/x.c",
            "/c:",
            "named",
            "x.c",
            "",
            "/files:",
            "a.txt",
            "added",
            "named",
            "sub",
            "x.c",
            "hi /usr/local/bin:/usr/bin:/bin",
            "gone",
        ]
    );
    let config = daemon.insula(&[
        "image",
        "inspect",
        "-f",
        "{{json .Config.Labels}} {{json .Config.ExposedPorts}}",
        "other",
    ]);
    assert_eq!(config.ok(), r#"{"a":"b c","l":"m"} {"80/tcp":{}}"#);
    assert_eq!(daemon.insula(&["ps", "-aq"]).ok(), "");
    daemon.insula(&["history", "made:1"]).shows(&["COPY --from=one", "RUN /bin/sh -c"]);
}

#[test]
fn a_stage_has_the_arguments_of_the_one_below_and_a_path() {
    let daemon = daemon!();
    let file = "FROM scratch AS bare\nENV PATH=$PATH:/x\nCOPY Dockerfile /\n\
                FROM busybox AS below\nARG V=5\nFROM below\nRUN echo \"v=$V\" > /v\n";
    let folder = context(&daemon, "context", &[("Dockerfile", file)]);
    for (flags, seen) in [(&[][..], "v=5"), (&["--build-arg", "V=7"], "v=7"), (&[], "v=5")] {
        build(&daemon, &folder, &[flags, &["-t", "own:1"]].concat()).ok();
        assert_eq!(run(&daemon, "own:1", "cat /v").trim(), seen);
    }
    build(&daemon, &folder, &["-t", "bare:1", "--target", "bare"]).ok();
    let env = daemon.insula(&["image", "inspect", "-f", "{{json .Config.Env}}", "bare:1"]);
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(env.ok().trim(), format!("[\"PATH={path}:/x\"]"));
    let lines: String = (0..5000).map(|number| format!("ENV E{number}=$PATH\n")).collect();
    let folder = context(&daemon, "long", &[("Dockerfile", &format!("FROM busybox\n{lines}"))]);
    let begun = std::time::Instant::now();
    build(&daemon, &folder, &["-q", "-t", "long:1"]).ok();
    assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
}

#[test]
fn what_did_not_change_is_not_done_again() {
    let mut daemon = daemon!();
    let text = "FROM busybox\nCOPY first /first\nRUN cat /first > /made\nCOPY second /second\nRUN cat /second >> /made\n";
    let folder = context(&daemon, "context", &[("Dockerfile", text), ("first", "1"), ("second", "2")]);
    let cached =
        |daemon: &Daemon, flags: &[&str]| build(daemon, &folder, flags).ok().matches("Using cache").count();
    assert_eq!(cached(&daemon, &["-t", "a"]), 0);
    let before = id(&daemon, "a");
    // Times do not count, contents do.
    std::fs::write(folder.join("first"), "1").unwrap();
    assert_eq!((cached(&daemon, &["-t", "a"]), id(&daemon, "a")), (4, before.clone()));
    std::fs::write(folder.join("second"), "3").unwrap();
    assert_eq!(cached(&daemon, &["-t", "b"]), 2);
    assert_eq!(run(&daemon, "b", "cat /made"), "13");
    // The cache outlives the image and the daemon.
    daemon.insula(&["rmi", "a"]).ok();
    daemon.kill();
    daemon.restart();
    std::fs::write(folder.join("second"), "2").unwrap();
    assert_eq!((cached(&daemon, &["-q"]), cached(&daemon, &["-t", "a"])), (0, 4));
    assert_eq!(id(&daemon, "a"), before);
    assert_eq!(cached(&daemon, &["--no-cache"]), 0);
    let records = || daemon.api("GET", "/system/df", "").json()["BuildCache"].clone();
    let items = records();
    let items = items.as_array().unwrap();
    assert!(items.iter().any(|item| item["Type"] == "regular" && item["Shared"] == true), "{items:?}");
    assert!(items.iter().all(|item| item["ID"].as_str().unwrap().len() == 64 && item["InUse"] == false));
    daemon.insula(&["builder", "prune", "-f"]).shows(&["Total reclaimed space"]);
    assert!(records().is_null(), "{}", records());
    assert_eq!(run(&daemon, "a", "cat /made"), "12");
    assert_eq!(cached(&daemon, &["-t", "a"]), 0);
    // Another argument is another command, and the same epoch the same image.
    let epoch = ["--no-cache", "--build-arg", "SOURCE_DATE_EPOCH=1000000000", "-q"];
    let copies =
        context(&daemon, "copies", &[("Dockerfile", "FROM busybox\nCOPY x /y/z/\nCMD a"), ("x", "x")]);
    assert_eq!(build(&daemon, &copies, &epoch).ok(), build(&daemon, &copies, &epoch).ok());
}

#[test]
fn stages_are_done_again_on_demand() {
    let daemon = daemon!();
    let text = "FROM busybox AS first\nRUN echo a > /a\nFROM busybox AS second\nCOPY --from=first /a /b\nRUN echo c > /c\n";
    let folder = context(&daemon, "context", &[("Dockerfile", text)]);
    let cached = |flags: &[&str]| build(&daemon, &folder, flags).ok().matches("Using cache").count();
    assert_eq!(cached(&["-t", "a"]), 0);
    assert_eq!(cached(&["-t", "a"]), 3);
    // The other stage's files are the same, and so is what is made of them.
    assert_eq!(cached(&["--no-cache-filter", "first"]), 2);
    assert_eq!(cached(&["--no-cache-filter", "SECOND"]), 1);
    assert_eq!(cached(&["--no-cache-filter", "0,second"]), 0);
    build(&daemon, &folder, &["--no-cache-filter", "secnod"])
        .fails(1, &["no stage is called secnod (did you mean second?)"]);
    // What was made, for programs.
    let file = daemon.folder().join("metadata.json");
    build(&daemon, &folder, &["-t", "a", "-t", "b:2", "--metadata-file", file.to_str().unwrap()]).ok();
    let made: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let expected = serde_json::json!({
        "containerimage.config.digest": id(&daemon, "a"),
        "image.name": "docker.io/library/a:latest,docker.io/library/b:2",
    });
    assert_eq!(made, expected);
}

#[test]
fn what_is_wrong_is_said_with_its_line() {
    let daemon = daemon!();
    let refused = |text: &str, code: i32, words: &[&str]| {
        let folder = context(&daemon, "wrong", &[("Dockerfile", text), ("here", "")]);
        std::os::unix::fs::symlink("/etc/passwd", folder.join("absolute")).ok();
        std::os::unix::fs::symlink("../../../../../../etc/passwd", folder.join("relative")).ok();
        build(&daemon, &folder, &[]).fails(code, words);
    };
    refused("FROM busybox\nCPOY a b\n", 1, &["line 2", "did you mean COPY"]);
    refused("FROM busybox\nCOPY nosuch /\n", 1, &["Dockerfile:2", "nosuch does not exist"]);
    refused("FROM busybox\n\nRUN exit 3\n", 1, &["Dockerfile:3", "returned a non-zero code: 3"]);
    refused("FROM busybox\nCOPY here /bin/sh/\n", 1, &["not a folder"]);
    // Links lead nowhere but to the context.
    refused("FROM busybox\nCOPY absolute /x\n", 1, &["does not exist"]);
    refused("FROM busybox\nCOPY relative /x\n", 1, &["does not exist"]);
    refused("FROM busybox\nCOPY ../../../etc/passwd /x\n", 1, &["does not exist"]);
    refused("FROM busybox\nRUN --security=insecure true\n", 1, &["not allowed"]);
    refused("FROM busybox\nRUN --mount=type=secret,id=a,required true\n", 1, &["secret a: not found"]);
    refused("FROM busybox\nRUN --mount=source=nosuch,target=/x true\n", 1, &["Dockerfile:2", "nosuch"]);
    refused("FROM busybox\nRUN --mount=source=absolute,target=/x true\n", 1, &["absolute does not exist"]);
    refused("FROM busybox\nADD git@example.org:x /\n", 1, &["repositories by ssh are not fetched"]);
    refused("FROM busybox\nADD --keep-git-dir here /\n", 1, &["for sources that are repositories"]);
    refused("FROM busybox\nADD http://127.0.0.1:1/x /\n", 1, &["download http://127.0.0.1:1/x"]);
    refused("FROM busybox\nADD http://127.0.0.1:1/ /\n", 1, &["127.0.0.1:1"]);
    refused("FROM busybox\nADD --checksum=sha256:1 http://127.0.0.1:1/x /\n", 1, &["--checksum"]);
    refused("FROM busybox\nCOPY --chmod=u+q here /\n", 1, &["--chmod=u+q", "octal"]);
    refused("FROM host\nRUN true\n", 1, &["no image can be built"]);
    assert_eq!(daemon.insula(&["ps", "-aq"]).ok(), "");
    let folder = context(&daemon, "checked", &[("Dockerfile", "FROM busybox as x\nCMD a\n")]);
    let checked = build(&daemon, &folder, &["--check"]);
    checked.exits(1);
    for word in ["FromAsCasing", "Dockerfile:1", "JSONArgsRecommended"] {
        assert!(checked.stdout.contains(word), "{checked}");
    }
    let answer = daemon.api("POST", "/build?session=x", "");
    assert_eq!(answer.status, 501);
}

#[test]
fn a_build_that_nobody_waits_for_ends() {
    let mut daemon = daemon!();
    let folder = context(&daemon, "context", &[("Dockerfile", "FROM busybox\nRUN sleep 100000\n")]);
    let running = |daemon: &Daemon| {
        let id = daemon.insula(&["ps", "-q"]).ok().to_owned();
        (!id.is_empty()).then_some(id)
    };
    let begin = |daemon: &Daemon| {
        let mut command = daemon.command(&["build", "--network", "none", folder.to_str().unwrap()]);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let mut client = begin(&daemon);
    eventually("the command runs", || running(&daemon));
    client.kill().unwrap();
    client.wait().unwrap();
    eventually("it is gone", || daemon.insula(&["ps", "-aq"]).ok().is_empty().then_some(()));
    // A daemon that is killed leaves it to the next one.
    let mut client = begin(&daemon);
    eventually("the command runs", || running(&daemon));
    daemon.kill();
    client.wait().unwrap();
    daemon.restart();
    assert_eq!(daemon.insula(&["ps", "-aq"]).ok(), "");
}

const MOUNTS: &str = "\
FROM busybox AS made
RUN mkdir -p /tree/sub && echo one > /tree/one && echo two > /tree/sub/two && chmod 700 /tree/sub
RUN rm /tree/one && echo three > /tree/three
FROM busybox
WORKDIR /work
RUN --mount=target=/context --mount=from=made,source=/tree,target=tree,rw \\
    --mount=from=busybox,target=/image \\
    cat /context/dir/a tree/three tree/sub/two > seen && test ! -e tree/one && test -x /image/bin/sh && \\
    ! touch /context/new && touch tree/new && stat -c '%a %u' tree/sub >> seen
RUN --mount=source=dir/a,target=/a/file,rw echo more >> /a/file && cp /a/file copy
RUN --mount=type=cache,target=/cache,mode=0710,uid=7 stat -c '%a %u' /cache > mode && \\
    echo x >> /cache/lines && wc -l < /cache/lines > count
RUN --mount=type=cache,id=filled,target=/filled,from=made,source=/tree cp /filled/three filled
RUN <<one
#!/bin/cat
program
one
ARG AGAIN=1
RUN --mount=type=cache,target=/cache,readonly cp /cache/lines lines$AGAIN
";

#[test]
fn commands_see_what_is_mounted_for_them() {
    let daemon = daemon!();
    let folder = context(&daemon, "context", &[("Dockerfile", MOUNTS), ("dir/a", "a\n"), ("other", "1")]);
    build(&daemon, &folder, &["-t", "made"]).shows(&["#!/bin/cat\nprogram"]);
    let seen = run(
        &daemon,
        "made",
        "cat seen copy mode count filled lines1; ls -d /a/* /context/* /cache/* /dev/pipes 2>/dev/null; ls",
    );
    assert_eq!(
        seen.lines().collect::<Vec<_>>(),
        [
            "a", "three", "two", "700 0", "a", "more", "710 7", "1", "three", "x", "copy", "count", "filled",
            "lines1", "mode", "seen"
        ]
    );
    // What a command sees is part of what it is found by; what a cache holds is not.
    assert_eq!(build(&daemon, &folder, &[]).ok().matches("Using cache").count(), 9);
    std::fs::write(folder.join("other"), "2").unwrap();
    let second = build(&daemon, &folder, &["-t", "made", "--build-arg", "AGAIN=2"]);
    assert_eq!(second.ok().matches("Using cache").count(), 3);
    assert_eq!(run(&daemon, "made", "cat count lines2"), "2\nx\nx");
    let caches = daemon.instance().root().join("caches");
    // Two of commands, and the context.
    assert_eq!(std::fs::read_dir(&caches).unwrap().count(), 3);
    daemon.insula(&["builder", "prune", "-f"]).ok();
    assert_eq!(std::fs::read_dir(&caches).unwrap().count(), 0);
}

const SECRETS: &str = "\
FROM busybox
RUN --mount=type=secret,id=file,mode=0440,gid=3 --mount=type=secret,id=file,target=/elsewhere \\
    --mount=type=secret,id=word,env=WORD --mount=type=secret,id=absent \\
    stat -c '%a %u %g' /run/secrets/file > /seen && cmp /run/secrets/file /elsewhere && \\
    { wc -c < /elsewhere; echo -n \"$WORD\" | wc -c; } >> /seen
RUN ls /run/secrets /elsewhere 2>/dev/null >> /seen; test -z \"$WORD\"
";

/// Every file below a folder in which some bytes are.
fn having(folder: &Path, bytes: &[u8], found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let (kind, path) = (entry.file_type().unwrap(), entry.path());
        if kind.is_dir() {
            having(&path, bytes, found);
        } else if kind.is_file()
            && std::fs::read(&path)
                .is_ok_and(|content| content.windows(bytes.len()).any(|part| part == bytes))
        {
            found.push(path);
        }
    }
}

#[test]
fn secrets_are_nowhere_afterwards() {
    let mut daemon = daemon!();
    let folder = context(&daemon, "context", &[("Dockerfile", SECRETS)]);
    let source = daemon.folder().join("source");
    std::fs::write(&source, "Zk7-file-secret").unwrap();
    let file = format!("id=file,src={}", source.to_str().unwrap());
    let word = daemon.folder().join("word");
    std::fs::write(&word, "Zk8-word-secret").unwrap();
    let word = format!("id=word,src={}", word.to_str().unwrap());
    let built = build(&daemon, &folder, &["-t", "made", "--secret", &file, "--secret", &word]);
    assert!(!built.ok().contains("Zk7") && !built.stdout.contains("Zk8"));
    assert_eq!(run(&daemon, "made", "cat /seen"), "440 0 3\n15\n15");
    daemon.kill();
    for secret in ["Zk7-file-secret", "Zk8-word-secret"] {
        assert!(!daemon.log().contains(secret));
        for place in [daemon.instance().root(), daemon.instance().run()] {
            let mut found = Vec::new();
            having(place, secret.as_bytes(), &mut found);
            assert!(found.is_empty(), "{found:?}");
        }
    }
}

/// A tar with a file, a hard link to it, a symbolic link, a FIFO and a folder, of owners of its own.
fn archive() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, kind: tar::EntryType, mode: u32, link: &str, content: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(11);
        header.set_gid(12);
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        header.set_path(name).unwrap();
        if !link.is_empty() {
            header.set_link_name(link).unwrap();
        }
        header.set_cksum();
        tar.append(&header, content).unwrap();
    };
    add("folder", tar::EntryType::Directory, 0o750, "", b"");
    add("folder/file", tar::EntryType::Regular, 0o4640, "", b"content");
    add("folder/same", tar::EntryType::Link, 0o4640, "folder/file", b"");
    add("link", tar::EntryType::Symlink, 0o777, "folder/file", b"");
    add("fifo", tar::EntryType::Fifo, 0o600, "", b"");
    tar.into_inner().unwrap()
}

pub(crate) fn gzip(input: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(input).unwrap();
    encoder.finish().unwrap()
}

fn archive_of(name: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o604);
    header.set_size(4);
    tar.append_data(&mut header, name, &b"more"[..]).unwrap();
    tar.into_inner().unwrap()
}

fn bzip2(input: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    encoder.write_all(input).unwrap();
    encoder.finish().unwrap()
}

/// Answers every request for `/NAME` with a file, until the test ends.
pub(crate) fn serve(file: Vec<u8>) -> u16 {
    use std::io::{BufRead as _, BufReader, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
            let first = lines.next().unwrap_or_default();
            lines.find(String::is_empty);
            let status = if first.contains("/absent") { "404 Not Found" } else { "200 OK" };
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\
                 Last-Modified: Sun, 09 Sep 2001 01:46:40 GMT\r\n\r\n",
                file.len()
            );
            // The daemon may have seen enough.
            let _ = (&stream).write_all(head.as_bytes()).and_then(|()| (&stream).write_all(&file));
        }
    });
    port
}

#[test]
fn archives_and_downloads_are_added() {
    let daemon = daemon!();
    let port = serve(archive());
    let hex = {
        use sha2::Digest as _;
        sha2::Sha256::digest(archive()).iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let text = format!(
        "FROM busybox\n\
         ADD plain.tar /plain/\n\
         ADD a.tar.gz b.tar.zst c.tar.bz2 /both/\n\
         ADD --unpack=false plain.tar note.gz /kept/\n\
         ADD --chmod=u=rw,go= --chown=5 note.gz /note\n\
         ADD --checksum=sha256:{hex} http://127.0.0.1:{port}/deep/down%20load.tar /fetched/\n\
         ADD --unpack http://127.0.0.1:{port}/x.tar /opened/\n\
         COPY --chmod=go+w,+X dir /dir/\n"
    );
    let folder =
        context(&daemon, "context", &[("Dockerfile", &text), ("dir/sub/file", "x"), ("dir/one", "1")]);
    std::fs::hard_link(folder.join("dir/one"), folder.join("dir/two")).unwrap();
    std::fs::write(folder.join("plain.tar"), archive()).unwrap();
    std::fs::write(folder.join("a.tar.gz"), gzip(&archive())).unwrap();
    std::fs::write(folder.join("b.tar.zst"), zstd::encode_all(&archive()[..], 0).unwrap()).unwrap();
    std::fs::write(folder.join("c.tar.bz2"), bzip2(&archive_of("more"))).unwrap();
    std::fs::write(folder.join("note.gz"), gzip(b"no archive")).unwrap();
    build(&daemon, &folder, &["-t", "made"]).ok();
    let script = "cd /; grep -q more both/more && test plain/folder/file -ef plain/folder/same && stat -c '%a %u %g %Y %n' plain/folder/file both/folder both/link both/fifo note \
                  'fetched/down load.tar' opened/folder/same dir/sub dir/sub/file; ls kept; cat both/link; \
                  zcat note; cmp kept/plain.tar 'fetched/down load.tar'";
    let seen = run(&daemon, "made", script);
    let seen: Vec<_> = seen.lines().collect();
    let note = folder.join("note.gz").metadata().unwrap().modified().unwrap();
    let note = note.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert_eq!(
        seen[..7],
        [
            "4640 11 12 1000000000 plain/folder/file",
            "750 11 12 1000000000 both/folder",
            "777 11 12 1000000000 both/link",
            "600 11 12 1000000000 both/fifo",
            format!("600 5 5 {note} note").as_str(),
            "600 0 0 1000000000 fetched/down load.tar",
            "4640 11 12 1000000000 opened/folder/same",
        ]
    );
    assert!(seen[7].starts_with("777 0 0") && seen[8].starts_with("666 0 0"), "{seen:?}");
    assert_eq!(seen[9..], ["note.gz", "plain.tar", "contentno archive"]);
    assert_eq!(build(&daemon, &folder, &[]).ok().matches("Using cache").count(), 7);
    let refused = |line: &str, words: &[&str]| {
        let folder = context(&daemon, "wrong", &[("Dockerfile", &format!("FROM busybox\n{line}\n"))]);
        build(&daemon, &folder, &[]).fails(1, words);
    };
    let other = format!("ADD --checksum=sha256:{} http://127.0.0.1:{port}/x /", "0".repeat(64));
    refused(&other, &["digest mismatch", &hex]);
    refused(&format!("ADD http://127.0.0.1:{port}/absent /x"), &["absent"]);
    refused("ADD --checksum=sha256:0 Dockerfile /x", &["for sources that are downloaded"]);
}

#[test]
fn the_same_input_is_the_same_image() {
    let daemon = daemon!();
    let text = "FROM busybox\nARG SOURCE_DATE_EPOCH\nWORKDIR /w\nCOPY dir dir\nRUN mkdir made && date > /dev/null && touch made/a && cp dir/a made/b\nADD a.tar /t/\nLABEL a=b\n";
    let first = context(&daemon, "first", &[("Dockerfile", text), ("dir/a", "a")]);
    std::fs::write(first.join("a.tar"), archive()).unwrap();
    let second = context(&daemon, "second", &[("dir/a", "a"), ("Dockerfile", text)]);
    std::fs::write(second.join("a.tar"), archive()).unwrap();
    let made = |folder: &Path, epoch: &str| {
        let epoch = format!("SOURCE_DATE_EPOCH={epoch}");
        build(&daemon, folder, &["--no-cache", "-q", "--build-arg", &epoch]).ok().to_owned()
    };
    let one = made(&first, "1100000000");
    assert_eq!(one, made(&second, "1100000000"));
    assert_ne!(one, made(&second, "1100000001"));
    daemon.insula(&["tag", one.trim(), "made"]).ok();
    let seen = run(&daemon, "made", "find /w /t -exec stat -c %Y {} + | sort -u");
    assert_eq!(seen, "1000000000\n1100000000");
    assert_eq!(
        daemon.insula(&["image", "inspect", "-f", "{{.Created}}", "made"]).ok(),
        "2004-11-09T11:33:20Z"
    );
}

#[test]
fn only_what_changed_of_a_context_is_sent() {
    let mut daemon = daemon!();
    let text = "FROM busybox\nCOPY . /all/\nRUN --mount=target=/seen find /seen /all -type f | sort > /list; \\\n    find /all -type l >> /list\n";
    let files =
        [("Dockerfile", text), (".dockerignore", "Dockerfile\n*.o\n"), ("a/one", "1"), ("a/two", "2")];
    let folder = context(&daemon, "context", &files);
    std::fs::write(folder.join("large"), vec![7; 1 << 20]).unwrap();
    let built = |daemon: &Daemon| {
        build(daemon, &folder, &["-t", "made"]).ok();
        let all = run(daemon, "made", "cat /list; cat /all/a/* 2>/dev/null; true");
        all.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let named = |names: &[&str], rest: &str| {
        let below = |root: &str| names.iter().map(|name| format!("{root}/{name}")).collect::<Vec<_>>();
        let mut all = [below("/all"), below("/seen"), vec![rest.to_owned()]].concat();
        all.retain(|line| !line.is_empty());
        all
    };
    let kept = || {
        let items = daemon_contexts(&daemon);
        assert_eq!(items.len(), 1, "{items:?}");
        items.into_iter().next().unwrap()
    };
    let all = [".dockerignore", "a/one", "a/two", "large"];
    assert_eq!(built(&daemon), named(&all, "12"));
    let first = kept();
    assert!(first.contains("context"), "{first}");
    // Where nothing changed nothing is done.
    assert!(build(&daemon, &folder, &[]).ok().matches("Using cache").count() == 2);
    // Something is changed, something is new, something is gone, something becomes something else.
    std::fs::write(folder.join("a/one"), "3").unwrap();
    std::fs::write(folder.join("left.o"), "").unwrap();
    std::fs::remove_file(folder.join("a/two")).unwrap();
    std::fs::write(folder.join("new"), "").unwrap();
    assert_eq!(built(&daemon), named(&[".dockerignore", "a/one", "large", "new"], "3"));
    std::fs::remove_dir_all(folder.join("a")).unwrap();
    std::os::unix::fs::symlink("large", folder.join("a")).unwrap();
    std::fs::remove_file(folder.join("new")).unwrap();
    std::fs::create_dir(folder.join("new")).unwrap();
    std::fs::write(folder.join("new/b"), "").unwrap();
    let mut expected = named(&[".dockerignore", "large", "new/b"], "");
    expected.push("/all/a".to_owned());
    assert_eq!(built(&daemon), expected);
    // What the patterns leave out now is not there any more.
    std::fs::write(folder.join(".dockerignore"), "Dockerfile\n*.o\nnew\na\n").unwrap();
    assert_eq!(built(&daemon), named(&[".dockerignore", "large"], ""));
    // The next daemon has it too; what is not whole is sent again.
    daemon.kill();
    daemon.restart();
    std::fs::write(folder.join("large"), "small").unwrap();
    assert_eq!(built(&daemon), named(&[".dockerignore", "large"], ""));
    assert_eq!(run(&daemon, "made", "cat /all/large"), "small");
    let caches = daemon.instance().root().join("caches");
    let index = std::fs::read_dir(&caches).unwrap().map(|cache| cache.unwrap().path().join("index"));
    index.for_each(|index| std::fs::remove_file(index).unwrap());
    std::fs::write(folder.join("c"), "").unwrap();
    assert_eq!(built(&daemon), named(&[".dockerignore", "c", "large"], ""));
    // Builds of one folder do not wait for one another.
    let twice: Vec<_> = ["one", "two"]
        .iter()
        .map(|name| {
            std::fs::write(folder.join("c"), name).unwrap();
            daemon
                .command(&["build", "-q", "--network", "none", "-t", name, folder.to_str().unwrap()])
                .spawn()
                .unwrap()
        })
        .collect();
    for mut child in twice {
        assert!(child.wait().unwrap().success());
    }
    daemon.insula(&["system", "check"]).ok();
    daemon.insula(&["builder", "prune", "-f", "--filter", "type=source.local"]).ok();
    assert_eq!(std::fs::read_dir(&caches).unwrap().count(), 0);
    assert_eq!(built(&daemon), named(&[".dockerignore", "c", "large"], ""));
}

/// What is said of contexts that are kept.
fn daemon_contexts(daemon: &Daemon) -> Vec<String> {
    let cache = daemon.api("GET", "/system/df", "").json()["BuildCache"].clone();
    let contexts = cache.as_array().unwrap().iter().filter(|item| item["Type"] == "source.local");
    contexts.map(|item| item["Description"].as_str().unwrap().to_owned()).collect()
}
