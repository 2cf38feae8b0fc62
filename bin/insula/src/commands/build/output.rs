//! `--output`: what becomes of a build.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use insula_base::thread;
use insula_client::BuildOutput;
use tokio::sync::mpsc;

use crate::commands::save::{Filling, Target};
use crate::copy::unpack;

/// Pieces that wait to be unpacked.
const WAITING: usize = 16;

/// Where the result goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Output {
    /// Among the daemon's images, under more names; pushed from there.
    Image { names: Vec<String>, push: bool },
    /// A file, or standard output: an archive of the image, or of its files.
    File { what: BuildOutput, path: Option<PathBuf> },
    /// The image's files in a folder.
    Folder(PathBuf),
}

impl Default for Output {
    fn default() -> Self {
        Self::Image { names: Vec::new(), push: false }
    }
}

/// `type=TYPE[,KEY=VALUE…]`, or a folder, or `-`.
pub(super) fn read(text: &str) -> anyhow::Result<Output> {
    if text == "-" {
        return Ok(Output::File { what: BuildOutput::Files, path: None });
    }
    if !text.contains('=') {
        return Ok(Output::Folder(PathBuf::from(text)));
    }
    let (mut kind, mut dest, mut names, mut push) = ("", None, Vec::new(), false);
    for field in text.split(',') {
        let (key, value) = field
            .split_once('=')
            .with_context(|| format!("invalid field {field:?} of --output {text}: KEY=VALUE is expected"))?;
        match key.trim().to_ascii_lowercase().as_str() {
            "type" => kind = value,
            "dest" => dest = Some(value),
            "name" => names.push(value.to_owned()),
            "push" => push = switch(key, value)?,
            // Archives are one file here.
            "tar" if switch(key, value)? => {}
            key => bail!(
                "--output {text}: {key} is not supported in this version: type, dest, name and push are expected"
            ),
        }
    }
    let images = |push| {
        if dest.is_some() {
            bail!("--output {text}: dest does not go with this type");
        }
        Ok(Output::Image { names: names.clone(), push })
    };
    if (push || !names.is_empty()) && !matches!(kind, "image" | "registry") {
        bail!("--output {text}: name and push go with type=image: use --tag");
    }
    let file = |what| Output::File { what, path: dest.filter(|dest| *dest != "-").map(PathBuf::from) };
    match kind {
        "image" => images(push),
        "registry" => images(true),
        "docker" if dest.is_none() => images(false),
        "docker" | "oci" => Ok(file(BuildOutput::Archive)),
        "tar" => Ok(file(BuildOutput::Files)),
        "local" => match dest {
            Some("-") => bail!("--output {text}: a folder cannot go to standard output: use type=tar"),
            Some(dest) => Ok(Output::Folder(PathBuf::from(dest))),
            None => bail!("--output {text}: dest is required for type=local"),
        },
        "" => bail!("--output {text}: type is required"),
        other => {
            bail!("unsupported output type {other:?}: image, registry, oci, docker, tar or local is expected")
        }
    }
}

fn switch(key: &str, value: &str) -> anyhow::Result<bool> {
    match value {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => bail!("--output: {key}={value} is neither true nor false"),
    }
}

impl Output {
    pub(super) fn asked(&self) -> BuildOutput {
        match self {
            Self::Image { .. } => BuildOutput::Image,
            Self::File { what, .. } => *what,
            Self::Folder(_) => BuildOutput::Files,
        }
    }

    /// Progress would get in between.
    pub(super) fn takes_standard_output(&self) -> bool {
        matches!(self, Self::File { path: None, .. })
    }

    /// Before anything is sent: what is wrong with the place.
    pub(super) fn open(&self) -> anyhow::Result<Option<Receiver>> {
        match self {
            Self::Image { .. } => Ok(None),
            Self::File { path: None, .. } if std::io::stdout().is_terminal() => {
                bail!("dest file is required for this output: standard output is a terminal")
            }
            Self::File { path, .. } => {
                Ok(Some(Receiver::File(Box::new(Target::new(path.as_deref())?.begin()?))))
            }
            Self::Folder(path) => Ok(Some(Receiver::Folder(Unpacking::begin(path)?))),
        }
    }
}

/// A folder that an archive is unpacked into, if there is to be one.
pub(super) fn folder(path: Option<&Path>) -> anyhow::Result<Option<Receiver>> {
    path.map(|path| Ok(Receiver::Folder(Unpacking::begin(path)?))).transpose()
}

/// Who takes what comes beside progress.
#[derive(Default)]
pub(super) struct Receivers {
    pub(super) output: Option<Receiver>,
    pub(super) cache: Option<Receiver>,
}

/// Takes an output as it comes.
pub(super) enum Receiver {
    File(Box<Filling>),
    Folder(Unpacking),
}

impl Receiver {
    pub(super) async fn take(&mut self, bytes: Bytes) -> anyhow::Result<()> {
        match self {
            Self::File(file) => file.write(&bytes),
            // A thread that ended says why at the end.
            Self::Folder(folder) => {
                let _ = folder.pieces.send(bytes).await;
                Ok(())
            }
        }
    }

    /// Everything came.
    pub(super) fn finish(self) -> anyhow::Result<()> {
        match self {
            Self::File(file) => file.finish(),
            Self::Folder(Unpacking { pieces, thread }) => {
                drop(pieces);
                thread.join().unwrap_or_else(|_| bail!("the thread that unpacks ended"))
            }
        }
    }
}

/// A thread that unpacks an archive into a folder.
pub(super) struct Unpacking {
    pieces: mpsc::Sender<Bytes>,
    thread: JoinHandle<anyhow::Result<()>>,
}

impl Unpacking {
    fn begin(path: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(path).with_context(|| format!("make the folder {}", path.display()))?;
        let folder = std::fs::File::open(path).with_context(|| path.display().to_string())?;
        let target =
            unpack::Target { folder: folder.into(), strip: None, name: PathBuf::new(), archive: false };
        let (pieces, receiver) = mpsc::channel(WAITING);
        let thread = thread::spawn("unpack", move || {
            let mut source = Pieces { receiver, rest: Bytes::new() };
            unpack::unpack(&mut source, &target)?;
            // What comes behind the archive's end.
            std::io::copy(&mut source, &mut std::io::sink())?;
            Ok(())
        })?;
        Ok(Self { pieces, thread })
    }
}

struct Pieces {
    receiver: mpsc::Receiver<Bytes>,
    rest: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        while self.rest.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.rest = piece,
                None => return Ok(0),
            }
        }
        let count = self.rest.len().min(into.len());
        into[..count].copy_from_slice(&self.rest.split_to(count));
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_told_by_their_type() {
        let file = |what, path: Option<&str>| Output::File { what, path: path.map(PathBuf::from) };
        assert_eq!(read("out").unwrap(), Output::Folder("out".into()));
        assert_eq!(read("type=local,dest=a").unwrap(), Output::Folder("a".into()));
        assert_eq!(read("-").unwrap(), file(BuildOutput::Files, None));
        assert_eq!(read("type=tar,dest=-").unwrap(), file(BuildOutput::Files, None));
        assert_eq!(read("type=oci,dest=a.tar").unwrap(), file(BuildOutput::Archive, Some("a.tar")));
        assert_eq!(read("type=docker,dest=a.tar").unwrap(), file(BuildOutput::Archive, Some("a.tar")));
        assert_eq!(read("type=docker").unwrap(), Output::default());
        let pushed = Output::Image { names: vec!["a".to_owned()], push: true };
        assert_eq!(read("type=image,name=a,push=true").unwrap(), pushed);
        assert_eq!(read("type=registry,name=a").unwrap(), pushed);
        for wrong in [
            "type=local",
            "type=local,dest=-",
            "dest=a",
            "type=x",
            "type=image,dest=a",
            "type=tar,name=a",
            "type=oci,compression=zstd",
            "type=image,push=maybe",
            "type=tar,x",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
