//! Where ids can be mapped, and what follows where they cannot: said once, not at every run.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use insula_proto::NO_LAYERS;
use insula_sys::mount::{MountAttributes, set_attributes};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

use crate::{Error, Result, rootless};

/// What the host can do, asked once, and what was said of it.
#[derive(Debug)]
pub(crate) struct IdMaps {
    /// Why no container gets ids of its own; None where they can be mapped.
    missing: Option<String>,
    /// A user namespace to try file systems with. Nothing lives in it.
    namespace: Option<OwnedFd>,
    /// Device of the engine's root, which was tried first.
    device: u64,
    said: Mutex<HashSet<String>>,
}

impl IdMaps {
    /// Asks the monitor's program whether ids can be mapped below `root`; the log says it if not.
    /// [`Error::Unsupported`] where the root's file system cannot hold containers.
    pub(crate) fn probe(monitor: &Path, root: &Path) -> Result<Self> {
        let fail = |call, error| Error::io(call, monitor, error);
        let (ours, theirs) = UnixStream::pair().map_err(|e| fail("socketpair", e))?;
        let output = Command::new(monitor)
            .arg("probe")
            .arg(root)
            .stdin(OwnedFd::from(theirs))
            .output()
            .map_err(|e| fail("execute", e))?;
        let said = String::from_utf8_lossy(&output.stderr);
        let why = said.trim().trim_start_matches("insula-monitor: ");
        if output.status.code() == Some(i32::from(NO_LAYERS)) {
            return Err(Error::Unsupported(why.to_owned()));
        }
        let missing = (!output.status.success()).then(|| why.to_owned());
        // An ordinary user's engine never can.
        if let Some(why) = missing.as_ref().filter(|_| rootless::outside().is_none()) {
            tracing::warn!("{}", without(why));
        }
        let received = insula_sys::socket::receive(ours.as_fd(), &mut [0]);
        let namespace = received.ok().and_then(|(_, mut descriptors)| descriptors.pop());
        let device = std::fs::metadata(root).map_err(|e| Error::io("stat", root, e))?.st_dev();
        Ok(Self { missing, namespace, device, said: Mutex::default() })
    }

    /// For `info`: what follows from a host that cannot map ids.
    pub(crate) fn warning(&self) -> Option<String> {
        self.missing.as_deref().filter(|_| rootless::outside().is_none()).map(without)
    }

    /// Whether containers have ids of their own.
    pub(crate) fn any(&self) -> bool {
        self.missing.is_none()
    }

    /// Why a container with these layers has to run with the host's ids; None where it need not.
    pub(crate) fn refused(&self, layers: &[PathBuf]) -> Option<String> {
        self.missing.as_deref().map(without).or_else(|| {
            layers.iter().find(|layer| !self.maps(layer)).map(|layer| {
                without(&format!("the file system of the image's layer {} cannot map ids", layer.display()))
            })
        })
    }

    /// Whether what is mounted there can be mounted once more with mapped ids. What cannot be looked at is the
    /// wall's to report.
    pub(crate) fn maps(&self, path: &Path) -> bool {
        let Some(namespace) = self.namespace.as_ref().filter(|_| self.missing.is_none()) else {
            return self.missing.is_none();
        };
        if std::fs::metadata(path).is_ok_and(|meta| meta.st_dev() == self.device) {
            return true;
        }
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let Ok(tree) = rustix::mount::open_tree(CWD, path, flags) else { return true };
        let attributes = MountAttributes { idmap: Some(namespace.as_fd()), ..MountAttributes::default() };
        set_attributes(tree.as_fd(), attributes, false) != Err(Errno::INVAL)
    }

    /// The text, the first time that it is to be said.
    pub(crate) fn once(&self, text: String) -> Option<String> {
        // It is said in `info` what an ordinary user's engine is.
        if rootless::outside().is_some() {
            return None;
        }
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.insert(text.clone()).then_some(text)
    }
}

fn without(why: &str) -> String {
    format!(
        "No ids can be mapped: {why}. Containers run without a user namespace of their own, and their root is the \
         host's, confined by capabilities and the system call filter alone"
    )
}
