//! The head of a packet (specification 1.2, 5.10.6).

/// Of a head.
pub(super) const LENGTH: usize = 44;
/// `VIRTIO_VSOCK_TYPE_STREAM`
pub(super) const STREAM: u16 = 1;
/// The host's CID.
pub(super) const HOST: u64 = 2;

/// `enum virtio_vsock_op`
pub(super) mod operation {
    pub(crate) const REQUEST: u16 = 1;
    pub(crate) const RESPONSE: u16 = 2;
    pub(crate) const RESET: u16 = 3;
    pub(crate) const SHUTDOWN: u16 = 4;
    pub(crate) const DATA: u16 = 5;
    pub(crate) const CREDIT_UPDATE: u16 = 6;
    pub(crate) const CREDIT_REQUEST: u16 = 7;
}

/// Who sends a shutdown receives nothing more.
pub(super) const NO_RECEIVE: u32 = 1;
/// Who sends a shutdown sends nothing more.
pub(super) const NO_SEND: u32 = 2;
pub(super) const NOTHING: u32 = NO_RECEIVE | NO_SEND;

/// `struct virtio_vsock_hdr`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) source: u64,
    pub(super) destination: u64,
    pub(super) source_port: u32,
    pub(super) destination_port: u32,
    /// Of what follows.
    pub(super) length: u32,
    pub(super) kind: u16,
    pub(super) operation: u16,
    pub(super) flags: u32,
    /// What its sender can take in all before it has passed anything on.
    pub(super) buffer: u32,
    /// What its sender has passed on.
    pub(super) forwarded: u32,
}

impl Head {
    pub(super) fn parse(bytes: &[u8; LENGTH]) -> Self {
        let mut left = &bytes[..];
        let source = u64::from_le_bytes(take(&mut left));
        let destination = u64::from_le_bytes(take(&mut left));
        let source_port = u32::from_le_bytes(take(&mut left));
        let destination_port = u32::from_le_bytes(take(&mut left));
        let length = u32::from_le_bytes(take(&mut left));
        let kind = u16::from_le_bytes(take(&mut left));
        let operation = u16::from_le_bytes(take(&mut left));
        let flags = u32::from_le_bytes(take(&mut left));
        let buffer = u32::from_le_bytes(take(&mut left));
        let forwarded = u32::from_le_bytes(take(&mut left));
        Self {
            source,
            destination,
            source_port,
            destination_port,
            length,
            kind,
            operation,
            flags,
            buffer,
            forwarded,
        }
    }

    pub(super) fn bytes(&self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[..8].copy_from_slice(&self.source.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.destination.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.source_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.destination_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.length.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.operation.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buffer.to_le_bytes());
        bytes[40..].copy_from_slice(&self.forwarded.to_le_bytes());
        bytes
    }

    /// The refusal of this packet.
    pub(super) fn reset(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            kind: self.kind,
            operation: operation::RESET,
            ..Self::default()
        }
    }
}

/// The first bytes, of which there are enough.
fn take<const N: usize>(left: &mut &[u8]) -> [u8; N] {
    let mut taken = [0; N];
    if let Some((first, rest)) = left.split_first_chunk() {
        (taken, *left) = (*first, rest);
    }
    taken
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_head_lies_as_the_specification_has_it() {
        let head = Head {
            source: 2,
            destination: 0x0102,
            source_port: 3,
            destination_port: 4,
            length: 5,
            kind: STREAM,
            operation: operation::DATA,
            flags: 6,
            buffer: 7,
            forwarded: 8,
        };
        let bytes = head.bytes();
        let places = [0, 8, 9, 16, 20, 24, 28, 30, 32, 36, 40].map(|place| bytes[place]);
        assert_eq!(places, [2, 2, 1, 3, 4, 5, 1, 5, 6, 7, 8]);
        assert_eq!(bytes.iter().filter(|byte| **byte != 0).count(), places.len());
    }

    proptest! {
        #[test]
        fn any_head_is_read_as_it_is_written(bytes in proptest::array::uniform32(any::<u8>()), more in any::<[u8; 12]>()) {
            let mut whole = [0; LENGTH];
            whole[..32].copy_from_slice(&bytes);
            whole[32..].copy_from_slice(&more);
            prop_assert_eq!(Head::parse(&whole).bytes(), whole);
        }
    }
}
