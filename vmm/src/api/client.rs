//! The other end of a control socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::HOST;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;

/// A VM that is not stopped answers in milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a VM gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens, or not to this user.
    #[error("control socket {}: {cause}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The conversation broke off.
    #[error("control socket {}: {cause}: is this a VM of this user's?", path.display())]
    Http {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        cause: hyper::Error,
    },
    /// The process is stopped, or the host is.
    #[error("control socket {}: no answer within {} s: is the VM stopped?", path.display(), PATIENCE.as_secs())]
    Slow {
        /// The socket.
        path: PathBuf,
    },
    /// An answer, but not the one asked for.
    #[error("control socket {}: {request}: {answer}", path.display())]
    Answer {
        /// The socket.
        path: PathBuf,
        /// The path asked for.
        request: &'static str,
        /// What came instead.
        answer: String,
    },
}

/// A connection to a VM.
pub struct Client {
    path: PathBuf,
    runtime: Runtime,
    sender: SendRequest<Full<Bytes>>,
    pid: Option<i32>,
}

impl Client {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let failed = |cause| ClientError::Connect { path: path.to_owned(), cause };
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build().map_err(failed)?;
        let (sender, pid) = runtime.block_on(async {
            let stream = UnixStream::connect(path).await.map_err(failed)?;
            let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
            let (sender, connection) = http1::handshake(TokioIo::new(stream))
                .await
                .map_err(|cause| ClientError::Http { path: path.to_owned(), cause })?;
            // What fails there fails the request that waits for it, too.
            tokio::spawn(connection);
            Ok((sender, pid))
        })?;
        Ok(Self { path: path.to_owned(), runtime, sender, pid })
    }

    /// The process that listens.
    pub fn pid(&self) -> Option<i32> {
        self.pid
    }

    /// What a path answers, parsed.
    ///
    /// # Errors
    /// As for [`Client::get_text`].
    pub fn get(&mut self, request: &'static str) -> Result<Value, ClientError> {
        let text = self.get_text(request)?;
        serde_json::from_str(&text).map_err(|error| self.unexpected(request, format!("not JSON: {error}")))
    }

    /// What a path answers, as it came.
    ///
    /// # Errors
    /// [`ClientError`], but not [`ClientError::Connect`].
    pub fn get_text(&mut self, request: &'static str) -> Result<String, ClientError> {
        self.exchange(Method::GET, request, Bytes::new())
    }

    /// Changes what is at a path.
    ///
    /// # Errors
    /// [`ClientError`], but not [`ClientError::Connect`].
    pub fn patch(&mut self, request: &'static str, change: &Value) -> Result<(), ClientError> {
        self.exchange(Method::PATCH, request, Bytes::from(change.to_string())).map(drop)
    }

    fn exchange(&mut self, method: Method, request: &'static str, body: Bytes) -> Result<String, ClientError> {
        let exchange = async {
            let message = Request::builder().method(method).uri(request).header(HOST, "localhost");
            let message = message.body(Full::new(body)).expect("a path");
            let response = self.sender.send_request(message).await?;
            let status = response.status();
            Ok((status, response.into_body().collect().await?.to_bytes()))
        };
        let (status, body) = self
            .runtime
            .block_on(async { timeout(PATIENCE, exchange).await })
            .map_err(|_| ClientError::Slow { path: self.path.clone() })?
            .map_err(|cause| ClientError::Http { path: self.path.clone(), cause })?;
        let text = String::from_utf8(body.to_vec()).map_err(|_| self.unexpected(request, "not text".to_owned()))?;
        match status {
            StatusCode::OK | StatusCode::NO_CONTENT => Ok(text),
            _ => Err(self.unexpected(request, format!("{status}: {text}"))),
        }
    }

    fn unexpected(&self, request: &'static str, answer: String) -> ClientError {
        ClientError::Answer { path: self.path.clone(), request, answer }
    }
}
