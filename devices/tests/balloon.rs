//! The balloon device against a driver in guest memory.
#![allow(clippy::unwrap_used)]

#[path = "common/ring.rs"]
mod ring;

use std::sync::Arc;

use cistern_devices::virtio::balloon::{
    Balloon, BalloonHandle, VIRTIO_BALLOON_F_DEFLATE_ON_OOM, VIRTIO_BALLOON_F_PAGE_REPORTING, VIRTIO_BALLOON_F_STATS_VQ,
};
use cistern_devices::virtio::device::VirtioDevice;
use cistern_memory::{Balloon as _, BalloonStatistics, GuestRam, PAGE_SIZE};
use proptest::prelude::*;
use ring::{Guest, readable, writable};
use vm_memory::{Bytes, GuestAddress};

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATISTICS: usize = 2;
const INTERRUPT_QUEUE: u32 = 1;
const INTERRUPT_CONFIG: u32 = 2;

const RINGS: u64 = 0x10_0000;
const LIST: u64 = 0x18_0000;
/// RAM the tests give away: 2 MiB and up; a hole after 8 MiB, then 2 MiB more at 16 MiB.
const FIRST_FREE: u64 = 2 << 20;
const HOLE: u64 = 8 << 20;
const HIGH: u64 = 16 << 20;

const STATS: u64 = 1 << VIRTIO_BALLOON_F_STATS_VQ;
const REPORTING: u64 = 1 << VIRTIO_BALLOON_F_PAGE_REPORTING;

fn guest_with(features: u64) -> (Guest, Arc<BalloonHandle>) {
    let ram = GuestRam::new(&[0..HOLE, HIGH..HIGH + (2 << 20)]).unwrap();
    let device = Balloon::new(true).unwrap();
    let handle = device.handle();
    (Guest::new(device, ram, RINGS, features), handle)
}

fn guest() -> (Guest, Arc<BalloonHandle>) {
    let (mut guest, handle) = guest_with(STATS | REPORTING);
    guest.activate();
    (guest, handle)
}

/// Gives a list of page numbers on a queue.
fn give_pages(guest: &mut Guest, queue: usize, pages: &[u64]) -> u16 {
    let list: Vec<u8> = pages.iter().flat_map(|&page| (page as u32).to_le_bytes()).collect();
    guest.write(LIST, &list);
    guest.give(queue, &[readable(LIST, list.len() as u32)])
}

fn fill(guest: &Guest, address: u64) {
    guest.write(address, &[0xa5; PAGE_SIZE as usize]);
}

fn is_zero(guest: &Guest, address: u64) -> bool {
    guest.read(address, PAGE_SIZE as usize).iter().all(|&byte| byte == 0)
}

fn statistics_buffer(guest: &Guest, entries: &[(u16, u64)]) -> ring::Buffer {
    let bytes: Vec<u8> =
        entries.iter().flat_map(|(tag, value)| [&tag.to_le_bytes()[..], &value.to_le_bytes()[..]].concat()).collect();
    guest.write(LIST, &bytes);
    readable(LIST, bytes.len() as u32)
}

fn config(guest: &Guest) -> (u32, u32) {
    let mut data = [0; 8];
    guest.read_config(0, &mut data);
    (u32::from_le_bytes(data[..4].try_into().unwrap()), u32::from_le_bytes(data[4..].try_into().unwrap()))
}

#[test]
fn features_follow_the_mode() {
    let fixed = STATS | 1 << VIRTIO_BALLOON_F_DEFLATE_ON_OOM;
    assert_eq!(Balloon::new(true).unwrap().features(), fixed | REPORTING);
    assert_eq!(Balloon::new(false).unwrap().features(), fixed);
}

#[test]
fn inflated_pages_go_back_to_the_host() {
    let (mut guest, handle) = guest();
    let page = FIRST_FREE / PAGE_SIZE;
    let last_low = HOLE / PAGE_SIZE - 1;
    let pages = [page + 2, last_low, page, HIGH / PAGE_SIZE, page + 1, page + 9];
    for &page in &pages {
        fill(&guest, page * PAGE_SIZE);
    }
    fill(&guest, (page + 3) * PAGE_SIZE);
    let head = give_pages(&mut guest, INFLATE, &pages);
    for &page in &pages {
        assert!(is_zero(&guest, page * PAGE_SIZE), "page {page}");
    }
    assert!(!is_zero(&guest, (page + 3) * PAGE_SIZE), "a page that was not given was taken");
    assert_eq!(handle.inflated_bytes(), 6 * PAGE_SIZE);
    assert_eq!(guest.rings[INFLATE].pop_used(), Some((head, 0)));
    assert_eq!(guest.take_interrupt(), INTERRUPT_QUEUE);

    // Once more the same, and one twice in one list: they count once.
    give_pages(&mut guest, INFLATE, &[page, page, page + 1]);
    assert_eq!(handle.inflated_bytes(), 6 * PAGE_SIZE);

    give_pages(&mut guest, DEFLATE, &[page, page + 1, page + 1, page + 7]);
    assert_eq!(handle.inflated_bytes(), 4 * PAGE_SIZE);
    assert_eq!(handle.discard_failures(), 0);
}

#[test]
fn pages_outside_ram_break_the_device() {
    for page in [HOLE / PAGE_SIZE, (HIGH + (2 << 20)) / PAGE_SIZE, u32::MAX.into()] {
        for queue in [INFLATE, DEFLATE] {
            let (mut guest, handle) = guest();
            give_pages(&mut guest, queue, &[page]);
            assert!(guest.is_broken(), "page {page:#x} on queue {queue}");
            assert_eq!(handle.inflated_bytes(), 0);
        }
    }
}

#[test]
fn lists_are_bounded() {
    for (what, buffer) in [
        ("half a page number", readable(FIRST_FREE, 7)),
        ("too long", readable(FIRST_FREE, 1 << 20)),
        ("list outside RAM", readable(HOLE, 4)),
    ] {
        let (mut guest, _) = guest();
        guest.give(INFLATE, &[buffer]);
        assert!(guest.is_broken(), "{what}");
        // The driver may start over.
        guest.reset();
        guest.activate();
        give_pages(&mut guest, INFLATE, &[FIRST_FREE / PAGE_SIZE]);
        assert!(!guest.is_broken(), "{what}");
    }
    let (mut guest, _) = guest();
    let head = guest.give(INFLATE, &[writable(FIRST_FREE, 64)]);
    assert_eq!(guest.rings[INFLATE].pop_used(), Some((head, 0)), "nothing in it for the device");
}

#[test]
fn target_is_announced_and_read() {
    let (mut guest, handle) = guest_with(STATS);
    // Without a driver nothing is lost: the driver is told when it comes.
    handle.set_target_bytes(5 * PAGE_SIZE + 1);
    guest.run();
    guest.activate();
    assert_eq!(guest.take_interrupt(), INTERRUPT_CONFIG);
    assert_eq!(config(&guest), (5, 0));

    handle.set_target_bytes(9 * PAGE_SIZE);
    guest.run();
    assert_eq!(guest.take_interrupt(), INTERRUPT_CONFIG);
    assert_eq!(config(&guest), (9, 0));
    handle.set_target_bytes(9 * PAGE_SIZE);
    guest.run();
    assert_eq!(guest.take_interrupt(), 0, "the same target once more");
    handle.set_target_bytes(u64::MAX);
    assert_eq!(config(&guest).0, u32::MAX);
    assert_eq!(handle.target_bytes(), u64::MAX);

    guest.write_config(4, &7_u32.to_le_bytes());
    guest.write_config(0, &1_u32.to_le_bytes());
    guest.write_config(6, &[1, 0, 0xff, 0xff]);
    guest.write_config(0xeff, &[1, 1]);
    assert_eq!(config(&guest), (u32::MAX, 0x1_0007));
    let mut beyond = [0; 4];
    guest.read_config(6, &mut beyond);
    assert_eq!(beyond, [1, 0, 0, 0]);
    guest.read_config(0xefe, &mut beyond);
}

#[test]
fn set_target_wakes_the_event_loop() {
    let (mut guest, handle) = guest();
    std::thread::scope(|scope| {
        scope.spawn(|| handle.set_target_bytes(PAGE_SIZE));
        assert!(guest.wait());
    });
    assert_eq!(guest.take_interrupt(), INTERRUPT_CONFIG);
    assert_eq!(config(&guest).0, 1);
}

#[test]
fn one_event_is_bounded() {
    let (mut guest, handle) = guest();
    let page = FIRST_FREE / PAGE_SIZE;
    guest.write(LIST, &(page as u32).to_le_bytes());
    for _ in 0..20 {
        guest.rings[INFLATE].add(&[readable(LIST, 4)]);
    }
    guest.kick(INFLATE);
    let mut events = Vec::new();
    while events.iter().sum::<usize>() < 20 {
        assert!(guest.wait());
        events.push(std::iter::from_fn(|| guest.rings[INFLATE].pop_used()).count());
    }
    assert_eq!(events, [8, 8, 4]);
    assert_eq!(handle.inflated_bytes(), PAGE_SIZE);
}

#[test]
fn a_report_of_endless_length_breaks_the_device() {
    const INDIRECT: u16 = 4;
    const TABLE: u64 = LIST;
    for (count, broken) in [(1024_u32, false), (1025, true)] {
        let (mut guest, _) = guest();
        for number in 0..count {
            let at = TABLE + 16 * u64::from(number);
            let next = if number + 1 < count { 1_u16 } else { 0 };
            guest.write(at, &FIRST_FREE.to_le_bytes());
            guest.write(at + 8, &(PAGE_SIZE as u32).to_le_bytes());
            guest.write(at + 12, &(next | 2).to_le_bytes());
            guest.write(at + 14, &(number as u16 + 1).to_le_bytes());
        }
        guest.rings[4].add(&[readable(TABLE, 16 * count)]);
        let descriptor = guest.rings[4].descriptor_table();
        guest.write(descriptor + 12, &INDIRECT.to_le_bytes());
        guest.kick(4);
        guest.run();
        assert_eq!(guest.is_broken(), broken, "{count} ranges");
    }
}

#[test]
fn statistics_are_asked_for_by_returning_the_buffer() {
    let (mut guest, handle) = guest_with(STATS);
    // The first buffer lies in the queue before DRIVER_OK, as Linux does it.
    let buffer = statistics_buffer(&guest, &[(4, 1000), (5, 2000), (77, 1), (8, 3)]);
    let head = guest.rings[STATISTICS].add(&[buffer]);
    assert_eq!(handle.statistics(), None);
    guest.activate();
    let expected = BalloonStatistics {
        free_bytes: Some(1000),
        total_bytes: Some(2000),
        hugetlb_allocations: Some(3),
        ..Default::default()
    };
    assert_eq!(handle.statistics(), Some(expected));
    assert_eq!(guest.rings[STATISTICS].pop_used(), None, "the device keeps the buffer");

    handle.request_statistics();
    guest.run();
    assert_eq!(guest.rings[STATISTICS].pop_used(), Some((head, 0)));
    assert_eq!(guest.take_interrupt(), INTERRUPT_QUEUE);
    // A driver that does not answer: asking again is harmless.
    handle.request_statistics();
    guest.run();
    assert_eq!(guest.rings[STATISTICS].pop_used(), None);

    let buffer = statistics_buffer(&guest, &[(6, 42)]);
    guest.give(STATISTICS, &[buffer]);
    assert_eq!(handle.statistics().unwrap().available_bytes, Some(42));
    assert_eq!(handle.statistics().unwrap().free_bytes, None);
}

#[test]
fn statistics_buffers_may_be_absurd() {
    let (mut guest, handle) = guest();
    let many = vec![(4, 7); 60_000 / 10];
    let first = statistics_buffer(&guest, &many);
    let first = guest.give(STATISTICS, &[first]);
    assert_eq!(handle.statistics().unwrap().free_bytes, Some(7));
    // A second one sends the first back; half an entry is no entry.
    guest.give(STATISTICS, &[readable(LIST, 9)]);
    assert_eq!(guest.rings[STATISTICS].pop_used(), Some((first, 0)));
    assert_eq!(handle.statistics(), Some(BalloonStatistics::default()));
}

#[test]
fn reported_pages_go_back_on_either_queue_number() {
    // The number by the specification; by Linux with statistics; by Linux without.
    for (features, queue) in [(STATS | REPORTING, 4), (STATS | REPORTING, 3), (REPORTING, 2)] {
        let (mut guest, handle) = guest_with(features);
        guest.activate();
        let (a, b) = (FIRST_FREE, FIRST_FREE + 8 * PAGE_SIZE);
        for page in 0..12 {
            fill(&guest, FIRST_FREE + page * PAGE_SIZE);
        }
        // The second range begins and ends inside pages: only what lies between is taken.
        let ranges = [writable(a, 2 * PAGE_SIZE as u32), writable(b + 1, 3 * PAGE_SIZE as u32), writable(a + 5, 100)];
        let head = guest.give(queue, &ranges);
        let taken: Vec<u64> = (0..12).filter(|page| is_zero(&guest, FIRST_FREE + page * PAGE_SIZE)).collect();
        assert_eq!(taken, [0, 1, 9, 10], "queue {queue}");
        assert_eq!(handle.inflated_bytes(), 0);
        assert_eq!(guest.rings[queue].pop_used(), Some((head, 0)));
        assert_eq!(handle.reported_bytes(), 4 * PAGE_SIZE);
    }
}

#[test]
fn queues_of_features_not_negotiated_are_ignored() {
    let (mut guest, handle) = guest_with(STATS);
    guest.activate();
    fill(&guest, FIRST_FREE);
    for queue in [3, 4] {
        guest.give(queue, &[writable(FIRST_FREE, PAGE_SIZE as u32)]);
        assert_eq!(guest.rings[queue].pop_used(), None);
    }
    guest.kick(99);
    guest.run();
    assert!(!is_zero(&guest, FIRST_FREE));
    assert_eq!(handle.reported_bytes(), 0);
}

#[test]
fn reported_ranges_outside_ram_break_the_device() {
    for (address, bytes) in
        [(HOLE, 4096), (HOLE - PAGE_SIZE, 8192), (u64::MAX - 4095, 4096), (u64::MAX, 2), (0, u32::MAX)]
    {
        let (mut guest, handle) = guest();
        guest.give(4, &[writable(address, bytes)]);
        assert!(guest.is_broken(), "{address:#x}, {bytes}");
        assert_eq!(handle.reported_bytes(), 0);
    }
}

#[test]
fn reset_empties_the_balloon_and_keeps_the_target() {
    let (mut guest, handle) = guest();
    handle.set_target_bytes(3 * PAGE_SIZE);
    guest.run();
    give_pages(&mut guest, INFLATE, &[FIRST_FREE / PAGE_SIZE]);
    let buffer = statistics_buffer(&guest, &[(4, 1)]);
    guest.give(STATISTICS, &[buffer]);
    guest.write_config(4, &1_u32.to_le_bytes());
    guest.take_interrupt();

    guest.reset();
    assert_eq!((handle.inflated_bytes(), handle.statistics(), handle.target_bytes()), (0, None, 3 * PAGE_SIZE));
    assert_eq!(config(&guest), (3, 0));
    // A request in between finds no buffer of the time before.
    handle.request_statistics();
    guest.run();
    guest.activate();
    guest.run();
    assert_eq!(guest.take_interrupt(), INTERRUPT_CONFIG, "the new driver is told the target");
    assert_eq!(guest.rings[STATISTICS].pop_used(), None);
    give_pages(&mut guest, DEFLATE, &[FIRST_FREE / PAGE_SIZE]);
    assert_eq!(handle.inflated_bytes(), 0, "deflating what a former driver inflated");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever lies in the rings: an error or an answer, and counts within the guest's size.
    #[test]
    fn random_chains_are_harmless(
        chains in prop::collection::vec(
            (0_usize..5, prop::collection::vec((0_u64..HIGH * 2, 0_u32..1 << 23, any::<bool>()), 1..6)), 1..20),
        noise in prop::collection::vec(any::<u32>(), 64),
    ) {
        let (mut guest, handle) = guest();
        let noise: Vec<u8> = noise.iter().flat_map(|word| (word % 0x1200).to_le_bytes()).collect();
        guest.ram.memory().write_slice(&noise, GuestAddress(FIRST_FREE)).unwrap();
        for (queue, buffers) in chains {
            let buffers: Vec<_> = buffers
                .into_iter()
                // Every other buffer is a plausible list.
                .map(|(address, bytes, flag)| if address % 2 == 0 { readable(FIRST_FREE, (bytes % 64) * 4) }
                    else { ring::Buffer { address, bytes, writable: flag } })
                .collect();
            guest.give(queue, &buffers);
            if guest.is_broken() {
                guest.reset();
                guest.activate();
            }
            prop_assert!(handle.inflated_bytes() <= guest.ram.size_bytes());
        }
    }
}
