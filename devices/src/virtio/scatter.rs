//! The buffers of a request: guest memory as lists of slices, ready for vectored I/O.

use cistern_memory::{GuestRam, Memory, Pin, RamError};
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
            } else if writable.pieces.is_empty() {
                &mut readable
            } else {
                return Err(QueueError::ChainOrder);
            };
            let (address, bytes) = (descriptor.addr(), descriptor.len());
            let outside = || QueueError::BufferOutsideMemory { guest_address: address.0, bytes };
            // A buffer that goes on from one region to the next is two slices.
            let mut guest_address = address.0;
            for slice in GuestMemoryBackend::get_slices(memory, address, bytes as usize) {
                let slice = slice.map_err(|_| outside())?;
                list.push(guest_address, slice);
                guest_address += slice.len() as u64;
            }
        }
        if whole { Ok(Self { head_index, readable, writable }) } else { Err(QueueError::ChainBroken) }
    }
}

/// A slice of guest memory inside one region, and where the guest has it.
#[derive(Debug, Clone, Copy)]
struct Piece<'m> {
    guest_address: u64,
    slice: VolatileSlice<'m>,
}

impl Piece<'_> {
    fn end(&self) -> u64 {
        self.guest_address + self.slice.len() as u64
    }
}

/// A list of slices of guest memory, consumed from the front. The guest may change the memory at any time: whatever is
/// read from it is copied first and judged after.
#[derive(Debug, Default, Clone)]
pub struct Scatter<'m> {
    pieces: Vec<Piece<'m>>,
    /// Index of the first piece not consumed.
    first: usize,
    bytes: usize,
}

impl<'m> Scatter<'m> {
    fn push(&mut self, guest_address: u64, slice: VolatileSlice<'m>) {
        self.bytes += slice.len();
        self.pieces.push(Piece { guest_address, slice });
    }

    /// What is left.
    fn rest(&self) -> impl Iterator<Item = &VolatileSlice<'m>> {
        self.pieces[self.first..].iter().map(|piece| &piece.slice)
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
        self.pieces.len() - self.first
    }

    /// Skips up to `bytes` bytes.
    pub fn advance(&mut self, bytes: usize) {
        let mut left = bytes.min(self.bytes);
        self.bytes -= left;
        while let Some(Piece { guest_address, slice }) = self.pieces.get_mut(self.first) {
            if slice.len() > left {
                *slice = slice.offset(left).expect("the slice is longer than what is skipped");
                *guest_address += left as u64;
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
        for index in self.first..self.pieces.len() {
            let slice = &mut self.pieces[index].slice;
            if slice.len() >= left {
                *slice = slice.subslice(0, left).expect("the slice is at least as long as what is kept");
                self.pieces.truncate(index + 1);
                return;
            }
            left -= slice.len();
        }
    }

    /// Copies bytes out and consumes them; returns how many there were for `buffer`.
    pub fn read(&mut self, buffer: &mut [u8]) -> usize {
        let mut done = 0;
        for slice in self.rest() {
            done += slice.copy_to(&mut buffer[done..]);
        }
        self.advance(done);
        done
    }

    /// Copies bytes in and consumes the place; returns how many found a place.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        let mut done = 0;
        for slice in self.rest() {
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
            self.rest()
                .map(|slice| libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() }),
        );
    }

    /// Brings what is left into guest RAM and keeps it there for as long as the pins live: to be held around every call
    /// that gives these slices to the kernel.
    ///
    /// # Errors
    /// [`RamError::Pin`] when a page has all the pins it can have; none is held then.
    pub fn pin(&self, ram: &GuestRam) -> Result<Vec<Pin>, RamError> {
        let mut pins = Vec::with_capacity(self.segments());
        let mut pieces = self.pieces[self.first..].iter().filter(|piece| !piece.slice.is_empty()).peekable();
        while let Some(piece) = pieces.next() {
            // Pieces of one run share a pin, unless a region begins between them: a pin lies in one region.
            let starts_region = |address| ram.regions().iter().any(|region| region.guest_address == address);
            let mut end = piece.end();
            while let Some(next) = pieces.next_if(|next| next.guest_address == end && !starts_region(end)) {
                end = next.end();
            }
            pins.push(ram.pin(piece.guest_address, end - piece.guest_address)?);
        }
        Ok(pins)
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::sync::{Arc, Mutex, Weak};

    use cistern_memory::Paging;
    use cistern_memory::page_table::PageTableError;
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
            list.push(*start as u64, slice.expect("inside the memory"));
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
        for (iovec, piece) in iovecs.iter().zip(&list.pieces[list.first..]) {
            assert!(iovec.iov_len == 0 || iovec.iov_base as usize - base == piece.guest_address as usize);
        }
        iovecs.iter().flat_map(|iovec| (0..iovec.iov_len).map(|at| iovec.iov_base as usize - base + at)).collect()
    }

    /// Notes what is pinned; refuses page 7.
    #[derive(Debug, Default)]
    struct Ledger {
        pinned: Mutex<Vec<Range<u64>>>,
        let_go: Mutex<Vec<Range<u64>>>,
    }

    impl Paging for Ledger {
        fn discard(&self, _: Range<u64>) -> Result<u64, RamError> {
            unreachable!("nothing is discarded here")
        }

        fn pin(&self, gfns: Range<u64>) -> Result<(), PageTableError> {
            if gfns.contains(&7) {
                return Err(PageTableError::TooManyPins { gfn: 7 });
            }
            self.pinned.lock().expect("no panic").push(gfns);
            Ok(())
        }

        fn unpin(&self, gfns: Range<u64>) {
            self.let_go.lock().expect("no panic").push(gfns);
        }
    }

    #[test]
    fn each_run_is_pinned_once_and_no_pin_crosses_regions() {
        const REGION: u64 = 2 << 20;
        const PAGE: u64 = 4096;
        let ram = GuestRam::new(&[0..REGION, REGION..2 * REGION]).expect("RAM");
        let ledger = Arc::new(Ledger::default());
        let weak: Weak<Ledger> = Arc::downgrade(&ledger);
        ram.attach(weak);
        let list = |pieces: &[(u64, usize)]| {
            let mut list = Scatter::default();
            for (address, bytes) in pieces {
                let slice = GuestMemoryBackend::get_slice(ram.memory(), GuestAddress(*address), *bytes);
                list.push(*address, slice.expect("inside the memory"));
            }
            list
        };
        let run = [(PAGE + 1, 4095), (2 * PAGE, 0), (2 * PAGE, 1), (2 * PAGE + 1, 4096)];
        let border = [(REGION - 2, 2), (REGION, 4096)];
        let mut both = list(&[&run[..], &border].concat());
        let take = |list: &Mutex<Vec<_>>| std::mem::take(&mut *list.lock().expect("no panic"));

        let pins = both.pin(&ram).expect("not page 7");
        let expected = vec![1..4, 511..512, 512..513];
        assert_eq!((take(&ledger.pinned), take(&ledger.let_go)), (expected.clone(), vec![]));
        drop(pins);
        assert_eq!((take(&ledger.pinned), take(&ledger.let_go)), (vec![], expected));

        // What was consumed is not pinned any more.
        both.advance(4096);
        drop(both.pin(&ram).expect("not page 7"));
        assert_eq!(take(&ledger.pinned), [2..4, 511..512, 512..513]);
        take(&ledger.let_go);

        assert!(matches!(list(&[(0, 1), (7 * PAGE, 1)]).pin(&ram), Err(RamError::Pin { .. })));
        assert_eq!((take(&ledger.pinned), take(&ledger.let_go)), (vec![0..1], vec![0..1]));
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
