//! QEMU as the machine: `-M microvm`, virtio over MMIO, nothing that a PC has besides. With hardware
//! virtualization where that works, emulating every instruction elsewhere.
//!
//! It opens nothing itself but its own firmware: kernel, initial RAM disk, taps and sockets are handed in as
//! descriptors. QEMU's filter keeps it from starting programs and gaining privileges, and it runs in a jail
//! ([`insula_container::jail`]) as a user that owns nothing.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use insula_container::{JailPlan, Jailed, jail};
use insula_spec::machine::{Backend, MachinePlan};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::backend::{Machine, Parts};
use crate::{Error, Result};

/// Where distributions have it.
const PROGRAMS: [&str; 3] =
    ["/usr/bin/qemu-system-x86_64", "/usr/libexec/qemu-kvm", "/usr/local/bin/qemu-system-x86_64"];

/// MiB for translated code; without a word it is a gigabyte.
const TRANSLATION_CACHE: u32 = 128;

/// A running QEMU.
#[derive(Debug)]
pub(super) struct Qemu {
    program: &'static str,
    process: Jailed,
    channel: OwnedFd,
    console: OwnedFd,
    /// Open as long as the machine: QEMU ends nothing when it goes, but says less.
    _control: OwnedFd,
}

pub(super) fn start(parts: Parts<'_>) -> Result<Qemu> {
    let program = super::program(&PROGRAMS, "qemu-system-x86_64", "qemu-system-x86")?;
    let [(channel, channel_inside), (console, console_inside), (control, control_inside)] =
        [pair()?, pair()?, pair()?];
    let (kernel, initramfs) = (open(&parts.plan.kernel.image)?, open(&parts.plan.initramfs)?);
    let mut arguments = Arguments::new(parts.plan);
    arguments.boot(&kernel, &initramfs);
    arguments.socket("control", &control_inside);
    arguments.add(["-mon", "chardev=control,mode=control"]);
    arguments.socket("console", &console_inside);
    arguments.add(["-serial", "chardev:console"]);
    arguments.socket("channel", &channel_inside);
    arguments.add(["-device", "virtio-serial-device", "-device"]);
    arguments.add(["virtserialport,chardev=channel,name=insula"]);
    arguments.socket("files", &parts.files);
    arguments.add(["-device", "vhost-user-fs-device,chardev=files,tag=insula"]);
    for (number, interface) in parts.interfaces.iter().enumerate() {
        let (fd, mac, mtu) = (interface.tap.as_raw_fd(), &interface.plan.mac, interface.plan.mtu);
        arguments.add(["-netdev".into(), format!("tap,id=net{number},fd={fd},vhost=off")]);
        let mtu = if mtu == 0 { String::new() } else { format!(",host_mtu={mtu}") };
        arguments.add(["-device".into(), format!("virtio-net-device,netdev=net{number},mac={mac}{mtu}")]);
    }
    let mut kept: Vec<BorrowedFd<'_>> = [&channel_inside, &console_inside, &control_inside, &parts.files]
        .map(AsFd::as_fd)
        .into_iter()
        .chain([kernel.as_fd(), initramfs.as_fd()])
        .collect();
    kept.extend(parts.interfaces.iter().map(|interface| interface.tap.as_fd()));
    let process = jail(&JailPlan {
        program: Path::new(program),
        args: &arguments.0,
        kept: &kept,
        uid: parts.uid,
        gid: parts.gid,
        groups: &groups(parts.plan.backend),
        entry: parts.entry,
    })?;
    Ok(Qemu { program, process, channel, console, _control: control })
}

/// The group that may open `/dev/kvm`, where that is to be used.
fn groups(backend: Backend) -> Vec<u32> {
    match backend {
        Backend::Kvm => std::fs::metadata("/dev/kvm").map(|kvm| kvm.gid()).into_iter().collect(),
        Backend::Qemu => Vec::new(),
    }
}

fn pair() -> Result<(OwnedFd, OwnedFd)> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(|source| Error::call("socketpair", "for a machine", source))
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|source| Error::File { call: "open", path: path.to_owned(), source })
}

/// The command line, piece by piece.
struct Arguments(Vec<String>);

impl Arguments {
    fn new(plan: &MachinePlan) -> Self {
        let mut this = Self(Vec::new());
        let memory = plan.memory;
        let accelerator = match plan.backend {
            Backend::Kvm => "kvm".to_owned(),
            Backend::Qemu => format!("tcg,tb-size={TRANSLATION_CACHE}"),
        };
        let cpu = if plan.backend == Backend::Kvm { "host" } else { "max" };
        this.add(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot"]);
        this.add(["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
        this.add(["-M", "microvm,memory-backend=memory,pit=on,pic=on,rtc=on,x-option-roms=off"]);
        // What serves files does not know the devices of before the standard.
        this.add(["-global", "virtio-mmio.force-legacy=false"]);
        this.add(["-accel".into(), accelerator]);
        this.add(["-cpu".into(), cpu.to_owned()]);
        this.add(["-smp".into(), plan.cpus.to_string()]);
        this.add(["-m".into(), format!("{}k", memory >> 10)]);
        // Who serves files reads and writes the guest's memory.
        this.add(["-object".into(), format!("memory-backend-memfd,id=memory,size={memory},share=on")]);
        this
    }

    fn boot(&mut self, kernel: &File, initramfs: &File) {
        let path = |file: &File| format!("/proc/self/fd/{}", file.as_raw_fd());
        self.add(["-kernel".to_owned(), path(kernel), "-initrd".to_owned(), path(initramfs)]);
        self.add(["-append".to_owned(), kernel_arguments()]);
    }

    fn socket(&mut self, id: &str, end: &OwnedFd) {
        self.add(["-chardev".to_owned(), format!("socket,id={id},fd={}", end.as_raw_fd())]);
    }

    fn add<T: Into<String>>(&mut self, more: impl IntoIterator<Item = T>) {
        self.0.extend(more.into_iter().map(Into::into));
    }
}

/// Without measuring the clock: a kernel gets that wrong on a busy host. The emulator passes the host's
/// counter on as it is.
fn kernel_arguments() -> String {
    let mut line = String::from(
        "console=ttyS0 quiet panic=-1 reboot=t mitigations=off random.trust_cpu=on no_timer_check",
    );
    let host = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let clock = host.lines().find_map(|line| line.strip_prefix("cpu MHz")?.split_once(':'));
    if let Some(mhz) = clock.and_then(|(_, mhz)| mhz.trim().parse::<f64>().ok()) {
        line.push_str(&format!(" tsc_early_khz={:.0}", mhz * 1000.0));
    }
    line
}

impl Machine for Qemu {
    fn program(&self) -> &str {
        self.program.rsplit('/').next().unwrap_or(self.program)
    }

    fn pid(&self) -> i32 {
        self.process.pid
    }

    fn pidfd(&self) -> BorrowedFd<'_> {
        self.process.pidfd.as_fd()
    }

    fn channel(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    fn console(&self) -> BorrowedFd<'_> {
        self.console.as_fd()
    }

    fn end(self: Box<Self>) {
        self.process.end();
    }
}
