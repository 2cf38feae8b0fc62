//! How much an interface sends: a token bucket (tc-tbf(8)) instead of its queue.

use std::io;
use std::num::NonZeroU64;

use super::message::{Batch, CREATE, REPLACE};
use super::{Error, Routes};

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
/// TC_H_ROOT: the queue of the interface itself.
const ROOT: u32 = u32::MAX;
/// TC_LINKLAYER_ETHERNET: no table of transmission times is needed.
const ETHERNET: u8 = 1;

/// Bytes that may pass at once: what ten milliseconds carry, and no less than the largest packet.
const LEAST_BURST: u64 = 64 << 10;
/// Bytes that wait: what a twentieth of a second carries.
const LEAST_QUEUE: u64 = 128 << 10;

impl Routes {
    /// Lets an interface send this many bits a second, or as many as it can.
    pub fn shape(&self, name: &str, rate: Option<NonZeroU64>) -> Result<(), Error> {
        let index = self.index(name)?;
        let mut batch = Batch::new();
        match rate {
            Some(rate) => limit(&mut batch, index, rate, name),
            None => batch.begin(RTM_DELQDISC, 0, &header(index), "lift the rate limit of", name),
        }
        batch.acknowledge();
        match batch.run(&self.socket) {
            Err(error) if rate.is_none() && is_absent(&error) => Ok(()),
            // The kernel says that it knows no such queue as of a file that is missing.
            Err(Error::Refused { action, operand, detail, source })
                if source.raw_os_error() == Some(ENOENT) =>
            {
                let source = io::Error::from(io::ErrorKind::Unsupported);
                Err(Error::Refused { action, operand, detail, source })
            }
            result => result,
        }
    }
}

const ENOENT: i32 = 2;
const EINVAL: i32 = 22;

/// There is nothing to be lifted.
fn is_absent(error: &Error) -> bool {
    matches!(error.errno(), Some(ENOENT | EINVAL))
}

/// `tcmsg`: any family, then index, handle, parent, info.
fn header(index: u32) -> [u8; 20] {
    let mut header = [0; 20];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[12..16].copy_from_slice(&ROOT.to_ne_bytes());
    header
}

fn limit<'a>(batch: &mut Batch<'a>, index: u32, rate: NonZeroU64, name: &'a str) {
    let bytes = (rate.get() / 8).max(1);
    let burst = (bytes / 100).clamp(LEAST_BURST, u64::from(u32::MAX) / 2) as u32;
    let queue = (bytes / 20).clamp(LEAST_QUEUE, u64::from(u32::MAX) / 2) as u32;
    batch.begin(RTM_NEWQDISC, CREATE | REPLACE, &header(index), "limit the rate of", name);
    batch.text(TCA_KIND, "tbf");
    let options = batch.nest(TCA_OPTIONS);
    // tc_tbf_qopt: two tc_ratespec of twelve bytes, limit, buffer, mtu.
    let mut parameters = [0; 36];
    parameters[1] = ETHERNET;
    parameters[8..12].copy_from_slice(&u32::try_from(bytes).unwrap_or(u32::MAX).to_ne_bytes());
    parameters[24..28].copy_from_slice(&queue.to_ne_bytes());
    batch.attribute(TCA_TBF_PARMS, &parameters);
    batch.attribute(TCA_TBF_BURST, &burst.to_ne_bytes());
    if u32::try_from(bytes).is_err() {
        batch.attribute(TCA_TBF_RATE64, &bytes.to_ne_bytes());
    }
    batch.close(&options);
}
