//! Datagrams. Each client has a socket of its own, by which the answers come back.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// How long a client is remembered that says and hears nothing.
const IDLE: Duration = Duration::from_secs(90);
const SHORTAGE: Duration = Duration::from_millis(50);
const LARGEST: usize = 64 << 10;
/// Clients of one port.
const MOST: usize = 1024;

/// Until it is aborted.
pub(super) async fn serve(socket: UdpSocket, to: watch::Receiver<SocketAddr>, sockets: Arc<Semaphore>) {
    let socket = Arc::new(socket);
    let mut clients: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut answering = JoinSet::new();
    let mut buffer = vec![0; LARGEST];
    loop {
        let (count, client) = tokio::select! {
            received = socket.recv_from(&mut buffer) => match received {
                Ok(received) => received,
                // An answer that nobody took.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(_) => {
                    tokio::time::sleep(SHORTAGE).await;
                    continue;
                }
            },
            Some(Ok(client)) = answering.join_next() => {
                clients.remove(&client);
                continue;
            }
        };
        let to = *to.borrow();
        let known =
            clients.get(&client).filter(|inner| inner.peer_addr().is_ok_and(|peer| peer == to)).cloned();
        let inner = match known {
            Some(inner) => inner,
            None if clients.len() >= MOST => continue,
            None => {
                let Ok(permit) = sockets.clone().try_acquire_owned() else { continue };
                let Ok(inner) = reach(to).await else { continue };
                let inner = Arc::new(inner);
                clients.insert(client, inner.clone());
                answering.spawn(answer(socket.clone(), inner.clone(), client, permit));
                inner
            }
        };
        // A container that does not listen, or not yet: datagrams may get lost.
        let _ = inner.send(&buffer[..count]).await;
    }
}

async fn reach(to: SocketAddr) -> io::Result<UdpSocket> {
    if to.port() == 0 {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    let any: SocketAddr = match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(to).await?;
    Ok(socket)
}

/// Hands back what the container says, until it has been silent for long; the client that it was for.
async fn answer(
    outer: Arc<UdpSocket>,
    inner: Arc<UdpSocket>,
    client: SocketAddr,
    _permit: OwnedSemaphorePermit,
) -> SocketAddr {
    let mut buffer = vec![0; LARGEST];
    loop {
        match timeout(IDLE, inner.recv(&mut buffer)).await {
            Ok(Ok(count)) => drop(outer.send_to(&buffer[..count], client).await),
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Ok(Err(_)) | Err(_) => return client,
        }
    }
}
