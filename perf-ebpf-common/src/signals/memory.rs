//! Memory of the target that becomes resident, by the stack that touched it first.

use crate::wire;

/// The kernel's counters of resident pages (`enum` in `include/linux/mm_types_task.h`, the same since
/// 4.5) that are of memory which cannot be dropped and read again.
pub mod member {
    pub const ANON: u32 = 1;
    pub const SHMEM: u32 = 3;
}

/// One stack is taken for each this many pages that a process grows by, on average: 512 KiB, a walk
/// (1.4 us) for each 128 page faults (0.7 us and more each). A power of two.
pub const PAGES_A_SAMPLE: u64 = 128;

/// Key of `growth`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GrowthKey {
    /// Content hash of the user stack of a sample; 0: all growth of the process, sampled or not.
    pub user_stack: u64,
    /// Histogram slot of the process.
    pub slot: u32,
    pub pad: u32,
}
wire!(GrowthKey => 16);

/// Value of `growth`. Cumulative.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GrowthTotals {
    /// Samples; steps of the counters where all growth is meant.
    pub count: u64,
    /// Pages that became resident. Of a sample: those it stands for.
    pub pages: u64,
}
wire!(GrowthTotals => 16);

/// Value of `resident`, keyed by process: the counters as they were last seen, to know by how much
/// they grew.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resident {
    pub anon_pages: u64,
    pub shmem_pages: u64,
}
wire!(Resident => 16);
