//! What is not as it should be, and comes right again.

use super::*;

/// Everything that is wrong.
fn wrong(store: &Store) -> Vec<(Part, String)> {
    let parts = store.images().parts().unwrap().into_iter();
    parts.filter_map(|part| Some((part.clone(), store.images().verify(&part).unwrap()?))).collect()
}

#[test]
fn an_image_has_the_layers_that_its_configuration_names() {
    need_root!();
    let (_folder, store) = store();
    let layers = [tar(&[("one", b"1")]), tar(&[("two", b"22")])];
    load(&store, &docker_archive("app", &[&layers[0], &layers[1]])).unwrap();
    let whole = store.images().resolve("app").unwrap();
    let part = Part::Image(whole.id.clone());
    let sql = |text: &str| store.state().transaction(|tx| tx.sql().execute("damage", text, ())).unwrap();
    assert_eq!(wrong(&store), []);
    // The upper layer is here, and not the image's.
    assert_eq!(sql("DELETE FROM image_layers WHERE position = 1"), 1);
    let said = "it has 1 layers, its configuration names 2".to_owned();
    assert_eq!(wrong(&store), [(part.clone(), said)]);
    assert_eq!(store.images().having(&part).unwrap()[0].0, whole.id);
    assert!(store.images().restore_image(&whole.id).unwrap());
    // It has both, the wrong way round.
    sql("UPDATE image_layers SET position = 1 - position + 10");
    let found = wrong(&store);
    let said = format!("its layer 1 is {}, its", whole.layers[1].diff_id);
    assert!(matches!(&found[..], [(found, why)] if *found == part && why.starts_with(&said)), "{found:?}");
    assert!(store.images().restore_image(&whole.id).unwrap());
    assert_eq!(store.images().resolve("app").unwrap(), whole);
    // It is nowhere.
    sql("DELETE FROM image_layers WHERE position = 1");
    store.images().sweep().unwrap();
    assert!(!store.images().restore_image(&whole.id).unwrap());
    assert_eq!(wrong(&store).len(), 1);
}

#[test]
fn an_image_that_was_removed_meanwhile_gets_no_layers() {
    need_root!();
    let (_folder, store) = store();
    load(&store, &docker_archive("app", &[&tar(&[("one", b"1")])])).unwrap();
    let id = store.images().resolve("app").unwrap().id;
    let held = || store.state().transaction(|tx| rows::layers_of(tx.sql(), &id)).unwrap().len();
    store.state().transaction(|tx| rows::remove_image(tx.sql(), &id)).unwrap();
    let forget = "DELETE FROM image_layers";
    store.state().transaction(|tx| tx.sql().execute("forget layers", forget, ())).unwrap();
    assert!(!store.images().restore_image(&id).unwrap());
    assert_eq!(held(), 0);
}

#[test]
fn an_image_whose_manifest_is_damaged_leaves_with_one_that_is_made_here() {
    need_root!();
    let (_folder, one) = store();
    let mut layout = index::Layout::default();
    let layer = tar(&[("one", b"1")]);
    let (single, artifact) = (layout.image(&layer, builtin::architecture()), layout.artifact(b"parts"));
    let tops = [index::named(single, "r.test/app:1"), index::named(artifact, "r.test/parts:1")];
    load(&one, &layout.archive(&tops, true)).unwrap();
    let image = one.images().resolve("r.test/app:1").unwrap();
    let manifest = one.content().path(image.manifest.as_ref().unwrap());
    let whole = std::fs::read_to_string(&manifest).unwrap();
    // One that cannot be read, and one that says something else.
    for damaged in ["{".to_owned(), whole.replacen('{', "{\"annotations\": {\"said\": \"by nobody\"}, ", 1)] {
        std::fs::write(&manifest, damaged).unwrap();
        let made = one.images().manifest(&image).unwrap();
        let parsed = insula_spec::image::Manifest::parse(&made).unwrap();
        assert!(parsed.annotations.is_empty(), "{parsed:?}");
        let layers: Vec<_> = parsed.layers.iter().map(|layer| &layer.digest).collect();
        assert_eq!((&parsed.config.digest, layers), (&image.id, vec![&image.layers[0].diff_id.0]));
        let (_folder, two) = store();
        load(&two, &saved(&one, &["r.test/app:1"])).unwrap();
        assert_eq!(two.images().resolve("r.test/app:1").unwrap().id, image.id);
    }
    // An artifact is what its manifest says.
    let artifact = one.images().resolve("r.test/parts:1").unwrap();
    let path = one.content().path(&artifact.id);
    let whole = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, whole.replacen("x/parts", "x/other", 1)).unwrap();
    assert!(matches!(one.images().manifest(&artifact), Err(Error::Mismatch { .. })));
}

#[test]
fn a_damaged_document_comes_again_with_its_image_or_goes_with_it() {
    need_root!();
    let (_folder, store) = store();
    let archive = oci_archive("app", &[&tar(&[("one", b"1")])], gzip);
    load(&store, &archive).unwrap();
    let whole = store.images().resolve("app").unwrap();
    // Its configuration, its manifest, and the index that it came with.
    let mut documents = store.state().transaction(|tx| rows::documents(tx.sql())).unwrap();
    documents.insert(whole.id.clone());
    assert_eq!(documents.len(), 3);
    let damage = || documents.iter().for_each(|id| std::fs::write(store.content().path(id), "{").unwrap());
    let standing = || store.images().standing(&"app".parse().unwrap()).unwrap();
    assert!(standing().is_some());
    damage();
    assert!(store.images().resolve("app").is_err());
    // As when power was lost before it was written.
    assert_eq!(standing(), None);
    assert_eq!(wrong(&store).len(), 3);
    load(&store, &archive).unwrap();
    assert_eq!(store.images().resolve("app").unwrap(), whole);
    assert_eq!(wrong(&store), []);
    damage();
    assert_eq!(store.images().id_of("app").unwrap(), whole.id);
    store.images().remove("app", Force::No, &|_| false).unwrap();
    store.images().wait_synced();
    assert_empty(&store);
}

#[test]
fn a_layer_that_was_just_made_stays_for_who_made_it() {
    need_root!();
    let (_folder, store) = store();
    let images = store.images();
    let layer = tar(&[("one", b"1")]);
    let staged = images.stage_layer(|out| {
        out.write_all(&layer).unwrap();
        Ok(1)
    });
    let (layers, lease) = images.place_layer(&[], staged.unwrap(), "owner", |_, _| Ok(())).unwrap();
    // What held it is pruned at once.
    images.release_image("owner", |_| Ok(())).unwrap();
    images.sweep().unwrap();
    let composed = Composed { config: ImageConfig::default(), references: vec!["made:1".parse().unwrap()] };
    images.compose(&layers, composed).unwrap();
    drop(lease);
    assert_eq!(images.resolve("made:1").unwrap().layers, layers);
}
