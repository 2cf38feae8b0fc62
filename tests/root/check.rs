//! What is damaged on the disk is found, and repaired where it can be.

use std::fs;
use std::path::{Path, PathBuf};

use insula_tests::images::{Compression, Image, Layer, busybox};
use insula_tests::{Daemon, daemon, registry};
use serde_json::Value;

fn image(name: &str) -> Image {
    let mut image = busybox();
    image.layers.push(Layer::default().file("precious", 0o644, b"precious content\n").bytes());
    image.name = name.into();
    image
}

/// The file of the layer that has it.
fn precious(daemon: &Daemon) -> PathBuf {
    let layers = daemon.instance().root().join("layers");
    let paths = fs::read_dir(layers).unwrap().map(|entry| entry.unwrap().path().join("precious"));
    paths.into_iter().find(|path| path.exists()).unwrap()
}

fn damage(path: &Path) {
    fs::write(path, b"damaged! content\n").unwrap();
}

/// Output of a check that finds what it cannot or must not repair.
#[track_caller]
fn fails(daemon: &Daemon, words: &[&str], options: &[&str]) {
    let outcome = daemon.insula(&[&["system", "check"], options].concat());
    outcome.exits(1);
    for word in words {
        assert!(outcome.stdout.contains(word), "the output does not have {word:?}: {outcome}");
    }
}

/// Kinds of what is found.
fn found(daemon: &Daemon) -> Vec<String> {
    let outcome = daemon.insula(&["system", "check", "--format", "json"]);
    let lines = outcome.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let kinds: Vec<String> = lines.map(|line| line["Kind"].as_str().unwrap().to_owned()).collect();
    outcome.exits(if kinds.is_empty() { 0 } else { 1 });
    kinds
}

#[test]
fn what_was_pulled_is_repaired() {
    let registry = registry!();
    let daemon = daemon!(bare);
    registry.put(&image("app:1"), "app", "1", Compression::Gzip);
    let name = registry.name("app:1");
    daemon.insula(&["pull", &name]).ok();
    daemon
        .insula(&["system", "check"])
        .shows(&["2 blobs, 2 documents, 1 image, 2 layers", ": nothing is wrong"]);
    let before = fs::read(precious(&daemon)).unwrap();
    damage(&precious(&daemon));
    fails(
        &daemon,
        &["layer sha256:", "its content has", &name, "1 wrong; --repair repairs what can be"],
        &[],
    );
    assert_eq!(fs::read(precious(&daemon)).unwrap(), b"damaged! content\n", "a look changes nothing");
    // The files of a running container are left to it.
    let id = daemon.insula(&["run", "-d", "--network", "none", &name, "sleep", "1000"]).ok().to_owned();
    fails(&daemon, &["stop it first", "1 not repaired"], &["--repair"]);
    daemon.insula(&["rm", "-f", &id]).ok();
    daemon.insula(&["system", "check", "--repair"]).shows(&["repaired: unpacked again", "all repaired"]);
    assert_eq!(fs::read(precious(&daemon)).unwrap(), before);
    // What only the registry has.
    let inspected: Value = serde_json::from_str(daemon.insula(&["image", "inspect", &name]).ok()).unwrap();
    let blobs = daemon.instance().root().join("content/blobs/sha256");
    for blob in fs::read_dir(&blobs).unwrap() {
        damage(&blob.unwrap().path());
    }
    damage(&precious(&daemon));
    assert_eq!(found(&daemon), ["document", "document", "blob", "blob", "layer"]);
    daemon.insula(&["images"]).ok();
    daemon
        .insula(&["system", "check", "--repair"])
        .shows(&["fetched from 127.0.0.1:", "5 wrong, all repaired"]);
    assert!(found(&daemon).is_empty());
    let again: Value = serde_json::from_str(daemon.insula(&["image", "inspect", &name]).ok()).unwrap();
    assert_eq!(inspected, again);
    assert_eq!(
        daemon.insula(&["run", "--rm", "--network", "none", &name, "cat", "/precious"]).ok(),
        "precious content"
    );
}

#[test]
fn what_nobody_has_is_told() {
    let daemon = daemon!(bare);
    daemon.load(&image("app:1").docker_archive()).ok();
    damage(&precious(&daemon));
    fails(&daemon, &["app:1", "no registry is known to have it", "1 wrong, 1 not repaired"], &["--repair"]);
    // What makes the archives again is as needed as the files.
    let recipes = daemon.instance().root().join("layers/recipes");
    for recipe in fs::read_dir(recipes).unwrap() {
        fs::remove_file(recipe.unwrap().path().join("tar")).unwrap();
    }
    assert_eq!(found(&daemon), ["layer", "layer"]);
}
