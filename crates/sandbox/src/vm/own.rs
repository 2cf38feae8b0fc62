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
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use serde_json::{Value, json};

use super::backend::{self, Begin, FILES, Files, Machine, Parts, TAG};
use super::dirty::{Counted, Counting};
use super::running::ENDED;
use crate::{Error, Result};

const PROGRAM: &str = "insula-vmm";
const KVM: &str = "/dev/kvm";
/// How long a machine may take to say what its state is, on a host that is very busy.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of an answer about a dirty rate, and as many of them as are looked at in one go.
const ANSWER: usize = 24;
const MOST_ANSWERS: usize = 64;
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
    let (begin, saved, opened) = begin(&parts)?;
    let (asker, asked) = backend::messages()?;
    // Of one that is to be saved nobody asks what it writes.
    let asked = Some(asked).filter(|_| saved.is_none());
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
        "dirty_rate": asked.as_ref().map(AsRawFd::as_raw_fd),
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
    kept.extend(asked.iter().map(AsFd::as_fd));
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
    let control = Box::new(Control { saved, asker, number: 0 });
    Ok(Machine { program: PROGRAM, process, channel, console, control, counting: Counting::No })
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

/// Sockets of the process.
#[derive(Debug)]
struct Control {
    /// If it is to be saved.
    saved: Option<OwnedFd>,
    /// Where it is asked what its guest writes: messages, as `vmm::machine::dirty` has them.
    asker: OwnedFd,
    /// Of the last question.
    number: u32,
}

impl Control {
    fn ask(&mut self, milliseconds: u32) -> Result<()> {
        self.number = self.number.wrapping_add(1);
        let question = [self.number.to_le_bytes(), milliseconds.to_le_bytes()].concat();
        let sent = rustix::net::send(&self.asker, &question, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        sent.map(drop).map_err(|source| Error::call("send", "a question about a dirty rate", source))
    }
}

impl backend::Control for Control {
    fn save(&mut self, state: &OwnedFd) -> Result<()> {
        match &self.saved {
            Some(control) => save(control, state),
            None => Err(Error::Machine("it was not begun to be saved".to_owned())),
        }
    }

    fn count(&mut self, period: Duration) -> Result<()> {
        self.ask(u32::try_from(period.as_millis()).unwrap_or(u32::MAX))
    }

    fn counted(&mut self) -> Result<Option<Counted>> {
        // Answers to former questions may be before it.
        for _ in 0..MOST_ANSWERS {
            let mut answer = [0; ANSWER];
            match rustix::net::recv(&self.asker, &mut answer, RecvFlags::DONTWAIT) {
                Ok((ANSWER, _)) if answer[..4] == self.number.to_le_bytes() => {
                    return counted(&answer).map(Some);
                }
                Ok((1.., _)) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Ok(_) | Err(_) => return Err(Error::Machine(ENDED.to_owned())),
            }
        }
        Ok(None)
    }

    fn stop_counting(&mut self) -> Result<bool> {
        self.ask(0).map(|()| true)
    }
}

/// Its answer: number, errno of what failed, pages, microseconds.
fn counted(answer: &[u8; ANSWER]) -> Result<Counted> {
    let word = |at: usize| answer[at..at + 4].iter().rev().fold(0, |word, byte| word << 8 | i32::from(*byte));
    let long = |at: usize| answer[at..at + 8].iter().rev().fold(0, |long, byte| long << 8 | u64::from(*byte));
    match word(4) {
        0 => Ok(Counted { pages: long(8), time: Duration::from_micros(long(16)), sampled: false }),
        error => {
            let why = std::io::Error::from_raw_os_error(error);
            Err(Error::Machine(format!("the dirty log of {PROGRAM}: {why}")))
        }
    }
}

/// The machine ends with it.
fn save(control: &OwnedFd, state: &OwnedFd) -> Result<()> {
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

#[cfg(test)]
mod tests {
    use super::backend::Control as _;
    use super::*;

    fn answer(number: u32, error: i32, pages: u64, microseconds: u64) -> Vec<u8> {
        let mut answer = [number.to_le_bytes(), error.to_le_bytes()].concat();
        answer.extend([pages.to_le_bytes(), microseconds.to_le_bytes()].concat());
        answer
    }

    #[test]
    fn an_answer_is_that_of_the_last_question() {
        let (asker, machine) = backend::messages().unwrap();
        let mut control = Control { saved: None, asker, number: u32::MAX };
        let say = |bytes: &[u8]| rustix::net::send(&machine, bytes, SendFlags::empty()).unwrap();
        control.count(Duration::from_millis(100)).unwrap();
        assert!(control.stop_counting().unwrap());
        control.count(Duration::from_secs(60)).unwrap();
        for question in [[0, 100], [1, 0], [2, 60_000]] {
            let mut heard = [0; 8];
            rustix::net::recv(&machine, &mut heard, RecvFlags::DONTWAIT).unwrap();
            assert_eq!(heard[..], question.map(u32::to_le_bytes).concat());
        }
        assert_eq!(control.counted().unwrap(), None);
        for stale in [&answer(0, 0, 9, 9)[..], &answer(2, 0, 9, 9)[..20], b"?"] {
            say(stale);
        }
        assert_eq!(control.counted().unwrap(), None);
        say(&answer(2, 0, 7, 60_000_001));
        let time = Duration::from_micros(60_000_001);
        assert_eq!(control.counted().unwrap(), Some(Counted { pages: 7, time, sampled: false }));
        say(&answer(2, Errno::NOMEM.raw_os_error(), 7, 1));
        let failed = control.counted().unwrap_err().to_string();
        assert!(failed.starts_with("the dirty log of insula-vmm: Cannot allocate"), "{failed}");
        // One that talks without end is not listened to without end.
        for _ in 0..MOST_ANSWERS + 1 {
            say(b"?");
        }
        assert_eq!(control.counted().unwrap(), None);
        drop(machine);
        assert_eq!(control.counted().unwrap_err().to_string(), ENDED);
        assert!(control.count(Duration::from_secs(1)).is_err());
        assert!(control.save(&backend::pair().unwrap().0).is_err(), "it was not begun for that");
    }
}
