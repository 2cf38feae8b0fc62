//! Whatever comes, goes and is killed in between: no image lacks a layer, and nothing is left that no image has.

use std::collections::HashSet;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// Tells the child of this test its root and its seed.
const CHILD: &str = "INSULA_TEST_STORE_CHILD";

/// Numbers that look random and are the same for the same seed (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// Names that are loaded, of the last one an index.
const LOADED: u64 = 7;
/// What the image of one of them is called when something is said of it.
const SAID: &str = "app:7";

/// Six images on five layers, some compressed, one with the same layer at another place; and an index of two
/// images and an artifact.
fn archive(number: u64) -> Vec<u8> {
    let layers: Vec<Vec<u8>> = (0..5u8)
        .map(|at| {
            let own = format!("etc/{at}");
            tar(&[
                (&own, &[at; 20_000]),
                ("etc/same", &[at; 10]),
                ("etc/same", b"replaced"),
                // The same in all of them, in some of them, and in none with the same attributes.
                ("usr/same", &[7; 10_000]),
                ("usr/some", &[at % 2; 10_000]),
                ("usr/none", &[at; 10_000]),
            ])
        })
        .collect();
    let name = format!("app:{number}");
    let of = |numbers: &[usize]| numbers.iter().map(|at| &layers[*at][..]).collect::<Vec<_>>();
    match number {
        0 => docker_archive(&name, &of(&[0, 1])),
        1 => docker_archive(&name, &of(&[0, 1, 2])),
        2 => oci_archive(&name, &of(&[0, 3]), gzip),
        3 => docker_archive(&name, &of(&[3, 0])),
        4 => oci_archive(&name, &of(&[4]), gzip),
        5 => docker_archive(&name, &of(&[4, 2])),
        _ => {
            let mut layout = index::Layout::default();
            let home = layout.image(&layers[1], builtin::architecture());
            let entries = [layout.image(&layers[2], "s390x"), home, layout.artifact(b"parts")];
            let index = layout.index(&entries);
            layout.archive(&[index::named(index, &name)], true)
        }
    }
}

/// As a build does, which counts on layers that it leases.
fn attest(store: &Store, name: &str, random: &mut Random) {
    let images = store.images();
    let Ok(image) = images.resolve(name) else { return };
    let diffs: Vec<_> = image.layers.iter().map(|layer| layer.diff_id.clone()).collect();
    let _lease = images.lease_layers(&diffs).unwrap();
    let composed = Composed { config: image.config.clone(), references: vec![SAID.parse().unwrap()] };
    // Another thread may have removed the image before the lease.
    let Ok(described) = images.describe(&image.layers, composed) else { return };
    let bytes = random.below(4).to_string().into_bytes();
    let said = described.attested(vec![Statement { predicate_type: "x".to_owned(), bytes }]).unwrap();
    let made = images.compose_attested(said);
    assert!(matches!(made, Ok(_) | Err(Error::NoLayer(_))), "{made:?}");
}

/// As `image prune` does, by what it saw a moment ago.
fn prune(store: &Store) {
    let images = store.images();
    let (all, parts) = (images.list().unwrap(), images.parts_of_indexes().unwrap());
    for image in all {
        let tagged = image.references.iter().any(|name| name.tag().is_some());
        let part = image.manifest.as_ref().is_some_and(|manifest| parts.contains(manifest));
        if !tagged && !part && !matches!(image.kind, ImageKind::Host { .. }) {
            images.prune(&image).unwrap();
        }
    }
}

/// Whoever looks sees whole images, whatever goes on.
fn look(store: &Store) {
    for image in store.images().list().unwrap() {
        assert_eq!(image.layers.len(), image.config.rootfs.diff_ids.len(), "half of an image: {image:?}");
    }
    for name in ["app:6", SAID] {
        // What the name stood for may be gone when it is read.
        let Ok(Some(Standing::Index(index))) = store.images().standing(&name.parse().unwrap()) else {
            continue;
        };
        let digest = content::digest(&index.bytes);
        let still =
            store.state().transaction(|tx| rows::document_of(tx.sql(), &name.parse().unwrap())).unwrap();
        assert!(index.missing == 0 || still != Some(digest), "{name} stands for a part of an index");
    }
}

fn step(store: &Store, random: &mut Random) {
    let images = store.images();
    let name = format!("app:{}", random.below(LOADED + 1));
    let owner = format!("{:064x}", random.below(4));
    match random.below(11) {
        0..=2 => drop(load(store, &archive(random.below(LOADED))).unwrap()),
        3 | 4 => drop(images.remove(&name, Force::Yes, &|_| false)),
        8 => attest(store, &name, random),
        9 => prune(store),
        10 => look(store),
        5 => {
            if let Ok(image) = images.resolve(&name) {
                // Another thread may have removed it meanwhile.
                let used = store.state().transaction(|tx| images.use_image(tx, &image.id, &owner));
                assert!(matches!(used, Ok(_) | Err(Error::NoImage(_))), "{used:?}");
            }
        }
        6 => images.release_image(&owner, |_| Ok(())).unwrap(),
        _ => {
            let Ok(image) = images.resolve(&name) else { return };
            let diffs: Vec<_> = image.layers.iter().map(|layer| layer.diff_id.clone()).collect();
            let lease = images.lease_layers(&diffs).unwrap();
            // Another thread may have removed the image, before the lease or now: what is leased stays.
            drop(images.remove(&name, Force::Yes, &|_| false));
            let here = |diff: &DiffId| images.has_layer(diff).unwrap();
            assert!(lease.layers().iter().all(here), "a leased layer is gone");
            drop(lease);
            images.sweep().unwrap();
        }
    }
}

/// Every image is whole, and so is the disk.
fn check(store: &Store) {
    look(store);
    let (mut chains, mut diffs) = (Vec::new(), Vec::new());
    for image in store.images().list().unwrap() {
        if image.kind != ImageKind::Stored {
            continue;
        }
        store.images().manifest(&image).unwrap();
        for layer in &image.layers {
            assert_eq!(content::digest(&blob_bytes(store, &layer.diff_id.0)), layer.diff_id.0);
            chains.push(layer.chain_id.clone());
            diffs.push(layer.diff_id.clone());
        }
    }
    let held = store.state().transaction(|tx| rows::all_layers(tx.sql())).unwrap();
    for chain in &chains {
        assert!(held.contains(chain) && store.layers().contains(chain));
    }
    // Layers of removed images stay while a container uses them; all others are gone.
    let used = store.state().transaction(|tx| rows::unheld(tx.sql())).unwrap();
    assert!(used.is_empty(), "rows of nobody: {used:?}");
    let mut on_disk = store.layers().all().unwrap();
    let mut in_rows = held;
    on_disk.sort();
    in_rows.sort();
    assert_eq!(on_disk, in_rows, "folders and rows");
    let known = store.state().transaction(|tx| rows::all_diffs(tx.sql())).unwrap();
    assert!(store.layers().recipes().all().unwrap().iter().all(|diff| known.contains(diff)));
    assert_eq!(std::fs::read_dir(store.root().join("layers/tmp")).unwrap().count(), 0);
    assert_eq!(store.layers().unused_files().unwrap().len(), 0, "files that no layer has");
    assert_eq!(std::fs::read_dir(store.root().join("content/ingest")).unwrap().count(), 0);
    let (mut wanted, mut here): (Vec<_>, _) = (
        store.state().transaction(|tx| rows::contents(tx.sql())).unwrap().into_iter().collect(),
        store.content().all().unwrap(),
    );
    wanted.sort();
    here.sort();
    assert_eq!(here, wanted, "blobs and rows");
}

#[test]
fn any_order_of_changes_leaves_whole_images_and_nothing_else() {
    need_root!();
    for seed in 1..=4 {
        let (_folder, store) = store();
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let store = &store;
                scope.spawn(move || {
                    let mut random = Random(seed << 8 | (thread + 1));
                    (0..15).for_each(|_| step(store, &mut random));
                });
            }
        });
        store.images().sweep().unwrap();
        store.images().wait_synced();
        check(&store);
    }
}

#[test]
fn nobody_prunes_a_part_of_what_comes() {
    need_root!();
    let (_folder, store) = store();
    let (images, mut random, ended) = (store.images(), Random(7), AtomicBool::new(false));
    load(&store, &archive(0)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                prune(&store);
            }
        });
        let whole = (0..30).all(|_| {
            attest(&store, "app:0", &mut random);
            load(&store, &archive(LOADED - 1)).unwrap();
            let whole = [SAID, "app:6"].map(|name| {
                let standing = images.standing(&name.parse().unwrap()).unwrap();
                images.remove(name, Force::No, &|_| false).unwrap();
                matches!(standing, Some(Standing::Index(index)) if index.missing == 0)
            });
            whole == [true, true]
        });
        ended.store(true, Ordering::Relaxed);
        assert!(whole, "an index lacks a part");
    });
    images.sweep().unwrap();
    images.wait_synced();
    check(&store);
}

#[test]
fn what_is_pruned_is_as_it_was_seen() {
    need_root!();
    let (_folder, store) = store();
    let images = store.images();
    load(&store, &archive(0)).unwrap();
    let (first, name) = (images.resolve("app:0").unwrap(), "app:0".parse().unwrap());
    load(&store, &archive(5)).unwrap();
    images.tag("app:5", &name).unwrap();
    // It has no name when it is seen, and gets one before it is removed.
    let seen = images.resolve(first.id.as_str()).unwrap();
    assert!(seen.references.is_empty());
    images.tag(first.id.as_str(), &"kept:1".parse().unwrap()).unwrap();
    assert_eq!(images.prune(&seen).unwrap(), []);
    // Or comes into use.
    images.remove("kept:1", Force::No, &|_| true).unwrap();
    load(&store, &archive(0)).unwrap();
    images.tag("app:5", &name).unwrap();
    let used = |owner| store.state().transaction(|tx| images.use_image(tx, &first.id, owner));
    used("someone").unwrap();
    assert_eq!(images.prune(&seen).unwrap(), []);
    images.release_image("someone", |_| Ok(())).unwrap();
    // Or is what somebody brings, and will name when all of it is here.
    load(&store, &archive(2)).unwrap();
    let manifest = images.resolve("app:2").unwrap().manifest.unwrap();
    images.tag("app:5", &"app:2".parse().unwrap()).unwrap();
    let dangling: Vec<_> =
        images.list().unwrap().into_iter().filter(|image| image.manifest == Some(manifest.clone())).collect();
    let lease = images.keep_manifests(vec![manifest]);
    assert_eq!(images.prune(&dangling[0]).unwrap(), []);
    drop(lease);
    assert!(!images.prune(&dangling[0]).unwrap().is_empty());
    assert!(!images.prune(&seen).unwrap().is_empty());
    assert_eq!(images.prune(&seen).unwrap(), [], "what is gone is gone");
    let left = images.list().unwrap().into_iter().filter(|image| image.kind == ImageKind::Stored);
    assert_eq!(left.count(), 1);
}

/// The manifests that the index lists which a name stands for.
fn parts_of(store: &Store, name: &str) -> Vec<Digest> {
    let document = store.state().transaction(|tx| rows::document_of(tx.sql(), &name.parse().unwrap()));
    let mut parts = HashSet::new();
    store.images().listed(&document.unwrap().unwrap(), &mut parts);
    assert!(parts.len() > 1);
    parts.into_iter().collect()
}

#[test]
fn nobody_removes_a_part_of_what_comes() {
    need_root!();
    let (_folder, store) = store();
    let images = store.images();
    let here = |part: &Digest| images.with_manifest(part).unwrap().is_some();
    // With the last name of another index that lists it.
    load(&store, &archive(LOADED - 1)).unwrap();
    let parts = parts_of(&store, "app:6");
    let lease = images.keep_manifests(parts.clone());
    images.remove("app:6", Force::No, &|_| false).unwrap();
    assert!(parts.iter().all(here));
    // It gets its name, unless somebody asks for a part to be removed.
    let (listed, id) =
        (images.document(&parts[0]).unwrap(), images.with_manifest(&parts[0]).unwrap().unwrap());
    let (name, kept) = ("app:part".parse().unwrap(), [lease]);
    let named = || images.name_document(std::slice::from_ref(&name), &listed, &[], &id, &kept);
    named().unwrap();
    images.remove("app:part", Force::No, &|_| false).unwrap();
    let other = images.with_manifest(&parts[1]).unwrap().unwrap();
    images.remove(other.as_str(), Force::Yes, &|_| false).unwrap();
    assert!(matches!(named(), Err(Error::NoImage(_))));
    assert!(images.resolve("app:part").is_err());
    drop(kept);
    prune(&store);
    assert!(!parts.iter().any(here));
    // With what is said of it, when its name moves; and with the last tag of its repository.
    for remove in [false, true] {
        load(&store, &archive(0)).unwrap();
        attest(&store, "app:0", &mut Random(7));
        let parts = parts_of(&store, SAID);
        let lease = images.keep_manifests(parts.clone());
        if remove {
            images.remove(SAID, Force::No, &|_| false).unwrap();
        } else {
            images.tag("app:0", &SAID.parse().unwrap()).unwrap();
        }
        assert!(parts.iter().all(here), "{remove}");
        drop(lease);
        images.remove("app:0", Force::Yes, &|_| false).unwrap();
        drop(images.remove(SAID, Force::Yes, &|_| false));
        prune(&store);
        assert!(!parts.iter().any(here), "{remove}");
    }
    images.sweep().unwrap();
    assert_empty(&store);
}

/// Not a test of its own: works until it is killed.
#[test]
fn child_that_is_killed() {
    let Ok(given) = std::env::var(CHILD) else { return };
    let (seed, root) = given.split_once(' ').unwrap();
    let store = Store::open(Path::new(root)).unwrap();
    let mut random = Random(seed.parse().unwrap());
    loop {
        step(&store, &mut random);
        eprintln!("done");
    }
}

#[test]
fn a_kill_at_any_moment_leaves_whole_images_and_nothing_else() {
    need_root!();
    let folder = tempfile::tempdir().unwrap();
    let mut random = Random(42);
    for seed in 100..112 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "images::tests::gc::child_that_is_killed", "--nocapture"])
            .env(CHILD, format!("{seed} {}", folder.path().display()))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let steps = 2 + random.below(8);
        let done =
            lines.by_ref().map_while(Result::ok).filter(|line| line.ends_with("done")).take(steps as usize);
        let done = done.count() as u64;
        // Somewhere within the next step, which takes about a millisecond.
        for _ in 0..random.below(20) {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(done, steps, "the child failed by itself");
        let store = Store::open(folder.path()).unwrap();
        // What nobody shares any more goes a moment later.
        store.images().wait_synced();
        check(&store);
    }
}
