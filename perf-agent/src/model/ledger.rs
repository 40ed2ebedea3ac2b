//! Where time went: accounts by class, and what stands beside them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Memory, Process, Stamp, Window};

/// Nanoseconds by class name, zero classes left out.
pub type Classes = BTreeMap<String, u64>;

/// The summary of a distribution of durations. Percentiles come from log-linear buckets and are
/// within 1/32 of the exact value; `max_ns` and `sum_ns` are exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    pub count: u64,
    pub sum_ns: u64,
    pub p50_ns: u64,
    pub p90_ns: u64,
    pub p95_ns: u64,
    pub p99_ns: u64,
    pub max_ns: u64,
}

/// Where the time of one process went.
#[derive(Clone, Debug, Serialize)]
pub struct Ledger {
    #[serde(flatten)]
    pub stamp: Stamp,
    #[serde(flatten)]
    pub who: Process,
    pub window: Window,
    pub process: ProcessLedger,
    pub threads: Vec<ThreadLedger>,
    pub cpu_split: CpuSplit,
    pub schedstat: SchedstatCheck,
    pub faults: Faults,
    /// Absent where the process was gone before it could be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Box<Memory>>,
    pub block_io: Vec<BlockIo>,
    /// CPU quota throttling of the process's cgroup in the window, where it has a quota.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttled: Option<Throttled>,
}

/// Sums over the threads of a process.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ProcessLedger {
    /// Sum of the threads' lifetimes inside the window.
    pub lifetime_ns: u64,
    pub classes: Classes,
    pub residual_ns: u64,
    /// Completed intervals by class (`cpu`: bursts between two switches).
    pub latency: BTreeMap<String, Latency>,
    pub switches: u64,
    pub threads_started: u64,
    pub threads_exited: u64,
    /// Processes forked by this one or below it that began and ended inside the window, or died
    /// before they were a second old: counted here and not as lines of their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub short_lived: Option<ShortLived>,
}

/// Processes that came and went.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ShortLived {
    pub processes: u64,
    pub threads: u64,
    pub lifetime_ns: u64,
    pub classes: Classes,
    pub residual_ns: u64,
    /// Count by program name, the most frequent ones.
    pub comms: BTreeMap<String, u64>,
}

/// Where the time of one thread went.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ThreadLedger {
    pub tid: u32,
    pub comm: String,
    pub lifetime_ns: u64,
    pub classes: Classes,
    /// lifetime − sum of classes.
    pub residual_ns: u64,
    pub switches: u64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub exited: bool,
}

/// What the split of CPU time into user and kernel rests on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CpuSplit {
    /// `samples` of the CPU clock, or `proc` (utime and stime) where no sample fell.
    pub source: String,
    pub user_samples: u64,
    pub kernel_samples: u64,
}

/// The ledger beside the scheduler's own figures for the same threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SchedstatCheck {
    /// Threads whose scheduler figures could be read at both ends of the window.
    pub threads: u64,
    pub ledger_cpu_ns: u64,
    pub kernel_cpu_ns: u64,
    pub ledger_runq_ns: u64,
    pub kernel_runq_ns: u64,
}

/// Page faults, counted by the kernel, and what they took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Faults {
    pub minor: u64,
    pub major: u64,
    /// Time blocked in a fault (class `fault`).
    pub blocked_ns: u64,
    /// Time on the CPU in a fault, faults inside system calls included: the share of the CPU clock's
    /// samples whose kernel stack goes through the fault entry. Absent where no kernel stack could
    /// be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_ns: Option<u64>,
    /// How many samples that is.
    pub cpu_samples: u64,
}

/// Requests to one block device, from insertion into its queue to completion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BlockIo {
    /// Name as in /sys/block, else `major:minor`.
    pub device: String,
    /// `read`, `write`, `flush`, `discard`, or `op<N>`.
    pub operation: String,
    /// Requests that ended; `latency` has those whose end the kernel told of.
    pub requests: u64,
    pub bytes: u64,
    pub latency: Latency,
}

/// Throttling by a CPU quota (cgroup `cpu.stat`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Throttled {
    pub cgroup: String,
    /// Enforcement periods in the window, and how many of them were throttled.
    pub periods: u64,
    pub throttled_periods: u64,
    /// Summed over the cgroup's CPUs.
    pub throttled_ns: u64,
}

/// System calls of one process.
#[derive(Clone, Debug, Serialize)]
pub struct Syscalls {
    #[serde(flatten)]
    pub stamp: Stamp,
    #[serde(flatten)]
    pub who: Process,
    pub window: Window,
    /// `full` or `sampled`.
    pub mode: String,
    /// Share of the window in which calls were counted (1 in `full`). Counts, errors and bytes are
    /// scaled up to the whole window already.
    pub fraction: f64,
    /// How many slices of the window were counted.
    pub slices: u32,
    /// What counting adds to a call, measured at the attach; absent in `full`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hook_ns: Option<u64>,
    /// By what factor the process made fewer calls in the slices for it, as far as can be told;
    /// taken into account for the rest of the window.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slowdown: Option<f64>,
    pub syscalls: Vec<SyscallRow>,
}

/// One system call.
#[derive(Clone, Debug, Serialize)]
pub struct SyscallRow {
    pub name: String,
    pub count: u64,
    /// Half width of the 95 % confidence interval of `count`, and how far it may be off because
    /// counting slows calls down; absent where it is exact, and where a single slice gives no
    /// variance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count_error: Option<u64>,
    pub errors: BTreeMap<String, u64>,
    /// Of the calls seen from entry to exit, not scaled: `latency.count` of them.
    pub latency: Latency,
    /// Moved by the read and write families, 0 elsewhere.
    pub bytes: u64,
}
