//! One stream connection between a port of the guest and a unix socket of the host.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use super::credit::Credit;
use super::packet::{HOST_CID, Header, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM, op};

/// What names a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ports {
    /// The guest's port.
    pub guest: u32,
    /// The host's port.
    pub host: u32,
}

/// What became of a socket since it was looked at last.
#[derive(Debug, Clone, Copy, Default)]
pub struct SocketEvent {
    /// There may be something to read, if only the end.
    pub readable: bool,
    /// There is room to write.
    pub writable: bool,
    /// Both directions are over: the process is gone, or each side has ended its own.
    pub hung_up: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The host asked for the connection; the guest has not answered.
    Requested {
        /// The guest has been asked.
        sent: bool,
    },
    /// Data flows.
    Established,
    /// Over; the guest has to be told.
    Resetting,
    /// Over for the guest; the host's process has still to read what the guest sent before it ended the connection in good
    /// order.
    Lingering,
    /// Over.
    Closed,
}

/// A connection: packets from the guest and events of the socket go in, packets for the guest come out. What it keeps of
/// the guest's data is bounded by the credit it gives.
#[derive(Debug)]
pub struct Connection {
    guest_cid: u64,
    ports: Ports,
    stream: UnixStream,
    state: State,
    credit: Credit,
    /// Data of the guest's that the socket did not take yet.
    backlog: VecDeque<u8>,
    /// The guest is to be told that its request was granted.
    response_due: bool,
    /// The guest asked for our side of the credit.
    credit_asked: bool,
    /// The guest was asked for its side, and has given none since.
    credit_requested: bool,
    /// What the guest said in `SHUTDOWN` packets.
    guest_shutdown: u32,
    /// What the guest was told in `SHUTDOWN` packets.
    told_shutdown: u32,
    /// The socket may have something to read.
    readable: bool,
    /// The host's process sends no more, and all it sent was read.
    host_sent_all: bool,
    /// The host's process receives no more.
    host_receives_no_more: bool,
    /// The host's process was told that nothing more comes.
    told_end: bool,
}

impl Connection {
    /// A connection the host's process asked for.
    pub fn requested_by_host(guest_cid: u64, ports: Ports, stream: UnixStream) -> Self {
        Self {
            guest_cid,
            ports,
            stream,
            state: State::Requested { sent: false },
            credit: Credit::default(),
            backlog: VecDeque::new(),
            response_due: false,
            credit_asked: false,
            credit_requested: false,
            guest_shutdown: 0,
            told_shutdown: 0,
            // The process may have sent something right behind its request, unseen until now.
            readable: true,
            host_sent_all: false,
            host_receives_no_more: false,
            told_end: false,
        }
    }

    /// A connection the guest asked for with this header; the socket is connected to the host's process.
    pub fn requested_by_guest(request: &Header, stream: UnixStream) -> Self {
        let ports = Ports { guest: request.src_port, host: request.dst_port };
        let mut connection = Self::requested_by_host(request.src_cid, ports, stream);
        connection.state = State::Established;
        connection.response_due = true;
        connection.credit.update(request);
        connection
    }

    /// The connection's name.
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// The socket.
    pub fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// True when nothing is left to do.
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// True when the guest may use the ports for another connection.
    pub fn is_over_for_guest(&self) -> bool {
        matches!(self.state, State::Lingering | State::Closed)
    }

    /// True when the connection waits for the socket to take data.
    pub fn wants_to_write(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// True when there may be a packet for the guest. Whether there is one shows only when the socket is read.
    pub fn wants_to_send(&self) -> bool {
        match self.state {
            State::Requested { sent } => !sent,
            State::Resetting => true,
            State::Lingering | State::Closed => false,
            State::Established => {
                self.response_due
                    || self.is_credit_update_due()
                    || self.shutdown_due() != self.told_shutdown
                    || (self.may_read() && (self.credit.sendable() > 0 || !self.credit_requested))
            }
        }
    }

    /// A packet from the guest. `payload` is its data, of which there may be less than the header says only when it says
    /// more than [`BUFFER_BYTES`](super::credit::BUFFER_BYTES).
    pub fn receive(&mut self, header: &Header, payload: &[u8]) {
        match (self.state, header.op) {
            (State::Closed | State::Lingering, _) => {}
            (_, op::RST) => self.receive_reset(),
            (State::Resetting, _) => {}
            (State::Requested { sent: true }, op::RESPONSE) => {
                self.update_credit(header);
                self.state = State::Established;
                // A fresh socket takes a line at once; one that does not has no reader any more.
                if writeln!(self.stream, "OK {}", self.ports.host).is_err() {
                    self.state = State::Resetting;
                }
            }
            (State::Established, op::RW) => {
                self.update_credit(header);
                self.receive_data(header.len, payload);
            }
            (State::Established, op::SHUTDOWN) => {
                self.update_credit(header);
                self.receive_shutdown(header.flags & SHUTDOWN_BOTH);
            }
            (State::Established, op::CREDIT_UPDATE) => self.update_credit(header),
            (State::Established, op::CREDIT_REQUEST) => {
                self.update_credit(header);
                self.credit_asked = true;
            }
            _ => self.reset(),
        }
    }

    /// Something happened to the socket.
    pub fn socket_event(&mut self, event: SocketEvent) {
        self.readable |= event.readable;
        if event.hung_up {
            match self.state {
                State::Requested { sent } => self.state = if sent { State::Resetting } else { State::Closed },
                _ => self.lose_reader(),
            }
        } else if event.writable {
            self.flush();
        }
    }

    /// The next packet for the guest, if there is one, its data at the front of `room` (which is not empty).
    pub fn next_packet(&mut self, room: &mut [u8]) -> Option<Header> {
        let (op, bytes, flags) = match self.state {
            State::Lingering | State::Closed => return None,
            State::Resetting => {
                self.state = State::Closed;
                (op::RST, 0, 0)
            }
            State::Requested { sent: true } => return None,
            State::Requested { sent: false } => {
                self.state = State::Requested { sent: true };
                (op::REQUEST, 0, 0)
            }
            State::Established => self.next_established(room)?,
        };
        let mut header = Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            len: bytes,
            socket_type: TYPE_STREAM,
            op,
            flags,
            ..Header::default()
        };
        self.credit.send(bytes);
        self.credit.stamp(&mut header);
        self.credit_asked = false;
        Some(header)
    }

    fn next_established(&mut self, room: &mut [u8]) -> Option<(u16, u32, u32)> {
        if std::mem::take(&mut self.response_due) {
            return Some((op::RESPONSE, 0, 0));
        }
        let sendable = self.credit.sendable();
        if self.may_read() && sendable > 0 {
            let limit = room.len().min(sendable as usize);
            let bytes = self.read(&mut room[..limit]);
            if bytes > 0 {
                return Some((op::RW, bytes, 0));
            }
        }
        let shutdown = self.shutdown_due();
        if shutdown != self.told_shutdown {
            self.told_shutdown = shutdown;
            return Some((op::SHUTDOWN, 0, shutdown));
        }
        if self.is_credit_update_due() {
            return Some((op::CREDIT_UPDATE, 0, 0));
        }
        if self.may_read() && sendable == 0 && !std::mem::replace(&mut self.credit_requested, true) {
            return Some((op::CREDIT_REQUEST, 0, 0));
        }
        None
    }

    fn is_credit_update_due(&self) -> bool {
        self.credit_asked || self.credit.is_update_due()
    }

    fn may_read(&self) -> bool {
        self.readable && !self.host_sent_all && self.guest_shutdown & SHUTDOWN_RECEIVE == 0
    }

    /// What the guest should know of the ends of both directions.
    fn shutdown_due(&self) -> u32 {
        let guest_is_deaf = self.guest_shutdown & SHUTDOWN_RECEIVE != 0;
        let sends_no_more = self.host_sent_all || (self.host_receives_no_more && guest_is_deaf);
        // What was told stays told.
        self.told_shutdown
            | if sends_no_more { SHUTDOWN_SEND } else { 0 }
            | if self.host_receives_no_more { SHUTDOWN_RECEIVE } else { 0 }
    }

    fn update_credit(&mut self, header: &Header) {
        self.credit.update(header);
        if self.credit.sendable() > 0 {
            self.credit_requested = false;
        }
    }

    fn receive_reset(&mut self) {
        let in_order = self.state == State::Established && self.guest_shutdown & SHUTDOWN_SEND != 0;
        self.state = if in_order && !self.backlog.is_empty() { State::Lingering } else { State::Closed };
    }

    fn receive_data(&mut self, bytes: u32, payload: &[u8]) {
        if self.guest_shutdown & SHUTDOWN_SEND != 0 || self.credit.receive(bytes).is_err() {
            return self.reset();
        }
        if self.host_receives_no_more {
            return self.credit.forward(bytes);
        }
        let written = if self.backlog.is_empty() { self.write(payload) } else { 0 };
        if !self.host_receives_no_more {
            self.backlog.extend(&payload[written..]);
        }
    }

    fn receive_shutdown(&mut self, flags: u32) {
        let added = flags & !self.guest_shutdown;
        self.guest_shutdown |= flags;
        if added & SHUTDOWN_RECEIVE != 0 {
            // Fails only on a socket that is over anyway.
            let _ = self.stream.shutdown(Shutdown::Read);
        }
        self.backlog_changed();
    }

    /// The guest broke the protocol, or the host's process is gone.
    fn reset(&mut self) {
        self.backlog = VecDeque::new();
        self.state = State::Resetting;
    }

    /// Reads from the socket; 0 when there is nothing (more).
    fn read(&mut self, buffer: &mut [u8]) -> u32 {
        loop {
            match self.stream.read(buffer) {
                Ok(0) => self.host_sent_all = true,
                Ok(bytes) => return bytes as u32,
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => continue,
                    io::ErrorKind::WouldBlock => self.readable = false,
                    _ => {
                        self.host_sent_all = true;
                        self.lose_reader();
                    }
                },
            }
            return 0;
        }
    }

    /// Writes to the socket as much as it takes and gives the guest credit for it. When the reader is gone, everything
    /// counts as taken.
    fn write(&mut self, mut data: &[u8]) -> usize {
        let all = data.len();
        while !data.is_empty() && !self.host_receives_no_more {
            match self.stream.write(data) {
                Ok(bytes) => {
                    self.credit.forward(bytes as u32);
                    data = &data[bytes..];
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock => break,
                    _ => {
                        self.credit.forward(data.len() as u32);
                        self.lose_reader();
                        return all;
                    }
                },
            }
        }
        all - data.len()
    }

    fn flush(&mut self) {
        // Taken out for the call; should the reader be gone, all of it counts as taken.
        let mut backlog = std::mem::take(&mut self.backlog);
        let written = self.write(backlog.make_contiguous());
        backlog.drain(..written);
        if !backlog.is_empty() {
            // An empty one gives its memory back.
            self.backlog = backlog;
        }
        self.backlog_changed();
    }

    /// The host's process receives no more: what waits for it is dropped, and counts as taken.
    fn lose_reader(&mut self) {
        self.host_receives_no_more = true;
        self.credit.forward(self.backlog.len() as u32);
        self.backlog = VecDeque::new();
        self.backlog_changed();
    }

    /// What the guest's `SHUTDOWN` or `RST` asks for once all it sent has been taken.
    fn backlog_changed(&mut self) {
        if !self.backlog.is_empty() {
            return;
        }
        match self.state {
            State::Lingering => self.state = State::Closed,
            // A clean end: the guest waits for this answer.
            State::Established if self.guest_shutdown == SHUTDOWN_BOTH => self.state = State::Resetting,
            // Once: the kernel reports every such call as an event of the socket, which would lead here again for ever.
            State::Established if self.guest_shutdown & SHUTDOWN_SEND != 0 && !self.told_end => {
                self.told_end = true;
                // Fails only on a socket that is over anyway.
                let _ = self.stream.shutdown(Shutdown::Write);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
