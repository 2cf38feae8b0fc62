//! `/build?version=2`: a build of a client that answers on a session.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, Read};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use http::StatusCode;
use insula_build::dockerfile::{Dockerfile, LARGEST, MountKind};
use insula_build::{Base, Given, Op, Plan, Scope};
use insula_engine::archive::archive_channel;
use insula_engine::build::{BuildRequest, Output};
use insula_engine::images::ProgressSender;
use insula_engine::{Engine, Error};
use serde::Deserialize;
use tokio::sync::{Notify, mpsc, oneshot};

use super::agents;
use super::files::{self, Wanted};
use super::output::Sent;
use super::session::{Session, Sessions};
use super::status::Records;
use crate::error::ApiError;
use crate::request::Params;
use crate::upload::Upload;

/// The context is in the session, or comes with a request of its own.
const IN_SESSION: &str = "client-session";
const IN_UPLOAD: &str = "upload-request";
pub(crate) const IS_SENT: [&str; 2] = [IN_SESSION, IN_UPLOAD];
/// A context may come before its build or behind it.
const PATIENCE: Duration = Duration::from_secs(10);
/// Begins the name of a Dockerfile that is no file of the context, as in the legacy builder's requests.
const SENT_ALONG: &str = ".dockerfile.";
/// Pieces of a context, and lines of progress, that wait.
const WAITING: usize = 64;

/// What requests of several connections have together.
#[derive(Debug, Default)]
pub(crate) struct BuildKit {
    pub(super) sessions: Arc<Sessions>,
    /// Contexts that wait for their build, by its id.
    uploads: Mutex<HashMap<String, Context>>,
    more: Notify,
    /// Ends builds that run, by their id.
    running: Mutex<HashMap<String, Arc<Notify>>>,
}

/// A context as the engine reads it.
#[derive(Debug)]
struct Context {
    upload: Upload,
    /// Dropped when nobody reads any more.
    _read: Option<oneshot::Sender<()>>,
}

impl Read for Context {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.upload.read(into)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a request turns out to be.
pub(crate) enum Asked {
    Build(Box<Work>),
    /// It brought a context for another one.
    Answered(Response),
}

/// What is to be built, and what is known of who wants it.
pub(crate) struct Work {
    request: BuildRequest,
    context: Context,
    session: Session,
    /// What is sent to the client beside progress.
    output: Option<Sent>,
    cancelled: Arc<Notify>,
    _known: Known,
}

/// Prepares what a request of version 2 asks for.
pub(crate) async fn prepare(
    kit: &Arc<BuildKit>,
    mut request: BuildRequest,
    params: &Params,
    body: Body,
) -> Result<Asked, ApiError> {
    let id = params.text("buildid").unwrap_or_default().to_owned();
    if let Some(id) = id.strip_prefix(IN_UPLOAD).and_then(|rest| rest.strip_prefix(':')) {
        return kit.take_in(id, body).await.map(Asked::Answered);
    }
    let session = kit.sessions.wait(params.text("session").unwrap_or_default()).await?;
    let output = put_out(&mut request, params.text("outputs"))?;
    let context = match params.text("remote").unwrap_or(IN_SESSION) {
        IN_UPLOAD => kit.uploaded(&id).await?,
        IN_SESSION => from_session(&session, &mut request).await?,
        // The engine fetches it.
        _ => Context { upload: Upload::new(Body::empty()), _read: None },
    };
    if request.agents.ids.is_empty() {
        request.agents.ids = BTreeSet::from(["default".to_owned()]);
    }
    request.agents = agents::offered(&session, std::mem::take(&mut request.agents.ids)).await;
    request.client = Some(Arc::new(session.clone()));
    request.trace = true;
    let cancelled = Arc::new(Notify::new());
    locked(&kit.running).insert(id.clone(), cancelled.clone());
    let known = Known { kit: kit.clone(), id };
    Ok(Asked::Build(Box::new(Work { request, context, session, output, cancelled, _known: known })))
}

/// Ends a build that somebody gave up.
pub(crate) fn cancel(kit: &BuildKit, id: &str) -> Response {
    if let Some(cancelled) = locked(&kit.running).get(id) {
        cancelled.notify_one();
    }
    Response::new(Body::empty())
}

/// A build that can be cancelled, as long as it runs.
struct Known {
    kit: Arc<BuildKit>,
    id: String,
}

impl Drop for Known {
    fn drop(&mut self) {
        locked(&self.kit.running).remove(&self.id);
    }
}

impl BuildKit {
    /// Keeps the body of a request for a build, until that has read it.
    async fn take_in(&self, id: &str, body: Body) -> Result<Response, ApiError> {
        let (read, done) = oneshot::channel::<()>();
        let context = Context { upload: Upload::new(body), _read: Some(read) };
        if locked(&self.uploads).insert(id.to_owned(), context).is_some() {
            return Err(ApiError::new(StatusCode::CONFLICT, "the build has a context already"));
        }
        self.more.notify_waiters();
        let mut done = std::pin::pin!(done);
        if tokio::time::timeout(PATIENCE, &mut done).await.is_err() {
            if locked(&self.uploads).remove(id).is_some() {
                return Err(ApiError::invalid("no build came for the context"));
            }
            // The build reads it.
            let _ = done.await;
        }
        Ok(Response::new(Body::empty()))
    }

    async fn uploaded(&self, id: &str) -> Result<Context, ApiError> {
        let find = async {
            loop {
                let mut more = std::pin::pin!(self.more.notified());
                more.as_mut().enable();
                if let Some(context) = locked(&self.uploads).remove(id) {
                    return context;
                }
                more.await;
            }
        };
        let found = tokio::time::timeout(PATIENCE, find).await;
        found.map_err(|_| ApiError::invalid("the context of the build did not come"))
    }
}

/// The context from the client's folders. Its Dockerfile comes along under a name of its own, since it may be in
/// another folder.
async fn from_session(session: &Session, request: &mut BuildRequest) -> Result<Context, Error> {
    let name = std::mem::take(&mut request.dockerfile);
    let own = format!("{name}.dockerignore");
    let wrong = |error: io::Error| Error::InvalidArgument(format!("read the Dockerfile {name}: {error}"));
    let names = [name.clone(), own.clone()];
    let mut found = files::some(session, "dockerfile", &names, 2 * LARGEST).await.map_err(wrong)?;
    let text = found.remove(&name);
    let text = text
        .ok_or_else(|| Error::InvalidArgument(format!("failed to read dockerfile: {name} is not there")))?;
    let patterns = match found.remove(&own) {
        Some(own) => own,
        None => {
            let name = [".dockerignore".to_owned()];
            let mut found = files::some(session, "context", &name, LARGEST).await.map_err(wrong)?;
            found.remove(&name[0]).unwrap_or_default()
        }
    };
    request.agents.ids = agents_of(&text, request);
    request.dockerfile = format!("{SENT_ALONG}{}", insula_base::random_hex(8));
    let head = along(&request.dockerfile, &text, &patterns).map_err(wrong)?;
    let wanted = Wanted { folder: "context", only: Vec::new(), without: lines(&patterns) };
    let (sender, receiver) = mpsc::channel(WAITING);
    let session = session.clone();
    tokio::spawn(async move {
        if sender.send(Ok(Bytes::from(head))).await.is_ok() {
            files::archive(session, wanted, sender).await;
        }
    });
    let body = stream::unfold(receiver, |mut receiver| async { Some((receiver.recv().await?, receiver)) });
    Ok(Context { upload: Upload::new(Body::from_stream(body)), _read: None })
}

/// The beginning of an archive: what is sent for the engine alone.
fn along(name: &str, text: &[u8], patterns: &[u8]) -> io::Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in [(name.to_owned(), text), (format!("{name}.dockerignore"), patterns)] {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o600);
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, name, content)?;
    }
    Ok(std::mem::take(builder.get_mut()))
}

/// Patterns of a `.dockerignore` as clients match them; they are applied once more where files are copied.
fn lines(patterns: &[u8]) -> Vec<String> {
    let text =
        String::from_utf8_lossy(patterns.strip_prefix(b"\xef\xbb\xbf").unwrap_or(patterns)).into_owned();
    let lines = text.lines().filter(|line| !line.starts_with('#')).map(str::trim);
    let cleaned = lines.map(|line| match line.strip_prefix('!') {
        Some(rest) => format!("!{}", rest.trim().trim_start_matches('/')),
        None => line.trim_start_matches('/').to_owned(),
    });
    cleaned.filter(|line| !matches!(line.as_str(), "" | "!" | "." | "./")).collect()
}

/// Ids of the agents that commands of a Dockerfile ask, as far as they are known before base images are.
fn agents_of(text: &[u8], request: &BuildRequest) -> BTreeSet<String> {
    let given = Given {
        arguments: request.arguments.clone(),
        target: (!request.target.is_empty()).then(|| request.target.clone()),
        contexts: request.contexts.keys().cloned().collect(),
        ..Given::default()
    };
    // What is wrong with it is said when it is built.
    let Ok(file) = Dockerfile::parse(text) else { return BTreeSet::new() };
    let Ok(plan) = Plan::new(&file, &given) else { return BTreeSet::new() };
    let (mut ids, mut configs) = (BTreeSet::new(), HashMap::new());
    for planned in &plan.stages {
        let (config, inherited): (_, Vec<_>) = match planned.base {
            Base::Stage(number) => configs.get(&number).cloned().unwrap_or_default(),
            _ => Default::default(),
        };
        let (given, escape) = (&request.arguments, file.directives.escape);
        let mut scope = Scope::new(config, None, &inherited, &plan.globals, given, escape);
        for instruction in &file.stages[planned.number].instructions {
            let Ok(Op::Run(run)) = scope.apply(&instruction.step) else { continue };
            let asked = run.mounts.into_iter().filter(|mount| mount.kind == MountKind::Ssh);
            ids.extend(asked.map(|mount| mount.id.unwrap_or_else(|| "default".to_owned())));
        }
        let arguments = scope.arguments().to_vec();
        configs.insert(planned.number, (scope.config, arguments));
    }
    ids
}

/// One of `outputs`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Wish {
    r#type: String,
    #[serde(default)]
    attrs: Option<HashMap<String, String>>,
}

/// What becomes of the build, where it is not an image of the engine's.
fn put_out(request: &mut BuildRequest, wishes: Option<&str>) -> Result<Option<Sent>, ApiError> {
    let wishes: Option<Vec<Wish>> = serde_json::from_str(wishes.unwrap_or("null"))
        .map_err(|error| ApiError::invalid(format!("outputs in the query: {error}")))?;
    let wishes = wishes.unwrap_or_default();
    let [wish] = wishes.as_slice() else {
        return match wishes.is_empty() {
            true => Ok(None),
            false => Err(ApiError::unsupported("a build has one output in this version")),
        };
    };
    let attribute = |name: &str| wish.attrs.as_ref().and_then(|attrs| attrs.get(name)).map(String::as_str);
    match wish.r#type.as_str() {
        "moby" | "image" if attribute("push") != Some("true") => {
            request
                .tags
                .extend(attribute("name").into_iter().flat_map(|names| names.split(',')).map(str::to_owned));
            Ok(None)
        }
        "tar" => {
            let (sender, chunks) = archive_channel();
            request.output = Output::Files(sender);
            Ok(Some(Sent::Archive(chunks)))
        }
        "local" => {
            let (sender, listings) = mpsc::channel(1);
            request.output = Output::Listing(sender);
            Ok(Some(Sent::Files(listings)))
        }
        other => Err(ApiError::unsupported(format!(
            "output type {other} is not available by this protocol: use type=local or type=tar, or 'insula build --output'"
        ))),
    }
}

impl Work {
    /// Builds, and tells the client's lines.
    pub(crate) async fn run(self: Box<Self>, engine: Engine, progress: ProgressSender) -> Result<(), Error> {
        let Self { request, context, session, output, cancelled, _known } = *self;
        let (sender, mut lines) = mpsc::channel(WAITING);
        let (begun, given) = (Notify::new(), request.agents.clone());
        let mut records = Records::new(request.quiet);
        let building = engine.build(context, request, sender);
        let told = async {
            while let Some(line) = lines.recv().await {
                if line.aux.as_ref().is_some_and(|aux| aux.get("Agents").is_some()) {
                    begun.notify_one();
                }
                if let Some(line) = records.of(line) {
                    // Who does not listen any more is noticed elsewhere.
                    let _ = progress.send(line).await;
                }
            }
        };
        let sent = async {
            match output {
                Some(output) => output.send(&session).await,
                None => Ok(()),
            }
        };
        let serving = async {
            begun.notified().await;
            agents::serve(engine.clone(), session.clone(), given).await;
            // It is the build that ends.
            std::future::pending().await
        };
        let work = async {
            let (built, (), sent) = tokio::join!(building, told, sent);
            built.and(sent)
        };
        tokio::select! {
            done = work => done,
            () = cancelled.notified() => Err(Error::Unavailable("the build was cancelled".to_owned())),
            never = serving => never,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_cleaned() {
        let text = b"\xef\xbb\xbf# no\n\n /a/b \n! /c\n.\n**/*.o\n!\n";
        assert_eq!(lines(text), ["a/b", "!c", "**/*.o"]);
    }

    #[test]
    fn outputs_are_read() {
        let read = |text: &str| {
            let mut request = BuildRequest::default();
            let output = put_out(&mut request, Some(text)).map_err(|error| error.to_string());
            output.map(|output| (output.is_some(), request.tags))
        };
        assert_eq!(read("null"), Ok((false, vec![])));
        assert_eq!(
            read(r#"[{"Type":"moby","Attrs":{"name":"a,b"}}]"#),
            Ok((false, vec!["a".into(), "b".into()]))
        );
        assert_eq!(read(r#"[{"Type":"tar","Attrs":null}]"#), Ok((true, vec![])));
        assert_eq!(read(r#"[{"Type":"local"}]"#), Ok((true, vec![])));
        for wrong in ["{", r#"[{"Type":"oci"}]"#, r#"[{"Type":"image","Attrs":{"push":"true"}}]"#] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn agents_are_those_that_commands_name() {
        let text = b"ARG G=g\nFROM a AS one\nARG G X\nENV E=e\nRUN --mount=type=ssh x\n\
                     RUN --mount=type=ssh,id=b$X --mount=type=tmpfs,target=/x y\n\
                     FROM one\nRUN --mount=type=ssh,id=$E-${G:-no} z\n";
        let arguments = [("X".to_owned(), Some("1".to_owned()))].into();
        let mut request = BuildRequest { arguments, ..BuildRequest::default() };
        let ids =
            |text: &[u8], request: &BuildRequest| agents_of(text, request).into_iter().collect::<Vec<_>>();
        // The second stage has the ARG of the one that it begins with.
        assert_eq!(ids(text, &request), ["b1", "default", "e-g"]);
        request.target = "one".to_owned();
        assert_eq!(ids(text, &request), ["b1", "default"]);
        assert!(ids(b"NO", &request).is_empty());
    }
}
