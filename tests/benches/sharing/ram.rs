//! The pages of a guest's RAM, read from outside while its process stands still.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use cistern_memory::PAGE_SIZE;
use cistern_tests::guest_memory::address_ranges;

/// A page's content.
pub type Page = Vec<u8>;

/// The top bit of an entry of `pagemap` (kernel Documentation/admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;

/// How often each content is in guest memory that is there. The process belongs to this user and does not run.
///
/// # Errors
/// Those of reading /proc.
pub fn contents(pid: u32) -> io::Result<HashMap<Page, u64>> {
    let ranges = address_ranges(pid).ok_or(io::ErrorKind::NotFound)?;
    let (pagemap, memory) = (File::open(format!("/proc/{pid}/pagemap"))?, File::open(format!("/proc/{pid}/mem"))?);
    let mut contents = HashMap::new();
    for range in ranges {
        for address in range.step_by(PAGE_SIZE as usize) {
            let mut entry = [0; 8];
            pagemap.read_exact_at(&mut entry, address / PAGE_SIZE * 8)?;
            // Reading another would bring it there.
            if u64::from_le_bytes(entry) & PRESENT != 0 {
                let mut page = vec![0; PAGE_SIZE as usize];
                memory.read_exact_at(&mut page, address)?;
                *contents.entry(page).or_insert(0) += 1;
            }
        }
    }
    Ok(contents)
}
