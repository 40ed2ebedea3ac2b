//! Block I/O issued on behalf of the target: from the insertion of a request into its queue (or its
//! issue, where the queue has no scheduler) to its completion.
//!
//! A request is the target's when a thread of the target inserts or issues it: reads, fsync and
//! direct I/O. Writeback that the kernel does later is nobody's.

use aya_ebpf::{bindings::BPF_NOEXIST, macros::map, maps::HashMap};
use perf_ebpf_common::{
    histogram::{BUCKETS, bucket_of},
    loss::Loss,
    offsets::ABSENT,
    signals::{
        LatencyCell,
        block_io::{BlockIoKey, InFlight},
        ledger::ThreadState,
    },
};

use crate::{prelude::*, signals::syscalls::ZERO_CELL};

/// Requests under way, by address of the request.
#[map(name = "io_in_flight")]
static IN_FLIGHT: HashMap<u64, InFlight> = HashMap::with_max_entries(4096, 0);

#[map(name = "block_io")]
static BLOCK_IO: HashMap<BlockIoKey, LatencyCell> = HashMap::with_max_entries(512, 0);

/// Device of a request, 0 where it has none (a pass-through command).
#[inline(always)]
fn device(request: Typed) -> u32 {
    let disk: Typed = if offset!(rq_disk) != ABSENT {
        field(request, offset!(rq_disk))
    } else if offset!(queue_disk) != ABSENT {
        let queue: Typed = field(request, offset!(rq_queue));
        field(queue, offset!(queue_disk))
    } else {
        return 0;
    };
    if disk.is_null() {
        return 0;
    }
    let major: u32 = field(disk, offset!(disk_major));
    let minor: u32 = field(disk, offset!(disk_first_minor));
    major << 20 | minor
}

/// A thread of the target inserts or issues a request. Issue follows insertion: the first counts.
#[inline(always)]
pub fn start(t: &ThreadState, request: Typed) {
    let key = request as u64;
    let value = InFlight {
        start_ns: now_ns(),
        slot: t.slot as u32,
        dev: device(request),
        op: field::<u32>(request, offset!(rq_cmd_flags)) & 0xff,
        bytes: field(request, offset!(rq_data_len)),
    };
    if IN_FLIGHT.insert(&key, &value, BPF_NOEXIST as u64).is_err()
        && IN_FLIGHT.get_ptr(&key).is_none()
    {
        lose(Loss::IoInFlightFull);
    }
}

/// A request completed, in whatever context.
#[inline(always)]
pub fn complete(request: Typed, failed: bool) {
    let key = request as u64;
    // SAFETY: copied at once; a request completes once.
    let Some(io) = (unsafe { IN_FLIGHT.get(&key) }).copied() else {
        return;
    };
    let _ = IN_FLIGHT.remove(&key);
    let length = now_ns().saturating_sub(io.start_ns);
    let key = BlockIoKey {
        slot: io.slot,
        dev: io.dev,
        op: io.op,
    };
    let Some(zero) = ZERO_CELL.get(0) else { return };
    let Some(cell) = element(&BLOCK_IO, &key, zero, Loss::BlockIoFull) else {
        return;
    };
    let bucket = opaque(bucket_of(length));
    // SAFETY: a live map value; the bucket is below BUCKETS.
    unsafe {
        add(&raw mut (*cell).count, 1);
        add(&raw mut (*cell).timed, 1);
        add(&raw mut (*cell).sum_ns, length);
        raise(&raw mut (*cell).max_ns, length);
        if failed {
            add(&raw mut (*cell).errors, 1);
        } else {
            add(&raw mut (*cell).bytes, io.bytes as u64);
        }
        if bucket < BUCKETS {
            add32((&raw mut (*cell).buckets).cast::<u32>().add(bucket), 1);
        }
    }
}
