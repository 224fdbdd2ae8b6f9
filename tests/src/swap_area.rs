//! A disk for a guest to swap to.

/// A swap area as mkswap makes it: a first page that says how many there are (Linux, include/linux/swap.h, `union
/// swap_header`).
pub fn swap_area(bytes: usize) -> Vec<u8> {
    const PAGE: usize = 4096;
    let mut area = vec![0; bytes];
    let (version, last_page) = (1_u32, (bytes / PAGE - 1) as u32);
    area[1024..1028].copy_from_slice(&version.to_le_bytes());
    area[1028..1032].copy_from_slice(&last_page.to_le_bytes());
    area[PAGE - 10..PAGE].copy_from_slice(b"SWAPSPACE2");
    area
}
