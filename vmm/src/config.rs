//! A machine, fully described: what [`crate::machine::Machine`] is built from.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use cistern_memory::pager::{EvictionMethod, PagerConfig};
use cistern_memory::sharing::SharingConfig;
use cistern_memory::store::codec::Codec;
use clap::ValueEnum;
use serde::Deserialize;

use crate::pool_options::PoolConfig;
use crate::size::{Size, SizeError};

/// Text that is no device description; the message says what would be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}': {reason}")]
pub struct DescriptionError {
    text: String,
    reason: &'static str,
}

fn refused(text: &str, reason: &'static str) -> DescriptionError {
    DescriptionError { text: text.to_owned(), reason }
}

/// A microVM, every default filled in.
#[derive(Debug, Clone)]
pub struct MachineConfig {
    /// Kernel image.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The user's part of the command line.
    pub cmdline: String,
    /// No defaults on the command line.
    pub bare_cmdline: bool,
    /// Guest memory.
    pub memory: Size,
    /// Number of virtual CPUs, at least 1.
    pub cpus: u8,
    /// Block devices, in the guest's order.
    pub disks: Vec<DiskConfig>,
    /// Network interfaces, in the guest's order.
    pub nets: Vec<NetConfig>,
    /// Virtual socket.
    pub vsock: Option<VsockConfig>,
    /// Random number device.
    pub rng: bool,
    /// Balloon device.
    pub balloon: BalloonMode,
    /// What resident and stored guest memory may cost the host.
    pub resident: Option<Size>,
    /// The pool this VM is in.
    pub pool: Option<PoolConfig>,
    /// What is shared.
    pub sharing: SharingConfig,
    /// All of guest memory is offered to KSM.
    pub mergeable: bool,
    /// How guest memory is paged.
    pub pager: PagerConfig,
    /// Where the serial console goes.
    pub console: ConsoleTarget,
    /// Name of the VM.
    pub name: String,
    /// Where the control socket is to be; `None`: in the user's runtime folder.
    pub api_socket: Option<PathBuf>,
    /// How long the guest may run.
    pub timeout: Option<Duration>,
    /// Print where the time before the guest's first instruction went.
    pub boot_times: bool,
}

/// A disk: `FILE[,ro][,direct]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskConfig {
    /// Raw image or block device.
    pub path: PathBuf,
    /// The guest may not write it.
    pub read_only: bool,
    /// Past the host's page cache.
    pub direct: bool,
}

impl FromStr for DiskConfig {
    type Err = DescriptionError;

    fn from_str(text: &str) -> Result<Self, DescriptionError> {
        let mut disk = Self { path: PathBuf::new(), read_only: false, direct: false };
        let mut path = text;
        // From the end, for a file's name may have commas; an option that comes again is part of it.
        while let Some((rest, option)) = path.rsplit_once(',') {
            match option {
                "ro" if !disk.read_only => disk.read_only = true,
                "direct" if !disk.direct => disk.direct = true,
                _ => break,
            }
            path = rest;
        }
        if path.is_empty() {
            return Err(refused(text, "a disk is FILE[,ro][,direct]"));
        }
        disk.path = path.into();
        Ok(disk)
    }
}

/// A network interface: `tap=NAME[,mac=MAC]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetConfig {
    /// The host's tap interface.
    pub tap: String,
    /// The guest's address; `None` derives one from the tap's name.
    pub mac: Option<[u8; 6]>,
}

impl FromStr for NetConfig {
    type Err = DescriptionError;

    fn from_str(text: &str) -> Result<Self, DescriptionError> {
        const FORM: &str = "a network interface is tap=NAME or tap=NAME,mac=02:00:00:00:00:01";
        let (mut tap, mut mac) = (None, None);
        for part in text.split(',') {
            match part.split_once('=') {
                Some(("tap", name)) if !name.is_empty() && tap.is_none() => tap = Some(name.to_owned()),
                Some(("mac", address)) if mac.is_none() => {
                    mac = Some(parse_mac(address).ok_or_else(|| refused(text, FORM))?);
                }
                _ => return Err(refused(text, FORM)),
            }
        }
        Ok(Self { tap: tap.ok_or_else(|| refused(text, FORM))?, mac })
    }
}

/// Six colon-separated bytes; a multicast address is none an interface can have.
fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    (parts.next().is_none() && mac[0] & 1 == 0).then_some(mac)
}

/// A virtual socket: `cid=N,uds=PATH`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct VsockConfig {
    /// The guest's address.
    pub cid: u64,
    /// The host's end.
    pub uds: PathBuf,
}

impl FromStr for VsockConfig {
    type Err = DescriptionError;

    fn from_str(text: &str) -> Result<Self, DescriptionError> {
        const FORM: &str = "a vsock is cid=N,uds=PATH with N of 3 or more";
        let (cid, uds) =
            text.strip_prefix("cid=").and_then(|rest| rest.split_once(",uds=")).ok_or_else(|| refused(text, FORM))?;
        let cid = cid.parse().map_err(|_| refused(text, FORM))?;
        if !(3..u64::from(u32::MAX)).contains(&cid) || uds.is_empty() {
            return Err(refused(text, FORM));
        }
        Ok(Self { cid, uds: uds.into() })
    }
}

impl TryFrom<String> for VsockConfig {
    type Error = DescriptionError;

    fn try_from(text: String) -> Result<Self, DescriptionError> {
        text.parse()
    }
}

/// Which balloon the guest gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum BalloonMode {
    /// Balloon with free page reporting.
    On,
    /// Balloon, but the guest does not report free pages by itself
    Noreporting,
    /// No balloon device
    Off,
}

/// The most memory the compressed store may hold: a size, or a share of guest memory like `50%`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "StoreLimitText")]
pub enum StoreLimit {
    /// So much.
    Size(Size),
    /// Percent of guest memory, at most 100.
    Percent(u8),
}

impl StoreLimit {
    /// The limit in bytes for a guest of this size.
    pub fn bytes(self, memory: Size) -> u64 {
        match self {
            Self::Size(size) => size.bytes,
            Self::Percent(percent) => (u128::from(memory.bytes) * u128::from(percent) / 100) as u64,
        }
    }
}

impl FromStr for StoreLimit {
    type Err = DescriptionError;

    fn from_str(text: &str) -> Result<Self, DescriptionError> {
        const FORM: &str = "a limit is a size like 512M, or 0% to 100% of guest memory";
        match text.strip_suffix('%') {
            Some(percent) => match percent.parse() {
                Ok(percent @ 0..=100) => Ok(Self::Percent(percent)),
                _ => Err(refused(text, FORM)),
            },
            None => text.parse().map(Self::Size).map_err(|_: SizeError| refused(text, FORM)),
        }
    }
}

impl fmt::Display for StoreLimit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size(size) => size.fmt(formatter),
            Self::Percent(percent) => write!(formatter, "{percent}%"),
        }
    }
}

/// What a file may have where such a limit is meant: text, or a plain number of bytes.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a size or percentage: bytes or text like \"512M\" or \"50%\"")]
enum StoreLimitText {
    Bytes(u64),
    Text(String),
}

impl TryFrom<StoreLimitText> for StoreLimit {
    type Error = DescriptionError;

    fn try_from(limit: StoreLimitText) -> Result<Self, DescriptionError> {
        match limit {
            StoreLimitText::Bytes(bytes) => Ok(Self::Size(Size { bytes })),
            StoreLimitText::Text(text) => text.parse(),
        }
    }
}

/// How stored pages are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum CodecChoice {
    /// Not at all
    None,
    /// Fast
    Lz4,
    /// Smaller
    Zstd,
}

impl From<CodecChoice> for Codec {
    fn from(choice: CodecChoice) -> Self {
        match choice {
            CodecChoice::None => Self::None,
            CodecChoice::Lz4 => Self::Lz4,
            CodecChoice::Zstd => Self::Zstd,
        }
    }
}

/// How pages leave guest RAM, where that is not for the kernel to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum EvictionChoice {
    /// By `UFFDIO_MOVE`
    Move,
    /// As on kernels without it
    Copy,
}

impl From<EvictionChoice> for EvictionMethod {
    fn from(choice: EvictionChoice) -> Self {
        match choice {
            EvictionChoice::Move => Self::Move,
            EvictionChoice::Copy => Self::Copy,
        }
    }
}

/// Where the serial console goes: `stdio`, `none` or `file:PATH`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum ConsoleTarget {
    /// This terminal, both ways.
    Stdio,
    /// Nowhere.
    None,
    /// Appended to a file; no input.
    File(PathBuf),
}

impl FromStr for ConsoleTarget {
    type Err = DescriptionError;

    fn from_str(text: &str) -> Result<Self, DescriptionError> {
        match text {
            "stdio" => Ok(Self::Stdio),
            "none" => Ok(Self::None),
            _ => match text.strip_prefix("file:") {
                Some(path) if !path.is_empty() => Ok(Self::File(path.into())),
                _ => Err(refused(text, "a console is stdio, none or file:PATH")),
            },
        }
    }
}

impl TryFrom<String> for ConsoleTarget {
    type Error = DescriptionError;

    fn try_from(text: String) -> Result<Self, DescriptionError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_may_be_read_only_and_direct() {
        for (text, path, read_only, direct) in [
            ("a,b.img", "a,b.img", false, false),
            ("a,b.img,ro", "a,b.img", true, false),
            ("a,b.img,direct", "a,b.img", false, true),
            ("a,b.img,ro,direct", "a,b.img", true, true),
            ("a,b.img,direct,ro", "a,b.img", true, true),
            ("a,ro,ro", "a,ro", true, false),
            ("a,direct,b", "a,direct,b", false, false),
        ] {
            assert_eq!(text.parse(), Ok(DiskConfig { path: path.into(), read_only, direct }), "{text}");
        }
        for text in ["", ",ro", ",direct", ",ro,direct"] {
            assert!(text.parse::<DiskConfig>().is_err(), "{text}");
        }
    }

    #[test]
    fn interfaces_have_a_tap_and_perhaps_an_address() {
        let net: NetConfig = "tap=t0,mac=02:0a:00:00:00:ff".parse().expect("valid");
        assert_eq!((net.tap.as_str(), net.mac), ("t0", Some([2, 10, 0, 0, 0, 255])));
        for text in ["", "t0", "tap=", "mac=02:00:00:00:00:01", "tap=a,mac=03:00:00:00:00:01", "tap=a,mac=2:0:0:0:0:1"]
        {
            assert!(text.parse::<NetConfig>().is_err(), "{text}");
        }
    }

    #[test]
    fn sockets_have_a_guest_address_and_a_path() {
        assert_eq!("cid=3,uds=/v".parse(), Ok(VsockConfig { cid: 3, uds: "/v".into() }));
        for text in ["", "cid=2,uds=/v", "cid=4294967295,uds=/v", "cid=x,uds=/v", "cid=3", "cid=3,uds="] {
            assert!(text.parse::<VsockConfig>().is_err(), "{text}");
        }
    }

    #[test]
    fn limits_of_the_store_are_sizes_or_shares() {
        let memory = Size::mebibytes(300);
        for (text, bytes) in [("0", 0), ("1G", 1 << 30), ("0%", 0), ("50%", 150 << 20), ("100%", 300 << 20)] {
            assert_eq!(text.parse::<StoreLimit>().map(|limit| limit.bytes(memory)), Ok(bytes), "{text}");
        }
        // More than 64 bits hold on the way.
        assert_eq!(StoreLimit::Percent(50).bytes(Size { bytes: 1 << 60 }), 1 << 59);
        for text in ["", "%", "101%", "-1%", "12.5%", "lots"] {
            assert!(text.parse::<StoreLimit>().is_err(), "{text}");
        }
    }

    #[test]
    fn consoles_are_one_of_three() {
        assert_eq!("file:/x".parse(), Ok(ConsoleTarget::File("/x".into())));
        assert!("files:/x".parse::<ConsoleTarget>().is_err());
        assert!("file:".parse::<ConsoleTarget>().is_err());
    }
}
