//! Archives with indexes and artifacts.

use super::*;

const NAME: &str = "r.test/app:1";

/// Blobs of an OCI layout, in the order in which they are written.
#[derive(Default)]
pub(super) struct Layout {
    blobs: Vec<Vec<u8>>,
}

impl Layout {
    fn blob(&mut self, kind: &str, bytes: &[u8]) -> serde_json::Value {
        self.blobs.push(bytes.to_vec());
        json!({"mediaType": kind, "digest": content::digest(bytes), "size": bytes.len()})
    }

    fn document(&mut self, kind: &str, value: &serde_json::Value) -> serde_json::Value {
        self.blob(kind, value.to_string().as_bytes())
    }

    pub(super) fn image(&mut self, layer: &[u8], architecture: &str) -> serde_json::Value {
        let mut document: serde_json::Value =
            serde_json::from_slice(&config(&[layer], architecture)).unwrap();
        document["architecture"] = json!(architecture);
        let layer = self.blob(media::LAYER_GZIP, &gzip(layer));
        let config = self.document(media::CONFIG, &document);
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
        let mut descriptor = self.document(media::MANIFEST, &manifest);
        descriptor["platform"] = json!({"architecture": architecture, "os": "linux"});
        descriptor
    }

    pub(super) fn artifact(&mut self, blob: &[u8]) -> serde_json::Value {
        let config = self.blob("application/vnd.oci.empty.v1+json", b"{}");
        let layer = self.blob("application/x.parts", blob);
        let manifest = json!({
            "schemaVersion": 2, "artifactType": "x/parts", "config": config, "layers": [layer],
        });
        self.document(media::MANIFEST, &manifest)
    }

    pub(super) fn index(&mut self, entries: &[serde_json::Value]) -> serde_json::Value {
        self.document(media::INDEX, &json!({"schemaVersion": 2, "manifests": entries}))
    }

    /// With what names the blobs at the end, or at the beginning.
    pub(super) fn archive(&self, tops: &[serde_json::Value], documents_first: bool) -> Vec<u8> {
        let index = json!({"schemaVersion": 2, "manifests": tops}).to_string();
        let names: Vec<String> =
            self.blobs.iter().map(|bytes| format!("blobs/sha256/{}", content::digest(bytes).hex())).collect();
        let mut members: Vec<(&str, &[u8])> =
            names.iter().map(String::as_str).zip(self.blobs.iter().map(Vec::as_slice)).collect();
        members.push(("index.json", index.as_bytes()));
        if documents_first {
            members.reverse();
        }
        tar(&members)
    }
}

pub(super) fn named(mut descriptor: serde_json::Value, name: &str) -> serde_json::Value {
    descriptor["annotations"] = json!({"io.containerd.image.name": name});
    descriptor
}

fn digest(descriptor: &serde_json::Value) -> Digest {
    descriptor["digest"].as_str().unwrap().parse().unwrap()
}

/// What a name stands for: the digest of the index, and how much of it is missing.
fn stands_for(store: &Store, name: &str) -> (Digest, usize) {
    match store.images().standing(&name.parse().unwrap()).unwrap() {
        Some(Standing::Index(index)) => (content::digest(&index.bytes), index.missing),
        other => panic!("{name} stands for {other:?}"),
    }
}

/// What decides on which machine's image is meant.
fn both(layout: &mut Layout) -> [serde_json::Value; 2] {
    let (home, abroad) = (tar(&[("home", b"1")]), tar(&[("abroad", b"2")]));
    [layout.image(&abroad, "s390x"), layout.image(&home, builtin::architecture())]
}

#[test]
fn an_index_comes_with_all_that_it_lists_and_leaves_again() {
    need_root!();
    for documents_first in [false, true] {
        let (_folder, one) = store();
        let mut layout = Layout::default();
        let [abroad, home] = both(&mut layout);
        // Large, compressed, and what would have to be told from an image's: a blob is kept as it is.
        let chart = gzip(&tar(&[("chart", b"c")]));
        let artifacts = [vec![3; 5 << 20], chart, b"text".to_vec()].map(|blob| layout.artifact(&blob));
        let entries = [&[abroad.clone(), home.clone()], &artifacts[..]].concat();
        let index = layout.index(&entries);
        let archive = layout.archive(&[named(index.clone(), NAME)], documents_first);
        let loaded = load(&one, &archive).unwrap();
        assert_eq!(loaded.len(), 1, "parts are not told of: {loaded:?}");
        let image = one.images().resolve(NAME).unwrap();
        assert_eq!(
            (image.config.architecture.as_str(), loaded[0].id.clone()),
            (builtin::architecture(), image.id)
        );
        assert_eq!(stands_for(&one, NAME), (digest(&index), 0));
        let (_folder, two) = store();
        load(&two, &saved(&one, &[NAME])).unwrap();
        assert_eq!(stands_for(&two, NAME), (digest(&index), 0));
        for part in entries {
            let name = format!("r.test/app@{}", digest(&part));
            let found = two.images().resolve(&name).unwrap();
            assert_eq!(found.manifest, Some(digest(&part)), "{name}");
        }
        two.images().remove(NAME, Force::No, &|_| false).unwrap();
        two.images().wait_synced();
        assert!(two.content().all().unwrap().is_empty(), "all of it goes with its name");
        // The image alone, as who asks for one platform gets it.
        let mut alone = Vec::new();
        one.images().save(&[NAME.to_owned()], IndexParts::Meant, &mut alone).unwrap();
        load(&two, &alone).unwrap();
        assert_eq!(
            two.images()
                .standing(&NAME.parse().unwrap())
                .unwrap()
                .map(|found| matches!(found, Standing::Manifest(_))),
            Some(true)
        );
    }
}

/// An index of an index of two images, and an image beside it.
fn nested(layout: &mut Layout) -> [serde_json::Value; 3] {
    let [abroad, home] = both(layout);
    let mut unsaid = home.clone();
    unsaid.as_object_mut().unwrap().remove("platform");
    let mut foreign = layout.index(std::slice::from_ref(&abroad));
    foreign["platform"] = json!({"architecture": "s390x", "os": "linux"});
    let mut inner = layout.index(std::slice::from_ref(&unsaid));
    inner["platform"] = json!({"architecture": builtin::architecture(), "os": "linux"});
    let outer = layout.index(&[foreign, inner.clone()]);
    [outer, inner, home]
}

#[test]
fn indexes_within_an_index_come_leave_and_go_with_it() {
    need_root!();
    for documents_first in [false, true] {
        let (_folder, one) = store();
        let mut layout = Layout::default();
        let [outer, inner, home] = nested(&mut layout);
        load(&one, &layout.archive(&[named(outer.clone(), NAME)], documents_first)).unwrap();
        assert_eq!(stands_for(&one, NAME), (digest(&outer), 0));
        // What the index around it says of an image holds where it says nothing itself.
        assert_eq!(one.images().resolve(NAME).unwrap().manifest, Some(digest(&home)));
        let (folder, two) = store();
        load(&two, &saved(&one, &[NAME])).unwrap();
        assert_eq!(stands_for(&two, NAME), (digest(&outer), 0));
        two.images().wait_synced();
        drop(two);
        let two = Store::open(folder.path()).unwrap();
        assert_eq!(stands_for(&two, NAME), (digest(&outer), 0), "and stays when the store is opened again");
        // Another name of the outer one holds them as well, and so does one of an inner one what that lists.
        two.images().tag(NAME, &"r.test/other:1".parse().unwrap()).unwrap();
        two.images().remove(NAME, Force::No, &|_| false).unwrap();
        assert_eq!(stands_for(&two, "r.test/other:1"), (digest(&outer), 0));
        let bytes = two.images().document(&digest(&inner)).unwrap();
        let id = two.images().resolve("r.test/other:1").unwrap().id;
        two.images().name_document(&["r.test/inner:1".parse().unwrap()], &bytes, &[], &id, &[]).unwrap();
        two.images().remove("r.test/other:1", Force::No, &|_| false).unwrap();
        assert_eq!(stands_for(&two, "r.test/inner:1"), (digest(&inner), 0));
        two.images().remove("r.test/inner:1", Force::No, &|_| false).unwrap();
        two.images().wait_synced();
        let left = two.content().all().unwrap();
        assert!(left.is_empty(), "all of it goes with the last name: {left:?}");
    }
}

#[test]
fn what_another_index_lists_stays() {
    need_root!();
    let (_folder, store) = store();
    let mut layout = Layout::default();
    let [abroad, home] = both(&mut layout);
    let first = layout.index(&[abroad.clone(), home.clone()]);
    let second = layout.index(&[home, abroad]);
    let tops = [named(first, NAME), named(second.clone(), "r.test/app:2")];
    load(&store, &layout.archive(&tops, false)).unwrap();
    store.images().remove(NAME, Force::No, &|_| false).unwrap();
    assert_eq!(stands_for(&store, "r.test/app:2"), (digest(&second), 0));
    store.images().remove("r.test/app:2", Force::No, &|_| false).unwrap();
    store.images().wait_synced();
    assert!(store.content().all().unwrap().is_empty());
}

#[test]
fn an_image_that_its_name_leaves_stays_for_an_index_that_lists_it() {
    need_root!();
    let (_folder, store) = store();
    let mut layout = Layout::default();
    let unsaid = both(&mut layout).map(|mut entry| {
        entry.as_object_mut().unwrap().remove("platform");
        entry
    });
    // Nothing says which of them is meant: each index means its first one.
    let [first, second] = unsaid;
    let one = layout.index(&[first.clone(), second.clone()]);
    let two = layout.index(&[second, first]);
    let tops = [named(one, NAME), named(two.clone(), "r.test/app:2")];
    load(&store, &layout.archive(&tops, false)).unwrap();
    store.images().remove(NAME, Force::No, &|_| false).unwrap();
    assert!(store.images().resolve(NAME).is_err());
    assert_eq!(stands_for(&store, "r.test/app:2"), (digest(&two), 0));
    store.images().remove("r.test/app:2", Force::No, &|_| false).unwrap();
    store.images().wait_synced();
    assert!(store.content().all().unwrap().is_empty());
}

#[test]
fn of_an_index_that_is_not_whole_the_image_of_this_machine_comes() {
    need_root!();
    let (_folder, store) = store();
    let mut layout = Layout::default();
    let [abroad, home] = both(&mut layout);
    let mut absent = home.clone();
    absent["digest"] = json!(content::digest(b"absent"));
    // Within another one, where it is looked for too.
    let inner = layout.index(&[abroad.clone(), absent, home.clone()]);
    let outer = layout.index(&[inner]);
    load(&store, &layout.archive(&[named(outer.clone(), NAME)], false)).unwrap();
    assert_eq!(store.images().resolve(NAME).unwrap().manifest, Some(digest(&home)));
    assert!(store.images().resolve(&format!("r.test/app@{}", digest(&abroad))).is_err());
    assert_eq!(stands_for(&store, NAME), (digest(&outer), 2));
    // Without a name only what this machine runs is of use.
    let lonely = layout.index(&[abroad]);
    let error = load(&store, &layout.archive(&[lonely], false)).unwrap_err();
    assert!(matches!(error, Error::Unsupported(_)), "{error}");
}

#[test]
fn artifacts_of_an_archive_are_whole_or_refused() {
    need_root!();
    let (_folder, store) = store();
    let mut layout = Layout::default();
    let artifact = named(layout.artifact(b"parts"), "r.test/parts:1");
    let loaded = load(&store, &layout.archive(std::slice::from_ref(&artifact), false)).unwrap();
    assert_eq!(
        (loaded[0].references[0].familiar().as_str(), &loaded[0].id),
        ("r.test/parts:1", &digest(&artifact))
    );
    let image = store.images().resolve("r.test/parts:1").unwrap();
    assert_eq!(image.kind, ImageKind::Artifact { kind: "x/parts".to_owned() });
    store.images().remove("r.test/parts:1", Force::No, &|_| false).unwrap();
    let refused = |layout: &Layout, first| {
        let error =
            load(&store, &layout.archive(std::slice::from_ref(&artifact), first)).unwrap_err().to_string();
        store.images().wait_synced();
        assert_empty(&store);
        error
    };
    let mut damaged = Layout::default();
    damaged.artifact(b"parts");
    let missing = damaged.blobs.remove(1);
    assert!(refused(&damaged, false).contains(&content::digest(&missing).hex()[..12]));
    // A plain tar is unpacked as it comes, and then it is known that it is none of an image.
    let mut late = Layout::default();
    let tarred = tar(&[("file", b"1")]);
    let artifact = named(late.artifact(&tarred), "r.test/tar:1");
    let error = load(&store, &late.archive(std::slice::from_ref(&artifact), false)).unwrap_err();
    assert!(error.to_string().contains("too late"), "{error}");
    load(&store, &late.archive(&[artifact], true)).unwrap();
    assert_eq!(blob_bytes(&store, &content::digest(&tarred)), tarred);
}

#[test]
fn attestations_of_others_go_with_their_index() {
    need_root!();
    let (_folder, store) = store();
    let mut layout = Layout::default();
    let [_, home] = both(&mut layout);
    // As BuildKit writes them if it is not told otherwise: nothing but the layers tells them from an image.
    let statement = layout.blob("application/vnd.in-toto+json", b"{\"_type\": \"x\"}");
    let config = layout.document(media::CONFIG, &json!({"architecture": "unknown", "os": "unknown"}));
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [statement]});
    let mut said = layout.document(media::MANIFEST, &manifest);
    said["platform"] = json!({"architecture": "unknown", "os": "unknown"});
    said["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest",
        "vnd.docker.reference.digest": home["digest"]});
    let index = layout.index(&[said.clone(), home.clone()]);
    load(&store, &layout.archive(&[named(index.clone(), NAME)], false)).unwrap();
    assert_eq!(stands_for(&store, NAME), (digest(&index), 0));
    let found = store.images().resolve(digest(&said).as_str()).unwrap();
    assert!(found.is_attestation(), "{found:?}");
    let image = store.images().resolve(NAME).unwrap();
    assert!(!image.is_attestation());
    // Another name keeps it, and it goes with the last one.
    store.images().tag(NAME, &"r.test/kept:1".parse().unwrap()).unwrap();
    let others = {
        let mut layout = Layout::default();
        let one = layout.image(&tar(&[("other", b"3")]), builtin::architecture());
        layout.archive(&[named(one, NAME)], false)
    };
    load(&store, &others).unwrap();
    assert!(store.images().resolve(digest(&said).as_str()).is_ok());
    store.images().tag(NAME, &"r.test/kept:1".parse().unwrap()).unwrap();
    assert!(store.images().resolve(digest(&said).as_str()).is_err());
    assert_eq!(
        store.images().resolve(image.id.as_str()).unwrap().id,
        image.id,
        "the image stays without a name"
    );
    store.images().wait_synced();
    assert!(!store.content().contains(&digest(&said)));
}

#[test]
fn an_index_that_is_removed_meanwhile_is_saved_to_its_end() {
    need_root!();
    let (_folder, one) = store();
    let mut layout = Layout::default();
    let [abroad, home] = both(&mut layout);
    let parts = [abroad, home, layout.artifact(&[3; 1 << 20]), layout.artifact(b"text")];
    let index = layout.index(&parts);
    load(&one, &layout.archive(&[named(index.clone(), NAME)], true)).unwrap();
    let mut removing = Removing { store: &one, name: NAME, out: Vec::new() };
    one.images().save(&[NAME.to_owned()], IndexParts::All, &mut removing).unwrap();
    let (_folder, two) = store();
    load(&two, &removing.out).unwrap();
    assert_eq!(stands_for(&two, NAME), (digest(&index), 0));
    // And then it is gone, with what was kept of its artifacts.
    one.images().sweep().unwrap();
    assert_empty(&one);
}

#[test]
fn an_index_within_that_is_damaged_is_not_here() {
    need_root!();
    let (_folder, store) = store();
    let mut layout = Layout::default();
    let [outer, inner, _] = nested(&mut layout);
    load(&store, &layout.archive(&[named(outer.clone(), NAME)], false)).unwrap();
    for damaged in ["{", "{\"schemaVersion\": 2, \"manifests\": []}"] {
        std::fs::write(store.content().path(&digest(&inner)), damaged).unwrap();
        assert_eq!(stands_for(&store, NAME), (digest(&outer), 1), "{damaged}");
        // Of what is not whole the image alone leaves.
        let (_folder, two) = self::store();
        load(&two, &saved(&store, &[NAME])).unwrap();
        assert!(two.images().resolve(NAME).is_ok());
    }
}
