//! The name server of containers: answers on the sockets that monitors keep for them.
//!
//! A monitor binds the sockets inside its container and keeps them; this daemon answers on duplicates.
//! While there is no daemon, queries wait in the sockets for the next one. What is not about containers is
//! asked of the host's resolvers, from the host: those on its loopback are reached as well.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use insula_base::ContainerId;
use insula_network::names::{Answer, LARGEST_QUERY, Transport, Upstreams, answer, failure, relates};
use insula_proto::{Call, Empty};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

use crate::containers::container::Container;
use crate::engine::Inner;
use crate::monitor::Task;
use crate::{Engine, Error, Result};

/// Queries of one container that wait for others, and of all containers.
const MOST_OF_ONE: usize = 128;
const MOST_OF_ALL: usize = 1024;
/// Connections of one container.
const MOST_CONNECTIONS: usize = 32;
/// How long one server is waited for, and how often all are asked.
const PATIENCE: Duration = Duration::from_secs(2);
const ROUNDS: usize = 2;
/// How long a connection may be quiet.
const IDLE: Duration = Duration::from_secs(10);

/// What all name servers of an engine share.
#[derive(Debug)]
pub(crate) struct Names {
    upstreams: Upstreams,
    forwards: Semaphore,
    turn: AtomicUsize,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            upstreams: Upstreams::default(),
            forwards: Semaphore::new(MOST_OF_ALL),
            turn: AtomicUsize::new(0),
        }
    }
}

/// A name server at work; it ends with this.
#[derive(Debug)]
pub(crate) struct Serving(AbortHandle);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The name server of one container.
#[derive(Debug, Clone)]
struct Server {
    engine: Weak<Inner>,
    container: ContainerId,
    /// Asked in place of the host's, if there are any.
    own: Vec<IpAddr>,
}

impl Engine {
    /// Answers a container's queries from now on, if it is in a network with names.
    pub(crate) fn serve_names(&self, container: &Arc<Container>) {
        let mut state = container.state();
        let (Some(task), None) = (state.task.clone(), &state.names) else { return };
        if !self.networks().names().has_names(&container.id) {
            return;
        }
        // Checked when the container was made.
        let own = state.row().host.dns.iter().filter_map(|server| server.parse().ok()).collect();
        let server = Server { engine: Arc::downgrade(&self.0), container: container.id.clone(), own };
        let serving = tokio::spawn(async move {
            let container = server.container.clone();
            if let Err(error) = server.run(&task).await {
                tracing::warn!(
                    container = container.short(),
                    error = insula_base::chain(&error),
                    "name server"
                );
            }
        });
        state.names = Some(Serving(serving.abort_handle()));
    }
}

impl Server {
    async fn run(self, task: &Task) -> Result<()> {
        let (udp, tcp) = sockets(task).await?;
        tokio::join!(self.serve_udp(Arc::new(udp)), self.serve_tcp(tcp));
        Ok(())
    }

    async fn serve_udp(&self, socket: Arc<UdpSocket>) {
        let mut tasks = JoinSet::new();
        let mut buffer = vec![0; LARGEST_QUERY + 1];
        loop {
            let (count, from) = tokio::select! {
                received = socket.recv_from(&mut buffer) => match received {
                    Ok(received) => received,
                    // A client that went before its answer came.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                    Err(error) => return self.stopped(&error),
                },
                Some(_) = tasks.join_next() => continue,
            };
            let query = &buffer[..count];
            let reply = match self.answer(query, Transport::Udp) {
                Answer::Reply(reply) => Some(reply),
                Answer::Ignore => None,
                Answer::Forward if tasks.len() >= MOST_OF_ONE => failure(query),
                Answer::Forward => {
                    let (server, socket, query) = (self.clone(), socket.clone(), query.to_vec());
                    tasks.spawn(async move {
                        if let Some(reply) = server.forward(&query, Transport::Udp).await {
                            // The client may have gone.
                            let _ = socket.send_to(&reply, from).await;
                        }
                    });
                    None
                }
            };
            if let Some(reply) = reply {
                let _ = socket.try_send_to(&reply, from);
            }
        }
    }

    async fn serve_tcp(&self, listener: TcpListener) {
        let mut tasks = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept(), if tasks.len() < MOST_CONNECTIONS => match accepted {
                    Ok((stream, _)) => {
                        let server = self.clone();
                        tasks.spawn(async move { server.converse(stream).await });
                    }
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                    Err(error) => return self.stopped(&error),
                },
                Some(_) = tasks.join_next() => {}
            }
        }
    }

    /// Query after query, each behind its length.
    async fn converse(&self, mut stream: TcpStream) {
        while let Ok(Ok(query)) = timeout(IDLE, receive(&mut stream, LARGEST_QUERY)).await {
            let reply = match self.answer(&query, Transport::Tcp) {
                Answer::Reply(reply) => Some(reply),
                Answer::Forward => self.forward(&query, Transport::Tcp).await,
                Answer::Ignore => None,
            };
            let Some(reply) = reply else { return };
            if !matches!(timeout(IDLE, send(&mut stream, &reply)).await, Ok(Ok(()))) {
                return;
            }
        }
    }

    fn answer(&self, query: &[u8], transport: Transport) -> Answer {
        let Some(engine) = self.engine.upgrade() else { return Answer::Ignore };
        let turn = engine.names.turn.fetch_add(1, Ordering::Relaxed);
        answer(query, &engine.networks.names().view(&self.container), transport, turn)
    }

    /// What the first server that answers says, or that none did.
    async fn forward(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let engine = self.engine.upgrade()?;
        let Ok(_permit) = engine.names.forwards.try_acquire() else { return failure(query) };
        let servers = match self.own.is_empty() {
            false => Upstreams::addressed(self.own.clone()),
            true => engine.names.upstreams.of_the_host(),
        };
        ask_all(&servers, query, transport).await.or_else(|| failure(query))
    }

    fn stopped(&self, error: &io::Error) {
        tracing::warn!(container = self.container.short(), %error, "a name server's socket failed");
    }
}

/// The sockets, from the monitor.
async fn sockets(task: &Task) -> Result<(UdpSocket, TcpListener)> {
    let place = Path::new("a name server's sockets");
    let fail = |call| move |error: io::Error| Error::io(call, place, error);
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(fail("socketpair"))?;
    task.call(Call::Resolver(Empty {}), &[OwnedFd::from(theirs)]).await?;
    // They were sent before the answer.
    let (_, descriptors) = insula_sys::socket::receive(ours.as_fd(), &mut [0; 1])
        .map_err(|error| Error::io("recvmsg", place, error))?;
    let [udp, tcp] = <[OwnedFd; 2]>::try_from(descriptors)
        .map_err(|_| Error::Internal("a monitor sent something else than a name server's sockets".into()))?;
    let udp = UdpSocket::from_std(udp.into()).map_err(fail("register"))?;
    let tcp = TcpListener::from_std(tcp.into()).map_err(fail("register"))?;
    Ok((udp, tcp))
}

/// Asks one server after the other. Who is not able to tell is not the last to be asked.
async fn ask_all(servers: &[SocketAddr], query: &[u8], transport: Transport) -> Option<Vec<u8>> {
    let mut worst = None;
    for _ in 0..ROUNDS {
        for server in servers {
            let asked = timeout(PATIENCE, async {
                match transport {
                    Transport::Udp => ask_udp(*server, query).await,
                    Transport::Tcp => ask_tcp(*server, query).await,
                }
            });
            match asked.await {
                Ok(Ok(reply)) if able(&reply) => return Some(reply),
                Ok(Ok(reply)) => worst = Some(reply),
                Ok(Err(_)) | Err(_) => {}
            }
        }
        if worst.is_some() {
            break;
        }
    }
    worst
}

/// Neither SERVFAIL nor REFUSED.
fn able(reply: &[u8]) -> bool {
    !matches!(reply.get(3).map(|flags| flags & 0x0f), Some(2 | 5))
}

/// From a port of its own and with an id of its own, so that nobody else's answer is taken for it.
async fn ask_udp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    let asked = with_new_id(query);
    socket.send(&asked).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let count = socket.recv(&mut buffer).await?;
        if let Some(reply) = take(query, &asked, &buffer[..count]) {
            return Ok(reply);
        }
    }
}

async fn ask_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let asked = with_new_id(query);
    send(&mut stream, &asked).await?;
    let reply = receive(&mut stream, usize::from(u16::MAX)).await?;
    take(query, &asked, &reply).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn with_new_id(query: &[u8]) -> Vec<u8> {
    let mut asked = query.to_vec();
    let digits = insula_base::random_hex(2);
    let id = u16::from_str_radix(&digits, 16).unwrap_or_default().to_be_bytes();
    asked[..2].copy_from_slice(&id);
    asked
}

/// The reply under the id that the client knows, if it is one to what was asked.
fn take(query: &[u8], asked: &[u8], reply: &[u8]) -> Option<Vec<u8>> {
    if reply.get(..2) != asked.get(..2) || !relates(query, reply) {
        return None;
    }
    let mut reply = reply.to_vec();
    reply[..2].copy_from_slice(&query[..2]);
    Some(reply)
}

async fn receive(stream: &mut TcpStream, most: usize) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > most {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn send(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(message);
    stream.write_all(&framed).await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `a.`, class IN, type A.
    const QUERY: [u8; 19] = [0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 0, 0, 1, 0, 1];

    fn replied(query: &[u8], code: u8) -> Vec<u8> {
        let mut reply = query.to_vec();
        (reply[2], reply[3]) = (0x81, 0x80 | code);
        reply
    }

    #[tokio::test]
    async fn the_first_able_server_is_believed() {
        let (unable, able) =
            (UdpSocket::bind("127.0.0.1:0").await.unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let servers = [unable.local_addr().unwrap(), able.local_addr().unwrap()];
        let serve = |socket: UdpSocket, code| async move {
            let mut buffer = [0; 512];
            let (count, from) = socket.recv_from(&mut buffer).await.unwrap();
            assert_ne!(buffer[..2], QUERY[..2], "an id of its own");
            let mut stranger = replied(&buffer[..count], 3);
            stranger[0] ^= 0xff;
            socket.send_to(&stranger, from).await.unwrap();
            socket.send_to(&replied(&buffer[..count], code), from).await.unwrap();
        };
        let asked = ask_all(&servers, &QUERY, Transport::Udp);
        let (reply, (), ()) = tokio::join!(asked, serve(unable, 2), serve(able, 0));
        assert_eq!(reply.unwrap(), replied(&QUERY, 0));
        assert_eq!(ask_all(&[], &QUERY, Transport::Udp).await, None);
    }

    #[tokio::test]
    async fn long_replies_come_by_tcp() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = [listener.local_addr().unwrap()];
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let query = receive(&mut stream, 512).await.unwrap();
            let mut reply = replied(&query, 0);
            reply.extend([0; 40_000]);
            send(&mut stream, &reply).await.unwrap();
        };
        let (reply, ()) = tokio::join!(ask_all(&server, &QUERY, Transport::Tcp), serve);
        assert_eq!(reply.unwrap().len(), 40_019);
    }
}
