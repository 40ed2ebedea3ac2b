//! Where intervals are added up beside a thread's own sums: the histograms of its process, the places it
//! blocked in, and who ended its waits for locks.

use aya_ebpf::{
    helpers::generated::bpf_get_current_pid_tgid,
    macros::map,
    maps::{Array, HashMap},
};
use perf_ebpf_common::{
    class,
    histogram::{BUCKETS, bucket_of},
    loss::Loss,
    signals::ledger::{ClassHistograms, SLOTS, SiteKey, SiteTotals, ThreadState, WakerKey},
};

use crate::{
    prelude::*,
    shared_maps::{self, MMAPABLE},
};

/// Histograms, one element a process. An array: the slot is a small integer, and the index costs
/// under 1 ns where a hash of (process, class, bucket) costs 30.
#[map(name = "histograms")]
static HISTOGRAMS: Array<ClassHistograms> = Array::with_max_entries(SLOTS, MMAPABLE);

/// Blocked time by place.
#[map(name = "sites")]
static SITES: HashMap<SiteKey, SiteTotals> = HashMap::with_max_entries(16384, 0);

/// Who ended waits for locks.
#[map(name = "wakers")]
static WAKERS: HashMap<WakerKey, SiteTotals> = HashMap::with_max_entries(4096, 0);

/// The histograms of a process, with the places of a class and of an interval's bucket in them.
#[inline(always)]
fn bucket(slot: u16, class: u8, length_ns: u64) -> Option<(*mut ClassHistograms, usize, usize)> {
    let Some(h) = HISTOGRAMS.get_ptr_mut(slot as u32) else {
        lose(Loss::SlotInvalid);
        return None;
    };
    let class = opaque(class as usize);
    if class >= class::COUNT {
        return None;
    }
    let bucket = opaque(class * BUCKETS + bucket_of(length_ns));
    if bucket >= class::COUNT * BUCKETS {
        return None;
    }
    Some((h, class, bucket))
}

/// Adds an interval to the histogram of a process.
#[inline(always)]
pub fn record(slot: u16, class: u8, length_ns: u64) {
    let Some((h, class, bucket)) = bucket(slot, class, length_ns) else {
        return;
    };
    // SAFETY: both places are within the arrays' lengths.
    unsafe {
        add32((&raw mut (*h).buckets).cast::<u32>().add(bucket), 1);
        add((&raw mut (*h).sum_ns).cast::<u64>().add(class), length_ns);
        raise((&raw mut (*h).max_ns).cast::<u64>().add(class), length_ns);
    }
}

/// Takes an interval back out of the histogram of a process, of which the maximum alone stays.
#[inline(always)]
pub fn unrecord(slot: u16, class: u8, length_ns: u64) {
    let Some((h, class, bucket)) = bucket(slot, class, length_ns) else {
        return;
    };
    // SAFETY: both places are within the arrays' lengths.
    unsafe {
        add32((&raw mut (*h).buckets).cast::<u32>().add(bucket), u32::MAX);
        let sum = (&raw mut (*h).sum_ns).cast::<u64>().add(class);
        add(sum, length_ns.wrapping_neg());
    }
}

/// Takes a part of an interval back from a site, and its count where that is all of it; whether it has one.
#[inline(always)]
pub fn take_from_site(key: &SiteKey, whole: u64, part: u64) -> bool {
    let Some(totals) = SITES.get_ptr_mut(&forgotten(key)) else {
        return false;
    };
    // SAFETY: a live map value.
    unsafe {
        if part == whole {
            add(&raw mut (*totals).count, u64::MAX);
        }
        add(&raw mut (*totals).sum_ns, part.wrapping_neg());
    }
    true
}

/// Adds an interval to a site.
#[inline(always)]
pub fn add_site(key: &SiteKey, length_ns: u64) {
    // A copy: a thread may be woken while the CPU it leaves is still walking its stacks into the very
    // key, and what is made under one content would be looked up under another (seen: `sites_full`
    // once in three traces of PostgreSQL under load, with the map nearly empty).
    let key = &forgotten(key);
    let Some(totals) = element(&SITES, key, &SiteTotals::default(), Loss::SitesFull) else {
        return;
    };
    // SAFETY: a live map value.
    unsafe {
        add(&raw mut (*totals).count, 1);
        add(&raw mut (*totals).sum_ns, length_ns);
        raise(&raw mut (*totals).max_ns, length_ns);
    }
}

/// Notes who ended a wait for a lock.
#[inline(always)]
pub fn record_waker(t: &ThreadState, length_ns: u64) {
    // SAFETY: no arguments.
    let current = unsafe { bpf_get_current_pid_tgid() };
    let mut key = WakerKey {
        address: t.site.detail[0],
        waker_tid: current as u32,
        waiter_tid: t.tid,
        waiter_tgid: t.tgid,
        waker_tgid: (current >> 32) as u32,
    };
    // A timeout or a signal wakes from an interrupt or from anyone: only a thread of the target's
    // (or pid 0, the idle task, which means an interrupt) is named.
    if key.waker_tid == 0 || shared_maps::thread(key.waker_tid).is_none() {
        key.waker_tid = 0;
        key.waker_tgid = 0;
    }
    let Some(totals) = element(&WAKERS, &key, &SiteTotals::default(), Loss::WakersFull) else {
        return;
    };
    // SAFETY: a live map value.
    unsafe {
        add(&raw mut (*totals).count, 1);
        add(&raw mut (*totals).sum_ns, length_ns);
        raise(&raw mut (*totals).max_ns, length_ns);
    }
}
