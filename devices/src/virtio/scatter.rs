//! The buffers of a request: guest memory as lists of slices, ready for vectored I/O.

use cistern_memory::Memory;
use vm_memory::{GuestMemoryBackend, VolatileSlice};

use super::chain::{Chain, QueueError};

/// Most descriptors a chain may have, also through an indirect table. The kernel takes no more segments in one call
/// (`UIO_MAXIOV`), and no driver comes near it; the specification's own limit is the queue size.
pub const MAX_SEGMENTS: usize = 1024;

/// The buffers of one descriptor chain, checked: the chain ends where it should, everything lies in guest memory and
/// what the device may write comes last.
#[derive(Debug)]
pub struct Buffers<'m> {
    /// What names the chain when it is handed back.
    pub head_index: u16,
    /// What the driver says, in order.
    pub readable: Scatter<'m>,
    /// Where the device answers, in order.
    pub writable: Scatter<'m>,
}

impl<'m> Buffers<'m> {
    /// Walks the chain once; the descriptors are not read again after this.
    ///
    /// # Errors
    /// A [`QueueError`] that says what is wrong with the chain.
    pub fn gather(memory: &'m Memory, chain: Chain<'m>) -> Result<Self, QueueError> {
        let head_index = chain.head_index();
        let (mut readable, mut writable) = (Scatter::default(), Scatter::default());
        // The iterator ends in silence where a chain is malformed; a chain is whole when its last descriptor says so.
        let mut whole = false;
        for (count, descriptor) in chain.enumerate() {
            if count == MAX_SEGMENTS {
                return Err(QueueError::ChainTooLong);
            }
            whole = !descriptor.has_next();
            let list = if descriptor.is_write_only() {
                &mut writable
            } else if writable.slices.is_empty() {
                &mut readable
            } else {
                return Err(QueueError::ChainOrder);
            };
            let (address, bytes) = (descriptor.addr(), descriptor.len());
            let outside = || QueueError::BufferOutsideMemory { guest_address: address.0, bytes };
            for slice in GuestMemoryBackend::get_slices(memory, address, bytes as usize) {
                list.push(slice.map_err(|_| outside())?);
            }
        }
        if whole { Ok(Self { head_index, readable, writable }) } else { Err(QueueError::ChainBroken) }
    }
}

/// A list of slices of guest memory, consumed from the front. The guest may change the memory at any time: whatever is
/// read from it is copied first and judged after.
#[derive(Debug, Default, Clone)]
pub struct Scatter<'m> {
    slices: Vec<VolatileSlice<'m>>,
    /// Index of the first slice not consumed.
    first: usize,
    bytes: usize,
}

impl<'m> Scatter<'m> {
    fn push(&mut self, slice: VolatileSlice<'m>) {
        self.bytes += slice.len();
        self.slices.push(slice);
    }

    /// Bytes left.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// True when nothing is left.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Number of slices left.
    pub fn segments(&self) -> usize {
        self.slices.len() - self.first
    }

    /// Skips up to `bytes` bytes.
    pub fn advance(&mut self, bytes: usize) {
        let mut left = bytes.min(self.bytes);
        self.bytes -= left;
        while let Some(slice) = self.slices.get_mut(self.first) {
            if slice.len() > left {
                *slice = slice.offset(left).expect("the slice is longer than what is skipped");
                break;
            }
            left -= slice.len();
            self.first += 1;
        }
    }

    /// Keeps the first `bytes` bytes and returns the rest. Everything stays when the list is not that long.
    #[must_use]
    pub fn split_off(&mut self, bytes: usize) -> Self {
        let mut tail = self.clone();
        tail.advance(bytes);
        self.truncate(bytes);
        tail
    }

    /// Drops everything after the first `bytes` bytes.
    pub fn truncate(&mut self, bytes: usize) {
        let mut left = bytes.min(self.bytes);
        self.bytes = left;
        for index in self.first..self.slices.len() {
            let slice = &mut self.slices[index];
            if slice.len() >= left {
                *slice = slice.subslice(0, left).expect("the slice is at least as long as what is kept");
                self.slices.truncate(index + 1);
                return;
            }
            left -= slice.len();
        }
    }

    /// Copies bytes out and consumes them; returns how many there were for `buffer`.
    pub fn read(&mut self, buffer: &mut [u8]) -> usize {
        let mut done = 0;
        for slice in &self.slices[self.first..] {
            done += slice.copy_to(&mut buffer[done..]);
        }
        self.advance(done);
        done
    }

    /// Copies bytes in and consumes the place; returns how many found a place.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        let mut done = 0;
        for slice in &self.slices[self.first..] {
            let part = slice.len().min(bytes.len() - done);
            slice.copy_from(&bytes[done..done + part]);
            done += part;
        }
        self.advance(done);
        done
    }

    /// Appends the slices as the kernel wants them for vectored I/O. They stay valid as long as the guest's memory is
    /// mapped, which `'m` stands for.
    pub fn append_iovecs(&self, iovecs: &mut Vec<libc::iovec>) {
        iovecs.extend(
            self.slices[self.first..]
                .iter()
                .map(|slice| libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() }),
        );
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    const BYTES: usize = 4096;

    /// Guest memory in which byte n is n, and a list of pieces of it in any order, which may overlap.
    fn scatter<'m>(memory: &'m Memory, pieces: &[(usize, usize)]) -> (Scatter<'m>, Vec<usize>) {
        let mut list = Scatter::default();
        let mut addresses = Vec::new();
        for (start, bytes) in pieces {
            let slice = GuestMemoryBackend::get_slice(memory, GuestAddress(*start as u64), *bytes);
            list.push(slice.expect("inside the memory"));
            addresses.extend(*start..start + bytes);
        }
        (list, addresses)
    }

    fn memory() -> Memory {
        let memory = Memory::from_ranges(&[(GuestAddress(0), BYTES)]).expect("a page can be mapped");
        let content: Vec<u8> = (0..BYTES).map(|address| content_at(&address)).collect();
        memory.write_slice(&content, GuestAddress(0)).expect("the memory is that long");
        memory
    }

    fn content_at(address: &usize) -> u8 {
        (address % 251) as u8
    }

    proptest! {
        /// Whatever is done to a list, it is the list of addresses that a plain vector would be.
        #[test]
        fn behaves_like_a_vector(
            pieces in prop::collection::vec((0..BYTES - 64, 0..64_usize), 0..8),
            actions in prop::collection::vec((0..5, 0..100_usize), 0..12),
        ) {
            let memory = memory();
            let (mut list, mut model) = scatter(&memory, &pieces);
            for (action, bytes) in actions {
                let kept = bytes.min(model.len());
                match action {
                    0 => {
                        list.advance(bytes);
                        model.drain(..kept);
                    }
                    1 => {
                        list.truncate(bytes);
                        model.truncate(bytes);
                    }
                    2 => {
                        let tail = list.split_off(bytes);
                        prop_assert_eq!(addresses(&memory, &tail), model.split_off(kept));
                    }
                    3 => {
                        let mut buffer = vec![0; bytes];
                        prop_assert_eq!(list.read(&mut buffer), kept);
                        let expected: Vec<u8> = model.drain(..kept).map(|address| content_at(&address)).collect();
                        prop_assert_eq!(&buffer[..kept], expected);
                    }
                    _ => {
                        // What is there already, so that overlaps do not matter.
                        let content: Vec<u8> = model.iter().take(kept).map(content_at).collect();
                        prop_assert_eq!(list.write(&content), kept);
                        model.drain(..kept);
                    }
                }
                prop_assert_eq!(list.len(), model.len());
                prop_assert_eq!(list.is_empty(), model.is_empty());
                prop_assert_eq!(addresses(&memory, &list), model.clone());
            }
        }
    }

    /// The addresses a list covers, as the kernel would see them.
    fn addresses(memory: &Memory, list: &Scatter) -> Vec<usize> {
        let base = GuestMemoryBackend::get_host_address(memory, GuestAddress(0)).expect("mapped") as usize;
        let mut iovecs = Vec::new();
        list.append_iovecs(&mut iovecs);
        assert_eq!(iovecs.len(), list.segments());
        iovecs.iter().flat_map(|iovec| (0..iovec.iov_len).map(|at| iovec.iov_base as usize - base + at)).collect()
    }

    #[test]
    fn written_bytes_arrive_where_they_belong() {
        let memory = memory();
        let (mut list, _) = scatter(&memory, &[(100, 3), (50, 2)]);
        assert_eq!(list.write(&[201, 202, 203, 204]), 4);
        assert_eq!(list.write(&[205, 206]), 1);
        let mut around = [0; 5];
        memory.read_slice(&mut around, GuestAddress(99)).expect("inside");
        assert_eq!(around, [99, 201, 202, 203, 103]);
        memory.read_slice(&mut around, GuestAddress(49)).expect("inside");
        assert_eq!(around, [49, 204, 205, 52, 53]);
    }
}
