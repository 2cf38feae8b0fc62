use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;

use proptest::prelude::*;

use super::*;
use crate::layers::{Limits, unpack_recorded};

/// Unpacking sets owners, so it needs root; a run that is to be complete must not skip.
fn no_root() -> bool {
    if rustix::process::geteuid().is_root() {
        return false;
    }
    assert!(!std::env::var("INSULA_TEST_REQUIRE").is_ok_and(|needs| needs.contains("root")), "needs root");
    eprintln!("skipped: needs root");
    true
}

struct Made {
    _folder: tempfile::TempDir,
    layer: PathBuf,
    recipe: PathBuf,
    head: Head,
}

fn record(archive: &[u8]) -> Result<Made> {
    let folder = tempfile::tempdir().unwrap();
    let (layer, recipe) = (folder.path().join("layer"), folder.path().join("recipe"));
    fs::create_dir(&layer).unwrap();
    fs::create_dir(&recipe).unwrap();
    let root = File::open(&layer).unwrap();
    let recorder = Recorder::begin(&recipe, root.as_fd())?;
    let (_, head) = unpack_recorded(archive, root.as_fd(), &Limits::default(), recorder, None)?;
    Ok(Made { _folder: folder, layer, recipe, head })
}

fn again(made: &Made) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut replay = Replay::open(&made.recipe, &made.layer).map_err(std::io::Error::other)?;
    assert_eq!(replay.length(), made.head.length);
    // In pieces of odd sizes: whoever reads may stop anywhere.
    let mut piece = [0; 777];
    loop {
        let count = replay.read(&mut piece)?;
        if count == 0 {
            return Ok(bytes);
        }
        bytes.extend_from_slice(&piece[..count]);
    }
}

struct Archive(tar::Builder<Vec<u8>>);

impl Archive {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn put(&mut self, kind: tar::EntryType, path: &str, link: &str, content: &[u8]) -> &mut Self {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        let name = path.as_bytes();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    fn file(&mut self, path: &str, content: &[u8]) -> &mut Self {
        self.put(tar::EntryType::Regular, path, "", content)
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn assert_same(archive: &[u8]) -> Made {
    let made = record(archive).unwrap();
    assert!(again(&made).unwrap() == archive, "the archive is another");
    made
}

#[test]
fn what_follows_the_end_and_pads_is_kept() {
    if no_root() {
        return;
    }
    let mut archive = Archive::new();
    archive.file("a/b", &[7; 1000]).file("empty", b"").file(".wh.gone", b"content of a whiteout");
    archive.file("a/.wh..wh.plnk/x", &[1; 5000]).put(tar::EntryType::Symlink, "l", "a", b"");
    archive.put(tar::EntryType::Link, "h", "a/b", b"").file("l/through", &[3; 600]);
    let mut bytes = archive.bytes();
    // Padding need not be zeros, and some writers fill up to a record of 20 blocks.
    bytes[512 + 1000] = 42;
    bytes.extend_from_slice(&[9; 5121]);
    let made = assert_same(&bytes);
    assert_eq!(made.head.in_files, 1600);
    assert!(fs::metadata(made.recipe.join(TAR)).unwrap().len() < 1000);
}

#[test]
fn entries_that_replace_others_are_made_again_too() {
    if no_root() {
        return;
    }
    let mut archive = Archive::new();
    archive.file("f", b"first").file("f", b"second one").file("f", b"third");
    archive.file("d/e/x", b"below").file("d/y", b"beside").put(tar::EntryType::Symlink, "s", "d/e", b"");
    archive.file("s/through", b"link").file("d/e", b"a file now").file("d/e", b"another");
    archive.file("s", b"no link any more").file("d", b"and this").put(
        tar::EntryType::Directory,
        "d",
        "",
        b"",
    );
    archive.file("d/y", b"last");
    let made = assert_same(&archive.bytes());
    assert_eq!(made.head.replaced, 7);
    assert_eq!(fs::read(made.layer.join("d/y")).unwrap(), b"last");
}

#[test]
fn files_with_holes_are_read_where_their_data_is() {
    if no_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = File::create(folder.path().join("sparse")).unwrap();
    file.write_all_at(&[5; 4096], 1 << 20).unwrap();
    file.write_all_at(&[6; 5000], 3 << 20).unwrap();
    file.set_len(5 << 20).unwrap();
    for format in ["gnu", "pax"] {
        let made = std::process::Command::new("tar")
            .args(["-S", "--format", format, "-C"])
            .arg(folder.path())
            .args(["-c", "sparse"])
            .output()
            .unwrap();
        assert!(made.stdout.len() < 100_000, "tar kept the holes");
        assert!(assert_same(&made.stdout).head.in_files >= 9096);
    }
}

#[test]
fn damage_is_an_error_and_no_other_archive() {
    if no_root() {
        return;
    }
    let mut archive = Archive::new();
    archive.file("a", &[7; 70_000]).file("b", b"b");
    let made = record(&archive.bytes()).unwrap();
    File::options().write(true).open(made.layer.join("a")).unwrap().set_len(60_000).unwrap();
    assert!(again(&made).unwrap_err().to_string().contains("too short"));
    fs::remove_file(made.layer.join("a")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", made.layer.join("a")).unwrap();
    assert!(again(&made).unwrap_err().to_string().contains("\"a\""));
    let path = made.recipe.join(TAR);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 5]).unwrap();
    again(&made).unwrap_err();
    File::create(&path).unwrap().write_all(&[0; 31]).unwrap();
    assert!(matches!(Replay::open(&made.recipe, &made.layer), Err(Error::Recipe { .. })));
}

/// Bytes of a file, often those that fill blocks of an archive, or nearly.
fn size() -> impl Strategy<Value = usize> {
    prop_oneof![3 => 0..3000usize, 1 => prop::sample::select(vec![0, 1, 511, 512, 513, 1023, 1024, 1025])]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Few names, so that entries replace each other and links lead to folders.
    #[test]
    fn any_archive_that_unpacks_is_made_again(
        entries in proptest::collection::vec((0..5u8, 0..12usize, 0..12usize, size()), 1..24),
    ) {
        if no_root() {
            return Ok(());
        }
        let paths = ["a", "b", "a/a", "a/b", "b/a", "a/a/a", "b/a/c", "c", "c/a", "c/a/b", "a/.wh.b", "b/.wh..wh..opq"];
        let mut archive = Archive::new();
        for (kind, path, link, size) in entries {
            let content = vec![size as u8; size];
            match kind {
                0 | 1 => archive.file(paths[path], &content),
                2 => archive.put(tar::EntryType::Directory, paths[path], "", b""),
                3 => archive.put(tar::EntryType::Symlink, paths[path], paths[link], b""),
                _ => archive.put(tar::EntryType::Link, paths[path], paths[link], b""),
            };
        }
        let bytes = archive.bytes();
        // Some of these lead through files or in circles, which is refused.
        if let Ok(made) = record(&bytes) {
            prop_assert!(again(&made).unwrap() == bytes);
        }
    }

    #[test]
    fn steps_are_read_as_they_were_written(
        number in any::<u64>(), path in proptest::collection::vec(any::<u8>(), 0..4096), raw in any::<Vec<u8>>(),
    ) {
        let all = [
            Step::Raw(raw.len() as u64), Step::Open(path.clone()), Step::Data { offset: number, length: !number },
            Step::Moved { number, path },
        ];
        let mut bytes = Vec::new();
        for step in &all {
            steps::write(&mut bytes, step).unwrap();
            if matches!(step, Step::Raw(_)) {
                bytes.write_all(&raw).unwrap();
            }
        }
        steps::write_end(&mut bytes).unwrap();
        let mut read = Steps::new(&bytes[..]);
        for step in all {
            prop_assert_eq!(read.step().unwrap(), Some(step));
        }
        prop_assert_eq!(read.step().unwrap(), None);
    }
}
