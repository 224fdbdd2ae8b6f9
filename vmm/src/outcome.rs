//! How a run ends.

use std::fmt;

/// Why the VM stopped, when it was not an error of the host's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The guest switched itself off (ACPI S5).
    PowerOff,
    /// The guest reset itself; a microVM does not start again.
    Reset,
    /// The user asked for the end.
    Stopped,
    /// The guest wrote this byte to the exit port.
    Exit(u8),
    /// The guest crashed; the text says how.
    Crash(String),
    /// `--timeout` ran out.
    TimedOut,
}

/// Exit status for errors of the host or of Cistern itself.
pub const STATUS_ERROR: u8 = 1;
/// Exit status for a command line or configuration that makes no sense.
pub const STATUS_USAGE: u8 = 2;

impl Outcome {
    /// The process exit status that tells this outcome.
    pub fn status(&self) -> u8 {
        match self {
            Self::PowerOff | Self::Reset | Self::Stopped => 0,
            Self::Crash(_) => 3,
            Self::TimedOut => 4,
            Self::Exit(byte) => 64 + (byte & 31),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => write!(f, "guest powered off"),
            Self::Reset => write!(f, "guest reset"),
            Self::Stopped => write!(f, "stopped"),
            Self::Exit(byte) => write!(f, "guest exited with {}", byte & 31),
            Self::Crash(how) => write!(f, "guest crashed: {how}"),
            Self::TimedOut => write!(f, "timed out"),
        }
    }
}
