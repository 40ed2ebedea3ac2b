//! Map keys, map values and ring records, one file a signal.

pub mod allocations;
pub mod block_io;
pub mod control;
pub mod ledger;
pub mod lifecycle;
pub mod locks;
pub mod memory;
pub mod python;
pub mod requests;
pub mod sockets;
pub mod stacks;
pub mod syscalls;
pub mod tls;
pub mod unwind;

use crate::{histogram::BUCKETS, wire};

/// First eight bytes of every ring record.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// See [`record`].
    pub kind: u32,
    pub pad: u32,
    /// `bpf_ktime_get_ns` when it happened (CLOCK_MONOTONIC).
    pub at_ns: u64,
}
wire!(RecordHeader => 16);

/// Kinds of ring records. Numbers are written to recordings and never reused.
pub mod record {
    /// [`super::lifecycle::ThreadStarted`]
    pub const THREAD_STARTED: u32 = 1;
    /// [`super::lifecycle::ThreadExited`]
    pub const THREAD_EXITED: u32 = 2;
    /// [`super::lifecycle::Exec`]
    pub const EXEC: u32 = 3;
    /// [`super::stacks::StackRecord`] followed by its frames
    pub const STACK: u32 = 4;
    /// [`super::ledger::UnixName`]
    pub const UNIX_NAME: u32 = 5;
    /// [`super::sockets::ConnectionMet`]
    pub const CONNECTION_MET: u32 = 6;
    /// [`super::sockets::ConnectionClosed`]
    pub const CONNECTION_CLOSED: u32 = 7;
    /// [`super::sockets::SocketData`] followed by its bytes
    pub const SOCKET_DATA: u32 = 8;
    /// [`super::unwind::Missed`]
    pub const UNWIND_MISSED: u32 = 12;
    /// [`super::requests::ThreadTotals`]
    pub const THREAD_TOTALS: u32 = 13;
    /// One past the largest.
    pub const END: usize = 14;
}

/// Count, sum, maximum and histogram of something timed. Cumulative; user space takes differences.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct LatencyCell {
    pub count: u64,
    /// How many of `count` failed.
    pub errors: u64,
    /// Bytes moved by those that succeeded.
    pub bytes: u64,
    /// How many of `count` have a latency (start and end both seen).
    pub timed: u64,
    pub sum_ns: u64,
    /// Largest latency since the map entry was made.
    pub max_ns: u64,
    /// See [`crate::histogram`]. Wraps; differences are taken modulo 2^32.
    pub buckets: [u32; BUCKETS],
}
wire!(LatencyCell => 48 + 4 * BUCKETS);
