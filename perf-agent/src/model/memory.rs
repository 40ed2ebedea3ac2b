//! How much memory a process has, and what grew.

use serde::Serialize;

use super::Frame;

/// Memory of a process at the end of the window (`/proc/PID/status`).
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Memory {
    /// VmRSS, the sum of the three below, and the most it ever was (VmHWM).
    pub resident_bytes: u64,
    pub peak_bytes: u64,
    pub anon_bytes: u64,
    pub file_bytes: u64,
    pub shmem_bytes: u64,
    pub swap_bytes: u64,
    /// VmData: what it has from `brk` and private `mmap`, whether it was touched or not.
    pub data_bytes: u64,
    /// Anonymous and shared memory that became resident in the window, as the kernel's counters rose;
    /// what left again is not subtracted. To 128 KiB a CPU. Absent where that was not watched for the
    /// whole window, because no target grew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grown_bytes: Option<u64>,
    /// How its memory changed over the last windows; absent in the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trend: Option<MemoryTrend>,
    /// What bounds it: the limit of a cgroup, or the memory of the host.
    pub limit: MemoryLimit,
}

impl Memory {
    /// What cannot be dropped and read again.
    pub fn held_bytes(&self) -> u64 {
        self.anon_bytes + self.shmem_bytes + self.swap_bytes
    }
}

/// Change of anonymous, shared and swapped memory over some windows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryTrend {
    pub windows: u64,
    /// How many of them ended with more than they began with.
    pub rising: u64,
    /// From the beginning of the first to the end of the last.
    pub length_ns: u64,
    /// What it had at the beginning, and the change up to the end.
    pub from_bytes: u64,
    pub change_bytes: i64,
    /// The part of the change that came in the last half of the windows.
    pub late_bytes: i64,
    /// Sum over the windows in which it fell.
    pub fallen_bytes: u64,
}

/// The nearest bound.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryLimit {
    /// Path of the cgroup; absent where it is the host's memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    pub limit_bytes: u64,
    /// What is left of it, page cache counted as free.
    pub left_bytes: u64,
}

/// A place that touched new memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Growth {
    /// Stacks taken: one for each 512 KiB on average.
    pub samples: u64,
    /// Its share of `memory.grown_bytes`, by samples.
    pub bytes: u64,
    /// Since the attach.
    pub total_bytes: u64,
    /// Innermost first.
    pub user_stack: Vec<Frame>,
}

/// A place that allocates, in a window: what its samples stand for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllocationSite {
    pub samples: u64,
    pub bytes: u64,
    /// See [`perf_ebpf_common::signals::allocations::OBJECT_PARTS`].
    pub object_parts: u64,
    /// Of what was allocated here, in this window or before.
    pub freed_bytes: u64,
    pub freed_object_parts: u64,
    /// Innermost first.
    pub user_stack: Vec<Frame>,
}
