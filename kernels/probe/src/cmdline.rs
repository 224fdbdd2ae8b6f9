//! The kernel command line: `probe="..."` and the virtio-mmio devices the VMM appended.

/// Words of a command line; quotes join what they enclose into one word, as for Linux.
pub fn words(line: &str) -> impl Iterator<Item = &str> {
    let mut rest = line;
    core::iter::from_fn(move || {
        rest = rest.trim_start();
        let mut quoted = false;
        let end = rest.find(|character: char| {
            quoted ^= character == '"';
            character.is_whitespace() && !quoted
        });
        let (word, more) = rest.split_at(end.unwrap_or(rest.len()));
        rest = more;
        (!word.is_empty()).then_some(word)
    })
}

/// The value of the last `key=value` or `"key=value"`, without its quotes.
pub fn value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let unquoted = |word: &'a str| word.trim_matches('"');
    words(line).filter_map(|word| unquoted(word).strip_prefix(key)?.strip_prefix('=')).map(unquoted).last()
}

/// A virtio-mmio device, from `virtio_mmio.device=SIZE@BASE:IRQ[:ID]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmioDevice {
    /// Guest-physical address of its registers.
    pub base: u64,
    /// Bytes of registers.
    pub bytes: u64,
    /// Its global system interrupt.
    pub irq: u32,
}

/// All virtio-mmio devices of a command line, in order; what cannot be read is left out.
pub fn mmio_devices(line: &str) -> impl Iterator<Item = MmioDevice> {
    words(line).filter_map(|word| device(word.strip_prefix("virtio_mmio.device=")?))
}

fn device(text: &str) -> Option<MmioDevice> {
    let (size, place) = text.split_once('@')?;
    let mut place = place.split(':');
    let (base, irq) = (place.next()?, place.next()?);
    Some(MmioDevice { base: integer(base)?, bytes: scaled(size)?, irq: integer(irq)?.try_into().ok()? })
}

/// A number with an optional K, M or G.
fn scaled(text: &str) -> Option<u64> {
    let shift = match text.as_bytes().last()?.to_ascii_uppercase() {
        b'K' => 10,
        b'M' => 20,
        b'G' => 30,
        _ => return integer(text),
    };
    integer(&text[..text.len() - 1])?.checked_mul(1 << shift)
}

fn integer(text: &str) -> Option<u64> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_program_is_found_in_any_quoting() {
        assert_eq!(value("console=ttyS0 probe=\"fill:1M; verify\" quiet", "probe"), Some("fill:1M; verify"));
        assert_eq!(value("\"probe=fill:1M; verify\"", "probe"), Some("fill:1M; verify"));
        assert_eq!(value("probe=fill:1M;verify x", "probe"), Some("fill:1M;verify"));
        assert_eq!(value("probe=a probe=b", "probe"), Some("b"));
        assert_eq!(value("probed=a xprobe=b probe", "probe"), None);
        assert_eq!(value("probe=\"never closed", "probe"), Some("never closed"));
        assert_eq!(value("", "probe"), None);
    }

    #[test]
    fn devices_are_read_in_every_spelling() {
        let line = "virtio_mmio.device=4K@0xd0000000:5 x virtio_mmio.device=0x200@3489665024:6:1 \
                    virtio_mmio.device=4K@nowhere:7 virtio_mmio.device=4K virtio_mmio.device=99999999999G@1:1";
        let devices: Vec<_> = mmio_devices(line).collect();
        let expected = [
            MmioDevice { base: 0xd000_0000, bytes: 4096, irq: 5 },
            MmioDevice { base: 3_489_665_024, bytes: 512, irq: 6 },
        ];
        assert_eq!(devices, expected);
    }

    proptest! {
        #[test]
        fn no_line_is_too_strange(line in "(virtio_mmio.device=|probe=)?[\"a-z0-9@:=Ké ]{0,40}") {
            let _ = value(&line, "probe");
            let _ = mmio_devices(&line).count();
            prop_assert_eq!(words(&line).any(str::is_empty), false);
        }
    }
}
