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
            Some(path) => Ok(chosen(Path::new(&path))?),
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

    /// Chooses what `path` means; running machines keep theirs. One that guests cannot boot is refused.
    pub(crate) fn choose(&self, path: &Path) -> Result<Kernel> {
        let kernel = guest::find(path)?;
        guest::check(&kernel)?;
        let image = kernel.image.to_str().ok_or_else(|| {
            Error::InvalidArgument(format!("the path {} is not UTF-8", kernel.image.display()))
        })?;
        fs::create_dir_all(&self.folder).map_err(|error| Error::io("mkdir", &self.folder, error))?;
        let chosen = self.folder.join(CHOSEN);
        insula_base::replace(&chosen, image.as_bytes(), 0o644, insula_base::Durability::Machine)
            .map_err(|error| Error::io("write", &chosen, error))?;
        Ok(kernel)
    }

    /// The kernels on the host with the chosen one, each once, the one in use first; and whether there is one in
    /// use: the chosen one may be gone.
    pub(crate) fn kernels(&self) -> Result<(Vec<Kernel>, bool)> {
        let (mut kernels, gone) = match self.chosen()? {
            Some(path) => match chosen(Path::new(&path)) {
                Ok(kernel) => (vec![kernel], false),
                Err(guest::Error::Gone(_)) => (Vec::new(), true),
                Err(error) => return Err(error.into()),
            },
            None => (Vec::new(), false),
        };
        for kernel in guest::installed(Path::new("/")) {
            if !kernels.iter().any(|known| known.image == kernel.image) {
                kernels.push(kernel);
            }
        }
        Ok((kernels, !gone))
    }
}

/// What was chosen before, and may not be there any more.
fn chosen(path: &Path) -> Result<Kernel, guest::Error> {
    guest::find(path).map_err(|error| match error {
        guest::Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            guest::Error::Gone(path.to_owned())
        }
        other => other,
    })
}
