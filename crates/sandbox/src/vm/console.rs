//! What the guest printed last.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;

/// Bytes kept.
const KEPT: usize = 8 << 10;
/// Lines that an error shows.
const SHOWN: usize = 12;
/// Bytes taken at once: a guest that prints without end does not keep the monitor from its work.
const PIECE: usize = 16 << 10;

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

    fn take(&mut self, piece: &[u8]) {
        self.tail.extend(piece);
        let more = self.tail.len().saturating_sub(KEPT);
        self.tail.drain(..more);
    }

    /// The last lines as plain text: a guest may print anything.
    pub(super) fn tail(&self) -> String {
        let bytes: Vec<u8> = self.tail.iter().copied().collect();
        let text: String = String::from_utf8_lossy(&bytes)
            .chars()
            .filter(|letter| *letter == '\n' || !letter.is_control())
            .collect();
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        lines[lines.len().saturating_sub(SHOWN)..].join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    }
}
