//! What the kernel does for a container, without any engine (`floor.c`).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::worker::execute;

const SOURCE: &str = include_str!("floor.c");

/// Its name, and that of its program.
pub(crate) const FLOOR: &str = "floor";

/// Compiles it into a folder.
pub(crate) fn compile(folder: &Path) -> anyhow::Result<PathBuf> {
    let (source, program) = (folder.join("floor.c"), folder.join(FLOOR));
    fs::write(&source, SOURCE).context("write the floor's source")?;
    let (from, to) = (source.display().to_string(), program.display().to_string());
    let cc = ["cc", "-O2", "-static", "-o", &to, &from].map(str::to_owned);
    execute(&cc)?.output().context("compile the floor")?;
    Ok(program)
}
