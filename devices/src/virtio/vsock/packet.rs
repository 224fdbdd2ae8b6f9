//! The header in front of every vsock packet (virtio 1.2, section 5.10.6).

use virtio_vsock::packet::{PKT_HEADER_SIZE, VsockPacket};

use crate::virtio::scatter::Scatter;

/// Size of a header in guest memory.
pub const HEADER_BYTES: usize = PKT_HEADER_SIZE;

/// The host's context id.
pub const HOST_CID: u64 = 2;

/// The only socket type there is without `VIRTIO_VSOCK_F_SEQPACKET`.
pub const TYPE_STREAM: u16 = 1;

/// What a packet is for.
pub mod op {
    /// Asks for a connection.
    pub const REQUEST: u16 = 1;
    /// Grants it.
    pub const RESPONSE: u16 = 2;
    /// Refuses or ends it.
    pub const RST: u16 = 3;
    /// One or both directions are over: see the flags.
    pub const SHUTDOWN: u16 = 4;
    /// Carries data.
    pub const RW: u16 = 5;
    /// Tells how much the sender can take.
    pub const CREDIT_UPDATE: u16 = 6;
    /// Asks for a `CREDIT_UPDATE`.
    pub const CREDIT_REQUEST: u16 = 7;
}

/// `SHUTDOWN` flag: the sender will receive no more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// `SHUTDOWN` flag: the sender will send no more.
pub const SHUTDOWN_SEND: u32 = 2;
/// Both directions are over.
pub const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// A packet's header, copied out of guest memory: it does not change under the reader.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    /// Context id of the sender.
    pub src_cid: u64,
    /// Context id of the receiver.
    pub dst_cid: u64,
    /// The sender's port.
    pub src_port: u32,
    /// The receiver's port.
    pub dst_port: u32,
    /// Bytes of data behind the header.
    pub len: u32,
    /// Socket type.
    pub socket_type: u16,
    /// One of [`op`].
    pub op: u16,
    /// Flags of a `SHUTDOWN`.
    pub flags: u32,
    /// Size of the sender's receive buffer.
    pub buf_alloc: u32,
    /// Bytes the sender has taken out of that buffer since the connection began, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// Takes a header from the front of a request, `None` when it is shorter than one.
    pub fn read(request: &mut Scatter<'_>) -> Option<Self> {
        let mut bytes = [0; HEADER_BYTES];
        (request.read(&mut bytes) == HEADER_BYTES).then(|| Self::from_bytes(&bytes))
    }

    /// The header as it lies in guest memory.
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        // SAFETY: the packet is a view of `bytes`, which outlives it and is used by nothing else meanwhile.
        let mut packet = unsafe { VsockPacket::new(&mut bytes, None) }.expect("the buffer has a header's size");
        packet
            .set_src_cid(self.src_cid)
            .set_dst_cid(self.dst_cid)
            .set_src_port(self.src_port)
            .set_dst_port(self.dst_port)
            .set_len(self.len)
            .set_type(self.socket_type)
            .set_op(self.op)
            .set_flags(self.flags)
            .set_buf_alloc(self.buf_alloc)
            .set_fwd_cnt(self.fwd_cnt);
        bytes
    }

    /// The reverse of [`Header::to_bytes`].
    pub fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Self {
        let mut place = [0; HEADER_BYTES];
        // SAFETY: the packet is a view of `place`, which outlives it and is used by nothing else meanwhile.
        let mut packet = unsafe { VsockPacket::new(&mut place, None) }.expect("the buffer has a header's size");
        packet.set_header_from_raw(bytes).expect("both buffers have a header's size");
        Self {
            src_cid: packet.src_cid(),
            dst_cid: packet.dst_cid(),
            src_port: packet.src_port(),
            dst_port: packet.dst_port(),
            len: packet.len(),
            socket_type: packet.type_(),
            op: packet.op(),
            flags: packet.flags(),
            buf_alloc: packet.buf_alloc(),
            fwd_cnt: packet.fwd_cnt(),
        }
    }

    /// The refusal of this packet: back to where it came from, whoever that says it was meant for.
    pub fn reset_reply(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            socket_type: self.socket_type,
            op: op::RST,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_the_specifications() {
        let header = Header {
            src_cid: 0x0102_0304_0506_0708,
            dst_cid: 2,
            src_port: 0x1112_1314,
            dst_port: 0x2122_2324,
            len: 0x3132_3334,
            socket_type: 0x4142,
            op: 0x5152,
            flags: 0x6162_6364,
            buf_alloc: 0x7172_7374,
            fwd_cnt: 0x8182_8384,
        };
        let bytes = header.to_bytes();
        assert_eq!(bytes[..8], 0x0102_0304_0506_0708_u64.to_le_bytes());
        assert_eq!(bytes[16..20], 0x1112_1314_u32.to_le_bytes());
        assert_eq!(bytes[28..32], [0x42, 0x41, 0x52, 0x51]);
        assert_eq!(bytes[40..], 0x8182_8384_u32.to_le_bytes());
        assert_eq!(Header::from_bytes(&bytes), header);
        assert_eq!(HEADER_BYTES, 44);
    }
}
