//! Accounts of threads that serve: told beside the bytes of a server's connection, from which user
//! space makes the ledger of each request.

use perf_ebpf_common::{
    loss::Loss,
    signals::{
        RecordHeader,
        ledger::ThreadState,
        record,
        requests::{TOTALS_BYTES, ThreadTotals},
    },
};

use super::{ledger, payload::DATA, sockets::count};
use crate::{file::NO_WAKEUP, prelude::*};

/// Thread `t` moves bytes of a server's connection: tells its account, unless it has not left the CPU
/// since it was told last.
#[inline(always)]
pub fn tell(t: &mut ThreadState, now: u64) {
    if t.told_ns != t.since_ns {
        send(t, now);
    }
}

/// VERIFIER: a function of its own, so that what follows is verified once.
#[inline(never)]
fn send(t: &mut ThreadState, now: u64) -> u64 {
    ledger::settle(t);
    count(record::THREAD_TOTALS);
    let Some(mut slot) = DATA.reserve::<ThreadTotals>(0) else {
        lose(Loss::DataRingFull);
        return 0;
    };
    let totals = slot.as_mut_ptr();
    // SAFETY: the slot is ours until submitted, and every field is written: those from `since_ns` to
    // `unaccounted_ns` by the copy. The thread is on this CPU, so nobody else writes its account.
    unsafe {
        (*totals).header = RecordHeader {
            kind: record::THREAD_TOTALS,
            pad: 0,
            at_ns: now,
        };
        (*totals).tid = t.tid;
        (*totals).tgid = t.tgid;
        copy(
            (&raw mut (*totals).since_ns).cast(),
            (&raw const t.since_ns).cast(),
            TOTALS_BYTES as u32,
        );
    }
    slot.submit(NO_WAKEUP);
    t.told_ns = t.since_ns;
    0
}
