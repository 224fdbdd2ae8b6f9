//! A VM's control socket, spoken to by hand: what is tested is not tested with its own client.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

/// Longer than a VM has patience with a slow client.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status; 0 when the connection was closed without an answer.
    pub status: u16,
    /// Header lines.
    pub headers: String,
    /// The body.
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Fails unless this is a refusal with this status and a message with these words.
    #[track_caller]
    pub fn expect_refusal(&self, status: u16, words: &str) {
        assert_eq!(self.status, status, "{self:?}");
        let message = self.json()["fault_message"].as_str().map(str::to_owned).unwrap_or_default();
        assert!(message.contains(words), "no '{words}' in {self:?}");
    }
}

/// Sends a request with this body and reads the answer.
pub fn ask(socket: &Path, method: &str, path: &str, body: &str) -> Answer {
    send(socket, &request(method, path, body))
}

/// Asks a VM that may not listen yet, or not any more; `None` where there is no answer.
pub fn try_ask(socket: &Path, path: &str) -> Option<Answer> {
    let answer = converse(try_connect(socket).ok()?, &request("GET", path, ""));
    (answer.status != 0).then_some(answer)
}

fn request(method: &str, path: &str, body: &str) -> String {
    let length = body.len();
    format!("{method} {path} HTTP/1.1\r\nHost: vm\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}")
}

/// Sends these bytes and reads what comes until the other end closes.
pub fn send(socket: &Path, request: &str) -> Answer {
    converse(connect(socket), request)
}

fn converse(mut stream: UnixStream, request: &str) -> Answer {
    // Whoever refuses a request need not read all of it.
    let _ = stream.write_all(request.as_bytes());
    read(stream)
}

/// A connection on which nothing has been said.
pub fn connect(socket: &Path) -> UnixStream {
    try_connect(socket).unwrap_or_else(|error| panic!("{}: {error}", socket.display()))
}

fn try_connect(socket: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    Ok(stream)
}

/// Reads an answer until the other end closes.
pub fn read(mut stream: UnixStream) -> Answer {
    let mut bytes = Vec::new();
    // A connection that is closed before all was read is reset, after what it has said.
    if let Err(error) = stream.read_to_end(&mut bytes) {
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{}", String::from_utf8_lossy(&bytes));
    }
    let text = String::from_utf8(bytes).expect("answers are text");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let (first, headers) = head.split_once("\r\n").unwrap_or((head, ""));
    let status = first.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Answer { status, headers: headers.to_ascii_lowercase(), body: body.to_owned() }
}
