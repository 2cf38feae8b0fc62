//! Netlink sockets (netlink(7)) and network namespaces of threads.

use std::io::{IoSliceMut, Result};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, ReturnFlags, SendFlags, SocketFlags, SocketType, netlink,
};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

/// Which part of the kernel is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Links, addresses, routes: rtnetlink(7).
    Route,
    /// nf_tables by way of nfnetlink.
    Netfilter,
}

/// A netlink socket to the kernel, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// socket(2). Acknowledgements carry the kernel's explanation and not the request
    /// (`NETLINK_EXT_ACK`, `NETLINK_CAP_ACK`).
    pub fn open(family: Family) -> Result<Self> {
        let protocol = match family {
            // NETLINK_ROUTE is number 0, which rustix spells so.
            Family::Route => None,
            Family::Netfilter => Some(netlink::NETFILTER),
        };
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
        let socket = Self(socket);
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            socket.enable(option)?;
        }
        Ok(socket)
    }

    /// Receives what the kernel tells everyone who is in a group (1 to 32), too. The kernel sends nothing to
    /// sockets without a name, hence bind(2).
    pub fn join(&self, group: u32) -> Result<()> {
        let mask = group.checked_sub(1).and_then(|shift| 1u32.checked_shl(shift)).unwrap_or(0);
        Ok(rustix::net::bind(&self.0, &netlink::SocketAddrNetlink::new(0, mask))?)
    }

    /// Gives it a name, unless it has one, and returns it: the number by which the kernel tells whose request
    /// something was. Unique in the network namespace.
    pub fn name(&self) -> Result<u32> {
        let nobody = |name: &netlink::SocketAddrNetlink| name.pid() == 0;
        let own = || -> Result<netlink::SocketAddrNetlink> {
            Ok(netlink::SocketAddrNetlink::try_from(rustix::net::getsockname(&self.0)?)?)
        };
        if nobody(&own()?) {
            rustix::net::bind(&self.0, &netlink::SocketAddrNetlink::new(0, 0))?;
        }
        Ok(own()?.pid())
    }

    fn enable(&self, option: libc::c_int) -> Result<()> {
        let on: libc::c_int = 1;
        let size = size_of_val(&on) as libc::socklen_t;
        // SAFETY: the descriptor is open, the value is an int that outlives the call and `size` is its size.
        let code = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                libc::SOL_NETLINK,
                option,
                std::ptr::from_ref(&on).cast(),
                size,
            )
        };
        if code == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    }

    /// Sends one datagram, which may hold several requests; the kernel has carried them out when
    /// this returns.
    pub fn send(&self, datagram: &[u8]) -> Result<()> {
        let sent = rustix::io::retry_on_intr(|| rustix::net::send(&self.0, datagram, SendFlags::empty()))?;
        if sent == datagram.len() { Ok(()) } else { Err(std::io::ErrorKind::WriteZero.into()) }
    }

    /// Receives one datagram that the kernel has sent already, or `WouldBlock`; one that does not
    /// fit is an error, not a part.
    pub fn receive(&self, buffer: &mut [u8]) -> Result<usize> {
        let message = rustix::io::retry_on_intr(|| {
            let mut ancillary = RecvAncillaryBuffer::default();
            let mut parts = [IoSliceMut::new(buffer)];
            rustix::net::recvmsg(&self.0, &mut parts, &mut ancillary, RecvFlags::DONTWAIT)
        })?;
        if message.flags.contains(ReturnFlags::TRUNC) {
            return Err(rustix::io::Errno::MSGSIZE.into());
        }
        Ok(message.bytes)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Moves the calling thread into a new network namespace with nothing but a loopback that is down.
pub fn unshare_network() -> Result<()> {
    // SAFETY: CLONE_NEWNET changes no memory and no descriptor table; open sockets stay where they were made.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.map_err(Into::into)
}

/// Moves the calling thread into the network namespace that `namespace` (`/proc/…/ns/net`) names.
pub fn enter_network(namespace: BorrowedFd<'_>) -> Result<()> {
    rustix::thread::move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network)).map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_answers() {
        let socket = Socket::open(Family::Route).unwrap();
        // nlmsghdr: length, RTM_GETLINK, REQUEST | ACK, sequence, port; then an empty ifinfomsg
        // with index 1, which is loopback.
        let mut request = Vec::new();
        request.extend(32u32.to_ne_bytes());
        request.extend(18u16.to_ne_bytes());
        request.extend(1u16.to_ne_bytes());
        request.extend(7u32.to_ne_bytes());
        request.extend([0; 8]);
        request.extend(1i32.to_ne_bytes());
        request.extend([0; 8]);
        socket.send(&request).unwrap();
        let mut small = [0; 20];
        assert!(socket.receive(&mut small).is_err());
        socket.send(&request).unwrap();
        let mut buffer = vec![0; 8192];
        let count = socket.receive(&mut buffer).unwrap();
        assert!(count > 32 && buffer[..count].windows(2).any(|pair| pair == b"lo"));
    }
}
