//! The console's input: from the host's stdin to the guest's serial port.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use cistern_devices::serial::Serial;

use super::{EscapeParser, HELP, Key, RawTerminal, TerminalError, is_foreground_terminal};

/// Most that is read at a time.
const READ_BYTES: usize = 1024;

/// Most that is kept of what is typed while the guest does not read. What is typed beyond that is lost, so that the keys
/// that end the machine are always heard.
const TYPED_AHEAD_MAX_BYTES: usize = 64 << 10;

/// What to wait for before the next [`ConsoleInput::pump`]. The serial port's `input_space` event is always worth one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    /// Input: call again when the descriptor is readable.
    Input,
    /// Room in the serial port: leave the descriptor alone until `input_space`.
    Room,
    /// Nothing: the input is at its end and delivered. The guest goes on without.
    Nothing,
    /// The user asked to end the machine.
    Quit,
}

/// Host input on its way to the guest. Never blocks, and never makes the descriptor non-blocking: a terminal's flags are
/// shared with every process that uses it.
#[derive(Debug)]
pub struct ConsoleInput {
    source: OwnedFd,
    terminal: Option<Typing>,
    waiting: VecDeque<u8>,
    is_watchable: bool,
    at_end: bool,
}

/// What a terminal has more than a pipe.
#[derive(Debug)]
struct Typing {
    parser: EscapeParser,
    _raw: RawTerminal,
}

impl ConsoleInput {
    /// Input from `source`. A terminal is put into raw mode and its escape keys are understood; anything else is passed
    /// on byte by byte. A terminal on which this process is a background job gives no input.
    ///
    /// # Errors
    /// When the terminal cannot be put into raw mode.
    pub fn new(source: OwnedFd) -> Result<Self, TerminalError> {
        let is_terminal = is_foreground_terminal(source.as_fd());
        let terminal = if is_terminal {
            Some(Typing { parser: EscapeParser::default(), _raw: RawTerminal::enter(source.as_fd())? })
        } else {
            None
        };
        let is_watchable = is_watchable(source.as_raw_fd());
        // SAFETY: a plain system call on a valid descriptor.
        let at_end = !is_terminal && unsafe { libc::isatty(source.as_raw_fd()) } == 1;
        Ok(Self { source, terminal, waiting: VecDeque::new(), is_watchable, at_end })
    }

    /// The descriptor to watch, level-triggered, while [`Watch::Input`] is wanted.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.source.as_fd()
    }

    /// False for what epoll refuses to watch (regular files, `/dev/null`): such input never wants [`Watch::Input`].
    pub fn is_watchable(&self) -> bool {
        self.is_watchable
    }

    /// Moves what is there from the host to the guest. Call once at the start, then as [`Watch`] says.
    pub fn pump(&mut self, serial: &Serial) -> Watch {
        loop {
            let is_room_left = self.deliver(serial);
            if self.at_end {
                return if self.waiting.is_empty() { Watch::Nothing } else { Watch::Room };
            }
            // A terminal is always read, a pipe or file only as fast as the guest reads.
            if !is_room_left && self.terminal.is_none() {
                return Watch::Room;
            }
            let mut buffer = [0; READ_BYTES];
            let bytes = match read_ready(self.source.as_raw_fd(), &mut buffer) {
                Ok(Some(bytes)) => bytes,
                Ok(None) if self.is_watchable => return Watch::Input,
                // An end, a terminal that hung up (EIO) or a broken descriptor: no more input in any case.
                Ok(None) | Err(_) => &[],
            };
            self.at_end = bytes.is_empty();
            if self.take(bytes) {
                return Watch::Quit;
            }
            if self.is_watchable && !self.at_end {
                self.deliver(serial);
                // Others want their turn: epoll reports at once when there is more.
                return if self.terminal.is_some() || self.waiting.is_empty() { Watch::Input } else { Watch::Room };
            }
        }
    }

    /// Gives the guest what waits; false when some of it has to wait on.
    fn deliver(&mut self, serial: &Serial) -> bool {
        while !self.waiting.is_empty() {
            let accepted = serial.enqueue(self.waiting.as_slices().0);
            if accepted == 0 {
                return false;
            }
            self.waiting.drain(..accepted);
        }
        true
    }

    /// Takes bytes read; true when they say to quit.
    fn take(&mut self, bytes: &[u8]) -> bool {
        let Some(typing) = &mut self.terminal else {
            self.waiting.extend(bytes);
            return false;
        };
        for byte in bytes {
            match typing.parser.feed(*byte) {
                Key::Quit => return true,
                // A terminal that is gone shows no help.
                Key::Help => drop(writeln!(io::stderr(), "\n{HELP}")),
                key if self.waiting.len() < TYPED_AHEAD_MAX_BYTES => self.waiting.extend(key.guest_bytes()),
                _ => {}
            }
        }
        false
    }
}

/// Reads what is there: `None` when that is nothing yet, an empty slice at the end.
fn read_ready(fd: RawFd, buffer: &mut [u8]) -> io::Result<Option<&[u8]>> {
    loop {
        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd, as said; no waiting.
        let ready = unsafe { libc::poll(&mut poll, 1, 0) };
        if ready == 0 {
            return Ok(None);
        }
        let count = if ready < 0 {
            ready as isize
        } else {
            // SAFETY: the kernel writes at most `buffer.len()` bytes to it.
            unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) }
        };
        if let Ok(count) = usize::try_from(count) {
            return Ok(Some(&buffer[..count]));
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            ErrorKind::Interrupted => {}
            // Someone made it non-blocking and another reader was faster.
            ErrorKind::WouldBlock => return Ok(None),
            _ => return Err(error),
        }
    }
}

/// Asks epoll itself: no list of file types would be right for ever.
fn is_watchable(fd: RawFd) -> bool {
    // SAFETY: a plain system call.
    let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    if epoll < 0 {
        return false;
    }
    // SAFETY: the kernel just gave it to us.
    let epoll = unsafe { OwnedFd::from_raw_fd(epoll) };
    let mut event = MaybeUninit::<libc::epoll_event>::zeroed();
    // SAFETY: all zeroes is a valid epoll_event, and the kernel only reads it.
    unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, event.as_mut_ptr()) == 0 }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use cistern_devices::port::PortDevice;
    use vmm_sys_util::eventfd::EventFd;

    use super::super::tests::{console, open_pty};
    use super::*;

    const FIFO_BYTES: usize = 64;

    struct Guest {
        serial: Serial,
        input_space: EventFd,
    }

    impl Guest {
        fn new() -> Self {
            let eventfd = || EventFd::new(libc::EFD_NONBLOCK).expect("an eventfd");
            let input_space = eventfd();
            let clone = input_space.try_clone().expect("a second descriptor");
            Self { serial: Serial::new(eventfd(), clone, Box::new(io::sink())), input_space }
        }

        /// Reads all that is in the serial port.
        fn read(&self) -> Vec<u8> {
            let byte_at = |offset| {
                let mut data = [0];
                self.serial.read(offset, &mut data);
                data[0]
            };
            let mut bytes = Vec::new();
            while byte_at(5) & 1 != 0 {
                bytes.push(byte_at(0));
            }
            bytes
        }
    }

    fn type_keys(person: &OwnedFd, keys: &[u8]) {
        File::from(person.try_clone().expect("a second descriptor")).write_all(keys).expect("a terminal that takes it");
    }

    #[test]
    fn a_pipe_is_read_as_fast_as_the_guest_reads() {
        let (reader, mut writer) = io::pipe().expect("a pipe");
        let guest = Guest::new();
        let mut input = ConsoleInput::new(reader.into()).expect("input");
        assert!(input.is_watchable());
        assert_eq!(input.pump(&guest.serial), Watch::Input, "nothing there, and no waiting for it");

        // Escapes mean nothing in a pipe.
        let sent: Vec<u8> = b"\x01x".iter().copied().cycle().take(3000).collect();
        writer.write_all(&sent).expect("room in the pipe");
        drop(writer);
        let mut received = Vec::new();
        loop {
            match input.pump(&guest.serial) {
                Watch::Nothing => break,
                Watch::Input => {}
                Watch::Room => {
                    assert!(input.waiting.len() <= READ_BYTES);
                    let bytes = guest.read();
                    assert_eq!(bytes.len().min(FIFO_BYTES), bytes.len());
                    assert_eq!(guest.input_space.read().expect("told that there is room"), 1);
                    received.extend(bytes);
                }
                Watch::Quit => panic!("a pipe cannot quit"),
            }
        }
        received.extend(guest.read());
        assert!(received == sent);
        assert_eq!(input.pump(&guest.serial), Watch::Nothing);
    }

    #[test]
    fn a_file_is_read_without_being_watched() {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&[b'x'; 100]).expect("room on disk");
        io::Seek::rewind(&mut file).expect("a file that rewinds");
        let guest = Guest::new();
        let mut input = ConsoleInput::new(file.into()).expect("input");
        assert!(!input.is_watchable());
        assert_eq!(input.pump(&guest.serial), Watch::Room);
        assert_eq!(guest.read().len(), FIFO_BYTES);
        assert_eq!(input.pump(&guest.serial), Watch::Nothing);
        assert_eq!(guest.read().len(), 100 - FIFO_BYTES);

        let null = File::open("/dev/null").expect("/dev/null");
        let mut input = ConsoleInput::new(null.into()).expect("input");
        assert_eq!(input.pump(&guest.serial), Watch::Nothing);
    }

    #[test]
    fn a_terminal_passes_keys_and_hears_its_own() {
        let _console = console();
        let (person, program) = open_pty();
        let guest = Guest::new();
        let mut input = ConsoleInput::new(program).expect("input");
        type_keys(&person, b"a\x03\r\x01\x01");
        assert_eq!(input.pump(&guest.serial), Watch::Input);
        assert_eq!(guest.read(), b"a\x03\r\x01");
        // An escape may arrive in two parts.
        type_keys(&person, b"b\x01");
        assert_eq!(input.pump(&guest.serial), Watch::Input);
        type_keys(&person, b"x");
        assert_eq!(input.pump(&guest.serial), Watch::Quit);
        assert_eq!(guest.read(), b"b");
    }

    #[test]
    fn a_guest_that_does_not_read_can_be_quit() {
        let _console = console();
        let (person, program) = open_pty();
        let guest = Guest::new();
        let mut input = ConsoleInput::new(program).expect("input");
        for _ in 0..1000 {
            type_keys(&person, &[b'y'; 128]);
            assert_eq!(input.pump(&guest.serial), Watch::Input);
        }
        assert_eq!(input.waiting.len(), TYPED_AHEAD_MAX_BYTES);
        type_keys(&person, b"\x01x");
        assert_eq!(input.pump(&guest.serial), Watch::Quit);
    }

    #[test]
    fn a_terminal_that_hangs_up_is_an_end() {
        let _console = console();
        let (person, program) = open_pty();
        let guest = Guest::new();
        let mut input = ConsoleInput::new(program).expect("input");
        drop(person);
        assert_eq!(input.pump(&guest.serial), Watch::Nothing);
    }
}
