//! The daemon's descriptors. Each container that runs holds some for as long as it runs: a quarter is left for
//! clients, and for the work of stopping and removing.

use std::os::fd::AsRawFd;

use rustix::process::{Resource, getrlimit};

use crate::{Error, Result};

/// Fails when there are too few left for another container.
pub(crate) fn leave_room() -> Result<()> {
    let Some(limit) = getrlimit(Resource::Nofile).current else { return Ok(()) };
    // A new one has the lowest number that is free, open(2): all below are taken.
    let lowest = match rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), 0) {
        Ok(probe) => u64::try_from(probe.as_raw_fd()).unwrap_or(0),
        Err(_) => limit,
    };
    if lowest < most(limit) {
        return Ok(());
    }
    Err(Error::Unavailable(format!(
        "the daemon has {lowest} of its {limit} descriptors in use, and keeps the others for its clients: stop some \
         container, or raise its limit of open files"
    )))
}

/// How many containers and all else may have.
const fn most(limit: u64) -> u64 {
    limit - limit / 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_is_left() {
        assert_eq!([0, 1, 64, 1024, 1 << 20].map(most), [0, 1, 48, 768, 786_432]);
        leave_room().unwrap();
    }
}
