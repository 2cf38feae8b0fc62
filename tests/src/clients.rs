//! Other people's programs that are not Debian packages: installed once below the target folder,
//! from their own registries, in the versions that `tests/conformance/clients` names.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Outcome;
use crate::product::{fixtures, sources};

/// Files of the clients.
#[must_use]
pub fn client_files() -> PathBuf {
    sources().join("tests/conformance/clients")
}

/// A Python with docker-py and testcontainers.
#[must_use]
pub fn python() -> PathBuf {
    let wanted = client_files().join("requirements.txt");
    let folder = installed("python", &wanted, |folder| {
        Outcome::of(Command::new("/usr/bin/python3").args(["-m", "venv"]).arg(folder), b"").ok();
        let mut install = Command::new(folder.join("bin/python"));
        install.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"]).arg(&wanted);
        Outcome::of(&mut install, b"").ok();
    });
    folder.join("bin/python")
}

/// The folder `node_modules` with dockerode.
#[must_use]
pub fn node_modules() -> PathBuf {
    let wanted = client_files().join("package.json");
    let folder = installed("node", &wanted, |folder| {
        fs::create_dir_all(folder).unwrap();
        fs::copy(&wanted, folder.join("package.json")).unwrap();
        let mut install = Command::new("npm");
        install.args(["install", "--silent", "--no-audit", "--no-fund", "--prefix"]).arg(folder);
        Outcome::of(&mut install, b"").ok();
    });
    folder.join("node_modules")
}

/// A folder that `make` has filled for these wishes; it is made again when they have changed.
fn installed(name: &str, wanted: &Path, make: impl Fn(&Path)) -> PathBuf {
    let lock = fs::File::create(fixtures().join(format!("client-{name}.lock"))).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let folder = fixtures().join(format!("client-{name}"));
    let done = folder.join("installed");
    let text = fs::read_to_string(wanted).unwrap();
    if fs::read_to_string(&done).is_ok_and(|have| have == text) {
        return folder;
    }
    // Half of an earlier attempt, or another version.
    let _ = fs::remove_dir_all(&folder);
    make(&folder);
    fs::write(done, text).unwrap();
    folder
}
