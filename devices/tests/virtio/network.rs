//! A network of a test's own: a namespace, a tap in it, and a raw socket on the host's side of the tap. Needs root.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;

/// Ethernet type for experiments; nothing else on the wire uses it.
pub const EXPERIMENT: [u8; 2] = [0x88, 0xb5];

/// Runs a test on a thread with a network namespace of its own.
pub fn isolated(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: the call takes no pointers and concerns this thread only.
            let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
            assert_eq!(result, 0, "a network namespace needs root: {}", io::Error::last_os_error());
            test();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

pub fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("the package iproute2 is needed");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Makes a tap, down.
pub fn make_tap(name: &str) {
    ip(&format!("tuntap add {name} mode tap"));
    ip(&format!("link set {name} addrgenmode none"));
}

/// The host's end of a tap: sends and receives whole frames, each behind a virtio-net header of 10 bytes.
pub struct HostEnd {
    socket: OwnedFd,
}

pub const HOST_HEADER_BYTES: usize = 10;

impl HostEnd {
    /// Puts the interface up and listens on it.
    pub fn up(interface: &str) -> Self {
        ip(&format!("link set {interface} up"));
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: the call takes no pointers.
        let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol.into()) };
        assert!(socket >= 0, "a packet socket needs root: {}", io::Error::last_os_error());
        // SAFETY: the descriptor is new and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        let name = std::ffi::CString::new(interface).unwrap();
        let on: libc::c_int = 1;
        // SAFETY: sockaddr_ll is plain data; all zeroes is a valid one.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        // SAFETY: the name ends in a zero byte.
        address.sll_ifindex = unsafe { libc::if_nametoindex(name.as_ptr()) } as i32;
        // SAFETY: both calls read live values of the sizes given.
        unsafe {
            let result = libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_VNET_HDR,
                (&raw const on).cast(),
                size_of_val(&on) as u32,
            );
            assert_eq!(result, 0, "{}", io::Error::last_os_error());
            let result =
                libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as libc::socklen_t);
            assert_eq!(result, 0, "{}", io::Error::last_os_error());
        }
        Self { socket }
    }

    /// Sends a frame to the guest.
    pub fn send(&self, header: [u8; HOST_HEADER_BYTES], frame: &[u8]) {
        let bytes = [&header, frame].concat();
        // SAFETY: the pointer and length are those of a live buffer.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        assert_eq!(sent, bytes.len() as isize, "{}", io::Error::last_os_error());
    }

    /// The next experimental frame from the guest with its header; waits for one.
    pub fn receive(&self) -> (Vec<u8>, Vec<u8>) {
        self.next(5000).expect("no frame arrived")
    }

    /// True when no experimental frame has arrived.
    pub fn is_silent(&self) -> bool {
        self.next(0).is_none()
    }

    fn next(&self, timeout_ms: i32) -> Option<(Vec<u8>, Vec<u8>)> {
        loop {
            let mut poll = libc::pollfd { fd: self.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: the pointer is that of one live pollfd.
            if unsafe { libc::poll(&raw mut poll, 1, timeout_ms) } == 0 {
                return None;
            }
            let mut bytes = vec![0; 70_000];
            // SAFETY: the pointer and length are those of a live buffer.
            let received = unsafe { libc::recv(self.socket.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), 0) };
            bytes.truncate(usize::try_from(received).expect("a frame is there"));
            let frame = bytes.split_off(HOST_HEADER_BYTES);
            if frame[12..14] == EXPERIMENT {
                return Some((bytes, frame));
            }
        }
    }
}

/// An experimental frame whose content tells which it is.
pub fn frame(number: u32, bytes: usize) -> Vec<u8> {
    let mut frame = [[0xff; 6], [2, 0, 0, 0, 0, 1]].concat();
    frame.extend(EXPERIMENT);
    frame.extend(number.to_le_bytes());
    frame.extend((frame.len()..bytes).map(|position| (position as u32).wrapping_mul(number + 7) as u8));
    frame
}

/// A TCP segment over IPv4 with so much payload, and the header that says it is to be cut into segments of 1448.
pub fn large_segment(payload_bytes: usize) -> ([u8; HOST_HEADER_BYTES], Vec<u8>) {
    let mut frame = [[0xff; 6], [2, 0, 0, 0, 0, 1]].concat();
    frame.extend([0x08, 0x00]);
    let mut ip = [0_u8; 20];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&(40 + payload_bytes as u16).to_be_bytes());
    ip[8] = 64;
    ip[9] = 6;
    ip[12..16].copy_from_slice(&[10, 0, 0, 1]);
    ip[16..20].copy_from_slice(&[10, 0, 0, 2]);
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = !(((sum & 0xffff) + (sum >> 16)) as u16);
    ip[10..12].copy_from_slice(&folded.to_be_bytes());
    frame.extend(ip);
    let mut tcp = [0_u8; 20];
    tcp[..4].copy_from_slice(&[0x30, 0x39, 0x30, 0x3a]);
    tcp[12] = 5 << 4;
    tcp[13] = 0x10;
    frame.extend(tcp);
    frame.extend((0..payload_bytes).map(|position| ((position * 31) >> 3) as u8));
    let mut header = [0; HOST_HEADER_BYTES];
    header[0] = 1; // the checksum is still to be made
    header[1] = 1; // TCP over IPv4
    header[2..4].copy_from_slice(&54_u16.to_le_bytes()); // all headers
    header[4..6].copy_from_slice(&1448_u16.to_le_bytes()); // segment size
    header[6..8].copy_from_slice(&34_u16.to_le_bytes()); // where the checksum starts
    header[8..10].copy_from_slice(&16_u16.to_le_bytes()); // where it goes, from there
    (header, frame)
}
