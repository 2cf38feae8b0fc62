//! `logs`.

use anyhow::Context as _;
use clap::Args;
use insula_client::LogsOptions;

use crate::arguments::Run;
use crate::context::Context;
use crate::failure::Outcome;
use crate::format::ago;
use crate::streams::Show;

/// Print what a container has written
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula logs -f web
  insula logs --since 10m --tail 100 -t db")]
pub(crate) struct LogsArgs {
    /// What was noted of each line: labels, variables, tag (--log-opt)
    #[arg(long)]
    details: bool,
    /// Go on as more is written
    #[arg(short, long)]
    follow: bool,
    /// From this moment: RFC 3339, Unix seconds or an age (10m)
    #[arg(long, value_name = "TIME", default_value = "", hide_default_value = true)]
    since: String,
    /// To this moment
    #[arg(long, value_name = "TIME", default_value = "", hide_default_value = true)]
    until: String,
    /// The last so many lines
    #[arg(short = 'n', long, value_name = "NUMBER", default_value = "all", allow_negative_numbers = true)]
    tail: String,
    /// The time before each line
    #[arg(short, long)]
    timestamps: bool,
    /// Name or id
    container: String,
}

impl Run for LogsArgs {
    async fn run(self, context: Context) -> Outcome {
        let options = LogsOptions {
            follow: self.follow,
            timestamps: self.timestamps,
            details: self.details,
            stdout: true,
            stderr: true,
            since: ago::moment(&self.since).with_context(|| "invalid value for \"since\"")?,
            until: ago::moment(&self.until).with_context(|| "invalid value for \"until\"")?,
            tail: self.tail,
        };
        let client = context.client().await?;
        let container = client.inspect_container(&self.container).await?;
        let mut stream = client.logs(&container.id, &options).await?;
        let mut show = Show::new(container.config.tty);
        while let Some(bytes) = stream.next().await? {
            show.feed(&bytes)?;
        }
        Ok(0)
    }
}
