//! `cistern stats`: what a running VM's memory costs and where it is.

mod latency;
mod table;

use std::io::{self, Write};
use std::path::Path;

use anyhow::Result;
use cistern::api::client::{Client, ClientError};
use cistern::api::folder::{names, runtime_folder, socket_path};

/// Why it is not known which VM is meant.
#[derive(Debug, thiserror::Error)]
enum LookupError {
    /// No VM has this name or process id.
    #[error("no VM is called '{wanted}': {}", whom(running))]
    NoSuchVm { wanted: String, running: Vec<String> },
}

fn whom(running: &[String]) -> String {
    match running {
        [] => "none is running under this user's runtime folder".to_owned(),
        names => format!("running are {}", names.join(", ")),
    }
}

/// Prints the statistics of one VM; `vm` is its name, process id, or the path of its control socket.
pub fn run(vm: &str, json: bool) -> Result<u8> {
    let mut client = find(vm)?;
    let text = if json {
        client.get_text("/memory")? + "\n"
    } else {
        table::render(&client.get("/vm")?, &client.get("/memory")?)
    };
    // Whoever closed stdout does not want to read it.
    let _ = io::stdout().write_all(text.as_bytes());
    Ok(0)
}

fn find(vm: &str) -> Result<Client> {
    if vm.contains('/') {
        return Ok(Client::connect(Path::new(vm))?);
    }
    let folder = runtime_folder();
    let connect = |name: &str| Client::connect(&socket_path(&folder, name));
    match connect(vm) {
        // One that was killed has left its socket.
        Err(ClientError::Connect { cause, .. })
            if matches!(cause.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {}
        result => return Ok(result?),
    }
    let mut running = Vec::new();
    for name in names(&folder) {
        if let Ok(client) = connect(&name) {
            if client.pid().is_some_and(|pid| pid.to_string() == vm) {
                return Ok(client);
            }
            running.push(name);
        }
    }
    Err(LookupError::NoSuchVm { wanted: vm.to_owned(), running }.into())
}
