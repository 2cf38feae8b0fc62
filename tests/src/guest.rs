//! A machine of its own for what this host does not have: a distribution's kernel, emulated by
//! QEMU, with one version of cgroups alone, its root on a file system whose ids can be mapped.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::product::fixtures;
use crate::{Outcome, program, wait};

/// Emulated, so that it runs where there is no `/dev/kvm`.
const QEMU: &str = "qemu-system-x86_64";
/// What a machine in the machine needs: hardware virtualization, which the emulator has for AMD's.
const KVM_MODULES: &[&str] = &["arch/x86/kvm", "virt"];
/// What a guest of the product's own machine needs.
const VIRTIO_MODULES: &[&str] = &[
    "drivers/virtio",
    "drivers/block/virtio_blk.ko",
    "drivers/char",
    "drivers/net/virtio_net.ko",
    "drivers/net/net_failover.ko",
];
/// What it maps images with.
const IMAGE_MODULES: &[&str] = &["drivers/nvdimm", "fs/erofs"];
/// Modules of the kernel that containers need, which the kernel loads by itself, and a disk in memory.
const MODULES: &[&str] =
    &["fs/overlayfs", "net", "lib", "drivers/net/veth.ko", "drivers/block/brd.ko", "crypto"];
/// In seconds: twenty times what it takes on an idle host.
const LONGEST: &str = "900";
/// For what a machine of the product does, when it boots for it: as generous.
const PATIENCE: Duration = Duration::from_secs(300);

/// As [`crate::eventually`], for what takes the boot of a machine.
///
/// # Panics
/// When there is no answer within five minutes.
pub fn eventually<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    wait::within(PATIENCE, what, ask)
}

/// Whether a guest can be booted; says why not.
pub fn missing() -> Option<&'static str> {
    let found = |name: &str| {
        Outcome::of(Command::new("sh").args(["-c", &format!("command -v {name}")]), b"").code == 0
    };
    [(QEMU, "qemu-system-x86 is missing"), ("dpkg-deb", "dpkg is missing"), ("ldd", "ldd is missing")]
        .into_iter()
        .find_map(|(name, why)| (!found(name)).then_some(why))
}

/// Boots a guest that has busybox and the product's programs, runs `script` there as root with `files`
/// at their paths, and returns what appeared on the console.
pub fn run(script: &str, files: &[(&str, &[u8])]) -> Outcome {
    let kernel = kernel();
    let mut archive = content(&kernel, MODULES, script, files);
    add_product(&mut archive);
    boot(&kernel, archive, "max", Cgroups::Second)
}

/// As [`run`], on a host that has version 1 of cgroups alone, as distributions mounted it.
pub fn run_with_first_cgroups(script: &str, files: &[(&str, &[u8])]) -> Outcome {
    let kernel = kernel();
    let mut archive = content(&kernel, MODULES, script, files);
    add_product(&mut archive);
    boot(&kernel, archive, "max", Cgroups::First)
}

/// As [`run`], on a host that has file systems with quotas and with digests of files, and what makes them.
pub fn run_with_file_systems(script: &str, files: &[(&str, &[u8])]) -> Outcome {
    let kernel = kernel();
    let modules = [MODULES, &["fs/quota", "fs/xfs", "drivers/block/loop.ko"]].concat();
    let mut archive = content(&kernel, &modules, script, files);
    add_product(&mut archive);
    let programs = ["mkfs.ext4", "mkfs.xfs", "e2fsck", "chattr"].map(|name| {
        let mut found = ["/usr/sbin", "/sbin", "/usr/bin"].iter().map(|folder| Path::new(folder).join(name));
        let path = found.find(|path| path.is_file()).expect("e2fsprogs and xfsprogs are installed");
        (path, Path::new("/usr/sbin").join(name))
    });
    add_programs(&mut archive, &programs);
    boot(&kernel, archive, "max", Cgroups::Second)
}

/// As [`run`], with programs of this host at their places.
pub fn run_with_programs(script: &str, files: &[(&str, &[u8])], programs: &[&str]) -> Outcome {
    let kernel = kernel();
    let mut archive = content(&kernel, MODULES, script, files);
    add_product(&mut archive);
    add_programs(&mut archive, &at_their_places(programs));
    boot(&kernel, archive, "max", Cgroups::Second)
}

/// The same without the product, whose size takes an emulated machine its time.
pub fn run_programs(script: &str, files: &[(&str, &[u8])], programs: &[&str]) -> Outcome {
    let kernel = kernel();
    let mut archive = content(&kernel, MODULES, script, files);
    add_programs(&mut archive, &at_their_places(programs));
    boot(&kernel, archive, "max", Cgroups::Second)
}

fn at_their_places(programs: &[&str]) -> Vec<(PathBuf, PathBuf)> {
    programs.iter().map(|path| (PathBuf::from(path), PathBuf::from(path))).collect()
}

/// As [`run`], without the product: busybox and `nft`.
pub fn run_bare(script: &str, files: &[(&str, &[u8])]) -> Outcome {
    let kernel = kernel();
    let mut archive = content(&kernel, MODULES, script, files);
    add_programs(&mut archive, &nft().into_iter().collect::<Vec<_>>());
    boot(&kernel, archive, "max", Cgroups::Second)
}

/// As [`run_bare`], in a machine whose `/dev/kvm` runs stock kernels. `/guest/kernel` and `/guest/initrd`
/// are there to be booted in it: the initial file system loads virtio's drivers and runs `inner`.
pub fn run_with_kvm(script: &str, inner: &str, files: &[(&str, &[u8])]) -> Outcome {
    let kernel = kernel();
    let mut initrd = Archive::default();
    initrd.file("init", 0o755, format!("{INNER_INIT}{inner}").as_bytes());
    add_busybox(&mut initrd);
    add_modules(&mut initrd, &kernel, VIRTIO_MODULES);
    let modules = [MODULES, KVM_MODULES].concat();
    let script = format!("modprobe kvm-amd\n{script}");
    let mut archive = content(&kernel, &modules, &script, files);
    archive.file("guest/kernel", 0o644, &fs::read(&kernel.image).unwrap());
    archive.file("guest/initrd", 0o644, &initrd.finish());
    boot(&kernel, archive, "max,+svm", Cgroups::Second)
}

/// As [`run`], in a machine whose `/dev/kvm` runs stock kernels, with all that containers with kernels of
/// their own need there: the kernel, the machine, the agent, what serves files; and `tc` and perl.
pub fn run_walls_with_kvm(script: &str, files: &[(&str, &[u8])]) -> Outcome {
    let kernel = kernel();
    let modules =
        [MODULES, KVM_MODULES, VIRTIO_MODULES, IMAGE_MODULES, &["fs/fuse", "drivers/net/tun.ko"]].concat();
    let mut archive = content(&kernel, &modules, &format!("modprobe kvm-amd\nmodprobe tun\n{script}"), files);
    let release = kernel.modules.file_name().and_then(OsStr::to_str).unwrap();
    archive.file(&format!("boot/vmlinuz-{release}"), 0o644, &fs::read(&kernel.image).unwrap());
    add_product(&mut archive);
    let server =
        SERVERS.iter().map(PathBuf::from).find(|path| path.is_file()).expect("virtiofsd is installed");
    let shaper = ["/usr/sbin/tc", "/sbin/tc"].iter().map(PathBuf::from).find(|path| path.is_file());
    let shaper = shaper.expect("iproute2 is installed");
    // It speaks what busybox does not: sockets of all families.
    let perl = PathBuf::from("/usr/bin/perl");
    let others = [(server.clone(), server), (shaper, PathBuf::from("/usr/sbin/tc")), (perl.clone(), perl)];
    add_programs(&mut archive, &others);
    let sisters =
        ["insula-vmm", "insula-agent"].map(|name| (program(name), Path::new("/usr/bin").join(name)));
    add_programs(&mut archive, &sisters);
    boot(&kernel, archive, "max,+svm", Cgroups::Second)
}

/// Where Debian has what serves files to guests.
const SERVERS: [&str; 2] = ["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"];

/// Which version a guest has.
#[derive(Debug, Clone, Copy)]
enum Cgroups {
    First,
    Second,
}

impl Cgroups {
    fn kernel_argument(self) -> &'static str {
        match self {
            Self::First => "",
            Self::Second => " cgroup_no_v1=all",
        }
    }
}

fn boot(kernel: &Kernel, archive: Archive, cpu: &str, cgroups: Cgroups) -> Outcome {
    let folder = tempfile::Builder::new().prefix("insula-g-").tempdir().unwrap();
    let initrd = folder.path().join("initrd");
    fs::write(&initrd, archive.finish()).unwrap();
    let mut command = Command::new("timeout");
    command.args([LONGEST, QEMU, "-M", "microvm", "-accel", "tcg", "-cpu", cpu, "-smp", "1"]);
    command.args([
        "-m",
        "1024",
        "-nodefaults",
        "-no-user-config",
        "-nographic",
        "-no-reboot",
        "-serial",
        "stdio",
    ]);
    command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(&initrd);
    command.args(["-append", &kernel_arguments(cgroups)]);
    Outcome::of(&mut command, b"")
}

fn kernel_arguments(cgroups: Cgroups) -> String {
    let mut line = String::from("console=ttyS0 quiet panic=-1 reboot=t mitigations=off");
    line.push_str(cgroups.kernel_argument());
    // The kernel would measure the clock, which it gets wrong on a busy host; the emulator passes the
    // host's on as it is.
    let host = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let clock = host.lines().find_map(|line| line.strip_prefix("cpu MHz")?.split_once(':'));
    if let Some(mhz) = clock.and_then(|(_, mhz)| mhz.trim().parse::<f64>().ok()) {
        line.push_str(&format!(" tsc_early_khz={:.0}", mhz * 1000.0));
    }
    line
}

/// The folder of an unpacked kernel package, as `insula kernel use` takes it.
#[must_use]
pub fn kernel_folder() -> PathBuf {
    kernel();
    fixtures().join("kernel")
}

struct Kernel {
    image: PathBuf,
    /// `lib/modules/<release>`
    modules: PathBuf,
}

/// Debian's kernel for clouds, downloaded and unpacked once; nothing is installed.
fn kernel() -> Kernel {
    let folder = fixtures().join("kernel");
    let lock = fs::File::create(fixtures().join("kernel.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    if !folder.exists() {
        let partial = fixtures().join("kernel.partial");
        let _ = fs::remove_dir_all(&partial);
        fs::create_dir(&partial).unwrap();
        // The package that is downloaded last is the kernel that the metapackage means.
        let script = "package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: //p' | head -n 1); \
            apt-get download -qq \"$package\" && dpkg-deb -x ./*.deb . && rm ./*.deb && depmod -b . \"$(ls lib/modules)\"";
        let mut command = Command::new("sh");
        command.args(["-ec", script]).current_dir(&partial).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        Outcome::of(&mut command, b"").exits(0);
        fs::rename(&partial, &folder).unwrap();
    }
    let first = |path: PathBuf, start: &str| {
        let mut entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
        entries
            .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(start)))
            .unwrap()
    };
    Kernel { image: first(folder.join("boot"), "vmlinuz"), modules: first(folder.join("lib/modules"), "") }
}

const INIT: &str = "#!/bin/sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root
if [ $$ = 1 ] && [ ! -e /moved ]; then
    # Containers pivot away from their root, which the first root file system does not allow.
    mkdir -p /proc /dev && mount -t proc none /proc && mount -t devtmpfs none /dev
    modprobe brd rd_nr=1 rd_size=524288 && mke2fs /dev/ram0 >/dev/null
    mkdir /new && mount -t ext4 /dev/ram0 /new || echo GUEST-HAS-NO-DISK
    for name in /*; do
        case $name in
            /proc | /sys | /dev | /new) mkdir \"/new$name\" ;;
            *) cp -a \"$name\" /new/ ;;
        esac
    done
    mkdir -p /new/sys /new/tmp /new/run /new/var/lib /new/root /new/home /new/etc && touch /new/moved
    echo 'root:x:0:0::/root:/bin/sh' >/new/etc/passwd && echo 'root:*:1::::::' >/new/etc/shadow
    exec switch_root /new /init
fi
mount -t proc none /proc && mount -t sysfs none /sys && mount -t devtmpfs none /dev
mkdir -p /dev/pts && mount -t devpts none /dev/pts
if grep -q cgroup_no_v1 /proc/cmdline; then
    mount -t cgroup2 none /sys/fs/cgroup
else
    mount -t tmpfs none /sys/fs/cgroup
    for controllers in cpu,cpuacct cpuset memory pids devices freezer blkio; do
        mkdir /sys/fs/cgroup/$controllers
        mount -t cgroup -o $controllers none /sys/fs/cgroup/$controllers
    done
fi
mount -t tmpfs none /run
ip link set lo up
sh /test
echo GUEST-ENDS
reboot -f
";

/// Of the machine in the machine.
const INNER_INIT: &str = "#!/bin/sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev
for module in virtio_mmio virtio_blk virtio_console virtio_rng virtio_net; do modprobe $module; done
";

fn content(kernel: &Kernel, modules: &[&str], script: &str, files: &[(&str, &[u8])]) -> Archive {
    let mut archive = Archive::default();
    archive.file("init", 0o755, INIT.as_bytes());
    archive.file("test", 0o755, script.as_bytes());
    add_busybox(&mut archive);
    add_modules(&mut archive, kernel, modules);
    for (path, bytes) in files {
        archive.file(path.trim_start_matches('/'), 0o755, bytes);
    }
    archive
}

fn add_busybox(archive: &mut Archive) {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().find_map(|path| fs::read(path).ok()).unwrap();
    archive.file("bin/busybox", 0o755, &busybox);
    let applets = Outcome::of(Command::new("busybox").arg("--list-full"), b"");
    for applet in applets.ok().lines().filter(|applet| !applet.ends_with("/busybox")) {
        archive.link(applet, "/bin/busybox");
    }
    for folder in ["proc", "sys", "dev", "tmp"] {
        archive.folder(folder);
    }
}

/// Drivers, each with what it depends on.
fn add_modules(archive: &mut Archive, kernel: &Kernel, parts: &[&str]) {
    let release = kernel.modules.file_name().and_then(OsStr::to_str).unwrap();
    for name in ["modules.dep", "modules.alias", "modules.softdep", "modules.builtin"] {
        let text = fs::read(kernel.modules.join(name)).unwrap_or_default();
        archive.file(&format!("lib/modules/{release}/{name}"), 0o644, &text);
    }
    for part in parts {
        archive
            .tree(&kernel.modules.join("kernel").join(part), &format!("lib/modules/{release}/kernel/{part}"));
    }
}

/// Its programs with the libraries that they need, and `nft`.
fn add_product(archive: &mut Archive) {
    let programs: Vec<_> = ["insula", "insulad", "insula-monitor"]
        .map(|name| (program(name), Path::new("/usr/bin").join(name)))
        .into_iter()
        .chain(nft())
        .collect();
    add_programs(archive, &programs);
}

/// Where it is here, and where it will be there.
fn nft() -> Option<(PathBuf, PathBuf)> {
    let found = ["/usr/sbin/nft", "/sbin/nft"].iter().map(PathBuf::from).find(|path| path.is_file());
    found.map(|path| (path, PathBuf::from("/usr/bin/nft")))
}

/// Programs of this host at their places in the guest, with the libraries that they need.
fn add_programs(archive: &mut Archive, programs: &[(PathBuf, PathBuf)]) {
    let mut libraries = BTreeSet::new();
    for (path, place) in programs {
        archive.file(place.to_str().unwrap().trim_start_matches('/'), 0o755, &stripped(path));
        libraries.extend(libraries_of(path));
    }
    for library in libraries {
        archive.file(library.trim_start_matches('/'), 0o755, &fs::read(&library).unwrap());
    }
}

/// A debug build is tens of megabytes, which an emulated machine reads slowly.
fn stripped(path: &Path) -> Vec<u8> {
    let output = tempfile::NamedTempFile::new().unwrap();
    let mut command = Command::new("strip");
    let code = Outcome::of(command.arg("-o").arg(output.path()).arg(path), b"").code;
    fs::read(if code == 0 { output.path() } else { path }).unwrap()
}

fn libraries_of(path: &Path) -> Vec<String> {
    // Static programs have none, and ldd says so with an error.
    let listing = Outcome::of(Command::new("ldd").arg(path), b"").stdout;
    let words = listing.split_whitespace().filter(|word| word.starts_with('/'));
    words.map(|word| word.trim_end_matches(':').to_owned()).filter(|path| Path::new(path).is_file()).collect()
}

/// A cpio archive in the `newc` format, as the kernel unpacks it (Documentation/driver-api/
/// early-userspace/buffer-format.rst).
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    folders: BTreeSet<String>,
    files: BTreeSet<String>,
    entries: u32,
}

impl Archive {
    /// The first file at a place stays.
    fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        if !self.files.insert(name.to_owned()) {
            return;
        }
        self.parents(name);
        self.entry(name, 0o100_000 | mode, content);
    }

    fn link(&mut self, name: &str, target: &str) {
        self.parents(name);
        self.entry(name, 0o120_777, target.as_bytes());
    }

    fn tree(&mut self, path: &Path, name: &str) {
        if path.is_file() {
            let mode = fs::metadata(path).unwrap().permissions().mode() & 0o777;
            return self.file(name, mode, &fs::read(path).unwrap());
        }
        for entry in fs::read_dir(path).into_iter().flatten() {
            let entry = entry.unwrap();
            self.tree(&entry.path(), &format!("{name}/{}", entry.file_name().to_string_lossy()));
        }
    }

    fn parents(&mut self, name: &str) {
        for (at, _) in name.match_indices('/') {
            self.folder(&name[..at]);
        }
    }

    fn folder(&mut self, name: &str) {
        if self.folders.insert(name.to_owned()) {
            self.entry(name, 0o040_755, b"");
        }
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let (size, length) = (content.len(), name.len() + 1);
        let fields = [self.entries as usize, mode as usize, 0, 0, 1, 0, size, 0, 0, 0, 0, length, 0];
        self.bytes.extend_from_slice(b"070701");
        fields.iter().for_each(|field| self.bytes.extend_from_slice(format!("{field:08X}").as_bytes()));
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, b"");
        self.bytes
    }
}
