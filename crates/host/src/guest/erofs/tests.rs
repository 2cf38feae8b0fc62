//! The kernel reads what was written: it has the last word on the format.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;

/// Unmounts on every way out.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

/// Mounts an image, where the kernel can mount files and we may.
fn mount(image: &Path, at: &Path) -> Option<Mounted> {
    let required = std::env::var("INSULA_TEST_REQUIRE").unwrap_or_default().contains("root");
    if !rustix::process::geteuid().is_root() {
        assert!(!required, "needs root");
        eprintln!("skipped: needs root");
        return None;
    }
    fs::create_dir_all(at).unwrap();
    let flags = rustix::mount::MountFlags::RDONLY;
    match rustix::mount::mount(image, at, "erofs", flags, None::<&std::ffi::CStr>) {
        Ok(()) => Some(Mounted(at.to_owned())),
        // Before Linux 6.12 it mounts devices alone, and some kernels have it not.
        Err(rustix::io::Errno::NOTBLK | rustix::io::Errno::NODEV) => {
            eprintln!("skipped: this kernel mounts no EROFS images");
            None
        }
        Err(error) => panic!("mount: {error}"),
    }
}

fn attributes(mode: u16) -> Attributes {
    Attributes { mode, uid: 7, gid: 70_000, seconds: 1_700_000_000, nanoseconds: 9, extended: Vec::new() }
}

fn with(content: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    io::Write::write_all(&mut file, content).unwrap();
    file
}

#[test]
fn the_kernel_finds_everything_as_it_was_put_in() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let mut image = Image::new(File::create(&path).unwrap(), attributes(0o040_755), u64::MAX);
    let root = image.root();
    let long: Vec<u8> = (0..10_000u32).flat_map(u32::to_le_bytes).collect();
    let file = |image: &mut Image, folder, name: &[u8], content: &[u8]| {
        let size = content.len() as u64;
        image.add(folder, name, attributes(0o100_644), Content::File(&with(content), size)).unwrap()
    };
    file(&mut image, root, b"empty", b"");
    let tagged = Attributes {
        extended: vec![
            ("user.note".into(), b"here".to_vec()),
            ("security.capability".into(), vec![1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            ("strange.name".into(), b"x".to_vec()),
        ],
        ..attributes(0o104_755)
    };
    let twice = image.add(root, b"tagged", tagged, Content::File(&with(&long), long.len() as u64)).unwrap();
    let deep = image.add(root, b"deep", attributes(0o041_777), Content::Folder).unwrap();
    image.link(deep, b"again", twice).unwrap();
    image.add(deep, b"link", attributes(0o120_777), Content::Link(b"../tagged")).unwrap();
    let far = vec![b'l'; 4095];
    image.add(deep, b"far", attributes(0o120_777), Content::Link(&far)).unwrap();
    image.add(deep, b"null", attributes(0o020_666), Content::Device(1, 3)).unwrap();
    image.add(deep, b"disk", attributes(0o060_660), Content::Device(259, 70_000)).unwrap();
    image.add(deep, b"pipe", attributes(0o010_600), Content::Other).unwrap();
    let many = image.add(root, b"many", attributes(0o040_700), Content::Folder).unwrap();
    for number in 0..1000 {
        file(&mut image, many, format!("a file with a longer name {number}").as_bytes(), b"x");
    }
    assert!(image.add(root, b"deep", attributes(0o040_755), Content::Folder).is_err(), "the name is taken");
    assert!(image.link(root, b"..", twice).is_err() && image.link(twice, b"x", twice).is_err());
    let size = image.finish().unwrap();
    assert_eq!((fs::metadata(&path).unwrap().len(), size % ALIGNMENT), (size, 0));

    let at = folder.path().join("mounted");
    let Some(_mounted) = mount(&path, &at) else { return };
    let found = |name: &str| fs::symlink_metadata(at.join(name)).unwrap();
    let tagged = found("tagged");
    assert_eq!((tagged.mode(), tagged.uid(), tagged.gid(), tagged.nlink()), (0o104_755, 7, 70_000, 2));
    assert_eq!(
        (tagged.mtime(), tagged.mtime_nsec(), tagged.ino()),
        (1_700_000_000, 9, found("deep/again").ino())
    );
    assert_eq!(fs::read(at.join("deep/again")).unwrap(), long);
    assert_eq!(fs::read(at.join("empty")).unwrap(), b"");
    let mut value = [0; 32];
    let read = |name: &str, value: &mut [u8]| rustix::fs::getxattr(at.join("tagged"), name, value);
    assert_eq!((read("user.note", &mut value[..]), &value[..4]), (Ok(4), &b"here"[..]));
    assert_eq!(read("security.capability", &mut value[..]), Ok(20));
    assert_eq!(fs::read_link(at.join("deep/link")).unwrap(), Path::new("../tagged"));
    assert_eq!(fs::read_link(at.join("deep/far")).unwrap().as_os_str().as_bytes(), far);
    assert_eq!((found("deep").mode(), found("deep").nlink(), found("").nlink()), (0o041_777, 2, 4));
    assert!(found("deep/pipe").file_type().is_fifo() && found("deep/null").file_type().is_char_device());
    let disk = found("deep/disk").rdev();
    assert_eq!((rustix::fs::major(disk), rustix::fs::minor(disk)), (259, 70_000));
    let mut names: Vec<_> =
        fs::read_dir(at.join("many")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 1000);
    assert_eq!(fs::read(at.join("many/a file with a longer name 999")).unwrap(), b"x");
}

#[test]
fn a_folder_of_any_length_is_found_again() {
    let folder = tempfile::tempdir().unwrap();
    let (path, at) = (folder.path().join("image"), folder.path().join("mounted"));
    // Lengths around what stands in one block with its inode: `.`, `..` and sixteen names.
    let dots = 2 * ENTRY + 3;
    for length in (BLOCK - FIRST - INODE - 3..BLOCK - INODE + 4).step_by(7) {
        let mut image = Image::new(File::create(&path).unwrap(), attributes(0o040_755), u64::MAX);
        let inner = image.add(image.root(), b"inner", attributes(0o040_755), Content::Folder).unwrap();
        for (parent, used) in [(image.root(), dots + ENTRY + b"inner".len()), (inner, dots)] {
            let names = length as usize - used - 16 * ENTRY;
            for number in 0..16 {
                let mut name = vec![b'a' + number; names / 16];
                name.resize(names / 16 + usize::from(usize::from(number) < names % 16), b'x');
                image.add(parent, &name, attributes(0o010_644), Content::Other).unwrap();
            }
        }
        image.finish().unwrap();
        let Some(_mounted) = mount(&path, &at) else { return };
        assert_eq!(fs::metadata(at.join("inner")).unwrap().size(), length);
        let count = |place: &Path| fs::read_dir(place).unwrap().count();
        assert_eq!((count(&at), count(&at.join("inner"))), (17, 16), "{length}");
    }
}

/// Folders by their numbers: the first is the root, each other one lies in one before it.
type Wanted = Vec<(usize, BTreeMap<Vec<u8>, Vec<u8>>)>;

fn wanted() -> impl Strategy<Value = Wanted> {
    // The shortest and the longest, and what ends at a block, alone or behind its inode.
    let length = prop_oneof![6 => 1..=255usize, 1 => Just(1), 1 => Just(255)];
    let (block, inode) = (BLOCK as usize, INODE as usize);
    let edges = [0, 1, block - inode, block, block + inode, 2 * block - inode, 2 * block];
    let edges: Vec<usize> = edges.iter().flat_map(|at| at.saturating_sub(1)..=at + 1).collect();
    let size = prop_oneof![3 => 0..9000usize, 1 => prop::sample::select(edges)];
    let name = length
        .prop_flat_map(|length| prop::collection::vec(1u8..=255, length))
        .prop_map(|name| {
            name.into_iter().map(|byte| if byte == b'/' { b'_' } else { byte }).collect::<Vec<u8>>()
        })
        .prop_filter("names of their own", |name| !matches!(&name[..], b"." | b"..") && name[0] != b'd');
    let content = size.prop_flat_map(|size| prop::collection::vec(any::<u8>(), size));
    let folder = (any::<usize>(), prop::collection::btree_map(name, content, 0..60));
    prop::collection::vec(folder, 1..6)
}

#[test]
fn whatever_is_in_it_the_kernel_reads_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (path, at) = (folder.path().join("image"), folder.path().join("mounted"));
    let check = |wanted: Wanted| {
        let mut image = Image::new(File::create(&path).unwrap(), attributes(0o040_755), u64::MAX);
        let mut folders = vec![(image.root(), PathBuf::new())];
        for (number, (parent, files)) in wanted.iter().enumerate() {
            if number > 0 {
                let (parent, place) = folders[parent % folders.len()].clone();
                let name = format!("d{number}");
                let node =
                    image.add(parent, name.as_bytes(), attributes(0o040_755), Content::Folder).unwrap();
                folders.push((node, place.join(name)));
            }
            for (name, content) in files {
                let size = content.len() as u64;
                image
                    .add(folders[number].0, name, attributes(0o100_644), Content::File(&with(content), size))
                    .unwrap();
            }
        }
        image.finish().unwrap();
        let mut head = [1; 8192];
        File::open(&path).unwrap().read_exact_at(&mut head, 0).unwrap();
        let foreign = head[..1024].iter().chain(&head[1024 + 128..]).any(|byte| *byte != 0);
        prop_assert!(!foreign, "where others look for what they have written");
        let Some(_mounted) = mount(&path, &at) else { return Ok(()) };
        for ((_, files), (_, place)) in wanted.iter().zip(&folders) {
            let place = at.join(place);
            let listed = fs::read_dir(&place)
                .unwrap()
                .filter(|entry| entry.as_ref().unwrap().path().is_file())
                .count();
            prop_assert_eq!(listed, files.len());
            for (name, content) in files {
                let file = place.join(std::ffi::OsStr::from_bytes(name));
                prop_assert_eq!(&fs::read(file).unwrap(), content);
            }
        }
        Ok(())
    };
    TestRunner::new(Config { cases: 16, failure_persistence: None, ..Config::default() })
        .run(&wanted(), check)
        .unwrap();
}

#[test]
fn no_file_says_what_the_device_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let mut image = Image::new(File::create(&path).unwrap(), attributes(0o040_755), u64::MAX);
    let block = b"NVDIMM_PFN_INFO\0".repeat(1024);
    image.add(image.root(), b"a", attributes(0o100_644), Content::File(&with(&block), 16 << 10)).unwrap();
    image.finish().unwrap();
    let bytes = fs::read(&path).unwrap();
    assert!(bytes[4096..8192].iter().all(|byte| *byte == 0) && bytes[8192..].starts_with(&block));
}

#[test]
fn holes_stay_holes() {
    const SIZE: u64 = 1 << 30;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let sparse = tempfile::tempfile().unwrap();
    sparse.set_len(SIZE).unwrap();
    sparse.write_all_at(b"here", SIZE / 2).unwrap();
    let mut image = Image::new(File::create(&path).unwrap(), attributes(0o040_755), u64::MAX);
    image.add(image.root(), b"a", attributes(0o100_644), Content::File(&sparse, SIZE)).unwrap();
    image.add(image.root(), b"b", attributes(0o100_644), Content::File(&with(b"end"), 3)).unwrap();
    let short = image.add(image.root(), b"c", attributes(0o100_644), Content::File(&with(b"end"), 4));
    assert_eq!(short.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert!(image.finish().unwrap() > SIZE);
    let written = File::open(&path).unwrap();
    assert!(written.metadata().unwrap().blocks() * 512 < 1 << 20);
    let mut found = [0; 4];
    written.read_exact_at(&mut found, 2 * BLOCK + SIZE / 2).unwrap();
    assert_eq!(&found, b"here");
}

#[test]
fn what_is_too_large_is_refused_before_it_is_written() {
    const LARGEST: u64 = 8 << 20;
    let file = tempfile::tempfile().unwrap();
    let mut image = Image::new(file.try_clone().unwrap(), attributes(0o040_755), LARGEST);
    let large = tempfile::tempfile().unwrap();
    large.set_len(LARGEST).unwrap();
    let add = |image: &mut Image, name: &[u8], content, extended| {
        let attributes = Attributes { extended, ..attributes(0o100_644) };
        image.add(image.root(), name, attributes, content).map_err(|error| error.kind())
    };
    let refused = Err(io::ErrorKind::FileTooLarge);
    assert_eq!(add(&mut image, b"a", Content::File(&large, LARGEST - 2 * BLOCK + 1), Vec::new()), refused);
    assert_eq!(file.metadata().unwrap().len(), 0);
    // Nothing of a file counts but what stays in memory.
    let mut image = Image::new(file.try_clone().unwrap(), attributes(0o040_755), 1 << 20);
    image.metadata = METADATA_MAX - (2 << 20);
    let note = || vec![("user.note".to_owned(), vec![1; 60_000])];
    let added = (0..100u32).map(|number| add(&mut image, &number.to_le_bytes(), Content::Other, note()));
    let fitting = added.take_while(Result::is_ok).count();
    assert_eq!(fitting, (2 << 20) / (60_032 + 2 * KEPT as usize));
    // The inodes are more than the file may have.
    assert_eq!(image.finish().map_err(|error| error.kind()), refused.map(|_: Node| 0));
}
