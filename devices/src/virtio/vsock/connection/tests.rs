#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::virtio::vsock::credit::BUFFER_BYTES;

const GUEST_CID: u64 = 7;
const PORTS: Ports = Ports { guest: 52, host: 1 << 30 };

/// A connection with the host process's end of its socket.
fn requested() -> (Connection, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    (Connection::requested_by_host(GUEST_CID, PORTS, ours), theirs)
}

fn established() -> (Connection, UnixStream) {
    let (mut connection, mut process) = requested();
    assert_eq!(next(&mut connection).0.op, op::REQUEST);
    connection.receive(&packet(op::RESPONSE), &[]);
    assert_eq!(read(&mut process), b"OK 1073741824\n");
    assert_eq!(connection.next_packet(&mut [0; 10]), None);
    (connection, process)
}

/// A packet from the guest, which has taken all it got.
fn packet(op: u16) -> Header {
    Header {
        src_cid: GUEST_CID,
        dst_cid: HOST_CID,
        src_port: PORTS.guest,
        dst_port: PORTS.host,
        socket_type: TYPE_STREAM,
        op,
        buf_alloc: 1 << 20,
        ..Header::default()
    }
}

fn send(connection: &mut Connection, data: &[u8]) {
    connection.receive(&Header { len: data.len() as u32, ..packet(op::RW) }, data);
}

fn shut_down(connection: &mut Connection, flags: u32) {
    connection.receive(&Header { flags, ..packet(op::SHUTDOWN) }, &[]);
}

fn try_next(connection: &mut Connection) -> Option<(Header, Vec<u8>)> {
    let mut room = [0; 4096];
    let header = connection.next_packet(&mut room)?;
    Some((header, room[..header.len as usize].to_vec()))
}

fn next(connection: &mut Connection) -> (Header, Vec<u8>) {
    try_next(connection).expect("no packet for the guest")
}

/// Everything the host's process has to read.
fn read(process: &mut UnixStream) -> Vec<u8> {
    let mut data = Vec::new();
    match process.read_to_end(&mut data) {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => panic!("{error}"),
        _ => data,
    }
}

/// True when the host's process finds the end of the stream.
fn is_at_end(process: &mut UnixStream) -> bool {
    matches!(process.read(&mut [0]), Ok(0))
}

fn readable(connection: &mut Connection) {
    connection.socket_event(SocketEvent { readable: true, ..SocketEvent::default() });
}

fn writable(connection: &mut Connection) {
    connection.socket_event(SocketEvent { writable: true, ..SocketEvent::default() });
}

fn hang_up(connection: &mut Connection) {
    connection.socket_event(SocketEvent { readable: true, hung_up: true, ..SocketEvent::default() });
}

/// Sends until the socket is full and something waits here. Returns the number of bytes sent.
fn fill(connection: &mut Connection) -> usize {
    let mut sent = 0;
    while !connection.wants_to_write() {
        send(connection, &[sent as u8; 10_000]);
        sent += 10_000;
        while try_next(connection).is_some() {}
        assert!(sent < 100_000_000, "the socket is bottomless");
    }
    sent
}

#[test]
fn guest_request_is_granted_and_stamped() {
    let (ours, _process) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let request = Header { src_port: 9, dst_port: 80, ..packet(op::REQUEST) };
    let mut connection = Connection::requested_by_guest(&request, ours);
    let (header, _) = next(&mut connection);
    assert_eq!((header.op, header.socket_type), (op::RESPONSE, TYPE_STREAM));
    assert_eq!((header.src_cid, header.dst_cid, header.src_port, header.dst_port), (HOST_CID, GUEST_CID, 80, 9));
    assert_eq!((header.buf_alloc, header.fwd_cnt, header.len), (BUFFER_BYTES, 0, 0));
    assert_eq!(try_next(&mut connection), None);
    assert!(!connection.wants_to_send());
}

#[test]
fn refused_host_request_is_hung_up_on() {
    let (mut connection, mut process) = requested();
    next(&mut connection);
    connection.receive(&packet(op::RST), &[]);
    assert!(connection.is_closed());
    drop(connection);
    assert!(is_at_end(&mut process));
}

#[test]
fn host_that_gives_up_waiting_resets() {
    let (mut connection, _process) = requested();
    hang_up(&mut connection);
    assert!(connection.is_closed(), "the guest was not asked yet");
    let (mut connection, _process) = requested();
    next(&mut connection);
    hang_up(&mut connection);
    assert_eq!(next(&mut connection).0.op, op::RST);
    assert!(connection.is_closed());
}

#[test]
fn data_flows_within_the_guests_credit() {
    let (mut connection, mut process) = established();
    connection.receive(&Header { buf_alloc: 10, fwd_cnt: 0, ..packet(op::CREDIT_UPDATE) }, &[]);
    process.write_all(b"hello, guest").unwrap();
    readable(&mut connection);
    assert_eq!(next(&mut connection).1, b"hello, gue");
    // No credit left: the guest is asked once for more.
    assert_eq!(next(&mut connection).0.op, op::CREDIT_REQUEST);
    assert!(!connection.wants_to_send());
    assert_eq!(try_next(&mut connection), None);
    connection.receive(&Header { buf_alloc: 10, fwd_cnt: 0, ..packet(op::CREDIT_UPDATE) }, &[]);
    assert_eq!(try_next(&mut connection), None);
    connection.receive(&Header { buf_alloc: 10, fwd_cnt: 9, ..packet(op::CREDIT_UPDATE) }, &[]);
    assert_eq!(next(&mut connection).1, b"st");
    assert_eq!(try_next(&mut connection), None);
    // The next time too.
    process.write_all(b"and farewell").unwrap();
    readable(&mut connection);
    assert_eq!(next(&mut connection).1, b"and far");
    assert_eq!(next(&mut connection).0.op, op::CREDIT_REQUEST);
}

#[test]
fn guest_hears_of_its_credit() {
    let (mut connection, mut process) = established();
    let mut sent = 0;
    let mut header = loop {
        send(&mut connection, &[1; 1000]);
        sent += 1000;
        assert_eq!(read(&mut process).len(), 1000);
        if let Some((header, _)) = try_next(&mut connection) {
            break header;
        }
    };
    assert_eq!((header.op, header.fwd_cnt), (op::CREDIT_UPDATE, sent));
    assert!(sent <= BUFFER_BYTES * 3 / 4);
    connection.receive(&packet(op::CREDIT_REQUEST), &[]);
    header = next(&mut connection).0;
    assert_eq!((header.op, header.fwd_cnt), (op::CREDIT_UPDATE, sent));
    assert_eq!(try_next(&mut connection), None);
}

#[test]
fn backlog_keeps_data_in_order_and_is_bounded() {
    let (mut connection, mut process) = established();
    let sent = fill(&mut connection);
    // Up to the credit everything is kept; the byte after that is too much.
    let room = (BUFFER_BYTES as usize - connection.backlog.len()).min(BUFFER_BYTES as usize / 2);
    let mut data = Vec::new();
    while connection.wants_to_write() {
        data.extend(read(&mut process));
        writable(&mut connection);
    }
    data.extend(read(&mut process));
    let expected: Vec<u8> = (0..sent / 10_000).flat_map(|index| [(index * 10_000) as u8; 10_000]).collect();
    assert!(data == expected, "{} of {} bytes, or not in order", data.len(), expected.len());
    assert_eq!(connection.backlog.capacity(), 0, "an empty backlog costs nothing");
    send(&mut connection, &vec![2; room]);
    assert_eq!(read(&mut process).len(), room);
}

#[test]
fn guest_that_exceeds_its_credit_is_reset() {
    let (mut connection, _process) = established();
    fill(&mut connection);
    let mut more = 0;
    while !connection.wants_to_send() {
        send(&mut connection, &[0]);
        more += 1;
        assert!(connection.backlog.len() <= BUFFER_BYTES as usize && more <= BUFFER_BYTES);
    }
    assert_eq!(next(&mut connection).0.op, op::RST);
    assert!(connection.is_closed() && more > 1);
}

#[test]
fn absurd_length_is_reset_without_its_data() {
    let (mut connection, _process) = established();
    connection.receive(&Header { len: u32::MAX, ..packet(op::RW) }, &[0; 100]);
    assert_eq!(next(&mut connection).0.op, op::RST);
}

#[test]
fn guest_ends_one_direction() {
    let (mut connection, mut process) = established();
    send(&mut connection, b"last words");
    shut_down(&mut connection, SHUTDOWN_SEND);
    assert_eq!(read(&mut process), b"last words");
    assert!(is_at_end(&mut process));
    process.write_all(b"answer").unwrap();
    readable(&mut connection);
    assert_eq!(next(&mut connection).1, b"answer");
    assert_eq!(try_next(&mut connection), None);
    // When the process ends too, nothing can come any more in either direction.
    drop(process);
    hang_up(&mut connection);
    assert_eq!(next(&mut connection).0.flags, SHUTDOWN_BOTH);
    connection.receive(&packet(op::RST), &[]);
    assert!(connection.is_closed());
}

#[test]
fn data_after_the_end_is_a_breach() {
    let (mut connection, _process) = established();
    shut_down(&mut connection, SHUTDOWN_SEND);
    send(&mut connection, b"x");
    assert_eq!(next(&mut connection).0.op, op::RST);
}

#[test]
fn host_ends_one_direction() {
    let (mut connection, mut process) = established();
    process.write_all(b"question").unwrap();
    process.shutdown(Shutdown::Write).unwrap();
    readable(&mut connection);
    assert_eq!(next(&mut connection).1, b"question");
    let (header, _) = next(&mut connection);
    assert_eq!((header.op, header.flags), (op::SHUTDOWN, SHUTDOWN_SEND));
    assert_eq!(try_next(&mut connection), None);
    send(&mut connection, b"answer");
    assert_eq!(read(&mut process), b"answer");
    shut_down(&mut connection, SHUTDOWN_BOTH);
    assert_eq!(next(&mut connection).0.op, op::RST);
    assert!(connection.is_closed());
}

#[test]
fn host_that_stops_reading_is_reported() {
    let (mut connection, process) = established();
    process.shutdown(Shutdown::Read).unwrap();
    send(&mut connection, b"nobody listens");
    let (header, _) = next(&mut connection);
    assert_eq!((header.op, header.flags), (op::SHUTDOWN, SHUTDOWN_RECEIVE));
    // What is under way is dropped and counts as taken.
    send(&mut connection, &[0; 40_000]);
    let (header, _) = next(&mut connection);
    assert_eq!((header.op, header.fwd_cnt), (op::CREDIT_UPDATE, 40_014));
}

#[test]
fn host_that_is_gone_is_read_to_its_end() {
    let (mut connection, mut process) = established();
    process.write_all(b"bye").unwrap();
    drop(process);
    hang_up(&mut connection);
    let (header, data) = next(&mut connection);
    assert_eq!((header.op, &data[..]), (op::RW, &b"bye"[..]));
    let (header, _) = next(&mut connection);
    assert_eq!((header.op, header.flags), (op::SHUTDOWN, SHUTDOWN_BOTH));
    assert_eq!(try_next(&mut connection), None);
}

#[test]
fn guest_that_stops_reading_stops_the_host() {
    let (mut connection, mut process) = established();
    shut_down(&mut connection, SHUTDOWN_RECEIVE);
    assert_eq!(process.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    readable(&mut connection);
    assert_eq!(try_next(&mut connection), None);
    send(&mut connection, b"still talking");
    assert_eq!(read(&mut process), b"still talking");
}

#[test]
fn clean_end_waits_for_the_backlog() {
    for reset_in_between in [false, true] {
        let (mut connection, mut process) = established();
        let sent = fill(&mut connection);
        shut_down(&mut connection, SHUTDOWN_BOTH);
        assert_eq!(try_next(&mut connection), None, "acknowledged before the process has everything");
        if reset_in_between {
            // The guest lost patience; its ports are free, its data is still delivered.
            connection.receive(&packet(op::RST), &[]);
            assert!(connection.is_over_for_guest() && !connection.is_closed());
        }
        let mut received = 0;
        while connection.wants_to_write() {
            received += read(&mut process).len();
            writable(&mut connection);
        }
        assert_eq!(received + read(&mut process).len(), sent);
        if !reset_in_between {
            assert_eq!(next(&mut connection).0.op, op::RST);
        }
        assert!(connection.is_closed());
    }
}

#[test]
fn abrupt_end_drops_the_backlog() {
    let (mut connection, _process) = established();
    fill(&mut connection);
    connection.receive(&packet(op::RST), &[]);
    assert!(connection.is_closed());
}

#[test]
fn packets_out_of_place_reset() {
    for op in [op::REQUEST, op::RESPONSE, 0, 8, u16::MAX] {
        let (mut connection, _process) = established();
        connection.receive(&packet(op), &[]);
        assert_eq!(next(&mut connection).0.op, op::RST, "op {op}");
    }
    for op in [op::REQUEST, op::RW, op::SHUTDOWN, op::CREDIT_UPDATE, op::CREDIT_REQUEST] {
        let (mut connection, _process) = requested();
        next(&mut connection);
        connection.receive(&packet(op), &[]);
        assert_eq!(next(&mut connection).0.op, op::RST, "op {op}");
    }
}

#[derive(Debug, Clone)]
enum Step {
    Packet { op: u16, len: u32, flags: u32, buf_alloc: u32, fwd_cnt: u32 },
    Next { room: usize },
    HostWrites(usize),
    HostReads,
    HostEnds(Shutdown),
    Event { readable: bool, writable: bool, hung_up: bool },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_u16..9, prop_oneof![0_u32..5000, any::<u32>()], 0_u32..5, any::<u32>(), 0_u32..10_000)
            .prop_map(|(op, len, flags, buf_alloc, fwd_cnt)| Step::Packet { op, len, flags, buf_alloc, fwd_cnt }),
        8 => (0_u32..65_536).prop_map(|len| Step::Packet { op: op::RW, len, flags: 0, buf_alloc: 9000, fwd_cnt: 0 }),
        8 => (1_usize..5000).prop_map(|room| Step::Next { room }),
        2 => (0_usize..20_000).prop_map(Step::HostWrites),
        1 => Just(Step::HostReads),
        1 => prop_oneof![Just(Shutdown::Read), Just(Shutdown::Write)].prop_map(Step::HostEnds),
        3 => any::<(bool, bool)>().prop_map(|(readable, writable)| Step::Event { readable, writable, hung_up: false }),
        1 => Just(Step::Event { readable: true, writable: false, hung_up: true }),
    ]
}

proptest! {
    /// Whatever happens, in whatever order: what is kept is bounded, no packet exceeds its room, and a closed connection
    /// stays closed and silent.
    #[test]
    fn anything_goes(steps in prop::collection::vec(step(), 1..80)) {
        let (mut connection, mut process) = established();
        let data = vec![3; BUFFER_BYTES as usize];
        for step in steps {
            let closed = connection.is_closed();
            match step {
                Step::Packet { op, len, flags, buf_alloc, fwd_cnt } => {
                    let header = Header { len, flags, buf_alloc, fwd_cnt, ..packet(op) };
                    connection.receive(&header, &data[..data.len().min(len as usize)]);
                }
                Step::Next { room } => {
                    let wanted = connection.wants_to_send();
                    let header = connection.next_packet(&mut vec![0; room]);
                    prop_assert!(header.is_none_or(|header| header.len as usize <= room && wanted));
                    prop_assert!(!closed || header.is_none());
                }
                Step::HostWrites(bytes) => {
                    let _ = process.write(&data[..bytes]);
                }
                Step::HostReads => {
                    let _ = process.read(&mut vec![0; 1 << 20]);
                }
                Step::HostEnds(how) => {
                    let _ = process.shutdown(how);
                }
                Step::Event { readable, writable, hung_up } => {
                    connection.socket_event(SocketEvent { readable, writable, hung_up });
                }
            }
            prop_assert!(connection.backlog.len() <= BUFFER_BYTES as usize);
            prop_assert!(!closed || connection.is_closed());
            prop_assert!(!connection.is_closed() || !connection.wants_to_send());
        }
    }
}
