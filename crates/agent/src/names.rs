//! The address at which containers find their name server: what is asked there is asked of the host.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use insula_proto::channel::{Kind, LARGEST_QUERY, put_frame};

use crate::error::{Context, Result};

/// Questions that may be under way; older ones are not answered.
const UNDER_WAY: usize = 256;

/// Its socket, and who asked.
#[derive(Debug)]
pub(crate) struct Names {
    socket: UdpSocket,
    asked: Vec<Option<(u32, SocketAddr)>>,
    last: u32,
}

impl Names {
    pub(crate) fn new() -> Result<Self> {
        let address = (insula_host::resolver::ADDRESS, 53);
        let socket = UdpSocket::bind(address).context("bind", "the name server's address")?;
        socket.set_nonblocking(true).context("fcntl", "the name server's socket")?;
        Ok(Self { socket, asked: vec![None; UNDER_WAY], last: 0 })
    }

    pub(crate) fn questions(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Passes questions on, as many as there are.
    pub(crate) fn ask(&mut self, out: &mut Vec<u8>) {
        let mut question = [0; LARGEST_QUERY];
        while let Ok((count, from)) = self.socket.recv_from(&mut question) {
            self.last = self.last.wrapping_add(1);
            self.asked[self.last as usize % UNDER_WAY] = Some((self.last, from));
            put_frame(out, Kind::Query, self.last, &question[..count]);
        }
    }

    pub(crate) fn answer(&mut self, number: u32, answer: &[u8]) {
        let slot = &mut self.asked[number as usize % UNDER_WAY];
        if let Some((_, from)) = slot.take_if(|(known, _)| *known == number) {
            // Who asked may have gone.
            let _ = self.socket.send_to(answer, from);
        }
    }
}
