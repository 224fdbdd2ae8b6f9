//! What the parts of the policy promise, alone and together.

mod allocator;

const MIB: u64 = 1 << 20;
