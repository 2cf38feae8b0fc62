//! Entropy (specification 1.2, 5.4): the host's random bytes.

use rustix::rand::{GetRandomFlags, getrandom};
use serde_json::Value;
use std::io::Write;

use super::{Device, Kind, Progress, Queues};
use crate::error::{Error, Result};

/// So much for one request; a guest that wants more asks again.
const MOST: usize = 256;

/// A source that never ends.
#[derive(Debug, Default)]
pub struct Entropy;

impl Device for Entropy {
    fn kind(&self) -> Kind {
        Kind::Entropy
    }

    fn queues(&self) -> usize {
        1
    }

    fn notified(&mut self, queue: usize, queues: &mut Queues<'_>) -> Result<Progress> {
        let memory = queues.memory();
        queues.drain(queue, |chain| {
            let mut bytes = [0; MOST];
            let mut writer = chain
                .writer(memory)
                .map_err(|error| Error::Guest { device: "entropy source", why: error.to_string() })?;
            let wanted = writer.available_bytes().min(MOST);
            let got = getrandom(&mut bytes[..wanted], GetRandomFlags::empty())
                .map_err(|error| Error::call("getrandom", "a guest", error))?;
            let written =
                writer.write(&bytes[..got]).map_err(|error| Error::call("write", "guest memory", error))?;
            Ok(written as u32)
        })
    }

    fn save(&self) -> Result<Value> {
        Ok(Value::Null)
    }

    fn restore(&mut self, _state: &Value) -> Result<()> {
        Ok(())
    }
}
