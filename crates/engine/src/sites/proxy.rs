//! The proxy's process: started, found again, told what to serve, ended.
//!
//! Its folder is the daemon's user's alone:
//!
//! ```text
//! control.sock   where it takes orders
//! empty/         all that it sees of the file system
//! ```

use std::fs::DirBuilder;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use insula_spec::sites::{Hello, LARGEST_MESSAGE, Order, Reply, Table, VERSION};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::Options;
use crate::{Error, Result, blocking};

const SOCKET: &str = "control.sock";
const EMPTY: &str = "empty";
/// For one answer: more than a table with a thousand certificates takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A proxy that takes orders.
#[derive(Debug)]
pub(super) struct Proxy {
    stream: UnixStream,
    folder: PathBuf,
    /// Of this daemon, if it is.
    child: Option<Child>,
}

impl Proxy {
    /// The one that a former daemon started, if it lives.
    pub(super) async fn find(folder: &Path) -> Option<Self> {
        let opened = std::fs::File::open(folder).ok()?;
        let path = insula_sys::socket::path_in(opened.as_fd(), SOCKET);
        let stream = UnixStream::connect(path).await.ok()?;
        Some(Self { stream, folder: folder.to_owned(), child: None })
    }

    /// The same if it is what this daemon would start; another is ended.
    pub(super) async fn adopt(folder: &Path, options: &Options) -> Option<Self> {
        let mut proxy = Self::find(folder).await?;
        match proxy.hello().await {
            Ok(hello) if fits(&hello, options) => Some(proxy),
            Ok(_) => {
                tracing::info!(
                    "the proxy serves other addresses, or is of another version: a new one is started"
                );
                proxy.end().await;
                None
            }
            Err(error) => {
                tracing::warn!(error = insula_base::chain(&error), "a proxy that does not answer");
                None
            }
        }
    }

    /// A new one, which serves nothing yet.
    pub(super) async fn start(folder: &Path, options: &Options) -> Result<Self> {
        let (place, wanted) = (folder.to_owned(), options.clone());
        let child = blocking(move || start(&place, &wanted)).await?;
        let stream = match Self::find(folder).await {
            Some(found) => found.stream,
            None => return Err(Error::Internal("the proxy's own socket is gone".to_owned())),
        };
        let mut proxy = Self { stream, folder: folder.to_owned(), child: Some(child) };
        match proxy.hello().await {
            Ok(_) => Ok(proxy),
            Err(error) => {
                proxy.reap().await;
                Err(Error::Unavailable(format!(
                    "the proxy for host names did not start (its last words are in the daemon's log): {}",
                    insula_base::chain(&error)
                )))
            }
        }
    }

    pub(super) async fn hello(&mut self) -> Result<Hello> {
        match self.ask(&Order::Hello).await? {
            Reply::Hello(hello) => Ok(hello),
            other => Err(unexpected(&other)),
        }
    }

    /// Returns when the table is in force; what of it is not used.
    pub(super) async fn serve(&mut self, table: Table) -> Result<Vec<String>> {
        match self.ask(&Order::Serve(table)).await? {
            Reply::Served { warnings } => Ok(warnings),
            other => Err(unexpected(&other)),
        }
    }

    /// Returns when no request to these is under way any more, or after this time; how many there are then.
    pub(super) async fn drain(&mut self, targets: Vec<SocketAddr>, within: Duration) -> Result<usize> {
        let order = Order::Drain { targets, within: u64::try_from(within.as_millis()).unwrap_or(u64::MAX) };
        match self.ask_patiently(&order, within + PATIENCE).await? {
            Reply::Drained { left } => Ok(left),
            other => Err(unexpected(&other)),
        }
    }

    /// Returns when its addresses are free again; what it serves at the moment it serves to the end.
    pub(super) async fn end(mut self) {
        if let Err(error) = self.ask(&Order::End).await {
            tracing::warn!(error = insula_base::chain(&error), "end the proxy");
        }
        if let Some(mut child) = self.child.take() {
            // It may have a download to finish.
            if let Err(error) = insula_base::thread::spawn("proxy", move || child.wait()) {
                tracing::warn!(%error, "the proxy that ends is not waited for");
            }
        }
    }

    /// One that has ended, or will not answer.
    pub(super) async fn reap(mut self) {
        let Some(mut child) = self.child.take() else { return };
        let reaped = blocking(move || {
            let fail = |call| move |error| Error::io(call, Path::new("the proxy"), error);
            child.kill().map_err(fail("kill"))?;
            child.wait().map_err(fail("wait for"))
        });
        if let Err(error) = reaped.await {
            tracing::warn!(error = insula_base::chain(&error), "reap the proxy");
        }
    }

    async fn ask(&mut self, order: &Order) -> Result<Reply> {
        self.ask_patiently(order, PATIENCE).await
    }

    async fn ask_patiently(&mut self, order: &Order, patience: Duration) -> Result<Reply> {
        let place = self.folder.join(SOCKET);
        let text =
            serde_json::to_vec(order).map_err(|error| Error::Internal(format!("write an order: {error}")))?;
        let asked = tokio::time::timeout(patience, exchange(&mut self.stream, &text)).await;
        let reply =
            asked.map_err(io::Error::from).flatten().map_err(|error| Error::io("ask", &place, error))?;
        serde_json::from_slice(&reply).map_err(|error| Error::io("parse an answer of", &place, error))
    }
}

fn unexpected(reply: &Reply) -> Error {
    Error::Internal(format!("the proxy answered {reply:?}"))
}

async fn exchange(stream: &mut UnixStream, message: &[u8]) -> io::Result<Vec<u8>> {
    if message.len() > LARGEST_MESSAGE {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // It fits, as was just seen.
    stream.write_u32(message.len() as u32).await?;
    stream.write_all(message).await?;
    let length = stream.read_u32().await? as usize;
    if length > LARGEST_MESSAGE {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut reply = vec![0; length];
    stream.read_exact(&mut reply).await?;
    Ok(reply)
}

/// Whether a proxy is what would be started.
fn fits(hello: &Hello, options: &Options) -> bool {
    // A host without IPv6 has no place for that.
    let dispensable = |address: &SocketAddr| address.ip() == Ipv6Addr::UNSPECIFIED;
    let same = |have: &[SocketAddr], wanted: &[SocketAddr]| {
        have.iter().all(|address| wanted.contains(address))
            && wanted.iter().all(|address| have.contains(address) || dispensable(address))
    };
    hello.version == VERSION && same(&hello.http, &options.http) && same(&hello.https, &options.https)
}

/// Sockets first: what is taken is said before anything is started.
fn start(folder: &Path, options: &Options) -> Result<Child> {
    let mut http = listen(&options.http)?;
    let https = listen(&options.https)?;
    let counts = [http.len() as u8, https.len() as u8];
    http.extend(https);
    if !options.proxy.is_file() {
        return Err(Error::Unavailable(format!(
            "host names need the program insula-proxy, which is not at {}: install it there, or say with --proxy \
             where it is",
            options.proxy.display()
        )));
    }
    for (path, mode) in [(folder.to_owned(), 0o700), (folder.join(EMPTY), 0o755)] {
        DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(&path)
            .map_err(|e| Error::io("mkdir", &path, e))?;
    }
    let control = control(folder)?;
    let fail = |call: &'static str| move |error: io::Error| Error::io(call, &options.proxy, error);
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(fail("socketpair for"))?;
    // It leaves the daemon's session by itself. Its last words are the daemon's.
    let child = Command::new(&options.proxy)
        .arg(folder.join(EMPTY))
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .spawn()
        .map_err(fail("execute"))?;
    let descriptors: Vec<BorrowedFd<'_>> =
        std::iter::once(control.as_fd()).chain(http.iter().map(AsFd::as_fd)).collect();
    insula_sys::socket::send_all(ours.as_fd(), &counts, &descriptors)
        .map_err(|error| fail("sendmsg to")(error.into()))?;
    Ok(child)
}

fn listen(addresses: &[SocketAddr]) -> Result<Vec<OwnedFd>> {
    let mut sockets = Vec::new();
    for address in addresses {
        match insula_network::listen_at(*address) {
            Ok(socket) => sockets.push(socket),
            Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && lacks_ipv6(&error) => {}
            Err(error @ insula_network::Error::PortTaken { .. }) => {
                return Err(Error::Conflict(format!(
                    "{error}: host names cannot be served there (insulad --publish-host-http and \
                     --publish-host-https say where instead)"
                )));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(sockets)
}

fn lacks_ipv6(error: &insula_network::Error) -> bool {
    match error {
        insula_network::Error::Reserve { source, .. } => {
            source.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
        }
        insula_network::Error::NotOurAddress { .. } => true,
        _ => false,
    }
}

/// Where the next daemon finds it.
fn control(folder: &Path) -> Result<UnixListener> {
    let path = folder.join(SOCKET);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(Error::io("unlink", &path, error));
        }
        _ => {}
    }
    let opened = std::fs::File::open(folder).map_err(|e| Error::io("open", folder, e))?;
    UnixListener::bind(insula_sys::socket::path_in(opened.as_fd(), SOCKET))
        .map_err(|e| Error::io("bind", &path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_with_other_addresses_is_another() {
        let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let options =
            Options { proxy: "/x".into(), http: vec![at(80)], https: vec![], certificates: "/y".into() };
        let hello = Hello { version: VERSION, http: vec![at(80)], https: vec![] };
        assert!(fits(&hello, &options));
        assert!(!fits(&Hello { version: VERSION + 1, ..hello.clone() }, &options));
        assert!(!fits(&Hello { https: vec![at(443)], ..hello.clone() }, &options));
        assert!(!fits(&Hello { http: vec![at(81)], ..hello }, &options));
    }

    #[tokio::test]
    async fn a_taken_port_is_said_before_anything_is_made() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("proxy");
        let options = Options {
            proxy: "/no/such/program".into(),
            http: vec![taken.local_addr().unwrap()],
            https: vec![],
            certificates: "/no".into(),
        };
        let error = Proxy::start(&place, &options).await.unwrap_err().to_string();
        assert!(error.contains("port is already allocated"), "{error}");
        let options = Options { http: vec![], ..options };
        let error = Proxy::start(&place, &options).await.unwrap_err().to_string();
        assert!(error.contains("not at /no/such/program"), "{error}");
        assert!(!place.exists());
    }
}
