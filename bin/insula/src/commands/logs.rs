//! `logs`.

use anyhow::Context as _;
use clap::Args;
use insula_client::{Address, ByteStream, Client, Error, Frames, LogsOptions, Source};
use insula_models::ContainerInspect;
use jiff::Timestamp;

use crate::arguments::Run;
use crate::context::Context;
use crate::failure::Outcome;
use crate::follow::{self, Place};
use crate::format::ago;
use crate::printer::{Sink, raw};
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
        if options.follow && follow(&client, &container, &options).await? == Followed::ToTheEnd {
            return Ok(0);
        }
        let mut stream = client.logs(&container.id, &options).await?;
        let mut show = Show::new(container.config.tty);
        while let Some(bytes) = stream.next().await? {
            show.feed(&bytes)?;
        }
        Ok(0)
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Followed {
    ToTheEnd,
    /// The daemon does not tell where a record ends: there is no way to go on with the next one.
    Refused,
}

/// Shows the log to the container's end, whichever daemons tell it.
async fn follow(
    client: &Client,
    container: &ContainerInspect,
    options: &LogsOptions,
) -> anyhow::Result<Followed> {
    let stamped = LogsOptions { timestamps: true, ..options.clone() };
    let mut stream = client.log_records(&container.id, &stamped).await?;
    if stream.multiplexed() != Some(true) {
        return Ok(Followed::Refused);
    }
    let mut records = Records { place: Place::default(), timestamps: options.timestamps };
    loop {
        let mut frames = Frames::default();
        loop {
            match stream.next().await {
                Ok(Some(bytes)) => frames.feed(&bytes, |source, record| records.show(source, record))?,
                Ok(None) => return Ok(Followed::ToTheEnd),
                Err(error) if follow::is_lost(&error) => break,
                Err(error) => return Err(error.into()),
            }
        }
        stream = go_on(client.address(), container, &stamped, &mut records.place).await?;
    }
}

/// What the next daemon tells of the log.
async fn go_on(
    address: &Address,
    container: &ContainerInspect,
    options: &LogsOptions,
    place: &mut Place,
) -> anyhow::Result<ByteStream> {
    let mut options = options.clone();
    if let Some(latest) = place.resume() {
        (options.since, options.tail) = (latest.to_string(), "all".to_owned());
    }
    loop {
        let client = follow::next_daemon(address).await?;
        let asked = async {
            let now = client.inspect_container(&container.id).await?;
            // Another run of it is not what was followed: it is told as far as it goes.
            options.follow = now.state.started_at == container.state.started_at;
            client.log_records(&container.id, &options).await
        };
        match asked.await {
            Err(error) if follow::is_lost(&error) => {}
            Err(Error::Daemon { status: 404, .. }) => anyhow::bail!(
                "the daemon ended, and the next one removed container {}: the last of its log may be missing",
                container.id
            ),
            other => return Ok(other?),
        }
    }
}

/// Shows records, each behind its time, that were not shown yet.
#[derive(Debug)]
struct Records {
    place: Place,
    /// Their times too.
    timestamps: bool,
}

impl Records {
    fn show(&mut self, source: Source, record: &[u8]) -> anyhow::Result<()> {
        let sink = match source {
            Source::Stdout => Sink::Stdout,
            Source::Stderr => Sink::Stderr,
        };
        let Some((time, text)) = stamped(record) else {
            // A word of the daemon's own.
            return Ok(raw(sink, record)?);
        };
        if !self.place.passes(time) {
            return Ok(());
        }
        Ok(raw(sink, if self.timestamps { record } else { text })?)
    }
}

/// A record's time, and what is behind it.
fn stamped(record: &[u8]) -> Option<(Timestamp, &[u8])> {
    let space = record.iter().position(|byte| *byte == b' ')?;
    let time = std::str::from_utf8(&record[..space]).ok()?;
    Some((time.parse().ok()?, &record[space + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_behind_its_time() {
        let (time, text) = stamped(b"2026-01-31T08:05:09.000000001Z a b\n").unwrap();
        assert_eq!((time.subsec_nanosecond(), text), (1, &b"a b\n"[..]));
        assert!(stamped(b"reading the log: no\r\n").is_none());
    }
}
