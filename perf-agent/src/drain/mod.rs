//! What leaves the kernel side, as bytes: ring records, map contents and the facts read from
//! `/proc` beside them, cut into windows.
//!
//! A trace is a sequence of [`Frame`]s. [`live`] makes them from a running kernel side, `replay`
//! from a recording; everything that consumes them is pure, so both give the same lines.

pub mod codec;
pub mod files;
pub mod listeners;
pub mod live;
pub mod outbox;
pub mod procfs;
pub mod seeds;
pub mod slices;
pub mod slots;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::{Latency, RequestRow};

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
    Growth = 8,
    Allocations = 9,
    LockHolds = 10,
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
            Growth,
            Allocations,
            LockHolds,
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
    /// Memory of the processes, at the attach and at the end of each window.
    Memory(MemoryFact),
    /// Name of a block device.
    Device {
        dev: u32,
        name: String,
    },
    /// A slice of the syscalls signal ended, with the calls counted in it by number and slot.
    Slice(SliceFact),
    /// Connections that were used in the window.
    Connections(ConnectionsFact),
    /// What was said on them, by statement.
    Statements(StatementsFact),
    /// Requests that the target answered.
    Requests(RequestsFact),
    /// How much of that could be read.
    Traffic(TrafficFact),
    Window(Box<WindowFact>),
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
    /// What the syscalls signal adds to a traced thread's call, measured; 0 for not.
    #[serde(default)]
    pub syscall_hook_ns: u64,
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
    /// Its code stands inside that of the next frame outwards.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub inlined: bool,
}

/// A file by inode and kernel device number.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FileFact {
    pub dev: u32,
    pub inode: u64,
    pub path: String,
}

/// Memory of the host and of the processes with histograms of their own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MemoryFact {
    /// Growth was watched for the whole window.
    pub watched: bool,
    pub page_bytes: u64,
    /// `MemTotal` and `MemAvailable` of `/proc/meminfo`.
    pub total_bytes: u64,
    pub available_bytes: u64,
    pub processes: Vec<ProcessMemoryFact>,
}

/// Memory of a process, from `/proc/PID/status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProcessMemoryFact {
    pub pid: u32,
    pub resident_bytes: u64,
    pub peak_bytes: u64,
    pub anon_bytes: u64,
    pub file_bytes: u64,
    pub shmem_bytes: u64,
    pub swap_bytes: u64,
    pub data_bytes: u64,
    /// The cgroup that is nearest to its limit, of the process's own and those above it: path, limit,
    /// and what of it is in use and cannot be dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<(String, u64, u64)>,
}

/// Calls counted in one slice.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SliceFact {
    pub length_ns: u64,
    /// (slot, system call number, count).
    pub counts: Vec<(u32, u32, u64)>,
}

/// The connections of a window, the busiest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ConnectionsFact {
    pub rows: Vec<ConnectionFact>,
}

/// The statements of a window, those that took longest in all first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StatementsFact {
    pub rows: Vec<StatementFact>,
}

/// A connection in a window. Bytes and counts are the window's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ConnectionFact {
    /// Inode number of the socket.
    pub id: u64,
    pub pid: u32,
    pub protocol: Option<String>,
    /// `None` where the role cannot be told.
    pub client: Option<bool>,
    pub local: String,
    pub peer: String,
    /// Made after the attach.
    pub new: bool,
    /// Not there in the window before.
    pub first_window: bool,
    pub closed: bool,
    pub encrypted: bool,
    /// TLS of which the plaintext is seen.
    #[serde(default)]
    pub plaintext: bool,
    pub tx_bytes: u64,
    pub rx_bytes: u64,
    pub connect_ns: Option<u64>,
    /// Mean of the window; least and largest since the first byte.
    pub rtt_ns: Option<u64>,
    pub rtt_min_ns: Option<u64>,
    pub rtt_max_ns: Option<u64>,
    pub retransmits: u64,
    pub resets: u64,
    pub send_stalls: u64,
    pub send_stall_ns: u64,
    pub exchanges: u64,
    /// Requests without their answer at the end of the window.
    pub in_flight: u64,
    pub idle_in_transaction_ns: u64,
}

/// A statement in a window.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StatementFact {
    pub pid: u32,
    pub protocol: String,
    pub client: bool,
    pub peer: String,
    pub text: String,
    pub latency: Latency,
    pub first_byte: Latency,
    pub queued: Latency,
    pub errors: BTreeMap<String, u64>,
    pub hits: u64,
    pub misses: u64,
    /// Sequences of this statement and no other on one connection that another statement led to:
    /// how many, how many exchanges in all, the longest, and what led to them.
    pub runs: u64,
    pub run_exchanges: u64,
    pub longest_run: u64,
    pub led_by: Option<String>,
}

/// The requests of a window by route or statement, those that took longest in all first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RequestsFact {
    pub rows: Vec<RequestFact>,
}

/// Requests of one shape that a process answered in a window.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RequestFact {
    pub pid: u32,
    #[serde(flatten)]
    pub row: RequestRow,
}

/// Socket bytes of a window and what became of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrafficFact {
    pub bytes_seen: u64,
    pub bytes_decoded: u64,
    /// Of connections that are TLS.
    pub bytes_encrypted: u64,
    /// TLS libraries in the targets that cannot be read.
    #[serde(default)]
    pub unreadable_tls: Vec<String>,
    /// What could not be paired or read, by name.
    pub anomalies: BTreeMap<String, u64>,
    pub statements_dropped: u64,
    pub connections: u64,
    /// Connections past those that are listed, and their bytes.
    pub rest_connections: u64,
    pub rest_bytes: u64,
    /// What processes that answer requests asked others for, and what of it was for none of them.
    #[serde(default)]
    pub calls: u64,
    #[serde(default)]
    pub calls_elsewhere: u64,
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
    /// Walks of an interpreter's frames since the attach, by why they ended, and what became of them.
    #[serde(default)]
    pub python_walks: BTreeMap<String, u64>,
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
