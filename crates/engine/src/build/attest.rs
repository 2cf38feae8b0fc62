//! What is said about the image that a build made: where it came from, and what is in it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use insula_base::{DiffId, Digest};
use insula_build::attest::{
    Bom, Detail, Distribution, Material, Package, PackageFile, Provenance, Subject, image_url, package_file,
    statement,
};
use insula_spec::reference::Reference;
use insula_store::{Attested, Composed, Image, Statement};

use super::cache::locked;
use super::stage::Built;
use super::{Building, base};
use crate::images::{compress, fill};
use crate::tree::{Dir, Last, Tree};
use crate::{Error, Result, blocking};

/// Folders in folders; what is deeper is not looked into.
const DEPTH_MAX: usize = 64;
/// Bytes of one file that lists packages, and of a program's own description.
const LIST_MAX: u64 = 32 << 20;
const DESCRIPTION_MAX: u64 = 1 << 20;
/// More would be no image but an attack.
const PACKAGES_MAX: usize = 64 << 10;
/// Bytes of all that is said of them.
const SAID_MAX: usize = 32 << 20;
/// The same of lists that cannot be read.
const LEFT_OUT_MAX: usize = 1 << 10;
/// Where packages are that nothing here can read.
const UNREAD: [&str; 3] =
    ["/var/lib/rpm/rpmdb.sqlite", "/usr/lib/sysimage/rpm/rpmdb.sqlite", "/var/lib/rpm/Packages"];
/// Folders that are the kernel's.
const KERNEL: [&str; 3] = ["/dev", "/proc", "/sys"];
const PIECE: usize = 256 << 10;

/// What is to be said about an image; nothing if nobody asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attestations {
    pub provenance: Option<Detail>,
    /// Who builds, as whoever asks says.
    pub builder: String,
    /// A list of parts.
    pub parts: bool,
}

impl Attestations {
    /// Nothing is asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.provenance.is_none() && !self.parts
    }
}

/// What came from elsewhere while a build ran, and what it began with.
#[derive(Debug)]
pub(super) struct Sources {
    started: jiff::Timestamp,
    /// The context, if it was fetched.
    pub(super) context: Option<Material>,
    found: std::sync::Mutex<BTreeSet<Material>>,
}

impl Sources {
    pub(super) fn new(started: jiff::Timestamp, fetched: Vec<Material>, context: Option<Material>) -> Self {
        let found = fetched.into_iter().chain(context.clone()).collect();
        Self { started, context, found: std::sync::Mutex::new(found) }
    }

    pub(super) fn add(&self, material: Material) {
        locked(&self.found).insert(material);
    }

    /// An image that files were taken of.
    pub(super) fn add_image(&self, name: &str, image: &Image) {
        let parsed = Reference::parse(name).ok();
        // As the registry knows it, or else as it is here.
        let of_it = |other: &&Reference| parsed.as_ref().is_some_and(|name| other.name() == name.name());
        let pulled = image.references.iter().filter(of_it).find_map(Reference::digest);
        let asked = parsed.as_ref().and_then(Reference::digest);
        let digest = asked.or(pulled).or(image.manifest.as_ref()).unwrap_or(&image.id);
        let platform = platform(&image.config);
        let name = parsed.as_ref().map_or_else(|| name.to_owned(), Reference::familiar);
        self.add(Material {
            uri: image_url(&name, &platform, None),
            digest: [("sha256".to_owned(), digest.hex().to_owned())].into(),
        });
    }
}

fn platform(config: &insula_spec::image::ImageConfig) -> String {
    let parts = [Some(config.os.as_str()), Some(config.architecture.as_str()), config.variant.as_deref()];
    parts.into_iter().flatten().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
}

impl Building {
    /// The image with what was asked to be said about it; `None` if nothing was.
    pub(super) async fn attested(
        self: &Arc<Self>,
        built: &Arc<Built>,
        composed: &Composed,
    ) -> Result<Option<Attested>> {
        if self.request.attestations.is_empty() {
            return Ok(None);
        }
        let (this, built, composed) = (self.clone(), built.clone(), composed.clone());
        self.report.line("Writing attestations\n".to_owned()).await;
        blocking(move || {
            let images = this.engine.store().images();
            for layer in &built.layers {
                this.keep_compressed(&layer.diff_id)?;
            }
            let mut subject = Subject {
                names: composed.references.iter().map(Reference::familiar).collect(),
                platform: platform(&composed.config),
                sha256: String::new(),
            };
            let described = images.describe(&built.layers, composed)?;
            subject.sha256 = described.subject.digest.hex().to_owned();
            let mut statements = Vec::new();
            if this.request.attestations.parts {
                let bom = this.bom(&built)?;
                let bytes = statement(Bom::PREDICATE_TYPE, &subject, &bom.predicate(&subject));
                statements.push(Statement { predicate_type: Bom::PREDICATE_TYPE.to_owned(), bytes });
            }
            if let Some(detail) = this.request.attestations.provenance {
                let predicate = this.provenance(detail).predicate();
                let bytes = statement(Provenance::PREDICATE_TYPE, &subject, &predicate);
                statements.push(Statement { predicate_type: Provenance::PREDICATE_TYPE.to_owned(), bytes });
            }
            Ok(Some(described.attested(statements)?))
        })
        .await
    }

    /// What is said names the layers as they are pushed, so they are compressed before. Blocks.
    fn keep_compressed(&self, diff: &DiffId) -> Result<()> {
        let images = self.engine.store().images();
        if images.is_compressed(diff)? {
            return Ok(());
        }
        let (blob, file) = compress(self.engine.store(), diff, |_, _| {})?;
        let mut reader = file.reader();
        let mut next = || {
            let mut piece = vec![0; PIECE];
            let count = fill(&mut reader, &mut piece).map_err(insula_store::Error::Input)?;
            piece.truncate(count);
            Ok((count > 0).then(|| Bytes::from(piece)))
        };
        Ok(images.keep_compressed(diff, &blob, &mut next)?)
    }

    fn provenance(&self, detail: Detail) -> Provenance {
        let request = &self.request;
        // What came along under a name of its own is called what it always is.
        let along = request.dockerfile.starts_with(super::SENT_ALONG);
        let given = request.arguments.iter();
        let given = given.filter_map(|(name, value)| Some((name.clone(), value.clone()?)));
        Provenance {
            detail,
            builder: request.attestations.builder.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            invocation: insula_base::random_hex(32),
            started: self.sources.started.to_string(),
            finished: jiff::Timestamp::now().to_string(),
            source: self.sources.context.clone(),
            dockerfile: if along { "Dockerfile".to_owned() } else { request.dockerfile.clone() },
            text: STANDARD.encode(&self.text),
            platform: format!("linux/{}", base::architecture()),
            target: request.target.clone(),
            arguments: given.collect(),
            labels: request.labels.clone().into_iter().collect(),
            contexts: request.contexts.keys().cloned().collect(),
            secrets: request.secrets.keys().cloned().collect(),
            agents: request.agents.ids.clone(),
            materials: locked(&self.sources.found).clone(),
        }
    }

    /// Blocks.
    fn bom(&self, built: &Built) -> Result<Bom> {
        let tree = built.tree()?;
        let mut bom = Bom {
            distribution: distribution(&tree)?,
            created: self.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            tool: format!("insula-{}", env!("CARGO_PKG_VERSION")),
            ..Bom::default()
        };
        for path in UNREAD {
            if tree.resolve(Path::new(path), Last::Follow).is_ok_and(|place| place.entry.is_some()) {
                bom.left_out.push(format!("The packages in {path} are not listed."));
            }
        }
        let root = tree.resolve(Path::new("/"), Last::Follow)?;
        if let Some(dir) = root.dir() {
            Listing { tree: &tree, bom: &mut bom, said: 0 }.folder(dir, Path::new("/"), 0)?;
        }
        Ok(bom)
    }
}

fn distribution(tree: &Tree) -> Result<Distribution> {
    for path in ["/etc/os-release", "/usr/lib/os-release"] {
        let Ok(place) = tree.resolve(Path::new(path), Last::Follow) else { continue };
        if let Some(dir) = place.parent()
            && let Some(text) = text(dir, &place.name, &place.path, DESCRIPTION_MAX)?
        {
            return Ok(Distribution::parse(&text));
        }
    }
    Ok(Distribution::default())
}

/// Looks for what lists packages.
struct Listing<'a> {
    tree: &'a Tree,
    bom: &'a mut Bom,
    /// Bytes of what is said of packages so far.
    said: usize,
}

impl Listing<'_> {
    fn folder(&mut self, dir: &Dir, path: &Path, depth: usize) -> Result<()> {
        let fail = |error: rustix::io::Errno| Error::io("read the folder", path, error);
        if depth > DEPTH_MAX || KERNEL.iter().any(|kernel| path == Path::new(kernel)) {
            return Ok(());
        }
        for name in dir.names().map_err(fail)? {
            let at = path.join(&name);
            let Some(entry) = self.tree.look(dir, path, &name).map_err(fail)? else { continue };
            match &entry.dir {
                Some(inside) => self.folder(inside, &at, depth + 1)?,
                None => self.file(dir, &name, &at)?,
            }
        }
        Ok(())
    }

    fn file(&mut self, dir: &Dir, name: &OsStr, path: &Path) -> Result<()> {
        let Some(shown) = path.to_str() else { return Ok(()) };
        let Some(file) = package_file(shown) else { return Ok(()) };
        let most = match file {
            PackageFile::Dpkg | PackageFile::Apk => LIST_MAX,
            PackageFile::Python | PackageFile::Node => DESCRIPTION_MAX,
        };
        let Some(text) = text(dir, name, path, most)? else {
            if self.bom.left_out.len() == LEFT_OUT_MAX {
                return Err(Error::InvalidArgument(format!(
                    "the image has more than {LEFT_OUT_MAX} lists of packages that cannot be read"
                )));
            }
            self.bom.left_out.push(format!("{shown} is too large to be read, or no text."));
            return Ok(());
        };
        let room = PACKAGES_MAX + 1 - self.bom.packages.len();
        let packages = file.read(shown, &text, room);
        self.said += packages.iter().map(Package::said).sum::<usize>();
        self.bom.packages.extend(packages);
        let more = |what| Err(Error::InvalidArgument(format!("the image has more than {what}")));
        match self.said > SAID_MAX {
            true => more(format!("{} MiB of packages' descriptions", SAID_MAX >> 20)),
            false if self.bom.packages.len() > PACKAGES_MAX => more(format!("{PACKAGES_MAX} packages")),
            false => Ok(()),
        }
    }
}

/// The text of a regular file; `None` if it is none or too large.
fn text(dir: &Dir, name: &OsStr, path: &Path, most: u64) -> Result<Option<String>> {
    let fail = |error: std::io::Error| Error::io("read", path, error);
    debug_assert!(!name.as_bytes().contains(&b'/'));
    let Some(entry) = dir.lookup(name).map_err(|e| fail(e.into()))? else { return Ok(None) };
    let file = match dir.open(name, &entry) {
        Ok(file) => File::from(file),
        // A link, or a device.
        Err(rustix::io::Errno::NXIO | rustix::io::Errno::LOOP) => return Ok(None),
        Err(error) => return Err(fail(error.into())),
    };
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > most {
        return Ok(None);
    }
    Ok(String::from_utf8(bytes).ok())
}

/// What was downloaded or is a repository, without what may be secret in its address.
pub(super) fn fetched(address: &str, algorithm: &str, hex: &str) -> Material {
    let digest = BTreeMap::from([(algorithm.to_owned(), hex.to_owned())]);
    Material { uri: super::remote::shown(address), digest }
}

/// The same of a download.
pub(super) fn downloaded(address: &str, digest: &Digest) -> Material {
    fetched(address, "sha256", digest.hex())
}
