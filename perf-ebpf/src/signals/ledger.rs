//! The ledger: moves each thread of the target from class to class at scheduler events, and
//! accounts every interval it closes in the thread's sums, its process's histogram and, where the
//! place is known, its site.
//!
//! No system call is hooked: at `sched_switch` the number and arguments of the call a thread
//! blocks in stand in its saved registers.

mod accounts;
mod reconcile;

use aya_ebpf::{helpers::generated::bpf_get_current_task, macros::map, maps::HashMap};
use perf_ebpf_common::{
    Blocked, class, classify, fd, futex,
    loss::Loss,
    offsets::ABSENT,
    signals::ledger::{SiteKey, ThreadState, detail, thread_state},
    signals::sockets::Connection,
    sys, task_state,
};

use crate::{
    file,
    prelude::*,
    registers::Registers,
    shared_maps::{self, sys_kind},
    signals::{
        lifecycle, locks,
        sockets::{self, waits},
        stacks,
    },
};

/// Slot of each process that has one, by tgid: how a process forked by the target gets histograms
/// of its own once user space knows it.
#[map(name = "slots")]
static PROCESS_SLOTS: HashMap<u32, u32> = HashMap::with_max_entries(4096, 0);

pub use accounts::add_site;
use accounts::{record, record_waker, take_from_site, unrecord};

/// The thread's account, if it is a target's.
#[inline(always)]
pub fn thread(tid: u32) -> Option<&'static mut ThreadState> {
    // SAFETY: one CPU at a time writes a thread's account (the scheduler orders its events), and
    // an entry is only deleted at the thread's last event.
    shared_maps::thread(tid).map(|t| unsafe { &mut *t })
}

/// Opens an update; see [`ThreadState`] for the order.
#[inline(always)]
pub fn begin(t: &mut ThreadState) {
    // SAFETY: a field of a live map value.
    unsafe { core::ptr::write_volatile(&raw mut t.seq_tail, t.seq.wrapping_add(1)) };
    ordered();
}

/// Closes an update.
#[inline(always)]
pub fn end(t: &mut ThreadState) {
    ordered();
    // SAFETY: as in `begin`.
    unsafe { core::ptr::write_volatile(&raw mut t.seq, t.seq_tail) };
}

/// Ends the open interval as time of `class`, and starts the next one now.
#[inline(always)]
fn close(t: &mut ThreadState, class: u8, now: u64) -> u64 {
    // Clocks of two CPUs may disagree by a few ns; an interval is never negative.
    let now = if now > t.since_ns { now } else { t.since_ns };
    let length = now - t.since_ns;
    if (class as usize) < class::COUNT {
        t.spent_ns[class as usize] += length;
        record(t.slot, class, length);
    }
    t.last_class = class;
    t.last_ns = length;
    t.since_ns = now;
    length
}

/// Ends the open interval as residual: what it was cannot be said.
#[inline(always)]
fn close_unaccounted(t: &mut ThreadState, now: u64) {
    let now = if now > t.since_ns { now } else { t.since_ns };
    t.unaccounted_ns += now - t.since_ns;
    t.since_ns = now;
}

/// Ends a block as time of its class, and adds it to its site where there is anything to tell of that.
/// Returns its length.
///
/// VERIFIER: a function of its own, as the key is copied on the stack.
#[inline(never)]
fn end_block(t: &mut ThreadState, until: u64) -> u64 {
    if t.site.class == class::IDLE
        && let Some(c) = waits::unfinished(t)
    {
        let class = waits::class_for(c);
        t.site.wait_for(c, class);
    }
    let length_ns = close(t, t.site.class, until);
    t.idle_ns = if t.site.class == class::IDLE {
        length_ns
    } else {
        0
    };
    t.idle_until_ns = t.since_ns;
    let key = &t.site;
    if key.kernel_stack != 0 || key.user_stack != 0 || key.detail_kind != detail::NONE {
        add_site(key, length_ns);
    }
    length_ns
}

/// The block that ended last, a wait for anything at all, was one for connection `c`, on which it was asked at
/// `asked_ns`: its time, or what of it was since then, is put where it belongs. The largest of the idle waits stays
/// what it was.
///
/// VERIFIER: a function of its own, as it copies two keys.
#[inline(never)]
pub fn was_for(t: &mut ThreadState, c: &Connection, asked_ns: u64) -> u64 {
    let (whole, until) = (t.idle_ns, t.idle_until_ns);
    t.idle_ns = 0;
    let since = until.wrapping_sub(asked_ns);
    let part = if since < whole { since } else { whole };
    let class = opaque(waits::class_for(c) as usize);
    if until <= asked_ns || class >= class::COUNT || t.spent_ns[class::IDLE as usize] < part {
        return 0;
    }
    begin(t);
    t.spent_ns[class::IDLE as usize] -= part;
    t.spent_ns[class] += part;
    if t.last_class == class::IDLE {
        t.last_class = class as u8;
    }
    if t.woken_from == class::IDLE + 1 {
        t.woken_from = class as u8 + 1;
    }
    if t.missed_wake_class == class::IDLE + 1 {
        t.missed_wake_class = class as u8 + 1;
    }
    unrecord(t.site.slot, class::IDLE, whole);
    record(t.site.slot, class as u8, part);
    if part < whole {
        record(t.site.slot, class::IDLE, whole - part);
    }
    let had_site = take_from_site(&t.site, whole, part);
    t.site.wait_for(c, class as u8);
    // Where it has no site under its key, its stacks were found after it had ended.
    if had_site || t.site.kernel_stack == 0 && t.site.user_stack == 0 {
        add_site(&t.site, part);
    }
    end(t);
    0
}

/// Reads where and for what `task` blocks, into `t.site`.
#[inline(always)]
fn find_site(t: &mut ThreadState, task: Typed, state: u32) {
    // VERIFIER: before the ways part, as it takes 5 ms for this load each time it comes to it (since it knows
    // trusted pointers; 6.18).
    let files = file::table_of(task);
    let regs = Registers::of(task);
    let nr = regs.nr();
    let in_syscall = nr != sys::NR_NONE;
    let in_iowait =
        field::<u8>(task, offset!(task_in_iowait)) as u32 & setting!(in_iowait_mask) != 0;
    let mut blocked = Blocked {
        state,
        in_iowait,
        in_syscall,
        sys: if in_syscall { sys_kind(nr) } else { sys::OTHER },
        fd: fd::UNKNOWN,
        futex_op: 0,
        futex_value: 0,
    };
    let mut detail = [0u64; 2];
    let mut detail_kind = detail::NONE;
    let mut port = 0;
    match blocked.sys {
        // Without an fd: pgbench and Python before 3.11 sleep so.
        sys::POLL if regs.arg1() == 0 => blocked.sys = sys::SLEEP,
        sys::SELECT if regs.arg0() == 0 => blocked.sys = sys::SLEEP,
        sys::SELECT => blocked.sys = sys::POLL_MANY,
        sys::READ | sys::WRITE | sys::SYNC | sys::IOCTL | sys::POLL => {
            let fd = match blocked.sys {
                sys::POLL if regs.arg1() != 1 => None,
                sys::POLL => user::<u32>(regs.arg0()),
                _ => Some(regs.arg0() as u32),
            };
            if let Some(fd) = fd {
                blocked.fd = file::kind_of(t, files, fd);
                detail = t.file_detail;
                detail_kind = t.file_detail_kind;
                port = t.file_port;
            } else {
                blocked.sys = sys::POLL_MANY;
            }
        }
        sys::FUTEX => {
            blocked.futex_op = regs.arg1() as u32;
            blocked.futex_value = regs.arg2() as u32;
            detail[0] = regs.arg0();
            if futex::is_lock(blocked.futex_op, blocked.futex_value) {
                detail_kind = detail::FUTEX;
            }
        }
        _ => {}
    }
    let mut class = classify(&blocked);
    match class {
        class::IDLE if blocked.sys == sys::POLL_MANY => {
            if let Some(c) = waits::awaited(t) {
                class = waits::class_for(c);
                detail = c.peer;
                detail_kind = c.peer_kind;
                port = c.peer_port;
            }
        }
        class::NET_TCP | class::NET_UNIX => class = waits::class_of(t.file_sk, class),
        _ => {}
    }
    t.site = SiteKey {
        kernel_stack: 0,
        user_stack: 0,
        detail: if detail_kind == detail::NONE {
            [0; 2]
        } else {
            detail
        },
        slot: t.slot,
        nr,
        port: if detail_kind == detail::NONE { 0 } else { port },
        class,
        detail_kind,
    };
}

/// `prev` leaves the CPU, `preempted` or not (a bool in the low byte); true where it blocks: its update is left
/// open for [`blocked`] then, and the stacks are taken apart, by [`stack_of_block`].
///
/// VERIFIER: a function of its own, so that the many ways through it end in one state: inlined, each
/// of them is followed through the stack walks (274,000 instructions, 0.3 s at every attach).
#[inline(never)]
pub fn switch_out(t: &mut ThreadState, task: Typed, preempted: u64, now: u64) -> bool {
    begin(t);
    let runtime: u64 = field(task, offset!(task_sum_exec_runtime));
    match t.state {
        // A seeded thread whose first event is this one was on the CPU since it was seeded.
        thread_state::ON_CPU | thread_state::SEEDED => {
            close(t, class::CPU, now);
        }
        _ => {
            // It ran, and its switch-in was not told: some kernels keep threads of their own out of
            // the tracepoint (seen: no event when one of them leaves the CPU). The scheduler's
            // clock says for how long it ran; the rest is what it was in.
            lose(Loss::SwitchInInferred);
            let ran = runtime.wrapping_sub(t.runtime_ns);
            let began = if ran < now.wrapping_sub(t.since_ns) {
                now - ran
            } else {
                t.since_ns
            };
            if t.state == thread_state::QUEUED {
                close(t, class::RUNQ, began);
            } else {
                end_block(t, began);
                locks::gone(t);
                t.missed_wake_class = t.site.class + 1;
            }
            close(t, class::CPU, now);
        }
    }
    let ran = runtime.wrapping_sub(t.runtime_ns);
    t.runtime_ns = runtime;
    reconcile::reconcile(t, task, ran);
    // The task's own field, not the tracepoint's argument: where a signal is pending the scheduler
    // has set the field back to "running" and passes the older value on (5.18 to 6.13).
    let state: u32 = field(task, offset!(task_state));
    if state & task_state::DEAD != 0 {
        end(t);
        lifecycle::thread_exit(t, task, now);
        return false;
    }
    t.switches += 1;
    if state == 0 || preempted & 0xff != 0 {
        t.state = thread_state::QUEUED;
        end(t);
        return false;
    }
    find_site(t, task, state);
    true
}

/// The thread of which [`switch_out`] said so is blocked, for others to see.
#[inline(always)]
pub fn blocked(t: &mut ThreadState, task: Typed, now: u64) {
    // Before they see it: who lets go of the lock meanwhile, on another CPU, must not find it uncounted.
    // What it would be counted in for then never ends.
    if locks::waits(t) {
        locks::wait_begins(t, task, now);
    }
    t.state = thread_state::BLOCKED;
    end(t);
}

/// The current thread's account is about to be told: what its closed intervals lack is put right first.
#[inline(always)]
pub fn settle(t: &mut ThreadState) {
    if offset!(task_run_delay) == ABSENT {
        return;
    }
    // SAFETY: no arguments.
    let task = unsafe { bpf_get_current_task() };
    if let Some(delay) = kernel::<u64>(task + offset!(task_run_delay) as u64) {
        begin(t);
        reconcile::waits(t, delay);
        end(t);
    }
}

/// Adds the stacks to the site of a thread that [`switch_out`] found blocked.
#[inline(always)]
pub fn stack_of_block(ctx: &BtfTracePointContext, t: &mut ThreadState, task: Typed) {
    if setting!(stacks) == 0 {
        return;
    }
    begin(t);
    stacks::of_block(ctx, t, &Registers::of(task));
    end(t);
}

/// `next` gets the CPU.
#[inline(always)]
pub fn switch_in(t: &mut ThreadState, now: u64) {
    begin(t);
    match t.state {
        // A seeded thread whose first event is this one waited for a CPU since it was seeded.
        thread_state::QUEUED | thread_state::SEEDED => {
            close(t, class::RUNQ, now);
        }
        thread_state::BLOCKED => {
            // Woken while its switch-out was under way on another CPU: it never really slept.
            let awake_since = if t.woken_ns != 0 { t.since_ns } else { now };
            end_block(t, awake_since);
            locks::gone(t);
            if t.woken_ns != 0 {
                close(t, class::RUNQ, now);
                t.woken_from = t.site.class + 1;
            } else {
                // How long it then waited for a CPU comes at the switch-out, see [`reconcile`].
                lose(if offset!(task_run_delay) == ABSENT {
                    Loss::WakeMissed
                } else {
                    Loss::WakeInferred
                });
                t.missed_wake_class = t.site.class + 1;
            }
        }
        _ => {
            lose(Loss::SwitchOutMissed);
            close_unaccounted(t, now);
        }
    }
    t.state = thread_state::ON_CPU;
    t.woken_ns = 0;
    if now >= t.promote_at_ns {
        promote(t, now);
    }
    end(t);
}

/// Gives a thread the histogram slot of its own process, once that has one.
#[inline(never)]
fn promote(t: &mut ThreadState, now: u64) {
    // SAFETY: the value is an integer written whole.
    match unsafe { PROCESS_SLOTS.get(&t.tgid) } {
        Some(slot) => {
            t.slot = *slot as u16;
            t.promote_at_ns = u64::MAX;
        }
        None => t.promote_at_ns = now + setting!(promote_after_ns),
    }
}

/// Whether a task is really off the run queue. Since 6.12 a sleeper may stay on it for a while
/// ("delayed dequeue").
#[inline(always)]
fn off_queue(task: Typed) -> bool {
    // An int until 7.2 and a byte since; its values are 0 to 2.
    if field::<u8>(task, offset!(task_on_rq)) == 0 {
        return true;
    }
    let delayed = offset!(task_sched_delayed);
    delayed != ABSENT && field::<u8>(task, delayed) != 0
}

/// `task` is about to become runnable; the current thread is the waker, unless an interrupt is.
#[inline(always)]
pub fn waking(t: &mut ThreadState, task: Typed) {
    if t.state == thread_state::ON_CPU {
        // Either it had not gone to sleep yet, or its switch-out is under way on another CPU. The
        // note is only read if the thread is then switched in again with no other wake-up seen.
        t.woken_ns = now_ns();
        fence(t);
    }
    match forgotten(&t.state) {
        thread_state::BLOCKED => {
            let now = now_ns();
            if wake_blocked(t, now) {
                locks::woken(t, now);
            }
        }
        thread_state::SEEDED if off_queue(task) => wake_seeded(t, task),
        _ => {}
    }
}

/// Ends a block; whether it was one on a futex that is a lock.
///
/// VERIFIER: this and [`wake_seeded`] are functions of their own so that what they keep on the stack is not
/// there while [`locks::woken`] walks another: 576 of the 512 bytes there may be, otherwise.
#[inline(never)]
fn wake_blocked(t: &mut ThreadState, now: u64) -> bool {
    begin(t);
    let class = t.site.class;
    let length = end_block(t, now);
    t.woken_from = class + 1;
    t.state = thread_state::QUEUED;
    end(t);
    match class {
        class::LOCK if t.site.detail_kind == detail::FUTEX => {
            record_waker(t, length);
            return true;
        }
        class::NET_SEND if t.file_sk != 0 => sockets::send_stalled(t.file_sk, length),
        _ => {}
    }
    false
}

/// Ends a block that began before the thread was seeded; its registers still tell where.
#[inline(never)]
fn wake_seeded(t: &mut ThreadState, task: Typed) {
    let now = now_ns();
    begin(t);
    t.runtime_ns = field(task, offset!(task_sum_exec_runtime));
    let state: u32 = field(task, offset!(task_state));
    find_site(t, task, state);
    end_block(t, now);
    t.state = thread_state::QUEUED;
    end(t);
}

/// A full fence on x86-64 (a locked addition, 5 ns): the note must be visible before the state is
/// read again, or this side and the switch-out could miss each other.
///
/// VERIFIER: it adds one, not zero: the compiler makes an atomic OR of an addition of zero, which
/// 5.10 does not know.
#[inline(always)]
fn fence(t: &mut ThreadState) {
    // SAFETY: a field of a live map value.
    unsafe { add(&raw mut t.fences, 1) };
}

/// A new thread is put on a run queue for the first time. Between its creation and this it was not
/// runnable: its parent was still at work on it, or waited for a CPU in the middle. Its life begins
/// here.
#[inline(always)]
pub fn wakeup_new(t: &mut ThreadState) {
    let now = now_ns();
    begin(t);
    t.start_ns = now;
    t.since_ns = now;
    end(t);
}
