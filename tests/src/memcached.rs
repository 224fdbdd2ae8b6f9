//! A client of memcached (doc/protocol.txt of its sources, the text protocol) and a load for it, every answer of which is compared
//! with what was stored.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::latencies::Latencies;
use crate::mix::mix;

/// What is stored, and how it is asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Keys there are.
    pub keys: usize,
    /// Bytes of each value; the half of them is random.
    pub value_bytes: usize,
    /// Keys of a request that gets: clients ask for many at once (Nishtala et al., "Scaling Memcache at Facebook", NSDI 2013: 24 in
    /// the mean).
    pub keys_a_get: usize,
    /// Of requests, those that set one key, in percent.
    pub sets_percent: u64,
    /// How much more often the first keys are asked for: Zipf's exponent, 0.99 as YCSB has it (Cooper et al., SoCC 2010); 0 is all
    /// alike.
    pub zipf_exponent: f64,
}

/// What came of a load. Requests go one after the other.
#[derive(Debug, Clone, Default)]
pub struct Served {
    /// How long it was.
    pub duration: Duration,
    /// Values that were got.
    pub got: u64,
    /// Those that are not what was set, and keys that have no value.
    pub wrong: u64,
    /// Requests that got.
    pub gets: Latencies,
    /// Requests that set.
    pub sets: Latencies,
}

impl Served {
    /// Values got a second.
    pub fn gets_per_second(&self) -> f64 {
        self.got as f64 / self.duration.as_secs_f64()
    }

    /// Values set a second.
    pub fn sets_per_second(&self) -> f64 {
        self.sets.count() as f64 / self.duration.as_secs_f64()
    }
}

/// Fills a memcached and asks it, and knows what it must answer.
#[derive(Debug)]
pub struct Generator {
    load: Load,
    /// How often each key was set.
    versions: Vec<u32>,
    /// Keys, the most wanted first, and of all requests the part that is for it or one before it.
    wanted: Vec<(usize, f64)>,
    stream: BufReader<TcpStream>,
    random: u64,
}

impl Generator {
    /// Over a connection to a memcached that is empty.
    ///
    /// # Errors
    /// The connection takes no options.
    pub fn new(load: Load, stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let stream = BufReader::with_capacity(1 << 16, stream);
        Ok(Self { load, versions: vec![0; load.keys], wanted: popularity(&load), stream, random: 0 })
    }

    /// Sets every key once, some of them before an answer is waited for.
    ///
    /// # Errors
    /// The connection is broken, or memcached does not store.
    pub fn fill(&mut self) -> io::Result<()> {
        const AT_ONCE: usize = 64;
        for first in (0..self.load.keys).step_by(AT_ONCE) {
            let keys = first..(first + AT_ONCE).min(self.load.keys);
            let mut request = Vec::new();
            keys.clone().for_each(|key| self.append_set(key, &mut request));
            self.stream.get_mut().write_all(&request)?;
            keys.into_iter().try_for_each(|_| self.expect("STORED"))?;
        }
        Ok(())
    }

    /// Gets and sets for so long, and for so many requests at least.
    ///
    /// # Errors
    /// The connection is broken, or an answer is none.
    pub fn run(&mut self, duration: Duration, requests_least: usize) -> io::Result<Served> {
        let (mut served, started) = (Served::default(), Instant::now());
        while started.elapsed() < duration || served.gets.count() + served.sets.count() < requests_least {
            let before = started.elapsed();
            if self.next_random() % 100 < self.load.sets_percent {
                let key = self.wanted_key();
                self.set(key)?;
                served.sets.add(started.elapsed(), started.elapsed() - before);
            } else {
                let keys: Vec<_> = (0..self.load.keys_a_get).map(|_| self.wanted_key()).collect();
                let answers = self.get(&keys)?;
                served.gets.add(started.elapsed(), started.elapsed() - before);
                served.got += keys.len() as u64;
                served.wrong +=
                    keys.iter().zip(&answers).filter(|&(&key, answer)| !self.is_right(key, answer)).count() as u64;
            }
        }
        served.duration = started.elapsed();
        Ok(served)
    }

    /// Gets every key once, and returns how many have a wrong value or none.
    ///
    /// # Errors
    /// The connection is broken, or an answer is none.
    pub fn verify(&mut self) -> io::Result<usize> {
        let mut wrong = 0;
        for first in (0..self.load.keys).step_by(self.load.keys_a_get) {
            let keys: Vec<_> = (first..(first + self.load.keys_a_get).min(self.load.keys)).collect();
            let answers = self.get(&keys)?;
            wrong += keys.iter().zip(&answers).filter(|&(&key, answer)| !self.is_right(key, answer)).count();
        }
        Ok(wrong)
    }

    fn set(&mut self, key: usize) -> io::Result<()> {
        self.versions[key] += 1;
        let mut request = Vec::new();
        self.append_set(key, &mut request);
        self.stream.get_mut().write_all(&request)?;
        self.expect("STORED")
    }

    fn append_set(&self, key: usize, request: &mut Vec<u8>) {
        request.extend_from_slice(format!("set key:{key} 0 0 {}\r\n", self.load.value_bytes).as_bytes());
        request.extend_from_slice(&value(key, self.versions[key], self.load.value_bytes));
        request.extend_from_slice(b"\r\n");
    }

    /// The values of these keys, in their order; `None` for one that is not there.
    fn get(&mut self, keys: &[usize]) -> io::Result<Vec<Option<Vec<u8>>>> {
        let names: String = keys.iter().map(|key| format!(" key:{key}")).collect();
        self.stream.get_mut().write_all(format!("get{names}\r\n").as_bytes())?;
        let mut answers = vec![None; keys.len()];
        let mut next = 0;
        loop {
            let line = self.line()?;
            let mut words = line.split(' ');
            let (what, key, bytes) = (words.next(), words.next(), words.nth(1));
            if what == Some("END") {
                return Ok(answers);
            }
            let name = key.and_then(|key| key.strip_prefix("key:")).and_then(|key| key.parse::<usize>().ok());
            let bytes = bytes.and_then(|bytes| bytes.parse::<usize>().ok()).filter(|_| what == Some("VALUE"));
            let (Some(name), Some(bytes)) = (name, bytes) else { return Err(unexpected(&line)) };
            // Those that are missing are left out of the answer; the others keep their order.
            let Some(at) = (next..keys.len()).find(|&at| keys[at] == name) else { return Err(unexpected(&line)) };
            let mut value = vec![0; bytes + 2];
            self.stream.read_exact(&mut value)?;
            value.truncate(bytes);
            answers[at] = Some(value);
            next = at + 1;
        }
    }

    fn is_right(&self, key: usize, answer: &Option<Vec<u8>>) -> bool {
        answer.as_ref().is_some_and(|found| *found == value(key, self.versions[key], self.load.value_bytes))
    }

    fn expect(&mut self, answer: &str) -> io::Result<()> {
        let line = self.line()?;
        if line == answer { Ok(()) } else { Err(unexpected(&line)) }
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        match line.strip_suffix("\r\n") {
            Some(line) => Ok(line.to_owned()),
            None => Err(io::Error::new(ErrorKind::UnexpectedEof, "memcached has closed the connection")),
        }
    }

    fn wanted_key(&mut self) -> usize {
        let part = self.next_random() as f64 / u64::MAX as f64;
        let at = self.wanted.partition_point(|&(_, up_to)| up_to < part);
        self.wanted[at.min(self.wanted.len() - 1)].0
    }

    fn next_random(&mut self) -> u64 {
        self.random += 1;
        mix(self.random)
    }
}

fn unexpected(line: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("memcached answered {line:?}"))
}

/// Keys by how much they are wanted, those that are wanted alike not beside each other in memory.
fn popularity(load: &Load) -> Vec<(usize, f64)> {
    let mut keys: Vec<_> = (0..load.keys).collect();
    keys.sort_by_key(|&key| mix(key as u64));
    let weights: Vec<_> = (1..=load.keys).map(|rank| (rank as f64).powf(-load.zipf_exponent)).collect();
    let (all, mut sum) = (weights.iter().sum::<f64>(), 0.0);
    let up_to = weights.into_iter().map(|weight| {
        sum += weight;
        sum / all
    });
    keys.into_iter().zip(up_to).collect()
}

/// What a key is set to for the so manieth time: random bytes, then as many that repeat, as text does.
fn value(key: usize, version: u32, bytes: usize) -> Vec<u8> {
    let seed = mix(key as u64) ^ u64::from(version);
    let random = (0..).flat_map(|number| mix(seed.wrapping_add(number)).to_le_bytes());
    let text = format!("value {version} of key {key} ").into_bytes();
    random.take(bytes / 2).chain(text.iter().copied().cycle()).take(bytes).collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    const LOAD: Load = Load { keys: 100, value_bytes: 64, keys_a_get: 4, sets_percent: 0, zipf_exponent: 0.99 };

    #[test]
    fn a_value_is_of_its_key_and_version() {
        assert_eq!(value(7, 1, 64), value(7, 1, 64));
        assert_eq!(value(7, 1, 64).len(), 64);
        for other in [value(8, 1, 64), value(7, 2, 64)] {
            assert_ne!(value(7, 1, 64)[..32], other[..32]);
        }
        assert!(value(7, 1, 64)[32..].starts_with(b"value 1 of key 7 value 1"));
    }

    #[test]
    fn the_first_keys_are_wanted_most() {
        let parts = popularity(&LOAD);
        assert!((parts[0].1 - 0.19).abs() < 0.01, "{parts:?}");
        assert!((parts[99].1 - 1.0).abs() < 1e-9);
        let alike = popularity(&Load { zipf_exponent: 0.0, ..LOAD });
        assert!((alike[49].1 - 0.5).abs() < 1e-9, "{alike:?}");
        let mut keys: Vec<_> = parts.iter().map(|&(key, _)| key).collect();
        keys.sort_unstable();
        assert!(keys.into_iter().eq(0..100));
    }

    /// A server that answers with what it is told, whatever it is asked.
    fn generator(answers: &'static [u8]) -> Generator {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
        let address = listener.local_addr().expect("an address");
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            stream.write_all(answers).expect("a client that listens");
            let _ = io::copy(&mut stream, &mut io::sink());
        });
        Generator::new(LOAD, TcpStream::connect(address).expect("a server")).expect("a connection")
    }

    #[test]
    fn missing_and_wrong_values_are_told_apart_from_right_ones() {
        let mut generator = generator(
            b"VALUE key:5 0 3\r\nabc\r\nVALUE key:7 0 2\r\nde\r\nEND\r\nSTORED\r\nSERVER_ERROR out of memory\r\n",
        );
        let answers = generator.get(&[5, 6, 7]).expect("an answer");
        assert_eq!(answers, [Some(b"abc".to_vec()), None, Some(b"de".to_vec())]);
        assert!(!generator.is_right(5, &answers[0]) && !generator.is_right(6, &answers[1]));
        assert!(generator.is_right(5, &Some(value(5, 0, 64))));
        generator.set(5).expect("it is stored");
        assert!(generator.is_right(5, &Some(value(5, 1, 64))) && !generator.is_right(5, &Some(value(5, 0, 64))));
        let error = generator.set(5).expect_err("it is not stored");
        assert_eq!(error.to_string(), "memcached answered \"SERVER_ERROR out of memory\"");
    }
}
