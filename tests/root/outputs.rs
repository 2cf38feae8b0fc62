//! What becomes of builds beside images, and what comes along with them.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use insula_tests::{daemon, registry};

use crate::build::{build, context, id, run};

const FILES: &str = "\
FROM busybox AS made
RUN mkdir -p /out/sub && echo one > /out/one && ln out/one out/two && ln -s one out/link && mkfifo out/fifo && \\
    chmod 640 out/one && chmod 711 out/sub && touch -d @1000000000 out/one
FROM scratch AS files
COPY --from=made /out /
FROM files
LABEL a=b
";

/// Names of an archive, and the links among them.
fn names(path: &Path) -> BTreeMap<String, String> {
    let mut archive = tar::Archive::new(std::fs::File::open(path).unwrap());
    let entries = archive.entries().unwrap().map(|entry| {
        let entry = entry.unwrap();
        let link = entry.link_name().unwrap().map_or_else(String::new, |link| link.display().to_string());
        (entry.path().unwrap().display().to_string(), link)
    });
    entries.collect()
}

#[test]
fn files_and_archives_leave_a_build() {
    let daemon = daemon!();
    let folder = context(&daemon, "context", &[("Dockerfile", FILES)]);
    let before = daemon.insula(&["images", "-aq"]).ok().to_owned();
    let at = |name: &str| daemon.folder().join(name);
    let to = |kind: &str, name: &str| format!("type={kind},dest={}", at(name).to_str().unwrap());

    build(&daemon, &folder, &["--output", &to("local", "out/deep")]).shows(&["Step 1/"]);
    let out = at("out/deep");
    let mut found: Vec<_> = out.read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    found.sort();
    assert_eq!(found, ["fifo", "link", "one", "sub", "two"], "no mount points");
    let one = out.join("one").metadata().unwrap();
    assert_eq!((one.mode() & 0o7777, one.mtime(), one.nlink()), (0o640, 1_000_000_000, 2));
    assert_eq!(out.join("sub").metadata().unwrap().permissions().mode() & 0o7777, 0o711);
    assert_eq!(out.join("link").read_link().unwrap(), Path::new("one"));

    build(&daemon, &folder, &["--output", &to("tar", "files.tar"), "--quiet"]).ok();
    let files = names(&at("files.tar"));
    assert_eq!(files.keys().map(String::as_str).collect::<Vec<_>>(), ["fifo", "link", "one", "sub/", "two"]);
    assert_eq!((files["link"].as_str(), files["two"].as_str()), ("one", "one"));
    // Standard output is the archive's alone.
    let piped = build(&daemon, &folder, &["-o", "-", "--target", "files"]);
    piped.exits(0);
    assert!(piped.stdout.contains("ustar") && piped.stderr.contains("Step 1/"), "{}", piped.stderr);
    assert_eq!(daemon.insula(&["images", "-aq"]).ok(), before, "no image is left of them");

    let text = "FROM busybox\nRUN echo hi > /hi\nENV A=b\n";
    let folder = context(&daemon, "image", &[("Dockerfile", text)]);
    let epoch = ["--build-arg", "SOURCE_DATE_EPOCH=1000000000", "-t", "app:1"];
    build(&daemon, &folder, &[&epoch[..], &["--output", &to("oci", "app.tar")]].concat())
        .shows(&["Successfully built"]);
    assert_eq!(daemon.insula(&["images", "-aq"]).ok(), before);
    daemon.insula(&["load", "-i", at("app.tar").to_str().unwrap()]).shows(&["app:1"]);
    let loaded = id(&daemon, "app:1");
    assert_eq!(run(&daemon, "app:1", "cat /hi; echo $A"), "hi\nb");
    // The same build among the images is the same image, and saved the same archive.
    build(&daemon, &folder, &epoch).ok();
    assert_eq!(id(&daemon, "app:1"), loaded);
    daemon.insula(&["save", "-o", at("saved.tar").to_str().unwrap(), "app:1"]).ok();
    assert_eq!(std::fs::read(at("saved.tar")).unwrap(), std::fs::read(at("app.tar")).unwrap());

    // What fails leaves no file.
    let wrong = context(&daemon, "wrong", &[("Dockerfile", "FROM busybox\nRUN exit 3\n")]);
    build(&daemon, &wrong, &["--output", &to("tar", "none.tar")]).fails(1, &["returned a non-zero code: 3"]);
    assert!(!at("none.tar").exists());
    build(&daemon, &wrong, &["--output", "type=local"]).fails(1, &["dest is required"]);
    build(&daemon, &wrong, &["--push"]).fails(1, &["tag is needed"]);
}

#[test]
fn a_build_is_pushed() {
    let registry = registry!();
    let daemon = daemon!();
    let folder = context(&daemon, "context", &[("Dockerfile", "FROM busybox\nLABEL a=b\n")]);
    let (one, two) = (registry.name("team/one:1"), registry.name("team/two:2"));
    build(&daemon, &folder, &["--push", "-t", &one]).shows(&["Successfully tagged", "1: digest: sha256:"]);
    build(&daemon, &folder, &["--output", &format!("type=image,name={two},push=true"), "-q"]).ok();
    let manifests =
        [("team/one", "1"), ("team/two", "2")].map(|(name, tag)| registry.manifest(name, tag).body);
    assert_eq!(manifests[0], manifests[1]);
}

const NAMED: &str = "\
FROM base AS first
COPY --from=sources a.txt sub /copied/
RUN --mount=from=sources,target=/seen ls /seen > /listed
FROM nosuch:image AS replaced
FROM tree
FROM first
COPY --from=replaced /b.txt /
COPY --from=tree /b.txt /again.txt
";

#[test]
fn folders_and_images_come_along_by_name() {
    let daemon = daemon!();
    let folder = context(&daemon, "context", &[("Dockerfile", NAMED)]);
    let files =
        [("a.txt", "a"), ("sub/c.txt", "c"), ("left.o", ""), (".dockerignore", "*.o\n.dockerignore\n")];
    let sources = context(&daemon, "sources", &files);
    let tree = context(&daemon, "tree", &[("b.txt", "b"), ("bin/x", "x")]);
    let named = |name: &str, path: &Path| format!("{name}={}", path.to_str().unwrap());
    let (sources_flag, tree_flag, image_flag) =
        (named("Sources", &sources), named("tree", &tree), named("nosuch:image", &tree));
    let flags = ["base=docker-image://busybox", &sources_flag, &tree_flag, &image_flag];
    let flags: Vec<_> = flags.iter().flat_map(|flag| ["--build-context", *flag]).collect();
    let again = || build(&daemon, &folder, &[&flags[..], &["-t", "made"]].concat()).ok().to_owned();
    again();
    let seen = run(&daemon, "made", "cat /copied/a.txt /copied/c.txt /b.txt /again.txt; echo; cat /listed");
    assert_eq!(seen, "acbb\na.txt\nsub");
    assert_eq!(again().matches("Using cache").count(), 4);
    // What came along is part of what a step is found by.
    std::fs::write(sources.join("a.txt"), "A").unwrap();
    assert_eq!(again().matches("Using cache").count(), 0);
    assert_eq!(run(&daemon, "made", "cat /copied/a.txt"), "A");
    // A stage that begins with a folder has its files and nothing else.
    let out = daemon.folder().join("out");
    build(&daemon, &folder, &[&flags[..], &["--target", "replaced", "-o", out.to_str().unwrap()]].concat())
        .ok();
    assert_eq!(std::fs::read_to_string(out.join("bin/x")).unwrap(), "x");
    assert_eq!(out.read_dir().unwrap().count(), 2);
    let absent = named("x", &daemon.folder().join("absent"));
    for (flag, words) in [
        (absent.as_str(), "failed to get build context x"),
        ("x", "expected key=value"),
        ("x=target:other", "not supported in this version"),
        ("x=oci-layout:///etc", "no index.json"),
    ] {
        build(&daemon, &folder, &["--build-context", flag]).fails(1, &[words]);
    }
    // No name leads out of what came along.
    let wrong = "FROM busybox\nCOPY --from=tree ../../../etc/passwd /x\n";
    let wrong = context(&daemon, "wrong", &[("Dockerfile", wrong)]);
    build(&daemon, &wrong, &["--build-context", &tree_flag]).fails(1, &["etc/passwd does not exist"]);
    std::os::unix::fs::symlink("/etc/passwd", tree.join("link")).unwrap();
    let wrong = context(&daemon, "link", &[("Dockerfile", "FROM busybox\nCOPY --from=tree link/ /x\n")]);
    build(&daemon, &wrong, &["--build-context", &tree_flag]).fails(1, &["does not exist"]);
}

const SHOWN: &str = "\
FROM busybox AS first
RUN echo one > /x
FROM busybox
COPY --from=first /x /
RUN printf 'before\\n\\033[2Jafter\\n'; cat /nosuch
";

#[test]
fn progress_is_shown_as_somebody_wants_it() {
    let daemon = daemon!();
    let folder = context(&daemon, "context", &[("Dockerfile", SHOWN)]);
    let flags = ["build", "--network", "none", "--progress", "auto", folder.to_str().unwrap()];
    let first = [&flags[..], &["--target", "first"]].concat();
    let at_terminal = |flags: &[&str], last: &str| {
        let mut terminal = daemon.terminal(flags);
        terminal.expect(last);
        (terminal.wait(), terminal.screen())
    };
    for how in [" => [first 2/2] RUN echo one", " => CACHED [first 2/2] RUN echo one"] {
        let (code, screen) = at_terminal(&first, "FINISHED");
        assert_eq!(code, 0, "{screen}");
        for words in [" => [first 1/2] FROM busybox", how, "(2/2) FINISHED", "Successfully built"] {
            assert!(screen.contains(words), "{words}: {screen:?}");
        }
    }
    let (code, screen) = at_terminal(&flags, "Dockerfile:5");
    assert_eq!(code, 1, "{screen}");
    let failed = " > [stage-1 3/3] RUN printf";
    for words in [" => ERROR [stage-1 3/3] RUN", "FAILED", failed, "before", "after", "Dockerfile:5"] {
        assert!(screen.contains(words), "{words}: {screen:?}");
    }
    assert!(!screen.contains("\u{1b}[2J"), "{screen:?}");

    // For programs.
    let records = build(&daemon, &folder, &["--progress", "rawjson"]);
    records.exits(1);
    assert_eq!(records.stdout, "");
    let records: Vec<serde_json::Value> =
        records.stderr.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let vertex = |name: &str, field: &str| {
        let of = records.iter().filter_map(|record| record["vertexes"].get(0));
        let mut of = of.filter(|vertex| vertex["name"].as_str().unwrap().starts_with(name));
        of.find(|vertex| !vertex[field].is_null()).map(|vertex| vertex[field].clone())
    };
    assert_eq!(vertex("[first 2/2]", "cached"), Some(true.into()));
    assert!(vertex("[first 2/2]", "completed").is_some() && vertex("[stage-1 2/3]", "cached").is_some());
    let error = vertex("[stage-1 3/3]", "error").unwrap();
    assert!(error.as_str().unwrap().contains("non-zero code: 1"), "{error}");
    assert!(records.iter().any(|record| record["logs"][0]["vertex"].is_string()), "{records:?}");
    build(&daemon, &folder, &["--progress", "tty"]).fails(1, &["standard error is no terminal"]);

    // The id or the reason, and nothing else.
    let quiet = build(&daemon, &folder, &["-q"]);
    quiet.fails(1, &["before", "after", "Dockerfile:5"]);
    assert_eq!(quiet.stdout, "");
    let quiet = build(&daemon, &folder, &["-q", "--target", "first"]);
    assert!(quiet.ok().starts_with("sha256:") && quiet.ok().lines().count() == 1, "{quiet}");
    assert_eq!(quiet.stderr, "");
}

#[test]
fn images_of_a_layout_come_along() {
    let daemon = daemon!();
    let first = "FROM busybox\nRUN echo 1 > /one && mkdir -m 700 /dir && ln -s one /link\nENV A=b\n";
    let folder = context(&daemon, "first", &[("Dockerfile", first)]);
    let archive = daemon.folder().join("out.tar");
    build(&daemon, &folder, &["-t", "made:1", "-o", &format!("type=oci,dest={}", archive.to_str().unwrap())])
        .ok();
    let layout = daemon.folder().join("layout");
    tar::Archive::new(std::fs::File::open(archive).unwrap()).unpack(&layout).unwrap();
    // What it begins with is not among the engine's images; its layers are in the cache.
    let text = "FROM base AS mine\nRUN test -h /link -a $A = b && cat /link > /seen\nFROM busybox\n\
                COPY --from=base /one /copied\nCOPY --from=mine /seen /seen\n";
    let folder = context(&daemon, "second", &[("Dockerfile", text)]);
    let place = layout.to_str().unwrap();
    let named = |suffix: &str| format!("base=oci-layout://{place}{suffix}");
    daemon.insula(&["builder", "prune", "-f"]).ok();
    for (suffix, cached) in [("", 0), (":1", 3)] {
        let built = build(&daemon, &folder, &["-t", "two", "--build-context", &named(suffix)]);
        assert_eq!(built.ok().matches("Using cache").count(), cached, "{built}");
        assert_eq!(run(&daemon, "two", "cat /copied /seen"), "1\n1");
    }
    build(&daemon, &folder, &["--build-context", &named(":2")]).fails(1, &["the layout has no image 2"]);
    // What is not what it says is not used.
    daemon.insula(&["builder", "prune", "-f"]).ok();
    daemon.insula(&["rmi", "-f", "two"]).ok();
    for blob in layout.join("blobs/sha256").read_dir().unwrap().map(|entry| entry.unwrap().path()) {
        let mut bytes = std::fs::read(&blob).unwrap();
        if bytes.get(257..262) == Some(b"ustar") || bytes.starts_with(&[0x1f, 0x8b]) {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(&blob, bytes).unwrap();
        }
    }
    let wrong = build(&daemon, &folder, &["--build-context", &named("")]);
    wrong.exits(1);
    daemon.insula(&["system", "check"]).ok();
}
