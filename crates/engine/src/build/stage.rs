//! One stage: its instructions one after another.

use std::collections::HashMap;
use std::sync::Arc;

use insula_build::dockerfile::{Instruction, Step, parse_instruction};
use insula_build::{CopyOp, Ignore, Mode, Op, PlannedStage, Scope};
use insula_models::Labels;
use insula_spec::image::{History, ImageConfig};
use insula_store::{Layer, LayerLease};

use super::add::Added;
use super::cache::{Key, Made};
use super::files::{Attributes, Copying, Times, resolved};
use super::named::{NamedContext, Source};
use super::report::Step as Told;
use super::{Building, owner};
use crate::tree::Tree;
use crate::{Error, Result, blocking};

/// Stages that another one takes files of.
pub(super) type Needed = HashMap<usize, Arc<Built>>;

/// Triggers of one image.
const TRIGGERS_MAX: usize = 1024;

/// What a stage has become so far.
#[derive(Debug, Clone)]
pub(super) struct Built {
    /// Lowest first.
    pub(super) layers: Vec<Layer>,
    pub(super) config: ImageConfig,
    /// The layers stay as long as these.
    pub(super) leases: Vec<Arc<LayerLease>>,
    /// Its steps are done again, whatever the cache has.
    pub(super) anew: bool,
    /// What stages that begin with this one see of its `ARG`s.
    pub(super) arguments: Vec<(String, String)>,
}

impl Built {
    /// What no stage of this build made.
    pub(super) fn given(layers: Vec<Layer>, config: ImageConfig, leases: Vec<Arc<LayerLease>>) -> Self {
        Self { layers, config, leases, anew: false, arguments: Vec::new() }
    }

    /// What the instructions have made of the configuration.
    fn configure(&mut self, scope: &Scope) {
        self.config.config = scope.config.clone();
        self.config.author.clone_from(&scope.author);
    }

    /// The configuration of the image.
    pub(super) fn finished(&self, labels: &Labels, epoch: Option<i64>) -> Result<ImageConfig> {
        let mut config = self.config.clone();
        config.config.labels.extend(labels.clone());
        if let Some(epoch) = epoch {
            let epoch = jiff::Timestamp::from_second(epoch)
                .map_err(|_| Error::InvalidArgument("SOURCE_DATE_EPOCH is out of range".to_owned()))?;
            config.created = Some(epoch.to_string());
        }
        Ok(config)
    }

    fn paths(&self) -> Vec<std::path::PathBuf> {
        self.layers.iter().map(|layer| layer.path.clone()).collect()
    }

    /// What all of its layers are called; nothing without layers.
    pub(super) fn top(&self) -> String {
        self.layers.last().map(|layer| layer.chain_id.to_string()).unwrap_or_default()
    }

    pub(super) fn tree(&self) -> Result<Tree> {
        Tree::image(&self.paths(), &[])
    }
}

/// Builds a stage; returns its number too.
pub(super) async fn build(
    building: Arc<Building>,
    planned: PlannedStage,
    needed: Needed,
) -> Result<(usize, Built)> {
    let stage = &building.file.stages[planned.number];
    let counter = Counter::new(&building, &planned);
    let platform = planned.platform.clone().unwrap_or_else(|| building.request.platform.clone());
    let line = stage.line;
    let at = |error| Error::Build { line, text: stage.text.clone(), source: Box::new(error) };
    let base = Box::pin(building.base(&planned.base, &needed, &platform));
    let mut built = building.report.step(counter.step(0, &stage.text), base).await.map_err(at)?;
    built.anew = building.is_done_again(planned.number);
    let triggers = std::mem::take(&mut built.config.config.on_build);
    let mut scope = Scope::new(
        built.config.config.clone(),
        built.config.author.clone(),
        &built.arguments,
        &building.plan.globals,
        &building.request.arguments,
        building.file.directives.escape,
    );
    let stepping = Stepping { building: &building, planned: &planned, needed: &needed };
    for text in triggers.iter().take(TRIGGERS_MAX) {
        let mut instruction = parse_instruction(text).map_err(|error| at(error.into()))?;
        instruction.line = line;
        building.report.line(format!("# Executing build trigger: {}\n", instruction.text)).await;
        stepping.step(&instruction, &mut scope, &mut built).await?;
    }
    for (number, instruction) in stage.instructions.iter().enumerate() {
        let step = Box::pin(stepping.step(instruction, &mut scope, &mut built));
        building.report.step(counter.step(number + 1, &instruction.text), step).await?;
    }
    built.configure(&scope);
    built.arguments = scope.arguments().to_vec();
    Ok((planned.number, built))
}

/// Which of all steps one is.
struct Counter {
    before: usize,
    all: usize,
    stage: usize,
    /// Of the stage, with its beginning.
    own: usize,
    /// What the stage is called, if there are several.
    name: String,
}

impl Counter {
    fn new(building: &Building, planned: &PlannedStage) -> Self {
        let steps = |stage: &PlannedStage| building.file.stages[stage.number].instructions.len() + 1;
        let stages = &building.plan.stages;
        let before = stages.iter().take_while(|stage| stage.number != planned.number).map(steps).sum();
        let stage = &building.file.stages[planned.number];
        let name = match (&stage.name, building.file.stages.len()) {
            (_, 1) => String::new(),
            (Some(name), _) => format!("{name} "),
            (None, _) => format!("stage-{} ", planned.number),
        };
        Self { before, all: stages.iter().map(steps).sum(), stage: planned.number, own: steps(planned), name }
    }

    fn step<'a>(&self, number: usize, text: &'a str) -> Told<'a> {
        Told {
            id: format!("{}.{number}", self.stage),
            number: self.before + number + 1,
            all: self.all,
            place: format!("{}{}/{}", self.name, number + 1, self.own),
            text,
        }
    }
}

/// What every instruction of a stage sees.
pub(super) struct Stepping<'a> {
    pub(super) building: &'a Arc<Building>,
    planned: &'a PlannedStage,
    needed: &'a Needed,
}

impl Stepping<'_> {
    async fn step(&self, instruction: &Instruction, scope: &mut Scope, built: &mut Built) -> Result<()> {
        let at = |error| Error::Build {
            line: instruction.line,
            text: instruction.text.clone(),
            source: Box::new(error),
        };
        // A build that nobody waits for ends here: what only configures waits for nothing.
        tokio::task::yield_now().await;
        let op = scope.apply(&instruction.step).map_err(|why| at(Error::InvalidArgument(why)))?;
        // Not for each of thousands of lines that only configure.
        if op != Op::Nothing {
            built.configure(scope);
        }
        let made = match &op {
            Op::Nothing => None,
            Op::Run(run) => Some(self.command(run, built).await.map_err(at)?),
            Op::Copy(copy) => Some(self.copy(copy, built).await.map_err(at)?),
            Op::Folder(path) => self.folder(path, built).await.map_err(at)?,
        };
        self.record(instruction, &op, made, built).await;
        Ok(())
    }

    /// Puts what was made on top, and a line into the history.
    async fn record(&self, instruction: &Instruction, op: &Op, made: Option<Made>, built: &mut Built) {
        let before = built.layers.len();
        // A step without files is as old as what is below: the same steps make the same image.
        let mut created = built.config.created.clone();
        if let Some(made) = made {
            if made.cached {
                self.building.report.cached().await;
            }
            built.layers = made.layers;
            built.leases.push(Arc::new(made.lease));
            created = Some(made.created);
        }
        let created = match self.building.epoch {
            Some(_) => Some(self.building.now().to_string()),
            None => created.or_else(|| Some(jiff::Timestamp::UNIX_EPOCH.to_string())),
        };
        built.config.created.clone_from(&created);
        let created_by = match (op, &instruction.step) {
            (Op::Run(run), Step::Run(_)) => format!("RUN {}", run.words.join(" ")),
            _ => instruction.text.clone(),
        };
        let empty_layer = built.layers.len() == before;
        built.config.history.push(History { created, created_by, empty_layer, ..History::default() });
    }

    async fn copy(&self, op: &CopyOp, built: &Built) -> Result<Made> {
        let from = match &op.transfer.from {
            None => None,
            Some(name) => Some(self.source(name).await?),
        };
        let (building, op, built) = (self.building.clone(), op.clone(), built.clone());
        if !op.add {
            return blocking(move || copied(&building, &op, from.as_ref(), &built)).await;
        }
        let scratch = building.engine.store().images().scratch()?;
        let added = super::add::fetch(building.engine.images(), scratch, &op).await?;
        added.materials().for_each(|material| building.sources.add(material));
        blocking(move || add(&building, &op, &added, &built)).await
    }

    /// What files are taken of: what came along, a stage, or an image.
    pub(super) async fn source(&self, name: &str) -> Result<Source> {
        let context = self.building.given.context(name);
        let name = match context.and_then(|name| Some((name, self.building.request.contexts.get(name)?))) {
            Some((name, NamedContext::Folder | NamedContext::Remote(_))) => {
                return Ok(Source::Folder(name.to_owned()));
            }
            Some((_, NamedContext::Image(image))) => return self.image(image).await,
            Some((name, NamedContext::Layout(wanted))) => {
                let built = self.building.layout(name, wanted, &self.building.request.platform);
                return Ok(Source::Stack(Box::new(Box::pin(built).await?)));
            }
            None => name,
        };
        if let Some(number) = self.planned.source(&self.building.file, name) {
            let built = self.needed.get(&number);
            let built = built.ok_or_else(|| Error::Internal("a stage was not built before".to_owned()))?;
            return Ok(Source::Stack(Box::new(Built::clone(built))));
        }
        self.image(name).await
    }

    async fn image(&self, name: &str) -> Result<Source> {
        let (image, lease) = self.building.image(name, &self.building.request.platform).await?;
        let leases = vec![Arc::new(lease)];
        Ok(Source::Stack(Box::new(Built::given(image.layers, image.config, leases))))
    }

    /// The working directory, if it is not there.
    async fn folder(&self, path: &str, built: &Built) -> Result<Option<Made>> {
        let (building, path, built) = (self.building.clone(), path.to_owned(), built.clone());
        blocking(move || {
            let tree = built.tree()?;
            if resolved(&tree, &path)?.folder {
                return Ok(None);
            }
            let op = CopyOp { add: false, transfer: Default::default(), destination: format!("{path}/") };
            let nothing = Ignore::default();
            let copying =
                Copying::plan(&op, &tree, &tree, &nothing, Attributes::default(), times(&building))?;
            let key = Key::new("folder", &built.layers, &[path.clone(), building.dated()]);
            building.layer(&key, &built, &format!("WORKDIR {path}"), |out| copying.write(out)).map(Some)
        })
        .await
    }
}

fn times(building: &Building) -> Times {
    let seconds = |second: i64| u64::try_from(second).unwrap_or(0);
    Times { now: seconds(building.now().as_second()), latest: building.epoch.map(seconds) }
}

/// The layer of a `COPY`. Blocks.
pub(super) fn copied(building: &Building, op: &CopyOp, from: Option<&Source>, built: &Built) -> Result<Made> {
    let known = context_copy(building, op, from, built);
    if let Some(key) = known.as_ref().and_then(|known| building.engine.0.caches.copy_of(known))
        && let Some(made) = building.found(&Key::known(key), built)?
    {
        return Ok(made);
    }
    let target = built.tree()?;
    let (source, excluded) = match from {
        Some(Source::Stack(from)) => (from.tree()?, excluded(op)?),
        Some(Source::Folder(name)) => (building.folder(name)?, excluded(op)?),
        None => (Tree::running(building.context.path(), 0)?, building.ignore.clone().with(excluded(op)?)),
    };
    let sent = !matches!(from, Some(Source::Stack(_)));
    let attributes = attributes(op, sent, &target)?;
    let copying = Copying::plan(op, &source, &target, &excluded, attributes, times(building))?;
    let key = copy_key(building, &copying, built)?;
    let made = layered(building, op, &copying, &key, built)?;
    if let Some(known) = known {
        building.engine.0.caches.note_copy(&known, key.text());
    }
    Ok(made)
}

/// What a copy of a kept context is remembered by.
fn context_copy(building: &Building, op: &CopyOp, from: Option<&Source>, built: &Built) -> Option<String> {
    let context = building.context_key.as_ref().filter(|_| from.is_none())?;
    let parts = [context.clone(), format!("{op:?}"), building.dated()];
    Some(Key::new("copy of a context", &built.layers, &parts).text().to_owned())
}

fn add(building: &Building, op: &CopyOp, added: &Added, built: &Built) -> Result<Made> {
    let target = built.tree()?;
    let source = Tree::running(building.context.path(), 0)?;
    let excluded = building.ignore.clone().with(excluded(op)?);
    let attributes = attributes(op, true, &target)?;
    super::add::with(op, added, (&source, &target), &excluded, (&attributes, times(building)), |copying| {
        layered(building, op, copying, &copy_key(building, copying, built)?, built)
    })
}

fn excluded(op: &CopyOp) -> Result<Ignore> {
    Ok(Ignore::patterns(op.transfer.exclude.iter().map(String::as_str))?)
}

/// What comes with a request is root's here, whoever it belonged to there.
fn attributes(op: &CopyOp, sent: bool, target: &Tree) -> Result<Attributes> {
    let owner = op.transfer.chown.as_deref().map(|text| owner::parse(text, target)).transpose()?;
    let mode = op.transfer.chmod.as_deref().map(Mode::parse).transpose().map_err(Error::InvalidArgument)?;
    Ok(Attributes { owner: owner.or(sent.then_some((0, 0))), mode })
}

/// What a copy is found by: its content.
fn copy_key(building: &Building, copying: &Copying<'_>, built: &Built) -> Result<Key> {
    Ok(Key::new("copy", &built.layers, &[copying.digest()?.to_string(), building.dated()]))
}

fn layered(
    building: &Building,
    op: &CopyOp,
    copying: &Copying<'_>,
    key: &Key,
    built: &Built,
) -> Result<Made> {
    let name = if op.add { "ADD" } else { "COPY" };
    let text = format!("{name} {} {}", op.transfer.sources.paths.join(" "), op.destination);
    building.layer(key, built, &text, |out| copying.write(out))
}
