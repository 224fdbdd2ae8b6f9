//! The network device over a real tap, in a network namespace of each test's own.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cistern_devices::virtio::net::{Net, NetCounters};

use crate::guest::{BUFFERS, EVENT_IDX, Guest, readable, writable};
use crate::network::{self, HOST_HEADER_BYTES, HostEnd, frame, large_segment};

pub const RECEIVE: usize = 0;
pub const TRANSMIT: usize = 1;

const CSUM: u64 = 1 << 0;
const GUEST_CSUM: u64 = 1 << 1;
const MAC: u64 = 1 << 5;
const GUEST_TSO4: u64 = 1 << 7;
const HOST_TSO4: u64 = 1 << 11;
pub const MRG_RXBUF: u64 = 1 << 15;

pub const HEADER: usize = 12;
pub const NO_HEADER: [u8; HOST_HEADER_BYTES] = [0; HOST_HEADER_BYTES];
/// Where frames to send are laid out.
pub const OUTGOING: u64 = 4 << 20;

pub struct Wire {
    pub guest: Guest,
    pub host: Arc<HostEnd>,
    pub counters: Arc<NetCounters>,
}

pub fn wire(features: u64, queue_size: u16) -> Wire {
    network::make_tap("tap0");
    let net = Net::open("tap0", None).unwrap();
    let counters = net.counters();
    let host = Arc::new(HostEnd::up("tap0"));
    let mut guest = Guest::new(Box::new(net));
    guest.start_sized(features | EVENT_IDX | MAC, queue_size);
    Wire { guest, host, counters }
}

impl Wire {
    /// Posts `count` receive buffers, one behind the other.
    pub fn post(&mut self, count: u64, bytes: u64) {
        for number in 0..count {
            self.guest.submit(RECEIVE, &[writable(BUFFERS + number * bytes, bytes as u32)]);
        }
        self.guest.kick(RECEIVE);
        self.guest.settle();
    }

    pub fn transmit(&mut self, header: [u8; HEADER], frame: &[u8]) {
        self.guest.put(OUTGOING, &[&header, frame].concat());
        let split = (HEADER + frame.len() / 3) as u32;
        let rest = (HEADER + frame.len()) as u32 - split;
        let written =
            self.guest.request(TRANSMIT, &[readable(OUTGOING, split), readable(OUTGOING + u64::from(split), rest)]);
        assert_eq!(written, 0);
    }
}

#[test]
fn frames_of_the_guest_reach_the_host() {
    network::isolated(|| {
        let mut wire = wire(0, 256);
        for (number, bytes) in [(1, 14 + 46), (2, 1514), (3, 61)] {
            wire.transmit([0; HEADER], &frame(number, bytes));
            assert_eq!(wire.host.receive().1, frame(number, bytes));
        }
        assert_eq!(wire.counters.transmitted.load(Ordering::Relaxed), 3);
        assert_eq!(wire.counters.transmit_dropped.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn frames_of_the_host_reach_the_guest() {
    network::isolated(|| {
        let mut wire = wire(0, 256);
        wire.guest.put(BUFFERS, &[0xaa; 0x2000]);
        wire.post(3, 1526);
        for (number, bytes) in [(0_u64, 60), (1, 1514), (2, 61)] {
            wire.host.send(NO_HEADER, &frame(number as u32, bytes));
            let used = wire.guest.wait_used(RECEIVE, 1);
            assert_eq!(used[0].1 as usize, HEADER + bytes);
            let received = wire.guest.get(BUFFERS + number * 1526, 1526);
            assert_eq!(received[..HEADER], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
            assert_eq!(received[HEADER..HEADER + bytes], frame(number as u32, bytes));
            assert!(received[HEADER + bytes..].iter().all(|byte| *byte == 0xaa));
        }
        assert_eq!(wire.guest.interrupts(), 3);
        assert_eq!(wire.counters.received.load(Ordering::Relaxed), 3);
    });
}

#[test]
fn a_buffer_may_be_in_pieces() {
    network::isolated(|| {
        let mut wire = wire(0, 256);
        let pieces = [writable(BUFFERS, 5), writable(BUFFERS + 0x100, 6), writable(BUFFERS + 0x200, 2000)];
        wire.guest.submit(RECEIVE, &pieces);
        wire.guest.kick(RECEIVE);
        wire.host.send(NO_HEADER, &frame(9, 100));
        assert_eq!(wire.guest.wait_used(RECEIVE, 1)[0].1, 112);
        assert_eq!(wire.guest.get(BUFFERS + 0x105, 1), [1], "the chain count's low byte");
        assert_eq!(wire.guest.get(BUFFERS + 0x201, 100), frame(9, 100));
    });
}

#[test]
fn large_frames_are_spread_over_mergeable_buffers() {
    network::isolated(|| {
        let mut wire = wire(MRG_RXBUF | GUEST_CSUM | GUEST_TSO4, 64);
        wire.post(64, 2048);
        let (header, large) = large_segment(20_000);
        wire.host.send(header, &large);
        let used = wire.guest.wait_used(RECEIVE, 1);
        let total = HEADER + large.len();
        assert_eq!(used.len(), total.div_ceil(2048), "all of them at once");
        assert_eq!(used.iter().map(|(_, bytes)| *bytes as usize).sum::<usize>(), total);
        assert!(used[..used.len() - 1].iter().all(|(_, bytes)| *bytes == 2048));
        let received = wire.guest.get(BUFFERS, total);
        assert_eq!(received[..2], header[..2], "one large segment, checksum not made");
        assert_eq!(received[10..12], (used.len() as u16).to_le_bytes());
        assert!(received[HEADER..] == large[..]);
        assert_eq!(wire.guest.interrupts(), 1);
    });
}

#[test]
fn without_the_offload_the_host_cuts_large_frames() {
    network::isolated(|| {
        let mut wire = wire(MRG_RXBUF, 64);
        wire.post(64, 2048);
        let (header, large) = large_segment(20_000);
        wire.host.send(header, &large);
        let used = wire.guest.wait_used(RECEIVE, 20_000_usize.div_ceil(1448));
        assert_eq!(used.len(), 20_000_usize.div_ceil(1448));
        assert_eq!(used[0].1 as usize, HEADER + 54 + 1448);
        assert_eq!(wire.guest.get(BUFFERS, HEADER), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0], "checksum made");
    });
}

#[test]
fn a_frame_too_large_for_the_buffers_is_dropped_and_counted() {
    network::isolated(|| {
        let mut wire = wire(GUEST_CSUM | GUEST_TSO4, 8);
        wire.guest.put(BUFFERS, &[0xaa; 0x6000]);
        wire.post(2, 1526);
        let (header, large) = large_segment(10_000);
        wire.host.send(header, &large);
        wire.host.send(NO_HEADER, &frame(5, 1514));
        let used = wire.guest.wait_used(RECEIVE, 1);
        assert_eq!(used.len(), 1);
        assert_eq!(used[0].1 as usize, HEADER + 1514);
        assert_eq!(wire.counters.receive_dropped.load(Ordering::Relaxed), 1);
        assert_eq!(wire.guest.get(BUFFERS + HEADER as u64, 1514), frame(5, 1514));
        assert!(
            wire.guest.get(BUFFERS + 2 * 1526, 0x4000).iter().all(|byte| *byte == 0xaa),
            "nothing behind the buffers"
        );
    });
}

#[test]
fn a_flood_that_does_not_fit_takes_its_turns() {
    network::isolated(|| {
        let mut wire = wire(0, 256);
        wire.guest.settle();
        for number in 0..800 {
            wire.host.send(NO_HEADER, &frame(number, 200));
        }
        wire.guest.submit(RECEIVE, &[writable(BUFFERS, 100)]);
        wire.guest.kick(RECEIVE);
        wire.guest.turn();
        let dropped = wire.counters.receive_dropped.load(Ordering::Relaxed);
        assert!((1..800).contains(&dropped), "the other devices get their turn: {dropped}");
        wire.guest.settle();
        assert_eq!(wire.counters.receive_dropped.load(Ordering::Relaxed), 800);
        assert_eq!(wire.guest.take_used(RECEIVE), []);
    });
}

#[test]
fn frames_wait_for_buffers() {
    network::isolated(|| {
        let mut wire = wire(0, 256);
        for number in 0..20 {
            wire.host.send(NO_HEADER, &frame(number, 200));
        }
        wire.guest.settle();
        for number in 0..20 {
            wire.post(1, 1526);
            assert_eq!(wire.guest.wait_used(RECEIVE, 1).len(), 1);
            assert_eq!(wire.guest.get(BUFFERS + HEADER as u64, 200), frame(number, 200));
        }
    });
}

#[test]
fn with_few_mergeable_buffers_left_a_frame_waits_for_more() {
    network::isolated(|| {
        let mut wire = wire(MRG_RXBUF | GUEST_CSUM | GUEST_TSO4, 64);
        wire.post(8, 2048);
        let (header, large) = large_segment(30_000);
        wire.host.send(header, &large);
        wire.guest.settle();
        assert_eq!(wire.guest.take_used(RECEIVE), []);
        for _ in 0..20 {
            wire.post(2, 2048);
        }
        assert_eq!(wire.guest.wait_used(RECEIVE, 15).len(), 15);
        assert_eq!(wire.counters.receive_dropped.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn a_short_queue_need_not_hold_the_longest_frame() {
    network::isolated(|| {
        let mut wire = wire(MRG_RXBUF | GUEST_CSUM | GUEST_TSO4, 4);
        wire.post(4, 2048);
        let (header, large) = large_segment(30_000);
        wire.host.send(header, &large);
        wire.host.send(NO_HEADER, &frame(1, 100));
        assert_eq!(wire.guest.wait_used(RECEIVE, 1).len(), 1);
        assert_eq!(wire.counters.receive_dropped.load(Ordering::Relaxed), 1);
        assert_eq!(wire.guest.get(BUFFERS + HEADER as u64, 100), frame(1, 100));
    });
}

#[test]
fn a_driver_without_large_frames_needs_few_buffers() {
    network::isolated(|| {
        let mut wire = wire(MRG_RXBUF, 256);
        wire.post(4, 2048);
        for number in 0..4 {
            wire.host.send(NO_HEADER, &frame(number, 1514));
            assert_eq!(wire.guest.wait_used(RECEIVE, 1)[0].1 as usize, HEADER + 1514);
            assert_eq!(wire.guest.get(BUFFERS + u64::from(number) * 2048 + HEADER as u64, 1514), frame(number, 1514));
        }
    });
}

#[test]
fn a_flood_in_both_directions_arrives_whole_and_in_order() {
    network::isolated(|| {
        // More than one event's share, with a queue that has to be refilled on the way.
        const FRAMES: u32 = 900;
        let mut wire = wire(MRG_RXBUF, 64);
        for number in 0..FRAMES {
            wire.host.send(NO_HEADER, &frame(number, 300));
        }
        let mut received = 0;
        wire.post(64, 512);
        while received < FRAMES {
            for (head, bytes) in wire.guest.wait_used(RECEIVE, 1) {
                assert_eq!(bytes as usize, HEADER + 300);
                let address = BUFFERS + u64::from(head) * 512;
                assert_eq!(wire.guest.get(address + HEADER as u64, 300), frame(received, 300));
                received += 1;
                wire.guest.submit(RECEIVE, &[writable(address, 512)]);
            }
            wire.guest.kick(RECEIVE);
        }
        for batch in 0..FRAMES / 60 {
            let numbers = batch * 60..(batch + 1) * 60;
            for number in numbers.clone() {
                let address = OUTGOING + u64::from(number % 60) * 512;
                wire.guest.put(address, &[&[0; HEADER][..], &frame(number, 300)].concat());
                wire.guest.submit(TRANSMIT, &[readable(address, 312)]);
            }
            wire.guest.kick(TRANSMIT);
            wire.guest.settle();
            assert_eq!(wire.guest.take_used(TRANSMIT).len(), 60);
            for number in numbers {
                assert_eq!(wire.host.receive().1, frame(number, 300));
            }
        }
        assert_eq!(wire.counters.receive_dropped.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn large_frames_of_the_guest_pass_as_one_when_agreed() {
    network::isolated(|| {
        let (mut header, large) = large_segment(20_000);
        let mut large = large;
        // An Ethernet type of our own would not be segmented, so look for the frame by its addresses.
        large[..6].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
        header[0] |= 2; // a flag that is not the driver's to set
        let with_count = |header: [u8; HOST_HEADER_BYTES]| {
            let mut full = [0; HEADER];
            full[..HOST_HEADER_BYTES].copy_from_slice(&header);
            full
        };
        let mut wire = wire(CSUM | HOST_TSO4, 64);
        wire.transmit(with_count(header), &large);
        assert_eq!(wire.counters.transmitted.load(Ordering::Relaxed), 1);

        wire.guest.start(0);
        wire.transmit(with_count(header), &large);
        wire.transmit(with_count([1, 0, 0, 0, 0, 0, 14, 0, 2, 0]), &frame(1, 100));
        header[0] = 0;
        wire.transmit(with_count(header), &large);
        assert_eq!(wire.counters.transmitted.load(Ordering::Relaxed), 1, "nothing of it was agreed now");
        assert_eq!(wire.counters.transmit_dropped.load(Ordering::Relaxed), 3);
        // Flags that mean nothing from a driver are no reason to drop.
        wire.transmit(with_count([2, 0, 0, 0, 0, 0, 0, 0, 0, 0]), &frame(2, 100));
        assert_eq!(wire.host.receive().1, frame(2, 100));
    });
}

#[test]
fn frames_that_are_none_are_dropped() {
    network::isolated(|| {
        let mut wire = wire(0, 256);
        wire.guest.request(TRANSMIT, &[readable(OUTGOING, HEADER as u32)]);
        wire.guest.request(TRANSMIT, &[readable(OUTGOING, 12 + 65551)]);
        wire.guest.request(TRANSMIT, &[readable(OUTGOING, 1 << 20)]);
        wire.transmit([0; HEADER], &[1; 5]);
        assert_eq!(wire.counters.transmit_dropped.load(Ordering::Relaxed), 4);
        assert!(wire.host.is_silent());
        wire.transmit([0; HEADER], &frame(3, 100));
        assert_eq!(wire.host.receive().1, frame(3, 100));
    });
}

#[test]
fn buffers_without_room_for_a_header_break_the_device() {
    network::isolated(|| {
        let mut wire = wire(0, 256);
        for (queue, buffer) in
            [(RECEIVE, writable(BUFFERS, 11)), (RECEIVE, readable(BUFFERS, 100)), (TRANSMIT, readable(BUFFERS, 11))]
        {
            wire.guest.start(0);
            wire.guest.submit(queue, &[buffer]);
            wire.guest.kick(queue);
            wire.guest.settle();
            assert!(wire.guest.transport.is_broken(), "{buffer:?}");
        }
        wire.guest.start(0);
        wire.transmit([0; HEADER], &frame(3, 100));
        assert_eq!(wire.host.receive().1, frame(3, 100));
    });
}

#[test]
fn a_tap_that_goes_away_breaks_the_device() {
    network::isolated(|| {
        let mut wire = wire(0, 256);
        wire.post(1, 1526);
        network::ip("link del tap0");
        wire.guest.settle();
        assert!(wire.guest.transport.is_broken());
        assert!(wire.guest.transport.last_error().unwrap().starts_with("net tap0: tap: "));
    });
}

#[test]
fn the_address_is_stable_local_and_the_users_if_given() {
    network::isolated(|| {
        for name in ["tap0", "tap1"] {
            network::make_tap(name);
        }
        let mac = |name| Net::open(name, None).unwrap().mac();
        assert_eq!(mac("tap0"), mac("tap0"));
        assert_ne!(mac("tap0"), mac("tap1"));
        assert_eq!(mac("tap0")[0], 2);
        let guest = Guest::new(Box::new(Net::open("tap0", Some([2, 4, 6, 8, 10, 12])).unwrap()));
        assert_eq!(guest.config(0, 8), [2, 4, 6, 8, 10, 12, 1, 0]);
        assert_eq!(guest.config(4, 8), [10, 12, 1, 0, 0, 0, 0, 0]);
    });
}

#[test]
fn what_is_no_tap_is_refused_with_a_line_that_says_what_to_do() {
    network::isolated(|| {
        network::make_tap("tap0");
        let error = |name, mac| Net::open(name, mac).unwrap_err().to_string();
        let create = "create it with 'ip tuntap add nosuch mode tap user $USER'";
        assert_eq!(error("nosuch", None), format!("tap nosuch: no such interface: {create}"));
        for name in ["", "a/b", "tap%d", "a b", "sixteen-letters-", "a\0b"] {
            assert!(error(name, None).contains("not an interface name"), "{name:?}");
        }
        assert!(error("lo", None).contains("not a tap"));
        let multicast = error("tap0", Some([1, 0, 0x5e, 0, 0, 1]));
        assert_eq!(multicast, "tap tap0: MAC address 01:00:5e:00:00:01: not the address of one station");
        let net = Net::open("tap0", None).unwrap();
        assert!(error("tap0", None).contains("in use by another process"));
        drop(net);

        network::ip("tuntap add others mode tap user 12345");
        drop_capabilities();
        let create = "create it with 'ip tuntap add others mode tap user $USER', or run as root";
        assert_eq!(error("others", None), format!("tap others: operation not permitted: {create}"));
    });
}

/// Takes every privilege from this thread; it stays the owner of root's files.
fn drop_capabilities() {
    const VERSION_3: u32 = 0x2008_0522;
    let (header, none) = ([VERSION_3, 0], [0_u32; 6]);
    // SAFETY: the kernel reads a header of two words and two sets of three words.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
    assert_eq!(result, 0);
}
