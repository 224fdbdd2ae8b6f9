//! Running VMs, found by what their user calls them.

use std::io;
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

/// A connection to the VM of this name or process id, or behind the control socket at this path.
///
/// # Errors
/// There is none, or it does not answer.
pub fn find(vm: &str) -> Result<Client> {
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
