//! OCI runtimes with a prepared bundle: no engine, no image, no network. What an engine cannot be
//! faster than, if it used them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;

use crate::image;
use crate::memory::Memory;
use crate::peer::{Images, Peer, Scenario};
use crate::traffic::{Crowd, Turn};
use crate::worker::{Worker, execute, words};

#[derive(Debug)]
pub(crate) struct Bundle {
    runtime: String,
    folder: PathBuf,
    worker: Option<Worker>,
    runs: u32,
}

impl Bundle {
    pub(crate) fn new(runtime: &str, folder: &Path) -> Self {
        Self { runtime: runtime.to_owned(), folder: folder.to_owned(), worker: None, runs: 0 }
    }

    fn words(&self, rest: &[&str]) -> Vec<String> {
        let state = self.folder.join("state").display().to_string();
        words(Path::new(&self.runtime), &[&["--root", &state], rest].concat())
    }
}

impl Peer for Bundle {
    fn name(&self) -> &str {
        &self.runtime
    }

    fn version(&self) -> String {
        let output = execute(&words(Path::new(&self.runtime), &["--version"])).and_then(|done| done.output());
        output.unwrap_or_default().lines().next().unwrap_or_default().to_owned()
    }

    fn prepare(&mut self) -> anyhow::Result<()> {
        fs::create_dir_all(&self.folder).with_context(|| format!("make {}", self.folder.display()))?;
        image::tree(&self.folder)?;
        let mut worker = Worker::start()?;
        let folder = self.folder.display().to_string();
        let spec =
            [vec!["sh".into(), "-c".into(), "cd \"$0\" && \"$1\" spec".into(), folder, self.runtime.clone()]]
                .concat();
        worker.execute(&spec)?.output().context("write the specification")?;
        let path = self.folder.join("config.json");
        let mut document: Value = serde_json::from_slice(&fs::read(&path)?).context("config.json")?;
        document["process"]["args"] = serde_json::json!(["/bin/true"]);
        document["process"]["terminal"] = false.into();
        // Raising limits above the host's own is refused to root on some hosts.
        document["process"]["rlimits"] = serde_json::json!([]);
        fs::write(&path, document.to_string())?;
        self.worker = Some(worker);
        self.time(Scenario::RunAlone).map(drop)
    }

    fn time(&mut self, scenario: Scenario) -> anyhow::Result<Option<Duration>> {
        if scenario != Scenario::RunAlone {
            return Ok(None);
        }
        self.runs += 1;
        let id = format!("insula-bench-{}-{}", std::process::id(), self.runs);
        let words = self.words(&["run", "--bundle", &self.folder.display().to_string(), &id]);
        let worker = self.worker.as_mut().context("the runtime was not prepared")?;
        worker.execute(&words)?.time().map(Some)
    }

    fn memory(&mut self) -> anyhow::Result<Option<Memory>> {
        Ok(None)
    }

    fn images(&mut self) -> Option<&mut dyn Images> {
        None
    }

    fn traffic(&mut self) -> anyhow::Result<Option<Turn>> {
        Ok(None)
    }

    fn crowd(&mut self) -> anyhow::Result<Option<Crowd>> {
        Ok(None)
    }

    fn clean(&mut self) {
        self.worker = None;
    }
}
