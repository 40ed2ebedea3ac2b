//! Maps used by more than one signal. Sizes are defaults; user space sets them at load.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, PerCpuArray, RingBuf},
};
use perf_ebpf_common::{
    loss::Loss,
    signals::{
        control::{Control, FunctionRange},
        ledger::{TARGET_SLOTS, ThreadState, target_slot},
        record,
    },
    sys,
};

use crate::prelude::add32;

/// `BPF_F_MMAPABLE`.
pub const MMAPABLE: u32 = 1 << 10;

/// The target's threads; being in here is what makes a thread a target's.
///
/// A hash and not an array: thread ids reach 4,194,304 and a slot has over 600 bytes.
#[map(name = "threads")]
static THREADS: HashMap<u32, ThreadState> = HashMap::with_max_entries(16384, 0);

/// How many threads of the target have an id with these low bits: zero for nearly every other thread
/// of the host, which is then not looked up in `threads`. Counted before the thread is in there.
#[map(name = "targets")]
static TARGETS: Array<u32> = Array::with_max_entries(TARGET_SLOTS, MMAPABLE);

/// The account of a thread, if it is the target's.
#[inline(always)]
pub fn thread(tid: u32) -> Option<*mut ThreadState> {
    // SAFETY: an aligned integer.
    if TARGETS
        .get_ptr(target_slot(tid))
        .is_none_or(|n| unsafe { n.read_volatile() } == 0)
    {
        return None;
    }
    THREADS.get_ptr_mut(&tid)
}

/// Makes a thread the target's. An error where it is there already and `flags` forbid that, or
/// where the map is full.
#[inline(always)]
pub fn add_thread(t: &ThreadState, tid: u32, flags: u32) -> Result<(), i32> {
    let known = THREADS.get_ptr(&tid).is_some();
    count_thread(tid, 1);
    let result = THREADS.insert(&tid, t, flags as u64);
    if known || result.is_err() {
        count_thread(tid, u32::MAX);
    }
    result
}

/// A thread is no longer there.
#[inline(always)]
pub fn remove_thread(tid: u32) {
    if THREADS.remove(&tid).is_ok() {
        count_thread(tid, u32::MAX);
    }
}

/// Adds 1, or -1 in two's complement.
#[inline(always)]
fn count_thread(tid: u32, by: u32) {
    if let Some(n) = TARGETS.get_ptr_mut(target_slot(tid)) {
        // SAFETY: a live map value.
        unsafe { add32(n, by) };
    }
}

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

/// Where `__schedule` is, once user space has found it.
#[map(name = "schedule_range")]
pub static SCHEDULE: Array<FunctionRange> = Array::with_max_entries(1, MMAPABLE);

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
