//! QEMU as the machine, emulating every instruction: `-M microvm`, virtio over MMIO, nothing that a PC has
//! besides.
//!
//! It opens nothing itself but its own firmware: kernel, initial RAM disk, taps and sockets are handed in as
//! descriptors. QEMU's filter keeps it from starting programs and gaining privileges, and it runs in a jail
//! ([`insula_container::jail`]) as a user that owns nothing.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use insula_container::{JailPlan, jail};
use insula_spec::machine::MachinePlan;

use super::backend::{self, CHANNEL, Machine, Parts, TAG};
use crate::Result;

/// Where distributions have it.
const PROGRAMS: [&str; 3] =
    ["/usr/bin/qemu-system-x86_64", "/usr/libexec/qemu-kvm", "/usr/local/bin/qemu-system-x86_64"];

/// MiB for translated code; without a word it is a gigabyte.
const TRANSLATION_CACHE: u32 = 128;

pub(super) fn start(parts: Parts<'_>) -> Result<Machine> {
    let program = super::program(&PROGRAMS, "qemu-system-x86_64", "qemu-system-x86")?;
    let [(channel, channel_inside), (console, console_inside), (control, control_inside)] =
        [backend::pair()?, backend::pair()?, backend::pair()?];
    let (kernel, initramfs) =
        (backend::open(&parts.plan.kernel.image)?, backend::open(&parts.plan.initramfs)?);
    let mut arguments = Arguments::new(parts.plan);
    arguments.boot(&kernel, &initramfs);
    arguments.socket("control", &control_inside);
    arguments.add(["-mon", "chardev=control,mode=control"]);
    arguments.socket("console", &console_inside);
    arguments.add(["-serial", "chardev:console"]);
    arguments.socket("channel", &channel_inside);
    arguments.add(["-device", "virtio-serial-device", "-device"]);
    arguments.add([format!("virtserialport,chardev=channel,name={CHANNEL}")]);
    arguments.socket("files", &parts.files);
    arguments.add(["-device".to_owned(), format!("vhost-user-fs-device,chardev=files,tag={TAG}")]);
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
        entry: parts.entry,
    })?;
    let program = program.rsplit('/').next().unwrap_or(program);
    // QEMU ends nothing when its control goes, but says less.
    Ok(Machine { program, process, channel, console, _control: Some(control) })
}

/// The command line, piece by piece.
struct Arguments(Vec<String>);

impl Arguments {
    fn new(plan: &MachinePlan) -> Self {
        let mut this = Self(Vec::new());
        let memory = plan.memory;
        this.add(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot"]);
        this.add(["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
        this.add(["-M", "microvm,memory-backend=memory,pit=on,pic=on,rtc=on,x-option-roms=off"]);
        // What serves files does not know the devices of before the standard.
        this.add(["-global", "virtio-mmio.force-legacy=false"]);
        this.add(["-accel".into(), format!("tcg,tb-size={TRANSLATION_CACHE}")]);
        this.add(["-cpu", "max"]);
        this.add(["-smp".into(), plan.cpus.to_string()]);
        this.add(["-m".into(), format!("{}k", memory >> 10)]);
        // Who serves files reads and writes the guest's memory.
        this.add(["-object".into(), format!("memory-backend-memfd,id=memory,size={memory},share=on")]);
        this
    }

    fn boot(&mut self, kernel: &File, initramfs: &File) {
        let path = |file: &File| format!("/proc/self/fd/{}", file.as_raw_fd());
        self.add(["-kernel".to_owned(), path(kernel), "-initrd".to_owned(), path(initramfs)]);
        self.add(["-append".to_owned(), backend::kernel_arguments()]);
    }

    fn socket(&mut self, id: &str, end: &OwnedFd) {
        self.add(["-chardev".to_owned(), format!("socket,id={id},fd={}", end.as_raw_fd())]);
    }

    fn add<T: Into<String>>(&mut self, more: impl IntoIterator<Item = T>) {
        self.0.extend(more.into_iter().map(Into::into));
    }
}
