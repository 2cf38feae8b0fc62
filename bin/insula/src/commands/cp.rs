//! `cp`.

use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::Args;
use insula_client::{Client, Upload};
use insula_models::PathStat;
use tokio::sync::mpsc;

use crate::arguments::Run;
use crate::context::Context;
use crate::copy::pack::{self, Source};
use crate::copy::unpack::{Target, unpack};
use crate::failure::Outcome;
use crate::printer::{self, Sink};

/// Copy files between a container and the host
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula cp web:/etc/nginx/nginx.conf .
  insula cp ./site/. web:/usr/share/nginx/html
  insula cp web:/var/log - | tar -t")]
pub(crate) struct CpArgs {
    /// Keep owners
    #[arg(short, long)]
    archive: bool,
    /// Follow a symbolic link at the source
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Say nothing
    #[arg(short, long)]
    quiet: bool,
    /// What to copy: PATH, CONTAINER:PATH, or - for a tar from standard input
    source: String,
    /// Where to: PATH, CONTAINER:PATH, or - for a tar to standard output
    target: String,
}

/// Go's `os.FileMode`.
const FOLDER: u32 = 1 << 31;
const SYMLINK: u32 = 1 << 27;

/// One side of a copy.
enum Side<'a> {
    Local(&'a str),
    Container(&'a str, &'a str),
}

impl<'a> Side<'a> {
    fn parse(text: &'a str) -> Self {
        match text.split_once(':') {
            Some((container, path))
                if !text.starts_with('/') && !container.starts_with('.') && !container.is_empty() =>
            {
                Self::Container(container, path)
            }
            _ => Self::Local(text),
        }
    }
}

impl Run for CpArgs {
    async fn run(self, context: Context) -> Outcome {
        match (Side::parse(&self.source), Side::parse(&self.target)) {
            (Side::Container(container, path), Side::Local(local)) => {
                self.take_out(&context.client().await?, container, path, local).await?;
            }
            (Side::Local(local), Side::Container(container, path)) => {
                self.bring_in(&context.client().await?, local, container, path).await?;
            }
            (Side::Container(..), Side::Container(..)) => {
                bail!("copying between containers is not supported")
            }
            (Side::Local(_), Side::Local(_)) => {
                bail!("must specify at least one container source or destination: CONTAINER:PATH")
            }
        }
        Ok(0)
    }
}

impl CpArgs {
    async fn take_out(
        &self,
        client: &Client,
        container: &str,
        path: &str,
        local: &str,
    ) -> anyhow::Result<()> {
        let path = rooted(path);
        let mut wanted = path.trim_end_matches("/.").to_owned();
        if wanted.is_empty() {
            wanted.push('/');
        }
        if self.follow_link {
            let stat = client.stat_path(container, &wanted).await?;
            if stat.mode & SYMLINK != 0 {
                wanted = link_target(&wanted, &stat);
            }
        }
        if local == "-" {
            if io::stdout().is_terminal() {
                bail!("a tar is not written to a terminal: redirect standard output");
            }
            let mut archive = client.get_archive(container, &wanted).await?;
            while let Some(bytes) = archive.bytes.next().await? {
                printer::raw(Sink::Stdout, &bytes)?;
            }
            return Ok(());
        }
        let mut archive = client.get_archive(container, &wanted).await?;
        let is_folder = archive.stat.mode & FOLDER != 0;
        let contents_only = path.ends_with("/.");
        let mut target = local_target(local, &archive.stat.name, is_folder, contents_only)?;
        target.archive = self.archive;
        let (sender, receiver) = mpsc::channel(4);
        let unpacking =
            tokio::task::spawn_blocking(move || unpack(Pieces { receiver, rest: Bytes::new() }, &target));
        while let Some(bytes) = archive.bytes.next().await? {
            // The receiver is gone when unpacking has failed: its error is the one to show.
            if sender.send(bytes).await.is_err() {
                break;
            }
        }
        drop(sender);
        let bytes = unpacking.await??;
        self.report(bytes, local);
        Ok(())
    }

    async fn bring_in(
        &self,
        client: &Client,
        local: &str,
        container: &str,
        path: &str,
    ) -> anyhow::Result<()> {
        let path = rooted(path);
        let (folder, stat) = self.container_target(client, container, &path).await?;
        let exists = stat.is_some();
        let is_folder = stat.is_some_and(|stat| stat.mode & FOLDER != 0);
        if local == "-" {
            if !is_folder {
                bail!("destination \"{container}:{path}\" must be a directory");
            }
            return Ok(client.put_archive(container, &folder, Upload::read(io::stdin()), false).await?);
        }
        let local_path = Path::new(local);
        let metadata = if self.follow_link { local_path.metadata() } else { local_path.symlink_metadata() };
        let source_is_folder = metadata.with_context(|| local.to_owned())?.is_dir();
        let contents_only = source_is_folder && (local == "." || local.ends_with("/."));
        let (into, name) = if is_folder {
            let name = if contents_only { PathBuf::new() } else { base_name(local_path)? };
            (folder, name)
        } else {
            if exists && source_is_folder {
                bail!("cannot copy directory {local} onto the file {container}:{path}");
            }
            if path.ends_with('/') && !source_is_folder {
                bail!("no such directory: {container}:{path}");
            }
            split(&folder)
        };
        let source = Source {
            path: local_path.to_owned(),
            name,
            follow: self.follow_link || local.ends_with('/') || contents_only,
            keep_owner: self.archive,
        };
        if let Some(file) = pack::large_file(&source)?
            && client.put_file(container, &into, &file).await?
        {
            self.report(file.beginning.len() as u64 + file.size, &format!("{container}:{path}"));
            return Ok(());
        }
        let (counter, counted) = std::sync::mpsc::channel();
        let upload = Upload::write(move |sink| {
            let mut counting = Counting { sink, bytes: 0 };
            let result = pack::pack(&source, &mut counting);
            // Nobody counts when the request has failed.
            let _ = counter.send(counting.bytes);
            result
        });
        client.put_archive(container, &into, upload, false).await?;
        self.report(counted.try_recv().unwrap_or(0), &format!("{container}:{path}"));
        Ok(())
    }

    /// The path, links at its end followed, and what is there.
    async fn container_target(
        &self,
        client: &Client,
        container: &str,
        path: &str,
    ) -> anyhow::Result<(String, Option<PathStat>)> {
        let mut path = path.to_owned();
        // As many links as the kernel follows.
        for _ in 0..40 {
            match client.stat_path(container, &path).await {
                Ok(stat) if stat.mode & SYMLINK != 0 => path = link_target(&path, &stat),
                Ok(stat) => return Ok((path, Some(stat))),
                Err(error) if error.status() == Some(404) => {
                    // The container itself may be what is missing.
                    client.inspect_container(container).await?;
                    return Ok((path, None));
                }
                Err(error) => return Err(error.into()),
            }
        }
        bail!("{container}:{path} leads through too many symbolic links")
    }

    fn report(&self, bytes: u64, target: &str) {
        // For who looks on: a script sees the exit code.
        if !self.quiet && std::io::stderr().is_terminal() {
            printer::error(&format!(
                "Successfully copied {} to {target}",
                insula_base::format_decimal(bytes)
            ));
        }
    }
}

fn rooted(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

fn link_target(path: &str, stat: &PathStat) -> String {
    if stat.link_target.starts_with('/') {
        return stat.link_target.clone();
    }
    let (parent, _) = split(path);
    format!("{}/{}", parent.trim_end_matches('/'), stat.link_target)
}

/// Parent and last component of a path in a container.
fn split(path: &str) -> (String, PathBuf) {
    let trimmed = path.trim_end_matches('/');
    match trimmed.rsplit_once('/') {
        Some(("", name)) => ("/".to_owned(), name.into()),
        Some((parent, name)) => (parent.to_owned(), name.into()),
        None => ("/".to_owned(), trimmed.into()),
    }
}

fn base_name(path: &Path) -> anyhow::Result<PathBuf> {
    let named = match path.file_name() {
        Some(name) => Some(name.into()),
        None => path.canonicalize()?.file_name().map(PathBuf::from),
    };
    named.with_context(|| format!("{} has no name of its own: copy {}/.", path.display(), path.display()))
}

/// Where a stream from a container goes.
fn local_target(local: &str, name: &str, is_folder: bool, contents_only: bool) -> anyhow::Result<Target> {
    let path = Path::new(local);
    let strip = (name != "/").then(|| name.into());
    let open = |folder: &Path| std::fs::File::open(folder).with_context(|| folder.display().to_string());
    match path.metadata() {
        Ok(metadata) if metadata.is_dir() => {
            let keep = !(contents_only && is_folder) && name != "/";
            let name = if keep { PathBuf::from(name) } else { PathBuf::new() };
            Ok(Target { folder: open(path)?.into(), strip, name, archive: false })
        }
        Ok(_) if is_folder => bail!("cannot copy directory onto the file {local}"),
        Ok(_) => in_parent(path, strip),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if local.ends_with('/') && !is_folder {
                bail!("no such directory: {local}");
            }
            in_parent(path, strip)
        }
        Err(error) => Err(error).with_context(|| local.to_owned()),
    }
}

fn in_parent(path: &Path, strip: Option<std::ffi::OsString>) -> anyhow::Result<Target> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let folder = std::fs::File::open(parent).with_context(|| parent.display().to_string())?;
    Ok(Target { folder: folder.into(), strip, name: base_name(path)?, archive: false })
}

/// The pieces of an answer as one stream.
struct Pieces {
    receiver: mpsc::Receiver<Bytes>,
    rest: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.rest = piece,
                None => return Ok(0),
            }
        }
        let count = self.rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.rest.split_to(count));
        Ok(count)
    }
}

/// Counts what is written.
struct Counting<'a> {
    sink: &'a mut dyn io::Write,
    bytes: u64,
}

impl io::Write for Counting<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.sink.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides() {
        assert!(matches!(Side::parse("web:/etc"), Side::Container("web", "/etc")));
        for local in ["/a:b", "./a:b", "plain", "-", ":x"] {
            assert!(matches!(Side::parse(local), Side::Local(_)), "{local}");
        }
    }

    #[test]
    fn targets_on_the_host() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(folder.path().join("file"), "").unwrap();
        let name = |local: &str, is_folder, contents| {
            local_target(local, "src", is_folder, contents)
                .map(|target| target.name.to_str().unwrap().to_owned())
        };
        assert_eq!(name(&at("."), false, false).unwrap(), "src");
        assert_eq!(name(&at("."), true, true).unwrap(), "");
        assert_eq!(name(&at("file"), false, false).unwrap(), "file");
        assert_eq!(name(&at("new"), true, false).unwrap(), "new");
        assert!(name(&at("file"), true, false).is_err());
        assert!(name(&at("new/"), false, false).is_err());
        assert!(name(&at("no/new"), false, false).is_err());
    }

    #[test]
    fn paths_in_containers() {
        assert_eq!(split("/a/b/"), ("/a".to_owned(), "b".into()));
        assert_eq!(split("/a"), ("/".to_owned(), "a".into()));
        let link = |target: &str| PathStat { link_target: target.to_owned(), ..PathStat::default() };
        assert_eq!(link_target("/a/b", &link("c")), "/a/c");
        assert_eq!(link_target("/a/b", &link("/c")), "/c");
    }
}
