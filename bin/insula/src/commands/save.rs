//! `save export commit history`: what leaves an image or a container, or becomes one.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use insula_client::{ByteStream, CommitOptions};

use crate::arguments::Run;
use crate::context::Context;
use crate::failure::{Failure, Outcome};
use crate::format::table::{self, Columns, Row};
use crate::format::{ago, short_id};
use crate::{options, printer};

/// Write images to an archive, which 'load' of Docker, Podman and insula reads
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula save -o web.tar web:1
  insula save web:1 db:1 | ssh other insula load")]
pub(crate) struct SaveArgs {
    /// File to write [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The images have to be of it
    #[arg(long, value_name = "OS/ARCHITECTURE")]
    platform: Option<String>,
    /// Names or ids; a name without a tag means all of its tags
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

impl Run for SaveArgs {
    async fn run(self, context: Context) -> Outcome {
        let platform = options::platform(self.platform.as_deref())?;
        let target = Target::new(self.output.as_deref())?;
        let archive = context.client().await?.save_images(&self.images, platform.as_ref()).await?;
        target.fill(archive).await?;
        Ok(0)
    }
}

/// Write a container's files to an archive
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula export -o web.tar web
  insula export web | tar -t")]
pub(crate) struct ExportArgs {
    /// File to write [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Name or id
    container: String,
}

impl Run for ExportArgs {
    async fn run(self, context: Context) -> Outcome {
        let target = Target::new(self.output.as_deref())?;
        let archive = context.client().await?.export_container(&self.container).await?;
        target.fill(archive).await?;
        Ok(0)
    }
}

/// Where an archive goes.
pub(super) enum Target {
    Output,
    /// Written beside its place, so that a part is never taken for the whole.
    File {
        beside: Beside,
        path: PathBuf,
    },
}

/// A file that is gone unless it was moved to its place.
pub(super) struct Beside(PathBuf);

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Target {
    pub(super) fn new(output: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = output else {
            if io::stdout().is_terminal() {
                let message =
                    "cowardly refusing to save to a terminal. Use the -o flag or redirect".to_owned();
                return Err(Failure { code: 1, message }.into());
            }
            return Ok(Self::Output);
        };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !folder.is_dir() || path.is_dir() {
            let message =
                format!("invalid output path: {:?} must be a file in a directory that exists", path);
            return Err(Failure { code: 1, message }.into());
        }
        let beside = folder.join(format!(".insula-{}", insula_base::random_hex(8)));
        Ok(Self::File { beside: Beside(beside), path: path.to_owned() })
    }

    pub(super) async fn fill(self, mut archive: ByteStream) -> anyhow::Result<()> {
        let mut filling = self.begin()?;
        while let Some(bytes) = archive.next().await? {
            filling.write(&bytes)?;
        }
        filling.finish()
    }

    /// Opens the file.
    pub(super) fn begin(self) -> anyhow::Result<Filling> {
        let open = match &self {
            Self::Output => None,
            // A device or a pipe is not replaced.
            Self::File { path, .. } if path.exists() && !path.is_file() => {
                Some(File::options().write(true).open(path).with_context(|| format!("open {path:?}"))?)
            }
            Self::File { beside, .. } => {
                Some(File::create(&beside.0).with_context(|| format!("write {:?}", beside.0))?)
            }
        };
        Ok(Filling { target: self, open })
    }
}

/// An archive on its way to where it goes.
pub(super) struct Filling {
    target: Target,
    open: Option<File>,
}

impl Filling {
    pub(super) fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        match (&mut self.open, &self.target) {
            (Some(file), Target::File { path, .. }) => {
                file.write_all(bytes).with_context(|| format!("write {path:?}"))
            }
            _ => Ok(printer::bytes(bytes)?),
        }
    }

    /// It is whole.
    pub(super) fn finish(self) -> anyhow::Result<()> {
        match &self.target {
            Target::File { beside, path } if !path.exists() || path.is_file() => {
                fs::rename(&beside.0, path).with_context(|| format!("write {path:?}"))
            }
            _ => Ok(()),
        }
    }
}

/// Make an image of a container's changes
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula commit web web:patched
  insula commit -m 'with data' -c 'CMD [\"postgres\"]' db db:filled")]
pub(crate) struct CommitArgs {
    /// Author of the image
    #[arg(short, long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    author: String,
    /// Dockerfile instruction for the image's configuration: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, …
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// Message of the image's history
    #[arg(short, long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    message: String,
    /// Hold the container still meanwhile
    #[arg(
        short,
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_value = "true",
        default_missing_value = "true",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    pause: bool,
    /// Name or id
    container: String,
    /// Name of the image: repository[:tag]
    reference: Option<String>,
}

impl Run for CommitArgs {
    async fn run(self, context: Context) -> Outcome {
        let reference = self.reference.unwrap_or_default();
        let (repository, tag) = match reference.rsplit_once(':') {
            // A colon before the last slash belongs to a port.
            Some((repository, tag)) if !tag.contains('/') => (repository.to_owned(), tag.to_owned()),
            _ => (reference, String::new()),
        };
        let options = CommitOptions {
            repository,
            tag,
            author: self.author,
            message: self.message,
            changes: self.change,
            pause: self.pause,
        };
        printer::line(&context.client().await?.commit(&self.container, &options).await?)?;
        Ok(0)
    }
}

/// Show how an image's layers came to be
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula history nginx
  insula history --no-trunc --format '{{.Size}} {{.CreatedBy}}' nginx")]
pub(crate) struct HistoryArgs {
    /// Go template, 'table' and a template, or 'json'
    #[arg(long, value_name = "FORMAT", default_value = "", hide_default_value = true)]
    format: String,
    /// Sizes and times for people
    #[arg(
        short = 'H',
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_value = "true",
        default_missing_value = "true",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    human: bool,
    /// Do not cut ids and commands
    #[arg(long)]
    no_trunc: bool,
    /// The image has to be of it
    #[arg(long, value_name = "OS/ARCHITECTURE")]
    platform: Option<String>,
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
    /// Name or id
    image: String,
}

const HEADERS: &[(&str, &str)] = &[
    ("ID", "IMAGE"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("CreatedBy", "CREATED BY"),
    ("Size", "SIZE"),
    ("Comment", "COMMENT"),
];
/// Signs of a command that are shown, as Docker does.
const COMMAND_MAX: usize = 45;

impl Run for HistoryArgs {
    async fn run(self, context: Context) -> Outcome {
        let platform = options::platform(self.platform.as_deref())?;
        let items = context.client().await?.image_history(&self.image, platform.as_ref()).await?;
        let id = |id: &str| if self.no_trunc { id.to_owned() } else { short_id(id).to_owned() };
        if self.quiet && self.format.is_empty() {
            for item in &items {
                printer::line(&id(&item.id))?;
            }
            return Ok(0);
        }
        let now = ago::now();
        let rows: Vec<Row> = items
            .iter()
            .map(|item| {
                let command = item.created_by.replace('\t', " ");
                let size = u64::try_from(item.size).unwrap_or_default();
                Row {
                    cells: vec![
                        ("ID", id(&item.id)),
                        (
                            "CreatedSince",
                            if item.created <= 0 { "N/A".to_owned() } else { ago::ago(item.created, now) },
                        ),
                        ("CreatedAt", ago::rfc3339(item.created)),
                        ("CreatedBy", if self.no_trunc { command } else { cut(&command) }),
                        (
                            "Size",
                            if self.human { insula_base::format_decimal(size) } else { size.to_string() },
                        ),
                        ("Comment", item.comment.clone()),
                    ],
                    ..Row::default()
                }
            })
            .collect();
        let created = if self.human { "CreatedSince" } else { "CreatedAt" };
        let shown = vec!["ID", created, "CreatedBy", "Size", "Comment"];
        table::print(&Columns { headers: HEADERS, shown }, &rows, &self.format)?;
        Ok(0)
    }
}

fn cut(text: &str) -> String {
    if text.chars().count() <= COMMAND_MAX {
        return text.to_owned();
    }
    text.chars().take(COMMAND_MAX - 1).chain(['…']).collect()
}
