//! System calls: count, errors, bytes and latency by process and number.
//!
//! Attached only while asked for (always in full mode, for slices of each second by default): two
//! hooks here cost every process of the host 142 ns a call.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap},
};
use perf_ebpf_common::{
    histogram::{BUCKETS, bucket_of},
    loss::Loss,
    signals::{
        LatencyCell,
        ledger::ThreadState,
        syscalls::{SyscallErrorKey, SyscallKey},
    },
    sys,
};

use crate::{
    prelude::*,
    shared_maps::{CONTROL, sys_kind},
};

#[map(name = "syscalls")]
static SYSCALLS: HashMap<SyscallKey, LatencyCell> = HashMap::with_max_entries(2048, 0);

#[map(name = "syscall_errors")]
static ERRORS: HashMap<SyscallErrorKey, u64> = HashMap::with_max_entries(2048, 0);

/// An all-zero element to insert: larger than the stack.
#[map(name = "zero_cell")]
pub static ZERO_CELL: Array<LatencyCell> = Array::with_max_entries(1, 0);

/// Largest errno, `MAX_ERRNO` in `include/linux/err.h`.
const MAX_ERRNO: i64 = 4095;

#[inline(always)]
pub fn enter(t: &mut ThreadState, nr: u64) {
    t.sys_nr = nr as u32;
    t.sys_enter_ns = now_ns();
}

/// The call of thread `t` returned `result`. `nr_now` is the number in the registers, which a
/// signal's return overwrites with -1.
#[inline(always)]
pub fn exit(t: &mut ThreadState, nr_now: i32, result: i64) {
    let entered = t.sys_enter_ns;
    t.sys_enter_ns = 0;
    let (slice_start, only_whole) = CONTROL
        .get(0)
        .map_or((0, 0), |c| (c.slice_start_ns, c.only_whole_calls));
    let timed = entered != 0 && entered >= slice_start;
    if !timed && only_whole != 0 {
        return;
    }
    let nr = if timed {
        t.sys_nr
    } else if nr_now >= 0 {
        nr_now as u32
    } else {
        return;
    };
    let key = SyscallKey {
        slot: t.slot as u32,
        nr,
    };
    let Some(zero) = ZERO_CELL.get(0) else { return };
    let Some(cell) = element(&SYSCALLS, &key, zero, Loss::SyscallsFull) else {
        return;
    };
    // SAFETY: a live map value; the bucket is below BUCKETS.
    unsafe {
        add(&raw mut (*cell).count, 1);
        if (-MAX_ERRNO..0).contains(&result) {
            add(&raw mut (*cell).errors, 1);
            count_error(SyscallErrorKey {
                slot: key.slot,
                nr: nr as u16,
                errno: -result as u16,
            });
        } else if result > 0 && matches!(sys_kind(nr as u16), sys::READ | sys::WRITE) {
            add(&raw mut (*cell).bytes, result as u64);
        }
        if timed {
            let length = now_ns().saturating_sub(entered);
            add(&raw mut (*cell).timed, 1);
            add(&raw mut (*cell).sum_ns, length);
            raise(&raw mut (*cell).max_ns, length);
            let bucket = opaque(bucket_of(length));
            if bucket < BUCKETS {
                add32((&raw mut (*cell).buckets).cast::<u32>().add(bucket), 1);
            }
        }
    }
}

#[inline(always)]
fn count_error(key: SyscallErrorKey) {
    if let Some(count) = element(&ERRORS, &key, &0, Loss::SyscallErrorsFull) {
        // SAFETY: a live map value.
        unsafe { add(count, 1) };
    }
}
