//! Files that are the same in several layers.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;

use super::*;

/// Longer than what is compared at a time.
const LONG: usize = 300_000;

fn image(store: &Store, name: &str, members: &[(&str, &[u8])]) -> Image {
    load(store, &docker_archive(name, &[&tar(members)])).unwrap();
    store.images().resolve(name).unwrap()
}

fn inode(image: &Image, path: &str) -> u64 {
    fs::symlink_metadata(image.layers[0].path.join(path)).unwrap().ino()
}

fn remove(store: &Store, name: &str) {
    store.images().remove(name, Force::No, &|_| false).unwrap();
    store.images().wait_synced();
}

/// Second names of files.
fn kept(store: &Store) -> usize {
    fs::read_dir(store.root().join("layers/files")).unwrap().count()
}

fn is_whole(store: &Store, image: &Image) -> bool {
    let diff = &image.layers[0].diff_id;
    content::digest(&blob_bytes(store, &diff.0)) == diff.0
}

fn damage(path: &Path) {
    let file = File::options().write(true).open(path).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    file.write_all_at(b"damaged", 1000).unwrap();
    file.set_modified(modified).unwrap();
}

#[test]
fn a_file_that_two_layers_have_is_there_once() {
    need_root!();
    let (_folder, store) = store();
    let long: Vec<u8> = (0..LONG as u32).flat_map(|n| n.to_le_bytes()).collect();
    let common: [(&str, &[u8]); 4] = [
        ("usr/lib/long", &long),
        ("usr/bin/tool", &[1; 5000]),
        ("etc/conf", &[2; 5000]),
        ("usr/small", b"3"),
    ];
    let one = image(&store, "one:1", &[&common[..], &[("usr/own", &[4; 5000])]].concat());
    let two = image(&store, "two:1", &[&[("usr/other", &[5; 5000][..])], &common[..]].concat());
    for shared in ["usr/lib/long", "usr/bin/tool"] {
        assert_eq!(inode(&one, shared), inode(&two, shared), "{shared}");
    }
    for apart in ["etc/conf", "usr/small"] {
        assert_ne!(inode(&one, apart), inode(&two, apart), "{apart}");
    }
    assert!(is_whole(&store, &one) && is_whole(&store, &two));
    store.images().wait_synced();
    let usage = store.usage().unwrap();
    let said = std::process::Command::new("du").args(["-s", "-B1"]).arg(store.root()).output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    assert_eq!(usage.total().to_string(), said.split_whitespace().next().unwrap(), "{usage:?}");
    assert!((long.len() as u64..2 * long.len() as u64).contains(&usage.layers), "{usage:?}");
    assert_eq!(usage.shared.len(), 1, "{:?}", usage.shared);
    assert_eq!(usage.shared[0].bytes, long.len() as u64 + 5000);
    let mut having = usage.shared[0].layers.clone();
    having.sort();
    let mut expected = [&one, &two].map(|image| (image.layers[0].chain_id.clone(), 1)).to_vec();
    expected.sort();
    assert_eq!(having, expected);
    remove(&store, "one:1");
    assert_eq!(fs::read(two.layers[0].path.join("usr/lib/long")).unwrap(), long);
    assert_eq!(kept(&store), 3);
    // Who comes next still finds it.
    let three = image(&store, "three:1", &common[..1]);
    assert_eq!(inode(&three, "usr/lib/long"), inode(&two, "usr/lib/long"));
    remove(&store, "two:1");
    remove(&store, "three:1");
    assert_eq!(kept(&store), 0);
}

#[test]
fn what_differs_anywhere_is_another_file() {
    need_root!();
    let (_folder, store) = store();
    let first = vec![1; LONG];
    let one = image(&store, "one:1", &[("usr/file", &first)]);
    for at in [0, 100_000, LONG - 1] {
        let mut other = first.clone();
        other[at] = 2;
        let name = format!("other:{at}");
        let two = image(&store, &name, &[("usr/file", &other)]);
        assert_ne!(inode(&one, "usr/file"), inode(&two, "usr/file"));
        assert!(fs::read(two.layers[0].path.join("usr/file")).unwrap() == other, "{at}");
        assert!(is_whole(&store, &two), "{at}");
        // The last one that came is the one that others are compared with.
        let again = image(&store, "again:1", &[("usr/file", &other), ("usr/more", b"x")]);
        assert_eq!(inode(&again, "usr/file"), inode(&two, "usr/file"));
        remove(&store, &name);
        remove(&store, "again:1");
    }
    // The same bytes with another owner, at another path, and in an archive that has two at one path.
    let mut builder = tar::Builder::new(Vec::new());
    for (name, owner, content) in
        [("usr/file", 7, &first), ("usr/else", 0, &first), ("usr/twice", 0, &first), ("usr/twice", 0, &first)]
    {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_000_000_000);
        header.set_uid(owner);
        header.set_gid(0);
        builder.append_data(&mut header, name, &content[..]).unwrap();
    }
    let layer = builder.into_inner().unwrap();
    for name in ["owner:1", "owner:2"] {
        load(&store, &docker_archive(name, &[&layer, &tar(&[("name", name.as_bytes())])])).unwrap();
        let owner = store.images().resolve(name).unwrap();
        let inodes = ["usr/file", "usr/else", "usr/twice"].map(|path| inode(&owner, path));
        assert!(!inodes.contains(&inode(&one, "usr/file")) && inodes[0] != inodes[1]);
        assert!(is_whole(&store, &owner));
    }
    remove(&store, "one:1");
    remove(&store, "owner:1");
    remove(&store, "owner:2");
    assert_eq!(kept(&store), 0);
}

#[test]
fn a_damaged_file_is_given_to_nobody_and_put_right_for_all() {
    need_root!();
    let (_folder, store) = store();
    let whole = vec![1; LONG];
    let one = image(&store, "one:1", &[("usr/file", &whole)]);
    let two = image(&store, "two:1", &[("usr/file", &whole), ("two", b"")]);
    damage(&one.layers[0].path.join("usr/file"));
    assert!(!is_whole(&store, &one) && !is_whole(&store, &two));
    let three = image(&store, "three:1", &[("usr/file", &whole), ("three", b"")]);
    assert!(is_whole(&store, &three));
    for (image, bytes) in
        [(&one, tar(&[("usr/file", &whole)])), (&two, tar(&[("usr/file", &whole), ("two", b"")]))]
    {
        let layer = &image.layers[0];
        let blob =
            serde_json::from_value(json!({"digest": content::digest(&bytes), "size": bytes.len()})).unwrap();
        let mut pieces = bytes.chunks(1000).map(bytes::Bytes::copy_from_slice);
        let fetched = store.images().ingest_layer(&blob, &layer.diff_id, &mut || Ok(pieces.next())).unwrap();
        store.images().restore_layer(&layer.chain_id, &layer.diff_id, &fetched).unwrap();
        assert!(is_whole(&store, image));
        assert_eq!(inode(image, "usr/file"), inode(&three, "usr/file"));
    }
    for name in ["one:1", "two:1", "three:1"] {
        remove(&store, name);
    }
    assert_eq!(kept(&store), 0);
}

#[test]
fn a_load_that_fails_and_a_daemon_that_is_killed_leave_no_names() {
    need_root!();
    let (folder, store) = store();
    let layer = tar(&[("usr/file", &[1; 5000]), ("usr/more", &[2; 5000])]);
    let cut = docker_archive("one:1", &[&layer[..7000]]);
    load(&store, &cut).unwrap_err();
    assert_eq!(kept(&store), 0);
    image(&store, "one:1", &[("usr/file", &[1; 5000])]);
    store.layers().share_files(false);
    image(&store, "two:1", &[("usr/else", &[1; 5000])]);
    assert_eq!(kept(&store), 1);
    // As one that is killed while it unpacks, or removes.
    let files = folder.path().join("layers/files");
    fs::write(files.join("0123456789abcdef0123456789abcdef"), "x").unwrap();
    let half_made = folder.path().join("layers/tmp/0123");
    fs::create_dir_all(half_made.join("usr")).unwrap();
    assert_eq!(store.layers().unused_files().unwrap().len(), 1);
    // One that is killed before it comes to them: the next finds what it has left.
    assert!(store.layers().sweep_temporary().unwrap() && !half_made.exists());
    assert_eq!(store.layers().unused_files().unwrap().len(), 1);
    drop(store);
    let store = Store::open(folder.path()).unwrap();
    store.images().wait_synced();
    assert_eq!((kept(&store), store.layers().unused_files().unwrap().len()), (1, 0));
    assert_eq!(fs::read_dir(folder.path().join("layers/tmp")).unwrap().count(), 0);
}

/// ext4 allows 65,000 names, others many more.
#[test]
fn a_file_with_as_many_names_as_there_may_be_is_written_again() {
    need_root!();
    let (folder, store) = store();
    let one = image(&store, "one:1", &[("usr/file", &[1; 5000])]);
    let (file, names) = (one.layers[0].path.join("usr/file"), folder.path().join("names"));
    fs::create_dir(&names).unwrap();
    let full = (0..70_000).any(|at| fs::hard_link(&file, names.join(at.to_string())).is_err());
    let two = image(&store, "two:1", &[("usr/file", &[1; 5000]), ("two", b"")]);
    assert_eq!(inode(&one, "usr/file") == inode(&two, "usr/file"), !full);
    assert!(is_whole(&store, &two));
    let three = image(&store, "three:1", &[("usr/file", &[1; 5000]), ("three", b"")]);
    assert_eq!(inode(&two, "usr/file"), inode(&three, "usr/file"));
}
