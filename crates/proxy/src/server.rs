//! Listeners, and what all connections share.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use insula_spec::sites;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use crate::table::Table;
use crate::target::Target;
use crate::{Error, connection, control, limits};

/// How long nobody is accepted when descriptors or memory are short.
const SHORTAGE: Duration = Duration::from_millis(50);

/// Sockets that listen already, and the daemon's.
#[derive(Debug)]
pub struct Listeners {
    pub http: Vec<OwnedFd>,
    pub https: Vec<OwnedFd>,
    pub control: OwnedFd,
}

/// What everyone needs.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) http: Vec<SocketAddr>,
    pub(crate) https: Vec<SocketAddr>,
    pub(crate) ending: watch::Sender<bool>,
    pub(crate) tls: Arc<ServerConfig>,
    provider: Arc<CryptoProvider>,
    table: Arc<Current>,
    /// What is served no longer, as long as requests to it are under way.
    departed: Mutex<Vec<Arc<Target>>>,
    /// Listeners that are open.
    listening: watch::Sender<usize>,
    connections: Arc<Semaphore>,
    clients: Mutex<HashMap<IpAddr, usize>>,
}

/// The table in force, which knows certificates.
#[derive(Debug, Default)]
struct Current(Mutex<Arc<Table>>);

impl Current {
    fn get(&self) -> Arc<Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name()?.parse().ok()?;
        self.get().identity(&name).map(|identity| identity.key.clone())
    }
}

/// One connection of a client, counted until it is dropped.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) address: IpAddr,
    shared: Arc<Shared>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Client {
    fn drop(&mut self) {
        let mut clients = self.shared.clients();
        let key = network(self.address);
        if let Some(count) = clients.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                clients.remove(&key);
            }
        }
    }
}

impl Shared {
    fn new(listeners: &Listening, connections: usize) -> Result<Self, Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let table = Arc::new(Current::default());
        let mut tls = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(table.clone());
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let addresses = |all: &[TcpListener]| all.iter().filter_map(|one| one.local_addr().ok()).collect();
        Ok(Self {
            http: addresses(&listeners.http),
            https: addresses(&listeners.https),
            ending: watch::Sender::new(false),
            tls: Arc::new(tls),
            provider,
            table,
            departed: Mutex::default(),
            listening: watch::Sender::new(listeners.http.len() + listeners.https.len()),
            connections: Arc::new(Semaphore::new(connections)),
            clients: Mutex::default(),
        })
    }

    pub(crate) fn table(&self) -> Arc<Table> {
        self.table.get()
    }

    /// Serves another table from now on; what of it cannot be.
    pub(crate) fn replace(&self, told: sites::Table) -> Vec<String> {
        let before = self.table();
        let (table, warnings) = Table::new(told, &before, &self.provider);
        let table = Arc::new(table);
        *self.table.0.lock().unwrap_or_else(PoisonError::into_inner) = table.clone();
        let mut departed = self.departed();
        departed.retain(|target| target.requests() > 0);
        departed.extend(table.departed(&before));
        warnings
    }

    /// Waits until none of these has a request under way; how many there are if that takes longer.
    pub(crate) async fn drain(&self, targets: &[SocketAddr], within: Duration) -> usize {
        let mut leaving = self.departed().clone();
        leaving.retain(|target| targets.contains(&target.address));
        let rest = async {
            for target in &leaving {
                target.rests().await;
            }
        };
        let _ = tokio::time::timeout(within.min(limits::DRAIN), rest).await;
        leaving.iter().map(|target| target.requests()).sum()
    }

    fn departed(&self) -> MutexGuard<'_, Vec<Arc<Target>>> {
        self.departed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Accepts nobody any more, and says to all connections that this is the end; returns when no address is taken.
    pub(crate) async fn end(&self) {
        self.ending.send_replace(true);
        // It cannot fail: the sender is here.
        let _ = self.listening.subscribe().wait_for(|open| *open == 0).await;
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing for a client that has as many connections as one may have.
    fn admit(self: &Arc<Self>, address: IpAddr, permit: OwnedSemaphorePermit) -> Option<Client> {
        let mut clients = self.clients();
        let count = clients.entry(network(address)).or_default();
        if *count >= limits::MOST_OF_ONE {
            return None;
        }
        *count += 1;
        Some(Client { address, shared: self.clone(), _permit: permit })
    }
}

/// Whom a limit is for: an address of IPv4, a network of IPv6.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

#[derive(Debug)]
struct Listening {
    http: Vec<TcpListener>,
    https: Vec<TcpListener>,
}

/// Serves until the daemon orders the end, and then until the last connection has ended, or for a while.
/// `descriptors` is how many this process may have open.
///
/// # Errors
/// When a socket is none that listens.
pub async fn serve(listeners: Listeners, descriptors: usize) -> Result<(), Error> {
    let open = |sockets: Vec<OwnedFd>| sockets.into_iter().map(tcp).collect::<Result<Vec<_>, _>>();
    let listening = Listening { http: open(listeners.http)?, https: open(listeners.https)? };
    let fail = |source| Error::Listener { call: "register", source };
    let control = std::os::unix::net::UnixListener::from(listeners.control);
    control.set_nonblocking(true).map_err(fail)?;
    let control = UnixListener::from_std(control).map_err(fail)?;
    let able = descriptors.saturating_sub(limits::OTHER_DESCRIPTORS) / limits::DESCRIPTORS;
    let most = able.clamp(1, limits::MOST_CONNECTIONS);
    let shared = Arc::new(Shared::new(&listening, most)?);
    let mut loops = JoinSet::new();
    for (listeners, secure) in [(listening.http, false), (listening.https, true)] {
        for listener in listeners {
            loops.spawn(accept(listener, shared.clone(), secure));
        }
    }
    loops.spawn(tidy_up(shared.clone()));
    let obeyed = control::obey(control, shared.clone()).await;
    if let Err(error) = obeyed {
        // What it was told last is served on.
        tracing::error!(%error, "no daemon can be heard any more");
    }
    while loops.join_next().await.is_some() {}
    // All permits are back when all connections are gone.
    let drained = shared.connections.acquire_many(most as u32);
    if tokio::time::timeout(limits::DRAIN, drained).await.is_err() {
        tracing::info!("connections that did not end are cut");
    }
    Ok(())
}

fn tcp(socket: OwnedFd) -> Result<TcpListener, Error> {
    let listener = std::net::TcpListener::from(socket);
    listener.set_nonblocking(true).map_err(|source| Error::Listener { call: "fcntl", source })?;
    TcpListener::from_std(listener).map_err(|source| Error::Listener { call: "register", source })
}

async fn tidy_up(shared: Arc<Shared>) {
    let mut ending = shared.ending.subscribe();
    let mut ticks = tokio::time::interval(limits::KEPT_TIME);
    loop {
        tokio::select! {
            _ = ticks.tick() => shared.table().tidy_up(),
            _ = ending.wait_for(|ending| *ending) => return,
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, secure: bool) {
    let port = listener.local_addr().map_or(0, |address| address.port());
    let mut ending = shared.ending.subscribe();
    loop {
        let next = tokio::select! {
            next = next(&listener, &shared) => next,
            _ = ending.wait_for(|ending| *ending) => break,
        };
        match next {
            Ok((stream, Some(client))) => {
                let arrival = connection::Arrival { client, secure, port };
                tokio::spawn(connection::serve(stream, arrival, shared.clone()));
            }
            Ok((_, None)) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(%error, "accept");
                tokio::time::sleep(SHORTAGE).await;
            }
        }
    }
    drop(listener);
    shared.listening.send_modify(|open| *open -= 1);
}

/// A connection, once there is room for one.
async fn next(listener: &TcpListener, shared: &Arc<Shared>) -> io::Result<(TcpStream, Option<Client>)> {
    let permit = shared.connections.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, from) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok((stream, shared.admit(from.ip().to_canonical(), permit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_client_cannot_have_all_connections() {
        let listening = Listening { http: Vec::new(), https: Vec::new() };
        let shared = Arc::new(Shared::new(&listening, 2 * limits::MOST_OF_ONE).unwrap());
        let admit = |address: &str| {
            let permit = shared.connections.clone().try_acquire_owned().unwrap();
            shared.admit(address.parse().unwrap(), permit)
        };
        let mut all: Vec<_> = (0..limits::MOST_OF_ONE).map(|n| admit(&format!("2001:db8::{n:x}"))).collect();
        assert!(all.iter().all(Option::is_some));
        assert!(admit("2001:db8::ffff:1").is_none() && admit("2001:db8:0:1::1").is_some());
        all.pop();
        assert!(admit("2001:db8::1").is_some());
        all.clear();
        assert!(shared.clients().is_empty());
        assert_eq!(shared.connections.available_permits(), 2 * limits::MOST_OF_ONE);
    }
}
