//! What leaves the kernel side, as bytes: ring records, map contents and the facts read from
//! `/proc` beside them, cut into windows.
//!
//! A trace is a sequence of [`Frame`]s. [`live`] makes them from a running kernel side, `replay`
//! from a recording; everything that consumes them is pure, so both give the same lines.

pub mod codec;
pub mod files;
pub mod live;
pub mod procfs;
pub mod seeds;
pub mod slices;
pub mod slots;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One piece of a trace.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    /// A record of the event ring (`perf_ebpf_common::signals`).
    Record(Vec<u8>),
    /// All entries of a map at the end of a window, each key followed by its value.
    Map(MapId, Vec<u8>),
    Fact(Fact),
}

/// Maps that are drained. Numbers are written to recordings and never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum MapId {
    Threads = 1,
    Sites = 2,
    Wakers = 3,
    Syscalls = 4,
    SyscallErrors = 5,
    BlockIo = 6,
    /// Key: slot (u32); value: see [`crate::signals::histograms`].
    Histograms = 7,
}

impl MapId {
    /// From its number.
    pub fn from_number(n: u8) -> Option<MapId> {
        use MapId::*;
        [
            Threads,
            Sites,
            Wakers,
            Syscalls,
            SyscallErrors,
            BlockIo,
            Histograms,
        ]
        .into_iter()
        .find(|id| *id as u8 == n)
    }
}

/// What was learned outside the kernel programs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "fact", rename_all = "snake_case")]
pub enum Fact {
    Start(Start),
    /// A process of the target: at the attach, when it gets histograms of its own, after exec.
    Process(ProcessFact),
    /// The histogram slot of a process is free again.
    SlotFreed {
        slot: u32,
    },
    /// What `/proc` says of a thread at the end of the window.
    Thread(ThreadFact),
    /// Where a thread that had no event since the attach is, see [`seeds`].
    Seeded(SeededFact),
    /// Names of a stack's frames.
    Stack(StackFact),
    /// Path of a file somebody waited for.
    File(FileFact),
    /// Name of a block device.
    Device {
        dev: u32,
        name: String,
    },
    /// A slice of the syscalls signal ended, with the calls counted in it by number and slot.
    Slice(SliceFact),
    Window(WindowFact),
    End(EndFact),
}

/// First fact of a trace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Start {
    pub agent: String,
    pub host: String,
    pub kernel: String,
    pub arch: String,
    pub cpus: u32,
    /// CLOCK_REALTIME and CLOCK_MONOTONIC of the attach.
    pub realtime_ns: u64,
    pub monotonic_ns: u64,
    pub targets: Vec<u32>,
    pub follow_children: bool,
    pub interval_ns: u64,
    /// `full`, `sampled` or `off`.
    pub syscalls: String,
    /// Name, on, reason.
    pub signals: Vec<(String, bool, String)>,
}

/// A process, and where its histograms are.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProcessFact {
    pub pid: u32,
    pub comm: String,
    pub slot: u32,
}

/// A thread beside its account.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ThreadFact {
    pub tid: u32,
    pub pid: u32,
    pub comm: String,
    /// `/proc/PID/task/TID/schedstat`: time on the CPU and waiting for one since its birth.
    pub run_ns: u64,
    pub wait_ns: u64,
    /// Faults since its birth.
    pub minor_faults: u64,
    pub major_faults: u64,
    /// User and system time in clock ticks, for the CPU split where no sample fell.
    pub user_ticks: u64,
    pub kernel_ticks: u64,
}

/// The class of a thread without events.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SeededFact {
    pub tid: u32,
    pub class: u8,
    pub nr: u16,
}

/// A stack by name, innermost frame first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StackFact {
    pub id: u64,
    pub frames: Vec<FrameFact>,
}

/// One frame.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FrameFact {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_id: Option<String>,
    pub symbolized: bool,
}

/// A file by inode and kernel device number.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FileFact {
    pub dev: u32,
    pub inode: u64,
    pub path: String,
}

/// Calls counted in one slice.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SliceFact {
    pub length_ns: u64,
    /// (slot, system call number, count).
    pub counts: Vec<(u32, u32, u64)>,
}

/// The end of a window: everything before it belongs to it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WindowFact {
    pub end_ns: u64,
    pub agent_cpu_ns: u64,
    pub agent_rss_bytes: u64,
    /// BPF run time counted, and for how long it was.
    pub bpf_ns: u64,
    pub bpf_counted_ns: u64,
    /// Records made by kind, since the attach.
    pub generated: u64,
    pub received: u64,
    /// Losses since the attach, by name.
    pub lost: BTreeMap<String, u64>,
    /// Events put back by inference since the attach, by name.
    #[serde(default)]
    pub inferred: BTreeMap<String, u64>,
    /// Stack memo since the attach: hits, walks, checked, mismatched.
    pub memo: [u64; 4],
    /// Walks of user stacks since the attach, by why they ended.
    #[serde(default)]
    pub stack_walks: BTreeMap<String, u64>,
    /// Entries in the kernel's maps.
    pub map_entries: BTreeMap<String, u64>,
    /// Time the syscalls signal was attached in this window.
    pub syscalls_on_ns: u64,
    /// CPU quota by process: cgroup, periods, throttled periods, throttled ns, since the attach.
    pub throttled: BTreeMap<u32, (String, u64, u64, u64)>,
}

/// Why the trace ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EndFact {
    pub reason: String,
    pub exit_code: Option<i32>,
}
