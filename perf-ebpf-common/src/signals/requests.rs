//! Requests a server of the target answers: the account of the thread that moves their bytes, so
//! that the difference between the first byte and the last is the request's own ledger.

use super::{RecordHeader, ledger::ThreadState};
use crate::{class, wire};

/// Ring record, in front of a [`super::sockets::SocketData`] of a connection whose server the target
/// is: the closed part of the thread's account. Sent once for each stay on the CPU, as nothing but
/// the open interval changes in it until the thread leaves the CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadTotals {
    pub header: RecordHeader,
    /// [`ThreadState::since_ns`]: which stay on the CPU it is.
    pub since_ns: u64,
    /// [`ThreadState::start_ns`]: which life of the thread it is.
    pub start_ns: u64,
    pub spent_ns: [u64; class::COUNT],
    pub unaccounted_ns: u64,
    pub tid: u32,
    pub tgid: u32,
}
wire!(ThreadTotals => 16 + TOTALS_BYTES + 8);

/// Bytes that [`ThreadTotals`] and [`ThreadState`] have in common, from `since_ns` to
/// `unaccounted_ns`: one copy.
pub const TOTALS_BYTES: usize = 8 * (2 + class::COUNT + 1);

const _: () = {
    use core::mem::offset_of;
    let from = offset_of!(ThreadState, since_ns);
    let to = offset_of!(ThreadTotals, since_ns);
    assert!(offset_of!(ThreadState, start_ns) - from == offset_of!(ThreadTotals, start_ns) - to);
    assert!(offset_of!(ThreadState, spent_ns) - from == offset_of!(ThreadTotals, spent_ns) - to);
    assert!(offset_of!(ThreadState, unaccounted_ns) - from == TOTALS_BYTES - 8);
    assert!(offset_of!(ThreadTotals, unaccounted_ns) - to == TOTALS_BYTES - 8);
};
