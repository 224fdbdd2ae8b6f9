//! Numbers without a pattern.

/// splitmix64 (Steele et al., "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014), as in
/// `kernels/linux/tools/pattern.c`.
pub fn mix(number: u64) -> u64 {
    let mut number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}
