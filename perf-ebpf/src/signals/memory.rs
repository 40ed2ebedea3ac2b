//! Stacks of memory growth: who touched first what the process has resident.
//!
//! The kernel counts resident pages of each address space in steps: since 6.2 each CPU keeps some and
//! adds them when they are 32 or more, before it was 64 faults of a thread. What a counter rose by
//! since it was last seen is charged to the thread that made it rise, and one step in so many, by
//! chance and in proportion to its length, has its stack walked.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::generated::{bpf_get_current_task, bpf_get_current_task_btf, bpf_get_prandom_u32},
    macros::map,
    maps::HashMap,
};
use perf_ebpf_common::{
    loss::Loss,
    signals::{
        ledger::ThreadState,
        memory::{GrowthKey, GrowthTotals, PAGES_A_SAMPLE, Resident, member},
    },
};

use crate::{
    prelude::*,
    registers::Registers,
    signals::stacks::{self, Slot},
};

/// Growth by process and stack.
#[map(name = "growth")]
static GROWTH: HashMap<GrowthKey, GrowthTotals> = HashMap::with_max_entries(4096, 0);

/// Counters last seen, by tgid. A hash: process ids reach 4,194,304.
#[map(name = "resident")]
static RESIDENT: HashMap<u32, Resident> = HashMap::with_max_entries(4096, 0);

/// Whether a counter of resident pages is of memory that cannot be dropped and read again.
#[inline(always)]
pub fn is_counted(member: u32) -> bool {
    member == member::ANON || member == member::SHMEM
}

/// What a counter of an address space stands at: what the CPUs keep for themselves is not in it.
///
/// VERIFIER: not through the typed pointer: before 6.2 the counters are an array of a typedef, into which
/// 5.10 allows no load ("Type 'atomic_long_t' is not a struct").
#[inline(always)]
fn pages(mm: Typed, member: u32) -> u64 {
    // Since 6.2 the count is a field of the counter.
    let first = offset!(mm_rss_stat) + setting!(rss_stat_count);
    let counter = first + member * setting!(rss_stat_stride);
    kernel(mm as u64 + counter as u64).unwrap_or(0)
}

/// Address space of the current thread.
#[inline(always)]
fn current_mm() -> u64 {
    if setting!(has_task_pt_regs) != 0 {
        // SAFETY: no arguments.
        return field(
            unsafe { bpf_get_current_task_btf() } as Typed,
            offset!(task_mm),
        );
    }
    // SAFETY: no arguments.
    let task = unsafe { bpf_get_current_task() };
    kernel(task + offset!(task_mm) as u64).unwrap_or(0)
}

/// A thread of the target moved a counter of some address space.
#[inline(always)]
pub fn counted(t: &ThreadState, mm: Typed, member: u32) {
    let Some(resident) = RESIDENT.get_ptr_mut(&t.tgid) else {
        return begin(t, mm);
    };
    // SAFETY: a live map value.
    let resident = unsafe { &mut *resident };
    let last = if member == member::ANON {
        &mut resident.anon_pages
    } else {
        &mut resident.shmem_pages
    };
    let (before, now) = (forgotten(last), pages(mm, member));
    // Most of the time, since the CPU keeps what it counts for a while. The address space may be
    // another's: a parent copies its own for a child.
    if before == now || mm as u64 != current_mm() {
        return;
    }
    // Two threads that come by at once may both see the same step: there is no exchange before 5.12.
    *last = now;
    // A counter may be below zero for a moment.
    if now.wrapping_sub(before) as i64 > 0 {
        grown(t, now - before);
    }
}

/// The first event of a process.
#[inline(always)]
fn begin(t: &ThreadState, mm: Typed) {
    if mm as u64 != current_mm() {
        return;
    }
    let resident = Resident {
        anon_pages: pages(mm, member::ANON),
        shmem_pages: pages(mm, member::SHMEM),
    };
    let made = RESIDENT.insert(&t.tgid, &resident, BPF_NOEXIST as u64);
    if made.is_err() && RESIDENT.get_ptr(&t.tgid).is_none() {
        lose(Loss::GrowthFull);
    }
}

/// The process grew by so many pages.
#[inline(always)]
fn grown(t: &ThreadState, pages: u64) {
    add_growth(t, 0, pages);
    if setting!(stacks) == 0 {
        return;
    }
    // SAFETY: no arguments.
    let chance = unsafe { bpf_get_prandom_u32() } as u64 & (PAGES_A_SAMPLE - 1);
    if pages <= chance {
        return;
    }
    stacks::begin_python(t.tid, t.tgid, Slot::Memory);
    let regs = Registers::of_current().user();
    let (stack, _) = stacks::walk_user(t.tid, t.tgid, &regs, Slot::Memory);
    if stack != 0 {
        add_growth(
            t,
            stack,
            if pages > PAGES_A_SAMPLE {
                pages
            } else {
                PAGES_A_SAMPLE
            },
        );
    }
}

#[inline(always)]
fn add_growth(t: &ThreadState, user_stack: u64, pages: u64) {
    let key = GrowthKey {
        user_stack,
        slot: t.slot as u32,
        pad: 0,
    };
    let Some(totals) = element(&GROWTH, &key, &GrowthTotals::default(), Loss::GrowthFull) else {
        return;
    };
    // SAFETY: a live map value.
    unsafe {
        add(&raw mut (*totals).count, 1);
        add(&raw mut (*totals).pages, pages);
    }
}
