//! One file a signal: its maps and what it does with an event. The entry points are in `hooks`.

pub mod allocations;
pub mod block_io;
pub mod cpu;
pub mod ledger;
pub mod lifecycle;
pub mod locks;
pub mod memory;
pub mod payload;
pub mod python;
pub mod requests;
pub mod sockets;
pub mod stacks;
pub mod syscalls;
pub mod tls;
pub mod unwind;
