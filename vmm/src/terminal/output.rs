//! The console's output.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Writes straight to a descriptor: no buffer between the guest's console and whoever watches it. A descriptor that
/// somebody else made non-blocking (terminals and pipes are shared) is waited for like any other.
#[derive(Debug)]
pub struct ConsoleOutput {
    file: File,
    cut: Arc<AtomicBool>,
}

/// Lets go a thread that waits in [`ConsoleOutput`] for a reader that does not read.
#[derive(Debug, Clone)]
pub struct OutputCut(Arc<AtomicBool>);

impl OutputCut {
    /// From now on output that there is no room for is lost instead of waited for. A thread that waits already sees it with
    /// its next signal.
    pub fn cut(&self) {
        // Guards nothing but itself.
        self.0.store(true, Ordering::Relaxed);
    }
}

impl ConsoleOutput {
    /// Output to `fd`.
    pub fn new(fd: OwnedFd) -> Self {
        Self { file: fd.into(), cut: Arc::default() }
    }

    /// What ends the waiting when the machine is taken apart.
    pub fn output_cut(&self) -> OutputCut {
        OutputCut(Arc::clone(&self.cut))
    }
}

impl Write for ConsoleOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let mut part = bytes;
            if self.cut.load(Ordering::Relaxed) {
                if !has_room(&self.file, Some(Duration::ZERO))? {
                    return Err(io::Error::new(ErrorKind::TimedOut, "nobody reads it"));
                }
                part = &bytes[..bytes.len().min(libc::PIPE_BUF)];
            }
            match self.file.write(part) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    has_room(&self.file, None)?;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Waits until a write of at most `PIPE_BUF` bytes would not wait (pipe(7)), or for `limit`; whether it is so. An error or a
/// closed reader counts as room, and shows in the next write.
fn has_room(file: &File, limit: Option<Duration>) -> io::Result<bool> {
    let limit_ms = limit.map_or(-1, |limit| i32::try_from(limit.as_millis()).unwrap_or(i32::MAX));
    let mut poll = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one pollfd, as said.
    match unsafe { libc::poll(&mut poll, 1, limit_ms) } {
        -1 => Err(io::Error::last_os_error()).or_else(|error| match error.kind() {
            ErrorKind::Interrupted => Ok(false),
            _ => Err(error),
        }),
        ready => Ok(ready > 0),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::thread;

    use super::*;

    #[test]
    fn a_non_blocking_pipe_loses_nothing() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        // SAFETY: fcntl on an open descriptor, with flags it knows.
        let result = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
        assert_eq!(result, 0);
        let sent: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
        let mut output = ConsoleOutput::new(writer.into());
        let received = thread::scope(|scope| {
            let reader = scope.spawn(move || {
                let mut received = Vec::new();
                reader.read_to_end(&mut received).expect("a pipe that reads");
                received
            });
            output.write_all(&sent).expect("all of it");
            drop(output);
            reader.join().expect("the reader")
        });
        assert!(received == sent);
    }

    #[test]
    fn a_closed_pipe_is_an_error() {
        let (reader, writer) = io::pipe().expect("a pipe");
        drop(reader);
        let error = ConsoleOutput::new(writer.into()).write_all(b"x").expect_err("nobody reads");
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    }

    #[test]
    fn output_that_is_cut_does_not_wait() {
        let (_reader, writer) = io::pipe().expect("a pipe");
        let mut output = ConsoleOutput::new(writer.into());
        output.output_cut().cut();
        // More than a pipe holds: uncut it would wait for ever.
        let error = output.write_all(&[0; 1 << 20]).expect_err("cut");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }

    #[test]
    fn output_that_is_cut_takes_what_there_is_room_for() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let mut output = ConsoleOutput::new(writer.into());
        output.output_cut().cut();
        output.write_all(b"last words").expect("an empty pipe");
        drop(output);
        let mut received = String::new();
        reader.read_to_string(&mut received).expect("a pipe that reads");
        assert_eq!(received, "last words");
    }
}
