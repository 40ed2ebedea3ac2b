//! Block I/O issued on behalf of the target. The value of the map `block_io` is a
//! [`LatencyCell`](super::LatencyCell): insertion (or issue, where there is no scheduler queue) to
//! completion.

use crate::wire;

/// Key of `block_io`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockIoKey {
    pub slot: u32,
    /// Device, `major << 20 | minor`.
    pub dev: u32,
    /// `REQ_OP_*` (`include/linux/blk_types.h`), low 8 bits of `cmd_flags`.
    pub op: u32,
}
wire!(BlockIoKey => 12);

/// Slot of a request that another process inserted.
pub const NOBODYS: u32 = u32::MAX;

/// Value of `io_in_flight`, keyed by the request's address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InFlight {
    pub start_ns: u64,
    /// `request.start_time_ns`: tells one request from the next at its address.
    pub born_ns: u64,
    /// [`NOBODYS`] where it is no target's.
    pub slot: u32,
    pub dev: u32,
    pub op: u32,
    /// As it was inserted; it may grow.
    pub bytes: u32,
}
wire!(InFlight => 32);
