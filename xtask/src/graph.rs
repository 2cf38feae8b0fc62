//! The workspace's packages and what each declares to depend on, as cargo tells them.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::Value;

/// What the checks look at.
#[derive(Debug)]
pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
    pub(crate) packages: Vec<Package>,
}

/// A member of the workspace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Package {
    pub(crate) name: String,
    /// Normal and build dependencies.
    pub(crate) dependencies: Vec<String>,
    /// Dependencies of its tests.
    pub(crate) dev_dependencies: Vec<String>,
}

impl Workspace {
    /// Asks cargo; needs no network.
    pub(crate) fn of_cargo() -> anyhow::Result<Self> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
            .output()
            .context("run cargo metadata")?;
        if !output.status.success() {
            bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata's JSON")?;
        Self::of_metadata(&metadata)
    }

    fn of_metadata(metadata: &Value) -> anyhow::Result<Self> {
        let root = metadata["workspace_root"].as_str().context("cargo metadata has no workspace_root")?;
        let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
        Ok(Self { root: root.into(), packages: packages.iter().map(package).collect::<Result<_, _>>()? })
    }
}

fn package(document: &Value) -> anyhow::Result<Package> {
    let mut package = Package {
        name: document["name"].as_str().context("a package has no name")?.to_owned(),
        ..Package::default()
    };
    for dependency in document["dependencies"].as_array().context("a package has no dependencies")? {
        let name = dependency["name"].as_str().context("a dependency has no name")?.to_owned();
        match dependency["kind"].as_str() {
            Some("dev") => package.dev_dependencies.push(name),
            _ => package.dependencies.push(name),
        }
    }
    Ok(package)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_dependency_are_told_apart() {
        let metadata = serde_json::json!({"workspace_root": "/w", "packages": [{"name": "a", "dependencies": [
            {"name": "b", "kind": null}, {"name": "c", "kind": "dev"}, {"name": "d", "kind": "build"}]}]});
        let workspace = Workspace::of_metadata(&metadata).unwrap();
        assert_eq!(workspace.packages[0].dependencies, ["b", "d"]);
        assert_eq!(workspace.packages[0].dev_dependencies, ["c"]);
    }
}
