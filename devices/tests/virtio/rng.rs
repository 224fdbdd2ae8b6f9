//! The entropy device.

use cistern_devices::virtio::rng::Rng;

use crate::guest::{BUFFERS, EVENT_IDX, Guest, writable};

#[test]
fn fills_exactly_the_buffers() {
    let mut guest = Guest::new(Box::new(Rng));
    guest.start(EVENT_IDX);
    guest.put(BUFFERS, &[0; 0x3000]);
    let bytes = guest
        .request(0, &[writable(BUFFERS + 7, 1000), writable(BUFFERS + 0x1000, 0), writable(BUFFERS + 0x2000, 3000)]);
    assert_eq!(bytes, 4000);
    let memory = guest.get(BUFFERS, 0x3000);
    assert_eq!(memory[..7], [0; 7]);
    assert!(memory[7..1007].chunks(100).all(|part| part.iter().any(|byte| *byte != 0)));
    assert!(memory[1007..0x2000].iter().all(|byte| *byte == 0));
    assert!(memory[0x2000..0x2000 + 3000].chunks(100).all(|part| part.iter().any(|byte| *byte != 0)));
    assert!(memory[0x2000 + 3000..].iter().all(|byte| *byte == 0));
    assert_eq!(guest.interrupts(), 1);
}

#[test]
fn answers_no_more_than_64_kib_at_once() {
    let mut guest = Guest::new(Box::new(Rng));
    guest.start(0);
    assert_eq!(guest.request(0, &[writable(BUFFERS, 100_000)]), 65536);
    assert!(guest.get(BUFFERS + 65536, 100_000 - 65536).iter().all(|byte| *byte == 0));
}

#[test]
fn two_answers_differ() {
    let mut guest = Guest::new(Box::new(Rng));
    guest.start(0);
    guest.request(0, &[writable(BUFFERS, 32)]);
    let first = guest.get(BUFFERS, 32);
    guest.request(0, &[writable(BUFFERS, 32)]);
    assert_ne!(first, guest.get(BUFFERS, 32));
}
