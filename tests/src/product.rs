//! Where the programs are.

use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    if let Some(folder) = std::env::var_os("INSULA_BIN_DIR") {
        return folder.into();
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    target.unwrap_or_else(|| workspace().join("target")).join("debug")
}

/// The sources.
pub(crate) fn sources() -> PathBuf {
    workspace()
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A program of the product.
///
/// # Panics
/// When it was not built.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let path = folder().join(name);
    assert!(path.is_file(), "{} is missing: build it, or set INSULA_BIN_DIR", path.display());
    path
}

/// Where fixtures that take long to make are kept between runs.
pub(crate) fn fixtures() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let folder = target.unwrap_or_else(|| workspace().join("target")).join("fixtures");
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Every version of Docker's own command line that is here, the distribution's first.
#[must_use]
pub fn dockers() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(PathBuf::from("/usr/bin")).chain(std::env::split_paths(&path));
    let mut seen: Vec<PathBuf> = Vec::new();
    for program in folders.map(|folder| folder.join("docker")).filter(|docker| docker.is_file()) {
        // `/bin` is `/usr/bin`.
        let real = program.canonicalize().unwrap_or(program);
        if !seen.contains(&real) {
            seen.push(real);
        }
    }
    seen
}

/// Docker's own command line, the distribution's rather than another.
#[must_use]
pub fn docker() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(PathBuf::from("/usr/bin")).chain(std::env::split_paths(&path));
    folders.map(|folder| folder.join("docker")).find(|docker| docker.is_file())
}
