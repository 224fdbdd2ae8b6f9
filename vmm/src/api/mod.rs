//! The control socket: HTTP/1.1 on a Unix socket, served by one thread of its own.
//!
//! [`socket`] is the file, [`folder`] where it lies, [`router`] says what each path answers, [`body`] has the shapes of
//! requests and answers, [`metrics`] the text for Prometheus, and [`client`] is the other end.
//!
//! Whoever may connect may stop the VM, so only its owner and root may. Nothing here is waited for by the guest: the
//! thread takes no lock for longer than a copy, and clients that are slow are cut off.

pub mod body;
pub mod client;
pub mod folder;
mod metrics;
mod router;
pub mod socket;

use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use cistern_devices::power::Power;
use cistern_memory::Balloon;
use cistern_memory::manager::ManagerHandle;
use cistern_memory::pager::Pager;
use cistern_memory::sharing::SharingHandle;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};

pub use self::socket::{ControlSocket, SocketError};

use crate::thread_id;
use crate::verdict::{RunError, Verdict};

/// Stack of the thread: what it keeps across requests is on the heap.
const STACK_BYTES: usize = 256 << 10;
/// Clients served at a time; the others wait in the socket's queue.
const CONNECTIONS_MAX: usize = 16;
/// A client that completes no request for this long is cut off.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long answers on their way may take when the VM ends.
const FAREWELL: Duration = Duration::from_millis(100);
/// The longest request head, and what is buffered for a client: the least that hyper takes.
const HEAD_BYTES_MAX: usize = 8 << 10;
/// Header lines of a request.
const HEADERS_MAX: usize = 32;
/// Events taken from the kernel at a time; tokio's own default costs memory for a thousand.
const EVENTS_PER_TICK: usize = 32;
/// A host that is out of descriptors is asked again after this.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What can be seen and done from outside.
pub struct Controlled {
    /// Name of the VM.
    pub name: String,
    /// Number of virtual CPUs.
    pub cpus: usize,
    /// Guest memory.
    pub memory_bytes: u64,
    /// The balloon, if there is one.
    pub balloon: Option<Arc<dyn Balloon>>,
    /// The guest is offered free page reporting.
    pub free_page_reporting: bool,
    /// The power button.
    pub power: Arc<Power>,
    /// Where the end can be brought about.
    pub verdict: Arc<Verdict>,
    /// The limit, and what was counted.
    pub pager: Arc<Pager>,
    /// The VM's part in its pool, if it is in one.
    pub pool: Option<Arc<ManagerHandle>>,
    /// What finds pages that need not be there, if anything does.
    pub sharing: Option<Arc<SharingHandle>>,
}

/// The thread that serves the control socket; dropping it ends the thread and removes the socket.
pub struct ApiServer {
    thread: Option<JoinHandle<()>>,
    stop: watch::Sender<bool>,
    _socket: ControlSocket,
}

impl ApiServer {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`RunError::Thread`].
    pub fn start(socket: ControlSocket, machine: Controlled) -> Result<Self, RunError> {
        let failed = |cause| RunError::Thread { what: "control socket", cause };
        let listener = socket.listener().map_err(failed)?;
        let folder = socket.folder().map(Path::to_owned);
        let (stop, stopping) = watch::channel(false);
        let thread = thread::Builder::new()
            .name("api".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                machine.pager.exempt_thread(thread_id::current());
                if let Some(folder) = folder {
                    socket::sweep(&folder);
                }
                let verdict = Arc::clone(&machine.verdict);
                if let Err(cause) = serve(listener, machine, stopping) {
                    verdict.reach(Err(RunError::Thread { what: "control socket", cause }));
                }
            })
            .map_err(failed)?;
        Ok(Self { thread: Some(thread), stop, _socket: socket })
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        // Fails only when the thread is gone.
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed by the panic hook; there is nothing to add.
            let _ = thread.join();
        }
    }
}

/// Serves clients until it is told to stop.
fn serve(
    listener: std::os::unix::net::UnixListener,
    machine: Controlled,
    stopping: watch::Receiver<bool>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_io_events_per_tick(EVENTS_PER_TICK)
        .build()?;
    LocalSet::new().block_on(&runtime, async {
        let listener = UnixListener::from_std(listener)?;
        let machine = Rc::new(machine);
        let mut connections = JoinSet::new();
        let mut stop = stopping.clone();
        loop {
            while connections.try_join_next().is_some() {}
            let client = tokio::select! {
                // The sender's end is the machine's.
                _ = stop.changed() => break,
                _ = connections.join_next(), if connections.len() >= CONNECTIONS_MAX => continue,
                client = listener.accept(), if connections.len() < CONNECTIONS_MAX => client,
            };
            match client {
                Ok((client, _)) if may_control(&client) => {
                    connections.spawn_local(converse(client, Rc::clone(&machine), stopping.clone()));
                }
                // Closed without a word.
                Ok(_) => {}
                Err(_) => sleep(ACCEPT_PAUSE).await,
            }
        }
        drop(listener);
        // What is not done by then is dropped with the set.
        let _ = timeout(FAREWELL, async { while connections.join_next().await.is_some() {} }).await;
        Ok(())
    })
}

/// The file's mode says the same, but a file's mode can be changed.
fn may_control(client: &UnixStream) -> bool {
    client.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == folder::user_id())
}

/// Serves one client until it goes, is too slow, or the VM ends.
async fn converse(client: UnixStream, machine: Rc<Controlled>, mut stopping: watch::Receiver<bool>) {
    let progress = Rc::new(Cell::new(Instant::now()));
    let service = service_fn(|request| {
        let (machine, progress) = (Rc::clone(&machine), Rc::clone(&progress));
        async move {
            let response = router::respond(&machine, request).await;
            progress.set(Instant::now());
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .half_close(true)
        .header_read_timeout(None)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(client), service);
    let mut connection = pin!(connection);
    loop {
        tokio::select! {
            // It fails when the client breaks off or sends what is no HTTP: nothing is lost either way.
            _ = &mut connection => return,
            () = sleep_until(progress.get() + PATIENCE) => {
                if progress.get().elapsed() >= PATIENCE {
                    return;
                }
            }
            changed = stopping.changed() => {
                connection.as_mut().graceful_shutdown();
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}
