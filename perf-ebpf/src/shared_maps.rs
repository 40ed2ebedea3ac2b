//! Maps used by more than one signal. Sizes are defaults; user space sets them at load.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, PerCpuArray, RingBuf},
};
use perf_ebpf_common::{
    loss::Loss,
    signals::{control::Control, ledger::ThreadState, record},
    sys,
};

/// `BPF_F_MMAPABLE`.
pub const MMAPABLE: u32 = 1 << 10;

/// The target's threads; being in here is what makes a thread a target's.
///
/// A hash and not an array: thread ids reach 4,194,304 and a slot has over 600 bytes.
#[map(name = "threads")]
pub static THREADS: HashMap<u32, ThreadState> = HashMap::with_max_entries(16384, 0);

/// Records for user space. Nobody is woken per record; the drain polls on a clock.
#[map(name = "events")]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// Records made, by kind, whether or not the ring took them.
#[map(name = "generated")]
pub static GENERATED: PerCpuArray<u64> = PerCpuArray::with_max_entries(record::END as u32, 0);

/// Counters of [`Loss`].
#[map(name = "loss")]
pub static LOSS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Loss::COUNT as u32, 0);

/// What user space changes while tracing.
#[map(name = "control")]
pub static CONTROL: Array<Control> = Array::with_max_entries(1, MMAPABLE);

/// Kind of each system call (`perf_ebpf_common::sys`), by number, for this architecture.
#[map(name = "sys_kinds")]
pub static SYS_KINDS: Array<u8> = Array::with_max_entries(sys::TABLE_LEN as u32, 0);

/// Kind of each character device (`perf_ebpf_common::fd`), by major number.
#[map(name = "device_kinds")]
pub static DEVICE_KINDS: Array<u8> = Array::with_max_entries(512, 0);

/// Kind of a system call; [`sys::OTHER`] past the table.
#[inline(always)]
pub fn sys_kind(nr: u16) -> u8 {
    SYS_KINDS.get(nr as u32).copied().unwrap_or(sys::OTHER)
}
