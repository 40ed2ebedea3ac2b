//! System calls by process and number. The value of the map `syscalls` is a
//! [`LatencyCell`](super::LatencyCell).

use crate::wire;

/// Key of `syscalls`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SyscallKey {
    pub slot: u32,
    pub nr: u32,
}
wire!(SyscallKey => 8);

/// Key of `syscall_errors`; the value is a u64 count.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SyscallErrorKey {
    pub slot: u32,
    pub nr: u16,
    /// Positive errno.
    pub errno: u16,
}
wire!(SyscallErrorKey => 8);
