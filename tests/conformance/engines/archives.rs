//! Archives that others take from insula, and insula from them.

use std::fs;
use std::process::Command;

use insula_tests::{Daemon, text};

use super::of;
use super::place::Place;

/// Says so when what a container of insula's changed is there, and nothing else of it.
const CHANGED: &str = "test ! -e /bin/true && test ! -e /opt/old && test -s /opt/new \
                       && test \"$(stat -c '%a %u:%g %h' /made)\" = '640 5:6 2' && cat /made";
const CHANGE: &str = "rm /bin/true; rm -r /opt; mkdir /opt; echo new >/opt/new; echo changed >/made; \
                      chmod 640 /made; chown 5:6 /made; ln /made /also; echo ready";

/// A daemon with the image `changed:1`, of a container that changed its files.
pub(super) fn changed() -> Daemon {
    let daemon = Daemon::start();
    daemon
        .insula(&[
            "run",
            "--name",
            "old",
            "--network",
            "none",
            "busybox",
            "sh",
            "-c",
            "mkdir /opt; echo >/opt/old",
        ])
        .ok();
    daemon.insula(&["commit", "old", "base:1"]).ok();
    daemon.insula(&["run", "--name", "one", "--network", "none", "base:1", "sh", "-c", CHANGE]).ok();
    daemon.insula(&["commit", "one", "changed:1"]).ok();
    daemon
}

fn layers(daemon: &Daemon, image: &str) -> String {
    daemon.insula(&["image", "inspect", "-f", "{{json .RootFS.Layers}}", image]).ok().to_owned()
}

/// `save`, `export` and `commit` of insula for an engine with Docker's verbs, and back.
pub(super) fn trade(place: &Place, engine: impl Fn(&[&str]) -> Command) {
    let daemon = changed();
    let parent = format!("/{}", place.group);
    let run = |image: &str| {
        let own = ["run", "--rm", "--network", "none", "--cgroup-parent", &parent, image];
        of(engine(&[&own[..], &["sh", "-c", CHANGED]].concat()))
    };
    daemon.insula(&["save", "-o", &place.at("saved.tar"), "changed:1"]).ok();
    of(engine(&["load", "-i", &place.at("saved.tar")])).shows(&["changed:1"]);
    assert_eq!(run("changed:1").ok(), "changed");
    let theirs = of(engine(&["image", "inspect", "-f", "{{json .RootFS.Layers}}", "changed:1"]));
    assert_eq!(theirs.ok(), layers(&daemon, "changed:1"));
    daemon.insula(&["export", "-o", &place.at("exported.tar"), "one"]).ok();
    of(engine(&["import", &place.at("exported.tar"), "flat:1"])).ok();
    assert_eq!(run("flat:1").ok(), "changed");

    let was = layers(&daemon, "changed:1");
    of(engine(&["save", "-o", &place.at("theirs.tar"), "changed:1"])).ok();
    of(engine(&["create", "--name", "flat", "--network", "none", "changed:1", "sh"])).ok();
    of(engine(&["export", "-o", &place.at("flat.tar"), "flat"])).ok();
    of(engine(&["rm", "flat"])).ok();
    let there = Daemon::bare();
    there.insula(&["load", "-i", &place.at("theirs.tar")]).ok();
    let name = if there.insula(&["image", "inspect", "changed:1"]).code == 0 {
        "changed:1"
    } else {
        "localhost/changed:1"
    };
    assert_eq!(layers(&there, name), was);
    there.insula(&["import", &place.at("flat.tar"), "flat:1"]).ok();
    for image in [name, "flat:1"] {
        let run = ["run", "--rm", "--network", "none", image, "sh", "-c", CHANGED];
        assert_eq!(there.insula(&run).ok(), "changed");
    }
}

#[test]
fn skopeo() {
    let Some(place) = Place::with(&["skopeo"]) else { return };
    let daemon = changed();
    let was = layers(&daemon, "changed:1");
    // The same difference is the same layer, byte for byte.
    daemon.insula(&["commit", "one", "again:1"]).ok();
    assert_eq!(layers(&daemon, "again:1"), was);
    let saved = |name: &str, image: &str| {
        daemon.insula(&["save", "-o", &place.at(name), image]).ok();
        fs::read(place.path(name)).unwrap()
    };
    assert!(
        saved("saved.tar", "changed:1") == saved("twice.tar", "changed:1"),
        "an archive tells when it was made"
    );
    let copy = |from: &str, to: &str| {
        let mut command = place.command("skopeo");
        of({
            command.args(["--policy", text(&policy(&place)), "copy", "-q", from, to]);
            command
        })
        .ok();
    };
    let saved = place.at("saved.tar");
    // As the one and as the other form, of which the archive is both.
    for (from, to, archive) in [
        (format!("docker-archive:{saved}"), "oci-archive", "one.tar"),
        (format!("oci-archive:{saved}"), "docker-archive", "other.tar"),
    ] {
        copy(&from, &format!("{to}:{}:changed:1", place.at(archive)));
        let there = Daemon::bare();
        let loaded = there.insula(&["load", "-i", &place.at(archive)]);
        let name = loaded.ok().rsplit(": ").next().unwrap().to_owned();
        // An image without a name is said by its id.
        let name = name.trim().trim_start_matches("sha256:").to_owned();
        assert_eq!(layers(&there, &name), was);
        let run = ["run", "--rm", "--network", "none", &name, "sh", "-c", CHANGED];
        assert_eq!(there.insula(&run).ok(), "changed");
    }
}

fn policy(place: &Place) -> std::path::PathBuf {
    let path = place.path("policy.json");
    fs::write(&path, r#"{"default": [{"type": "insecureAcceptAnything"}]}"#).unwrap();
    path
}
