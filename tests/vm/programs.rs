//! What runs in the guest, built so that it needs no library there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

#[derive(Debug)]
pub(crate) struct Programs {
    /// The tests expect it where it was built.
    pub(crate) monitor: PathBuf,
    tests: BTreeMap<String, PathBuf>,
}

impl Programs {
    pub(crate) fn test(&self, name: &str) -> &Path {
        &self.tests[name]
    }
}

/// Builds them in the workspace's target folder, in the folder of the explicit target there.
pub(crate) fn build() -> Programs {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let output = Command::new(cargo)
        .current_dir(workspace)
        .args(["test", "--no-run", "--locked", "--target", "x86_64-unknown-linux-gnu"])
        .args([
            "--package",
            "insula-host",
            "--package",
            "insula-container",
            "--package",
            "insula-monitor",
            "--package",
            "insula-vmm-core",
            "--package",
            "insula-sandbox",
        ])
        .args(["--lib", "--test", "serve", "--test", "linux", "--test", "conformance"])
        .args(["--message-format", "json-render-diagnostics"])
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=debuginfo")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "the programs for the guest do not build");
    let mut tests = BTreeMap::new();
    let mut monitor = None;
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let message: Value = serde_json::from_str(line).unwrap();
        let Some(executable) = message["executable"].as_str() else { continue };
        let name = message["target"]["name"].as_str().unwrap().to_owned();
        if message["profile"]["test"] == true {
            tests.insert(name, executable.into());
        } else if name == "insula-monitor" {
            monitor = Some(executable.into());
        }
    }
    Programs { monitor: monitor.unwrap(), tests }
}
