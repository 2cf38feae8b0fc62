//! What an instruction can say. Texts are as written: variables are not replaced, quotes not taken off,
//! unless a field says otherwise.

use super::mount::Mount;

/// One instruction of a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instruction {
    /// Its first line, from 1.
    pub line: u32,
    /// As written, continuations joined, without heredocs' bodies.
    pub text: String,
    pub step: Step,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Add(Transfer),
    Arg(Vec<ArgSpec>),
    Cmd(Command),
    Copy(Transfer),
    Entrypoint(Command),
    Env(Vec<Pair>),
    Expose(Vec<String>),
    Healthcheck(Healthcheck),
    Label(Vec<Pair>),
    Maintainer(String),
    /// An instruction of the images that are built on this one, as text with its heredocs.
    Onbuild(String),
    Run(Run),
    Shell(Vec<String>),
    Stopsignal(String),
    User(String),
    Volume(Vec<String>),
    Workdir(String),
}

/// `NAME` or `NAME=default`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArgSpec {
    pub name: String,
    pub default: Option<String>,
}

/// `NAME=value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    pub name: String,
    pub value: String,
}

/// A command, to be run as it is or by a shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    pub form: Form,
    /// One text in the shell form.
    pub words: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Exec,
    Shell,
}

/// A body that follows an instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heredoc {
    /// The line that ends it; for `COPY` also the file's name.
    pub name: String,
    /// The number before `<<`.
    pub descriptor: u32,
    /// Whether variables in it are replaced.
    pub expand: bool,
    /// Whether tabs at the beginning of its lines are taken off.
    pub chomp: bool,
    pub content: String,
}

/// `RUN`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub command: Command,
    pub heredocs: Vec<Heredoc>,
    pub mounts: Vec<Mount>,
    /// `default`, `none` or `host`.
    pub network: Option<String>,
    /// `sandbox` or `insecure`.
    pub security: Option<String>,
}

/// `COPY` and `ADD`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transfer {
    pub sources: CopySources,
    pub destination: String,
    /// A stage, an image or a named context.
    pub from: Option<String>,
    pub chown: Option<String>,
    pub chmod: Option<String>,
    /// A layer of its own that does not look at those below.
    pub link: bool,
    /// Keep the folders of the sources' paths.
    pub parents: bool,
    pub exclude: Vec<String>,
    /// What a download has to be.
    pub checksum: Option<String>,
    pub keep_git_dir: bool,
    /// Whether archives are unpacked; what is usual if it is not said.
    pub unpack: Option<bool>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CopySources {
    /// Paths, patterns, and for `ADD` URLs.
    pub paths: Vec<String>,
    /// Files that are written in the Dockerfile.
    pub heredocs: Vec<Heredoc>,
}

/// `HEALTHCHECK`. Durations in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Healthcheck {
    pub probe: Probe,
    pub interval: Option<i64>,
    pub timeout: Option<i64>,
    pub start_period: Option<i64>,
    pub start_interval: Option<i64>,
    pub retries: Option<i64>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Probe {
    #[default]
    None,
    Command(Command),
}
