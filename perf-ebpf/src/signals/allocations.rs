//! Allocations, by probes on `malloc` and its like: sampled where they begin, kept from where they
//! return until they are freed.
//!
//! Nothing is kept of those that are not sampled, which is decided before anything is looked up. The
//! probe itself costs more than all of it.

use aya_ebpf::{
    helpers::generated::{bpf_get_current_pid_tgid, bpf_get_prandom_u32},
    macros::map,
    maps::{HashMap, PerCpuArray},
    programs::{ProbeContext, RetProbeContext},
};
use perf_ebpf_common::{
    loss::Loss,
    signals::{
        allocations::{Allocation, AllocationKey, AllocationTotals, LiveKey, OBJECT_PARTS},
        ledger::ThreadState,
    },
};

use crate::{
    prelude::*,
    registers::UserRegisters,
    shared_maps::CONTROL,
    signals::{
        ledger,
        stacks::{self, Slot},
    },
};

/// What was allocated and freed, by process and stack.
#[map(name = "allocations")]
static ALLOCATIONS: HashMap<AllocationKey, AllocationTotals> = HashMap::with_max_entries(8192, 0);

/// Sampled allocations under way, by thread. A hash: thread ids reach 4,194,304.
#[map(name = "allocating")]
static ALLOCATING: HashMap<u32, Allocation> = HashMap::with_max_entries(1024, 0);

/// Sampled allocations that were not freed: of 512 KiB each on average, so 32 GiB.
#[map(name = "live_allocations")]
static LIVE: HashMap<LiveKey, Allocation> = HashMap::with_max_entries(65536, 0);

/// Whether the scratch of [`Slot::Uprobe`] is in use: a uprobe's program may be preempted.
#[map(name = "uprobe_walks")]
static WALKING: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);

/// The trace is over.
#[inline(always)]
fn stopped() -> bool {
    CONTROL
        .get(0)
        .is_none_or(|control| control.uprobes_stopped != 0)
}

/// An allocation of so many bytes begins.
#[inline(always)]
pub fn begin(ctx: &ProbeContext, size: u64) {
    let every = setting!(alloc_sample_bytes) as u64;
    // SAFETY: no arguments.
    let chance = unsafe { bpf_get_prandom_u32() } as u64 & (every - 1);
    if size <= chance {
        return;
    }
    // SAFETY: no arguments.
    let tid = unsafe { bpf_get_current_pid_tgid() } as u32;
    let Some(t) = ledger::thread(tid) else {
        return;
    };
    // An allocation inside another that was sampled is the same one.
    if stopped() || ALLOCATING.get_ptr(&tid).is_some() {
        return;
    }
    let Some(user_stack) = walk(ctx, t) else {
        return lose(Loss::AllocationStackBusy);
    };
    let bytes = if size > every { size } else { every };
    let allocation = Allocation {
        key: AllocationKey {
            user_stack,
            slot: t.slot as u32,
            pad: 0,
        },
        bytes,
        object_parts: bytes * OBJECT_PARTS / size,
    };
    if ALLOCATING.insert(&tid, &allocation, 0).is_err() {
        lose(Loss::AllocationsFull);
    }
}

/// Walks the stack of the function that was called; none where the scratch is another's, who was
/// preempted on this CPU.
#[inline(always)]
fn walk(ctx: &ProbeContext, t: &ThreadState) -> Option<u64> {
    let walking = WALKING.get_ptr_mut(0)?;
    // SAFETY: an element of this CPU. Programs do not migrate, and whoever preempts this one is
    // through before it goes on.
    if unsafe { core::ptr::read_volatile(walking) } != 0 {
        return None;
    }
    // SAFETY: as above.
    unsafe { core::ptr::write_volatile(walking, 1) };
    stacks::begin_python(t.tid, t.tgid, Slot::Uprobe);
    let (stack, _) = stacks::walk_user(t.tid, t.tgid, &registers(ctx), Slot::Uprobe);
    // SAFETY: as above.
    unsafe { core::ptr::write_volatile(walking, 0) };
    Some(stack)
}

#[inline(always)]
fn registers(ctx: &ProbeContext) -> UserRegisters {
    // SAFETY: the context of a uprobe's program; the verifier checks the offsets.
    #[cfg(bpf_target_arch = "x86_64")]
    unsafe {
        UserRegisters {
            ip: (*ctx.regs).rip,
            sp: (*ctx.regs).rsp,
            fp: (*ctx.regs).rbp,
            link: 0,
        }
    }
    // SAFETY: as above.
    #[cfg(bpf_target_arch = "aarch64")]
    unsafe {
        UserRegisters {
            ip: (*ctx.regs).pc,
            sp: (*ctx.regs).sp,
            fp: (*ctx.regs).regs[29],
            link: (*ctx.regs).regs[30],
        }
    }
}

/// An allocation of the current thread returned.
#[inline(always)]
pub fn end(ctx: &RetProbeContext) {
    // SAFETY: no arguments.
    let id = unsafe { bpf_get_current_pid_tgid() };
    let tid = id as u32;
    let Some(allocation) = ALLOCATING.get_ptr(&tid) else {
        return;
    };
    // SAFETY: a live map value, which only this thread's events change.
    let allocation = unsafe { *allocation };
    let _ = ALLOCATING.remove(&tid);
    let address = ctx.ret::<u64>();
    if address == 0 {
        return;
    }
    let key = LiveKey {
        address,
        tgid: (id >> 32) as u32,
        pad: 0,
    };
    if LIVE.insert(&key, &allocation, 0).is_err() {
        // Counted as allocated, and never as freed, it would look like a leak.
        return lose(Loss::AllocationsFull);
    }
    if let Some(totals) = totals(&allocation.key) {
        // SAFETY: a live map value.
        unsafe {
            add(&raw mut (*totals).count, 1);
            add(&raw mut (*totals).bytes, allocation.bytes);
            add(&raw mut (*totals).object_parts, allocation.object_parts);
        }
    }
}

/// Memory of the current process is freed.
#[inline(always)]
pub fn free(address: u64) {
    if address == 0 {
        return;
    }
    // SAFETY: no arguments.
    let id = unsafe { bpf_get_current_pid_tgid() };
    let key = LiveKey {
        address,
        tgid: (id >> 32) as u32,
        pad: 0,
    };
    let Some(allocation) = LIVE.get_ptr(&key) else {
        return;
    };
    // SAFETY: a live map value; who frees it is the only one that may.
    let allocation = unsafe { *allocation };
    let _ = LIVE.remove(&key);
    if let Some(totals) = totals(&allocation.key) {
        // SAFETY: a live map value.
        unsafe {
            add(&raw mut (*totals).freed_count, 1);
            add(&raw mut (*totals).freed_bytes, allocation.bytes);
            add(
                &raw mut (*totals).freed_object_parts,
                allocation.object_parts,
            );
        }
    }
}

#[inline(always)]
fn totals(key: &AllocationKey) -> Option<*mut AllocationTotals> {
    let empty = AllocationTotals::default();
    element(&ALLOCATIONS, key, &empty, Loss::AllocationsFull)
}
