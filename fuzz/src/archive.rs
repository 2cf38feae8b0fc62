//! Layers and images: the bytes with the largest reach, for they make files.

use std::path::PathBuf;
use std::sync::OnceLock;

use insula_store::recipe::{Step, Steps};
use insula_store::{Force, ImportOptions, Store};
use sha2::Digest as _;

struct Place {
    store: Store,
    outside: PathBuf,
    _folder: tempfile::TempDir,
}

/// One store for all inputs, and beside it a folder that no input may touch.
fn place() -> &'static Place {
    static PLACE: OnceLock<Place> = OnceLock::new();
    PLACE.get_or_init(|| {
        let made = || -> anyhow::Result<Place> {
            let folder = tempfile::Builder::new().prefix("insula-fuzz-").tempdir()?;
            let outside = folder.path().join("outside");
            std::fs::create_dir(&outside)?;
            let store = Store::open(&folder.path().join("root"))?;
            Ok(Place { store, outside, _folder: folder })
        };
        made().unwrap_or_else(|error| panic!("no store to fuzz: {error:#}"))
    })
}

fn assert_untouched(place: &Place) {
    let entries = std::fs::read_dir(&place.outside).map(Iterator::count);
    assert_eq!(entries.ok(), Some(0), "an archive reached outside of its folder");
}

fn assert_made_again(place: &Place, id: &str) {
    let made = || -> anyhow::Result<()> {
        let image = place.store.images().resolve(id)?;
        for layer in &image.layers {
            let mut reader = place.store.images().open_layer(&layer.diff_id)?;
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut reader, &mut bytes)?;
            let digest = insula_base::Digest::from_sha256(&sha2::Sha256::digest(&bytes).into());
            assert_eq!(digest, layer.diff_id.0, "the archive of a layer is another one");
            assert_eq!(reader.size(), bytes.len() as u64);
        }
        Ok(())
    };
    made().unwrap_or_else(|error| panic!("a layer that was taken in is lost: {error:#}"));
}

/// What makes an archive again.
pub(crate) fn recipe(data: &[u8]) {
    let mut steps = Steps::new(data);
    while let Ok(Some(step)) = steps.step() {
        if let Step::Open(path) | Step::Moved { path, .. } = step {
            assert!(path.len() <= 4096);
        }
    }
}

/// A bundle of containers: refused or understood, and so is its document.
pub(crate) fn workload(data: &[u8]) {
    insula_store::workload::understand(data);
    let _ = insula_models::from_json::<insula_models::Workload>(data);
}

fn discard(place: &Place, id: &str) {
    place
        .store
        .images()
        .remove(id, Force::Yes, &|_| false)
        .unwrap_or_else(|error| panic!("remove {id}: {error}"));
}

/// A root file system to import. What was taken in can be had again, bit for bit.
pub(crate) fn layer(data: &[u8]) {
    let place = place();
    if let Ok(id) = place.store.images().import(data, ImportOptions::default(), &mut |_| {}) {
        assert_made_again(place, id.as_str());
        discard(place, id.as_str());
    }
    assert_untouched(place);
}

/// An image archive to load.
pub(crate) fn image(data: &[u8]) {
    let place = place();
    for loaded in place.store.images().load(data, &mut |_| {}).into_iter().flatten() {
        discard(place, loaded.id.as_str());
    }
    assert_untouched(place);
}
