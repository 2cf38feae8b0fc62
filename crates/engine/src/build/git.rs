//! Repositories that `ADD` names or that are contexts, with the host's git.
//!
//! What is fetched is a stranger's. Git keeps it in a folder of its own and writes no working tree: files come out as an
//! archive and are unpacked as every archive is. No configuration of the host or of its users is read, no hook and no
//! filter runs, no address leads to this host's files or to a program, and there is nobody to be asked for a password.

use std::fs::File;
use std::io::BufReader;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use insula_build::GitReference;
use insula_store::layers::{Limits, Whiteouts, unpack};
use tokio::process::Command;

use crate::tree::{Last, Tree};
use crate::{Error, Result, transfer};

/// Repositories in repositories, and all of them together.
const DEPTH_MAX: usize = 8;
const MODULES_MAX: usize = 64;
/// Bytes that all of one `ADD` may be as git keeps them.
const BYTES_MAX: u64 = 16 << 30;
/// How often that is looked at, and how long one step may take.
const LOOK: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(60 * 60);
/// Signs of a commit's name that are enough.
const SHORTEST: usize = 7;

/// The files, below what is fetched for one `ADD`.
pub(super) const FILES: &str = "files";

/// Settings that a repository cannot change.
const SETTINGS: [&str; 8] = [
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.attributesFile=/dev/null",
    "protocol.allow=never",
    "protocol.https.allow=always",
    "protocol.http.allow=always",
    "protocol.git.allow=always",
    "tar.umask=0022",
];

/// What is asked for beside a reference.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    /// The commit that it has to be.
    pub(super) checksum: Option<&'a str>,
    /// Keep what git knows as `.git`.
    pub(super) keep: bool,
}

/// What was fetched.
#[derive(Debug)]
pub(super) struct Repo {
    pub(super) reference: GitReference,
    pub(super) commit: String,
}

/// Makes a folder and puts the files of a repository, and of those in it, below its [`FILES`].
pub(super) async fn fetch(source: &str, folder: &Path, wanted: Wanted<'_>) -> Result<Repo> {
    let fail = |why: String| Error::InvalidArgument(format!("{source}: {why}"));
    let reference = GitReference::parse(source).map_err(fail)?;
    if let Some(checksum) = wanted.checksum {
        let hex = checksum.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !hex || !(SHORTEST..=64).contains(&checksum.len()) {
            return Err(fail(format!("--checksum={checksum} is no commit")));
        }
    }
    let files = folder.join(FILES);
    for path in [folder, &files] {
        std::fs::DirBuilder::new().mode(0o755).create(path).map_err(|e| Error::io("mkdir", path, e))?;
    }
    let mut left = vec![Module { reference: reference.clone(), at: PathBuf::new(), depth: 0 }];
    let (mut count, mut kept, mut top) = (0, Vec::new(), String::new());
    while let Some(module) = left.pop() {
        count += 1;
        if count > MODULES_MAX || module.depth > DEPTH_MAX {
            return Err(fail(format!(
                "it has more than {MODULES_MAX} repositories, or more than {DEPTH_MAX} in one another"
            )));
        }
        let place = below(&files, &module.at)?;
        // Apart from the files, which are not git's to be read.
        let repository = Repository { folder: folder.join(format!("git-{count}")), all: folder };
        let commit = repository.get(&module.reference).await.map_err(fail)?;
        if module.depth == 0
            && let Some(checksum) =
                wanted.checksum.filter(|wanted| !commit.starts_with(wanted.to_lowercase().as_str()))
        {
            return Err(fail(format!("the commit is {commit}, {checksum} is expected")));
        }
        if module.depth == 0 {
            top.clone_from(&commit);
        }
        repository.unpack(&commit, &place).await?;
        let modules = repository.modules(&commit, &module).await.map_err(fail)?;
        left.extend(modules);
        if wanted.keep {
            kept.push((repository.folder.clone(), place.join(".git")));
            repository.settle(&commit).await.map_err(fail)?;
        }
    }
    for (from, to) in kept {
        std::fs::rename(from, &to).map_err(|e| Error::io("rename git's folder to", &to, e))?;
    }
    Ok(Repo { reference, commit: top })
}

/// A repository in another.
struct Module {
    reference: GitReference,
    /// Below the first one's root.
    at: PathBuf,
    depth: usize,
}

/// A folder of what was unpacked, to which no link leads.
pub(super) fn below(root: &Path, at: &Path) -> Result<PathBuf> {
    if at.as_os_str().is_empty() {
        return Ok(root.to_owned());
    }
    let place = Tree::running(root, 0)?.resolve(&Path::new("/").join(at), Last::Keep)?;
    match place.dir() {
        Some(_) if place.path == Path::new("/").join(at) => Ok(root.join(at)),
        _ => Err(Error::InvalidArgument(format!("{} is no folder of the repository", at.display()))),
    }
}

struct Repository<'a> {
    folder: PathBuf,
    /// Everything that is fetched for one `ADD`.
    all: &'a Path,
}

impl Repository<'_> {
    /// Makes the repository and fetches what is meant; returns its commit.
    async fn get(&self, wanted: &GitReference) -> Result<String, String> {
        self.git(&["init", "--quiet", "--bare", "--template="]).await?;
        self.git(&["remote", "add", "origin", &wanted.url]).await?;
        // Attributes of the repository's own would leave files out, change them, or run programs.
        let attributes = "* -export-ignore -export-subst -filter\n";
        let info = self.folder.join("info");
        std::fs::create_dir_all(&info)
            .and_then(|()| std::fs::write(info.join("attributes"), attributes))
            .map_err(|error| format!("write {}: {error}", info.display()))?;
        let name = match wanted.reference.as_str() {
            "" => "HEAD",
            name => name,
        };
        let shallow = ["fetch", "--quiet", "--no-tags", "--depth=1", "--", "origin", name];
        let commit = match self.git(&shallow).await {
            Ok(_) => "FETCH_HEAD".to_owned(),
            // Some servers give no single commits, and some nothing but everything.
            Err(first) => {
                let refs = ["+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*"];
                let head = (name == "HEAD").then_some("+HEAD:refs/remotes/origin/HEAD");
                let mut everything = vec!["fetch", "--quiet", "--no-tags", "--", "origin"];
                everything.extend(refs.into_iter().chain(head));
                self.git(&everything).await.map_err(|_| first.clone())?;
                self.known(name).await.ok_or(first)?
            }
        };
        let commit = format!("{commit}^{{commit}}");
        let found = self.git(&["rev-parse", "--verify", &commit]).await?;
        Ok(found.trim().to_owned())
    }

    /// What a name means among everything that was fetched.
    async fn known(&self, name: &str) -> Option<String> {
        for prefix in ["refs/remotes/origin/", "refs/tags/", ""] {
            let full = format!("{prefix}{name}");
            let commit = format!("{full}^{{commit}}");
            if self.git(&["rev-parse", "--verify", "--quiet", &commit]).await.is_ok() {
                return Some(full);
            }
        }
        None
    }

    async fn unpack(&self, commit: &str, place: &Path) -> Result<()> {
        let archive = self.folder.join("insula.tar");
        let fail = |error| Error::io("write", &archive, error);
        let file = File::create_new(&archive).map_err(fail)?;
        let mut command = self.command(&["archive", "--format=tar", commit]);
        command.stdout(file);
        self.run(command).await.map_err(Error::InvalidArgument)?;
        let place = place.to_owned();
        let from = archive.clone();
        transfer(move || {
            let source = File::open(&from).map_err(|e| Error::io("open", &from, e))?;
            let root = File::open(&place).map_err(|e| Error::io("open", &place, e))?;
            unpack(BufReader::new(source), root.as_fd(), &Limits::default(), Whiteouts::Ordinary)?;
            std::fs::remove_file(&from).map_err(|e| Error::io("remove", &from, e))
        })
        .await
    }

    /// The repositories that are in it.
    async fn modules(&self, commit: &str, parent: &Module) -> Result<Vec<Module>, String> {
        let listed = self.git(&["ls-tree", "-r", "-z", commit]).await?;
        let links: Vec<(&str, &str)> = listed
            .split('\0')
            .filter_map(|line| line.strip_prefix("160000 commit ")?.split_once('\t'))
            .collect();
        if links.is_empty() {
            return Ok(Vec::new());
        }
        let blob = format!("{commit}:.gitmodules");
        let settings = self
            .git(&["config", "--blob", &blob, "-z", "--get-regexp", r"^submodule\..*\.(path|url)$"])
            .await;
        // Without that file they are folders with nothing in them, as for git.
        let Ok(settings) = settings else { return Ok(Vec::new()) };
        let settings: Vec<(&str, &str)> =
            settings.split('\0').filter_map(|entry| entry.split_once('\n')).collect();
        let mut modules = Vec::new();
        for (object, path) in links {
            let mut names = settings
                .iter()
                .filter_map(|(key, value)| key.strip_suffix(".path").filter(|_| *value == path));
            let Some(name) = names.next() else { continue };
            let key = format!("{name}.url");
            let Some((_, url)) = settings.iter().find(|(known, _)| *known == key) else { continue };
            let reference = GitReference {
                url: parent.reference.submodule(url)?,
                reference: object.to_owned(),
                folder: String::new(),
            };
            modules.push(Module { reference, at: parent.at.join(path), depth: parent.depth + 1 });
        }
        Ok(modules)
    }

    /// Leaves a repository that people expect to find beside its files.
    async fn settle(&self, commit: &str) -> Result<(), String> {
        self.git(&["update-ref", "--no-deref", "HEAD", commit]).await?;
        self.git(&["read-tree", "HEAD"]).await?;
        self.git(&["config", "core.bare", "false"]).await?;
        for name in ["FETCH_HEAD", "info/attributes"] {
            let path = self.folder.join(name);
            std::fs::remove_file(&path).map_err(|error| format!("remove {}: {error}", path.display()))?;
        }
        Ok(())
    }

    async fn git(&self, arguments: &[&str]) -> Result<String, String> {
        let output = self.run(self.command(arguments)).await?;
        String::from_utf8(output.stdout).map_err(|_| "git told something that is no text".to_owned())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("git");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let certificates = ["SSL_CERT_FILE", "SSL_CERT_DIR", "http_proxy", "https_proxy", "no_proxy"];
        let kept = certificates.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
        command.env_clear().envs(kept).env("PATH", path).env("HOME", "/nonexistent").env("LC_ALL", "C");
        command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null");
        command.env("GIT_ATTR_NOSYSTEM", "1").env("GIT_TERMINAL_PROMPT", "0").env("GIT_ASKPASS", "true");
        command.env("GIT_ALLOW_PROTOCOL", "https:http:git").env("GIT_DIR", &self.folder);
        for setting in SETTINGS {
            command.args(["-c", setting]);
        }
        command.args(arguments).current_dir(self.all).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Waits for a program while it takes neither too long nor too much.
    async fn run(&self, mut command: Command) -> Result<Output, String> {
        let child = command.spawn().map_err(|error| format!("start git, which this needs: {error}"))?;
        let done = child.wait_with_output();
        tokio::pin!(done);
        let looking = async {
            loop {
                tokio::time::sleep(LOOK).await;
                let all = self.all.to_owned();
                let size = tokio::task::spawn_blocking(move || size_of(&all)).await.unwrap_or_default();
                if size > BYTES_MAX {
                    return format!("it is larger than {BYTES_MAX} bytes");
                }
            }
        };
        let output = tokio::select! {
            output = &mut done => output.map_err(|error| format!("wait for git: {error}"))?,
            why = looking => return Err(why),
            () = tokio::time::sleep(PATIENCE) => return Err("git takes too long".to_owned()),
        };
        if output.status.success() {
            return Ok(output);
        }
        let told = String::from_utf8_lossy(&output.stderr);
        // The last line says why; those before it are what the other side likes to say.
        let why = told.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("git failed");
        Err(why.chars().filter(|sign| !sign.is_control()).take(512).collect())
    }
}

/// Bytes of all files below a folder; what goes away meanwhile is none.
fn size_of(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let metadata = entry.metadata().ok()?;
            Some(if metadata.is_dir() { size_of(&entry.path()) } else { metadata.len() })
        })
        .sum()
}
