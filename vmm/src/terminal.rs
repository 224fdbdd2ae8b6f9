//! The terminal the guest's console is attached to: raw mode, and the way back.

mod escape;
mod input;
mod output;

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

pub use escape::{EscapeParser, HELP, Key};
pub use input::{ConsoleInput, Watch};
pub use output::{ConsoleOutput, OutputCut};

/// Why the terminal could not be used.
#[derive(Debug, thiserror::Error)]
pub enum TerminalError {
    /// Reading or changing the terminal's settings failed.
    #[error("terminal: {action}: {cause}")]
    Settings {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        cause: io::Error,
    },
    /// This process has put a terminal into raw mode already.
    #[error("terminal: in raw mode already: only one console per process")]
    InUse,
}

/// The terminal as it was before raw mode. Null when there is nothing to restore. Reachable without a lock, because a
/// signal handler may be the one that restores it.
static SAVED: AtomicPtr<Saved> = AtomicPtr::new(ptr::null_mut());

struct Saved {
    terminal: OwnedFd,
    settings: libc::termios,
    /// Where a page of its own is shown, if one is.
    page: Option<OwnedFd>,
}

/// Shows an empty page instead of what the terminal shows, without a cursor (xterm's alternate screen).
const OPEN_PAGE: &[u8] = b"\x1b[?1049h\x1b[?25l";

/// Shows the cursor and what was there before, in the colours of before.
const CLOSE_PAGE: &[u8] = b"\x1b[0m\x1b[?25h\x1b[?1049l";

/// A terminal in raw mode; dropping it restores what was. At most one per process.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Puts a terminal into raw mode: every key arrives at once, unechoed, Ctrl-C and Ctrl-Z and Ctrl-S included. Output
    /// is still processed (newline to carriage return and newline), so that our own messages stay readable.
    ///
    /// # Errors
    /// When `fd` is not a terminal or will not be changed, or another one is in raw mode.
    pub fn enter(fd: BorrowedFd<'_>) -> Result<Self, TerminalError> {
        Self::enter_on(fd, None)
    }

    /// The same for the terminal `keys`, with an empty page on the terminal `screen`. The way back shows again what was
    /// there before.
    ///
    /// # Errors
    /// As for [`Self::enter`], or when `screen` cannot be written to.
    pub fn enter_page(keys: BorrowedFd<'_>, screen: BorrowedFd<'_>) -> Result<Self, TerminalError> {
        Self::enter_on(keys, Some(screen))
    }

    fn enter_on(fd: BorrowedFd<'_>, screen: Option<BorrowedFd<'_>>) -> Result<Self, TerminalError> {
        let failed = |action| move |cause| TerminalError::Settings { action, cause };
        // A descriptor of its own: it must be there whenever a signal handler needs it.
        let duplicate = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map_err(failed("duplicating its descriptor"));
        let terminal = duplicate(fd)?;
        let page = screen.map(duplicate).transpose()?;
        let settings = settings(fd).map_err(failed("reading its settings"))?;
        let mut raw = settings;
        // SAFETY: `raw` is an initialised termios, which this only changes.
        unsafe { libc::cfmakeraw(&mut raw) };
        raw.c_oflag = settings.c_oflag;
        raw.c_cc[libc::VMIN] = 1;
        raw.c_cc[libc::VTIME] = 0;

        // Saved first: a signal that arrives in between restores what is unchanged.
        let saved = Box::into_raw(Box::new(Saved { terminal, settings, page }));
        if SAVED.compare_exchange(ptr::null_mut(), saved, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // SAFETY: it was made above and given to nobody.
            drop(unsafe { Box::from_raw(saved) });
            return Err(TerminalError::InUse);
        }
        let this = Self(());
        apply(fd, &raw).map_err(failed("entering raw mode"))?;
        if let Some(screen) = screen {
            write_all(screen, OPEN_PAGE).map_err(failed("opening a page"))?;
        }
        Ok(this)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the terminal back as it was before raw mode, if it is in raw mode. For every way out that runs no destructors:
/// panic hooks, `exit`, `_exit`. Async-signal-safe, callable any number of times from any thread.
pub fn restore() {
    let saved = SAVED.swap(ptr::null_mut(), Ordering::AcqRel);
    // SAFETY: it is null or came from `Box::into_raw`; the swap makes this the only owner. It is never freed (free is not
    // async-signal-safe): one console per process, two hundred bytes.
    if let Some(saved) = unsafe { saved.as_ref() } {
        // Nothing can be done about a terminal that is gone.
        if let Some(page) = &saved.page {
            let _ = write_all(page.as_fd(), CLOSE_PAGE);
        }
        let _ = apply(saved.terminal.as_fd(), &saved.settings);
    }
}

fn settings(fd: BorrowedFd<'_>) -> io::Result<libc::termios> {
    let mut settings = MaybeUninit::uninit();
    // SAFETY: the kernel writes a termios to the address or fails.
    if unsafe { libc::tcgetattr(fd.as_raw_fd(), settings.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: tcgetattr succeeded and filled it in.
    Ok(unsafe { settings.assume_init() })
}

/// Takes effect at once: waiting for pending output could wait for ever on a stopped terminal.
fn apply(fd: BorrowedFd<'_>, settings: &libc::termios) -> io::Result<()> {
    // SAFETY: `settings` is a valid termios, only read.
    match unsafe { libc::tcsetattr(fd.as_raw_fd(), libc::TCSANOW, settings) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Past every buffer, and async-signal-safe.
fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        // SAFETY: the kernel reads at most `bytes.len()` bytes from it.
        let written = unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
        match usize::try_from(written) {
            Ok(written) => bytes = &bytes[written..],
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// True when `fd` is a terminal of which this process may use the input: a background job that reads or changes its
/// terminal is stopped by the kernel.
pub fn is_foreground_terminal(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: plain system calls on a valid descriptor.
    unsafe {
        if libc::isatty(fd.as_raw_fd()) != 1 {
            return false;
        }
        // It fails when the terminal does not control this process; then it does not stop it either.
        let foreground = libc::tcgetpgrp(fd.as_raw_fd());
        foreground < 0 || foreground == libc::getpgrp()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::fd::FromRawFd;
    use std::panic;
    use std::sync::{Mutex, MutexGuard, PoisonError};

    use super::*;

    /// There is one console per process, and tests share theirs: hold this around raw mode.
    pub(crate) fn console() -> MutexGuard<'static, ()> {
        static CONSOLE: Mutex<()> = Mutex::new(());
        CONSOLE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new terminal: the side of the person typing, the side of the program.
    pub(crate) fn open_pty() -> (OwnedFd, OwnedFd) {
        let (mut person, mut program) = (-1, -1);
        // SAFETY: openpty writes two descriptors; the optional arguments are absent.
        let result = unsafe { libc::openpty(&mut person, &mut program, ptr::null_mut(), ptr::null(), ptr::null()) };
        assert_eq!(result, 0, "openpty: {}", io::Error::last_os_error());
        // SAFETY: both are open and owned by nobody else.
        unsafe { (OwnedFd::from_raw_fd(person), OwnedFd::from_raw_fd(program)) }
    }

    fn local_flags(fd: &OwnedFd) -> (libc::tcflag_t, libc::tcflag_t, libc::tcflag_t) {
        let settings = settings(fd.as_fd()).expect("a terminal");
        (settings.c_iflag, settings.c_oflag, settings.c_lflag)
    }

    #[test]
    fn raw_mode_and_every_way_back() {
        let _console = console();
        let (_person, program) = open_pty();
        let before = local_flags(&program);
        assert_ne!(before.2 & libc::ICANON, 0);

        let raw = RawTerminal::enter(program.as_fd()).expect("raw mode");
        let (input, output, local) = local_flags(&program);
        assert_eq!(local & (libc::ICANON | libc::ECHO | libc::ISIG | libc::IEXTEN), 0);
        assert_eq!(input & (libc::ICRNL | libc::IXON), 0);
        assert_eq!(output, before.1);
        assert!(matches!(RawTerminal::enter(program.as_fd()), Err(TerminalError::InUse)));
        assert_eq!(local_flags(&program).2, local, "the refused one changed nothing");
        drop(raw);
        assert_eq!(local_flags(&program), before);

        let raw = RawTerminal::enter(program.as_fd()).expect("raw mode again");
        restore();
        assert_eq!(local_flags(&program), before);
        restore();
        drop(raw);
        assert_eq!(local_flags(&program), before);

        let unwound = panic::catch_unwind(|| {
            let _raw = RawTerminal::enter(program.as_fd()).expect("raw mode once more");
            panic::resume_unwind(Box::new("a panic"));
        });
        assert!(unwound.is_err());
        assert_eq!(local_flags(&program), before);

        let (reader, _writer) = io::pipe().expect("a pipe");
        assert!(matches!(RawTerminal::enter(reader.as_fd()), Err(TerminalError::Settings { .. })));
        let raw = RawTerminal::enter(program.as_fd()).expect("a failure leaves nothing behind");
        drop(raw);
        assert_eq!(local_flags(&program), before);
    }

    /// What the person sees that was written so far.
    fn shown(person: &OwnedFd) -> Vec<u8> {
        let mut seen = vec![0; 4096];
        // SAFETY: the kernel writes at most `seen.len()` bytes to it.
        let count = unsafe { libc::read(person.as_raw_fd(), seen.as_mut_ptr().cast(), seen.len()) };
        seen.truncate(usize::try_from(count).expect("a terminal that reads"));
        seen
    }

    #[test]
    fn a_page_is_opened_and_closed_once() {
        let _console = console();
        let (person, program) = open_pty();
        let before = local_flags(&program);
        let raw = RawTerminal::enter_page(program.as_fd(), program.as_fd()).expect("a page");
        assert_eq!(shown(&person), OPEN_PAGE);
        restore();
        assert_eq!(shown(&person), CLOSE_PAGE);
        assert_eq!(local_flags(&program), before);
        drop(raw);
        write_all(program.as_fd(), b"end").expect("a terminal that writes");
        assert_eq!(shown(&person), b"end");
    }

    #[test]
    fn only_a_terminal_is_one() {
        let (_person, program) = open_pty();
        assert!(is_foreground_terminal(program.as_fd()));
        let (reader, _writer) = io::pipe().expect("a pipe");
        assert!(!is_foreground_terminal(reader.as_fd()));
    }
}
