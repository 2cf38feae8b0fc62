use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use insula_sys::process::overlay_opaque;
use rustix::fs::{CWD, XattrFlags, mknodat, setxattr};

use super::*;
use crate::archive::{Archive, Entry, EntryKind};
use crate::layers::{Limits, Whiteouts, unpack};

/// Whiteouts and attributes of overlay are root's to make.
fn no_root() -> bool {
    if rustix::process::geteuid().is_root() {
        return false;
    }
    assert!(!std::env::var("INSULA_TEST_REQUIRE").is_ok_and(|needs| needs.contains("root")), "needs root");
    eprintln!("skipped: needs root");
    true
}

struct Layers {
    folder: tempfile::TempDir,
    of: DiffOf,
}

impl Layers {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (upper, lower) = (folder.path().join("upper"), folder.path().join("lower"));
        fs::create_dir(&upper).unwrap();
        fs::create_dir(&lower).unwrap();
        let of = DiffOf { upper, lower: vec![lower], ignored: BTreeSet::new(), latest: None };
        Self { folder, of }
    }

    fn upper(&self, path: &str) -> PathBuf {
        self.of.upper.join(path)
    }

    fn archive(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_diff(&self.of, &mut bytes).unwrap();
        bytes
    }
}

fn whiteout(path: &Path) {
    mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
}

fn entries(bytes: &[u8]) -> Vec<Entry> {
    let mut archive = Archive::new(bytes);
    std::iter::from_fn(|| archive.next_entry().unwrap()).collect()
}

fn names(bytes: &[u8]) -> Vec<String> {
    entries(bytes).into_iter().map(|entry| String::from_utf8(entry.path).unwrap()).collect()
}

/// Everything that overlay sees: kind, mode, owner, time, attributes, content.
fn describe(root: &Path) -> Vec<String> {
    let out = std::process::Command::new("sh")
        .arg("-c")
        // Nobody looks at the time of a whiteout.
        .arg(
            "find . -mindepth 1 ! -type s \\( -type c -printf '%P %y %m %U %G\\n' \
             -o -printf '%P %y %m %U %G %T@ %l %n\\n' \\) | sort; \
             find . -type f | sort | xargs -d '\\n' sha256sum",
        )
        .current_dir(root)
        .output()
        .unwrap();
    String::from_utf8(out.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn a_difference_is_unpacked_to_what_it_was() {
    if no_root() {
        return;
    }
    let layers = Layers::new();
    fs::create_dir_all(layers.upper("a/opaque/inner")).unwrap();
    setxattr(layers.upper("a/opaque"), overlay_opaque(), b"y", XattrFlags::empty()).unwrap();
    fs::write(layers.upper("a/opaque/inner/file"), "new").unwrap();
    whiteout(&layers.upper("a/gone"));
    whiteout(&layers.upper("gone too"));
    let long = format!("a/{}", "n".repeat(200));
    fs::write(layers.upper(&long), vec![7; 100_000]).unwrap();
    fs::hard_link(layers.upper(&long), layers.upper("zz-link")).unwrap();
    symlink("../somewhere/else", layers.upper("a/symlink")).unwrap();
    setxattr(layers.upper(&long), "user.note", b"line\nbreak \xff", XattrFlags::empty()).unwrap();
    // cap_net_bind_service in effect and permitted, version 2 (capabilities(7)).
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    setxattr(layers.upper(&long), "security.capability", &capability, XattrFlags::empty()).unwrap();
    fs::write(layers.upper("setuid"), "x").unwrap();
    std::os::unix::fs::chown(layers.upper("setuid"), Some(1234), Some(3_000_000)).unwrap();
    fs::set_permissions(layers.upper("setuid"), fs::Permissions::from_mode(0o4751)).unwrap();
    mknodat(CWD, layers.upper("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    mknodat(CWD, layers.upper("null"), FileType::CharacterDevice, Mode::RUSR, rustix::fs::makedev(1, 3))
        .unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(layers.upper("socket")).unwrap();

    let bytes = layers.archive();
    assert!(bytes == layers.archive(), "the same difference is the same bytes");
    let seen = names(&bytes);
    assert!(seen.contains(&"a/opaque/.wh..wh..opq".to_owned()) && seen.contains(&".wh.gone too".to_owned()));
    assert!(!seen.iter().any(|name| name.contains("socket")));
    let copy = layers.folder.path().join("copy");
    fs::create_dir(&copy).unwrap();
    let root = File::open(&copy).unwrap();
    unpack(&bytes[..], root.as_fd(), &Limits::default(), Whiteouts::Overlay).unwrap();
    for (path, name) in
        [("a/opaque", overlay_opaque()), (long.as_str(), "user.note"), ("zz-link", "security.capability")]
    {
        let value = |root: &Path| {
            let file = File::open(root.join(path)).unwrap();
            attribute(file.as_fd(), name.as_bytes()).unwrap().unwrap()
        };
        assert_eq!(value(&copy), value(&layers.of.upper), "{name}");
    }
    assert_eq!(describe(&copy), {
        let mut before = describe(&layers.of.upper);
        before.retain(|line| !line.contains("socket"));
        before
    });
}

#[test]
fn what_the_engine_made_to_mount_on_is_no_difference() {
    let mut layers = Layers::new();
    layers.of.ignored = ["/etc/hosts", "/data"].map(PathBuf::from).into();
    fs::create_dir_all(layers.of.lower[0].join("etc")).unwrap();
    fs::create_dir_all(layers.upper("etc")).unwrap();
    fs::create_dir_all(layers.upper("data")).unwrap();
    fs::write(layers.upper("etc/hosts"), "").unwrap();
    assert_eq!(names(&layers.archive()), [""; 0]);
    let mut none = Vec::new();
    assert_eq!(write_diff(&layers.of, &mut none).unwrap(), 0);
    fs::write(layers.upper("etc/passwd"), "x").unwrap();
    assert_eq!(names(&layers.archive()), ["etc/", "etc/passwd"]);
    fs::remove_file(layers.upper("etc/passwd")).unwrap();
    fs::set_permissions(layers.upper("etc"), fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(names(&layers.archive()), ["etc/"]);
    // A folder that someone made and left empty is one.
    fs::create_dir(layers.upper("empty")).unwrap();
    assert_eq!(names(&layers.archive()), ["empty/", "etc/"]);
}

#[test]
fn times_before_the_epoch_and_fractions_are_kept() {
    let layers = Layers::new();
    for (name, seconds, nanoseconds) in [("a", -2, 750_000_000), ("b", 1_000_000_000, 5), ("c", 12, 0)] {
        fs::write(layers.upper(name), "x").unwrap();
        let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, layers.upper(name), &times, AtFlags::empty()).unwrap();
    }
    let times: Vec<_> = entries(&layers.archive()).iter().map(|entry| entry.mtime).collect();
    assert_eq!(times, [(-2, 750_000_000), (1_000_000_000, 5), (12, 0)]);
    assert!(entries(&layers.archive()).iter().all(|entry| entry.kind == EntryKind::File));
}

#[test]
fn an_overlay_that_was_mounted_otherwise_is_refused() {
    if no_root() {
        return;
    }
    let layers = Layers::new();
    fs::create_dir(layers.upper("moved")).unwrap();
    setxattr(layers.upper("moved"), "trusted.overlay.redirect", b"from", XattrFlags::empty()).unwrap();
    let error = write_diff(&layers.of, &mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("trusted.overlay.redirect"), "{error}");
}
