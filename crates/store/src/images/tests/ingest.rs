//! Images that come in parts.

use insula_spec::image::{Descriptor, Manifest};

use super::*;

const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

fn descriptor(bytes: &[u8]) -> Descriptor {
    serde_json::from_value(json!({"digest": content::digest(bytes), "size": bytes.len()})).unwrap()
}

fn diff(layer: &[u8]) -> DiffId {
    DiffId(content::digest(layer))
}

/// Takes in a blob in pieces.
fn take(store: &Store, blob: &[u8], expected: &Descriptor, diff: &DiffId) -> Result<Arc<IngestedLayer>> {
    let mut pieces = blob.chunks(100).map(bytes::Bytes::copy_from_slice);
    let mut ended = false;
    let mut next = || {
        assert!(!ended, "read beyond its end");
        let piece = pieces.next();
        ended = piece.is_none();
        Ok(piece)
    };
    store.images().ingest_layer(expected, diff, &mut next).map(Arc::new)
}

fn documents(layers: &[&[u8]], note: &str) -> Ingested {
    let config = config(layers, note);
    let blobs: Vec<_> = layers.iter().map(|layer| descriptor(&gzip(layer))).collect();
    let manifest = Manifest {
        schema_version: 2,
        media_type: None,
        config: descriptor(&config),
        layers: blobs,
        annotations: Default::default(),
        artifact_type: None,
        subject: None,
    };
    Ingested {
        manifest: serde_json::to_vec(&manifest).unwrap(),
        index: None,
        config,
        references: vec!["r.test/a:1".parse().unwrap(), format!("r.test/a@{DIGEST}").parse().unwrap()],
        origin: Some("r.test/a:1".parse().unwrap()),
    }
}

fn staged(folder: &Path) -> usize {
    std::fs::read_dir(folder.join("layers/tmp")).unwrap().count()
}

#[test]
fn layers_come_side_by_side_and_serve_two_images() {
    need_root!();
    let (folder, store) = store();
    let layers: [&[u8]; 2] = [&tar(&[("a", b"one")]), &tar(&[("b", b"two")])];
    let taken: Vec<_> = std::thread::scope(|scope| {
        let threads = layers.map(|layer| {
            let store = &store;
            scope.spawn(move || take(store, &gzip(layer), &descriptor(&gzip(layer)), &diff(layer)).unwrap())
        });
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(!store.images().has_layer(&diff(layers[0])).unwrap());
    let image = documents(&layers, "");
    let loaded = store.images().commit_ingested(&image, &taken).unwrap();
    // Another that was pulled at the same time: what it waited for is here now.
    store.images().commit_ingested(&documents(&layers, "other"), &taken).unwrap();
    assert!(store.images().has_layer(&diff(layers[0])).unwrap());
    let stored = store.images().resolve("r.test/a:1").unwrap();
    assert_ne!(stored.id, loaded.id);
    let place = &store.images().places(&diff(layers[1])).unwrap()[0];
    assert_eq!((place.registry.as_str(), place.repository.as_str()), ("r.test", "a"));
    assert_eq!(place.blob.digest, content::digest(&gzip(layers[1])));
    assert_eq!(std::fs::read(stored.layers[1].path.join("b")).unwrap(), b"two");
    drop(taken);
    assert_eq!(staged(folder.path()), 0);
    // The name went to the other one, which goes with its last tag, digest and all.
    let removed = store.images().remove("r.test/a:1", Force::No, &|_| false).unwrap();
    assert!(
        removed.contains(&Removal::Untagged(format!("r.test/a@{DIGEST}").parse().unwrap())),
        "{removed:?}"
    );
    assert!(removed.contains(&Removal::Deleted(stored.id)));
}

#[test]
fn pulls_that_end_at_the_same_time_all_have_the_layer() {
    need_root!();
    let (_folder, store) = store();
    for round in 0..20 {
        let layer = tar(&[("a", format!("{round}").as_bytes())]);
        let blob = gzip(&layer);
        let taken = [take(&store, &blob, &descriptor(&blob), &diff(&layer)).unwrap()];
        let together = std::sync::Barrier::new(4);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    together.wait();
                    store.images().commit_ingested(&documents(&[&layer], ""), &taken).unwrap();
                });
            }
        });
        assert!(taken[0].is_taken());
    }
}

#[test]
fn what_is_not_as_declared_leaves_nothing() {
    need_root!();
    let (folder, store) = store();
    let layer = tar(&[("a", b"one")]);
    let (blob, other) = (gzip(&layer), gzip(b"other"));
    let truth = (descriptor(&blob), diff(&layer));
    let short = Descriptor { size: blob.len() as u64 - 1, ..truth.0.clone() };
    let cases: [(&str, &[u8], &Descriptor, DiffId); 5] = [
        ("another blob", &blob, &descriptor(&other), truth.1.clone()),
        ("another content", &blob, &truth.0, diff(b"x")),
        ("a longer blob", &blob, &short, truth.1.clone()),
        ("a cut blob", &blob[..blob.len() - 5], &truth.0, truth.1.clone()),
        ("no archive", b"hello", &descriptor(b"hello"), diff(b"hello")),
    ];
    for (what, bytes, expected, diff) in cases {
        assert!(take(&store, bytes, expected, &diff).is_err(), "{what}");
        assert_eq!(staged(folder.path()), 0, "{what}");
    }
    // A stream that ends in an error is no end.
    let mut pieces =
        vec![Err(Error::Input(std::io::Error::other("gone"))), Ok(Some(bytes::Bytes::from(blob)))];
    let failed = store.images().ingest_layer(&truth.0, &truth.1, &mut || pieces.pop().unwrap_or(Ok(None)));
    assert!(matches!(failed, Err(Error::Input(_))), "{failed:?}");
    assert_eq!(staged(folder.path()), 0);
}

#[test]
fn a_layer_that_is_missing_is_named() {
    need_root!();
    let (_folder, store) = store();
    let layer = tar(&[("a", b"one")]);
    let missing = store.images().commit_ingested(&documents(&[&layer], ""), &[]);
    assert!(matches!(missing, Err(Error::NoLayer(_))), "{missing:?}");
    assert!(store.images().list().unwrap().iter().all(|image| image.kind != ImageKind::Stored));
}

#[test]
fn the_manifest_of_the_last_pull_is_kept() {
    need_root!();
    let (_folder, store) = store();
    let layer = tar(&[("a", b"one")]);
    let first = documents(&[&layer], "");
    let taken = take(&store, &gzip(&layer), &descriptor(&gzip(&layer)), &diff(&layer)).unwrap();
    store.images().commit_ingested(&first, &[taken]).unwrap();
    let mut second = first.clone();
    second.manifest.push(b'\n');
    store.images().commit_ingested(&second, &[]).unwrap();
    let stored = store.images().resolve("r.test/a:1").unwrap();
    assert_eq!(stored.manifest, Some(content::digest(&second.manifest)));
    assert!(store.content().contains(&content::digest(&second.manifest)));
    assert!(!store.content().contains(&content::digest(&first.manifest)));
}

/// A list of parts of another image, of one blob.
fn artifact(blob: &[u8], kind: &str) -> Vec<u8> {
    let empty = json!({"mediaType": "application/vnd.oci.empty.v1+json", "digest": content::digest(b"{}"), "size": 2});
    let layer = json!({"mediaType": "text/plain", "digest": content::digest(blob), "size": blob.len()});
    json!({"schemaVersion": 2, "artifactType": kind, "config": empty, "layers": [layer]})
        .to_string()
        .into_bytes()
}

#[test]
fn artifacts_come_and_go_with_their_blobs() {
    let (folder, store) = store();
    let take = |bytes: &'static [u8]| {
        let mut pieces = [bytes::Bytes::from_static(bytes)].into_iter();
        store.images().ingest_blob(&descriptor(bytes), &mut || Ok(pieces.next()))
    };
    let wrong = descriptor(b"other");
    let mut pieces = [bytes::Bytes::from_static(b"parts")].into_iter();
    store.images().ingest_blob(&wrong, &mut || Ok(pieces.next())).unwrap_err();
    let names = |tag: &str| vec![format!("r.test/a:{tag}").parse::<Reference>().unwrap()];
    let one = artifact(b"parts", "x/one");
    // Without its blobs there is none.
    let missing = store.images().commit_artifact(&one, &names("one"), vec![take(b"{}").unwrap()]);
    assert!(matches!(missing, Err(Error::NoContent(_))), "{missing:?}");
    assert!(store.content().all().unwrap().is_empty());
    let blobs = vec![take(b"{}").unwrap(), take(b"parts").unwrap()];
    let id = store.images().commit_artifact(&one, &names("one"), blobs).unwrap().id;
    let other = artifact(b"parts", "x/two");
    store.images().commit_artifact(&other, &names("two"), Vec::new()).unwrap();
    let image = store.images().resolve("r.test/a:one").unwrap();
    assert_eq!(image.kind, ImageKind::Artifact { kind: "x/one".to_owned() });
    assert_eq!((image.id.clone(), image.size, image.layers.len()), (id, 7, 0));
    assert_eq!(store.images().manifest(&image).unwrap(), one);
    assert!(
        matches!(store.images().standing(&names("one")[0]), Ok(Some(Standing::Manifest(bytes))) if bytes == one)
    );
    drop(store);
    let store = Store::open(folder.path()).unwrap();
    // What the other one has too stays.
    store.images().remove("r.test/a:one", Force::No, &|_| false).unwrap();
    store.images().wait_synced();
    assert_eq!(store.content().all().unwrap().len(), 3);
    store.images().remove("r.test/a:two", Force::No, &|_| false).unwrap();
    assert!(store.content().all().unwrap().is_empty());
}
