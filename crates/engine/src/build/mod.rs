//! Builds: a context and its Dockerfile become an image.
//!
//! ```text
//! context ─> scratch folder ┐
//! Dockerfile ─> plan: stages that are needed, each when what it needs is there
//!                           └─> a stage: instruction ─> configuration, and a layer on those below
//!                                                        │ found in the cache by what goes into it
//!                                                        ├ COPY, ADD, WORKDIR: written here
//!                                                        └ RUN: a container, and what it changed
//! ```

mod add;
mod agents;
mod attest;
mod base;
mod cache;
mod caches;
mod command;
mod files;
mod git;
mod kept;
mod layer;
mod layout;
mod listing;
mod mounts;
mod named;
mod output;
mod owner;
mod portable;
mod remote;
mod report;
mod request;
mod sources;
mod stage;

use std::collections::HashMap;
use std::io::{BufReader, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use insula_build::dockerfile::Dockerfile;
use insula_build::{Given, Ignore, Plan, nearest};
use insula_spec::reference::Reference;
use insula_store::Scratch;
use insula_store::layers::{Limits, Whiteouts, unpack};
use insula_sys::failpoint::failpoint;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

pub(crate) use self::agents::Agents;
use self::agents::Offered;
pub use self::agents::{AgentPlace, AgentsGiven};
pub use self::attest::Attestations;
use self::attest::Sources;
use self::cache::Key;
pub use self::cache::PruneRequest;
pub(crate) use self::caches::Caches;
use self::kept::Kept;
pub use self::kept::KeptContext;
pub use self::listing::{ListedFile, Listing, ListingSender};
use self::named::Folders;
pub use self::named::NamedContext;
pub use self::output::Output;
use self::portable::{Brought, Recorded};
pub use self::portable::{CacheScope, CacheSource, CacheTarget};
use self::report::Report;
pub use self::request::{Answered, BuildClient, BuildRequest, Secret};
use self::stage::Built;
use crate::images::ProgressSender;
use crate::measures::Operation;
use crate::tree::{Last, Tree};
use crate::{Engine, Error, Result, blocking, transfer};

/// What stands for a name of an image in the containers of builds; no image can be called so.
pub(crate) const IMAGE: &str = "<build>";

/// Begins the name of a Dockerfile that is no file of the context; Docker's client calls it so, too.
const SENT_ALONG: &str = ".dockerfile.";

/// What all stages of one build share.
struct Building {
    engine: Engine,
    request: BuildRequest,
    file: Dockerfile,
    given: Given,
    plan: Plan,
    context: Context,
    folders: Folders,
    agents: Offered,
    ignore: Ignore,
    /// What copies of the context are remembered by, if it is kept.
    context_key: Option<String>,
    report: Report,
    /// Seconds since 1970 that everything is dated to, if that was asked for.
    epoch: Option<i64>,
    /// Commands that run at once.
    turns: Semaphore,
    /// Records of the cache that were made or used.
    keys: std::sync::Mutex<Vec<String>>,
    /// What other builds made.
    brought: Brought,
    /// What leaves with the cache, and the stages that are held for it.
    steps: std::sync::Mutex<Vec<Recorded>>,
    stages: std::sync::Mutex<Vec<Arc<Built>>>,
    /// What came from elsewhere.
    sources: Sources,
    /// The Dockerfile, which the context may have no more.
    text: Vec<u8>,
}

/// The files of a build.
enum Context {
    /// They came with the request, or were fetched: the folder is in what is there as long as the build.
    Sent {
        folder: PathBuf,
        _scratch: Scratch,
    },
    Kept(Kept),
}

impl Context {
    fn path(&self) -> &Path {
        match self {
            Self::Sent { folder, .. } => folder,
            Self::Kept(kept) => kept.tree(),
        }
    }

    /// A file that the engine reads.
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        if let Self::Kept(kept) = self
            && let Some(found) = read(&Tree::running(kept.beside.path(), 0)?, name)?
        {
            return Ok(Some(found));
        }
        read(&Tree::running(self.path(), 0)?, name)
    }
}

/// What came with a request.
struct Sent {
    /// Unless it is elsewhere.
    context: Option<Context>,
    folders: Folders,
    /// OCI layouts with caches.
    layouts: Folders,
}

impl Engine {
    /// Builds an image from a tar, plain or compressed, after those of the folders that came along, telling how far it is in the legacy
    /// builder's words. Dropped, it ends what runs for it.
    pub async fn build(
        &self,
        context: impl Read + Send + 'static,
        request: BuildRequest,
        progress: ProgressSender,
    ) -> Result<()> {
        // What a build remembers while it waits is more than a thread's stack is for.
        let build = Box::pin(self.build_all(context, request, progress));
        self.events().measures().of(Operation::Build, build).await
    }

    async fn build_all(
        &self,
        mut context: impl Read + Send + 'static,
        mut request: BuildRequest,
        progress: ProgressSender,
    ) -> Result<()> {
        let (started, tags) = (jiff::Timestamp::now(), request.references()?);
        request.check_attestations()?;
        let report = Report::new(progress, request.quiet, request.trace);
        let agents = Offered::new(self, &request.agents)?;
        if !agents.is_empty() {
            report.begun().await;
        }
        let store = self.store().clone();
        let (names, layouts) = (request.folders(), request.layouts());
        let (engine, kept, elsewhere) = (self.clone(), request.kept.clone(), !request.remote.is_empty());
        let sent = transfer(move || {
            let folders = Folders::take_in(&mut context, names.iter().map(String::as_str), &store)?;
            let layouts = Folders::take_in(&mut context, layouts.iter().map(String::as_str), &store)?;
            let context = match &kept {
                Some(kept) => Some(Context::Kept(engine.keep_context(&mut context, kept)?)),
                None if elsewhere => None,
                None => {
                    let scratch = store.images().scratch()?;
                    take_in(context, scratch.path())?;
                    Some(Context::Sent { folder: scratch.path().to_owned(), _scratch: scratch })
                }
            };
            Ok(Sent { context, folders, layouts })
        })
        .await?;
        failpoint("build.context");
        let Sent { context, mut folders, layouts } = sent;
        let (context, source) = match context {
            Some(context) => (context, None),
            None => {
                let (context, source) = self.fetched_context(&mut request, &report).await?;
                (context, Some(source))
            }
        };
        let fetched = self.fetch_folders(&request, &mut folders, &report).await?;
        let sources = Sources::new(started, fetched, source);
        let brought = Box::pin(Brought::read(self, &request, layouts, &report)).await;
        let sent = (context, folders, sources);
        let building = Arc::new(Building::new(self.clone(), request, sent, report, agents, brought)?);
        let built = building.clone().run().await;
        if built.is_err() {
            building.report.failed().await;
        }
        let built = built?;
        building.put_out(built, tags).await?;
        let keys = std::mem::take(&mut *cache::locked(&building.keys));
        self.settle_cache(keys);
        Ok(())
    }
}

impl Engine {
    /// Removes the containers of builds that ended with the daemon that ran them, and what those alone used.
    pub(crate) async fn sweep_builds(&self) -> Result<()> {
        let left =
            self.0.containers.all().into_iter().filter(|container| container.row().image.is_of_build());
        for container in left.collect::<Vec<_>>() {
            let removal = crate::containers::RemoveRequest { volumes: true, force: true, link: false };
            self.remove_container(container.id.as_str(), removal).await?;
        }
        let engine = self.clone();
        blocking(move || mounts::sweep(engine.store(), engine.instance().run())).await
    }
}

/// What the Dockerfile is read with.
fn given(request: &BuildRequest) -> Given {
    let platform = format!("linux/{}", base::architecture());
    let target_platform =
        if request.platform.is_empty() { platform.clone() } else { request.platform.clone() };
    Given {
        arguments: request.arguments.clone(),
        target: (!request.target.is_empty()).then(|| request.target.clone()),
        build_platform: platform,
        target_platform,
        contexts: request.contexts.keys().cloned().collect(),
    }
}

/// Stages that are to be built anew are stages of the file.
fn check_filter(request: &BuildRequest, file: &Dockerfile) -> Result<()> {
    let Some(name) = request.no_cache_filter.iter().find(|name| file.stage(name).is_none()) else {
        return Ok(());
    };
    let known = file.stages.iter().filter_map(|stage| stage.name.as_deref());
    let near = nearest(name, known).map_or_else(String::new, |near| format!(" (did you mean {near}?)"));
    Err(Error::InvalidArgument(format!("no-cache-filter: no stage is called {name}{near}")))
}

fn epoch(request: &BuildRequest) -> Result<Option<i64>> {
    let text = request.arguments.get("SOURCE_DATE_EPOCH").cloned().flatten();
    let epoch = text.filter(|text| !text.is_empty()).map(|text| text.parse::<i64>()).transpose();
    epoch.map_err(|_| {
        Error::InvalidArgument("SOURCE_DATE_EPOCH is not a number of seconds since 1970".to_owned())
    })
}

impl Building {
    fn new(
        engine: Engine,
        request: BuildRequest,
        (context, folders, sources): (Context, Folders, Sources),
        report: Report,
        agents: Offered,
        brought: Brought,
    ) -> Result<Self> {
        let name = &request.dockerfile;
        let text = context
            .read(name)?
            .ok_or_else(|| Error::InvalidArgument(format!("Cannot locate specified Dockerfile: {name}")))?;
        let patterns = match context.read(&format!("{name}.dockerignore"))? {
            Some(own) => own,
            None => context.read(".dockerignore")?.unwrap_or_default(),
        };
        let ignore = Ignore::parse(&patterns)?;
        let file = Dockerfile::parse(&text)?;
        let mut keys = Vec::new();
        let mut context_key = None;
        match &context {
            Context::Sent { folder, .. } => {
                let tree = Tree::running(folder, 0)?;
                for sent in [name.clone(), format!("{name}.dockerignore"), ".dockerignore".to_owned()] {
                    if sent.starts_with(SENT_ALONG) || ignore.ignores(&sent) {
                        forget(&tree, &sent)?;
                    }
                }
            }
            // What comes for the engine alone is beside it.
            Context::Kept(kept) => {
                keys.extend(kept.renewed.then(|| kept.key().to_owned()));
                let patterns = String::from_utf8_lossy(&patterns).into_owned();
                context_key =
                    Some(Key::new("context", &[], &[kept.index.clone(), patterns]).text().to_owned());
            }
        }
        let given = given(&request);
        let plan = Plan::new(&file, &given)?;
        check_filter(&request, &file)?;
        let epoch = epoch(&request)?;
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let turns = Semaphore::new(processors);
        let keys = std::sync::Mutex::new(keys);
        Ok(Self {
            engine,
            request,
            file,
            given,
            plan,
            context,
            folders,
            agents,
            ignore,
            context_key,
            report,
            epoch,
            turns,
            keys,
            brought,
            steps: std::sync::Mutex::default(),
            stages: std::sync::Mutex::default(),
            sources,
            text,
        })
    }

    /// Builds the stages, each as soon as those that it needs are there.
    async fn run(self: Arc<Self>) -> Result<Arc<Built>> {
        if !self.plan.unused.is_empty() {
            let names = self.plan.unused.join(" ");
            self.report.line(format!("[Warning] One or more build-args [{names}] were not consumed\n")).await;
        }
        let mut done: HashMap<usize, Arc<Built>> = HashMap::new();
        let mut waiting = self.plan.stages.clone();
        let mut running = JoinSet::new();
        loop {
            let (ready, later): (Vec<_>, Vec<_>) = waiting
                .into_iter()
                .partition(|stage| stage.needs.iter().all(|other| done.contains_key(other)));
            waiting = later;
            for planned in ready {
                let needed = planned.needs.iter().filter_map(|n| Some((*n, done.get(n)?.clone()))).collect();
                running.spawn(stage::build(self.clone(), planned, needed));
            }
            let Some(ended) = running.join_next().await else { break };
            let (number, built) =
                ended.unwrap_or_else(|error| Err(Error::Internal(format!("a stage ended: {error}"))))?;
            let built = Arc::new(built);
            if self.exports_all() {
                cache::locked(&self.stages).push(built.clone());
            }
            done.insert(number, built);
        }
        let last = self.plan.stages.last().and_then(|stage| done.remove(&stage.number));
        last.ok_or_else(|| Error::Internal("the last stage was not built".to_owned()))
    }

    /// Whether a stage is not to be taken from the cache.
    fn is_done_again(&self, number: usize) -> bool {
        let named = |name: &String| self.file.stage(name) == Some(number);
        self.request.no_cache || self.request.no_cache_filter.iter().any(named)
    }

    /// Part of what everything with files is found by, since it is in their times.
    fn dated(&self) -> String {
        self.epoch.map(|epoch| epoch.to_string()).unwrap_or_default()
    }

    fn now(&self) -> jiff::Timestamp {
        self.epoch
            .and_then(|epoch| jiff::Timestamp::from_second(epoch).ok())
            .unwrap_or_else(jiff::Timestamp::now)
    }
}

/// Unpacks a context; names in it lead nowhere else.
fn take_in(context: impl Read + Send, folder: &Path) -> Result<()> {
    let root = std::fs::File::open(folder).map_err(|e| Error::io("open", folder, e))?;
    let source = crate::archive::decompressed(BufReader::with_capacity(128 << 10, context))?;
    unpack(source, root.as_fd(), &Limits::default(), Whiteouts::Ordinary)?;
    Ok(())
}

/// Removes a file that came for the engine alone, so that no command sees it.
fn forget(tree: &Tree, name: &str) -> Result<()> {
    let path = Path::new("/").join(name.trim_start_matches('/'));
    let Ok(place) = tree.resolve(&path, Last::Keep) else { return Ok(()) };
    let (Some(dir), Some(entry)) = (place.parent(), &place.entry) else { return Ok(()) };
    if entry.dir.is_some() {
        return Ok(());
    }
    rustix::fs::unlinkat(dir.folder_of(entry), &place.name, rustix::fs::AtFlags::empty())
        .map_err(|e| Error::io("unlink", &path, e))
}

/// A file of the context, if it is there.
fn read(tree: &Tree, name: &str) -> Result<Option<Vec<u8>>> {
    use insula_build::dockerfile::LARGEST;
    let path = Path::new("/").join(name.trim_start_matches('/'));
    let Ok(place) = tree.resolve(&path, Last::Follow) else { return Ok(None) };
    let (Some(dir), Some(entry)) = (place.parent(), &place.entry) else { return Ok(None) };
    if entry.dir.is_some() {
        return Ok(None);
    }
    let fail = |error| Error::io("read", &path, error);
    let file = std::fs::File::from(dir.open(&place.name, entry).map_err(|e| fail(e.into()))?);
    let mut bytes = Vec::new();
    file.take(LARGEST as u64 + 1).read_to_end(&mut bytes).map_err(fail)?;
    Ok(Some(bytes))
}

/// A name that an image may be given.
fn reference(tag: &str) -> Result<Reference> {
    let reference = Reference::parse(tag).map_err(insula_store::Error::from)?;
    if reference.digest().is_some() {
        return Err(Error::InvalidArgument("refusing to create a tag with a digest reference".to_owned()));
    }
    Ok(reference)
}
