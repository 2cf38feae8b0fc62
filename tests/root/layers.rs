//! What is in which layer, and how images differ.

use insula_tests::images::{Layer, busybox};
use insula_tests::{Daemon, daemon};

fn load(daemon: &Daemon, name: &str, layers: Vec<Layer>) {
    let mut image = busybox();
    image.layers.extend(layers.into_iter().map(Layer::bytes));
    image.name = name.into();
    daemon.load(&image.docker_archive()).ok();
}

#[test]
fn waste_and_differences_are_shown() {
    let daemon = daemon!(bare);
    let base = || {
        Layer::default()
            .folder("store", 0o755)
            .file("store/big", 0o644, &[b'x'; 3000])
            .file("store/kept", 0o644, b"kept")
            .file("same", 0o644, b"same")
            .symlink("link", "same")
    };
    load(&daemon, "old:1", vec![base()]);
    // It overwrites one file, removes a folder, and brings a file that is no other.
    let upper = Layer::default()
        .file("same", 0o644, b"same")
        .file(".wh.store", 0o644, b"")
        .file("new", 0o600, b"new")
        .symlink("link", "new");
    load(&daemon, "new:1", vec![base(), upper]);
    let changes = daemon.insula(&["diff", "old:1", "new:1"]);
    assert_eq!(changes.ok(), "C /link\nA /new\nD /store\nD /store/big\nD /store/kept");
    let back = daemon.insula(&["diff", "new:1", "old:1"]);
    assert_eq!(back.ok(), "C /link\nD /new\nA /store\nA /store/big\nA /store/kept");
    assert_eq!(daemon.insula(&["diff", "old:1", "old:1"]).ok(), "");
    let tree = daemon.insula(&["images", "--tree", "new"]);
    tree.shows(&["new:1", "(3.01kB wasted)", "shared with old:1", "└─"]);
    assert!(!tree.stdout.contains("\nold:1"), "{tree}");
    daemon.insula(&["images", "--tree", "-q"]).fails(1, &["--tree"]);
    daemon.insula(&["diff", "old:1", "nosuch"]).fails(1, &["No such image: nosuch"]);
    daemon.insula(&["diff", "host", "old:1"]).fails(1, &["has no layers"]);
}
