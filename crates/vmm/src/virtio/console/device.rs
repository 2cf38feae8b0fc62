//! What the guest sees: ports, and the control queues that tell of them.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};

use super::port::Port;
use super::request::{Control, DEVICE_ADD, DEVICE_READY, LENGTH, PORT_NAME, PORT_OPEN, PORT_READY};
use crate::error::{Error, Result};
use crate::virtio::{Chain, Device, Kind, Progress, Queues, ROUND};

/// `VIRTIO_CONSOLE_F_MULTIPORT`: more ports than the console, and the control queues.
const MULTIPORT: u64 = 1 << 1;
/// To the guest, and from it. The queues of port 0 come before, those of the others behind.
const CONTROL_IN: usize = 2;
const CONTROL_OUT: usize = 3;
/// A guest that does not take the messages which it provokes has gone wrong.
const MOST_MESSAGES: usize = 256;

/// Ports of bytes. Each is a socket here and a character device with a name there.
///
/// The first port would be the guest's `hvc0`; the ports given here come after it.
#[derive(Debug)]
pub struct Console {
    /// By number less one.
    ports: Vec<Port>,
    messages: VecDeque<Vec<u8>>,
}

impl Console {
    /// A console with one port for each name and socket.
    pub fn new(ports: impl IntoIterator<Item = (String, UnixStream)>) -> Result<Self> {
        let ports = ports.into_iter().map(|(name, socket)| Port::new(name, socket)).collect::<Result<_>>()?;
        Ok(Self { ports, messages: VecDeque::new() })
    }

    fn tell(&mut self, number: u32, event: u16, value: u16, name: &str) -> Result<()> {
        if self.messages.len() >= MOST_MESSAGES {
            return Err(Error::Guest { device: "console", why: "it asks and does not listen".to_owned() });
        }
        let mut message = Control { port: number, event, value }.bytes();
        message.extend(name.bytes());
        self.messages.push_back(message);
        Ok(())
    }

    fn hear(&mut self, control: Control) -> Result<()> {
        match control.event {
            DEVICE_READY if control.value == 1 => {
                for number in 1..=self.ports.len() as u32 {
                    self.tell(number, DEVICE_ADD, 1, "")?;
                }
            }
            PORT_READY if control.value == 1 => {
                let Some(name) = self.port(control.port).map(|port| port.name.clone()) else { return Ok(()) };
                self.tell(control.port, PORT_NAME, 1, &name)?;
                self.tell(control.port, PORT_OPEN, 1, "")?;
            }
            PORT_OPEN => {
                let Some(port) = self.port(control.port) else { return Ok(()) };
                port.open = control.value == 1;
            }
            _ => {}
        }
        Ok(())
    }

    fn port(&mut self, number: u32) -> Option<&mut Port> {
        self.ports.get_mut((number as usize).checked_sub(1)?)
    }

    /// As many as wait, which is not without bounds.
    fn deliver(&mut self, queues: &mut Queues<'_>) -> Result<()> {
        let memory = queues.memory();
        let mut delivered = false;
        while let Some(message) = self.messages.front() {
            let Some(chain) = queues.pop(CONTROL_IN)? else { break };
            let head = chain.head_index();
            let mut writer = chain.writer(memory).map_err(misuse)?;
            let written = writer.write(message).map_err(misuse)?;
            queues.done(CONTROL_IN, head, written as u32)?;
            self.messages.pop_front();
            delivered = true;
        }
        if delivered { queues.signal(CONTROL_IN) } else { Ok(()) }
    }

    fn hear_all(&mut self, queues: &mut Queues<'_>) -> Result<Progress> {
        let mut heard = 0;
        while heard < ROUND {
            let Some(chain) = queues.pop(CONTROL_OUT)? else { break };
            let head = chain.head_index();
            let control = parse(chain, queues)?;
            self.hear(control)?;
            queues.done(CONTROL_OUT, head, 0)?;
            heard += 1;
        }
        if heard > 0 {
            queues.signal(CONTROL_OUT)?;
        }
        self.deliver(queues)?;
        // One that was opened may have been waited for.
        (0..self.ports.len())
            .try_fold(Progress::after(heard), |progress, index| Ok(progress.or(self.receive(index, queues)?)))
    }

    fn receive(&mut self, index: usize, queues: &mut Queues<'_>) -> Result<Progress> {
        let Some(port) = self.ports.get_mut(index) else { return Ok(Progress::Waits) };
        let gone = port.host_is_gone();
        let progress = port.receive(receive_queue(index), queues)?;
        if !gone && port.host_is_gone() {
            self.tell(index as u32 + 1, PORT_OPEN, 0, "")?;
            self.deliver(queues)?;
        }
        Ok(progress)
    }
}

/// Of the port with the number `index + 1`.
fn receive_queue(index: usize) -> usize {
    4 + 2 * index
}

fn parse(chain: Chain<'_>, queues: &Queues<'_>) -> Result<Control> {
    let mut bytes = [0; LENGTH];
    chain.reader(queues.memory()).map_err(misuse)?.read_exact(&mut bytes).map_err(misuse)?;
    Ok(Control::parse(bytes))
}

fn misuse(why: impl ToString) -> Error {
    Error::Guest { device: "console", why: why.to_string() }
}

impl Device for Console {
    fn kind(&self) -> Kind {
        Kind::Console
    }

    fn features(&self) -> u64 {
        MULTIPORT
    }

    fn queues(&self) -> usize {
        receive_queue(self.ports.len())
    }

    /// `struct virtio_console_config` (specification 1.2, 5.3.4).
    fn configuration(&self) -> Vec<u8> {
        let mut space = vec![0; 12];
        space[4..8].copy_from_slice(&(self.ports.len() as u32 + 1).to_le_bytes());
        space
    }

    fn reset(&mut self) {
        self.messages.clear();
        self.ports.iter_mut().for_each(Port::reset);
    }

    fn notified(&mut self, queue: usize, queues: &mut Queues<'_>) -> Result<Progress> {
        match queue {
            // No port 0 was announced.
            0 | 1 => Ok(Progress::Waits),
            CONTROL_IN => self.deliver(queues).map(|()| Progress::Waits),
            CONTROL_OUT => self.hear_all(queues),
            _ if queue.is_multiple_of(2) => self.receive((queue - 4) / 2, queues),
            _ => match self.ports.get_mut((queue - 5) / 2) {
                Some(port) => port.send(queue, queues),
                None => Ok(Progress::Waits),
            },
        }
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        self.ports.iter().map(|port| port.socket().as_fd()).collect()
    }

    fn ready(&mut self, source: usize, queues: &mut Queues<'_>) -> Result<Progress> {
        let sent = match self.ports.get_mut(source) {
            Some(port) => port.send(receive_queue(source) + 1, queues)?,
            None => Progress::Waits,
        };
        Ok(sent.or(self.receive(source, queues)?))
    }

    /// Which ports the guest holds open. What is under way in a snapshot is lost: one is taken when
    /// both ends are silent.
    fn save(&self) -> Result<Value> {
        Ok(json!({ "open": self.ports.iter().map(|port| port.open).collect::<Vec<_>>() }))
    }

    fn restore(&mut self, state: &Value) -> Result<()> {
        let open = state["open"].as_array().filter(|open| open.len() == self.ports.len());
        let open = open.ok_or_else(|| Error::Shape("the snapshot has other ports".to_owned()))?;
        for (port, open) in self.ports.iter_mut().zip(open) {
            port.open = open.as_bool().unwrap_or(false);
        }
        Ok(())
    }
}
