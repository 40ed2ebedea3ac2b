//! The life of TCP connections: connects, round trips, segments sent again, resets, ends.

use aya_ebpf::{macros::map, maps::LruHashMap};
use perf_ebpf_common::{
    loss::Loss,
    offsets::ABSENT,
    signals::{
        RecordHeader, record,
        sockets::{Connecting, Connection, ConnectionClosed},
    },
};

use super::{CONNECTIONS, count, waits};
use crate::{file::NO_WAKEUP, prelude::*, shared_maps::EVENTS};

const TCP_ESTABLISHED: u32 = 1;
const TCP_SYN_SENT: u32 = 2;

/// Connects under way. An LRU: what is forgotten costs a connect latency, nothing else.
#[map(name = "connecting")]
static CONNECTING: LruHashMap<u64, Connecting> = LruHashMap::with_max_entries(4096, 0);

/// Notes the smoothed round-trip time (kept by the kernel in eighths of a microsecond), once a millisecond
/// at most: it is smooth, and a reading takes 25 ns.
#[inline(always)]
pub fn round_trip(c: &mut Connection, sk: u64, now: u64) {
    let about_ms = (now >> 20) as u32;
    if offset!(tcp_srtt_us) == ABSENT || c.rtt_at_ms == about_ms {
        return;
    }
    c.rtt_at_ms = about_ms;
    let rtt = kernel::<u32>(sk + offset!(tcp_srtt_us) as u64).unwrap_or(0) >> 3;
    if rtt == 0 {
        return;
    }
    c.rtt_sum_us += rtt as u64;
    c.rtt_count += 1;
    if c.rtt_min_us == 0 || rtt < c.rtt_min_us {
        c.rtt_min_us = rtt;
    }
    if rtt > c.rtt_max_us {
        c.rtt_max_us = rtt;
    }
}

/// A TCP socket changed its state. `of_target` is whether the current thread is a target's: a
/// connect begins in the thread that asks for it.
#[inline(always)]
pub fn state(sk: u64, new_state: u32, of_target: bool) {
    match new_state {
        TCP_SYN_SENT if of_target => {
            let connecting = Connecting {
                started_ns: now_ns(),
                took_ns: 0,
            };
            let _ = CONNECTING.insert(&sk, &connecting, 0);
        }
        TCP_ESTABLISHED => {
            if let Some(connecting) = CONNECTING.get_ptr_mut(&sk) {
                // SAFETY: a live map value.
                unsafe { (*connecting).took_ns = now_ns() - (*connecting).started_ns };
            }
        }
        _ => {}
    }
}

/// How long the connect of a socket took, where it was seen: told once.
#[inline(always)]
pub fn connect_ns(sk: u64) -> u64 {
    // SAFETY: read whole at once; a torn copy would be one wrong connect latency.
    let Some(connecting) = (unsafe { CONNECTING.get(&sk) }) else {
        return 0;
    };
    let took_ns = connecting.took_ns;
    let _ = CONNECTING.remove(&sk);
    took_ns
}

/// A TCP socket is gone.
#[inline(always)]
pub fn destroyed(sk: u64) {
    let Some(c) = CONNECTIONS.get_ptr(&sk) else {
        return;
    };
    count(record::CONNECTION_CLOSED);
    match EVENTS.reserve::<ConnectionClosed>(0) {
        Some(mut slot) => {
            let closed = slot.as_mut_ptr();
            // SAFETY: the slot is ours until submitted; every field is written.
            unsafe {
                (*closed).header = RecordHeader {
                    kind: record::CONNECTION_CLOSED,
                    pad: 0,
                    at_ns: now_ns(),
                };
                copy(
                    (&raw mut (*closed).connection).cast(),
                    c.cast(),
                    size_of::<Connection>() as u32,
                );
            }
            slot.submit(NO_WAKEUP);
        }
        None => lose(Loss::RingFull),
    }
    // SAFETY: a live map value.
    waits::forget(unsafe { &(*c).id });
    let _ = CONNECTIONS.remove(&sk);
}

/// A segment of one of the target's connections was sent again.
#[inline(always)]
pub fn retransmitted(sk: u64) {
    if let Some(c) = CONNECTIONS.get_ptr_mut(&sk) {
        // SAFETY: a live map value.
        unsafe { add32(&raw mut (*c).retransmits, 1) };
    }
}

/// A connection of the target was reset, by either end.
#[inline(always)]
pub fn reset(sk: u64) {
    if let Some(c) = CONNECTIONS.get_ptr_mut(&sk) {
        // SAFETY: a live map value.
        unsafe { add32(&raw mut (*c).resets, 1) };
    }
}
