//! An image made from a root file system.

use std::io::{BufReader, Read};

use insula_base::thread;
use insula_spec::image::{History, ImageConfig, RootFs};

use super::contents::Found;
use super::gather::{Gathered, Source};
use super::stage::{Rest, stage};
use super::{Images, ImportOptions, Progress, builtin};
use crate::stream::{Compression, channel, pump};
use crate::{Error, Result, content};

const BUFFER: usize = 256 << 10;
/// What the one layer is called until it is in its place.
const LAYER: &str = "rootfs.tar";

/// Unpacks the file system and writes the documents of its image; nothing is in its place yet.
pub(super) fn import(
    input: impl Read + Send,
    images: &Images,
    options: ImportOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<(Found, Gathered)> {
    if let Some(reference) = options.reference.as_ref().filter(|reference| builtin::is_builtin(reference)) {
        return Err(Error::Builtin(reference.familiar()));
    }
    let staged = std::thread::scope(|scope| {
        let (sender, mut chunks) = channel();
        let reading = move || pump(BufReader::with_capacity(BUFFER, input), &sender, None);
        thread::scoped(scope, "read", reading).map_err(Error::Thread)?;
        if chunks.peek(1).map_err(Error::Input)?.is_empty() {
            return Err(Error::Archive("it is empty".to_owned()));
        }
        let mut bytes = 0;
        let mut next = || {
            let chunk = chunks.chunk(usize::MAX).map_err(Error::Input)?;
            if let Some(chunk) = &chunk {
                bytes += chunk.len() as u64;
                progress(Progress::Layer { id: "import".to_owned(), bytes, total: None });
            }
            Ok(chunk)
        };
        // The pump has taken compression off already.
        stage(&images.layers, &images.content, Compression::None, Rest::Read, &mut next)
    })?;
    let now = jiff::Timestamp::now().to_string();
    let config = ImageConfig {
        architecture: match options.architecture.as_str() {
            "" => builtin::architecture().to_owned(),
            given => given.to_owned(),
        },
        comment: (!options.message.is_empty()).then(|| options.message.clone()),
        config: options.config,
        created: Some(now.clone()),
        history: vec![History { created: Some(now), comment: options.message, ..History::default() }],
        os: "linux".to_owned(),
        rootfs: RootFs { diff_ids: vec![staged.diff.clone()], ..RootFs::default() },
        ..ImageConfig::default()
    };
    let config_bytes =
        serde_json::to_vec(&config).map_err(|_| Error::Defect("a configuration is always JSON"))?;
    let found = Found {
        index: None,
        id: content::digest(&config_bytes),
        config,
        config_bytes,
        manifest: None,
        layers: vec![(LAYER.to_owned(), None)],
        references: options.reference.into_iter().collect(),
        places: Vec::new(),
    };
    let mut gathered = Gathered::default();
    gathered.layers.insert(LAYER.to_owned(), Ok(Source::Staged(staged)));
    Ok((found, gathered))
}
