//! Lines about a running machine, on stderr.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::OnceLock;

/// The name the user gave this VM.
static NAME: OnceLock<String> = OnceLock::new();

/// Lets every line say which VM it is about. The first name stays.
pub fn set_name(name: &str) {
    let _ = NAME.set(name.to_owned());
}

/// What every line starts with: `cistern`, and the VM's name if it was given one.
pub fn prefix() -> String {
    NAME.get().map_or_else(|| "cistern".to_owned(), |name| format!("cistern {name}"))
}

/// What a pipe with room for anything takes at once (`PIPE_BUF`).
const LINE_BYTES_MAX: usize = 4096;

/// Prints one line. It is called by threads that hold a device while they do: it does not wait for whoever reads stderr (a
/// line there is no room for is lost), and stderr may be closed.
pub fn line(text: &str) {
    write_line(io::stderr().as_fd(), text);
}

fn write_line(to: BorrowedFd<'_>, text: &str) {
    let mut line = format!("{}: {text}", prefix()).into_bytes();
    line.truncate(LINE_BYTES_MAX - 1);
    line.push(b'\n');
    let mut poll = libc::pollfd { fd: to.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one pollfd, as said; no waiting.
    let ready = unsafe { libc::poll(&mut poll, 1, 0) };
    if ready == 1 && poll.revents & libc::POLLOUT != 0 {
        // What cannot be written is lost: there is nobody else to tell.
        // SAFETY: the pointer and length are those of a live buffer.
        let _ = unsafe { libc::write(to.as_raw_fd(), line.as_ptr().cast(), line.len()) };
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write, pipe};

    use super::*;

    #[test]
    fn a_line_arrives_whole() {
        let (mut reader, writer) = pipe().expect("a pipe");
        write_line(writer.as_fd(), "disk a: broken");
        write_line(writer.as_fd(), &"x".repeat(10_000));
        drop(writer);
        let mut read = String::new();
        reader.read_to_string(&mut read).expect("text");
        let lines: Vec<_> = read.lines().collect();
        assert_eq!(lines[0], "cistern: disk a: broken");
        assert_eq!((lines.len(), lines[1].len()), (2, LINE_BYTES_MAX - 1));
    }

    #[test]
    fn nobody_is_waited_for() {
        let (reader, mut writer) = pipe().expect("a pipe");
        let fd = writer.as_raw_fd();
        // SAFETY: fcntl on an open descriptor, with flags it knows.
        let set_flags = |flags: i32| assert_eq!(unsafe { libc::fcntl(fd, libc::F_SETFL, flags) }, 0);
        set_flags(libc::O_NONBLOCK);
        while writer.write(&[0; 4096]).is_ok() {}
        set_flags(0);
        // Would wait for ever.
        write_line(writer.as_fd(), "full");
        drop(reader);
        write_line(writer.as_fd(), "closed");
        assert!(writer.write(b"x").is_err());
    }
}
