//! CRIU: the program that writes processes to files and makes them again, criu(8).

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use insula_spec::bundle::BundleSource;
use insula_spec::plan::{ContainerPlan, Namespace};
use rustix::fs::Mode;

use crate::error::{Context, Error, Result};

const PROGRAM: &str = "criu";
/// Of what it says of its failure, this many lines are repeated.
const LINES: usize = 4;
/// Of its log, as much is read.
const LONGEST: usize = 4 << 20;
/// In such a folder nobody renames what is another's.
const STICKY: u32 = 0o1000;
/// What a network namespace that somebody else has made is called in the images, here as in runc.
pub(crate) const NETWORK: &str = "extRootNetNS";
/// What the standard streams were, in the folder of the images.
pub(crate) const STREAMS: &str = "descriptors.json";

/// What goes along that is not the container's alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reach {
    pub tcp_established: bool,
    pub external_unix_sockets: bool,
    pub file_locks: bool,
    pub shell_job: bool,
    /// The container's network is made anew by somebody else.
    pub empty_network: bool,
}

/// Where the program is; none is told by its name, and not by a call that fails.
pub(crate) fn program() -> Result<PathBuf> {
    find(PROGRAM)
        .ok_or_else(|| Error::Unsupported("a checkpoint without the program criu in PATH".to_owned()))
}

fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// What both directions are told.
pub(crate) fn arguments(verb: &str, images: &Path, work: &Path, reach: Reach) -> Vec<OsString> {
    let mut all: Vec<OsString> = vec![verb.into(), "--images-dir".into(), images.into()];
    all.extend(["--work-dir".into(), work.into(), "--log-file".into(), log_name(verb).into()]);
    all.push("--manage-cgroups=soft".into());
    for (on, option) in [
        (reach.tcp_established, "--tcp-established"),
        (reach.external_unix_sockets, "--ext-unix-sk"),
        (reach.file_locks, "--file-locks"),
        (reach.shell_job, "--shell-job"),
    ] {
        all.extend(on.then(|| option.into()));
    }
    if reach.empty_network {
        all.extend(["--empty-ns".into(), "net".into()]);
    }
    // Its default way of holding packets back is by a program that not every host has.
    if find("iptables-restore").is_none() {
        all.extend(["--network-lock".into(), "nftables".into()]);
    }
    all
}

fn log_name(verb: &str) -> String {
    format!("{verb}.log")
}

/// Where what is mounted from the host has the root of its mount, by its place in the container, and the namespaces
/// of others.
pub(crate) fn external(plan: &ContainerPlan, reach: Reach) -> Result<Vec<External>> {
    let mounts = plan.bundle.iter().flat_map(|bundle| &bundle.mounts);
    let mut all: Vec<External> = mounts
        .filter_map(|mount| match &mount.source {
            BundleSource::Bind { path, .. } => {
                Some(External::Mount { target: mount.target.clone(), source: path.clone() })
            }
            _ => None,
        })
        .collect();
    if let (Namespace::Path(path), false) = (&plan.namespaces.network, reach.empty_network) {
        let inode = std::fs::metadata(path).context("stat", path.display())?.ino();
        all.push(External::Network { inode, path: path.clone() });
    }
    Ok(all)
}

/// Something that is not in the images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum External {
    Mount { target: String, source: PathBuf },
    Network { inode: u64, path: PathBuf },
}

/// What the log says of a failure.
pub(crate) fn failure(verb: &str, work: &Path, status: &str) -> Error {
    let log = work.join(log_name(verb));
    let text = std::fs::read(&log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text[text.len().saturating_sub(LONGEST)..]).into_owned();
    let lines: Vec<&str> = text.lines().filter(|line| line.contains("Error")).collect();
    let said = lines[lines.len().saturating_sub(LINES)..].join("; ");
    let said = if said.is_empty() { "it says nothing of why".to_owned() } else { said };
    Error::Criu { verb: verb.to_owned(), status: status.to_owned(), said, log }
}

/// Whether a folder of images, or of logs, is nobody else's. CRIU believes what is in it, and gives processes every
/// right that stands there; and it writes by names, through whatever links it finds under them.
pub(crate) fn check_folder(path: &Path) -> Result<()> {
    let refused = |path: &Path, problem: &str| Err(Error::Invalid(format!("{}: {problem}", path.display())));
    let path = &std::fs::canonicalize(path).context("open", path.display())?;
    let folder = std::fs::symlink_metadata(path).context("stat", path.display())?;
    if !is_ours(&folder) {
        return refused(path, "others may change this folder, and with it what a checkpoint does");
    }
    // Its name leads to it for as long as nobody else can put another in its place.
    for parent in path.ancestors().skip(1) {
        let found = std::fs::symlink_metadata(parent).context("stat", parent.display())?;
        if !is_owned(&found) || (!is_ours(&found) && found.mode() & STICKY == 0) {
            return refused(
                parent,
                "others may change this folder, and with it which checkpoint is below it",
            );
        }
    }
    for entry in std::fs::read_dir(path).context("open", path.display())? {
        let path = entry.context("getdents64", path.display())?.path();
        let found = std::fs::symlink_metadata(&path).context("stat", path.display())?;
        if found.is_symlink() {
            return refused(&path, "a link, which no checkpoint has");
        }
        if !found.is_file() {
            return refused(&path, "no regular file, which all of a checkpoint are");
        }
        if !is_ours(&found) {
            return refused(&path, "others may change this file, and with it what a checkpoint does");
        }
    }
    Ok(())
}

/// Has what is written from now on be for nobody else, for CRIU, which leaves it to the caller; the mask before.
pub(crate) fn private_files() -> Mode {
    rustix::process::umask(Mode::RWXG | Mode::RWXO)
}

/// Of the caller or of root, and for no others to write.
fn is_ours(found: &std::fs::Metadata) -> bool {
    is_owned(found) && found.mode() & 0o022 == 0
}

fn is_owned(found: &std::fs::Metadata) -> bool {
    [0, rustix::process::geteuid().as_raw()].contains(&found.uid())
}

/// A terminal is made by its master, which somebody else holds.
pub(crate) fn check(plan: &ContainerPlan) -> Result<()> {
    if plan.stdio.tty {
        return Err(Error::Unsupported("a checkpoint of a container with a terminal".to_owned()));
    }
    if !plan.has_own_mounts() {
        return Err(Error::Unsupported("a checkpoint of a container without mounts of its own".to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_last_errors_of_the_log_are_repeated() {
        let folder = tempfile::tempdir().unwrap();
        let log =
            "Error: zero\nError (a.c:1): one\n(0.2) fine\nError (b.c:2): two\nError: three\nError: four\n";
        std::fs::write(folder.path().join("dump.log"), log).unwrap();
        let text = failure("dump", folder.path(), "exit code 1").to_string();
        let expected =
            "criu dump: exit code 1: Error (a.c:1): one; Error (b.c:2): two; Error: three; Error: four";
        assert!(text.starts_with(expected), "{text}");
        let text = failure("restore", folder.path(), "exit code 1").to_string();
        assert!(text.contains("it says nothing of why"), "{text}");
    }

    #[test]
    fn folders_that_others_may_change_are_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let mode = |path: &Path, mode| std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        let image = path.join("pstree.img");
        std::fs::write(&image, "").unwrap();
        check_folder(path).unwrap();
        mode(&image, 0o666);
        assert!(
            check_folder(path).unwrap_err().to_string().contains("pstree.img: others may change this file")
        );
        mode(&image, 0o600);
        mode(path, 0o770);
        assert!(check_folder(path).unwrap_err().to_string().contains("others may change this folder"));
        mode(path, 0o700);
        // What would be written by that name would be written elsewhere.
        std::os::unix::fs::symlink("/etc/passwd", path.join("stats-restore")).unwrap();
        assert!(check_folder(path).unwrap_err().to_string().contains("stats-restore: a link"));
        std::fs::remove_file(path.join("stats-restore")).unwrap();
        std::fs::create_dir(path.join("parent")).unwrap();
        assert!(check_folder(path).unwrap_err().to_string().contains("parent: no regular file"));
        // One above it, in which others could put another in its place, unless that is sticky.
        let below = path.join("parent");
        mode(&below, 0o700);
        mode(path, 0o777);
        assert!(check_folder(&below).unwrap_err().to_string().contains("which checkpoint is below it"));
        mode(path, 0o1777);
        check_folder(&below).unwrap();
    }

    #[test]
    fn options_are_those_of_the_program() {
        let reach = Reach { tcp_established: true, empty_network: true, ..Reach::default() };
        let all = arguments("dump", Path::new("/i"), Path::new("/w"), reach);
        let all: Vec<_> = all.iter().map(|argument| argument.to_str().unwrap()).collect();
        let expected = ["dump", "--images-dir", "/i", "--work-dir", "/w", "--log-file", "dump.log"];
        assert_eq!(all[..7], expected);
        assert_eq!(all[7..11], ["--manage-cgroups=soft", "--tcp-established", "--empty-ns", "net"]);
    }
}
