//! Layers and images: the bytes with the largest reach, for they make files.

use std::path::PathBuf;
use std::sync::OnceLock;

use insula_store::{Force, ImportOptions, Store};

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

fn discard(place: &Place, id: &str) {
    place
        .store
        .images()
        .remove(id, Force::Yes, &|_| false)
        .unwrap_or_else(|error| panic!("remove {id}: {error}"));
}

/// A root file system to import.
pub(crate) fn layer(data: &[u8]) {
    let place = place();
    if let Ok(id) = place.store.images().import(data, ImportOptions::default(), &mut |_| {}) {
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
