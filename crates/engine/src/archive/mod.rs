//! `cp`: files of a container as a tar, and a tar into a container, whether it runs or not.
//!
//! The tar carries ids as they are inside. Into a running container it is unpacked by a thread
//! that acts as the container's root on file systems (its ids are all that they accept); into a
//! stopped one, into the writable layer.

mod engine;
mod read;
mod stat;
mod write;

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};

use insula_host::quota::obeyed;
use insula_models::PathStat;

pub use self::engine::{ArchiveChunks, ArchiveSender, archive_channel};
pub(crate) use self::engine::{ChunkWriter, made_by_engine, produce};
pub(crate) use self::read::pack_root;
pub(crate) use self::stat::{go_mode, modified};
pub(crate) use self::write::decompressed;
use crate::tree::{Last, Place, Tree, clean};
use crate::{Error, Result};

/// Where a container's files are.
#[derive(Debug, Clone)]
pub struct Files {
    /// Name or id, for messages.
    pub container: String,
    pub root: Root,
    /// Folders and files that are mounted while it runs: path inside, path on the host. Looked at only
    /// when it does not run.
    pub mounts: Vec<(PathBuf, PathBuf)>,
    /// What is mounted by its path inside, and whether it is read-only.
    pub volumes: Vec<(PathBuf, bool)>,
    /// `--read-only`: what is not mounted may not be written.
    pub readonly: bool,
}

/// A root file system, mounted or not.
#[derive(Debug, Clone)]
pub enum Root {
    /// `/proc/<pid>/root` of one of its processes, and what id 0 inside is outside.
    Running { root: PathBuf, first_id: u32 },
    /// The writable layer and the image's, the latter lowest first. `hidden` are absolute paths below
    /// which the image's layers count as empty.
    Stopped { upper: PathBuf, lower: Vec<PathBuf>, hidden: Vec<String> },
}

/// What an archive that is copied in may not do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// Refuse to replace a folder by a file and the other way round.
    pub keep_kinds: bool,
}

impl Files {
    /// What is at `path`, a symbolic link itself unless the path ends with a slash.
    pub fn stat(&self, path: &str) -> Result<PathStat> {
        let tree = self.tree()?;
        stat::describe(&tree, &self.find(&tree, path)?, path)
    }

    /// Writes what is at `path` as a tar whose names begin with the path's last part.
    pub fn read(&self, path: &str, out: impl Write) -> Result<()> {
        let tree = self.tree()?;
        read::pack(&tree, &self.find(&tree, path)?, path, out)
    }

    /// Writes the whole root file system, names without a slash in front.
    pub fn export(&self, out: impl Write) -> Result<()> {
        let tree = self.tree()?;
        read::pack_root(&tree, &tree.resolve(&clean("/"), Last::Follow)?, out)
    }

    /// Unpacks a tar, plain or compressed, into the folder at `path`.
    pub fn write(&self, path: &str, archive: impl BufRead + Send, options: WriteOptions) -> Result<()> {
        let tree = self.tree()?;
        let mut place = self.resolve(&tree, path, Last::Follow)?;
        if place.dir().is_none() {
            return Err(match place.entry {
                Some(_) => Error::InvalidArgument("extraction point is not a directory".to_owned()),
                None => self.missing(path),
            });
        }
        self.check_writable(&place.path)?;
        obeyed(|| write::unpack(&tree, &mut place, archive, options))
    }

    /// Whether the folder at `path`, free of links, may be written: the innermost mount decides.
    fn check_writable(&self, path: &Path) -> Result<()> {
        let volumes = self.volumes.iter().filter(|(target, _)| path.starts_with(target));
        let why = match volumes.max_by_key(|(target, _)| target.components().count()) {
            Some((_, true)) => "mounted volume is marked read-only",
            None if self.readonly => "container rootfs is marked read-only",
            Some((_, false)) | None => return Ok(()),
        };
        Err(Error::Denied(why.to_owned()))
    }

    fn tree(&self) -> Result<Tree> {
        match &self.root {
            Root::Running { root, first_id } => Tree::running(root, *first_id),
            Root::Stopped { upper, lower, hidden } => Tree::stopped(upper, lower, hidden, &self.mounts),
        }
    }

    fn find(&self, tree: &Tree, path: &str) -> Result<Place> {
        let last = if path.ends_with('/') || path.ends_with("/.") { Last::Follow } else { Last::Keep };
        let place = self.resolve(tree, path, last)?;
        if place.entry.is_none() && place.dir().is_none() {
            return Err(self.missing(path));
        }
        Ok(place)
    }

    fn resolve(&self, tree: &Tree, path: &str, last: Last) -> Result<Place> {
        if path.is_empty() {
            return Err(Error::InvalidArgument("bad parameter: 'path' cannot be empty".to_owned()));
        }
        tree.resolve(&clean(path), last).map_err(|error| match &error {
            Error::Io { source, .. }
                if matches!(
                    source.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
                ) =>
            {
                self.missing(path)
            }
            _ => error,
        })
    }

    fn missing(&self, path: &str) -> Error {
        Error::NotFound(format!("Could not find the file {path} in container {}", self.container))
    }
}

/// The last part of a path as archives and descriptions have it: `/` for the root, `.` where the
/// path ends with it.
fn base_name(path: &str) -> &str {
    let trimmed = path.trim_end_matches('/');
    match trimmed.rsplit('/').next() {
        None | Some("") => "/",
        Some(name) => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Read as _;
    use std::os::unix::fs::{MetadataExt, symlink};

    fn make(root: &Path, files: &[(&str, &str)]) {
        for (path, content) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }

    /// Layers `one` and `two` and a writable one.
    fn stopped(folder: &Path) -> Files {
        for name in ["one", "two", "upper"] {
            fs::create_dir_all(folder.join(name)).unwrap();
        }
        Files {
            container: "web".to_owned(),
            root: Root::Stopped {
                upper: folder.join("upper"),
                lower: vec![folder.join("one"), folder.join("two")],
                hidden: vec!["/secret".to_owned()],
            },
            mounts: Vec::new(),
            volumes: Vec::new(),
            readonly: false,
        }
    }

    fn running(root: &Path) -> Files {
        Files {
            container: "web".to_owned(),
            root: Root::Running { root: root.to_owned(), first_id: 0 },
            mounts: Vec::new(),
            volumes: Vec::new(),
            readonly: false,
        }
    }

    fn names(files: &Files, path: &str) -> Vec<String> {
        let mut out = Vec::new();
        files.read(path, &mut out).unwrap();
        let mut archive = tar::Archive::new(out.as_slice());
        archive
            .entries()
            .unwrap()
            .map(|entry| String::from_utf8(entry.unwrap().path_bytes().into_owned()).unwrap())
            .collect()
    }

    fn content(files: &Files, path: &str) -> String {
        let mut out = Vec::new();
        files.read(path, &mut out).unwrap();
        let mut archive = tar::Archive::new(out.as_slice());
        let mut text = String::new();
        archive.entries().unwrap().next().unwrap().unwrap().read_to_string(&mut text).unwrap();
        text
    }

    fn needs_root() -> bool {
        if rustix::process::geteuid().is_root() {
            return false;
        }
        assert!(!std::env::var("INSULA_TEST_REQUIRE").unwrap_or_default().contains("root"), "needs root");
        eprintln!("skipped: needs root");
        true
    }

    fn archive_of(entries: &[(&str, &str, u64)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, content, owner) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o640);
            header.set_uid(*owner);
            header.set_gid(*owner);
            if path.ends_with('/') {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(0o750);
            }
            builder.append_data(&mut header, path, content.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn a_stopped_container_shows_its_layers_merged() {
        let folder = tempfile::tempdir().unwrap();
        let files = stopped(folder.path());
        make(
            folder.path(),
            &[("one/etc/a", "1"), ("one/etc/b", "1"), ("one/etc/gone", "1"), ("two/etc/b", "2")],
        );
        make(folder.path(), &[("upper/etc/c", "3"), ("one/secret/key", "k"), ("two/dir/f", "2")]);
        let whiteout = |path: &str| {
            let path = folder.path().join(path);
            let (kind, mode) = (rustix::fs::FileType::CharacterDevice, rustix::fs::Mode::empty());
            rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, 0).unwrap();
        };
        whiteout("upper/etc/gone");
        whiteout("upper/dir");
        assert_eq!(names(&files, "/etc"), ["etc/", "etc/a", "etc/b", "etc/c"]);
        assert_eq!(content(&files, "etc/b"), "2");
        assert_eq!(names(&files, "/secret"), ["secret/"]);
        assert_eq!(names(&files, "/etc/."), ["./", "./a", "./b", "./c"]);
        assert_eq!(names(&files, "/"), ["/", "/etc/", "/etc/a", "/etc/b", "/etc/c", "/secret/"]);
        for path in ["/etc/gone", "/dir", "/dir/f", "/secret/key", "/etc/a/b", "/no/such"] {
            let error = files.stat(path).unwrap_err().to_string();
            assert_eq!(error, format!("Could not find the file {path} in container web"));
        }
        let mut out = Vec::new();
        files.export(&mut out).unwrap();
        let first = tar::Archive::new(out.as_slice())
            .entries()
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path_bytes()
            .into_owned();
        assert_eq!(first, b"etc/");
    }

    #[test]
    fn links_lead_nowhere_outside() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        make(folder.path(), &[("outside", "secret"), ("root/etc/passwd", "inside")]);
        symlink("/etc/passwd", root.join("absolute")).unwrap();
        symlink("../../../../outside", root.join("up")).unwrap();
        symlink(folder.path(), root.join("out")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        let files = running(&root);
        assert_eq!(files.stat("/absolute").unwrap().link_target, "/etc/passwd");
        assert!(files.stat("/out/outside").is_err());
        assert!(files.stat("/up/").is_err());
        assert!(files.stat("/loop/").is_err());
        assert_eq!(content(&files, "/etc/../etc/../../etc/passwd"), "inside");
        let link = files.stat("/absolute").unwrap();
        assert_eq!(link.mode & (1 << 27), 1 << 27);
        assert_eq!(files.stat("/etc").unwrap().mode >> 31, 1);
    }

    #[test]
    fn long_names_and_hard_links_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let long = format!("{}/{}", "d".repeat(90), "f".repeat(200));
        make(folder.path(), &[(&long, "x"), ("a", "same")]);
        fs::hard_link(folder.path().join("a"), folder.path().join("b")).unwrap();
        let files = running(folder.path());
        assert!(names(&files, "/.").contains(&format!("./{long}")));
        let mut out = Vec::new();
        files.read("/.", &mut out).unwrap();
        let mut archive = tar::Archive::new(out.as_slice());
        let link =
            archive.entries().unwrap().map(Result::unwrap).find(|entry| entry.path_bytes().ends_with(b"/b"));
        let link = link.unwrap();
        assert_eq!(link.header().entry_type(), tar::EntryType::Link);
        assert_eq!(link.link_name_bytes().unwrap().as_ref(), b"./a");
    }

    #[test]
    fn what_is_copied_in_lies_in_the_writable_layer() {
        if needs_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let files = stopped(folder.path());
        make(folder.path(), &[("one/var/lib/app/old", "1")]);
        rustix::fs::chown(folder.path().join("one/var/lib"), Some(rustix::fs::Uid::from_raw(7)), None)
            .unwrap();
        let archive = archive_of(&[("new", "n", 5), ("sub/", "", 6), ("sub/f", "s", 6)]);
        files.write("/var/lib/app", archive.as_slice(), WriteOptions::default()).unwrap();
        assert_eq!(names(&files, "/var/lib/app"), ["app/", "app/new", "app/old", "app/sub/", "app/sub/f"]);
        let owner = |path: &str| fs::metadata(folder.path().join("upper").join(path)).unwrap().uid();
        assert_eq!((owner("var/lib"), owner("var/lib/app/new"), owner("var/lib/app/sub")), (7, 5, 6));
        assert!(!folder.path().join("one/var/lib/app/new").exists());
        let refused = |path: &str, files: &Files| {
            files.write(path, archive.as_slice(), WriteOptions::default()).unwrap_err().to_string()
        };
        assert_eq!(refused("/var/lib/app/new", &files), "extraction point is not a directory");
        assert_eq!(refused("/nowhere", &files), "Could not find the file /nowhere in container web");
        make(folder.path(), &[("one/var/lib/app/folder/f", "1")]);
        let keep = WriteOptions { keep_kinds: true };
        for (path, content, why) in [
            ("folder", "f", "cannot overwrite directory with non-directory"),
            ("new/", "", "cannot overwrite non-directory with directory"),
        ] {
            let archive = archive_of(&[(path, content, 0)]);
            let error = files.write("/var/lib/app", archive.as_slice(), keep).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
        files.write("/var/lib/app", archive.as_slice(), keep).unwrap();
        let volumes = vec![("/var/lib".into(), false), ("/var/lib/app/folder".into(), true)];
        let readonly = Files { readonly: true, volumes, ..files };
        assert_eq!(refused("/var", &readonly), "container rootfs is marked read-only");
        assert_eq!(refused("/var/lib/app/folder", &readonly), "mounted volume is marked read-only");
        readonly.write("/var/lib/app", archive.as_slice(), keep).unwrap();
    }

    #[test]
    fn a_mount_is_looked_into_when_the_container_is_stopped() {
        let folder = tempfile::tempdir().unwrap();
        make(folder.path(), &[("one/data/image", "i"), ("volume/mine", "v")]);
        let files = stopped(folder.path());
        let files = Files { mounts: vec![("/data".into(), folder.path().join("volume"))], ..files };
        assert_eq!(names(&files, "/data"), ["data/", "data/mine"]);
    }

    /// Removes folders when the first byte of an archive's second member comes.
    struct Removing<'a> {
        folder: &'a Path,
        written: Vec<u8>,
    }

    impl Write for Removing<'_> {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.written.extend_from_slice(bytes);
            if self.written.len() > 512 {
                let _ = fs::remove_dir_all(self.folder);
            }
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_goes_away_while_it_is_read_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        make(folder.path(), &[("w/a/f", "1"), ("w/b", "2")]);
        let gone = folder.path().join("w/a");
        let mut out = Removing { folder: &gone, written: Vec::new() };
        running(folder.path()).read("/w", &mut out).unwrap();
        assert!(!gone.exists());
        let mut archive = tar::Archive::new(out.written.as_slice());
        let names: Vec<_> =
            archive.entries().unwrap().map(|entry| entry.unwrap().path_bytes().into_owned()).collect();
        assert_eq!(names, [&b"w/"[..], b"w/a/", b"w/b"]);
    }

    #[test]
    fn what_shows_the_kernels_state_is_no_content() {
        let files = running(Path::new("/"));
        assert_eq!(names(&files, "/proc"), ["proc/"]);
        assert_eq!(names(&files, "/sys/kernel"), ["kernel/"]);
    }

    #[test]
    fn times_before_the_epoch_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        make(folder.path(), &[("old", "x")]);
        let time = rustix::fs::Timespec { tv_sec: -315_619_200, tv_nsec: 0 };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(
            rustix::fs::CWD,
            folder.path().join("old"),
            &times,
            rustix::fs::AtFlags::empty(),
        )
        .unwrap();
        let mut out = Vec::new();
        running(folder.path()).read("/old", &mut out).unwrap();
        let mut archive = tar::Archive::new(out.as_slice());
        let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
        let mut extensions = entry.pax_extensions().unwrap().unwrap().map(Result::unwrap);
        assert!(extensions.any(|one| (one.key(), one.value()) == (Ok("mtime"), Ok("-315619200"))));
    }
}
