//! The daemon's orders, on a socket in a folder that only its user can enter. One daemon is listened to at a time.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use insula_spec::outlets::{LARGEST_MESSAGE, MOST_AT_ONCE, Order, Reply, VERSION};

use super::table::Table;

/// Until the end is ordered.
pub(super) fn obey(listener: &UnixListener, table: &Table) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept()?;
        match converse(stream, table) {
            Ok(true) => return Ok(()),
            // The daemon has ended, or another one is to come.
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "the daemon's orders"),
        }
    }
}

/// Whether the end was ordered.
fn converse(mut stream: UnixStream, table: &Table) -> io::Result<bool> {
    while let Some((text, sockets)) = receive(&mut stream)? {
        let reply = match serde_json::from_slice(&text) {
            Ok(order) => follow(order, sockets, table),
            Err(error) => Reply::Refused { why: error.to_string() },
        };
        let text = serde_json::to_vec(&reply)?;
        let length = u32::try_from(text.len()).map_err(io::Error::other)?;
        stream.write_all(&length.to_be_bytes())?;
        stream.write_all(&text)?;
        if reply == Reply::Ended {
            return Ok(true);
        }
    }
    Ok(false)
}

fn follow(order: Order, sockets: Vec<OwnedFd>, table: &Table) -> Reply {
    let refused = |why: &str| Reply::Refused { why: why.to_owned() };
    match order {
        Order::List => Reply::List { version: VERSION, outlets: table.list() },
        Order::Serve(outlets) if outlets.len() != sockets.len() || outlets.len() > MOST_AT_ONCE => {
            refused("a socket for each outlet is expected")
        }
        Order::Serve(outlets) => {
            let served =
                outlets.into_iter().zip(sockets).try_for_each(|(outlet, socket)| table.serve(outlet, socket));
            served.map_or_else(|error| refused(&error.to_string()), |()| Reply::Done)
        }
        Order::Turn(outlets) => match outlets.iter().find(|outlet| !table.turn(outlet)) {
            Some(outlet) => refused(&format!("{} is not served", outlet.host)),
            None => Reply::Done,
        },
        Order::Stop(outlets) => {
            outlets.iter().for_each(|outlet| table.stop(outlet));
            Reply::Done
        }
        Order::End => {
            table.clear();
            Reply::Ended
        }
    }
}

/// One message behind its length, and the descriptors that came with its first byte.
fn receive(stream: &mut UnixStream) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut head = [0; 4];
    let (mut filled, mut sockets) = (0, Vec::new());
    while filled < head.len() {
        let (count, came) = insula_sys::socket::receive(stream.as_fd(), &mut head[filled..])?;
        if count == 0 {
            return Ok(None);
        }
        filled += count;
        sockets.extend(came);
    }
    let length = u32::from_be_bytes(head) as usize;
    if length > LARGEST_MESSAGE {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut text = vec![0; length];
    stream.read_exact(&mut text)?;
    Ok(Some((text, sockets)))
}
