//! The kernel that machines boot: the one that the user has chosen, or the best of those on the host.

use std::fs;
use std::path::Path;

use insula_host::guest::{self, Kernel};

use super::Machines;
use crate::{Error, Result};

/// Where the chosen path is kept, below the machines' folder.
const CHOSEN: &str = "kernel";

impl Machines {
    /// What machines boot from now on.
    pub(crate) fn kernel(&self) -> Result<Kernel> {
        match self.chosen()? {
            Some(path) => Ok(guest::find(Path::new(&path))?),
            None => guest::installed(Path::new("/")).into_iter().next().ok_or(guest::Error::NoKernel.into()),
        }
    }

    /// The path that was chosen.
    pub(crate) fn chosen(&self) -> Result<Option<String>> {
        let path = self.folder.join(CHOSEN);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim_end_matches('\n').to_owned()).filter(|text| !text.is_empty())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("read", &path, error)),
        }
    }

    /// Chooses what `path` means; running machines keep theirs.
    pub(crate) fn choose(&self, path: &Path) -> Result<Kernel> {
        let kernel = guest::find(path)?;
        let image = kernel.image.to_str().ok_or_else(|| {
            Error::InvalidArgument(format!("the path {} is not UTF-8", kernel.image.display()))
        })?;
        fs::create_dir_all(&self.folder).map_err(|error| Error::io("mkdir", &self.folder, error))?;
        let chosen = self.folder.join(CHOSEN);
        insula_base::replace(&chosen, image.as_bytes(), 0o644, insula_base::Durability::Machine)
            .map_err(|error| Error::io("write", &chosen, error))?;
        Ok(kernel)
    }

    /// The kernels on the host with the chosen one, each once, the one in use first.
    pub(crate) fn kernels(&self) -> Result<Vec<Kernel>> {
        let mut kernels: Vec<Kernel> = match self.chosen()? {
            Some(path) => vec![guest::find(Path::new(&path))?],
            None => Vec::new(),
        };
        for kernel in guest::installed(Path::new("/")) {
            if !kernels.iter().any(|known| known.image == kernel.image) {
                kernels.push(kernel);
            }
        }
        Ok(kernels)
    }
}
