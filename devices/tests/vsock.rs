//! The vsock device between real unix sockets and a driver in guest memory.
#![allow(clippy::unwrap_used)]

#[path = "common/ring.rs"]
mod ring;
#[path = "common/vsock_driver.rs"]
mod vsock_driver;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use cistern_devices::virtio::vsock::muxer::CONNECTIONS_MAX;
use cistern_devices::virtio::vsock::packet::{Header, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, op};
use ring::{readable, writable};
use tempfile::TempDir;
use vsock_driver::{GUEST_BUFFER_BYTES, GUEST_CID, RX, Stream, TX, VsockDriver, packet};

/// A directory, the device's socket in it, and the guest.
struct Setup {
    directory: TempDir,
    driver: VsockDriver,
}

impl Setup {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let driver = VsockDriver::started(&directory.path().join("v.sock"));
        Self { directory, driver }
    }

    fn uds(&self) -> PathBuf {
        self.directory.path().join("v.sock")
    }

    /// A service of the host.
    fn serve(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.directory.path().join(format!("v.sock_{port}"))).unwrap()
    }

    fn connect(&self) -> UnixStream {
        patient(UnixStream::connect(self.uds()).unwrap())
    }

    /// A connection from a process to the guest's port.
    fn host_stream(&mut self, port: u32) -> (Stream, UnixStream) {
        let mut process = self.connect();
        writeln!(process, "CONNECT {port}").unwrap();
        let stream = Stream::accept(&mut self.driver);
        assert_eq!(stream.header.src_port, port);
        assert_eq!(read_line(&mut process), format!("OK {}\n", stream.header.dst_port));
        (stream, process)
    }

    /// A connection from the guest to a service.
    fn guest_stream(&mut self, service: &UnixListener, port: u32) -> (Stream, UnixStream) {
        let stream = Stream::connect(&mut self.driver, 1000, port);
        (stream, patient(service.accept().unwrap().0))
    }
}

/// A test that fails should not hang.
fn patient(process: UnixStream) -> UnixStream {
    process.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    process
}

/// A line, and not a byte more.
fn read_line(process: &mut UnixStream) -> String {
    let mut line = String::new();
    BufReader::with_capacity(1, process).read_line(&mut line).unwrap();
    line
}

fn read_to_end(process: &mut UnixStream) -> Vec<u8> {
    let mut data = Vec::new();
    process.read_to_end(&mut data).unwrap();
    data
}

/// Bytes that tell their place.
fn pattern(mut state: u64, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|_| next_random(&mut state) as u8).collect()
}

fn next_random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn configuration_is_the_cid() {
    let setup = Setup::new();
    let mut cid = [0; 8];
    setup.driver.guest.read_config(0, &mut cid);
    assert_eq!(u64::from_le_bytes(cid), GUEST_CID);
}

#[test]
fn host_reaches_the_guest() {
    let mut setup = Setup::new();
    let (mut stream, mut process) = setup.host_stream(52);
    process.write_all(b"ping").unwrap();
    stream.read(&mut setup.driver, 4);
    assert_eq!(stream.received, b"ping");
    assert_eq!(stream.send_some(&mut setup.driver, b"pong"), 4);
    let mut answer = [0; 4];
    process.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"pong");
    // A second one to the same port has a port of its own.
    let (second, _process) = setup.host_stream(52);
    assert_ne!(second.header.dst_port, stream.header.dst_port);
}

#[test]
fn what_follows_the_line_is_the_guests() {
    // The device sees the process and its line at once, or one after the other.
    for apart in [false, true] {
        let mut setup = Setup::new();
        let mut process = setup.connect();
        if apart {
            setup.driver.guest.run();
        }
        process.write_all(b"CONNECT 52\nearly").unwrap();
        let mut stream = Stream::accept(&mut setup.driver);
        stream.read(&mut setup.driver, 5);
        assert_eq!(stream.received, b"early");
        process.shutdown(Shutdown::Write).unwrap();
        let (header, _) = setup.driver.receive_op(op::SHUTDOWN);
        assert_eq!(header.flags, SHUTDOWN_SEND);
    }
}

#[test]
fn guest_reaches_the_host() {
    let mut setup = Setup::new();
    let service = setup.serve(80);
    let (mut stream, mut process) = setup.guest_stream(&service, 80);
    stream.send_some(&mut setup.driver, b"request");
    process.write_all(b"answer").unwrap();
    drop(process.shutdown(Shutdown::Write));
    stream.read(&mut setup.driver, 6);
    assert_eq!(stream.received, b"answer");
    let packet = setup.driver.receive();
    assert_eq!((stream.take(packet), stream.peer_shutdown), (op::SHUTDOWN, SHUTDOWN_SEND));
    stream.control(&mut setup.driver, op::SHUTDOWN, SHUTDOWN_BOTH);
    setup.driver.receive_op(op::RST);
    assert_eq!(read_to_end(&mut process), b"request");
    // The ports can be used again.
    setup.guest_stream(&service, 80);
}

#[test]
fn what_nobody_serves_is_refused() {
    let mut setup = Setup::new();
    // No socket; a stale one; a file that is none.
    drop(setup.serve(81));
    std::fs::write(setup.directory.path().join("v.sock_82"), "").unwrap();
    for port in [80, 81, 82] {
        setup.driver.send(&packet(op::REQUEST, 1000, port), &[]);
        let (header, _) = setup.driver.receive_op(op::RST);
        assert_eq!((header.src_port, header.dst_port), (port, 1000));
    }
}

#[test]
fn strangers_are_refused_or_ignored() {
    let mut setup = Setup::new();
    let _service = setup.serve(80);
    for op in [op::RESPONSE, op::RW, op::SHUTDOWN, op::CREDIT_UPDATE, op::CREDIT_REQUEST, 0, 99] {
        setup.driver.send(&packet(op, 1, 2), &[]);
        setup.driver.receive_op(op::RST);
    }
    let request = packet(op::REQUEST, 1000, 80);
    for (header, what) in [
        (Header { dst_cid: 99, ..request }, "another cid"),
        (Header { dst_cid: u64::MAX, ..request }, "any cid"),
        (Header { socket_type: 2, ..request }, "seqpacket"),
        (Header { socket_type: 0, ..request }, "no type"),
    ] {
        setup.driver.send(&header, &[]);
        let (answer, _) = setup.driver.receive_op(op::RST);
        assert_eq!((answer.src_cid, answer.socket_type), (header.dst_cid, header.socket_type), "{what}");
    }
    setup.driver.send(&Header { src_cid: 4, ..request }, &[]);
    setup.driver.send(&packet(op::RST, 1, 2), &[]);
    assert_eq!(setup.driver.poll(), None);
    assert!(!setup.driver.guest.is_broken());
}

#[test]
fn bad_handshakes_are_hung_up_on() {
    let mut setup = Setup::new();
    for line in ["HELLO\n", "CONNECT\n", "CONNECT 4294967296\n", "CONNECT 1 2\n", &"x".repeat(10_000), "\n"] {
        let mut process = setup.connect();
        // The device may hang up before it has everything.
        let _ = process.write_all(line.as_bytes());
        setup.driver.guest.run();
        let ended = process.read(&mut [0]);
        assert!(
            matches!(&ended, Ok(0))
                || ended.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset),
            "{line:.20}: {ended:?}"
        );
    }
    // Half a line is waited for.
    let mut process = setup.connect();
    process.write_all(b"CONN").unwrap();
    setup.driver.guest.run();
    process.write_all(b"ECT 52\n").unwrap();
    setup.driver.receive_op(op::REQUEST);
}

#[test]
fn silent_processes_make_way() {
    let mut setup = Setup::new();
    let mut silent: Vec<UnixStream> = Vec::new();
    for _ in 0..200 {
        silent.push(setup.connect());
        setup.driver.guest.run();
    }
    assert_eq!(silent[0].read(&mut [0]).unwrap(), 0, "the oldest is hung up on");
    silent[199].set_nonblocking(true).unwrap();
    assert_eq!(silent[199].read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    setup.host_stream(52);
}

#[test]
fn without_a_driver_there_is_nobody_to_reach() {
    let directory = TempDir::new().unwrap();
    let uds = directory.path().join("v.sock");
    let mut driver = VsockDriver::new(&uds);
    let mut early = patient(UnixStream::connect(&uds).unwrap());
    let mut waiting = UnixStream::connect(&uds).unwrap();
    early.write_all(b"CONNECT 52\n").unwrap();
    driver.guest.run();
    assert_eq!(read_to_end(&mut early), b"");
    driver.start();
    waiting.write_all(b"CONNECT 52\n").unwrap();
    Stream::accept(&mut driver);
}

#[test]
fn refused_by_the_guest_is_hung_up_on() {
    let mut setup = Setup::new();
    let mut process = setup.connect();
    process.write_all(b"CONNECT 53\n").unwrap();
    let (request, _) = setup.driver.receive_op(op::REQUEST);
    setup.driver.send(&packet(op::RST, 53, request.src_port), &[]);
    assert_eq!(read_to_end(&mut process), b"");
}

/// Both directions at once, much more than any buffer holds, through both kinds of connection.
#[test]
fn megabytes_arrive_whole() {
    const BYTES: usize = 6 << 20;
    for guest_asks in [true, false] {
        let mut setup = Setup::new();
        let service = setup.serve(80);
        let (mut stream, process) = if guest_asks { setup.guest_stream(&service, 80) } else { setup.host_stream(52) };
        let (up, down) = (pattern(1, BYTES), pattern(2, BYTES));
        let mut writer = process.try_clone().unwrap();
        let data = down.clone();
        let writing = thread::spawn(move || {
            writer.write_all(&data).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut reader = process;
        let reading = thread::spawn(move || read_to_end(&mut reader));

        let mut sent = 0;
        let mut ended = false;
        while !(ended && stream.peer_shutdown & SHUTDOWN_SEND != 0) {
            while let Some(packet) = setup.driver.poll() {
                assert_ne!(stream.take(packet), op::RST);
            }
            // The guest tells what it has taken, as a kernel does now and then.
            stream.control(&mut setup.driver, op::CREDIT_UPDATE, 0);
            let part = stream.send_some(&mut setup.driver, &up[sent..BYTES.min(sent + 50_000)]);
            sent += part;
            if sent == BYTES && !ended {
                stream.control(&mut setup.driver, op::SHUTDOWN, SHUTDOWN_SEND);
                ended = true;
            }
            if part == 0 && stream.peer_shutdown == 0 {
                let packet = setup.driver.receive();
                stream.take(packet);
            } else if part == 0 && !ended {
                assert!(setup.driver.guest.wait());
            }
        }
        writing.join().unwrap();
        // The device has what its reader has not taken yet, and nobody else lets it run.
        while !reading.is_finished() {
            while let Some(packet) = setup.driver.poll() {
                assert_ne!(stream.take(packet), op::RST);
            }
        }
        assert!(reading.join().unwrap() == up, "guest to host");
        assert!(stream.received == down, "host to guest");
        // Both have sent all: the guest is told to end it.
        while stream.peer_shutdown != SHUTDOWN_BOTH {
            let packet = setup.driver.receive();
            stream.take(packet);
        }
    }
}

#[test]
fn half_closed_connections_carry_on() {
    let mut setup = Setup::new();
    let (mut stream, mut process) = setup.host_stream(52);
    stream.send_some(&mut setup.driver, b"all I had");
    stream.control(&mut setup.driver, op::SHUTDOWN, SHUTDOWN_SEND);
    assert_eq!(read_to_end(&mut process), b"all I had");
    process.write_all(b"thanks").unwrap();
    stream.read(&mut setup.driver, 6);
    drop(process);
    let (header, _) = setup.driver.receive_op(op::SHUTDOWN);
    assert_eq!(header.flags, SHUTDOWN_BOTH);
    stream.control(&mut setup.driver, op::RST, 0);

    let (stream, mut process) = setup.host_stream(52);
    stream.control(&mut setup.driver, op::SHUTDOWN, SHUTDOWN_RECEIVE);
    assert_eq!(process.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

/// A process that does not read: what the credit allows is kept, and comes when it reads; a byte more is a breach.
#[test]
fn full_buffers_keep_what_was_granted() {
    let mut setup = Setup::new();
    let (mut stream, mut process) = setup.host_stream(52);
    let data = pattern(3, 8 << 20);
    let mut sent = 0;
    loop {
        while let Some(packet) = setup.driver.poll() {
            assert_eq!(stream.take(packet), op::CREDIT_UPDATE);
        }
        match stream.send_some(&mut setup.driver, &data[sent..sent + 9000]) {
            0 => break,
            bytes => sent += bytes,
        }
    }
    let mut received = vec![0; sent];
    let mut filled = 0;
    while filled < sent {
        filled += process.read(&mut received[filled..]).unwrap();
        setup.driver.guest.run();
    }
    assert!(received == data[..sent]);
    while let Some(packet) = setup.driver.poll() {
        stream.take(packet);
    }
    let credit = stream.credit();
    assert!(credit > 0);
    let too_much = vec![0; credit + 1];
    setup.driver.send(&Header { len: too_much.len() as u32, ..stream.header }, &too_much);
    setup.driver.receive_op(op::RST);
    assert_eq!(read_to_end(&mut process), b"");
}

/// A guest that ends a connection in good order and does not wait: its ports are free, and what it sent is delivered.
#[test]
fn ports_of_lingering_connections_are_free() {
    let mut setup = Setup::new();
    let service = setup.serve(80);
    let (mut stream, mut process) = setup.guest_stream(&service, 80);
    let data = pattern(5, 8 << 20);
    let mut sent = 0;
    loop {
        while let Some(packet) = setup.driver.poll() {
            stream.take(packet);
        }
        match stream.send_some(&mut setup.driver, &data[sent..sent + 9000]) {
            0 => break,
            bytes => sent += bytes,
        }
    }
    stream.control(&mut setup.driver, op::SHUTDOWN, SHUTDOWN_BOTH);
    assert_eq!(setup.driver.poll(), None);
    stream.control(&mut setup.driver, op::RST, 0);
    setup.guest_stream(&service, 80);
    let reading = thread::spawn(move || read_to_end(&mut process));
    while !reading.is_finished() {
        setup.driver.guest.run();
        thread::yield_now();
    }
    assert!(reading.join().unwrap() == data[..sent]);
}

/// A guest that gives no receive buffers: its host processes wait, and everything comes when it does.
#[test]
fn data_waits_for_receive_buffers() {
    let mut setup = Setup::new();
    let (mut stream, mut process) = setup.host_stream(52);
    setup.driver.refill = false;
    let data = pattern(4, 900_000);
    let copy = data.clone();
    let writing = thread::spawn(move || {
        process.write_all(&copy).unwrap();
        process
    });
    // Until the guest's credit is used up, or its buffers are.
    while stream.received.len() < GUEST_BUFFER_BYTES as usize {
        let packet = setup.driver.receive();
        stream.take(packet);
    }
    assert!(stream.received.len() <= GUEST_BUFFER_BYTES as usize);
    setup.driver.refill = true;
    setup.driver.give_rx();
    while stream.received.len() < data.len() {
        stream.control(&mut setup.driver, op::CREDIT_UPDATE, 0);
        let packet = setup.driver.receive();
        stream.take(packet);
    }
    assert!(stream.received == data);
    writing.join().unwrap();
}

/// Refusals need receive buffers. Without them the guest's packets wait, and nothing piles up here.
#[test]
fn refusals_are_bounded() {
    const PACKETS: usize = 2000;
    let directory = TempDir::new().unwrap();
    let mut driver = VsockDriver::new(&directory.path().join("v.sock"));
    driver.guest.activate();
    let (mut queued, mut taken) = (0, 0);
    loop {
        while driver.try_queue(&packet(op::RW, queued as u32, 1), &[]) {
            queued += 1;
        }
        driver.guest.kick(TX);
        driver.guest.run();
        match driver.reclaim_tx() {
            0 => break,
            count => taken += count,
        }
        assert!(queued < PACKETS, "{taken} taken without a receive buffer");
    }
    assert!(taken < queued);
    driver.give_rx();
    assert!(driver.reclaim_tx() > 0, "the guest's packets are taken up again");
    for port in 0..PACKETS {
        while queued < PACKETS && driver.try_queue(&packet(op::RW, queued as u32, 1), &[]) {
            queued += 1;
            driver.guest.kick(TX);
        }
        let (header, _) = driver.receive_op(op::RST);
        assert_eq!(header.dst_port, port as u32, "each once, in order");
    }
    assert_eq!(driver.poll(), None);
}

#[test]
fn connections_are_bounded() {
    raise_descriptor_limit(4 * CONNECTIONS_MAX as u64);
    let mut setup = Setup::new();
    let service = setup.serve(80);
    let mut processes = Vec::new();
    for port in 0..CONNECTIONS_MAX as u32 {
        Stream::connect(&mut setup.driver, port, 80);
        processes.push(service.accept().unwrap());
    }
    setup.driver.send(&packet(op::REQUEST, 5000, 80), &[]);
    setup.driver.receive_op(op::RST);
    let mut process = setup.connect();
    setup.driver.guest.run();
    assert_eq!(process.read(&mut [0]).unwrap(), 0);
    // One ends, one fits.
    setup.driver.send(&packet(op::RST, 7, 80), &[]);
    Stream::connect(&mut setup.driver, 5000, 80);
}

fn raise_descriptor_limit(descriptors: u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live structure, which the call fills in.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) }, 0);
    assert!(limit.rlim_max >= descriptors, "this test needs {descriptors} file descriptors: ulimit -Hn");
    limit.rlim_cur = limit.rlim_cur.max(descriptors);
    // SAFETY: the pointer is to a live structure.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
}

#[test]
fn reset_drops_the_guests_connections() {
    let mut setup = Setup::new();
    let service = setup.serve(80);
    let (_, mut one) = setup.guest_stream(&service, 80);
    let (_, mut two) = setup.host_stream(52);
    let mut undecided = setup.connect();
    setup.driver.guest.run();
    setup.driver.reset();
    assert_eq!(read_to_end(&mut one), b"");
    assert_eq!(read_to_end(&mut two), b"");
    setup.driver.start();
    undecided.write_all(b"CONNECT 52\n").unwrap();
    Stream::accept(&mut setup.driver);
    let (_stream, _process) = setup.guest_stream(&service, 80);
    assert_eq!(setup.driver.poll(), None);
}

#[test]
fn malformed_chains_break_the_device() {
    let mut setup = Setup::new();
    let lengths = Header { len: 100, ..packet(op::RW, 1, 2) };
    setup.driver.guest.write(0x1000, &lengths.to_bytes());
    for (queue, chain, what) in [
        (TX, vec![readable(0x1000, 43)], "short header"),
        (TX, vec![readable(0x1000, 44), readable(0x2000, 99)], "short data"),
        (TX, vec![writable(0x1000, 200)], "writable packet"),
        (TX, vec![readable(vsock_driver::RAM_BYTES - 10, 44)], "outside RAM"),
        (RX, vec![writable(0x1000, 44)], "receive buffer without room"),
        (RX, vec![readable(0x1000, 4096)], "receive buffer that cannot be written"),
    ] {
        setup.driver.reset();
        setup.driver.guest.activate();
        setup.driver.guest.give(queue, &chain);
        if queue == RX {
            // Looked at when there is something to put into it.
            assert!(setup.driver.try_queue(&packet(op::RW, 1, 2), &[]));
            setup.driver.guest.kick(TX);
            setup.driver.guest.run();
        }
        assert!(setup.driver.guest.is_broken(), "{what}");
    }
    setup.driver.reset();
    setup.driver.start();
    setup.host_stream(52);
}
