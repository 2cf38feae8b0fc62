//! Connections, byte by byte.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

/// How long nobody is accepted when descriptors or memory are short.
const SHORTAGE: Duration = Duration::from_millis(50);
/// How long a container may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Each way.
const BUFFER: usize = 64 << 10;

/// Until it is aborted. Connections that stand go on.
pub(super) async fn serve(
    listener: TcpListener,
    to: watch::Receiver<SocketAddr>,
    connections: Arc<Semaphore>,
) {
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((client, _)) => {
                let to = *to.borrow();
                tokio::spawn(async move {
                    if carry(client, to).await.is_err() {
                        // Either side may break off whenever it likes.
                    }
                    drop(permit);
                });
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(_) => tokio::time::sleep(SHORTAGE).await,
        }
    }
}

async fn carry(mut client: TcpStream, to: SocketAddr) -> io::Result<()> {
    let mut container = match reach(to).await {
        Ok(container) => container,
        Err(error) => {
            // As from a port that nobody listens on, as near as it can be: a reset.
            rustix::net::sockopt::set_socket_linger(client.as_fd(), Some(Duration::ZERO))?;
            return Err(error);
        }
    };
    client.set_nodelay(true)?;
    container.set_nodelay(true)?;
    copy_bidirectional_with_sizes(&mut client, &mut container, BUFFER, BUFFER).await.map(drop)
}

async fn reach(to: SocketAddr) -> io::Result<TcpStream> {
    if to.port() == 0 {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    tokio::time::timeout(PATIENCE, TcpStream::connect(to)).await.map_err(io::Error::from).flatten()
}
