//! Block I/O issued on behalf of the target: from the insertion of a request into its queue (or its
//! issue, where the queue has no scheduler) to its completion.
//!
//! A request is the target's when a thread of the target inserts it, or issues one that nobody inserted:
//! reads, fsync and direct I/O. Whoever inserts a request has the queue run, and so issues what others left in
//! it: beside two writers as busy as the target, taking what it issued for its own was 28 % too much. What is
//! merged into a request while it waits is part of it. Writeback that the kernel does later is nobody's, and
//! so is the flush of the device's cache that fsync waits for: one stands for all who asked meanwhile.

use aya_ebpf::{bindings::BPF_NOEXIST, macros::map, maps::HashMap};
use perf_ebpf_common::{
    histogram::{BUCKETS, bucket_of},
    loss::Loss,
    offsets::ABSENT,
    signals::{
        LatencyCell,
        block_io::{BlockIoKey, InFlight, NOBODYS},
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

/// Whether its queue has a scheduler, into which every read and write is inserted before it is issued.
#[inline(always)]
fn is_scheduled(request: Typed) -> bool {
    // BLK_MQ_NO_TAG, block/blk-mq.h.
    field::<i32>(request, offset!(rq_internal_tag)) != -1
}

/// A request is inserted into its queue, by the target of that slot if by one.
#[inline(always)]
pub fn inserted(slot: Option<u32>, request: Typed) {
    match slot {
        Some(slot) => start(slot, request),
        // Without a scheduler only where the device takes no more at once: nearly never.
        None if !is_scheduled(request) => start(NOBODYS, request),
        None => {}
    }
}

/// A thread of the target hands a request to the device.
#[inline(always)]
pub fn issued(t: &ThreadState, request: Typed) {
    if !is_scheduled(request) {
        start(t.slot as u32, request);
    }
}

/// Issue follows insertion: the first counts.
#[inline(always)]
fn start(slot: u32, request: Typed) {
    let key = request as u64;
    let value = InFlight {
        start_ns: now_ns(),
        born_ns: field(request, offset!(rq_start_time)),
        slot,
        dev: device(request),
        op: field::<u32>(request, offset!(rq_cmd_flags)) & 0xff,
        bytes: field(request, offset!(rq_data_len)),
    };
    if IN_FLIGHT.insert(&key, &value, BPF_NOEXIST as u64).is_ok() {
        return;
    }
    let Some(known) = IN_FLIGHT.get_ptr_mut(&key) else {
        return lose(Loss::IoInFlightFull);
    };
    // SAFETY: a live map value; a request is in one place at a time.
    let before = unsafe { *known };
    if before.born_ns < value.born_ns {
        // SAFETY: as above.
        unsafe { *known = value };
        ended_unseen(&before);
    }
}

/// A request that waited in its queue became part of another, and is never completed.
#[inline(always)]
pub fn merged(request: Typed) {
    let _ = IN_FLIGHT.remove(&(request as u64));
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
    // Earlier is the same: it takes the time of an older one that is merged into it.
    if io.born_ns < field::<u64>(request, offset!(rq_start_time)) {
        return ended_unseen(&io);
    }
    let Some(cell) = cell(&io) else { return };
    let length = now_ns().saturating_sub(io.start_ns);
    // Only now: it grew while it waited. Nothing of it is taken off before this event.
    let bytes: u32 = field(request, offset!(rq_data_len));
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
            add(&raw mut (*cell).bytes, bytes as u64);
        }
        if bucket < BUCKETS {
            add32((&raw mut (*cell).buckets).cast::<u32>().add(bucket), 1);
        }
    }
}

/// Another request is at the address of this one: it ended, and nothing told of it. Seen where a kernel runs no
/// program in an interrupt of certain processes: up to 1.5 % of the requests.
#[inline(always)]
fn ended_unseen(io: &InFlight) {
    let Some(cell) = cell(io) else { return };
    lose(Loss::IoEndInferred);
    // SAFETY: a live map value.
    unsafe {
        add(&raw mut (*cell).count, 1);
        add(&raw mut (*cell).bytes, io.bytes as u64);
    }
}

/// Where requests of its device and operation are summed, if it is a target's.
#[inline(always)]
fn cell(io: &InFlight) -> Option<*mut LatencyCell> {
    if io.slot == NOBODYS {
        return None;
    }
    let key = BlockIoKey {
        slot: io.slot,
        dev: io.dev,
        op: io.op,
    };
    element(&BLOCK_IO, &key, ZERO_CELL.get(0)?, Loss::BlockIoFull)
}
