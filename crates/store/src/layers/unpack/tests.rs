//! Layers as tools write them, and as nobody should.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use insula_base::{Kind, Kinded as _};

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

/// Builds archives without any check of what is in them.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn raw(mut self, kind: u8, path: &str, link: &str, mode: u32, data: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        for (field, name) in [(0, path), (157, link)] {
            header.as_mut_bytes()[field..field + name.len()].copy_from_slice(name.as_bytes());
        }
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_mode(mode);
        header.set_uid(1);
        header.set_gid(2);
        header.set_mtime(1_000_000_000);
        header.set_size(data.len() as u64);
        header.set_device_major(1).unwrap();
        header.set_device_minor(if path.contains("zero") { 0 } else { 3 }).unwrap();
        if path.contains("zero") {
            header.set_device_major(0).unwrap();
        }
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, path: &str, data: &str) -> Self {
        self.raw(b'0', path, "", 0o644, data.as_bytes())
    }

    fn folder(self, path: &str, mode: u32) -> Self {
        self.raw(b'5', path, "", mode, b"")
    }

    fn symbolic(self, path: &str, target: &str) -> Self {
        self.raw(b'2', path, target, 0o777, b"")
    }

    fn hard(self, path: &str, target: &str) -> Self {
        self.raw(b'1', path, target, 0o644, b"")
    }

    fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_pax_extensions(records.iter().copied()).unwrap();
        let bytes = builder.into_inner().unwrap();
        // Without the end that the builder writes.
        self.0.extend_from_slice(&bytes[..bytes.len() - 1024]);
        self
    }
}

/// A folder to unpack into, beside a file that nothing may touch.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("layer")).unwrap();
        fs::create_dir(folder.path().join("outside")).unwrap();
        fs::write(folder.path().join("outside/secret"), "secret").unwrap();
        Self { folder }
    }

    fn unpack_within(&self, tar: &Tar, limits: &Limits, whiteouts: Whiteouts) -> Result<Unpacked> {
        let root = File::open(self.path("")).unwrap();
        unpack(&tar.0[..], root.as_fd(), limits, whiteouts)
    }

    fn unpack(&self, tar: &Tar) -> Result<Unpacked> {
        self.unpack_within(tar, &Limits::default(), Whiteouts::Overlay)
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join("layer").join(path)
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    fn xattr(&self, path: &str, name: &str) -> Option<Vec<u8>> {
        let mut value = Vec::with_capacity(1024);
        rustix::fs::lgetxattr(self.path(path), name, rustix::buffer::spare_capacity(&mut value)).ok()?;
        Some(value)
    }

    fn is_whiteout(&self, path: &str) -> bool {
        fs::symlink_metadata(self.path(path)).is_ok_and(|m| m.file_type().is_char_device() && m.rdev() == 0)
    }

    fn assert_outside_untouched(&self) {
        let outside = self.folder.path().join("outside");
        assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "secret");
        assert_eq!(fs::metadata(outside.join("secret")).unwrap().nlink(), 1);
        assert_eq!(fs::read_dir(outside).unwrap().count(), 1);
        assert_eq!(fs::read_dir(self.folder.path()).unwrap().count(), 2);
    }
}

fn metadata(place: &Place, path: &str) -> fs::Metadata {
    fs::symlink_metadata(place.path(path)).unwrap()
}

#[test]
fn every_kind_of_entry_is_made_with_its_attributes() {
    need_root!();
    let place = Place::new();
    let tar = Tar::default()
        .folder("./", 0o711)
        .folder("bin/", 0o2755)
        .raw(b'0', "bin/su", "", 0o4755, b"program")
        .hard("bin/su2", "./bin/su")
        .symbolic("lib", "usr/lib")
        .hard("lib2", "lib")
        .raw(b'3', "null", "", 0o666, b"")
        .raw(b'4', "block", "", 0o660, b"")
        .raw(b'6', "fifo", "", 0o622, b"");
    let unpacked = place.unpack(&tar).unwrap();
    assert_eq!(unpacked, Unpacked { entries: 9, size: 7, implied: Vec::new() });
    for (path, mode) in
        [("", 0o711), ("bin", 0o2755), ("bin/su", 0o4755), ("null", 0o666), ("block", 0o660), ("fifo", 0o622)]
    {
        let found = metadata(&place, path);
        assert_eq!((found.mode() & 0o7777, found.uid(), found.gid()), (mode, 1, 2), "{path}");
        assert_eq!(found.mtime(), 1_000_000_000, "{path}");
    }
    assert_eq!((metadata(&place, "lib").uid(), metadata(&place, "lib").mtime()), (1, 1_000_000_000));
    assert_eq!(fs::read_link(place.path("lib2")).unwrap(), Path::new("usr/lib"));
    assert_eq!(metadata(&place, "bin/su").ino(), metadata(&place, "bin/su2").ino());
    assert_eq!(metadata(&place, "null").rdev(), rustix::fs::makedev(1, 3));
    assert!(
        metadata(&place, "block").file_type().is_block_device()
            && metadata(&place, "fifo").file_type().is_fifo()
    );
}

#[test]
fn extended_attributes_are_kept_but_for_those_of_the_host() {
    need_root!();
    let place = Place::new();
    let capability = b"\x01\0\0\x02\0\n\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let tar = Tar::default()
        .pax(&[
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.user.note", b"a\nb"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.security.selinux", b"x"),
            ("SCHILY.xattr.security.ima", b"x"),
        ])
        .raw(b'0', "ping", "", 0o755, b"x")
        .pax(&[("SCHILY.xattr.trusted.overlay.opaque", b"y"), ("SCHILY.xattr.trusted.mine", b"1")])
        .folder("dir", 0o755);
    place.unpack(&tar).unwrap();
    assert_eq!(place.xattr("ping", "security.capability").unwrap(), capability);
    assert_eq!(place.xattr("ping", "user.note").unwrap(), b"a\nb");
    for name in ["user.overlay.opaque", "trusted.overlay.redirect", "security.selinux", "security.ima"] {
        assert!(place.xattr("ping", name).is_none(), "{name}");
    }
    assert!(place.xattr("dir", "trusted.overlay.opaque").is_none());
    assert_eq!(place.xattr("dir", "trusted.mine").unwrap(), b"1");
}

#[test]
fn whiteouts_become_those_of_overlay() {
    need_root!();
    let place = Place::new();
    let tar = Tar::default()
        .file("etc/.wh.gone", "")
        .file("opaque/.wh..wh..opq", "")
        .file("opaque/new", "n")
        .file(".wh..wh.plnk/1.2", "")
        .file(".wh..wh.aufs", "")
        // An entry and a whiteout of one name, in either order.
        .file("both/file", "b")
        .file(".wh.both", "")
        .file(".wh.again", "")
        .folder("again", 0o755)
        .file("kept", "k")
        .file(".wh.kept", "");
    place.unpack(&tar).unwrap();
    assert!(place.is_whiteout("etc/gone"));
    for folder in ["opaque", "both", "again"] {
        assert_eq!(place.xattr(folder, "trusted.overlay.opaque").as_deref(), Some(&b"y"[..]), "{folder}");
    }
    assert_eq!(
        (place.read("opaque/new"), place.read("both/file"), place.read("kept")),
        ("n".into(), "b".into(), "k".into())
    );
    let names: Vec<_> = fs::read_dir(place.path("")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| !name.as_encoded_bytes().starts_with(b".wh.")), "{names:?}");
    let place = Place::new();
    place
        .unpack_within(&Tar::default().file(".wh.x", "ordinary"), &Limits::default(), Whiteouts::Ordinary)
        .unwrap();
    assert_eq!(place.read(".wh.x"), "ordinary");
}

#[test]
fn later_entries_replace_earlier_ones() {
    need_root!();
    let place = Place::new();
    let tar = Tar::default()
        .file("a", "1")
        .file("a", "two")
        .folder("dir", 0o700)
        .file("dir/deep/er", "x")
        .file("dir", "a file now")
        .file("file", "x")
        .folder("file", 0o755)
        .file("file/inside", "i")
        .folder("merged", 0o700)
        .file("merged/kept", "k")
        .folder("merged", 0o755)
        .symbolic("link", "merged")
        .folder("link", 0o755)
        .file("link/own", "o")
        .file("self", "s")
        .hard("self", "self");
    let unpacked = place.unpack(&tar).unwrap();
    assert!(unpacked.implied.is_empty(), "{unpacked:?}");
    assert_eq!(
        (place.read("a"), place.read("dir"), place.read("file/inside")),
        ("two".into(), "a file now".into(), "i".into())
    );
    assert_eq!((place.read("merged/kept"), metadata(&place, "merged").mode() & 0o777), ("k".into(), 0o755));
    assert!(metadata(&place, "link").is_dir() && !place.path("merged/own").exists());
    assert_eq!(place.read("self"), "s");
}

#[test]
fn folders_without_entries_are_made_and_told() {
    need_root!();
    let place = Place::new();
    let tar = Tar::default().file("a/b/c", "x").folder("a/b", 0o750).file("d/e", "x").file("d", "now a file");
    let unpacked = place.unpack(&tar).unwrap();
    assert_eq!(unpacked.implied, [Path::new("a")]);
    assert_eq!(metadata(&place, "a").mode() & 0o7777, 0o755);
    assert_eq!(metadata(&place, "a/b").mode() & 0o7777, 0o750);
}

#[test]
fn links_lead_where_they_lead_inside() {
    need_root!();
    let place = Place::new();
    let outside = place.folder.path().join("outside");
    let tar = Tar::default()
        .folder("usr/lib", 0o755)
        .symbolic("lib", "usr/lib")
        .file("lib/libc.so", "c")
        .symbolic("abs", "/usr/lib")
        .file("abs/libm.so", "m")
        // Up and out: the root is its own parent inside.
        .symbolic("out", "../../outside")
        .folder("outside", 0o755)
        .file("out/secret", "inner")
        .symbolic("real", outside.to_str().unwrap())
        .symbolic("secret", "../outside/secret")
        .hard("hard", "secret");
    place.unpack(&tar).unwrap();
    assert_eq!((place.read("usr/lib/libc.so"), place.read("usr/lib/libm.so")), ("c".into(), "m".into()));
    assert_eq!(place.read("outside/secret"), "inner");
    assert!(metadata(&place, "hard").is_symlink());
    place.assert_outside_untouched();
}

#[test]
fn hostile_layers_touch_nothing_outside() {
    need_root!();
    let outside = |place: &Place| place.folder.path().join("outside").to_str().unwrap().to_owned();
    type Hostile = fn(&str) -> Tar;
    let cases: &[(&str, Hostile)] = &[
        ("a path upwards", |_| Tar::default().file("../outside/secret", "x")),
        ("a path upwards in the middle", |_| Tar::default().file("a/../../outside/secret", "x")),
        ("a folder upwards", |_| Tar::default().folder("..", 0o777)),
        ("a hard link upwards", |_| Tar::default().hard("a", "../outside/secret")),
        ("an absolute hard link", |out| Tar::default().hard("a", &format!("{out}/secret"))),
        ("a hard link through a link", |out| Tar::default().symbolic("l", out).hard("a", "l/secret")),
        ("a hard link to a folder", |_| Tar::default().folder("d", 0o755).hard("a", "d")),
        ("a hard link to nothing", |_| Tar::default().hard("a", "b")),
        ("a file below a dangling link", |out| Tar::default().symbolic("l", out).file("l/new", "x")),
        ("a file below a file", |_| Tar::default().file("a", "x").file("a/b", "x")),
        ("a loop of links", |_| Tar::default().symbolic("a", "b").symbolic("b", "a").file("a/x", "x")),
        ("a magic link", |_| Tar::default().symbolic("p", "/proc/self/root").file("p/x", "x")),
        ("a root that is a file", |_| Tar::default().file("./", "x").raw(b'2', ".", "/", 0o777, b"")),
        ("a root that is a link", |_| Tar::default().raw(b'2', "./", "/", 0o777, b"")),
        ("a whiteout of the parent", |_| Tar::default().file("a/.wh...", "")),
        ("a whiteout of the folder", |_| Tar::default().file("a/.wh..", "")),
        ("a whiteout of nothing", |_| Tar::default().file("a/.wh.", "")),
        ("a name too long", |_| Tar::default().pax(&[("path", &[b'x'; 300])]).file("a", "x")),
        ("a link to nothing", |_| Tar::default().symbolic("a", "")),
    ];
    for (what, make) in cases {
        let place = Place::new();
        let tar = make(&outside(&place));
        let error = place.unpack(&tar).map(|_| ()).expect_err(what);
        assert_eq!(error.kind(), Kind::InvalidArgument, "{what}: {error}");
        place.assert_outside_untouched();
    }
    // These are harmless because they stay inside.
    let harmless: &[(&str, Hostile)] = &[
        ("an absolute path", |out| Tar::default().file(&format!("{out}/secret"), "x")),
        ("a file in place of a link", |out| {
            Tar::default().symbolic("l", &format!("{out}/secret")).file("l", "x")
        }),
        ("a folder in place of a link", |out| {
            Tar::default().symbolic("l", out).folder("l", 0o777).file("l/secret", "x")
        }),
        ("a whiteout of a link", |out| Tar::default().symbolic("l", out).file(".wh.l", "")),
        ("a whiteout by hand", |_| Tar::default().raw(b'3', "zero", "", 0, b"")),
    ];
    for (what, make) in harmless {
        let place = Place::new();
        place.unpack(&make(&outside(&place))).expect(what);
        place.assert_outside_untouched();
    }
}

#[test]
fn limits_hold() {
    need_root!();
    let tar = Tar::default().file("a", "123").file("b", "456");
    let within =
        |entries, bytes| Place::new().unpack_within(&tar, &Limits { entries, bytes }, Whiteouts::Overlay);
    within(2, 6).unwrap();
    assert!(matches!(within(1, 6), Err(Error::Limit { limit: 1, .. })));
    assert!(matches!(within(2, 5), Err(Error::Limit { limit: 5, .. })));
}

#[test]
fn sparse_files_keep_their_holes() {
    need_root!();
    let place = Place::new();
    let records: &[(&str, &[u8])] = &[("GNU.sparse.map", b"1048576,3"), ("GNU.sparse.size", b"1073741824")];
    let unpacked = place.unpack(&Tar::default().pax(records).file("sparse", "abc")).unwrap();
    let found = metadata(&place, "sparse");
    assert_eq!((found.len(), unpacked.size), (1 << 30, 1 << 30));
    assert!(found.blocks() < 1024, "{} blocks", found.blocks());
    let mut data = [0; 5];
    std::os::unix::fs::FileExt::read_exact_at(
        &File::open(place.path("sparse")).unwrap(),
        &mut data,
        (1 << 20) - 1,
    )
    .unwrap();
    assert_eq!(&data, b"\0abc\0");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever entries come in whatever order, nothing outside is touched.
    #[test]
    fn no_sequence_of_entries_escapes(
        entries in proptest::collection::vec(
            (
                prop::sample::select(b"0123567".to_vec()),
                prop::sample::select(vec![
                    "a", "b", "a/b", "b/a", "a/a/a", "../a", "a/../b", "/a", "b/../../outside/x", ".", "..",
                    "a/.wh.b", "b/.wh..wh..opq", ".wh.a", "a/secret", "b/secret", ".wh...",
                ]),
                prop::sample::select(vec![
                    "a", "..", "../outside", "../outside/secret", "/", "b", ".", "a/b", "../../../../../outside", "OUT",
                ]),
            ),
            1..16,
        )
    ) {
        if rustix::process::geteuid().is_root() {
            let place = Place::new();
            let outside = place.folder.path().join("outside").to_str().unwrap().to_owned();
            let mut tar = Tar::default();
            for (kind, path, link) in &entries {
                let link = if *link == "OUT" { &outside } else { *link };
                let data: &[u8] = if *kind == b'0' { b"data" } else { b"" };
                tar = tar.raw(*kind, path, link, 0o777, data);
            }
            // The first entries may well unpack before one fails.
            let _ = place.unpack(&tar);
            place.assert_outside_untouched();
        }
    }
}
