//! Credit: who may send how much on one connection (virtio 1.2, section 5.10.6.3).
//!
//! Each side tells the other the size of its buffer and how much it has taken out of it so far; what is under way may never
//! exceed the size. All counts are modulo 2^32.

use super::packet::Header;

/// Bytes of a connection that may wait here because the host's process does not read.
pub const BUFFER_BYTES: u32 = 64 << 10;

/// The guest sent more than it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CreditExceeded;

/// The account of one connection, in both directions.
#[derive(Debug, Clone, Default)]
pub struct Credit {
    /// Size of the guest's buffer.
    guest_buffer: u32,
    /// What the guest has taken out of it.
    guest_taken: u32,
    /// What was sent to the guest.
    sent: u32,
    /// What the guest has sent.
    received: u32,
    /// How much of that the host's process has.
    forwarded: u32,
    /// What the guest knows of `forwarded`.
    told: u32,
}

impl Credit {
    /// Bytes the guest can take now. A guest whose counts make no sense can take nothing.
    pub fn sendable(&self) -> u32 {
        self.guest_buffer.saturating_sub(self.sent.wrapping_sub(self.guest_taken))
    }

    /// Notes what the guest said of its side; every packet does.
    pub fn update(&mut self, header: &Header) {
        self.guest_buffer = header.buf_alloc;
        self.guest_taken = header.fwd_cnt;
    }

    /// Notes that `bytes`, at most [`Credit::sendable`], went to the guest.
    pub fn send(&mut self, bytes: u32) {
        self.sent = self.sent.wrapping_add(bytes);
    }

    /// Notes that `bytes` came from the guest.
    ///
    /// # Errors
    /// When it had not that much credit: nothing is noted then.
    pub fn receive(&mut self, bytes: u32) -> Result<(), CreditExceeded> {
        if bytes > BUFFER_BYTES - self.received.wrapping_sub(self.told) {
            return Err(CreditExceeded);
        }
        self.received = self.received.wrapping_add(bytes);
        Ok(())
    }

    /// Notes that `bytes` of what came left for the host's process (or were dropped because it does not want them).
    pub fn forward(&mut self, bytes: u32) {
        self.forwarded = self.forwarded.wrapping_add(bytes);
    }

    /// True when the guest should hear of its credit. Half the buffer is often enough for it to go on without a stop:
    /// a guest that knows less has that much left, or what it sent is still here and an update will come.
    pub fn is_update_due(&self) -> bool {
        self.forwarded.wrapping_sub(self.told) >= BUFFER_BYTES / 2
    }

    /// Puts our side of the account into a packet for the guest.
    pub fn stamp(&mut self, header: &mut Header) {
        header.buf_alloc = BUFFER_BYTES;
        header.fwd_cnt = self.forwarded;
        self.told = self.forwarded;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The other side, by the letter of the specification.
    #[derive(Default)]
    struct Guest {
        buffer: u32,
        sent: u32,
        taken: u32,
        received: u32,
        peer_buffer: u32,
        peer_taken: u32,
    }

    impl Guest {
        fn sendable(&self) -> u32 {
            self.peer_buffer - self.sent.wrapping_sub(self.peer_taken)
        }

        fn header(&self) -> Header {
            Header { buf_alloc: self.buffer, fwd_cnt: self.taken, ..Header::default() }
        }
    }

    proptest! {
        /// Neither side ever has more than the other's buffer under way, and both sides always get to the end, from any
        /// point of the 32-bit counts.
        #[test]
        fn nobody_overruns_and_nobody_starves(
            start in any::<u32>(),
            buffer in 1_u32..200_000,
            steps in prop::collection::vec((0_u8..5, 0_u32..100_000), 1..400),
        ) {
            let mut ours = Credit { sent: start, guest_taken: start, received: start, forwarded: start, told: start, guest_buffer: 0 };
            let mut guest = Guest {
                buffer, sent: start, taken: start, received: start, peer_buffer: 0, peer_taken: start,
            };
            ours.update(&guest.header());
            let mut hello = Header::default();
            ours.stamp(&mut hello);
            guest.peer_buffer = hello.buf_alloc;
            guest.peer_taken = hello.fwd_cnt;
            for (step, amount) in steps {
                match step {
                    // The guest sends what it may.
                    0 => {
                        let bytes = amount.min(guest.sendable());
                        prop_assert_eq!(ours.receive(bytes), Ok(()));
                        guest.sent = guest.sent.wrapping_add(bytes);
                        ours.update(&guest.header());
                    }
                    // The host's process reads; the guest hears of it when it is due.
                    1 => {
                        ours.forward(amount.min(ours.received.wrapping_sub(ours.forwarded)));
                        if ours.is_update_due() {
                            let mut header = Header::default();
                            ours.stamp(&mut header);
                            guest.peer_taken = header.fwd_cnt;
                        }
                    }
                    // We send what we may; any packet tells our side.
                    2 => {
                        let bytes = amount.min(ours.sendable());
                        let mut header = Header::default();
                        ours.stamp(&mut header);
                        ours.send(bytes);
                        guest.received = guest.received.wrapping_add(bytes);
                        guest.peer_taken = header.fwd_cnt;
                    }
                    // The guest's process reads.
                    3 => {
                        guest.taken = guest.taken.wrapping_add(amount.min(guest.received.wrapping_sub(guest.taken)));
                        ours.update(&guest.header());
                    }
                    // A guest that sends a byte more than it may is found out.
                    _ => {
                        let before = ours.received;
                        prop_assert_eq!(ours.receive(guest.sendable() + 1), Err(CreditExceeded));
                        prop_assert_eq!(ours.received, before);
                    }
                }
                prop_assert!(ours.received.wrapping_sub(ours.forwarded) <= BUFFER_BYTES);
                prop_assert!(guest.received.wrapping_sub(guest.taken) <= buffer);
                // Everything forwarded and still no credit would be the end of it.
                if ours.received == ours.forwarded {
                    prop_assert!(guest.sendable() > 0);
                }
            }
        }

        /// Whatever the guest says about itself, nothing overflows.
        #[test]
        fn nonsense_is_no_credit(counts in prop::collection::vec((any::<u32>(), any::<u32>(), any::<u32>()), 1..50)) {
            let mut ours = Credit::default();
            for (buf_alloc, fwd_cnt, bytes) in counts {
                ours.update(&Header { buf_alloc, fwd_cnt, ..Header::default() });
                let sendable = ours.sendable();
                prop_assert!(sendable <= buf_alloc);
                ours.send(sendable.min(bytes));
                let _ = ours.receive(bytes);
                prop_assert!(ours.received.wrapping_sub(ours.told) <= BUFFER_BYTES);
            }
        }
    }
}
