//! `cistern stats`: what a running VM's memory costs and where it is.

pub mod latency;
mod table;

use std::io::{self, Write};

use anyhow::Result;

use crate::running;

/// Prints the statistics of one VM; `vm` is its name, process id, or the path of its control socket.
pub fn run(vm: &str, json: bool) -> Result<u8> {
    let mut client = running::find(vm)?;
    let text = if json {
        client.get_text("/memory")? + "\n"
    } else {
        table::render(&client.get("/vm")?, &client.get("/memory")?)
    };
    // Whoever closed stdout does not want to read it.
    let _ = io::stdout().write_all(text.as_bytes());
    Ok(0)
}
