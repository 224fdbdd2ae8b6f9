//! All connections of one device, and the unix sockets behind them.
//!
//! The guest's requests to port P go to the socket `<uds>_P`. A process that wants to reach the guest connects to `<uds>`
//! and says `CONNECT P` on a line; it is answered `OK` and the port it got when the guest agrees, and hung up on when not.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::VsockError;
use super::connection::{Connection, Ports, SocketEvent};
use super::credit::BUFFER_BYTES;
use super::packet::{HOST_CID, Header, TYPE_STREAM, op};
use super::unix::{self, ListeningSocket};
use crate::virtio::scatter::Scatter;

/// Connections and handshakes at a time; each costs a file descriptor, and up to [`BUFFER_BYTES`] while its reader sleeps.
pub const CONNECTIONS_MAX: usize = 1024;
/// Processes that have connected and not said to which port. The oldest makes way for the next.
const HANDSHAKES_MAX: usize = 128;
/// Longest `CONNECT` line; the longest port has ten digits.
const LINE_BYTES_MAX: usize = 32;
/// Refusals that wait for receive buffers. When there are so many, the guest's packets wait too.
const REFUSALS_MAX: usize = 256;
/// First port given to a process of the host; its own services listen below.
const FIRST_HOST_PORT: u32 = 1 << 30;

/// Events taken from the kernel in one go, and how often in one event of the device.
const EVENTS: usize = 64;
const ROUNDS_PER_EVENT: usize = 16;
/// Processes accepted in one round: they may come as fast as they are accepted.
const ACCEPTS_PER_ROUND: usize = 64;

/// Marks the events of the listening socket; those of connections carry their token, which are never given twice.
const LISTENER: u64 = 0;

/// A process that connected and is still saying what it wants.
#[derive(Debug)]
struct Handshake {
    stream: UnixStream,
    line: Vec<u8>,
}

#[derive(Debug)]
struct Entry {
    connection: Connection,
    /// The connection is in the queue of those with something to send.
    queued: bool,
    /// The socket is watched for room to write too.
    watches_room: bool,
}

/// The table of connections.
#[derive(Debug)]
pub struct Muxer {
    guest_cid: u64,
    uds: PathBuf,
    listener: ListeningSocket,
    epoll: Epoll,
    entries: HashMap<u64, Entry>,
    /// The connections the guest knows; one that only lingers is not among them.
    tokens: HashMap<Ports, u64>,
    /// By token, so by age.
    handshakes: BTreeMap<u64, Handshake>,
    /// Connections that may have something to send, in turn, each once.
    senders: VecDeque<u64>,
    refusals: VecDeque<Header>,
    next_token: u64,
    next_port: u32,
    /// There may be connections to accept: the kernel says so only once.
    acceptable: bool,
    scratch: Vec<u8>,
}

impl Muxer {
    /// Listens on `uds`.
    ///
    /// # Errors
    /// When the path cannot be used.
    pub fn new(guest_cid: u64, uds: &Path) -> Result<Self, VsockError> {
        let failed = |cause| VsockError::Socket { path: uds.into(), cause };
        let listener = ListeningSocket::bind(uds)?;
        let epoll = Epoll::new().map_err(failed)?;
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, LISTENER);
        epoll.ctl(ControlOperation::Add, listener.listener().as_raw_fd(), event).map_err(failed)?;
        Ok(Self {
            guest_cid,
            uds: uds.into(),
            listener,
            epoll,
            entries: HashMap::new(),
            tokens: HashMap::new(),
            handshakes: BTreeMap::new(),
            senders: VecDeque::new(),
            refusals: VecDeque::new(),
            next_token: LISTENER + 1,
            next_port: FIRST_HOST_PORT,
            acceptable: true,
            scratch: vec![0; BUFFER_BYTES as usize],
        })
    }

    /// The epoll instance over all sockets.
    pub fn fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// Drops every connection of the guest's. Processes that have not said what they want may still do so.
    pub fn reset(&mut self) {
        self.entries = HashMap::new();
        self.tokens = HashMap::new();
        self.senders = VecDeque::new();
        self.refusals = VecDeque::new();
    }

    /// False while the guest should take packets before it gives more.
    pub fn can_receive(&self) -> bool {
        self.refusals.len() < REFUSALS_MAX
    }

    /// Takes a packet from the guest; at least as many bytes as its header says follow in `data`.
    pub fn receive(&mut self, header: &Header, data: &mut Scatter<'_>) {
        if header.src_cid != self.guest_cid {
            // Nobody there to answer.
            return;
        }
        if header.dst_cid != HOST_CID || header.socket_type != TYPE_STREAM {
            return self.refuse(header);
        }
        let ports = Ports { guest: header.src_port, host: header.dst_port };
        match self.tokens.get(&ports) {
            Some(&token) => {
                let Some(entry) = self.entries.get_mut(&token) else { return };
                let bytes = self.scratch.len().min(header.len as usize);
                let payload = &mut self.scratch[..bytes];
                let bytes = if header.op == op::RW { data.read(payload) } else { 0 };
                entry.connection.receive(header, &payload[..bytes]);
                self.settle(token);
            }
            None if header.op == op::REQUEST => {
                if self.connect(header).is_err() {
                    self.refuse(header);
                }
            }
            None => self.refuse(header),
        }
    }

    /// True when processes may wait to be accepted, for want of descriptors or of time.
    pub fn wants_to_accept(&self) -> bool {
        self.acceptable
    }

    /// True when there may be a packet for the guest.
    pub fn wants_to_send(&self) -> bool {
        !self.refusals.is_empty() || !self.senders.is_empty()
    }

    /// The next packet for the guest, with at most `room` bytes of data.
    pub fn next_packet(&mut self, room: usize) -> Option<(Header, &[u8])> {
        if let Some(refusal) = self.refusals.pop_front() {
            return Some((refusal, &[]));
        }
        let room = room.min(self.scratch.len());
        while let Some(token) = self.senders.pop_front() {
            let Some(entry) = self.entries.get_mut(&token) else { continue };
            entry.queued = false;
            let packet = entry.connection.next_packet(&mut self.scratch[..room]);
            // Back to the end of the queue if there is more: everyone in turn.
            self.settle(token);
            if let Some(header) = packet {
                return Some((header, &self.scratch[..header.len as usize]));
            }
        }
        None
    }

    /// Looks at all sockets that had events. `has_driver` tells whether there is a guest to connect to. False when there
    /// are more events than one event of the device should take.
    ///
    /// # Errors
    /// When the kernel refuses to wait for events.
    pub fn poll(&mut self, has_driver: bool) -> io::Result<bool> {
        let mut events = [EpollEvent::default(); EVENTS];
        for _ in 0..ROUNDS_PER_EVENT {
            let count = match self.epoll.wait(0, &mut events) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            for event in &events[..count] {
                self.socket_event(event.data(), event.event_set(), has_driver);
            }
            let accepted_all = !self.acceptable || self.accept(has_driver);
            // Fewer than asked for: that was all.
            if count < EVENTS && accepted_all {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn socket_event(&mut self, token: u64, events: EventSet, has_driver: bool) {
        if token == LISTENER {
            self.acceptable = true;
        } else if let Some(entry) = self.entries.get_mut(&token) {
            let ends = EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR;
            entry.connection.socket_event(SocketEvent {
                readable: events.intersects(EventSet::IN | ends),
                writable: events.contains(EventSet::OUT),
                hung_up: events.contains(EventSet::HANG_UP),
            });
            self.settle(token);
        } else {
            self.continue_handshake(token, has_driver);
        }
    }

    /// False when there may be more than one round should take.
    fn accept(&mut self, has_driver: bool) -> bool {
        for _ in 0..ACCEPTS_PER_ROUND {
            match self.listener.accept() {
                Ok(stream) => self.begin_handshake(stream, has_driver),
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                    io::ErrorKind::WouldBlock => {
                        self.acceptable = false;
                        return true;
                    }
                    // Out of descriptors, most likely: tried again when a connection may have ended.
                    _ => return true,
                },
            }
        }
        false
    }

    fn begin_handshake(&mut self, stream: UnixStream, has_driver: bool) {
        if self.handshakes.len() == HANDSHAKES_MAX {
            self.handshakes.pop_first();
        }
        // Whoever is not watched or finds no place is hung up on by dropping the stream.
        if let Ok(token) = self.watch(&stream) {
            self.handshakes.insert(token, Handshake { stream, line: Vec::new() });
            self.continue_handshake(token, has_driver);
        }
    }

    /// Reads on until the line is complete. Byte by byte, since what follows the line belongs to the guest.
    fn continue_handshake(&mut self, token: u64, has_driver: bool) {
        let Some(handshake) = self.handshakes.get_mut(&token) else { return };
        let port = loop {
            let mut byte = [0];
            match handshake.stream.read(&mut byte) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(1) if byte == *b"\n" => break parse_line(&handshake.line),
                Ok(1) if handshake.line.len() < LINE_BYTES_MAX => handshake.line.extend(byte),
                _ => break None,
            }
        };
        let Some(Handshake { stream, .. }) = self.handshakes.remove(&token) else { return };
        if let Some(port) = port.filter(|_| has_driver) {
            let ports = Ports { guest: port, host: self.free_host_port(port) };
            self.insert(token, Connection::requested_by_host(self.guest_cid, ports, stream));
        }
    }

    /// A port that is in use with this port of the guest by no other connection.
    fn free_host_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_port;
            self.next_port = host.checked_add(1).unwrap_or(FIRST_HOST_PORT);
            // Ends: there are more ports than connections.
            if !self.tokens.contains_key(&Ports { guest, host }) {
                return host;
            }
        }
    }

    /// The guest asks for a connection to a port of the host.
    fn connect(&mut self, request: &Header) -> io::Result<()> {
        if self.entries.len() + self.handshakes.len() >= CONNECTIONS_MAX {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let stream = unix::connect(&port_path(&self.uds, request.dst_port))?;
        let token = self.watch(&stream)?;
        self.insert(token, Connection::requested_by_guest(request, stream));
        Ok(())
    }

    fn insert(&mut self, token: u64, connection: Connection) {
        self.tokens.insert(connection.ports(), token);
        self.entries.insert(token, Entry { connection, queued: false, watches_room: false });
        self.settle(token);
    }

    /// Gives a socket its token and watches it, unless there are too many.
    fn watch(&mut self, stream: &UnixStream) -> io::Result<u64> {
        if self.entries.len() + self.handshakes.len() >= CONNECTIONS_MAX {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let token = self.next_token;
        self.next_token += 1;
        self.epoll.ctl(ControlOperation::Add, stream.as_raw_fd(), EpollEvent::new(interest(false), token))?;
        Ok(token)
    }

    /// Brings everything else in line with what a connection is now.
    fn settle(&mut self, token: u64) {
        let Some(entry) = self.entries.get_mut(&token) else { return };
        let wants_room = entry.connection.wants_to_write();
        if wants_room != entry.watches_room {
            entry.watches_room = wants_room;
            let event = EpollEvent::new(interest(wants_room), token);
            // Cannot fail: the descriptor is ours, and watched.
            let _ = self.epoll.ctl(ControlOperation::Modify, entry.connection.fd(), event);
        }
        if entry.connection.wants_to_send() && !entry.queued {
            entry.queued = true;
            self.senders.push_back(token);
        }
        let ports = entry.connection.ports();
        if entry.connection.is_over_for_guest() && self.tokens.get(&ports) == Some(&token) {
            self.tokens.remove(&ports);
        }
        if entry.connection.is_closed() {
            if entry.queued {
                // A token left behind would stay for as long as the guest gives no receive buffers.
                self.senders.retain(|sender| *sender != token);
            }
            self.entries.remove(&token);
        }
    }

    fn refuse(&mut self, header: &Header) {
        // A refusal is not refused, or two sides could go on for ever.
        if header.op != op::RST {
            self.refusals.push_back(header.reset_reply());
        }
    }
}

fn interest(room: bool) -> EventSet {
    let events = EventSet::IN | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
    if room { events | EventSet::OUT } else { events }
}

/// `CONNECT <port>`.
fn parse_line(line: &[u8]) -> Option<u32> {
    let mut words = str::from_utf8(line).ok()?.split_ascii_whitespace();
    let (command, port, end) = (words.next()?, words.next()?, words.next());
    (command.eq_ignore_ascii_case("connect") && end.is_none()).then(|| port.parse().ok())?
}

/// Where the host's process that serves `port` listens.
fn port_path(uds: &Path, port: u32) -> PathBuf {
    let mut path = OsString::from(uds);
    path.push(format!("_{port}"));
    path.into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixListener;

    use super::*;

    /// Neither a process that gives up nor a guest that takes its request back leaves anything, also while nothing can be
    /// sent to the guest.
    #[test]
    fn abandoned_connections_leave_nothing() {
        let directory = tempfile::TempDir::new().unwrap();
        let uds = directory.path().join("v.sock");
        let _service = UnixListener::bind(port_path(&uds, 80)).unwrap();
        let mut muxer = Muxer::new(3, &uds).unwrap();
        for _ in 0..3 {
            let mut process = UnixStream::connect(&uds).unwrap();
            process.write_all(b"CONNECT 52\n").unwrap();
            assert!(muxer.poll(true).unwrap());
            assert_eq!((muxer.entries.len(), muxer.tokens.len(), muxer.senders.len()), (1, 1, 1));
            drop(process);
            assert!(muxer.poll(true).unwrap());
            let request = Header {
                src_cid: 3,
                dst_cid: HOST_CID,
                src_port: 1,
                dst_port: 80,
                socket_type: TYPE_STREAM,
                op: op::REQUEST,
                ..Header::default()
            };
            muxer.receive(&request, &mut Scatter::default());
            assert_eq!((muxer.entries.len(), muxer.tokens.len(), muxer.senders.len()), (1, 1, 1));
            muxer.receive(&Header { op: op::RST, ..request }, &mut Scatter::default());
            assert!(muxer.entries.is_empty() && muxer.tokens.is_empty() && muxer.senders.is_empty());
            assert!(muxer.handshakes.is_empty() && muxer.refusals.is_empty());
        }
    }

    #[test]
    fn one_round_does_not_accept_for_ever() {
        let folder = tempfile::tempdir().expect("folder");
        let uds = folder.path().join("vsock");
        let mut muxer = Muxer::new(3, &uds).expect("a listening socket");
        let _processes: Vec<_> =
            (0..ACCEPTS_PER_ROUND + 1).map(|_| UnixStream::connect(&uds).expect("room in the queue")).collect();
        assert!(!muxer.accept(true), "there may be more");
        assert_eq!(muxer.handshakes.len(), ACCEPTS_PER_ROUND);
        assert!(muxer.wants_to_accept());
        assert!(muxer.poll(true).expect("epoll"), "all of them, in one event");
        assert_eq!(muxer.handshakes.len(), ACCEPTS_PER_ROUND + 1);
        assert!(!muxer.wants_to_accept());
    }

    #[test]
    fn lines() {
        assert_eq!(parse_line(b"CONNECT 52"), Some(52));
        assert_eq!(parse_line(b"connect 4294967295\r"), Some(u32::MAX));
        for bad in [&b"CONNECT"[..], b"CONNECT 4294967296", b"CONNECT -1", b"CONNECT 1 2", b"HELLO 1", b"", b"\xff 1"] {
            assert_eq!(parse_line(bad), None, "{bad:?}");
        }
    }
}
