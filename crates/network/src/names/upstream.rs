//! Who is asked about names that are not containers'.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use crate::files::servers;

const PORT: u16 = 53;

/// The host's resolvers, read again when their file has changed: hosts move from network to network.
#[derive(Debug, Default)]
pub struct Upstreams {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    read: Option<SystemTime>,
    servers: Vec<SocketAddr>,
}

impl Upstreams {
    /// The servers of `/etc/resolv.conf`, those on loopback too, since the daemon asks from the host.
    #[must_use]
    pub fn of_the_host(&self) -> Vec<SocketAddr> {
        self.of(Path::new("/etc/resolv.conf"))
    }

    fn of(&self, path: &Path) -> Vec<SocketAddr> {
        let changed = std::fs::metadata(path).and_then(|found| found.modified()).ok();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.read.is_none() || known.read != changed {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            known.servers = Self::addressed(servers(&text));
            known.read = changed;
        }
        known.servers.clone()
    }

    /// With the port of name servers.
    #[must_use]
    pub fn addressed(servers: Vec<IpAddr>) -> Vec<SocketAddr> {
        servers.into_iter().map(|address| SocketAddr::new(address, PORT)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_read_again_when_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        let upstreams = Upstreams::default();
        assert!(upstreams.of(&path).is_empty());
        std::fs::write(&path, "nameserver 127.0.0.53\nnameserver ::1\nnameserver fe80::1%eth0\n").unwrap();
        assert_eq!(upstreams.of(&path), ["127.0.0.53:53".parse().unwrap(), "[::1]:53".parse().unwrap()]);
        std::fs::write(&path, "nameserver 10.0.0.1\n").unwrap();
        let later = SystemTime::now() + std::time::Duration::from_secs(5);
        std::fs::File::open(&path).unwrap().set_modified(later).unwrap();
        assert_eq!(upstreams.of(&path), ["10.0.0.1:53".parse().unwrap()]);
    }
}
