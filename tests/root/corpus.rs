//! The same Dockerfiles, built here and by buildah: the files and configurations of both are compared.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use insula_tests::images::{Layer, digest};
use insula_tests::{Daemon, daemon, skip};
use serde_json::Value;
use tar::EntryType;

use crate::build::{build, context};

/// What everything of the context is dated to, by which copies are told from what commands make.
const MODIFIED: u64 = 1_000_000_000;

const STAGES: &str = "\
FROM scratch AS base
ADD root.tar /
FROM base AS one
ARG VERSION=1
ENV NAME=value PATH=/bin
WORKDIR /work/deep
RUN echo $NAME $VERSION > out && chown 7:8 out && chmod 4711 out
FROM base
ENV PATH=/bin A=\"b c\"
COPY --from=one /work /from/
COPY --chown=app:8 --chmod=640 a.txt dir /files/
COPY dir/*.c dir/link /c/
COPY dir/link /single
ADD a.txt /added/deep/
RUN mkdir -p /made && echo hi > /made/x && rm /from/deep/out
USER app
VOLUME /data
EXPOSE 80 53/udp
LABEL a=b \"c d\"=e
STOPSIGNAL SIGINT
HEALTHCHECK --interval=5s --retries=2 CMD true
ENTRYPOINT [\"sh\", \"-c\"]
CMD echo hi
";

const FILES: &str = "\
ARG WHICH=dir
FROM scratch
ADD root.tar /
ENV PATH=/bin
ARG WHICH
ADD some.tar.gz /unpacked/
ADD some.tar.gz other.tar /both/
COPY some.tar.gz /packed/
COPY $WHICH /copied
COPY ${WHICH:-no}/sub /copied/sub2/
COPY . /all/
RUN mkdir -p /real/inner && ln -s /real /alias && rm -r /copied/sub2 && echo new > /copied/sub2
COPY a.txt /alias/inner/
COPY --chown=5:6 dir/sub /alias/owned/
WORKDIR /alias
WORKDIR inner
RUN echo here > relative && rm /all/a.txt && mkdir /all/a.txt
ENV X=${WHICH:+set} Y=$X Z=\\$X
ENTRYPOINT exec sh
";

const LANGUAGE: &str = "\
# escape=`
ARG BASE=scratch
ARG UNUSED
FROM $BASE AS triggers
ADD root.tar /
ENV PATH=/bin
ONBUILD COPY a.txt /triggered/
ONBUILD ARG SAID=yes
ONBUILD RUN echo $SAID > /said
ONBUILD LABEL triggered=${SAID}
FROM triggers AS inner
ARG NAME=one
ENV GREETING \"hello  there\" LONG=${NAME:-none}-${ABSENT:-absent}${NAME:+-set} `
    # in between
    TAIL='$NAME'
ENV OLD style with spaces
ADD attributes.tar /attributes/
SHELL [\"/bin/sh\", \"-e\", \"-c\"]
RUN echo \"$GREETING $LONG $TAIL $OLD\" > /env `
    # a comment
    && true
FROM inner AS unused
RUN true
FROM triggers
COPY --from=inner /env /
COPY --from=inner /attributes /copied/attributes
ADD attributes.tar /added/
RUN chmod 750 /added/named && echo more >> /added/named && touch /copied/attributes/folder/new
COPY --from=0 /etc/passwd /etc/group /copied/
COPY --from=triggers --chown=app /bin/busybox /copied/
COPY [\"a.txt\", \"dir/with space\", \"/words/\"]
COPY dir/s?b /glob/
COPY dir/[w-y]*.c /range/
WORKDIR /$SAID/words
WORKDIR ..
RUN [\"sh\", \"-c\", \"echo exec $PATH > exec\"]
USER 7:8
RUN id > /tmp/id && touch /tmp/own && mkdir -m 700 /tmp/closed
USER root
RUN ln /copied/passwd /copied/linked && ln -s nowhere /dangling && chmod 600 /copied/linked
MAINTAINER nobody
LABEL \"with space\"=\"a `
b\" multi.one=1 multi.two='2'
EXPOSE 1000 53/udp
VOLUME [\"/data\", \"/more\"]
VOLUME /third /fourth
CMD [\"overridden\"]
HEALTHCHECK NONE
ENTRYPOINT [\"/bin/sh\"]
STOPSIGNAL 9
";

/// A root with a shell, and a folder of archives, commands and links beside it.
fn files(daemon: &Daemon, name: &str, dockerfile: &str) -> PathBuf {
    let files = [
        ("Dockerfile", dockerfile),
        ("a.txt", "a"),
        ("dir/x.c", "x"),
        ("dir/with space", "s"),
        ("dir/sub/y", "y"),
        ("dir/sub/left.o", ""),
        ("dir/sub/kept.o", ""),
        (".dockerignore", "**/*.o\n!dir/sub/kept.o\n*.tar.x\n"),
    ];
    let folder = context(daemon, name, &files);
    let busybox = std::fs::read("/bin/busybox").unwrap();
    let mut root = Layer::default().folder("bin/", 0o755).folder("tmp/", 0o1777).folder("etc/", 0o755);
    root = root.file("bin/busybox", 0o755, &busybox);
    for name in ["sh", "mkdir", "chmod", "chown", "ln", "rm", "true", "false", "touch", "id"] {
        root = root.symlink(&format!("bin/{name}"), "busybox");
    }
    let users = b"root:x:0:0:root:/:/bin/sh\napp:x:7:8::/:/bin/sh\n";
    std::fs::write(
        folder.join("root.tar"),
        root.file("etc/passwd", 0o644, users).file("etc/group", 0o600, b"app:x:8:\n").bytes(),
    )
    .unwrap();
    let some = Layer::default().folder("in/", 0o750).file("in/f", 0o604, b"f").symlink("in/l", "f").bytes();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &some).unwrap();
    std::fs::write(folder.join("some.tar.gz"), gzip.finish().unwrap()).unwrap();
    std::fs::write(folder.join("other.tar"), Layer::default().file("o", 0o640, b"o").bytes()).unwrap();
    std::fs::write(folder.join("attributes.tar"), attributes()).unwrap();
    std::os::unix::fs::symlink("x.c", folder.join("dir/link")).unwrap();
    let mut dated = Command::new("find");
    dated.arg(&folder).args(["-exec", "touch", "-h", "-d", "@1000000000", "{}", "+"]);
    assert!(dated.status().unwrap().success());
    folder
}

/// A program with a capability (CAP_NET_BIND_SERVICE, permitted and effective), and names with attributes of users.
fn attributes() -> Vec<u8> {
    let mut capability = vec![1, 0, 0, 2, 0, 4];
    capability.resize(20, 0);
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |name: &str, kind: EntryType, key: &str, value: &[u8]| {
        let key = format!("{ATTRIBUTE}{key}");
        builder.append_pax_extensions([(key.as_str(), value)]).unwrap();
        let content: &[u8] = if kind.is_file() { b"x" } else { b"" };
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_size(content.len() as u64);
        header.set_mtime(MODIFIED);
        builder.append_data(&mut header, name, content).unwrap();
    };
    add("capable", EntryType::Regular, "security.capability", &capability);
    add("named", EntryType::Regular, "user.name", b"a value");
    add("folder", EntryType::Directory, "user.name", &[0, 1, 255]);
    builder.into_inner().unwrap()
}

/// Begins what an archive calls an extended attribute.
const ATTRIBUTE: &str = "SCHILY.xattr.";

/// Extended attributes of an image's files, as its layers have them.
fn attributes_of(daemon: &Daemon, image: &str) -> BTreeMap<String, BTreeMap<String, Vec<u8>>> {
    let path = daemon.folder().join("saved.tar");
    daemon.insula(&["save", "-o", path.to_str().unwrap(), image]).ok();
    let mut blobs = BTreeMap::new();
    for entry in tar::Archive::new(std::fs::File::open(path).unwrap()).entries().unwrap() {
        let mut entry = entry.unwrap();
        let (name, mut bytes) = (entry.path().unwrap().display().to_string(), Vec::new());
        entry.read_to_end(&mut bytes).unwrap();
        blobs.insert(name, bytes);
    }
    let manifest: Value = serde_json::from_slice(&blobs["manifest.json"]).unwrap();
    let mut found = BTreeMap::new();
    for layer in manifest[0]["Layers"].as_array().unwrap() {
        for entry in tar::Archive::new(&blobs[layer.as_str().unwrap()][..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let pax = entry.pax_extensions().unwrap().into_iter().flatten().map(Result::unwrap);
            let named = |pax: tar::PaxExtension<'_>| {
                let name = pax.key().unwrap().strip_prefix(ATTRIBUTE)?.to_owned();
                Some((name, pax.value_bytes().to_owned()))
            };
            // The highest layer that has a file says it all.
            found.insert(name.trim_end_matches('/').to_owned(), pax.filter_map(named).collect());
        }
    }
    found.retain(|_, attributes: &mut BTreeMap<_, _>| !attributes.is_empty());
    found
}

/// Kind, mode, owners, link or content, and whether it is as old as the context.
type Entry = (u8, u32, u64, u64, String, bool);

/// The files of an image, without what engines put where they mount.
fn entries(daemon: &Daemon, image: &str) -> BTreeMap<String, Entry> {
    let folder = context(daemon, "files-of", &[("Dockerfile", &format!("FROM {image}\n"))]);
    let archive = daemon.folder().join("files.tar");
    let output = format!("type=tar,dest={}", archive.to_str().unwrap());
    build(daemon, &folder, &["--output", &output]).ok();
    let mut archive = tar::Archive::new(std::fs::File::open(archive).unwrap());
    let mut found = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mounted = ["dev", "proc", "sys", "run", "etc/hosts", "etc/hostname", "etc/resolv.conf"];
        if mounted.contains(&name.trim_end_matches('/')) {
            continue;
        }
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        let link = entry.link_name().unwrap().map(|link| link.display().to_string());
        let header = entry.header();
        let what = link.unwrap_or_else(|| digest(&content));
        let kind = header.entry_type();
        // Folders that are made on the way have no time of their own, and one that is written to a new one.
        let old = !kind.is_dir() && header.mtime().unwrap() == MODIFIED;
        let (uid, gid) = (header.uid().unwrap(), header.gid().unwrap());
        found.insert(name, (kind.as_byte(), header.mode().unwrap(), uid, gid, what, old));
    }
    found
}

fn config(daemon: &Daemon, image: &str) -> Value {
    let text = daemon.insula(&["image", "inspect", "-f", "{{json .Config}}", image]).ok().to_owned();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    let fields = config.as_object_mut().unwrap();
    // Docker says it of commands for a shell, buildah does not; and buildah signs what it made.
    fields.remove("ArgsEscaped");
    if let Some(labels) = fields.get_mut("Labels").and_then(Value::as_object_mut) {
        labels.remove("io.buildah.version");
    }
    fields.retain(|_, value| !value.is_null() && *value != serde_json::json!({}));
    config
}

/// Builds with buildah and brings the image here; what it makes is gone with the daemon's folder.
fn buildah(daemon: &Daemon, folder: &Path, name: &str) {
    let at = |name: &str| daemon.folder().join(name).to_str().unwrap().to_owned();
    let (root, run, archive) = (at("buildah"), at("buildah-run"), at("theirs.tar"));
    let stores = ["--root", &root, "--runroot", &run, "--storage-driver", "vfs"];
    let image = format!("docker.io/library/{name}");
    let bud = ["bud", "--isolation", "chroot", "--format", "docker", "-t", &image, folder.to_str().unwrap()];
    let push = ["push", &image, &format!("docker-archive:{archive}:{image}")];
    let _ = std::fs::remove_file(&archive);
    for words in [&bud[..], &push] {
        let done = Command::new("buildah").args(stores).args(words).output().unwrap();
        assert!(done.status.success(), "{words:?}: {}", String::from_utf8_lossy(&done.stderr));
    }
    daemon.insula(&["load", "-i", &archive]).ok();
}

#[test]
fn files_and_configurations_are_those_that_buildah_makes() {
    if Command::new("buildah").arg("--version").output().is_err() {
        skip("buildah", "its builds are compared with");
        return;
    }
    let daemon = daemon!();
    for (name, dockerfile) in [("stages", STAGES), ("files", FILES), ("language", LANGUAGE)] {
        let folder = files(&daemon, name, dockerfile);
        build(&daemon, &folder, &["-t", "ours"]).ok();
        buildah(&daemon, &folder, "theirs");
        let (ours, theirs) = (entries(&daemon, "ours"), entries(&daemon, "theirs"));
        let names: BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
        let differing: Vec<_> = names
            .into_iter()
            .filter(|name| ours.get(*name) != theirs.get(*name))
            .map(|path| format!("{path}: {:?}, buildah {:?}", ours.get(path), theirs.get(path)))
            .collect();
        assert!(differing.is_empty() && ours.len() > 20, "{name}: {differing:#?}");
        let attributes = attributes_of(&daemon, "ours");
        assert_eq!(attributes, attributes_of(&daemon, "theirs"), "{name}");
        assert_eq!(attributes.len(), if name == "language" { 6 } else { 0 }, "{name}: {attributes:?}");
        assert_eq!(config(&daemon, "ours"), config(&daemon, "theirs"), "{name}");
    }
}
