//! Measurements over TCP, as netperf's TCP_STREAM, TCP_MAERTS and TCP_RR: the end that is not in the guest, where
//! `kernels/linux/tools/tcp.c` is. Every byte is compared.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use crate::latencies::Latencies;
use crate::mix::mix;

const WORDS_PER_PAGE: u64 = 512;

/// Bytes that are sent or compared at once.
const CHUNK_BYTES: usize = 64 << 10;

/// What a request has, and its answer: netperf's default is one byte, which says nothing about which answer it is.
const REQUEST_BYTES: usize = 8;

/// Bytes a second, and whether all of them were right.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Streamed {
    /// Bytes that went through.
    pub bytes: u64,
    /// Until the other end had them all.
    pub duration: Duration,
    /// Each was what it must be.
    pub is_right: bool,
}

impl Streamed {
    /// MiB a second.
    pub fn mib_per_second(&self) -> f64 {
        self.bytes as f64 / f64::from(1 << 20) / self.duration.as_secs_f64()
    }
}

/// Sends so many bytes into the guest. They are whole chunks.
///
/// # Errors
/// The connection is broken.
pub fn send(mut stream: TcpStream, bytes: u64) -> io::Result<Streamed> {
    let started = Instant::now();
    stream.write_all(b"s")?;
    let mut sent = 0;
    while sent < bytes {
        stream.write_all(&chunk(sent))?;
        sent += CHUNK_BYTES as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(Streamed { bytes: sent, duration: started.elapsed(), is_right: answer == format!("OK {sent}\n") })
}

/// Has the guest send so many bytes. They are whole chunks.
///
/// # Errors
/// The connection is broken.
pub fn receive(mut stream: TcpStream, bytes: u64) -> io::Result<Streamed> {
    let bytes = bytes.next_multiple_of(CHUNK_BYTES as u64);
    let started = Instant::now();
    stream.write_all(&[&b"m"[..], &bytes.to_le_bytes()].concat())?;
    let (mut received, mut is_right, mut found) = (0, true, vec![0; CHUNK_BYTES]);
    while received < bytes {
        stream.read_exact(&mut found)?;
        is_right &= found == chunk(received);
        received += CHUNK_BYTES as u64;
    }
    Ok(Streamed { bytes, duration: started.elapsed(), is_right })
}

/// Sends requests one after the other for so long, so many at least, and waits for the answer of each.
///
/// # Errors
/// The connection is broken, or an answer is not that of the request.
pub fn request(mut stream: TcpStream, duration: Duration, least: usize) -> io::Result<Latencies> {
    stream.set_nodelay(true)?;
    stream.write_all(b"r")?;
    let (mut latencies, started) = (Latencies::default(), Instant::now());
    while started.elapsed() < duration || latencies.count() < least {
        let (before, request) = (started.elapsed(), word(latencies.count() as u64).to_le_bytes());
        stream.write_all(&request)?;
        let mut answer = [0; REQUEST_BYTES];
        stream.read_exact(&mut answer)?;
        if answer != request {
            let number = latencies.count();
            return Err(io::Error::new(
                ErrorKind::InvalidData,
                format!("request {number}: {answer:?} for {request:?}"),
            ));
        }
        latencies.add(started.elapsed(), started.elapsed() - before);
    }
    Ok(latencies)
}

/// The stream's bytes from there on.
fn chunk(first: u64) -> Vec<u8> {
    (0..CHUNK_BYTES as u64 / 8).flat_map(|number| word(first / 8 + number).to_le_bytes()).collect()
}

/// The stream's word of this number: `pattern_word` of `kernels/linux/tools/pattern.c`.
fn word(number: u64) -> u64 {
    mix(mix(number / WORDS_PER_PAGE) ^ (number % WORDS_PER_PAGE))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// A connection to somebody who is told everything, and says what is given.
    fn connected(answer: Vec<u8>) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
        let address = listener.local_addr().expect("an address");
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            stream.write_all(&answer).expect("a client that listens");
            let _ = io::copy(&mut stream, &mut io::sink());
        });
        TcpStream::connect(address).expect("a server")
    }

    #[test]
    fn words_are_those_of_the_guest() {
        // What pattern_word(0, 0, 0), (0, 0, 1) and (3, 0, 7) say.
        assert_eq!(
            [0, 1, 3 * 512 + 7].map(word),
            [0xa706_dd2f_4d19_7e6f, 0x08b4_fda8_c892_b50e, 0xe880_a903_bcff_6547]
        );
    }

    #[test]
    fn a_stream_with_a_wrong_byte_is_noticed() {
        let bytes = 2 * CHUNK_BYTES as u64;
        let right = [chunk(0), chunk(CHUNK_BYTES as u64)].concat();
        let mut wrong = right.clone();
        wrong[CHUNK_BYTES + 5] ^= 1;
        assert!(receive(connected(right), bytes).expect("all of it").is_right);
        assert!(!receive(connected(wrong), bytes).expect("all of it").is_right);
    }

    #[test]
    fn what_the_other_end_has_got_is_its_to_say() {
        let bytes = CHUNK_BYTES as u64;
        for (answer, is_right) in [("OK 65536\n", true), ("OK 65528\n", false), ("BAD 65536\n", false)] {
            assert_eq!(send(connected(answer.into()), bytes).expect("it is sent").is_right, is_right, "{answer}");
        }
    }

    #[test]
    fn an_answer_to_something_else_is_an_error() {
        let answers = [word(0), word(0)].map(u64::to_le_bytes).concat();
        let error = request(connected(answers), Duration::ZERO, 2).expect_err("the second is wrong");
        assert!(error.to_string().starts_with("request 1: "), "{error}");
    }
}
