//! Images in, listed, named and out.

use insula_tests::images::{Compression, Image, Layer, busybox, debian};
use insula_tests::{Daemon, daemon, text};
use serde_json::json;
use tar::EntryType;

const ALONE: &[&str] = &["--network", "none"];

/// Two layers: the second removes, replaces and hides.
fn layered() -> Image {
    let mut image = busybox();
    let first = Layer::default()
        .folder("kept/", 0o755)
        .file("kept/low", 0o644, b"low\n")
        .file("gone", 0o644, b"x")
        .folder("hidden/", 0o755)
        .file("hidden/old", 0o644, b"x")
        .entry(EntryType::Link, "kept/hard", "kept/low", 0o644, 0, b"")
        .entry(EntryType::Fifo, "kept/fifo", "", 0o600, 1000, b"");
    let second = Layer::default()
        .file(".wh.gone", 0o644, b"")
        .folder("hidden/", 0o755)
        .file("hidden/.wh..wh..opq", 0o644, b"")
        .file("hidden/new", 0o644, b"x")
        .file("kept/high", 0o644, b"high\n");
    image.layers.extend([first.bytes(), second.bytes()]);
    image.name = "layered:1".into();
    image.config["Cmd"] = json!([
        "sh",
        "-c",
        "ls / | grep gone; ls /hidden; cat /kept/low /kept/high; stat -c %h /kept/hard; stat -c %F,%u /kept/fifo"
    ]);
    image
}

const LAYERED: &str = "new\nlow\nhigh\n2\nfifo,1000";

fn check(daemon: &Daemon, archive: &[u8]) {
    daemon.load(archive).shows(&["Loaded image: layered:1"]);
    assert_eq!(daemon.insula(&["run", "--rm", "--network", "none", "layered:1"]).ok(), LAYERED);
    daemon.insula(&["rmi", "layered:1"]).shows(&["Untagged: layered:1", "Deleted: sha256:"]);
    daemon.insula(&["image", "inspect", "layered:1"]).exits(1);
}

#[test]
fn archives_of_docker() {
    let daemon = daemon!();
    let archive = layered().docker_archive();
    check(&daemon, &archive);
    check(&daemon, &Compression::Gzip.pack(&archive));
    check(&daemon, &Compression::Zstd.pack(&archive));
}

#[test]
fn oci_layouts() {
    let daemon = daemon!();
    for compression in [Compression::Plain, Compression::Gzip, Compression::Zstd] {
        check(&daemon, &layered().oci_layout(compression));
    }
}

#[test]
fn load_reads_standard_input_too() {
    let daemon = daemon!();
    daemon.insula_with(&["load"], &layered().docker_archive()).shows(&["Loaded image: layered:1"]);
    assert_eq!(
        daemon.insula_with(&["load", "-q"], &layered().docker_archive()).ok(),
        "Loaded image: layered:1"
    );
}

/// The daemon has seen enough long before the client has sent all.
#[test]
fn what_is_wrong_with_a_large_archive_is_always_told() {
    let daemon = daemon!();
    let much = vec![7; 32 << 20];
    for _ in 0..10 {
        daemon.insula_with(&["load"], &much).fails(1, &["a tar header has a wrong checksum"]);
    }
}

#[test]
fn layers_are_shared() {
    let daemon = daemon!();
    let layers = || {
        std::fs::read_dir(daemon.instance().root().join("layers"))
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name().len() == 64)
            .count()
    };
    assert_eq!(layers(), 1);
    daemon.load(&layered().docker_archive()).ok();
    assert_eq!(layers(), 3);
    daemon.insula(&["rmi", "layered:1"]).ok();
    assert_eq!(layers(), 1);
}

#[test]
fn malformed_archives_leave_nothing() {
    let daemon = daemon!();
    let good = layered();
    let wrong_digest = {
        let mut image = good.clone();
        image.layers[0] = Layer::default().file("other", 0o644, b"y").bytes();
        let manifest = json!([{"Config": "box", "RepoTags": ["bad:1"], "Layers": ["a", "b", "c2"]}]);
        Layer::default()
            .file("manifest.json", 0o644, manifest.to_string().as_bytes())
            .file("box", 0o644, &good.document())
            .file("a", 0o644, &image.layers[0])
            .file("b", 0o644, &image.layers[1])
            .file("c2", 0o644, &image.layers[2])
            .bytes()
    };
    let archive = good.docker_archive();
    let cases: [(&str, Vec<u8>); 7] = [
        ("not an archive", b"hello".to_vec()),
        ("empty", Vec::new()),
        ("no manifest", Layer::default().file("a", 0o644, b"x").bytes()),
        ("a manifest that is no JSON", Layer::default().file("manifest.json", 0o644, b"{").bytes()),
        ("a cut archive", archive[..archive.len() / 2].to_vec()),
        ("a wrong digest", wrong_digest),
        ("cut compression", {
            let packed = Compression::Gzip.pack(&archive);
            packed[..packed.len() / 2].to_vec()
        }),
    ];
    for (what, bytes) in cases {
        let outcome = daemon.load(&bytes);
        assert_eq!(outcome.code, 1, "{what}: {outcome}");
        assert!(!outcome.stderr.is_empty(), "{what}");
    }
    assert_eq!(daemon.insula(&["images", "-q", "--filter", "reference=busybox"]).ok().lines().count(), 1);
    let left = std::fs::read_dir(daemon.instance().root().join("layers/tmp")).unwrap().count();
    assert_eq!(left, 0);
}

#[test]
fn hostile_layers_stay_inside() {
    let daemon = daemon!();
    let outside = daemon.folder().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("victim"), "safe").unwrap();
    let deep = format!("../../../../../../../..{}/victim", text(&outside));
    let absolute = text(&outside).to_owned();
    let of =
        |layer: Layer| Image { name: "hostile:1".into(), config: json!({}), layers: vec![layer.bytes()] };
    let hostile = [
        Layer::default().file(&deep, 0o644, b"broken"),
        Layer::default().symlink("out", &absolute).file("out/victim", 0o644, b"broken"),
        Layer::default().entry(EntryType::Link, "hard", &deep, 0o644, 0, b"").file("hard", 0o644, b"broken"),
        Layer::default().symlink("up", "../../../../../../../../..").file(
            &format!("up{absolute}/victim"),
            0o644,
            b"broken",
        ),
        Layer::default().file(".wh...", 0o644, b"").file(".wh..", 0o644, b""),
    ];
    for layer in hostile {
        // Refused or contained, either is right.
        daemon.load(&of(layer).docker_archive());
        daemon.insula(&["rmi", "-f", "hostile:1"]);
        assert_eq!(std::fs::read_to_string(outside.join("victim")).unwrap(), "safe");
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
    }
}

#[test]
fn import_makes_an_image_of_a_root_file_system() {
    let daemon = daemon!();
    let path = daemon.folder().join("root.tar");
    std::fs::write(&path, &busybox().layers[0]).unwrap();
    let changes = ["-c", "CMD [\"echo\", \"imported\"]", "-c", "ENV A=b", "-m", "a message"];
    let id = daemon.insula(&[&["import"], &changes[..], &[text(&path), "made:1"]].concat());
    assert!(id.ok().starts_with("sha256:"), "{id}");
    assert_eq!(daemon.insula(&["run", "--rm", "--network", "none", "made:1"]).ok(), "imported");
    let env = daemon.insula(&["image", "inspect", "-f", "{{json .Config.Env}}", "made:1"]);
    assert!(env.ok().contains("A=b"));
    let piped = daemon.insula_with(&["import", "-", "piped"], &std::fs::read(&path).unwrap());
    assert!(piped.ok().starts_with("sha256:"));
    daemon.insula(&["history", "--format", "{{.Comment}}", "piped"]).shows(&["Imported from -"]);
    daemon.insula(&["import", "/no/such"]).fails(1, &["/no/such"]);
}

#[test]
fn names_of_images() {
    let daemon = daemon!();
    daemon.insula(&["tag", "busybox", "registry.example:5000/a/b:2"]).ok();
    daemon.insula(&["images"]).shows(&[
        "REPOSITORY",
        "TAG",
        "IMAGE ID",
        "CREATED",
        "SIZE",
        "registry.example:5000/a/b",
    ]);
    let ids = daemon.insula(&["images", "-q", "--no-trunc"]);
    assert!(ids.ok().lines().any(|line| line.starts_with("sha256:")));
    daemon.insula(&["tag", "busybox", "UPPER"]).exits(1);
    daemon.insula(&["tag", "busybox", "sha256:abc"]).fails(1, &["ambiguous tag"]);
    daemon.insula(&["tag", "nosuch", "x"]).fails(1, &["nosuch"]);
    daemon.insula(&["rmi", "busybox"]).shows(&["Untagged: busybox:latest"]);
    // Still there by its other name.
    let run = ["run", "--rm", "--network", "none", "registry.example:5000/a/b:2", "true"];
    daemon.insula(&run).ok();
    daemon.insula(&["run", "--rm", "busybox", "true"]).fails(125, &["busybox"]);
}

#[test]
fn as_many_images_stay_as_a_prune_is_told_to_keep() {
    let daemon = daemon!(bare);
    // Made at the same moment: their tags say which is the newest.
    for name in ["web:1", "web:2", "web:3", "db:1", "db:2"] {
        let mut image = busybox();
        image.layers.push(Layer::default().file("name", 0o644, name.as_bytes()).bytes());
        image.name = name.into();
        daemon.load(&image.docker_archive()).ok();
    }
    let left = || {
        let listed = daemon.insula(&["images", "--format", "{{.Repository}}:{{.Tag}}"]);
        let mut names: Vec<String> =
            listed.ok().lines().filter(|name| !name.starts_with("host:")).map(str::to_owned).collect();
        names.sort();
        names.join(" ")
    };
    let prune = |filters: &[&str]| {
        let filters: Vec<&str> = filters.iter().flat_map(|filter| ["--filter", filter]).collect();
        daemon.insula(&[&["image", "prune", "-af"], &filters[..]].concat())
    };
    prune(&["keep=few"]).fails(1, &["keep=few", "keep=3"]);
    prune(&["keep=3"]).shows(&["Total reclaimed space: 0B"]);
    // Of what it takes nothing is left, of what both have all of it.
    prune(&["keep=2", "reference=web"]).shows(&["untagged: web:1", "Total reclaimed space: 5B"]);
    prune(&["keep=1", "reference=web"]).shows(&["untagged: web:2"]);
    assert_eq!(left(), "db:1 db:2 web:3");
    daemon.insula(&["tag", "db:1", "other:1"]).ok();
    // db:1 is the newest of one of its repositories.
    prune(&["keep=1"]).shows(&["Total reclaimed space: 0B"]);
    assert_eq!(left(), "db:1 db:2 other:1 web:3");
    prune(&[]).shows(&["untagged: web:3", "deleted: "]);
    assert_eq!(left(), "");
}

#[test]
fn an_image_in_use_is_kept() {
    let daemon = daemon!();
    let id = daemon.sleeper(ALONE);
    daemon.insula(&["rmi", "busybox"]).fails(1, &[&id[..12]]);
    let image = daemon.insula(&["images", "-q", "--no-trunc", "busybox"]).ok().to_owned();
    daemon.insula(&["rmi", "-f", &image]).fails(1, &[&id[..12]]);
    // Force takes the name away, as with Docker; the image stays while it is used.
    assert_eq!(daemon.insula(&["rmi", "-f", "busybox"]).ok(), "Untagged: busybox:latest");
    daemon.exec(&id, "true").ok();
    daemon.insula(&["rm", "-f", &id]).ok();
    daemon.insula(&["rmi", &image]).shows(&["Deleted: sha256:"]);
    daemon.insula(&["rmi", &image]).exits(1);
}

#[test]
fn a_distribution_runs_from_its_packages() {
    let daemon = daemon!();
    let root = debian(&[]);
    daemon.insula(&["import", text(&root), "debian:12"]).ok();
    let outcome = daemon.insula(&[
        "run",
        "--rm",
        "debian:12",
        "bash",
        "-c",
        "cat /etc/debian_version; apt-get --version | head -1; su nobody -s /bin/sh -c id",
    ]);
    outcome.shows(&["12.", "apt 2", "uid=65534(nobody)"]);
}
