//! Contexts that nobody sends: a repository, an archive, or a file at an address.

use std::fs::File;
use std::io::{BufReader, Seek};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use insula_build::GitReference;
use insula_build::attest::Material;
use insula_store::Scratch;

use super::add::Downloaded;
use super::named::{Folders, NamedContext};
use super::report::Report;
use super::{BuildRequest, Context, add, attest, git, take_in};
use crate::{Engine, Error, Result, blocking};

/// What a file is called whose address does not say it; a Dockerfile, too, whatever it says.
const FILE: &str = "context";
const DOCKERFILE: &str = "Dockerfile";
/// An argument that has git's folder stay beside a context's files.
const KEEP_GIT: &str = "BUILDKIT_CONTEXT_KEEP_GIT_DIR";

/// What was at an address.
struct Found {
    scratch: Scratch,
    /// The files, in it.
    files: PathBuf,
    /// What it is, if it is one file.
    file: Option<String>,
    material: Material,
}

impl Engine {
    /// The context at the request's address. A file is the Dockerfile, and the only one.
    pub(super) async fn fetched_context(
        &self,
        request: &mut BuildRequest,
        report: &Report,
    ) -> Result<(Context, Material)> {
        let keep = request.arguments.get(KEEP_GIT).cloned().flatten();
        let keep = matches!(keep.as_deref(), Some("1" | "true"));
        report.line(format!("Fetching the context {}\n", shown(&request.remote))).await;
        let found = Box::pin(self.fetch_folder(&request.remote, keep)).await?;
        if let Some(name) = &found.file {
            let (from, to) = (found.files.join(name), found.files.join(DOCKERFILE));
            std::fs::rename(&from, &to).map_err(|e| Error::io("rename", &from, e))?;
            DOCKERFILE.clone_into(&mut request.dockerfile);
        }
        Ok((Context::Sent { folder: found.files, _scratch: found.scratch }, found.material))
    }

    /// Fetches the named contexts that are elsewhere; returns what they are.
    pub(super) async fn fetch_folders(
        &self,
        request: &BuildRequest,
        folders: &mut Folders,
        report: &Report,
    ) -> Result<Vec<Material>> {
        let mut materials = Vec::new();
        for (name, context) in &request.contexts {
            let NamedContext::Remote(address) = context else { continue };
            report.line(format!("Fetching the build context {name} from {}\n", shown(address))).await;
            let found = Box::pin(self.fetch_folder(address, false)).await?;
            folders.add(name, (found.scratch, found.files));
            materials.push(found.material);
        }
        Ok(materials)
    }

    async fn fetch_folder(&self, address: &str, keep_git: bool) -> Result<Found> {
        let store = self.store().clone();
        let scratch = blocking(move || Ok(store.images().scratch()?)).await?;
        let folder = scratch.path().join("fetched");
        let address = full(address);
        if GitReference::is_one(&address) {
            let wanted = git::Wanted { checksum: None, keep: keep_git };
            let found = git::fetch(&address, &folder, wanted).await?;
            let material = attest::fetched(&address, "gitCommit", &found.commit);
            let inside = Path::new(&found.reference.folder);
            let files = git::below(&folder.join(git::FILES), inside.strip_prefix("/").unwrap_or(inside))?;
            return Ok(Found { scratch, files, file: None, material });
        }
        let download = add::download(self.images(), &address, &folder, None, Some(FILE));
        let Downloaded { name, digest } = Box::pin(download).await?;
        let material = attest::downloaded(&address, &digest);
        blocking(move || {
            let path = folder.join(&name);
            let fail = |error| Error::io("read", &path, error);
            let mut file = File::open(&path).map_err(fail)?;
            if !add::is_archive(&file)? {
                return Ok(Found { scratch, files: folder, file: Some(name), material });
            }
            file.rewind().map_err(fail)?;
            let files = scratch.path().join("files");
            let made = std::fs::DirBuilder::new().mode(0o755).create(&files);
            made.map_err(|e| Error::io("mkdir", &files, e))?;
            take_in(BufReader::new(file), &files)?;
            std::fs::remove_file(&path).map_err(|e| Error::io("unlink", &path, e))?;
            Ok(Found { scratch, files, file: None, material })
        })
        .await
    }
}

/// `github.com/…` is a repository, as for Docker.
fn full(address: &str) -> String {
    match address.strip_prefix("github.com/") {
        Some(path) => {
            let (path, fragment) =
                path.split_once('#').map_or((path, None), |(path, rest)| (path, Some(rest)));
            let end = if path.ends_with(".git") { "" } else { ".git" };
            let fragment = fragment.map(|text| format!("#{text}")).unwrap_or_default();
            format!("https://github.com/{path}{end}{fragment}")
        }
        None => address.to_owned(),
    }
}

/// Without what may be a password, or a token in the query.
pub(super) fn shown(address: &str) -> String {
    let address = address.split('?').next().unwrap_or_default();
    match address.split_once("://") {
        Some((scheme, rest)) => {
            let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
            let host = host.rsplit('@').next().unwrap_or_default();
            format!("{scheme}://{host}/{path}")
        }
        None => address.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_completed_and_shown_without_secrets() {
        assert_eq!(full("github.com/a/b#main:sub"), "https://github.com/a/b.git#main:sub");
        assert_eq!(full("github.com/a/b.git"), "https://github.com/a/b.git");
        assert_eq!(full("https://x/a.tar"), "https://x/a.tar");
        assert_eq!(shown("https://me:secret@host/a.tar?token=1"), "https://host/a.tar");
        assert_eq!(shown("git://host/a.git#main"), "git://host/a.git#main");
    }
}
