//! Allocations of the target, sampled by bytes, and which of them were freed.

use crate::wire;

/// An allocation is sampled with the probability of its size over this many bytes, and stands for this
/// many: what tcmalloc, jemalloc and Go take as well. A power of two.
pub const DEFAULT_SAMPLE_BYTES: u32 = 512 << 10;

/// Parts of an object, in which numbers of objects are counted: a sampled allocation of 400 KiB stands
/// for 1.28 of them.
pub const OBJECT_PARTS: u64 = 256;

/// Key of `allocations`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AllocationKey {
    /// Content hash of the user stack.
    pub user_stack: u64,
    /// Histogram slot of the process.
    pub slot: u32,
    pub pad: u32,
}
wire!(AllocationKey => 16);

/// Value of `allocations`. Cumulative.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AllocationTotals {
    /// Samples, and what they stand for.
    pub count: u64,
    pub bytes: u64,
    /// See [`OBJECT_PARTS`].
    pub object_parts: u64,
    /// The same of those that were freed.
    pub freed_count: u64,
    pub freed_bytes: u64,
    pub freed_object_parts: u64,
}
wire!(AllocationTotals => 48);

/// A sampled allocation: under way, by thread (`allocating`), and then until it is freed, by address
/// (`live_allocations`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation {
    pub key: AllocationKey,
    /// What it stands for.
    pub bytes: u64,
    pub object_parts: u64,
}
wire!(Allocation => 32);

/// Key of `live_allocations`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveKey {
    pub address: u64,
    pub tgid: u32,
    pub pad: u32,
}
wire!(LiveKey => 16);
