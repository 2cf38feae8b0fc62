//! QEMU as the machine, emulating every instruction: `-M microvm`, virtio over MMIO, nothing that a PC has
//! besides.
//!
//! It opens nothing itself but its own firmware, and memory that was handed in: kernel, initial RAM disk, taps
//! and sockets come as descriptors. QEMU's filter keeps it from starting programs and gaining privileges, and
//! it runs in a jail ([`insula_container::jail`]) as a user that owns nothing.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use insula_container::{JailPlan, jail};
use insula_spec::machine::{DirtyRate, MachinePlan};
use serde_json::{Value, json};

use super::backend::{self, Begin, FILES, Files, Machine, Parts, TAG};
use super::control::{Control, PATIENCE, malformed};
use super::deadline::Deadline;
use super::dirty::{Counted, Counting};
use crate::{Error, Result};

/// MiB for translated code; without a word it is a gigabyte.
const TRANSLATION_CACHE: u32 = 128;
/// Pages of a GiB whose sums are compared, as many as QEMU allows: one of sixteen.
const SAMPLES: u32 = 16384;

pub(super) fn start(parts: Parts<'_>) -> Result<Machine> {
    if parts.plan.vsock.is_some() {
        // Its own would need the host's kernel (vhost-vsock) or one more server.
        return Err(Error::Invalid("a machine of QEMU's has no sockets to the host".to_owned()));
    }
    let program = insula_host::guest::emulator()
        .ok_or(Error::Missing { program: "qemu-system-x86_64", package: "qemu-system-x86" })?;
    let [(channel, channel_inside), (console, console_inside), (control, control_inside)] =
        [backend::pair()?, backend::pair()?, backend::pair()?];
    let mut kept: Vec<BorrowedFd<'_>> =
        [&channel_inside, &console_inside, &control_inside].map(AsFd::as_fd).to_vec();
    kept.extend(parts.files.descriptor().map(AsFd::as_fd));
    let mut arguments = Arguments::new(parts.plan);
    arguments.memory(parts.plan.memory, &parts.begin);
    let boot = match &parts.begin {
        Begin::Boot | Begin::BootIn(_) => {
            Some((backend::open(&parts.plan.kernel.image)?, backend::open(&parts.plan.initramfs)?))
        }
        Begin::Template { .. } => None,
    };
    match &boot {
        Some((kernel, initramfs)) => {
            arguments.boot(kernel, initramfs);
            kept.extend([kernel.as_fd(), initramfs.as_fd()]);
        }
        None => arguments.add(["-incoming", "defer"]),
    }
    match &parts.begin {
        Begin::Boot => {}
        Begin::BootIn(memory) => kept.push(memory.as_fd()),
        Begin::Template { state, memory, .. } => kept.extend([state.as_fd(), memory.as_fd()]),
    }
    arguments.socket("control", &control_inside);
    arguments.add(["-mon", "chardev=control,mode=control"]);
    arguments.socket("console", &console_inside);
    arguments.add(["-serial", "chardev:console"]);
    arguments.socket("channel", &channel_inside);
    arguments.add(["-device", "virtio-serial-device", "-device"]);
    arguments.add([format!("virtserialport,chardev=channel,name={}", parts.files.channel())]);
    arguments.files(&parts.files);
    // Memory of copies is the template's, which nobody can make holes in.
    if let Begin::Boot = &parts.begin {
        arguments.add(["-device", "virtio-balloon-device,free-page-reporting=on"]);
    }
    for (number, interface) in parts.interfaces.iter().enumerate() {
        arguments.interface(number, interface);
        kept.push(interface.tap.as_fd());
    }
    let process = jail(&JailPlan {
        program,
        args: &arguments.0,
        kept: &kept,
        // What it says is as much the guest's doing as what that prints, and bounded like it.
        stderr: Some(console_inside.as_fd()),
        uid: parts.uid,
        gid: parts.gid,
        entry: parts.entry,
    })?;
    let program = program.file_name().and_then(|name| name.to_str()).unwrap_or("qemu");
    let mut control = Control::new(control);
    if let Begin::Template { state, deadline, .. } = &parts.begin
        && let Err(error) = go_on(&mut control, state, *deadline)
    {
        process.end();
        return Err(error.of_copy());
    }
    let (control, counting) = (Box::new(control), Counting::No);
    Ok(Machine { program, process, channel, console, control, counting })
}

/// Gives a machine that waits the state of a template; it runs then.
fn go_on(control: &mut Control, state: &OwnedFd, deadline: Deadline) -> Result<()> {
    let control = control.until(deadline)?;
    control.migration_capabilities()?;
    let from = format!("fd:{}", state.as_raw_fd());
    control.execute("migrate-incoming", json!({ "uri": from }))?;
    control.await_migration()
}

impl backend::Control for Control {
    /// Memory is not written: it is the file that the machine has it in.
    fn save(&mut self, state: &OwnedFd) -> Result<()> {
        const NAME: &str = "state";
        let control = self.until(Deadline::from_now(PATIENCE))?;
        control.migration_capabilities()?;
        control.give(NAME, state)?;
        control.execute("migrate", json!({ "uri": format!("fd:{NAME}") }))?;
        control.await_migration()
    }

    /// By samples: QEMU's two other ways have KVM's log, and emulated memory has none that counts.
    fn count(&mut self, period: Duration) -> Result<()> {
        if period.subsec_nanos() != 0 {
            return Err(Error::Invalid("QEMU measures a dirty rate in whole seconds".to_owned()));
        }
        let arguments = json!({
            "calc-time": period.as_secs(),
            "mode": "page-sampling",
            "sample-pages": SAMPLES,
        });
        self.until(Deadline::from_now(PATIENCE))?.execute("calc-dirty-rate", arguments).map(drop)
    }

    fn counted(&mut self) -> Result<Option<Counted>> {
        let said = self.until(Deadline::from_now(PATIENCE))?.execute("query-dirty-rate", json!({}))?;
        counted(&said)
    }

    fn stop_counting(&mut self) -> Result<bool> {
        Ok(false)
    }
}

/// What `query-dirty-rate` returned.
fn counted(said: &Value) -> Result<Option<Counted>> {
    const MIB: u64 = 1 << 20;
    match said.get("status").and_then(Value::as_str) {
        // It has not begun to look yet.
        Some("unstarted" | "measuring") => return Ok(None),
        Some("measured") => {}
        _ => return Err(malformed()),
    }
    let number = |name: &str| said.get(name).and_then(Value::as_u64).ok_or_else(malformed);
    let (rate, seconds) = (number("dirty-rate")?, number("calc-time")?);
    let pages = rate.saturating_mul(seconds).saturating_mul(MIB / DirtyRate::PAGE);
    Ok(Some(Counted { pages, time: Duration::from_secs(seconds), sampled: true }))
}

/// The command line, piece by piece.
struct Arguments(Vec<String>);

impl Arguments {
    fn new(plan: &MachinePlan) -> Self {
        let mut this = Self(Vec::new());
        this.add(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot"]);
        this.add(["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
        this.add(["-M", "microvm,memory-backend=memory,pit=on,pic=on,rtc=on,x-option-roms=off"]);
        // What serves files does not know the devices of before the standard.
        this.add(["-global", "virtio-mmio.force-legacy=false"]);
        this.add(["-accel".into(), format!("tcg,tb-size={TRANSLATION_CACHE}")]);
        this.add(["-cpu", "max"]);
        this.add(["-smp".into(), plan.cpus.to_string()]);
        this.add(["-m".into(), format!("{}k", plan.memory >> 10)]);
        this
    }

    /// Who serves files by a device reads and writes the guest's memory.
    fn memory(&mut self, size: u64, begin: &Begin) {
        let file = |memory: &OwnedFd, share: &str| {
            let number = memory.as_raw_fd();
            format!("memory-backend-file,id=memory,size={size},mem-path=/proc/self/fd/{number},share={share}")
        };
        let object = match begin {
            Begin::Boot => format!("memory-backend-memfd,id=memory,size={size},share=on"),
            Begin::BootIn(memory) => file(memory, "on"),
            Begin::Template { memory, .. } => file(memory, "off"),
        };
        self.add(["-object".to_owned(), object]);
    }

    fn boot(&mut self, kernel: &File, initramfs: &File) {
        let path = |file: &File| format!("/proc/self/fd/{}", file.as_raw_fd());
        self.add(["-kernel".to_owned(), path(kernel), "-initrd".to_owned(), path(initramfs)]);
        self.add(["-append".to_owned(), backend::kernel_arguments()]);
    }

    fn files(&mut self, files: &Files) {
        let (descriptor, device) = match files {
            Files::Device(device) => (device, format!("vhost-user-fs-device,chardev=files,tag={TAG}")),
            Files::Port(port) => (port, format!("virtserialport,chardev=files,name={FILES}")),
            Files::None => return,
        };
        self.socket("files", descriptor);
        self.add(["-device".to_owned(), device]);
    }

    fn interface(&mut self, number: usize, interface: &backend::Interface) {
        let (fd, mac, mtu) = (interface.tap.as_raw_fd(), &interface.mac, interface.mtu);
        self.add(["-netdev".into(), format!("tap,id=net{number},fd={fd},vhost=off")]);
        let mtu = if mtu == 0 { String::new() } else { format!(",host_mtu={mtu}") };
        self.add(["-device".into(), format!("virtio-net-device,netdev=net{number},mac={mac}{mtu}")]);
    }

    fn socket(&mut self, id: &str, end: &OwnedFd) {
        self.add(["-chardev".to_owned(), format!("socket,id={id},fd={}", end.as_raw_fd())]);
    }

    fn add<T: Into<String>>(&mut self, more: impl IntoIterator<Item = T>) {
        self.0.extend(more.into_iter().map(Into::into));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured_is_whole_mib() {
        let said = json!({ "status": "measured", "start-time": 7, "calc-time": 2, "dirty-rate": 3, "mode": "page-sampling" });
        let time = Duration::from_secs(2);
        assert_eq!(counted(&said).unwrap(), Some(Counted { pages: 1536, time, sampled: true }));
        for early in ["unstarted", "measuring"] {
            assert_eq!(counted(&json!({ "status": early, "calc-time": 2 })).unwrap(), None);
        }
        let most = json!({ "status": "measured", "calc-time": u64::MAX, "dirty-rate": u64::MAX });
        assert_eq!(counted(&most).unwrap().unwrap().pages, u64::MAX);
        for nonsense in
            [json!({}), json!({ "status": "measured", "calc-time": 2 }), json!({ "status": "asleep" })]
        {
            assert!(counted(&nonsense).is_err(), "{nonsense}");
        }
    }
}
