//! Archives as `docker save` and OCI tools write them, made here piece by piece.

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;

use insula_base::{ContainerId, DiffId, Kind, Kinded as _};
use insula_spec::image::media;
use serde_json::json;

use super::*;
use crate::{Collection, Record, Store, content};

/// Unpacking sets owners, so it needs root; a run that is to be complete must not skip.
macro_rules! need_root {
    () => {
        if !rustix::process::geteuid().is_root() {
            assert!(
                !std::env::var("INSULA_TEST_REQUIRE").is_ok_and(|needs| needs.contains("root")),
                "root is required and not there"
            );
            eprintln!("skipped: needs root");
            return;
        }
    };
}

mod damage;
mod gc;
mod index;
mod ingest;
mod sharing;

fn store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    (folder, store)
}

fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_000_000_000);
        header.set_uid(0);
        header.set_gid(0);
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn bzip2(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn config(layers: &[&[u8]], more: &str) -> Vec<u8> {
    let diffs: Vec<_> = layers.iter().map(|layer| content::digest(layer).to_string()).collect();
    json!({
        "architecture": "amd64", "os": "linux", "comment": more, "created": "2024-05-06T07:08:09Z",
        "config": {"Cmd": ["/bin/sh"]}, "rootfs": {"type": "layers", "diff_ids": diffs},
    })
    .to_string()
    .into_bytes()
}

/// As Docker 20.10 writes it: layers first, links for layers that come twice, manifest last.
fn docker_archive(name: &str, layers: &[&[u8]]) -> Vec<u8> {
    let config = config(layers, name);
    let paths: Vec<_> = (0..layers.len()).map(|at| format!("{at:064}/layer.tar")).collect();
    let manifest = json!([{"Config": "config.json", "RepoTags": [name], "Layers": paths}]).to_string();
    let mut members: Vec<(&str, &[u8])> = Vec::new();
    for (path, layer) in paths.iter().zip(layers) {
        members.push((path, layer));
    }
    members.push(("config.json", &config));
    members.push(("manifest.json", manifest.as_bytes()));
    members.push(("repositories", b"{}"));
    tar(&members)
}

/// As skopeo and buildah write it, compressed layers and all.
fn oci_archive(name: &str, layers: &[&[u8]], compress: fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let config = config(layers, name);
    let blobs: Vec<Vec<u8>> = layers.iter().map(|layer| compress(layer)).collect();
    let descriptor = |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": content::digest(bytes), "size": bytes.len()});
    let manifest = json!({
        "schemaVersion": 2, "mediaType": media::MANIFEST, "config": descriptor(media::CONFIG, &config),
        "layers": blobs.iter().map(|blob| descriptor(media::LAYER_GZIP, blob)).collect::<Vec<_>>(),
    })
    .to_string();
    let mut inner = descriptor(media::MANIFEST, manifest.as_bytes());
    inner["platform"] = json!({"architecture": builtin::architecture(), "os": "linux"});
    let mut foreign = inner.clone();
    foreign["platform"] = json!({"architecture": "s390x", "os": "linux"});
    foreign["digest"] = json!(content::digest(b"not in the archive"));
    let nested = json!({"schemaVersion": 2, "manifests": [foreign, inner]}).to_string();
    let mut outer = descriptor(media::INDEX, nested.as_bytes());
    outer["annotations"] = json!({"io.containerd.image.name": name});
    let index = json!({"schemaVersion": 2, "manifests": [outer]}).to_string();
    let path = |bytes: &[u8]| format!("./blobs/sha256/{}", content::digest(bytes).hex());
    let mut members: Vec<(String, &[u8])> =
        vec![("./oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#)];
    for bytes in [config.as_slice(), manifest.as_bytes(), nested.as_bytes()]
        .into_iter()
        .chain(blobs.iter().map(Vec::as_slice))
    {
        members.push((path(bytes), bytes));
    }
    members.push(("./index.json".into(), index.as_bytes()));
    tar(&members.iter().map(|(name, bytes)| (name.as_str(), *bytes)).collect::<Vec<_>>())
}

fn load(store: &Store, archive: &[u8]) -> Result<Vec<Loaded>> {
    store.images().load(archive, &mut |_| {})
}

/// Nothing of a failed load is left: no row, no folder, no blob.
fn assert_empty(store: &Store) {
    store.images().wait_synced();
    assert!(store.layers().recipes().all().unwrap().is_empty(), "recipes are left");
    let root = store.root();
    for folder in ["layers/tmp", "layers/files", "content/ingest", "content/blobs/sha256"] {
        assert_eq!(std::fs::read_dir(root.join(folder)).unwrap().count(), 0, "{folder}");
    }
    // Only the folders that are always there.
    assert_eq!(std::fs::read_dir(root.join("layers")).unwrap().count(), 3);
    assert!(store.images().list().unwrap().iter().all(|image| image.kind != ImageKind::Stored));
}

#[test]
fn layers_of_a_docker_archive_come_in_any_compression() {
    need_root!();
    let plain = tar(&[("etc/one", b"1")]);
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
    for compress in [gzip, zstd, xz, bzip2] {
        let (_folder, store) = store();
        let packed = compress(&plain);
        let config = config(&[&plain], "x");
        let manifest = json!([{"Config": "c.json", "RepoTags": ["app:1"], "Layers": ["l/layer.tar"]}]);
        let archive = tar(&[
            ("l/layer.tar", &packed),
            ("c.json", &config),
            ("manifest.json", manifest.to_string().as_bytes()),
        ]);
        load(&store, &archive).unwrap();
        let image = store.images().resolve("app:1").unwrap();
        assert_eq!(std::fs::read(image.layer_paths()[0].join("etc/one")).unwrap(), b"1");
        // What is saved of it can be loaded again.
        let mut saved = Vec::new();
        store.images().save(&["app:1".to_owned()], IndexParts::Meant, &mut saved).unwrap();
        let (_other, other) = self::store();
        load(&other, &saved).unwrap();
        assert_eq!(other.images().resolve("app:1").unwrap().id, image.id);
    }
}

#[test]
fn a_docker_archive_is_loaded_in_any_compression() {
    need_root!();
    let (one, two) = (tar(&[("etc/one", b"1"), ("bin/sh", b"#!")]), tar(&[("etc/two", b"22")]));
    let archive = docker_archive("app:1", &[&one, &two]);
    let zstd = zstd::encode_all(&archive[..], 1).unwrap();
    for bytes in [archive.clone(), gzip(&archive), zstd, xz(&archive), bzip2(&archive)] {
        let (_folder, store) = store();
        let mut seen = Vec::new();
        let loaded = store.images().load(&bytes[..], &mut |progress| seen.push(progress)).unwrap();
        assert_eq!(loaded[0].references[0].familiar(), "app:1");
        assert!(
            seen.iter()
                .any(|p| matches!(p, Progress::Layer { bytes, total: Some(total), .. } if bytes == total))
        );
        let image = store.images().resolve("app:1").unwrap();
        assert_eq!((image.id.clone(), image.size), (loaded[0].id.clone(), 5));
        assert_eq!(image.config.config.cmd, ["/bin/sh"]);
        let paths = image.layer_paths();
        assert_eq!(std::fs::read(paths[0].join("etc/one")).unwrap(), b"1");
        assert_eq!(std::fs::read(paths[1].join("etc/two")).unwrap(), b"22");
        assert_eq!(image.layers[0].chain_id.0, content::digest(&one));
        let both = format!("{} {}", content::digest(&one), content::digest(&two));
        assert_eq!(image.layers[1].chain_id.0, content::digest(both.as_bytes()));
        for text in [image.id.as_str(), image.id.hex(), &image.id.hex()[..5], "docker.io/library/app:1"] {
            assert_eq!(store.images().resolve(text).unwrap().id, image.id, "{text}");
        }
    }
}

#[test]
fn an_oci_layout_is_loaded_in_any_compression() {
    need_root!();
    let layer = tar(&[("etc/one", b"1")]);
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
    for compress in [<[u8]>::to_vec as fn(&[u8]) -> Vec<u8>, gzip, zstd] {
        let (_folder, store) = store();
        let loaded = load(&store, &oci_archive("host.example:5000/app:2", &[&layer], compress)).unwrap();
        assert_eq!(loaded[0].references[0].familiar(), "host.example:5000/app:2");
        let image = store.images().resolve("host.example:5000/app:2").unwrap();
        assert_eq!(image.layers[0].diff_id.0, content::digest(&layer));
        assert!(store.content().contains(image.manifest.as_ref().unwrap()));
        assert_eq!(std::fs::read(image.layers[0].path.join("etc/one")).unwrap(), b"1");
    }
}

#[test]
fn layers_are_shared_and_removed_with_their_last_image() {
    need_root!();
    let (_folder, store) = store();
    let (base, one, two) = (tar(&[("base", b"b")]), tar(&[("one", b"1")]), tar(&[("two", b"2")]));
    load(&store, &docker_archive("one", &[&base, &one])).unwrap();
    load(&store, &docker_archive("two", &[&base, &two])).unwrap();
    let images = store.images();
    let (first, second) = (images.resolve("one").unwrap(), images.resolve("two").unwrap());
    assert_eq!(first.layers[0], second.layers[0]);
    let removals = images.remove("one", Force::No, &|_| false).unwrap();
    let chain = first.layers[1].chain_id.0.clone();
    assert_eq!(
        removals,
        [
            Removal::Untagged(Reference::parse("one").unwrap()),
            Removal::Deleted(first.id.clone()),
            Removal::Deleted(chain)
        ]
    );
    assert!(!first.layers[1].path.exists() && second.layers[0].path.exists());
    images.remove(second.id.short(), Force::No, &|_| false).unwrap();
    images.wait_synced();
    assert_empty(&store);
    assert_eq!(images.remove("two", Force::No, &|_| false).unwrap_err().kind(), Kind::NotFound);
}

#[test]
fn the_same_layer_may_come_twice() {
    need_root!();
    let (_folder, store) = store();
    let (empty, layer) = (tar(&[]), tar(&[("dir/file", b"x")]));
    load(&store, &docker_archive("app", &[&layer, &empty, &layer, &empty])).unwrap();
    let image = store.images().resolve("app").unwrap();
    let inode = |at: usize| std::fs::metadata(image.layers[at].path.join("dir/file")).unwrap().ino();
    assert_eq!(inode(0), inode(2));
    assert_eq!(image.size, 2);
    // A plain layer that the store has is not unpacked again, at whatever place it is needed.
    let other = tar(&[("other", b"o")]);
    let mut seen = Vec::new();
    let archive = oci_archive("two", &[&other, &layer], <[u8]>::to_vec);
    store.images().load(&archive[..], &mut |progress| seen.push(progress)).unwrap();
    assert!(seen.iter().any(|progress| matches!(progress, Progress::LayerExists { .. })));
    let second = store.images().resolve("two").unwrap();
    assert_eq!(std::fs::metadata(second.layers[1].path.join("dir/file")).unwrap().ino(), inode(0));
    assert_ne!(second.layers[1].chain_id, image.layers[0].chain_id);
}

#[test]
fn a_failed_load_leaves_nothing() {
    need_root!();
    let layer = tar(&[("etc/one", b"1")]);
    let good = docker_archive("app", &[&layer]);
    let escaping = {
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        header.set_mode(0o644);
        header.as_old_mut().name[..8].copy_from_slice(b"../../xx");
        header.set_cksum();
        let mut builder = tar::Builder::new(Vec::new());
        builder.append(&header, &b"x"[..]).unwrap();
        builder.into_inner().unwrap()
    };
    let other = tar(&[("etc/other", b"1")]);
    let wrong_diff = {
        let config = config(&[&other], "");
        let manifest = json!([{"Config": "c", "RepoTags": ["app"], "Layers": ["l.tar"]}]).to_string();
        tar(&[("l.tar", &layer), ("c", &config), ("manifest.json", manifest.as_bytes())])
    };
    let lacking = {
        let config = config(&[&layer], "");
        let manifest = json!([{"Config": "c", "RepoTags": ["app"], "Layers": ["l.tar"]}]).to_string();
        tar(&[("c", &config), ("manifest.json", manifest.as_bytes())])
    };
    let wrong_count = {
        let config = config(&[&layer, &other], "");
        let manifest = json!([{"Config": "c", "RepoTags": ["app"], "Layers": ["l.tar"]}]).to_string();
        tar(&[("l.tar", &layer), ("c", &config), ("manifest.json", manifest.as_bytes())])
    };
    let bad_gzip = gzip(&good)[..200].to_vec();
    for (what, archive) in [
        ("an escaping layer", docker_archive("app", &[&layer, &escaping])),
        ("a wrong diff id", wrong_diff),
        ("a missing layer", lacking),
        ("a missing layer in the list", wrong_count),
        ("a cut archive", good[..good.len() / 3].to_vec()),
        ("a cut gzip", bad_gzip),
        ("a bad name", docker_archive("UPPER", &[&layer])),
        ("a built-in name", docker_archive("host", &[&layer])),
        ("no images", tar(&[("hello", b"x")])),
        ("no archive", b"hello, this is no archive".repeat(100)),
        ("nothing", Vec::new()),
        ("no json", tar(&[("manifest.json", b"[{")])),
        ("a tampered blob", {
            let mut bytes = oci_archive("app", &[&layer], <[u8]>::to_vec);
            let at = bytes.windows(7).position(|w| w == b"etc/one").unwrap();
            bytes[at + 512] = b'2';
            bytes
        }),
    ] {
        let (_folder, store) = store();
        let error = load(&store, &archive).unwrap_err();
        assert!(
            matches!(error.kind(), Kind::InvalidArgument | Kind::Conflict),
            "{what}: {error} {:?}",
            error.kind()
        );
        assert_empty(&store);
    }
}

#[test]
fn an_import_becomes_an_image() {
    need_root!();
    let (_folder, store) = store();
    let rootfs = tar(&[("bin/sh", b"#!"), ("etc/passwd", b"root")]);
    let options = ImportOptions {
        reference: Some(Reference::parse("mine:1").unwrap()),
        config: RunConfig { cmd: vec!["/bin/sh".into()], env: vec!["A=b".into()], ..RunConfig::default() },
        message: "imported".into(),
        architecture: String::new(),
    };
    let id = store.images().import(&gzip(&rootfs)[..], options, &mut |_| {}).unwrap();
    let image = store.images().resolve("mine:1").unwrap();
    assert_eq!((image.id.clone(), image.config.config.env[0].as_str()), (id, "A=b"));
    assert_eq!(image.config.rootfs.diff_ids, [DiffId(content::digest(&rootfs))]);
    assert_eq!(image.config.history[0].comment, "imported");
    assert_eq!(image.size, 6);
    for bytes in [xz(&rootfs), bzip2(&rootfs)] {
        let id = store.images().import(&bytes[..], ImportOptions::default(), &mut |_| {}).unwrap();
        let image = store.images().resolve(id.as_str()).unwrap();
        assert_eq!(image.config.rootfs.diff_ids, [DiffId(content::digest(&rootfs))]);
    }
    for bytes in [&b""[..], b"hello"] {
        let error = store.images().import(bytes, ImportOptions::default(), &mut |_| {}).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
    }
}

#[test]
fn names_move_and_are_removed_one_by_one() {
    need_root!();
    let (_folder, store) = store();
    let images = store.images();
    let name = |text: &str| Reference::parse(text).unwrap();
    load(&store, &docker_archive("a", &[&tar(&[("a", b"a")])])).unwrap();
    load(&store, &docker_archive("b", &[&tar(&[("b", b"b")])])).unwrap();
    let (a, b) = (images.resolve("a").unwrap().id, images.resolve("b").unwrap().id);
    assert_eq!(images.tag("a", &name("c:1")).unwrap(), None);
    assert_eq!(images.tag("b", &name("c:1")).unwrap(), Some(a.clone()));
    assert_eq!(images.tag("b", &name("c:1")).unwrap(), None);
    assert_eq!(images.resolve("c:1").unwrap().id, b);
    assert_eq!(images.tag("none", &name("d")).unwrap_err().kind(), Kind::NotFound);
    assert_eq!(images.tag("a", &name("host")).unwrap_err().kind(), Kind::Conflict);
    assert_eq!(images.tag("host", &name("d")).unwrap_err().kind(), Kind::Conflict);
    assert_eq!(images.remove("c:1", Force::No, &|_| false).unwrap(), [Removal::Untagged(name("c:1"))]);
    images.tag("b", &name("e")).unwrap();
    let conflict = images.remove(b.short(), Force::No, &|_| false).unwrap_err();
    let words = format!(
        "conflict: unable to delete {} (must be forced) - image is referenced in multiple repositories",
        b.short()
    );
    assert_eq!((conflict.to_string(), conflict.kind()), (words, Kind::Conflict));
    assert_eq!(images.remove(b.short(), Force::Yes, &|_| false).unwrap().len(), 4);
    assert_eq!(images.resolve("b").unwrap_err().to_string(), "No such image: b");
    assert_eq!(images.remove("host", Force::Yes, &|_| false).unwrap_err().kind(), Kind::Conflict);
    images.resolve("a").unwrap();
}

#[test]
fn used_images_keep_their_layers() {
    need_root!();
    let (folder, store) = store();
    load(&store, &docker_archive("app", &[&tar(&[("a", b"a")])])).unwrap();
    let image = store.images().resolve("app").unwrap();
    let owner = ContainerId::random();
    let missing = content::digest(b"missing");
    store
        .state()
        .transaction(|tx| {
            let record = Record { id: owner.to_string(), name: None, doc: Vec::new() };
            tx.records(Collection::Containers).insert(&record)?;
            assert_eq!(store.images().use_image(tx, &missing, "x").unwrap_err().kind(), Kind::NotFound);
            store.images().use_image(tx, &image.id, owner.as_str())
        })
        .unwrap();
    let images = store.images();
    assert_eq!(images.users(&image.id).unwrap(), [owner.as_str()]);
    for text in ["app", image.id.short()] {
        let error = images.remove(text, Force::No, &|_| false).unwrap_err();
        assert_eq!(error.kind(), Kind::Conflict);
        assert!(error.to_string().contains(owner.short()), "{error}");
    }
    assert_eq!(images.remove(image.id.short(), Force::Yes, &|_| true).unwrap_err().kind(), Kind::Conflict);
    let removals = images.remove("app", Force::Yes, &|_| false).unwrap();
    assert_eq!(removals.len(), 2, "{removals:?}");
    assert!(image.layers[0].path.is_dir(), "the container still needs the layer");
    drop(store);
    let store = Store::open(folder.path()).unwrap();
    assert!(image.layers[0].path.is_dir(), "a restart takes it away");
    // The same image again, while the old use still stands.
    load(&store, &docker_archive("app", &[&tar(&[("a", b"a")])])).unwrap();
    store.images().remove("app", Force::Yes, &|_| false).unwrap();
    store.images().release_image(owner.as_str(), |_| Ok(())).unwrap();
    store.images().release_image(owner.as_str(), |_| Ok(())).unwrap();
    store.images().wait_synced();
    assert_empty(&store);
}

#[test]
fn two_loads_of_the_same_layer_at_once_agree() {
    need_root!();
    let (_folder, store) = store();
    let layer = tar(&[("etc/one", b"1"), ("etc/two", &[7; 300_000])]);
    std::thread::scope(|scope| {
        for at in 0..4 {
            let (store, layer) = (&store, &layer);
            scope.spawn(move || load(store, &docker_archive(&format!("app:{at}"), &[layer])).unwrap());
        }
    });
    let images: Vec<_> = (0..4).map(|at| store.images().resolve(&format!("app:{at}")).unwrap()).collect();
    assert!(images.iter().all(|image| image.layers == images[0].layers));
    assert_eq!(std::fs::read_dir(store.root().join("layers/tmp")).unwrap().count(), 0);
}

#[test]
fn what_a_crash_leaves_is_made_good() {
    need_root!();
    let (folder, store) = store();
    load(&store, &docker_archive("kept", &[&tar(&[("a", b"a")])])).unwrap();
    load(&store, &docker_archive("broken", &[&tar(&[("b", b"b")])])).unwrap();
    load(&store, &docker_archive("torn", &[&tar(&[("c", b"c")])])).unwrap();
    store.images().wait_synced();
    let (broken, torn) = (store.images().resolve("broken").unwrap(), store.images().resolve("torn").unwrap());
    drop(store);
    let stray = folder.path().join("layers").join("e".repeat(64));
    std::fs::create_dir(&stray).unwrap();
    let blob = folder.path().join("content/blobs/sha256").join("f".repeat(64));
    std::fs::write(&blob, "x").unwrap();
    std::fs::remove_dir_all(&broken.layers[0].path).unwrap();
    let connection = rusqlite::Connection::open(folder.path().join("state.db")).unwrap();
    connection
        .execute("UPDATE images SET unsynced = 'another boot' WHERE id = ?1", (torn.id.as_str(),))
        .unwrap();
    drop(connection);
    let store = Store::open(folder.path()).unwrap();
    store.images().resolve("kept").unwrap();
    for name in ["broken", "torn"] {
        assert_eq!(store.images().resolve(name).unwrap_err().kind(), Kind::NotFound, "{name}");
    }
    assert!(!stray.exists() && !blob.exists() && !torn.layers[0].path.exists());
}

#[test]
fn ambiguous_and_malformed_names_find_nothing() {
    let (_folder, store) = store();
    let row = |digit: char| rows::ImageRow {
        id: format!("sha256:ab{}", digit.to_string().repeat(62)).parse().unwrap(),
        manifest: None,
        size: 0,
    };
    store
        .state()
        .transaction(|tx| {
            rows::add_image(tx.sql(), &row('1'), &[], "")?;
            rows::add_image(tx.sql(), &row('2'), &[], "")
        })
        .unwrap();
    assert_eq!(store.images().resolve("ab").unwrap_err().kind(), Kind::Conflict);
    for text in ["zz", "sha256:xyz", &"a".repeat(65)] {
        assert_eq!(store.images().resolve(text).unwrap_err().kind(), Kind::NotFound, "{text:?}");
    }
    for text in ["", "AB1", "sha256:", "a/../b", "\0", &"x/".repeat(1000)] {
        assert_eq!(store.images().resolve(text).unwrap_err().kind(), Kind::InvalidArgument, "{text:?}");
    }
}

#[test]
fn implied_folders_look_like_those_below() {
    need_root!();
    let (_folder, store) = store();
    let base = {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        header.set_mode(0o1777);
        header.set_uid(5);
        header.set_gid(6);
        header.set_mtime(1234);
        builder.append_data(&mut header, "tmp", &b""[..]).unwrap();
        builder.into_inner().unwrap()
    };
    load(&store, &docker_archive("app", &[&base, &tar(&[("tmp/file", b"x"), ("new/file", b"x")])])).unwrap();
    let image = store.images().resolve("app").unwrap();
    let tmp = std::fs::metadata(image.layers[1].path.join("tmp")).unwrap();
    assert_eq!((tmp.mode() & 0o7777, tmp.uid(), tmp.gid(), tmp.mtime()), (0o1777, 5, 6, 1234));
    let new = std::fs::metadata(image.layers[1].path.join("new")).unwrap();
    assert_eq!((new.mode() & 0o7777, new.uid()), (0o755, 0));
}

fn blob_bytes(store: &Store, digest: &Digest) -> Vec<u8> {
    let mut reader = store.images().open_blob(digest).unwrap();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut reader, &mut bytes).unwrap();
    assert_eq!(reader.size(), bytes.len() as u64);
    bytes
}

#[test]
fn layers_are_had_again_with_the_digest_that_they_came_with() {
    need_root!();
    let (folder, store) = store();
    let plain = tar(&[("etc/one", b"1"), ("etc/two", &[7; 300_000])]);
    let other = tar(&[("etc/three", b"3")]);
    load(&store, &docker_archive("plain", &[&plain, &other])).unwrap();
    load(&store, &oci_archive("packed", &[&plain], gzip)).unwrap();
    let image = store.images().resolve("plain").unwrap();
    let blobs = store.images().layer_blobs(&image).unwrap();
    for (layer, bytes) in blobs.iter().zip([&plain, &other]) {
        assert_eq!((layer.blob.media_type.as_str(), layer.blob.size), (media::LAYER, bytes.len() as u64));
        assert!(blob_bytes(&store, &layer.blob.digest) == *bytes);
    }
    let packed = store.images().resolve("packed").unwrap();
    let manifest = store.images().manifest(&packed).unwrap();
    assert_eq!(content::digest(&manifest), *packed.manifest.as_ref().unwrap());
    let blobs = store.images().layer_blobs(&packed).unwrap();
    assert_eq!(blobs[0].diff, DiffId(content::digest(&plain)));
    assert!(blob_bytes(&store, &blobs[0].blob.digest) == gzip(&plain));
    let mut skipped = store.images().open_blob(&blobs[0].diff.0).unwrap();
    skipped.skip(1000).unwrap();
    let mut rest = Vec::new();
    std::io::Read::read_to_end(&mut skipped, &mut rest).unwrap();
    assert!(rest == plain[1000..]);
    // Nothing is left when the images are gone.
    drop(store);
    let store = Store::open(folder.path()).unwrap();
    assert!(blob_bytes(&store, &blobs[0].blob.digest) == gzip(&plain), "a restart keeps blobs");
    for name in ["plain", "packed"] {
        store.images().remove(name, Force::No, &|_| false).unwrap();
    }
    assert_empty(&store);
}

#[test]
fn a_layer_of_an_older_store_gets_its_recipe_when_it_comes_again() {
    need_root!();
    let (folder, store) = store();
    let layer = tar(&[("a", b"a")]);
    load(&store, &docker_archive("app", &[&layer])).unwrap();
    let diff = DiffId(content::digest(&layer));
    drop(store);
    // As version 1 of the layout was written first.
    std::fs::remove_dir_all(folder.path().join("layers/recipes")).unwrap();
    let connection = rusqlite::Connection::open(folder.path().join("state.db")).unwrap();
    connection
        .execute_batch(
            "DROP TABLE layer_blobs; DROP TABLE artifact_blobs; DROP TABLE index_parts;
                 ALTER TABLE image_names DROP COLUMN document; PRAGMA user_version = 2",
        )
        .unwrap();
    drop(connection);
    let store = Store::open(folder.path()).unwrap();
    let image = store.images().resolve("app").unwrap();
    assert!(!store.images().has_layer(&diff).unwrap());
    let error = store.images().layer_blobs(&image).unwrap_err();
    assert!(error.to_string().contains("load or pull its image again"), "{error}");
    load(&store, &docker_archive("app", &[&layer])).unwrap();
    assert!(blob_bytes(&store, &diff.0) == layer);
}

fn saved(store: &Store, names: &[&str]) -> Vec<u8> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut bytes = Vec::new();
    store.images().save(&names, IndexParts::All, &mut bytes).unwrap();
    bytes
}

/// Removes an image as soon as something is written.
struct Removing<'a> {
    store: &'a Store,
    name: &'static str,
    out: Vec<u8>,
}

impl std::io::Write for Removing<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.out.is_empty() {
            self.store.images().remove(self.name, Force::No, &|_| false).unwrap();
            self.store.images().wait_synced();
        }
        self.out.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn what_is_removed_meanwhile_is_saved_to_its_end() {
    need_root!();
    let (_folder, one) = store();
    let layers = [tar(&[("etc/one", &[1; 5000])]), tar(&[("etc/two", &[2; 5000])])];
    load(&one, &docker_archive("app", &[&layers[0], &layers[1]])).unwrap();
    let image = one.images().resolve("app").unwrap();
    let mut removing = Removing { store: &one, name: "app", out: Vec::new() };
    one.images().save(&["app".to_owned()], IndexParts::All, &mut removing).unwrap();
    let (_folder, two) = store();
    load(&two, &removing.out).unwrap();
    assert_eq!(two.images().resolve("app").unwrap().id, image.id);
    // And then it is gone.
    assert!(one.images().lease_image(&image).is_err());
    one.images().sweep().unwrap();
    assert_empty(&one);
}

#[test]
fn folders_of_layers_that_are_leased_stay() {
    need_root!();
    let (_folder, store) = store();
    let images = store.images();
    load(&store, &docker_archive("app", &[&tar(&[("one", b"1")]), &tar(&[("two", b"2")])])).unwrap();
    let folders: Vec<_> = images.resolve("app").unwrap().layers.into_iter().map(|layer| layer.path).collect();
    let lease = images.lease_folders(&folders).unwrap();
    images.remove("app", Force::No, &|_| false).unwrap();
    images.wait_synced();
    assert!(folders.len() == 2 && folders.iter().all(|folder| folder.is_dir()));
    drop(lease);
    images.sweep().unwrap();
    assert!(matches!(images.lease_folders(&folders), Err(Error::NoLayer(_))));
    assert_empty(&store);
}

#[test]
fn what_is_saved_is_loaded_as_it_was() {
    need_root!();
    let (_folder, one) = store();
    let (first, second) = (tar(&[("etc/one", b"1")]), tar(&[("etc/two", &[7; 300_000])]));
    load(&one, &docker_archive("plain:1", &[&first, &second])).unwrap();
    load(&one, &oci_archive("packed:1", &[&first], gzip)).unwrap();
    one.images().tag("packed:1", &"packed:2".parse().unwrap()).unwrap();
    let archive = saved(&one, &["plain:1", "packed"]);
    assert!(archive == saved(&one, &["plain:1", "packed"]), "the same images are the same bytes");
    let (_folder, two) = store();
    load(&two, &archive).unwrap();
    for name in ["plain:1", "packed:1", "packed:2"] {
        let (before, after) = (one.images().resolve(name).unwrap(), two.images().resolve(name).unwrap());
        assert_eq!((&before.id, &before.references), (&after.id, &after.references));
        assert_eq!(one.images().manifest(&before).unwrap(), two.images().manifest(&after).unwrap());
    }
    // By its id an image has no name.
    let id = one.images().resolve("plain:1").unwrap().id;
    let (_folder, three) = store();
    load(&three, &saved(&one, &[id.short()])).unwrap();
    assert!(three.images().resolve(id.as_str()).unwrap().references.is_empty());
    for (name, kind) in [("nothing", Kind::NotFound), ("host", Kind::Conflict)] {
        let error = one.images().save(&[name.to_owned()], IndexParts::All, &mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), kind, "{name}");
    }
    let layer = &one.images().resolve("plain:1").unwrap().layers[1];
    std::fs::write(layer.path.join("etc/two"), vec![8; 300_000]).unwrap();
    let error = one.images().save(&["plain:1".to_owned()], IndexParts::All, &mut Vec::new()).unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }), "{error}");
}

#[test]
fn a_commit_stores_the_difference_alone() {
    need_root!();
    let (folder, store) = store();
    load(&store, &docker_archive("app", &[&tar(&[("etc/one", b"1"), ("etc/two", b"2")])])).unwrap();
    let parent = store.images().resolve("app").unwrap();
    let upper = folder.path().join("upper");
    std::fs::create_dir_all(upper.join("etc")).unwrap();
    let of =
        crate::layers::DiffOf { upper: upper.clone(), lower: parent.layer_paths(), ..Default::default() };
    let commit = |reference: &str| {
        let diff = store.images().stage_diff(&parent.id, &of).unwrap();
        let reference = Some(reference.parse().unwrap());
        let options = CommitOptions { reference, message: "said".to_owned(), ..CommitOptions::default() };
        store.images().commit_diff(diff, options).unwrap()
    };
    std::fs::write(upper.join("etc/three"), "3").unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        upper.join("etc/two"),
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::empty(),
        0,
    )
    .unwrap();
    commit("new:1");
    let image = store.images().resolve("new:1").unwrap();
    assert_eq!(image.layers.len(), 2);
    assert_eq!(image.layers[0], parent.layers[0]);
    assert_eq!(std::fs::read(image.layers[1].path.join("etc/three")).unwrap(), b"3");
    assert_eq!(std::fs::symlink_metadata(image.layers[1].path.join("etc/two")).unwrap().rdev(), 0);
    assert_eq!(image.config.history.last().unwrap().comment, "said");
    commit("new:2");
    assert_eq!(store.images().resolve("new:2").unwrap().layers, image.layers, "the same difference");
    for path in ["etc/three", "etc/two"] {
        std::fs::remove_file(upper.join(path)).unwrap();
    }
    std::fs::remove_dir(upper.join("etc")).unwrap();
    commit("same:1");
    let same = store.images().resolve("same:1").unwrap();
    assert_eq!(same.layers, parent.layers, "nothing is no layer");
    assert!(same.config.history.last().unwrap().empty_layer);
}
