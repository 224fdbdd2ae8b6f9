//! `cistern balloon`: a guest's balloon by hand.

use std::io::{self, Write};

use anyhow::{Result, bail};
use cistern::pool_options::Budget;
use cistern::size::Size;
use serde_json::json;

use crate::running;

/// Asks for a balloon of a size, or leaves it to the pool, and says what the balloon holds now.
pub fn run(vm: &str, size: Budget) -> Result<u8> {
    let amount_mib = match size {
        Budget::Size(Size { bytes }) if !bytes.is_multiple_of(1 << 20) => {
            bail!("a balloon holds whole MiB, not {bytes} bytes")
        }
        Budget::Size(Size { bytes }) => Some(bytes >> 20),
        Budget::Auto => None,
    };
    let mut client = running::find(vm)?;
    client.patch("/balloon", &json!({ "amount_mib": amount_mib }))?;
    let report = client.get("/balloon/statistics")?;
    let mib = |field: &str| report[field].as_u64().unwrap_or(0);
    let _ = writeln!(io::stdout(), "target {} MiB, holds {} MiB", mib("target_mib"), mib("actual_mib"));
    Ok(0)
}
