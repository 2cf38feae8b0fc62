//! The document that describes a machine.

use std::collections::BTreeMap;
use std::os::fd::{OwnedFd, RawFd};

use anyhow::{Context, bail};
use insula_vmm_core::virtio::block::Access;
use serde::Deserialize;

/// What a machine is made of. Numbers of descriptors are those of this process.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Document {
    pub(crate) cpus: u8,
    /// In bytes.
    pub(crate) memory: u64,
    /// `/dev/kvm`.
    pub(crate) kvm: RawFd,
    pub(crate) begin: Begin,
    /// Where the first serial line goes.
    pub(crate) console: RawFd,
    #[serde(default)]
    pub(crate) disks: Vec<DiskPart>,
    /// Sockets, by the names of their ports in the guest.
    #[serde(default)]
    pub(crate) ports: Vec<PortPart>,
    /// Sockets of vhost-user servers.
    #[serde(default)]
    pub(crate) folders: Vec<FolderPart>,
    #[serde(default)]
    pub(crate) cards: Vec<CardPart>,
    #[serde(default)]
    pub(crate) sockets: Option<SocketsPart>,
    #[serde(default)]
    pub(crate) image: ImagePart,
    /// A socket of messages, by which somebody asks how much of its memory the guest writes: see
    /// [`insula_vmm_core::Machine::tell_dirty_rate`]. Not of a machine that is to be saved.
    #[serde(default)]
    pub(crate) dirty_rate: Option<RawFd>,
}

/// The device that has a file in the guest's memory.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ImagePart {
    #[default]
    None,
    /// There is a place for it: of a machine that is to be saved, or that was.
    Vacant,
    /// A file, which is only read.
    File(RawFd),
}

impl ImagePart {
    fn descriptor(&self) -> Option<RawFd> {
        match self {
            Self::None | Self::Vacant => None,
            Self::File(number) => Some(*number),
        }
    }
}

/// How a machine begins.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Begin {
    Boot(BootPart),
    /// Where a machine was saved.
    Snapshot(SnapshotPart),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BootPart {
    pub(crate) kernel: RawFd,
    pub(crate) initramfs: Option<RawFd>,
    pub(crate) command_line: String,
    /// Of a machine that is to be saved.
    pub(crate) saved: Option<SavedPart>,
}

/// A byte from the control has the machine saved, which ends it. Its state goes there: the length in eight bytes,
/// little endian, and so many bytes; its memory is the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedPart {
    /// An empty file.
    pub(crate) memory: RawFd,
    /// A socket.
    pub(crate) control: RawFd,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SnapshotPart {
    pub(crate) state: RawFd,
    /// It is not written.
    pub(crate) memory: RawFd,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DiskPart {
    pub(crate) descriptor: RawFd,
    pub(crate) id: String,
    pub(crate) writable: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PortPart {
    pub(crate) descriptor: RawFd,
    pub(crate) name: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FolderPart {
    pub(crate) descriptor: RawFd,
    pub(crate) tag: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CardPart {
    /// A tap.
    pub(crate) descriptor: RawFd,
    /// A socket of messages, which says what the card may send: bits a second, eight bytes, little endian.
    pub(crate) rate: RawFd,
    /// Six pairs of digits.
    pub(crate) mac: String,
    pub(crate) mtu: u16,
}

/// Sockets between the guest and the host: see [`insula_vmm_core::virtio::vsock::Vsock::new`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SocketsPart {
    /// The guest's.
    pub(crate) address: u32,
    pub(crate) listener: Option<RawFd>,
    pub(crate) broker: RawFd,
}

impl Begin {
    fn descriptors(&self) -> Vec<RawFd> {
        match self {
            Self::Boot(boot) => {
                let saved = boot.saved.iter().flat_map(|saved| [saved.memory, saved.control]);
                std::iter::once(boot.kernel).chain(boot.initramfs).chain(saved).collect()
            }
            Self::Snapshot(snapshot) => vec![snapshot.state, snapshot.memory],
        }
    }
}

impl DiskPart {
    pub(crate) fn access(&self) -> Access {
        if self.writable { Access::ReadWrite } else { Access::ReadOnly }
    }
}

impl CardPart {
    pub(crate) fn address(&self) -> anyhow::Result<[u8; 6]> {
        let bytes: Vec<u8> = self
            .mac
            .split(':')
            .map(|pair| u8::from_str_radix(pair, 16))
            .collect::<Result<_, _>>()
            .with_context(|| format!("the hardware address {}", self.mac))?;
        bytes
            .try_into()
            .ok()
            .with_context(|| format!("the hardware address {} is not of six bytes", self.mac))
    }
}

/// The descriptors that a document names, each of which is taken once.
#[derive(Debug)]
pub(crate) struct Descriptors(BTreeMap<RawFd, OwnedFd>);

impl Descriptors {
    /// Owns them all; one that is not open, or named twice, is an error.
    pub(crate) fn of(document: &Document) -> anyhow::Result<Self> {
        let parts = [document.kvm, document.console].into_iter();
        let numbers = parts
            .chain(document.begin.descriptors())
            .chain(document.disks.iter().map(|part| part.descriptor))
            .chain(document.ports.iter().map(|part| part.descriptor))
            .chain(document.folders.iter().map(|part| part.descriptor))
            .chain(document.cards.iter().flat_map(|part| [part.descriptor, part.rate]))
            .chain(document.sockets.iter().flat_map(|part| part.listener.into_iter().chain([part.broker])))
            .chain(document.image.descriptor())
            .chain(document.dirty_rate);
        let mut owned = BTreeMap::new();
        for number in numbers {
            if owned.contains_key(&number) {
                bail!("descriptor {number} is named twice");
            }
            let descriptor =
                insula_sys::inherit::take(number).with_context(|| format!("descriptor {number}"))?;
            owned.insert(number, descriptor);
        }
        Ok(Self(owned))
    }

    pub(crate) fn take(&mut self, number: RawFd) -> anyhow::Result<OwnedFd> {
        self.0.remove(&number).with_context(|| format!("descriptor {number} is taken"))
    }
}
