//! Our own machine, `insula-vmm`: hardware virtualization and no more devices than a container needs.
//!
//! Like QEMU it runs in a jail, and everything that it uses is handed in as an open descriptor; one JSON
//! document says which is which.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use insula_container::{JailPlan, jail};
use serde_json::{Value, json};

use super::backend::{self, Begin, FILES, Files, Machine, Parts, TAG};
use crate::{Error, Result};

const PROGRAM: &str = "insula-vmm";
const KVM: &str = "/dev/kvm";
/// How long a machine may take to say what its state is, on a host that is very busy.
const PATIENCE: Duration = Duration::from_secs(60);
/// The largest state.
const LARGEST_STATE: u64 = 64 << 20;

pub(super) fn start(parts: Parts<'_>) -> Result<Machine> {
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
    let (begin, control, opened) = begin(&parts)?;
    let (mut ports, mut folders) = (vec![port(&channel_inside, parts.files.channel())], Vec::new());
    match &parts.files {
        Files::Device(device) => folders.push(json!({ "descriptor": device.as_raw_fd(), "tag": TAG })),
        Files::Port(socket) => ports.push(port(socket, FILES)),
        Files::None => {}
    }
    let cards: Vec<Value> = parts.interfaces.iter().map(card).collect();
    let sockets = parts.plan.vsock.zip(parts.sockets.as_ref());
    let image = parts.plan.image.as_deref().map(backend::open).transpose()?;
    let document = json!({
        "cpus": parts.plan.cpus,
        "memory": parts.plan.memory,
        "kvm": kvm.as_raw_fd(),
        "begin": begin,
        "console": console_inside.as_raw_fd(),
        "ports": ports,
        "folders": folders,
        "cards": cards,
        "sockets": sockets.map(|(address, sockets)| json!({
            "address": address,
            "listener": sockets.listener.as_ref().map(AsRawFd::as_raw_fd),
            "broker": sockets.broker.as_raw_fd(),
        })),
        "image": match &image {
            Some(file) => json!({ "file": file.as_raw_fd() }),
            // Nothing is plugged later, but a place can be taken.
            None if matches!(parts.files, Files::Port(_)) => json!("vacant"),
            None => json!("none"),
        },
    });
    let mut kept: Vec<BorrowedFd<'_>> = vec![channel_inside.as_fd(), console_inside.as_fd(), kvm.as_fd()];
    kept.extend(opened.iter().map(AsFd::as_fd));
    match &parts.begin {
        Begin::Boot => {}
        Begin::BootIn(memory) => kept.push(memory.as_fd()),
        Begin::Template { state, memory, .. } => kept.extend([state.as_fd(), memory.as_fd()]),
    }
    kept.extend(parts.files.descriptor().map(AsFd::as_fd));
    kept.extend(image.iter().map(AsFd::as_fd));
    if let Some(inside) = &parts.sockets {
        kept.extend(inside.listener.iter().chain([&inside.broker]).map(AsFd::as_fd));
    }
    for interface in &parts.interfaces {
        kept.extend([interface.tap.as_fd(), interface.sending.as_fd()]);
    }
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
    Ok(Machine { program: PROGRAM, process, channel, console, control })
}

/// How it begins, for its document; its control if it is to be saved; and what was opened for it.
fn begin(parts: &Parts<'_>) -> Result<(Value, Option<OwnedFd>, Vec<OwnedFd>)> {
    if let Begin::Template { state, memory, .. } = &parts.begin {
        let begin = json!({ "snapshot": { "state": state.as_raw_fd(), "memory": memory.as_raw_fd() } });
        return Ok((begin, None, Vec::new()));
    }
    let kernel: OwnedFd = backend::open(&parts.plan.kernel.image)?.into();
    let initramfs: OwnedFd = backend::open(&parts.plan.initramfs)?.into();
    let mut boot = json!({
        "kernel": kernel.as_raw_fd(),
        "initramfs": initramfs.as_raw_fd(),
        "command_line": backend::kernel_arguments(),
    });
    let mut opened = vec![kernel, initramfs];
    let mut control = None;
    if let Begin::BootIn(memory) = &parts.begin {
        let (ours, inside) = backend::pair()?;
        boot["saved"] = json!({ "memory": memory.as_raw_fd(), "control": inside.as_raw_fd() });
        opened.push(inside);
        control = Some(ours);
    }
    Ok((json!({ "boot": boot }), control, opened))
}

/// See [`backend::save`]. The machine ends with it.
pub(super) fn save(control: &OwnedFd, state: &OwnedFd) -> Result<()> {
    let of = |what: &OwnedFd| what.try_clone().map_err(failed("dup"));
    let (mut control, mut state) = (UnixStream::from(of(control)?), File::from(of(state)?));
    control.set_read_timeout(Some(PATIENCE)).map_err(failed("setsockopt SO_RCVTIMEO"))?;
    control.write_all(b"s").map_err(failed("write"))?;
    let mut length = [0; 8];
    control.read_exact(&mut length).map_err(failed("read"))?;
    let length = u64::from_le_bytes(length);
    if length > LARGEST_STATE {
        return Err(Error::Machine(format!("its state has {length} bytes, more than {LARGEST_STATE}")));
    }
    let taken = std::io::copy(&mut control.take(length), &mut state).map_err(failed("read"))?;
    if taken < length {
        return Err(Error::Machine("it ended while it was saved".to_owned()));
    }
    Ok(())
}

fn failed(call: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |error| Error::Machine(format!("{call} of the control of {PROGRAM}: {error}"))
}

fn port(socket: &OwnedFd, name: &str) -> Value {
    json!({ "descriptor": socket.as_raw_fd(), "name": name })
}

fn card(interface: &backend::Interface) -> Value {
    // The largest packet of Ethernet where nothing else was asked for.
    let mtu = if interface.mtu == 0 { 1500 } else { interface.mtu };
    json!({
        "descriptor": interface.tap.as_raw_fd(),
        "rate": interface.sending.as_raw_fd(),
        "mac": interface.mac,
        "mtu": mtu,
    })
}
