//! The guest's side of a vsock device: receive buffers, packets, and one stream's credit, as a guest's kernel keeps it.
#![allow(dead_code)] // Each test binary uses its part.

use std::collections::{HashMap, VecDeque};
use std::path::Path;

use cistern_devices::virtio::vsock::Vsock;
use cistern_devices::virtio::vsock::packet::{HEADER_BYTES, HOST_CID, Header, TYPE_STREAM, op};
use cistern_memory::GuestRam;

use crate::ring::{Buffer, Guest, readable, writable};

pub const RX: usize = 0;
pub const TX: usize = 1;
pub const GUEST_CID: u64 = 3;

const RINGS: u64 = 1 << 20;
const RX_BUFFERS: u64 = 2 << 20;
const RX_BYTES: u32 = 4096;
const RX_COUNT: u64 = 128;
const TX_BUFFERS: u64 = 4 << 20;
const TX_BYTES: u64 = 0x11000;
const TX_COUNT: u64 = 64;
pub const RAM_BYTES: u64 = 16 << 20;

/// Receive buffer of the guest's sockets.
pub const GUEST_BUFFER_BYTES: u32 = 100_000;

pub struct VsockDriver {
    pub guest: Guest,
    /// Receive buffers go back to the device when they have been read.
    pub refill: bool,
    free_rx: Vec<u64>,
    given_rx: HashMap<u16, u64>,
    free_tx: Vec<u64>,
    given_tx: HashMap<u16, u64>,
    inbox: VecDeque<(Header, Vec<u8>)>,
    framing: usize,
}

impl VsockDriver {
    /// A guest that has not started yet.
    pub fn new(uds: &Path) -> Self {
        let ram = GuestRam::new(std::slice::from_ref(&(0..RAM_BYTES))).unwrap();
        let device = Vsock::new(GUEST_CID, uds).unwrap();
        let mut driver = Self {
            guest: Guest::new(device, ram, RINGS, 0),
            refill: true,
            free_rx: Vec::new(),
            given_rx: HashMap::new(),
            free_tx: Vec::new(),
            given_tx: HashMap::new(),
            inbox: VecDeque::new(),
            framing: 0,
        };
        driver.forget();
        driver
    }

    pub fn started(uds: &Path) -> Self {
        let mut driver = Self::new(uds);
        driver.start();
        driver
    }

    /// DRIVER_OK, with all receive buffers given.
    pub fn start(&mut self) {
        self.guest.activate();
        self.give_rx();
    }

    pub fn reset(&mut self) {
        self.guest.reset();
        self.forget();
    }

    fn forget(&mut self) {
        self.free_rx = (0..RX_COUNT).map(|index| RX_BUFFERS + index * u64::from(RX_BYTES)).collect();
        self.free_tx = (0..TX_COUNT).map(|index| TX_BUFFERS + index * TX_BYTES).collect();
        self.given_rx.clear();
        self.given_tx.clear();
        self.inbox.clear();
    }

    /// Gives all free receive buffers, in one piece or cut in two behind the header.
    pub fn give_rx(&mut self) {
        while self.refill
            && let Some(&address) = self.free_rx.last()
        {
            let header = HEADER_BYTES as u32;
            let split = [writable(address, header), writable(address + u64::from(header), RX_BYTES - header)];
            let whole = [writable(address, RX_BYTES)];
            self.framing += 1;
            let chain: &[Buffer] = if self.framing.is_multiple_of(2) { &split } else { &whole };
            let Some(head) = self.guest.rings[RX].try_add(chain) else { break };
            self.free_rx.pop();
            self.given_rx.insert(head, address);
        }
        self.guest.kick(RX);
        self.guest.run();
    }

    /// Puts a packet on the queue, whatever it says. False when the queue is full.
    pub fn try_queue(&mut self, header: &Header, data: &[u8]) -> bool {
        let Some(&address) = self.free_tx.last() else { return false };
        let bytes = [&header.to_bytes(), data].concat();
        self.guest.write(address, &bytes);
        self.framing += 1;
        // How a packet is cut into buffers is the driver's business.
        let cuts: &[usize] = match self.framing % 4 {
            0 => &[],
            1 => &[HEADER_BYTES],
            2 => &[10, HEADER_BYTES, HEADER_BYTES + 1, 700],
            _ => &[HEADER_BYTES + 100],
        };
        let mut chain = Vec::new();
        let mut start = 0;
        for end in cuts.iter().copied().filter(|cut| *cut < bytes.len()).chain([bytes.len()]) {
            chain.push(readable(address + start as u64, (end - start) as u32));
            start = end;
        }
        let Some(head) = self.guest.rings[TX].try_add(&chain) else { return false };
        self.free_tx.pop();
        self.given_tx.insert(head, address);
        true
    }

    /// Sends one packet.
    pub fn send(&mut self, header: &Header, data: &[u8]) {
        assert!(self.try_queue(header, data), "transmit queue full");
        self.guest.kick(TX);
        self.guest.run();
        self.collect();
    }

    /// Transmitted packets the device returned.
    pub fn reclaim_tx(&mut self) -> usize {
        let mut count = 0;
        while let Some((head, written)) = self.guest.rings[TX].pop_used() {
            assert_eq!(written, 0);
            self.free_tx.push(self.given_tx.remove(&head).unwrap());
            count += 1;
        }
        count
    }

    pub fn collect(&mut self) {
        self.reclaim_tx();
        let mut any = false;
        while let Some((head, written)) = self.guest.rings[RX].pop_used() {
            let address = self.given_rx.remove(&head).unwrap();
            let bytes = self.guest.read(address, written as usize);
            let (header, data) = bytes.split_at(HEADER_BYTES);
            let header = Header::from_bytes(header.try_into().unwrap());
            assert_eq!(header.len as usize, data.len());
            assert_eq!(header.dst_cid, GUEST_CID);
            self.inbox.push_back((header, data.to_vec()));
            self.free_rx.push(address);
            any = true;
        }
        if any && self.refill {
            self.give_rx();
        }
    }

    /// A packet that is there already.
    pub fn poll(&mut self) -> Option<(Header, Vec<u8>)> {
        self.guest.run();
        self.collect();
        self.inbox.pop_front()
    }

    /// The next packet; waits for the host's processes if need be.
    pub fn receive(&mut self) -> (Header, Vec<u8>) {
        loop {
            if let Some(packet) = self.poll() {
                return packet;
            }
            assert!(self.guest.wait(), "nothing comes");
        }
    }

    pub fn receive_op(&mut self, op: u16) -> (Header, Vec<u8>) {
        let (header, data) = self.receive();
        assert_eq!(header.op, op, "{header:?}");
        (header, data)
    }
}

/// One stream socket of the guest's.
pub struct Stream {
    pub header: Header,
    sent: u32,
    peer_buffer: u32,
    peer_taken: u32,
    pub received: Vec<u8>,
    pub peer_shutdown: u32,
}

impl Stream {
    fn new(guest_port: u32, host_port: u32, answer: &Header) -> Self {
        Self {
            header: packet(op::RW, guest_port, host_port),
            sent: 0,
            peer_buffer: answer.buf_alloc,
            peer_taken: answer.fwd_cnt,
            received: Vec::new(),
            peer_shutdown: 0,
        }
    }

    /// Connects to a port of the host.
    pub fn connect(driver: &mut VsockDriver, guest_port: u32, host_port: u32) -> Self {
        driver.send(&packet(op::REQUEST, guest_port, host_port), &[]);
        let (answer, _) = driver.receive_op(op::RESPONSE);
        assert_eq!((answer.src_port, answer.dst_port), (host_port, guest_port));
        Self::new(guest_port, host_port, &answer)
    }

    /// Grants the connection a process of the host asks for.
    pub fn accept(driver: &mut VsockDriver) -> Self {
        let (request, _) = driver.receive_op(op::REQUEST);
        let stream = Self::new(request.dst_port, request.src_port, &request);
        driver.send(&Header { op: op::RESPONSE, ..stream.header }, &[]);
        stream
    }

    /// Takes one packet that came for this stream.
    pub fn take(&mut self, (header, data): (Header, Vec<u8>)) -> u16 {
        assert_eq!((header.src_port, header.dst_port), (self.header.dst_port, self.header.src_port));
        self.peer_buffer = header.buf_alloc;
        self.peer_taken = header.fwd_cnt;
        self.received.extend(data);
        self.peer_shutdown |= if header.op == op::SHUTDOWN { header.flags } else { 0 };
        // This guest's process reads at once.
        self.header.fwd_cnt = self.received.len() as u32;
        header.op
    }

    pub fn credit(&self) -> usize {
        (self.peer_buffer - self.sent.wrapping_sub(self.peer_taken)) as usize
    }

    /// Sends what the credit allows and returns how much that was.
    pub fn send_some(&mut self, driver: &mut VsockDriver, data: &[u8]) -> usize {
        let bytes = data.len().min(self.credit());
        if bytes > 0 {
            driver.send(&Header { len: bytes as u32, ..self.header }, &data[..bytes]);
            self.sent = self.sent.wrapping_add(bytes as u32);
        }
        bytes
    }

    pub fn control(&self, driver: &mut VsockDriver, op: u16, flags: u32) {
        driver.send(&Header { op, flags, ..self.header }, &[]);
    }

    /// Reads until there are `bytes` bytes in all.
    pub fn read(&mut self, driver: &mut VsockDriver, bytes: usize) {
        while self.received.len() < bytes {
            let packet = driver.receive();
            self.take(packet);
        }
    }
}

pub fn packet(op: u16, guest_port: u32, host_port: u32) -> Header {
    Header {
        src_cid: GUEST_CID,
        dst_cid: HOST_CID,
        src_port: guest_port,
        dst_port: host_port,
        socket_type: TYPE_STREAM,
        op,
        buf_alloc: GUEST_BUFFER_BYTES,
        ..Header::default()
    }
}
