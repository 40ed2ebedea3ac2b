//! Threads and processes that come, change their program, and go.

use super::{RecordHeader, ledger::ThreadState};
use crate::wire;

/// Ring record: a thread of the target was created.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadStarted {
    pub header: RecordHeader,
    pub tid: u32,
    pub tgid: u32,
    /// The thread that made it.
    pub parent_tid: u32,
    pub parent_tgid: u32,
}
wire!(ThreadStarted => 32);

/// Ring record: a thread left the CPU for the last time; its account is final.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ThreadExited {
    pub header: RecordHeader,
    pub thread: ThreadState,
    /// The scheduler's own figures, for the cross-check (since the thread's birth).
    pub sum_exec_runtime_ns: u64,
    pub run_delay_ns: u64,
    pub minor_faults: u64,
    pub major_faults: u64,
    pub voluntary_switches: u64,
    pub involuntary_switches: u64,
    /// NUL-padded.
    pub comm: [u8; 16],
}
wire!(ThreadExited => 16 + core::mem::size_of::<ThreadState>() + 64);

/// Ring record: a process of the target executed a new program.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exec {
    pub header: RecordHeader,
    pub tgid: u32,
    /// The thread that called exec; it takes the process's id.
    pub old_tid: u32,
    pub comm: [u8; 16],
}
wire!(Exec => 40);
