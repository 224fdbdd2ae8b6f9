//! What devices pin: exactly what they give to the kernel, for as long as it has it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use cistern_devices::virtio::block::Block;
use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress};

use crate::block::{
    self, DATA, DISCARD, FLUSH, HEADER, IN, IOERR, OK, OUT, STATUS, put_header, range, read, send, started,
};
use crate::guest::{BUFFERS, Guest, readable, writable};
use crate::ledger::Event::{Pin, Unpin};
use crate::ledger::Ledger;
use crate::net::{self, HEADER as FRAME_HEADER, NO_HEADER, OUTGOING, RECEIVE};
use crate::network::{self, frame};

const PAGE: u64 = 4096;
const FIRST: u64 = DATA / PAGE;

/// A driver of an ordinary disk, or of a direct one.
fn driver(file: &NamedTempFile, direct: bool) -> Guest {
    let open = if direct { Block::open_direct } else { Block::open };
    started(open(file.path(), false).unwrap())
}

/// Sees the byte of guest memory at this address.
fn watching_memory(guest: &Guest, address: u64) -> Arc<Ledger> {
    let memory = guest.ram.memory().clone();
    Ledger::watching(guest, move || memory.read_obj(GuestAddress(address)).unwrap())
}

#[test]
fn buffers_are_pinned_while_a_disk_is_read() {
    let file = block::image(100);
    for direct in [false, true] {
        let mut guest = driver(&file, direct);
        let ledger = watching_memory(&guest, DATA);
        put_header(&guest, IN, 3);
        // A run of two pages and a byte, in three pieces, and a piece in the other RAM. Header and status are not the kernel's.
        let buffers = [
            readable(HEADER, 16),
            writable(DATA, 4096),
            writable(DATA + 4096, 0),
            writable(DATA + 4096, 4096),
            writable(DATA + 8192, 1),
            writable(4 << 20, 511),
            writable(STATUS, 1),
        ];
        assert_eq!(guest.request(0, &buffers), 8192 + 512 + 1);
        let (run, other) = (FIRST..FIRST + 3, 1024..1025);
        let expected = [Pin(run.clone(), 0), Pin(other.clone(), 0), Unpin(run, 4), Unpin(other, 4)];
        assert_eq!(ledger.settled(), expected);
    }
}

#[test]
fn buffers_are_pinned_while_a_disk_is_written() {
    for direct in [false, true] {
        let file = block::image(100);
        let mut guest = driver(&file, direct);
        let content = File::open(file.path()).unwrap();
        let ledger = Ledger::watching(&guest, move || {
            let mut byte = [0];
            content.read_exact_at(&mut byte, 8 * 512).unwrap();
            byte[0]
        });
        assert_eq!(send(&mut guest, OUT, 8, &[0xee; 4096]), OK);
        assert_eq!(ledger.settled(), [Pin(FIRST..FIRST + 1, 9), Unpin(FIRST..FIRST + 1, 0xee)]);
    }
}

#[test]
fn requests_that_fail_leave_nothing_pinned() {
    let file = block::image(100);
    for direct in [false, true] {
        file.as_file().set_len(100 * 512).unwrap();
        let mut guest = driver(&file, direct);
        let ledger = watching_memory(&guest, DATA);
        assert_eq!(read(&mut guest, 100, 512).0, IOERR);
        assert_eq!(send(&mut guest, OUT, 0, &[0; 511]), IOERR);
        assert_eq!(send(&mut guest, FLUSH, 0, &[]), OK);
        assert_eq!(send(&mut guest, DISCARD, 0, &range(0, 8, 0)), OK);
        assert_eq!(read(&mut guest, 0, 0).0, OK);
        assert_eq!(ledger.settled(), [], "no data to move");
        file.as_file().set_len(50 * 512 + 100).unwrap();
        for sector in [50, 60] {
            assert_eq!(read(&mut guest, sector, 512).0, IOERR);
            assert_eq!(ledger.settled().len(), 2);
        }
    }
}

#[test]
fn a_pin_refused_fails_its_request_only() {
    for direct in [false, true] {
        let file = block::image(100);
        let mut guest = driver(&file, direct);
        let ledger = Ledger::attach(&guest);
        let pieces = |flags: fn(u64, u32) -> _| {
            [readable(HEADER, 16), flags(DATA, 512), flags(DATA + 0x2000, 512), writable(STATUS, 1)]
        };
        // The first piece of two, and the second.
        for refuse_every in [1, 2] {
            ledger.refuse_every(refuse_every);
            guest.put(DATA, &[0xaa; 0x3000]);
            put_header(&guest, IN, 0);
            assert_eq!(guest.request(0, &pieces(writable)), 0);
            assert_eq!(guest.get(STATUS, 1), [IOERR]);
            assert_eq!(guest.get(DATA, 0x3000), [0xaa; 0x3000]);
            ledger.settled();
            put_header(&guest, OUT, 0);
            guest.request(0, &pieces(readable));
            assert_eq!(guest.get(STATUS, 1), [IOERR]);
            assert_eq!(std::fs::read(file.path()).unwrap()[..1024], [[1; 512], [2; 512]].concat());
            ledger.settled();
        }
        ledger.refuse_every(0);
        assert_eq!(read(&mut guest, 0, 512), (OK, 513));
        assert!(!guest.transport.is_broken());
        ledger.settled();
    }
}

#[test]
fn a_page_named_by_every_descriptor_is_pinned_by_each() {
    let file = block::image(254);
    let mut guest = block::disk(file.path());
    let ledger = Ledger::attach(&guest);
    put_header(&guest, IN, 0);
    let mut buffers = vec![readable(HEADER, 16)];
    buffers.extend([writable(DATA, 512); 254]);
    buffers.push(writable(STATUS, 1));
    assert_eq!(guest.request(0, &buffers), 254 * 512 + 1);
    assert_eq!(guest.get(STATUS, 1), [OK]);
    assert_eq!(ledger.peak(), 254);
    ledger.settled();
}

#[test]
fn receive_buffers_are_pinned_while_frames_arrive() {
    network::isolated(|| {
        let mut wire = net::wire(net::MRG_RXBUF, 8);
        // The second frame begins here, with 0xff.
        let ledger = watching_memory(&wire.guest, BUFFERS + PAGE + FRAME_HEADER as u64);
        wire.post(4, PAGE);
        // Buffers that wait are not pinned, though the device has seen that there is no frame yet.
        ledger.settled();
        for number in 0..2 {
            wire.host.send(NO_HEADER, &frame(number, 100));
        }
        assert_eq!(wire.guest.wait_used(RECEIVE, 2).len(), 2);
        let page = |number: u64| BUFFERS / PAGE + number..BUFFERS / PAGE + number + 1;
        // Each once, though both frames could have taken all of them.
        let pins = (0..4).map(|number| Pin(page(number), 0));
        let unpins = (0..4).map(|number| Unpin(page(number), 0xff * u8::from(number > 0)));
        let events = ledger.settled();
        assert_eq!(events, pins.chain(unpins).collect::<Vec<_>>());
    });
}

#[test]
fn a_frame_whose_buffer_cannot_be_pinned_is_dropped() {
    network::isolated(|| {
        let mut wire = net::wire(0, 8);
        let ledger = Ledger::attach(&wire.guest);
        wire.post(4, 1526);
        ledger.refuse_every(1);
        wire.host.send(NO_HEADER, &frame(1, 100));
        while wire.counters.receive_dropped.load(Ordering::Relaxed) == 0 {
            assert!(!wire.guest.transport.is_broken(), "{:?}", wire.guest.transport.last_error());
            wire.guest.turn();
        }
        ledger.settled();
        ledger.refuse_every(0);
        wire.host.send(NO_HEADER, &frame(2, 100));
        assert_eq!(wire.guest.wait_used(RECEIVE, 1)[0].1, 112);
        assert_eq!(wire.guest.get(BUFFERS + 12, 100), frame(2, 100), "in the buffer that could not be pinned before");
        ledger.settled();
    });
}

#[test]
fn frames_are_pinned_while_they_are_sent() {
    network::isolated(|| {
        let mut wire = net::wire(0, 256);
        let page = OUTGOING / PAGE..OUTGOING / PAGE + 1;
        let host = Arc::clone(&wire.host);
        let ledger = Ledger::watching(&wire.guest, move || host.is_silent().into());
        wire.transmit([0; FRAME_HEADER], &frame(1, 100));
        assert_eq!(ledger.settled(), [Pin(page.clone(), 1), Unpin(page, 0)]);
        ledger.refuse_every(1);
        wire.transmit([0; FRAME_HEADER], &frame(1, 100));
        assert_eq!(wire.counters.transmit_dropped.load(Ordering::Relaxed), 1);
        assert_eq!(wire.counters.transmitted.load(Ordering::Relaxed), 1);
        assert_eq!(ledger.settled(), []);
        assert!(!wire.guest.transport.is_broken());
    });
}
