//! What is served, and by which task.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use insula_spec::outlets::{Outlet, Transport};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::task::AbortHandle;

use super::{tcp, udp};

#[derive(Debug)]
pub(super) struct Table {
    runtime: Handle,
    connections: Arc<Semaphore>,
    served: Mutex<HashMap<(Transport, SocketAddr), Served>>,
}

/// One port. Its socket closes with this.
#[derive(Debug)]
struct Served {
    to: watch::Sender<SocketAddr>,
    task: AbortHandle,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Table {
    pub(super) fn new(runtime: Handle, connections: Arc<Semaphore>) -> Self {
        Self { runtime, connections, served: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(Transport, SocketAddr), Served>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn list(&self) -> Vec<Outlet> {
        let served = self.lock();
        served
            .iter()
            .map(|((transport, host), served)| Outlet {
                transport: *transport,
                host: *host,
                to: *served.to.borrow(),
            })
            .collect()
    }

    /// A new socket takes the place of a former one.
    pub(super) fn serve(&self, outlet: Outlet, socket: OwnedFd) -> io::Result<()> {
        // What it registers is the runtime's.
        let _context = self.runtime.enter();
        let (to, target) = watch::channel(outlet.to);
        let task = match outlet.transport {
            Transport::Tcp => {
                let socket = std::net::TcpListener::from(socket);
                socket.set_nonblocking(true)?;
                let listener = tokio::net::TcpListener::from_std(socket)?;
                self.runtime.spawn(tcp::serve(listener, target, self.connections.clone()))
            }
            Transport::Udp => {
                let socket = std::net::UdpSocket::from(socket);
                socket.set_nonblocking(true)?;
                let socket = tokio::net::UdpSocket::from_std(socket)?;
                self.runtime.spawn(udp::serve(socket, target, self.connections.clone()))
            }
        };
        let served = Served { to, task: task.abort_handle() };
        self.lock().insert((outlet.transport, outlet.host), served);
        Ok(())
    }

    /// Whether it is served.
    pub(super) fn turn(&self, outlet: &Outlet) -> bool {
        let served = self.lock();
        let Some(found) = served.get(&(outlet.transport, outlet.host)) else { return false };
        found.to.send_replace(outlet.to);
        true
    }

    pub(super) fn stop(&self, outlet: &Outlet) {
        self.lock().remove(&(outlet.transport, outlet.host));
    }

    pub(super) fn clear(&self) {
        self.lock().clear();
    }
}
