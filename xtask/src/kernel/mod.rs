//! A small kernel for guests from Debian's package of the kernel's source, with a configuration of ours and
//! without modules: docs/guest-kernel.md. It is kept by version and configuration, in a folder that
//! `insula kernel use` takes.

mod config;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};

/// The metapackage, which depends on the source of the release's kernel.
const METAPACKAGE: &str = "linux-source";
/// What a build needs, as scripts/require-packages takes it.
const TOOLS: [&str; 11] = [
    "gcc:gcc",
    "make:make",
    "flex:flex",
    "bison:bison",
    "bc:bc",
    "xz:xz-utils",
    "gzip:gzip",
    "strip:binutils",
    "cc:libelf-dev",
    "cc:libc6-dev",
    "dpkg-deb:dpkg",
];

/// What the user wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    jobs: usize,
}

pub(crate) fn options(arguments: &[&str]) -> anyhow::Result<Options> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    match arguments {
        [] => Ok(Options { jobs: processors }),
        ["--jobs", number] => match number.parse() {
            Ok(0) | Err(_) => bail!("--jobs {number}: a number from 1 on is wanted"),
            Ok(jobs) => Ok(Options { jobs }),
        },
        _ => bail!("unknown arguments {}", arguments.join(" ")),
    }
}

/// Prints the folder of the kernel.
pub(crate) fn run(options: &Options) -> ExitCode {
    match attempt(options) {
        Ok(folder) => {
            // The one line that a script wants.
            let _ = std::io::Write::write_all(
                &mut std::io::stdout(),
                format!("{}\n", folder.display()).as_bytes(),
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("kernel: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn attempt(options: &Options) -> anyhow::Result<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the workspace")?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
    let cache = target.join("guest-kernel");
    fs::create_dir_all(&cache).with_context(|| format!("mkdir {}", cache.display()))?;
    // Two at once would build the same.
    let lock = File::create(cache.join("lock")).context("create the lock")?;
    lock.lock().context("lock")?;
    let package = Package::newest()?;
    let folder = cache.join(name(&package.version, config::WISHES));
    if folder.is_dir() {
        return Ok(folder);
    }
    let tools = workspace.join("scripts/require-packages");
    succeed(Command::new(tools).args(TOOLS))?;
    let work = cache.join("partial");
    let _ = fs::remove_dir_all(&work);
    fs::create_dir(&work).with_context(|| format!("mkdir {}", work.display()))?;
    eprintln!("kernel: {} {}, which takes minutes", package.name, package.version);
    let made = build(&package, &work, options.jobs);
    let made = made.and_then(|made| fs::rename(made, &folder).context("move the kernel to its place"));
    fs::remove_dir_all(&work).with_context(|| format!("remove {}", work.display()))?;
    made.map(|()| folder)
}

/// What tells kernels apart that were built here.
fn name(version: &str, wishes: &str) -> String {
    let hash: String = Sha256::digest(wishes).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let plain =
        |letter: char| if letter.is_ascii_alphanumeric() || ".-+".contains(letter) { letter } else { '_' };
    format!("{}-{hash}", version.chars().map(plain).collect::<String>())
}

/// A Debian package of a kernel's source.
#[derive(Debug, PartialEq, Eq)]
struct Package {
    name: String,
    version: String,
}

impl Package {
    fn newest() -> anyhow::Result<Self> {
        let depends = output(Command::new("apt-cache").args(["depends", METAPACKAGE]))?;
        let name = dependency(&depends).with_context(|| {
            format!("apt knows no package {METAPACKAGE}: this builds from Debian's, after apt-get update")
        })?;
        let policy = output(Command::new("apt-cache").args(["policy", name]))?;
        let version = candidate(&policy).with_context(|| format!("apt has no package {name}"))?;
        Ok(Self { name: name.to_owned(), version: version.to_owned() })
    }

    /// Downloads it and unpacks the source, whose folder it returns.
    fn unpack(&self, work: &Path) -> anyhow::Result<PathBuf> {
        let wanted = format!("{}={}", self.name, self.version);
        succeed(Command::new("apt-get").args(["download", "--quiet", "--quiet", &wanted]).current_dir(work))?;
        let archive = entry(work, |name| name.ends_with(".deb"))?;
        let contents = work.join("package");
        succeed(Command::new("dpkg-deb").arg("--extract").arg(&archive).arg(&contents))?;
        let source = entry(&contents.join("usr/src"), |name| name.ends_with(".tar.xz"))?;
        succeed(Command::new("tar").arg("--extract").arg("--file").arg(&source).current_dir(work))?;
        entry(work, |name| name.starts_with("linux-source-") && !name.ends_with(".deb"))
    }
}

/// The package that `apt-cache depends` names.
fn dependency(listing: &str) -> Option<&str> {
    listing.lines().find_map(|line| line.trim().strip_prefix("Depends: ")).map(str::trim)
}

/// The version that `apt-cache policy` would install.
fn candidate(policy: &str) -> Option<&str> {
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?.trim();
    (version != "(none)").then_some(version)
}

/// The folder of a finished kernel, in `work`.
fn build(package: &Package, work: &Path, jobs: usize) -> anyhow::Result<PathBuf> {
    let source = package.unpack(work)?;
    let (objects, wishes) = (work.join("objects"), work.join("wishes"));
    fs::create_dir(&objects).context("mkdir")?;
    fs::write(&wishes, config::WISHES).context("write the configuration")?;
    let make = || {
        let mut make = Command::new("make");
        make.current_dir(&source).arg("--silent").arg(format!("O={}", objects.display()));
        // Who builds it, and when, is nobody's business, and the same is to come of the same.
        make.env("KBUILD_BUILD_USER", "insula").env("KBUILD_BUILD_HOST", "insula");
        make.env("KBUILD_BUILD_TIMESTAMP", "1970-01-01").env("KBUILD_BUILD_VERSION", "1");
        make
    };
    succeed(make().env("KCONFIG_ALLCONFIG", &wishes).arg("allnoconfig"))?;
    let finished = fs::read_to_string(objects.join(".config")).context("read .config")?;
    let unfulfilled = config::unfulfilled(config::WISHES, &finished);
    if !unfulfilled.is_empty() {
        bail!("this kernel does not take: {}", unfulfilled.join(", "));
    }
    succeed(make().arg(format!("--jobs={jobs}")).args(["bzImage", "modules.builtin"]))?;
    lay_out(&objects, &work.join("made"))
}

/// As packages of distributions have it: `boot` and `lib/modules`.
fn lay_out(objects: &Path, made: &Path) -> anyhow::Result<PathBuf> {
    let release = fs::read_to_string(objects.join("include/config/kernel.release"));
    let release = release.context("read the kernel's release")?.trim().to_owned();
    let (boot, modules) = (made.join("boot"), made.join("lib/modules").join(&release));
    for folder in [&boot, &modules] {
        fs::create_dir_all(folder).with_context(|| format!("mkdir {}", folder.display()))?;
    }
    let copy = |from: &str, to: PathBuf| {
        fs::copy(objects.join(from), &to)
            .map(drop)
            .with_context(|| format!("copy {from} to {}", to.display()))
    };
    copy("arch/x86/boot/bzImage", boot.join(format!("vmlinuz-{release}")))?;
    copy(".config", boot.join(format!("config-{release}")))?;
    copy("modules.builtin", modules.join("modules.builtin"))?;
    // There is none, so none needs another.
    fs::write(modules.join("modules.dep"), "").context("write modules.dep")?;
    // The same, unpacked: what boots it by PVH has nothing to decompress.
    let plain = boot.join(format!("vmlinux-{release}"));
    succeed(Command::new("strip").arg("-o").arg(&plain).arg(objects.join("vmlinux")))?;
    Ok(made.to_owned())
}

/// The first entry of a folder with such a name.
fn entry(folder: &Path, wanted: impl Fn(&str) -> bool) -> anyhow::Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| format!("open {}", folder.display()))?;
    let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let found = paths.find(|path| path.file_name().is_some_and(|name| wanted(&name.to_string_lossy())));
    found.with_context(|| format!("{} has not what was expected", folder.display()))
}

/// What it prints goes to standard error: standard output has the answer alone.
fn succeed(command: &mut Command) -> anyhow::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.stdout(std::io::stderr()).status().with_context(|| format!("run {program}"))?;
    if !status.success() {
        bail!("{program}: {status}");
    }
    Ok(())
}

fn output(command: &mut Command) -> anyhow::Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.env("LC_ALL", "C").output().with_context(|| format!("run {program}"))?;
    if !output.status.success() {
        bail!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("{program} prints no text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_counted() {
        assert_eq!(options(&["--jobs", "3"]).unwrap(), Options { jobs: 3 });
        assert!(options(&[]).unwrap().jobs > 0);
        for wrong in [&["--jobs"][..], &["--jobs", "0"], &["--jobs", "x"], &["now"]] {
            assert!(options(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_apt_says_is_understood() {
        let depends = "linux-source\n  Depends: linux-source-6.1\n  Suggests: other\n";
        assert_eq!(dependency(depends), Some("linux-source-6.1"));
        assert_eq!(dependency("linux-source\n"), None);
        let policy = "linux-source-6.1:\n  Installed: (none)\n  Candidate: 6.1.176-1\n  Version table:\n";
        assert_eq!(candidate(policy), Some("6.1.176-1"));
        assert_eq!(candidate("x:\n  Installed: (none)\n  Candidate: (none)\n"), None);
    }

    #[test]
    fn another_version_or_configuration_is_another_kernel() {
        let first = name("6.1.176-1", "CONFIG_A=y\n");
        assert_eq!(first, name("6.1.176-1", "CONFIG_A=y\n"));
        assert_ne!(first, name("6.1.176-2", "CONFIG_A=y\n"));
        assert_ne!(first, name("6.1.176-1", "CONFIG_B=y\n"));
        assert!(name("1:6.1/2~rc", "").starts_with("1_6.1_2_rc-"));
    }
}
