//! Threads and processes of the target that begin, change their program, and end.
//!
//! A thread's account ends at its last `sched_switch`, not at `sched_process_exit`: what it does
//! in between (unmapping its memory, mostly) is time as well.

use aya_ebpf::{bindings::BPF_NOEXIST, macros::map, maps::PerCpuArray};
use perf_ebpf_common::{
    class,
    loss::Loss,
    offsets::ABSENT,
    signals::{
        RecordHeader,
        ledger::{ASKED, MEMO_SLOTS, SiteKey, StackMemo, ThreadState, thread_state},
        lifecycle::{Exec, ThreadExited, ThreadStarted},
        record,
        tls::TlsCall,
    },
};

use crate::{
    file::NO_WAKEUP,
    prelude::*,
    shared_maps::{self, EVENTS, GENERATED},
    signals::{ledger, locks, unwind},
};

/// A new account is built here: it is larger than the stack.
#[map(name = "new_thread")]
static NEW_THREAD: PerCpuArray<ThreadState> = PerCpuArray::with_max_entries(1, 0);

/// Counts a record of a kind as made, before the ring is asked for room.
#[inline(always)]
fn generated(kind: u32) {
    if let Some(count) = GENERATED.get_ptr_mut(kind) {
        // SAFETY: a per-CPU element.
        unsafe { *count += 1 };
    }
}

/// A thread of the target made another thread or process.
#[inline(always)]
pub fn fork(parent: &ThreadState, child: Typed) {
    let tid: u32 = field(child, offset!(task_pid));
    let tgid: u32 = field(child, offset!(task_tgid));
    let new_process = tgid != parent.tgid;
    if new_process && setting!(follow_children) == 0 {
        return;
    }
    let Some(scratch) = NEW_THREAD.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: a per-CPU element; fork's tracepoint does not nest.
    let t = unsafe { &mut *scratch };
    let now = now_ns();
    *t = ThreadState {
        seq: 0,
        since_ns: now,
        start_ns: now,
        spent_ns: [0; class::COUNT],
        unaccounted_ns: 0,
        last_ns: 0,
        woken_ns: 0,
        fences: 0,
        promote_at_ns: if new_process {
            now + setting!(promote_after_ns)
        } else {
            parent.promote_at_ns
        },
        switches: 0,
        runtime_ns: 0,
        run_delay_ns: u64::MAX,
        runq_before_ns: 0,
        cpu_before_ns: 0,
        file: 0,
        file_sk: 0,
        asked: [0; ASKED],
        answered_sk: 0,
        idle_ns: 0,
        idle_until_ns: 0,
        site: SiteKey::EMPTY,
        memo: [StackMemo::EMPTY; MEMO_SLOTS],
        sys_enter_ns: 0,
        told_ns: 0,
        samples_user: 0,
        samples_kernel: 0,
        tls: TlsCall {
            ssl: 0,
            buffer: 0,
            length_at: 0,
            moved_ns: 0,
            account_ns: 0,
        },
        tid,
        tgid,
        sys_nr: 0,
        file_port: 0,
        slot: parent.slot,
        file_detail: [0; 2],
        // Runnable from birth: what passes until it first runs is run-queue time.
        state: thread_state::QUEUED,
        last_class: class::RUNQ,
        file_kind: 0,
        file_detail_kind: 0,
        missed_wake_class: 0,
        woken_from: 0,
        tls_call: 0,
        memo_next: 0,
        lock_wait: 0,
        pad: [0; 3],
        inner_tid: 0,
        seq_tail: 0,
    };
    t.inner_tid = locks::inner_tid(child, tid, tgid);
    if new_process {
        unwind::forked(parent.tgid, tgid);
    }
    if shared_maps::add_thread(t, tid, BPF_NOEXIST).is_err() {
        // It is there where user space seeded it first, between its creation and this event.
        if shared_maps::thread(tid).is_none() {
            lose(Loss::ThreadsFull);
        }
        return;
    }
    let started = ThreadStarted {
        header: RecordHeader {
            kind: record::THREAD_STARTED,
            pad: 0,
            at_ns: now,
        },
        tid,
        tgid,
        parent_tid: parent.tid,
        parent_tgid: parent.tgid,
    };
    generated(record::THREAD_STARTED);
    if EVENTS.output::<ThreadStarted>(&started, NO_WAKEUP).is_err() {
        lose(Loss::RingFull);
    }
}

/// A thread left the CPU for the last time: its account goes to user space whole.
#[inline(always)]
pub fn thread_exit(t: &mut ThreadState, task: Typed, now: u64) {
    generated(record::THREAD_EXITED);
    let tid = t.tid;
    match EVENTS.reserve::<ThreadExited>(0) {
        Some(mut slot) => {
            let record = slot.as_mut_ptr();
            // SAFETY: the slot is ours until submitted; every field is written.
            unsafe {
                (*record).header = RecordHeader {
                    kind: record::THREAD_EXITED,
                    pad: 0,
                    at_ns: now,
                };
                copy(
                    (&raw mut (*record).thread).cast(),
                    (&raw const *t).cast(),
                    size_of::<ThreadState>() as u32,
                );
                (*record).sum_exec_runtime_ns = field(task, offset!(task_sum_exec_runtime));
                (*record).run_delay_ns = if offset!(task_run_delay) == ABSENT {
                    0
                } else {
                    field(task, offset!(task_run_delay))
                };
                (*record).minor_faults = field(task, offset!(task_min_flt));
                (*record).major_faults = field(task, offset!(task_maj_flt));
                (*record).voluntary_switches = field(task, offset!(task_nvcsw));
                (*record).involuntary_switches = field(task, offset!(task_nivcsw));
                copy(
                    (&raw mut (*record).comm).cast(),
                    task.byte_add(offset!(task_comm) as usize),
                    16,
                );
            }
            slot.submit(NO_WAKEUP);
        }
        None => lose(Loss::RingFull),
    }
    locks::ended(t);
    shared_maps::remove_thread(tid);
}

/// A process of the target executed a program. The thread that called exec takes the process's id
/// if it was not its first thread (`de_thread` in `fs/exec.c`); its account moves with it.
#[inline(always)]
pub fn exec(task: Typed, old_tid: u32) {
    let tid: u32 = field(task, offset!(task_pid));
    let tgid: u32 = field(task, offset!(task_tgid));
    let Some(t) = ledger::thread(old_tid) else {
        return;
    };
    unwind::executed(tgid);
    // The memo and the last file are of the program that is gone.
    ledger::begin(t);
    t.memo = [StackMemo::EMPTY; MEMO_SLOTS];
    t.file = 0;
    t.tid = tid;
    ledger::end(t);
    if old_tid != tid {
        if shared_maps::add_thread(t, tid, 0).is_err() {
            lose(Loss::ThreadsFull);
        }
        shared_maps::remove_thread(old_tid);
    }
    let mut record = Exec {
        header: RecordHeader {
            kind: record::EXEC,
            pad: 0,
            at_ns: now_ns(),
        },
        tgid,
        old_tid,
        comm: [0; 16],
    };
    // SAFETY: 16 bytes of task->comm into 16 bytes.
    unsafe {
        copy(
            record.comm.as_mut_ptr().cast(),
            task.byte_add(offset!(task_comm) as usize),
            16,
        );
    }
    generated(record::EXEC);
    if EVENTS.output::<Exec>(&record, NO_WAKEUP).is_err() {
        lose(Loss::RingFull);
    }
}
