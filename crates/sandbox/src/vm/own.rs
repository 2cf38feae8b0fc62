//! Our own machine, `insula-vmm`: hardware virtualization and no more devices than a container needs.
//!
//! Like QEMU it runs in a jail, and everything that it uses is handed in as an open descriptor; one JSON
//! document says which is which.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use insula_container::{JailPlan, jail};
use serde_json::{Value, json};

use super::backend::{self, Begin, Files, Machine, Parts, TAG};
use crate::{Error, Result};

const PROGRAM: &str = "insula-vmm";
const KVM: &str = "/dev/kvm";

pub(super) fn start(parts: Parts<'_>) -> Result<Machine> {
    let (Begin::Boot, Files::Device(_) | Files::None) = (&parts.begin, &parts.files) else {
        return Err(Error::Unsupported("the own machine has no templates"));
    };
    let files = parts.files.descriptor();
    let folders: Vec<Value> =
        files.iter().map(|files| json!({ "descriptor": files.as_raw_fd(), "tag": TAG })).collect();
    let program = &parts.plan.vmm;
    if !program.is_file() {
        return Err(Error::Missing { program: PROGRAM, package: "insula" });
    }
    let [(channel, channel_inside), (console, console_inside)] = [backend::pair()?, backend::pair()?];
    let kvm = File::options().read(true).write(true).open(KVM).map_err(|source| Error::File {
        call: "open",
        path: KVM.into(),
        source,
    })?;
    let kernel = backend::open(&parts.plan.kernel.image)?;
    let initramfs = backend::open(&parts.plan.initramfs)?;
    let cards: Vec<Value> = parts.interfaces.iter().map(card).collect();
    let document = json!({
        "cpus": parts.plan.cpus,
        "memory": parts.plan.memory,
        "kvm": kvm.as_raw_fd(),
        "kernel": kernel.as_raw_fd(),
        "initramfs": initramfs.as_raw_fd(),
        "command_line": backend::kernel_arguments(),
        "console": console_inside.as_raw_fd(),
        "ports": [{ "descriptor": channel_inside.as_raw_fd(), "name": parts.files.channel() }],
        "folders": folders,
        "cards": cards,
    });
    let mut kept: Vec<BorrowedFd<'_>> =
        vec![channel_inside.as_fd(), console_inside.as_fd(), kvm.as_fd(), kernel.as_fd(), initramfs.as_fd()];
    kept.extend(files.map(AsFd::as_fd));
    kept.extend(parts.interfaces.iter().map(|interface| interface.tap.as_fd()));
    let process = jail(&JailPlan {
        program,
        args: &[document.to_string()],
        kept: &kept,
        // What it says is as much the guest's doing as what that prints, and bounded like it.
        stderr: Some(console_inside.as_fd()),
        uid: parts.uid,
        gid: parts.gid,
        entry: parts.entry,
    })?;
    Ok(Machine { program: PROGRAM, process, channel, console, control: None })
}

fn card(interface: &backend::Interface) -> Value {
    // The largest packet of Ethernet where nothing else was asked for.
    let mtu = if interface.mtu == 0 { 1500 } else { interface.mtu };
    json!({ "descriptor": interface.tap.as_raw_fd(), "mac": interface.mac, "mtu": mtu })
}
