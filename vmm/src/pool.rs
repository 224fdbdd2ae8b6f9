//! A VM enters its pool.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use cistern::config::MachineConfig;
use cistern::pool_options::PoolConfig;
use cistern::size::Size;
use cistern_memory::manager::{ManagerError, Member};

use crate::complain;

/// What a VM needs to begin beside its images: firmware tables, the first pages of its kernel, queues.
const BEGINNING_BYTES: u64 = 8 << 20;

/// How long a VM waits in silence, and how often it speaks after that.
const SILENCE: Duration = Duration::from_secs(2);
const REMINDER: Duration = Duration::from_secs(30);

/// Joins the pool and waits until the guest can be loaded.
///
/// # Errors
/// [`ManagerError`].
pub fn join(pool: &PoolConfig, config: &MachineConfig) -> Result<Member, ManagerError> {
    let mut member = Member::join(&pool.folder, &pool.request, pool.manager)?;
    let image_bytes = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
    // A compressed kernel is unpacked by itself, on the guest's account.
    let images_bytes = image_bytes(&config.kernel) + config.initrd.as_deref().map_or(0, image_bytes);
    let needed_bytes = (images_bytes + BEGINNING_BYTES).min(config.memory.bytes);
    let started = Instant::now();
    let mut next = SILENCE;
    member.wait_for_room(needed_bytes, |view| {
        if started.elapsed() >= next {
            next = started.elapsed() + REMINDER;
            let free_bytes = view.free_bytes.unwrap_or(0).max(0) as u64;
            let budget = Size { bytes: view.settings.budget_bytes };
            complain(&format!(
                "waiting for {} in pool {}: {} of {budget} is free",
                Size { bytes: needed_bytes },
                pool.folder.display(),
                Size { bytes: free_bytes },
            ));
        }
        true
    })?;
    Ok(member)
}
