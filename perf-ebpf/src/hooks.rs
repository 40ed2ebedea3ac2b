//! Entry points, one a hook: the filter first, then the signals that want the event. The oldest
//! kernel each is known to work on stands beside it.

use aya_ebpf::{
    helpers::generated::bpf_get_current_pid_tgid,
    macros::{btf_tracepoint, perf_event, uprobe, uretprobe},
    programs::{BtfTracePointContext, PerfEventContext, ProbeContext, RetProbeContext},
};
use aya_log_ebpf::debug;
use perf_ebpf_common::signals::{ledger::ListenerKey, sockets::direction, tls::call};

use crate::{
    file::LISTENERS,
    prelude::*,
    registers::Registers,
    signals::{
        allocations, block_io, cpu, ledger, lifecycle, locks, memory,
        sockets::{self, tcp},
        syscalls, tls,
    },
};

/// Thread id of the current task, in the initial namespace.
#[inline(always)]
fn current_tid() -> u32 {
    // SAFETY: no arguments.
    (unsafe { bpf_get_current_pid_tgid() }) as u32
}

/// 5.10: `(bool preempt, prev, next)`, a fourth argument since 5.18 unused here.
#[btf_tracepoint(function = "sched_switch")]
pub fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    let prev: Typed = ctx.arg(1);
    let next: Typed = ctx.arg(2);
    let prev_tid: u32 = field(prev, offset!(task_pid));
    let next_tid: u32 = field(next, offset!(task_pid));
    let mut now = 0;
    // The idle task is half of the switches of a machine that is not busy: not looked up.
    if prev_tid != 0
        && let Some(t) = ledger::thread(prev_tid)
    {
        now = now_ns();
        if ledger::switch_out(t, prev, ctx.arg(0), now) {
            ledger::blocked(t, prev, now);
            ledger::stack_of_block(&ctx, t, prev);
            locks::owner_is_read(t, now);
        }
    }
    // VERIFIER: looked up behind all that, which is otherwise looked at twice: with it and without it.
    if next_tid != 0
        && let Some(t) = ledger::thread(next_tid)
    {
        // One moment for both.
        ledger::switch_in(t, if now == 0 { now_ns() } else { now });
    }
    0
}

/// 5.10.
#[btf_tracepoint(function = "sched_waking")]
pub fn sched_waking(ctx: BtfTracePointContext) -> i32 {
    let task: Typed = ctx.arg(0);
    if let Some(t) = ledger::thread(field(task, offset!(task_pid))) {
        ledger::waking(t, task);
    }
    0
}

/// 5.10.
#[btf_tracepoint(function = "sched_wakeup_new")]
pub fn sched_wakeup_new(ctx: BtfTracePointContext) -> i32 {
    let task: Typed = ctx.arg(0);
    if let Some(t) = ledger::thread(field(task, offset!(task_pid))) {
        ledger::wakeup_new(t);
    }
    0
}

/// 5.10: `(parent, child)`.
#[btf_tracepoint(function = "sched_process_fork")]
pub fn sched_process_fork(ctx: BtfTracePointContext) -> i32 {
    if let Some(parent) = ledger::thread(current_tid()) {
        let child: Typed = ctx.arg(1);
        lifecycle::fork(parent, child);
        if setting!(debug) != 0 {
            debug!(
                &ctx,
                "thread {} started by {}",
                field::<u32>(child, offset!(task_pid)),
                parent.tid
            );
        }
    }
    0
}

/// 5.10: `(task, old_pid, bprm)`.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn sched_process_exec(ctx: BtfTracePointContext) -> i32 {
    let task: Typed = ctx.arg(0);
    let old_tid = ctx.arg::<u64>(1) as u32;
    lifecycle::exec(task, old_tid);
    if setting!(debug) != 0 && ledger::thread(field(task, offset!(task_pid))).is_some() {
        debug!(&ctx, "exec by thread {}", old_tid);
    }
    0
}

/// 5.10: `(sk, old state, new state)`. Keeps the set of listening ports, and times connects.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn inet_sock_set_state(ctx: BtfTracePointContext) -> i32 {
    const TCP_LISTEN: u32 = 10;
    let sk: Typed = ctx.arg(0);
    let state = ctx.arg::<u64>(2) as u32;
    if state != TCP_LISTEN {
        tcp::state(sk as u64, state, ledger::thread(current_tid()).is_some());
        return 0;
    }
    let net: Typed = field(sk, offset!(sock_net));
    let key = ListenerKey {
        netns: field(net, offset!(net_inum)),
        port: field::<u16>(sk, offset!(sock_num)) as u32,
    };
    if LISTENERS.insert(&key, &1, 0).is_err() {
        lose(perf_ebpf_common::loss::Loss::ListenersFull);
    }
    0
}

/// 5.10, while the syscalls signal is attached: `(regs, nr)`.
#[btf_tracepoint(function = "sys_enter")]
pub fn sys_enter(ctx: BtfTracePointContext) -> i32 {
    if let Some(t) = ledger::thread(current_tid()) {
        syscalls::enter(t, ctx.arg(1));
    }
    0
}

/// 5.10, while the syscalls signal is attached: `(regs, result)`.
#[btf_tracepoint(function = "sys_exit")]
pub fn sys_exit(ctx: BtfTracePointContext) -> i32 {
    if let Some(t) = ledger::thread(current_tid()) {
        let regs: Typed = ctx.arg(0);
        let nr: i32 = field(regs, offset!(regs_nr));
        syscalls::exit(t, nr, ctx.arg::<u64>(1) as i64);
    }
    0
}

/// 6.3: `(sk, result, flags)`.
#[btf_tracepoint(function = "sock_send_length")]
pub fn sock_send_length(ctx: BtfTracePointContext) -> i32 {
    socket_moved(&ctx, direction::SENT)
}

/// 6.3: `(sk, result, flags)`.
#[btf_tracepoint(function = "sock_recv_length")]
pub fn sock_recv_length(ctx: BtfTracePointContext) -> i32 {
    socket_moved(&ctx, direction::RECEIVED)
}

#[inline(always)]
fn socket_moved(ctx: &BtfTracePointContext, to: u8) -> i32 {
    let result = ctx.arg::<u64>(1) as u32 as i32;
    // Before the filter: what would have blocked fires too, once for each receive of PostgreSQL.
    if result <= 0 {
        return 0;
    }
    if let Some(t) = ledger::thread(current_tid()) {
        sockets::moved(t, ctx.arg(0), result as u64, ctx.arg(2), to);
    }
    0
}

/// 5.10: `(regs, result)`, where the kernel lacks the two hooks above.
#[btf_tracepoint(function = "sys_exit")]
pub fn sys_exit_sockets(ctx: BtfTracePointContext) -> i32 {
    if let Some(t) = ledger::thread(current_tid()) {
        let regs = Registers::at(ctx.arg(0));
        sockets::returned(t, &regs, ctx.arg::<u64>(1) as i64);
    }
    0
}

/// 5.10: `(sk)`.
#[btf_tracepoint(function = "tcp_destroy_sock")]
pub fn tcp_destroy_sock(ctx: BtfTracePointContext) -> i32 {
    tcp::destroyed(ctx.arg::<u64>(0));
    0
}

/// 5.10: `(sk, skb)`, a third argument since 6.15.
#[btf_tracepoint(function = "tcp_retransmit_skb")]
pub fn tcp_retransmit_skb(ctx: BtfTracePointContext) -> i32 {
    tcp::retransmitted(ctx.arg::<u64>(0));
    0
}

/// 5.10: `(sk)`: the peer reset the connection.
#[btf_tracepoint(function = "tcp_receive_reset")]
pub fn tcp_receive_reset(ctx: BtfTracePointContext) -> i32 {
    tcp::reset(ctx.arg::<u64>(0));
    0
}

/// 5.10: `(sk, skb)`: this end reset it. The socket may be null.
#[btf_tracepoint(function = "tcp_send_reset")]
pub fn tcp_send_reset(ctx: BtfTracePointContext) -> i32 {
    tcp::reset(ctx.arg::<u64>(0));
    0
}

/// The request argument of a block tracepoint: before 5.11 the queue came first.
macro_rules! request {
    ($ctx:ident) => {
        if setting!(rq_is_second_arg) != 0 {
            $ctx.arg(1)
        } else {
            $ctx.arg::<Typed>(0)
        }
    };
}

/// 5.10.
#[btf_tracepoint(function = "block_rq_insert")]
pub fn block_rq_insert(ctx: BtfTracePointContext) -> i32 {
    let slot = ledger::thread(current_tid()).map(|t| t.slot as u32);
    block_io::inserted(slot, request!(ctx));
    0
}

/// 5.10.
#[btf_tracepoint(function = "block_rq_issue")]
pub fn block_rq_issue(ctx: BtfTracePointContext) -> i32 {
    if let Some(t) = ledger::thread(current_tid()) {
        block_io::issued(t, request!(ctx));
    }
    0
}

/// 5.10: the request that goes into another.
#[btf_tracepoint(function = "block_rq_merge")]
pub fn block_rq_merge(ctx: BtfTracePointContext) -> i32 {
    block_io::merged(request!(ctx));
    0
}

/// 5.10: `(request, error, bytes)`.
#[btf_tracepoint(function = "block_rq_complete")]
pub fn block_rq_complete(ctx: BtfTracePointContext) -> i32 {
    block_io::complete(ctx.arg(0), ctx.arg::<u64>(1) as u32 != 0);
    0
}

/// 5.10: `(mm, member, count)`, without the count since 6.2. Before 6.2 once for each 64 page faults
/// of a thread, since then for each: 70 ns more of somebody else's, 160 of the target's (116 here).
#[btf_tracepoint(function = "rss_stat")]
pub fn rss_stat(ctx: BtfTracePointContext) -> i32 {
    let member = ctx.arg::<u64>(1) as u32;
    if !memory::is_counted(member) {
        return 0;
    }
    if let Some(t) = ledger::thread(current_tid()) {
        memory::counted(t, ctx.arg(0), member);
    }
    0
}

/// 5.10: a software clock on each CPU.
#[perf_event]
pub fn cpu_clock(ctx: PerfEventContext) -> u32 {
    cpu::sample(&ctx);
    0
}

/// 5.10: `SSL_read` of OpenSSL begins.
#[uprobe]
pub fn tls_read(ctx: ProbeContext) -> u32 {
    if let Some(t) = ledger::thread(current_tid()) {
        tls::enter(t, &ctx, call::READ, false);
    }
    0
}

/// 5.10: `SSL_read_ex` of OpenSSL begins.
#[uprobe]
pub fn tls_read_ex(ctx: ProbeContext) -> u32 {
    if let Some(t) = ledger::thread(current_tid()) {
        tls::enter(t, &ctx, call::READ, true);
    }
    0
}

/// 5.10: `SSL_write` of OpenSSL begins.
#[uprobe]
pub fn tls_write(ctx: ProbeContext) -> u32 {
    if let Some(t) = ledger::thread(current_tid()) {
        tls::enter(t, &ctx, call::WRITE, false);
    }
    0
}

/// 5.10: `SSL_write_ex` of OpenSSL begins.
#[uprobe]
pub fn tls_write_ex(ctx: ProbeContext) -> u32 {
    if let Some(t) = ledger::thread(current_tid()) {
        tls::enter(t, &ctx, call::WRITE, true);
    }
    0
}

/// 5.10: one of the four returns.
#[uretprobe]
pub fn tls_return(ctx: RetProbeContext) -> u32 {
    if let Some(t) = ledger::thread(current_tid()) {
        tls::leave(t, &ctx);
    }
    0
}

/// 5.10: `malloc(size)`.
#[uprobe]
pub fn alloc_malloc(ctx: ProbeContext) -> u32 {
    allocations::begin(&ctx, ctx.arg(0).unwrap_or(0));
    0
}

/// 5.10: `calloc(number, size)`. One that overflows is refused and returns nothing.
#[uprobe]
pub fn alloc_calloc(ctx: ProbeContext) -> u32 {
    let (number, size): (u64, u64) = (ctx.arg(0).unwrap_or(0), ctx.arg(1).unwrap_or(0));
    allocations::begin(&ctx, number.wrapping_mul(size));
    0
}

/// 5.10: `realloc(address, size)`: what was there is freed, though it may stay where it is. Without an
/// address glibc calls its `malloc`, which has a probe of its own.
#[uprobe]
pub fn alloc_realloc(ctx: ProbeContext) -> u32 {
    let address = ctx.arg(0).unwrap_or(0);
    if address != 0 {
        allocations::free(address);
        allocations::begin(&ctx, ctx.arg(1).unwrap_or(0));
    }
    0
}

/// 5.10: `free(address)`.
#[uprobe]
pub fn alloc_free(ctx: ProbeContext) -> u32 {
    allocations::free(ctx.arg(0).unwrap_or(0));
    0
}

/// 5.10: one of the three that allocate returns.
#[uretprobe]
pub fn alloc_return(ctx: RetProbeContext) -> u32 {
    allocations::end(&ctx);
    0
}
