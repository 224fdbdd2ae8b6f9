//! What a guest can ask of its machine.

use std::sync::Arc;

/// Something the guest asked for, or said about itself, through a platform device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestRequest {
    /// Reset the machine.
    Reset,
    /// Switch the machine off.
    PowerOff,
    /// The guest's kernel panicked and does nothing more.
    Panic,
    /// The guest's kernel panicked and its crash kernel takes over: the guest goes on running, but however it ends now is
    /// not a success.
    CrashLoaded,
    /// End the machine with a status, 0 to 31.
    Exit(u8),
}

/// Where devices deliver what the guest asks for. Called on a vCPU thread, possibly many times: it must not block, and a
/// repeated request must cost nothing.
pub type RequestSink = Arc<dyn Fn(GuestRequest) + Send + Sync>;

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    /// A sink, and what arrived in it.
    pub(crate) fn sink() -> (RequestSink, Receiver<GuestRequest>) {
        let (sender, receiver) = channel();
        (Arc::new(move |request| sender.send(request).expect("the test holds the receiver")), receiver)
    }
}
