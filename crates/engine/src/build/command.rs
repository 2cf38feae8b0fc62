//! `RUN`: a container of the stage's layers, behind the wall that was asked for, and what it changed.

use std::any::Any;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use insula_base::thread;
use insula_build::RunOp;
use insula_models::{ContainerConfig, HostConfig, LogConfig};
use insula_spec::image::ImageConfig;
use insula_store::layers::{DiffOf, write_diff};
use insula_store::{Image, ImageKind};
use insula_sys::failpoint::failpoint;
use tokio::sync::mpsc;

use super::cache::{Key, Made};
use super::mounts::Mounted;
use super::stage::{Built, Stepping};
use super::{Building, IMAGE};
use crate::archive::made_by_engine;
use crate::containers::{RemoveRequest, WaitCondition};
use crate::{AttachOptions, AttachedStream, Engine, Error, Result, blocking};

/// Bytes of output that are told at once, and pieces that wait for a slow client.
const PIECE: usize = 16 << 10;
const WAITING: usize = 16;

/// A container that is removed when nobody waits for it any more.
struct Running {
    engine: Engine,
    id: Option<String>,
    /// What its mounts need.
    held: Vec<Box<dyn Any + Send>>,
}

impl Running {
    async fn remove(mut self) -> Result<()> {
        if let Some(id) = self.id.take() {
            self.engine.remove_container(&id, removal()).await?;
        }
        self.held.clear();
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(id) = self.id.take() else { return };
        let (engine, held) = (self.engine.clone(), std::mem::take(&mut self.held));
        tokio::spawn(async move {
            if let Err(error) = engine.remove_container(&id, removal()).await {
                tracing::warn!(container = id, error = insula_base::chain(&error), "left by a build");
            }
            drop(held);
        });
    }
}

fn removal() -> RemoveRequest {
    RemoveRequest { volumes: true, force: true, link: false }
}

impl Stepping<'_> {
    pub(super) async fn command(&self, run: &RunOp, built: &Built) -> Result<Made> {
        if built.layers.is_empty() {
            return Err(Error::InvalidArgument(
                "there is nothing to run: the stage has no files yet".to_owned(),
            ));
        }
        let building = self.building;
        if run.insecure {
            return Err(Error::Denied("RUN --security=insecure is not allowed by this engine".to_owned()));
        }
        let (shown, more) = self.shown(run).await?;
        let key = Key::new(
            "run",
            &built.layers,
            &[parts(run, &building.request.host), more, vec![building.dated()]].concat(),
        );
        let (this, found, stage) = (building.clone(), key.clone(), built.clone());
        if let Some(made) = blocking(move || this.found(&found, &stage)).await? {
            return Ok(made);
        }
        let mounted = self.mounted(run, shown).await?;
        let _turn = building.turns.acquire().await.map_err(|error| Error::Internal(error.to_string()))?;
        building.execute(run, mounted, built, key).await
    }
}

impl Building {
    /// Runs the command and keeps what it changed.
    async fn execute(
        self: &Arc<Self>,
        run: &RunOp,
        mounted: Mounted,
        built: &Built,
        key: Key,
    ) -> Result<Made> {
        let running = self.create(run, mounted, built).await?;
        let id = running.id.clone().unwrap_or_default();
        self.report.aside(format!(" ---> Running in {}\n", id.get(..12).unwrap_or(&id))).await;
        self.follow(&id, run).await?;
        failpoint("build.ran");
        let files = self.engine.container_files(&id)?;
        let of = DiffOf {
            upper: files.upper.clone(),
            lower: files.layers.clone(),
            ignored: made_by_engine(&files),
            latest: self.epoch,
        };
        let (this, below) = (self.clone(), built.layers.clone());
        let text = format!("RUN {}", run.words.join(" "));
        let made = blocking(move || {
            let staged = this.engine.store().images().stage_layer(|out| write_diff(&of, out))?;
            this.keep(&key, &below, staged, &text, this.now())
        })
        .await?;
        failpoint("build.step");
        running.remove().await?;
        self.report.aside(format!("Removing intermediate container {}\n", id.get(..12).unwrap_or(&id))).await;
        Ok(made)
    }

    async fn create(&self, run: &RunOp, mut mounted: Mounted, built: &Built) -> Result<Running> {
        let host = self.host(run);
        let image = Image {
            // It is no image's: nothing is looked up by it.
            id: built
                .layers
                .last()
                .map(|layer| layer.chain_id.0.clone())
                .ok_or_else(|| Error::Internal("a stage without layers has no container".to_owned()))?,
            kind: ImageKind::Stored,
            references: Vec::new(),
            config: ImageConfig { os: "linux".to_owned(), ..ImageConfig::default() },
            layers: built.layers.clone(),
            size: 0,
            manifest: None,
        };
        let config = ContainerConfig {
            image: IMAGE.to_owned(),
            env: run.env.iter().chain(&run.proxies).cloned().collect(),
            cmd: Some(run.words.clone()),
            user: run.user.clone(),
            working_dir: run.working_dir.clone(),
            ..ContainerConfig::default()
        };
        let engine = self.engine.clone();
        let rows = std::mem::take(&mut mounted.rows);
        blocking(move || {
            let created = engine.create_for_build(image, config, host, rows)?;
            let container = engine.find(&created.id)?;
            container.state().secrets = std::mem::take(&mut mounted.secrets);
            let ids = container.row().ids.map(|ids| (ids.first, ids.count));
            let given = mounted.give(ids);
            // From here on it is removed whatever happens.
            let running = Running { engine, id: Some(created.id), held: mounted.held };
            given.map(|()| running)
        })
        .await
    }

    /// Starts the container, tells its output and waits for its end.
    async fn follow(&self, id: &str, run: &RunOp) -> Result<()> {
        let fail = |error| Error::io("socketpair", std::path::Path::new("the output of a command"), error);
        let (ours, theirs) = UnixStream::pair().map_err(fail)?;
        let options = AttachOptions { stdout: true, stderr: true, stream: true, ..AttachOptions::default() };
        let stream = AttachedStream { descriptor: theirs.into(), already_read: Vec::new() };
        self.engine.attach(id, options, stream).await?;
        let wait = self.engine.wait_container(id, WaitCondition::NextExit).await?;
        self.engine.start_container(id).await?;
        let (sender, mut pieces) = mpsc::channel(WAITING);
        // Its end is the end of the output: of the container, or of the one that removes it.
        thread::spawn("build", move || read(ours, &sender)).map_err(Error::Thread)?;
        while let Some(piece) = pieces.recv().await {
            self.report.output(piece).await;
        }
        let ended = wait.finish().await;
        if let Some(error) = ended.error {
            return Err(Error::Unavailable(error.message));
        }
        match ended.status_code {
            0 => Ok(()),
            code => Err(Error::InvalidArgument(format!(
                "The command '{}' returned a non-zero code: {code}",
                run.words.join(" ")
            ))),
        }
    }

    /// What the container may use.
    fn host(&self, run: &RunOp) -> HostConfig {
        let mut host = HostConfig {
            log_config: LogConfig { r#type: "none".to_owned(), ..LogConfig::default() },
            ..self.request.host.clone()
        };
        if let Some(network) = run.network.as_deref().filter(|network| *network != "default") {
            host.network_mode = network.to_owned();
        }
        host
    }
}

/// What makes one command another than the next.
fn parts(run: &RunOp, host: &HostConfig) -> Vec<String> {
    let mut parts = run.words.clone();
    parts.push("env".to_owned());
    parts.extend(run.env.iter().cloned());
    parts.push(format!("{} {} {:?}", run.user, run.working_dir, run.mounts));
    parts.push(run.network.clone().unwrap_or_else(|| host.network_mode.clone()));
    parts.extend(run.script.iter().map(|script| script.content.clone()));
    // Another kernel may make something else.
    if !matches!(host.isolation.as_str(), "" | "default" | "process") {
        parts.push(format!("wall {}", host.isolation));
    }
    parts
}

/// Takes the frames of the output apart and hands on what is in them.
fn read(mut socket: UnixStream, sender: &mpsc::Sender<String>) {
    let mut header = [0; 8];
    while socket.read_exact(&mut header).is_ok() {
        let mut left = u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize;
        while left > 0 {
            let mut piece = vec![0; left.min(PIECE)];
            if socket.read_exact(&mut piece).is_err() {
                return;
            }
            left -= piece.len();
            if sender.blocking_send(String::from_utf8_lossy(&piece).into_owned()).is_err() {
                return;
            }
        }
    }
}
