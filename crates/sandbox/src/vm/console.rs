//! What the guest printed last.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;

/// Bytes kept.
const KEPT: usize = 8 << 10;
/// Lines that an error shows.
const SHOWN: usize = 12;
/// How a kernel's last words begin.
const PANIC: &str = "Kernel panic";
/// Bytes taken at once: a guest that prints without end does not keep the monitor from its work.
const PIECE: usize = 16 << 10;
/// Pieces at the end: more than a socket holds.
const LAST_PIECES: usize = 256;

/// The end of a console, bounded.
#[derive(Debug, Default)]
pub(super) struct Console {
    tail: VecDeque<u8>,
}

impl Console {
    /// Takes a piece of what is there; false at the end.
    pub(super) fn read(&mut self, from: BorrowedFd<'_>) -> bool {
        let mut piece = [0; PIECE];
        match rustix::io::retry_on_intr(|| {
            rustix::net::recv(from, &mut piece, rustix::net::RecvFlags::DONTWAIT)
        }) {
            Ok((0, _)) => false,
            Ok((count, _)) => {
                self.take(&piece[..count]);
                true
            }
            Err(Errno::AGAIN) => true,
            Err(_) => false,
        }
    }

    /// Takes what is there for the last time; a guest that still prints is not listened to for ever.
    pub(super) fn finish(&mut self, from: BorrowedFd<'_>) {
        for _ in 0..LAST_PIECES {
            if !super::running::ready(from) || !self.read(from) {
                break;
            }
        }
    }

    fn take(&mut self, piece: &[u8]) {
        self.tail.extend(piece);
        let more = self.tail.len().saturating_sub(KEPT);
        self.tail.drain(..more);
    }

    /// With what the guest printed last.
    pub(super) fn said(&self, what: &str) -> String {
        match self.tail() {
            tail if tail.is_empty() => format!("{what}; its console says nothing"),
            tail => format!("{what}; its console ends with:\n{tail}"),
        }
    }

    /// The last lines as plain text: a guest may print anything.
    pub(super) fn tail(&self) -> String {
        let bytes: Vec<u8> = self.tail.iter().copied().collect();
        let text: String = String::from_utf8_lossy(&bytes)
            .chars()
            .filter(|letter| *letter == '\n' || !letter.is_control())
            .collect();
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let (before, last) = lines.split_at(lines.len().saturating_sub(SHOWN));
        // A kernel that gives up says why, and where it was for many lines.
        let why = before.iter().rev().find(|line| line.contains(PANIC));
        let why = why.map_or(String::new(), |why| format!("{why}\n[…]\n"));
        format!("{why}{}", last.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_guest_that_prints_without_end_is_not_listened_to_for_ever() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let guest = std::thread::spawn(move || while theirs.write_all(b"again\n").is_ok() {});
        let mut console = Console::default();
        console.finish(ours.as_fd());
        drop(ours);
        guest.join().unwrap();
        assert!(console.tail.len() <= KEPT);
    }

    #[test]
    fn the_last_lines_are_kept_and_are_plain() {
        let mut console = Console::default();
        for number in 0..100_000 {
            console.take(format!("line {number}\r\n").as_bytes());
        }
        console.take(b"\x1b[31mpanic\x07: \xff no init\n");
        let tail = console.tail();
        assert_eq!(tail.lines().count(), SHOWN);
        assert_eq!(tail.lines().last(), Some("[31mpanic: \u{fffd} no init"));
        assert!(console.tail.len() <= KEPT);
        console.take(b"[1.0] Kernel panic - not syncing: why\n");
        console.take("[1.0] where\n".repeat(20).as_bytes());
        let tail = console.tail();
        assert!(tail.starts_with("[1.0] Kernel panic - not syncing: why\n[…]\n[1.0] where\n"), "{tail}");
        assert_eq!(tail.lines().count(), SHOWN + 2);
    }
}
