//! CPU time that whoever runs this host, itself a guest, has kept from it: guests were late then for what no memory can mend.

use std::fs;
use std::time::Duration;

use crate::guest_process::cpu::TICK;

/// Of all CPUs since the host started; none where the kernel does not tell.
pub fn stolen_time() -> Duration {
    fs::read_to_string("/proc/stat").ok().and_then(|stat| parse(&stat)).unwrap_or_default()
}

/// The eighth time of the first line (proc_stat(5)).
fn parse(stat: &str) -> Option<Duration> {
    let ticks = stat.strip_prefix("cpu ")?.lines().next()?.split_ascii_whitespace().nth(7)?;
    // More of them than a u32 holds, with many CPUs in some months.
    Some(Duration::from_millis(ticks.parse::<u64>().ok()? * TICK.as_millis() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_eighth_time_of_all_processors() {
        let stat = "cpu  10 20 30 40 50 60 70 123 90 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(parse(stat), Some(Duration::from_millis(1230)));
        assert_eq!((parse("cpu  1 2 3\ncpu0 1 1 1 1 1 1 1 9\n"), parse("intr 1")), (None, None));
    }
}
