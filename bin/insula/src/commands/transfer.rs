//! `pull push`.

use anyhow::bail;
use clap::Args;
use insula_client::{Client, Platform};
use insula_spec::reference::Reference;

use crate::arguments::Run;
use crate::context::Context;
use crate::failure::Outcome;
use crate::options;
use crate::printer::{self, Sink};
use crate::registry::{self, progress};

/// Pull an image, or all tags of a repository, from a registry
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula pull nginx
  insula pull registry.example:5000/team/app:1.2
  insula pull --platform linux/arm64 debian:bookworm
  insula pull --platform all registry.example/app:1        every image of it, to be pushed on whole
  insula pull -a registry.example:5000/team/app")]
pub(crate) struct PullArgs {
    /// All tags of the repository
    #[arg(short, long)]
    all_tags: bool,
    /// Images are not verified by content trust, which there is not: =false is refused
    #[arg(long, value_name = "BOOL", default_value = "true", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", hide_default_value = true, action = clap::ArgAction::Set)]
    disable_content_trust: bool,
    /// Of a multi-platform image this one: os/architecture[/variant], or all
    #[arg(long, value_name = "PLATFORM", default_value = "", hide_default_value = true)]
    platform: String,
    /// Print nothing but the image's name
    #[arg(short, long)]
    quiet: bool,
    /// NAME[:TAG] or NAME@DIGEST
    image: String,
}

impl Run for PullArgs {
    async fn run(self, context: Context) -> Outcome {
        options::content_trust(self.disable_content_trust)?;
        let reference = Reference::parse(&self.image)?;
        let bare = !is_tagged(&self.image);
        if self.all_tags && !bare {
            bail!("tag can't be used with --all-tags/-a");
        }
        if bare && !self.all_tags && !self.quiet {
            printer::line("Using default tag: latest")?;
        }
        let client = context.client().await?;
        let shown = if self.quiet { None } else { Some(Sink::Stdout) };
        pull(&client, &reference, self.all_tags, &self.platform, shown, 1).await?;
        printer::line(&if self.all_tags { reference.name() } else { reference.to_string() })?;
        Ok(0)
    }
}

/// Whether a name says which tag or digest.
pub(crate) fn is_tagged(name: &str) -> bool {
    name.rsplit('/').next().is_some_and(|last| last.contains([':', '@']))
}

/// Pulls; a failure ends the command with `code`.
pub(crate) async fn pull(
    client: &Client,
    reference: &Reference,
    all: bool,
    platform: &str,
    shown: Option<Sink>,
    code: u8,
) -> anyhow::Result<()> {
    let name = reference.familiar_name();
    let tag = match (all, reference.digest()) {
        (true, _) => "",
        (false, Some(digest)) => digest.as_str(),
        (false, None) => reference.tag().unwrap_or_default(),
    };
    let auth = registry::credentials(&name)?;
    let mut stream = client.pull_image(&name, tag, platform, &auth).await?;
    match shown {
        Some(sink) => progress::show(&mut stream, sink, code).await,
        None => progress::wait(&mut stream, code).await,
    }
}

/// Push an image, or all tags of a repository, to a registry
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula tag app registry.example:5000/team/app:1.2
  insula push registry.example:5000/team/app:1.2")]
pub(crate) struct PushArgs {
    /// All tags of the repository
    #[arg(short, long)]
    all_tags: bool,
    /// Images are not verified by content trust, which there is not: =false is refused
    #[arg(long, value_name = "BOOL", default_value = "true", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", hide_default_value = true, action = clap::ArgAction::Set)]
    disable_content_trust: bool,
    /// The image has to be of it
    #[arg(long, value_name = "OS/ARCHITECTURE")]
    platform: Option<String>,
    /// Print nothing but the image's name
    #[arg(short, long)]
    quiet: bool,
    /// NAME[:TAG]
    image: String,
}

impl Run for PushArgs {
    async fn run(self, context: Context) -> Outcome {
        options::content_trust(self.disable_content_trust)?;
        let reference = Reference::parse(&self.image)?;
        let bare = !is_tagged(&self.image);
        if self.all_tags && !bare {
            bail!("tag can't be used with --all-tags/-a");
        }
        if bare && !self.all_tags && !self.quiet {
            printer::line("Using default tag: latest")?;
        }
        if reference.digest().is_some() {
            bail!("cannot push a digest reference");
        }
        let client = context.client().await?;
        let platform = options::platform(self.platform.as_deref())?;
        let what = Pushed { all: self.all_tags, platform };
        let done = pushed(&client, &reference, &what, self.quiet).await?;
        if self.quiet {
            printer::line(&done)?;
        }
        Ok(0)
    }
}

/// Pushes an image that was just made.
pub(super) async fn push(client: &Client, name: &str, quiet: bool) -> anyhow::Result<()> {
    pushed(client, &Reference::parse(name)?, &Pushed::default(), quiet).await.map(drop)
}

/// What of a repository is pushed.
#[derive(Debug, Default)]
struct Pushed {
    /// All tags.
    all: bool,
    platform: Option<Platform>,
}

/// Returns what was pushed.
async fn pushed(
    client: &Client,
    reference: &Reference,
    what: &Pushed,
    quiet: bool,
) -> anyhow::Result<String> {
    let name = reference.familiar_name();
    let all = what.all;
    let tag = if all { "" } else { reference.tag().unwrap_or_default() };
    let auth = registry::credentials(&name)?;
    let mut stream = client.push_image(&name, tag, &auth, what.platform.as_ref()).await?;
    match quiet {
        true => progress::wait(&mut stream, 1).await?,
        false => progress::show(&mut stream, Sink::Stdout, 1).await?,
    }
    Ok(if all { reference.name() } else { reference.to_string() })
}
