//! The thread on which virtio devices work.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use cistern_devices::virtio::mmio::MmioTransport;
use cistern_memory::pager::Pager;
use event_manager::{EventManager, RemoteEndpoint, SubscriberOps};

use crate::outcome::Outcome;
use crate::thread_id;
use crate::verdict::{RunError, Verdict};

/// Stack of the device thread: no device recurses or keeps large buffers on it.
const STACK_BYTES: usize = 256 << 10;

/// All virtio devices, driven by one event loop.
pub struct DeviceLoop {
    thread: JoinHandle<()>,
    endpoint: RemoteEndpoint<Arc<MmioTransport>>,
    // Ordered by the kick that follows the store: a write and a read of the loop's eventfd.
    stop: Arc<AtomicBool>,
}

impl DeviceLoop {
    /// Starts the thread. Its page faults never wait for the guest's limit: else the balloon could not give memory back
    /// when that is needed most.
    ///
    /// # Errors
    /// [`RunError::Thread`].
    pub fn start(devices: Vec<Arc<MmioTransport>>, verdict: Arc<Verdict>, pager: Arc<Pager>) -> Result<Self, RunError> {
        let failed = |error: event_manager::Error| RunError::Thread {
            what: "device event loop",
            cause: io::Error::other(error.to_string()),
        };
        let mut manager = EventManager::<Arc<MmioTransport>>::new().map_err(failed)?;
        for device in devices {
            manager.add_subscriber(device);
        }
        let endpoint = manager.remote_endpoint();
        let stop = Arc::new(AtomicBool::new(false));
        let thread_stop = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("devices".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                pager.exempt_thread(thread_id::current());
                drop(pager);
                while !thread_stop.load(Ordering::SeqCst) {
                    if let Err(error) = manager.run() {
                        verdict.reach(Err::<Outcome, _>(failed(error)));
                        break;
                    }
                }
            })
            .map_err(|cause| RunError::Thread { what: "device thread", cause })?;
        Ok(Self { thread, endpoint, stop })
    }

    /// Stops the thread and waits for it.
    pub fn stop(self) {
        self.stop.store(true, Ordering::SeqCst);
        // Fails only when the loop is gone.
        let _ = self.endpoint.kick();
        // A panic of the thread has been printed by the panic hook; there is nothing to add.
        let _ = self.thread.join();
    }
}
