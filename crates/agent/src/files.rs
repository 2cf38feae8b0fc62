//! The container's files: a device that the kernel knows, or `/dev/fuse`, whose messages a process of the
//! agent's passes through a port of the console.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use insula_spec::machine::FilesPlan;
use insula_sys::process::{self, Clone, CloneFlags};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use rustix::system::RebootCommand;

use crate::error::{Context, Error, Result};
use crate::machine;

/// Where they are mounted.
const SHARE: &str = "/share";
/// Their name among the machine's devices.
const TAG: &str = "insula";
/// The port that they come through.
const PORT: &str = "files";

/// Head of a question of the kernel, `struct fuse_in_header` of linux/fuse.h, and of an answer to it.
const QUESTION: usize = 40;
const ANSWER: usize = 16;
/// The question by which the kernel asks to give another one up.
const INTERRUPT: u32 = 36;
/// The largest message: what the host's end allows with its heads.
const LARGEST: usize = (128 << 10) + 4096;
/// Bytes that wait for the port at which no more questions are taken.
const MOST_WAITING: usize = 256 << 10;

pub(crate) fn mount(plan: FilesPlan) -> Result<()> {
    match plan {
        FilesPlan::Device => rustix::mount::mount(TAG, SHARE, "virtiofs", MountFlags::empty(), c"")
            .context("mount", format_args!("virtiofs on {SHARE}")),
        FilesPlan::Port => mount_through(machine::port_named(PORT)?, Span::Machine),
        FilesPlan::Stream | FilesPlan::None => Err(Error::NotHere),
    }
}

/// The files of one container of several: their messages go through `stream`.
pub(crate) fn mount_stream(stream: OwnedFd) -> Result<()> {
    rustix::io::ioctl_fionbio(&stream, true).context("ioctl FIONBIO", "the files' stream")?;
    mount_through(stream, Span::Container)
}

/// Has what was written go to the host: everything in a machine of one container, else the container's. What cannot
/// go is lost; the end is told all the same.
pub(crate) fn write_back(everything: bool) {
    if everything {
        return rustix::fs::sync();
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    if let Ok(share) = rustix::fs::open(SHARE, flags, Mode::empty()) {
        let _ = rustix::fs::syncfs(&share);
    }
}

/// What ends with the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Span {
    /// Nothing in the machine can go on without them.
    Machine,
    /// The container that has them; the host ends it.
    Container,
}

fn mount_through(port: OwnedFd, span: Span) -> Result<()> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fuse = rustix::fs::open("/dev/fuse", flags, Mode::empty()).context("open", "/dev/fuse")?;
    let number = fuse.as_raw_fd();
    let options = format!("fd={number},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions");
    let options = CString::new(options).unwrap_or_default();
    rustix::mount::mount(TAG, SHARE, "fuse", MountFlags::empty(), &*options)
        .context("mount", format_args!("fuse on {SHARE}"))?;
    match process::clone(CloneFlags::empty(), None).context("clone3", "for files")? {
        Clone::Child => {
            process::close_from_3_but(&[port.as_fd(), fuse.as_fd()]);
            if let Err(error) = Carrier::new(fuse, port, span).serve() {
                eprintln!("insula-agent: files: {}", insula_base::chain(&error));
                if span == Span::Machine {
                    let _ = rustix::system::reboot(RebootCommand::Restart);
                }
            }
            process::exit_now(1)
        }
        Clone::Parent { .. } => Ok(()),
    }
}

/// Passes messages between the kernel and the port.
#[derive(Debug)]
struct Carrier {
    fuse: OwnedFd,
    port: OwnedFd,
    /// Questions that the port did not take yet.
    up: Vec<u8>,
    /// Answers that are not complete yet.
    down: Vec<u8>,
    piece: Vec<u8>,
    span: Span,
}

impl Carrier {
    fn new(fuse: OwnedFd, port: OwnedFd, span: Span) -> Self {
        Self { fuse, port, up: Vec::new(), down: Vec::new(), piece: vec![0; LARGEST], span }
    }

    fn serve(mut self) -> Result<()> {
        // What it does for memory to be freed must not wait for memory that it frees itself: prctl(2).
        process::flush_io(true).context("prctl", "PR_SET_IO_FLUSHER")?;
        loop {
            self.wait()?;
            if !self.take_answers()? {
                return Ok(());
            }
            if self.up.len() < MOST_WAITING && !self.take_question()? {
                return Ok(());
            }
            self.flush()?;
        }
    }

    fn wait(&self) -> Result<()> {
        let some = |on: bool, flags| if on { flags } else { PollFlags::empty() };
        let mut polled = [
            PollFd::new(&self.port, PollFlags::IN | some(!self.up.is_empty(), PollFlags::OUT)),
            PollFd::new(&self.fuse, some(self.up.len() < MOST_WAITING, PollFlags::IN)),
        ];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, None)).context("poll", "for files")?;
        Ok(())
    }

    /// Takes one question of the kernel; false when the file system is gone.
    fn take_question(&mut self) -> Result<bool> {
        match rustix::io::read(&self.fuse, &mut self.piece[..]) {
            Ok(count) => {
                let question = &self.piece[..count];
                match refusal(question) {
                    Some(answer) => self.answer(&answer),
                    None => self.up.extend_from_slice(question),
                }
                Ok(true)
            }
            // Given up between the wait and here.
            Err(Errno::AGAIN | Errno::INTR | Errno::NOENT) => Ok(true),
            Err(Errno::NODEV) => Ok(false),
            Err(error) => Err(error).context("read", "/dev/fuse"),
        }
    }

    /// Passes answers on; false when the host has let the files go.
    fn take_answers(&mut self) -> Result<bool> {
        loop {
            match rustix::io::read(&self.port, &mut self.piece[..]) {
                Ok(0) if self.span == Span::Container => return Ok(false),
                // Nobody is there yet.
                Ok(0) | Err(Errno::AGAIN) => return Ok(true),
                Err(Errno::INTR) => {}
                Ok(count) => {
                    self.down.extend_from_slice(&self.piece[..count]);
                    self.pass_answers();
                }
                Err(error) => return Err(error).context("read", "the port of files"),
            }
        }
    }

    fn pass_answers(&mut self) {
        let mut taken = 0;
        while let Some(head) = self.down[taken..].first_chunk::<4>() {
            let length = (u32::from_le_bytes(*head) as usize).max(ANSWER);
            let Some(answer) = self.down.get(taken..taken + length) else { break };
            self.answer(answer);
            taken += length;
        }
        self.down.drain(..taken);
    }

    /// Who asked may not wait any more, which the kernel says here.
    fn answer(&self, answer: &[u8]) {
        let _ = rustix::io::write(&self.fuse, answer);
    }

    fn flush(&mut self) -> Result<()> {
        let mut sent = 0;
        while sent < self.up.len() {
            match rustix::io::retry_on_intr(|| rustix::io::write(&self.port, &self.up[sent..])) {
                Ok(count) => sent += count,
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error).context("write", "the port of files"),
            }
        }
        self.up.drain(..sent);
        Ok(())
    }
}

/// The answer to a question that does not go to the host: what is under way is not given up, so the kernel
/// need not ask again.
fn refusal(question: &[u8]) -> Option<[u8; ANSWER]> {
    const NOSYS: i32 = 38;
    let head = question.first_chunk::<QUESTION>()?;
    if head[4..8] != INTERRUPT.to_le_bytes() {
        return None;
    }
    let mut answer = [0; ANSWER];
    answer[..4].copy_from_slice(&(ANSWER as u32).to_le_bytes());
    answer[4..8].copy_from_slice(&(-NOSYS).to_le_bytes());
    answer[8..].copy_from_slice(&head[8..16]);
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_interrupts_are_answered_here() {
        let mut question = [9; QUESTION];
        assert_eq!(refusal(&question), None);
        question[4..8].copy_from_slice(&INTERRUPT.to_le_bytes());
        let answer = refusal(&question).unwrap();
        assert_eq!(answer[..8], [16, 0, 0, 0, 218, 255, 255, 255]);
        assert_eq!(answer[8..], [9; 8]);
        assert_eq!(refusal(&question[..20]), None);
    }
}
