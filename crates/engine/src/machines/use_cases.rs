//! What is asked about machines.

use std::path::Path;

use insula_host::guest;
use insula_models::{Kernel, KernelUseRequest, MachinesInfo};

use crate::{Engine, Error, Result, blocking};

impl Engine {
    /// What machines run on, for `info`. The first time takes some milliseconds.
    pub(crate) fn machines_info(&self) -> MachinesInfo {
        let machines = &self.0.machines;
        let choice = machines.choice();
        // That there is none is no error of `info`.
        let kernel = machines.kernel().map(|kernel| kernel.release).unwrap_or_default();
        MachinesInfo { backend: choice.backend.name().to_owned(), why: choice.why.clone(), kernel }
    }

    /// Kernels that machines can boot, the one in use first.
    pub async fn kernels(&self) -> Result<Vec<Kernel>> {
        let engine = self.clone();
        let found = blocking(move || engine.0.machines.kernels()).await?;
        Ok(found.iter().enumerate().map(|(number, kernel)| describe(kernel, number == 0)).collect())
    }

    /// Makes machines boot another kernel from now on.
    pub async fn use_kernel(&self, request: KernelUseRequest) -> Result<Kernel> {
        if !Path::new(&request.path).is_absolute() {
            return Err(Error::InvalidArgument(format!(
                "the kernel's path {:?} is not absolute",
                request.path
            )));
        }
        let engine = self.clone();
        let kernel = blocking(move || engine.0.machines.choose(Path::new(&request.path))).await?;
        Ok(describe(&kernel, true))
    }
}

fn describe(kernel: &guest::Kernel, current: bool) -> Kernel {
    Kernel {
        release: kernel.release.clone(),
        image: kernel.image.to_string_lossy().into_owned(),
        modules: kernel.modules.to_string_lossy().into_owned(),
        current,
    }
}
