//! What stands between a client and a server, and does them harm.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

/// What happens to the bytes that come back on one connection, after so many of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The connection breaks.
    Cut(u64),
    /// One byte comes wrong.
    Corrupt(u64),
    /// Nothing comes any more, until the proxy is told to [`Proxy::release`] it.
    Stall(u64),
}

#[derive(Debug, Default)]
struct Shared {
    /// For as many connections that get that far.
    faults: AtomicUsize,
    done: AtomicUsize,
    bytes: AtomicU64,
    ended: AtomicBool,
    released: Mutex<bool>,
    release: Condvar,
}

/// Ends with the test.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Harms the first `times` connections that carry enough bytes for the fault.
    #[must_use]
    pub fn start(server: SocketAddr, fault: Fault, times: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared { faults: AtomicUsize::new(times), ..Shared::default() });
        let of_thread = shared.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                if of_thread.ended.load(Ordering::SeqCst) {
                    return;
                }
                if let (Ok(client), Ok(server)) = (client, TcpStream::connect(server)) {
                    connect(client, server, fault, &of_thread);
                }
            }
        });
        Self { address, shared }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A complete name, by way of it.
    #[must_use]
    pub fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    /// Bytes that came back from the server so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::SeqCst)
    }

    /// Faults that happened.
    #[must_use]
    pub fn faults(&self) -> usize {
        self.shared.done.load(Ordering::SeqCst)
    }

    /// What stalled goes on, and nothing stalls any more.
    pub fn release(&self) {
        *self.shared.released.lock().unwrap() = true;
        self.shared.release.notify_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.release();
        // The thread that accepts sees that it is over.
        let _ = TcpStream::connect(self.address);
    }
}

fn connect(client: TcpStream, server: TcpStream, fault: Fault, shared: &Arc<Shared>) {
    let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    let shared = shared.clone();
    thread::spawn(move || {
        back(server, &client, fault, &shared);
        let _ = client.shutdown(Shutdown::Both);
    });
}

fn back(mut server: TcpStream, mut client: &TcpStream, fault: Fault, shared: &Shared) {
    let (Fault::Cut(at) | Fault::Corrupt(at) | Fault::Stall(at)) = fault;
    let mut buffer = vec![0; 16 << 10];
    let mut seen = 0u64;
    loop {
        let count = match server.read(&mut buffer) {
            Ok(count) if count > 0 => count,
            _ => return,
        };
        let next = seen + count as u64;
        let here = (seen..next).contains(&at);
        if here && take(&shared.faults) {
            shared.done.fetch_add(1, Ordering::SeqCst);
            let index = usize::try_from(at - seen).unwrap();
            match fault {
                Fault::Cut(_) => {
                    let _ = client.write_all(&buffer[..index]);
                    let _ = server.shutdown(Shutdown::Both);
                    return;
                }
                Fault::Corrupt(_) => buffer[index] ^= 0x55,
                Fault::Stall(_) => {
                    let released = shared.released.lock().unwrap();
                    drop(shared.release.wait_while(released, |released| !*released).unwrap());
                }
            }
        }
        seen = next;
        shared.bytes.fetch_add(count as u64, Ordering::SeqCst);
        if client.write_all(&buffer[..count]).is_err() {
            let _ = server.shutdown(Shutdown::Both);
            return;
        }
    }
}

/// One less, unless there is none left.
fn take(count: &AtomicUsize) -> bool {
    count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}
