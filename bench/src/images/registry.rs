//! Debian's docker-registry on a port of loopback, and an image in it that all pull.

use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::json;

use crate::worker::execute;

const PATIENCE: Duration = Duration::from_secs(10);

/// Ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Registry {
    child: Child,
    address: String,
}

impl Registry {
    pub(crate) fn start(folder: &Path) -> anyhow::Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let path = folder.join("registry.json");
        // YAML has JSON in it.
        let configuration = json!({
            "version": "0.1", "log": {"level": "error"}, "http": {"addr": address},
            "storage": {"filesystem": {"rootdirectory": folder.join("registry")}},
        });
        std::fs::write(&path, configuration.to_string()).context("write the registry's configuration")?;
        let log = File::create(folder.join("registry.log")).context("make the registry's log")?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&path).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut registry = Self { child: command.spawn().context("run docker-registry")?, address };
        let began = Instant::now();
        while TcpStream::connect(&registry.address).is_err() {
            if registry.child.try_wait()?.is_some() || began.elapsed() > PATIENCE {
                bail!("docker-registry does not answer");
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
        Ok(registry)
    }

    /// A complete name in it.
    pub(crate) fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    /// Brings an archive's image, compressed with gzip, by skopeo: nobody pulls what its own push has made.
    pub(crate) fn bring(&self, archive: &Path, name: &str) -> anyhow::Result<()> {
        let (from, to) =
            (format!("docker-archive:{}", archive.display()), format!("docker://{}", self.name(name)));
        let words = ["skopeo", "copy", "-q", "--dest-tls-verify=false", &from, &to].map(str::to_owned);
        execute(&words)?.output().context("skopeo copy").map(drop)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
