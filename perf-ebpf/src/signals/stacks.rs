//! Stacks of blocks and of CPU samples: walked, sent once by content, and remembered per thread.
//!
//! A walk costs 0.4 to 1.5 µs a side; a thread that blocks at the same user instruction, stack
//! pointer and system call as before, with the same return addresses where the walk found them, has
//! the same stack, so a memo of eight places a thread answers nearly always. A random share is walked
//! all the same and the mismatches are counted.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::generated::{bpf_get_stack, bpf_ringbuf_output},
    macros::map,
    maps::{HashMap, PerCpuArray},
};
use perf_ebpf_common::{
    class,
    loss::Loss,
    signals::{
        RecordHeader,
        ledger::{MEMO_SLOTS, Returns, StackMemo, ThreadState},
        python::MAX_PYTHON_FRAMES,
        record,
        stacks::{MAX_FRAMES, MemoStats, StackRecord, hash_start, hash_step},
        unwind::Stop,
    },
};

use crate::{
    file::NO_WAKEUP,
    prelude::*,
    registers::{Registers, UserRegisters},
    shared_maps::{EVENTS, GENERATED, SCHEDULE},
    signals::{
        python::{self, PythonWalk},
        unwind::{self, Walk},
    },
};

/// A stack record with room for every frame.
#[repr(C)]
pub struct Scratch {
    record: StackRecord,
    // Room for the interpreter's frames behind the others; of each one more than is ever filled, so
    // that a masked index stays inside.
    pub frames: [u64; MAX_FRAMES + 1 + 2 * (MAX_PYTHON_FRAMES + 1)],
    pub walk: Walk,
    pub python: PythonWalk,
    /// Place of the memo that answers.
    remembered: u64,
    /// See [`print_of`].
    returns: Returns,
}

/// One slot for each program class that walks: the CPU clock may interrupt the others.
#[map(name = "stack_scratch")]
pub static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(4, 0);

/// Stacks sent already, by content hash.
#[map(name = "stack_seen")]
static SEEN: HashMap<u64, u8> = HashMap::with_max_entries(32768, 0);

#[map(name = "memo_stats")]
static STATS: PerCpuArray<MemoStats> = PerCpuArray::with_max_entries(1, 0);

/// Scratch slot of a program class.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Slot {
    Scheduler = 0,
    CpuClock = 1,
    Memory = 2,
    Uprobe = 3,
}

/// Whether stacks of a class repeat at one place of a thread, so that the memo may answer. Blocks
/// on storage and in faults reach the scheduler by many kernel paths from one system call, are
/// rare and last long: they are walked each time.
#[inline(always)]
const fn repeats(class: u8) -> bool {
    !matches!(class, class::DISK | class::FAULT | class::OTHER)
}

/// Fills the stacks of the open site.
#[inline(always)]
pub fn of_block(ctx: &BtfTracePointContext, t: &mut ThreadState, regs: &Registers) {
    let Some(stats) = STATS.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: a per-CPU element of this program class.
    let stats = unsafe { &mut *stats };
    let class = forgotten(&t.site.class);
    let sp = regs.sp();
    let key = key_of(t, t.site.nr as u64, regs);
    let Some(scratch) = SCRATCH.get_ptr_mut(Slot::Scheduler as u32) else {
        return;
    };
    // SAFETY: a per-CPU element of this program class.
    let scratch = unsafe { &mut *scratch };
    let remembered = if repeats(class) {
        recall(scratch, t, key, sp)
    } else {
        None
    };
    if let Some((_, kernel_stack, user_stack)) = remembered {
        stats.hits += 1;
        t.site.kernel_stack = kernel_stack;
        t.site.user_stack = user_stack;
        // The low bits of the interval's length are as good as random and cost nothing.
        if (t.last_ns ^ (t.last_ns >> 7)) as u32 & (setting!(memo_check_one_in) - 1) != 0 {
            return;
        }
        stats.checked += 1;
    } else {
        stats.walks += 1;
    }
    let context = ctx_ptr(ctx);
    let kernel_stack = walk_kernel(context, Slot::Scheduler);
    let (user_stack, partial) = walk_user(t.tid, t.tgid, &regs.user(), Slot::Scheduler);
    t.site.kernel_stack = kernel_stack;
    t.site.user_stack = user_stack;
    if let Some((slot, kernel_before, user_before)) = remembered {
        if (kernel_before, user_before) == (kernel_stack, user_stack) {
            return;
        }
        stats.mismatched += 1;
        // In its place: the first that fits is taken.
        t.memo_next = slot;
    }
    if repeats(class) && !partial {
        remember(scratch, t, key, sp, (kernel_stack, user_stack));
    }
}

/// Slot, kernel and user stack remembered for a key, if the return addresses are still the same.
#[inline(always)]
fn recall(scratch: &mut Scratch, t: &ThreadState, key: u64, sp: u64) -> Option<(u8, u64, u64)> {
    scratch.remembered = MEMO_SLOTS as u64;
    for (slot, memo) in t.memo.iter().enumerate() {
        if memo.key != key {
            continue;
        }
        scratch.returns = memo.returns;
        if print_of(Slot::Scheduler as u32, sp) == memo.print {
            scratch.remembered = slot as u64;
            break;
        }
    }
    // VERIFIER: read back, so that what follows is looked at once and not for each place.
    // And masked, as 5.10 forgets a comparison made on a copy in another register.
    let slot = forgotten(&scratch.remembered) as usize;
    if slot >= MEMO_SLOTS {
        return None;
    }
    let memo = &t.memo[opaque(slot) & (MEMO_SLOTS - 1)];
    Some((slot as u8, memo.kernel_stack, memo.user_stack))
}

/// Remembers a kernel and a user stack, which were just walked.
#[inline(always)]
fn remember(
    scratch: &mut Scratch,
    t: &mut ThreadState,
    key: u64,
    sp: u64,
    (kernel_stack, user_stack): (u64, u64),
) {
    let returns = scratch.walk.returns;
    scratch.returns = returns;
    let print = print_of(Slot::Scheduler as u32, sp);
    if print == UNREADABLE {
        return;
    }
    let slot = opaque(t.memo_next as usize) & (MEMO_SLOTS - 1);
    t.memo_next = slot as u8 + 1;
    t.memo[slot] = StackMemo {
        key,
        kernel_stack,
        user_stack,
        print,
        returns,
    };
}

/// What [`print_of`] gives for words that could not be read.
const UNREADABLE: u64 = 0;

/// Mixes the words at `returns` of the current thread's user stack. One read of all that may be
/// looked at, and no branch: 80 ns, where a read a word would take 25 ns each.
///
/// VERIFIER: a global function, looked at once and by itself, and not for each place of a memo: 8,000 of
/// the 65,000 instructions of `sched_switch`, 13,000 of the 45,000 of `sched_waking`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn print_of(slot: u32, sp: u64) -> u64 {
    let Some(scratch) = SCRATCH.get_ptr_mut(slot) else {
        return UNREADABLE;
    };
    // SAFETY: a per-CPU element of this program class.
    let scratch = unsafe { &mut *scratch };
    let returns = scratch.returns;
    let to = (&raw mut scratch.frames).cast();
    let bytes = (returns.words as usize & Returns::WORDS) as u32 * 8;
    // SAFETY: less than the room there is.
    if bytes != 0 && !unsafe { copy_user(to, bytes, sp) } {
        return UNREADABLE;
    }
    scratch.frames[Returns::WORDS] = 0;
    let mut print = 0;
    for place in returns.places {
        print = hash_step(print, scratch.frames[place as usize & Returns::WORDS]);
    }
    print | 1
}

/// The user stack at which the current thread wakes another out of a futex, from the memo too.
#[inline(always)]
pub fn of_release(t: &mut ThreadState, regs: &Registers) -> u64 {
    /// One instruction makes all system calls in some programs: a block there has another entry.
    const RELEASE: u64 = 1 << 32;
    let Some(scratch) = SCRATCH.get_ptr_mut(Slot::Scheduler as u32) else {
        return 0;
    };
    // SAFETY: a per-CPU element of this program class.
    let scratch = unsafe { &mut *scratch };
    let sp = regs.sp();
    let key = key_of(t, RELEASE | regs.nr() as u64, regs);
    if let Some((_, _, user_stack)) = recall(scratch, t, key, sp) {
        return user_stack;
    }
    let (user_stack, partial) = walk_user(t.tid, t.tgid, &regs.user(), Slot::Scheduler);
    if !partial {
        remember(scratch, t, key, sp, (0, user_stack));
    }
    user_stack
}

/// Key of the memo, for a system call; walks the frames of an interpreter.
#[inline(always)]
fn key_of(t: &ThreadState, call: u64, regs: &Registers) -> u64 {
    let mut key = hash_step(hash_step(call, regs.ip()), regs.sp());
    // One native stack may be many Python ones.
    let python = begin_python(t.tid, t.tgid, Slot::Scheduler);
    if python != 0 {
        key = hash_step(key, python);
    }
    key | 1
}

#[inline(always)]
fn ctx_ptr(ctx: &BtfTracePointContext) -> *mut c_void {
    use aya_ebpf::EbpfContext as _;
    ctx.as_ptr()
}

/// Walks the current thread's kernel stack. Returns the content hash, 0 where there is none.
#[inline(always)]
pub fn walk_kernel(ctx: *mut c_void, slot: Slot) -> u64 {
    let Some(scratch) = SCRATCH.get_ptr_mut(slot as u32) else {
        return 0;
    };
    // The first two frames of a tracepoint program's kernel stack are the program and its caller
    // `bpf_trace_runN`, which calls from another place while run-time statistics are on: two walks
    // of one stack would differ in them.
    let skip = match slot {
        Slot::Scheduler | Slot::Memory => 2,
        Slot::CpuClock | Slot::Uprobe => 0,
    };
    // SAFETY: a per-CPU element of this program class.
    let mut bytes = frames_of(unsafe { &mut *scratch }, ctx, skip);
    if slot as u32 == Slot::Scheduler as u32 {
        // SAFETY: as above.
        let more = before_schedule(unsafe { &*scratch });
        if more != 0 {
            // SAFETY: as above.
            bytes = frames_of(unsafe { &mut *scratch }, ctx, skip + more);
        }
    }
    if bytes <= 0 {
        if bytes < 0 {
            lose(Loss::KernelStackFailed);
        }
        return 0;
    }
    // SAFETY: a per-CPU element of this program class.
    let scratch = unsafe { &mut *scratch };
    scratch.record.frames = (bytes as usize / 8) as u16;
    scratch.record.python = 0;
    scratch.record.stop = Stop::Complete as u8;
    let hash = kernel_stack_hash(slot as u32);
    send(slot as u32, 0, hash);
    hash
}

/// The kernel's frames of the current thread; their bytes, or an error below zero.
#[inline(always)]
fn frames_of(scratch: &mut Scratch, ctx: *mut c_void, skip: u64) -> i64 {
    // SAFETY: the buffer is MAX_FRAMES words of the scratch.
    unsafe {
        bpf_get_stack(
            ctx,
            (&raw mut scratch.frames).cast(),
            (MAX_FRAMES * 8) as u32,
            skip,
        )
    }
}

/// How many frames are between the tracepoint's program and `__schedule`: one more while there is another
/// program on the tracepoint (`__traceiter_sched_switch`), so that a tracer that comes or goes would change
/// every stack (seen: half of the remembered ones "wrong" until the end of a trace).
#[inline(always)]
fn before_schedule(scratch: &Scratch) -> u64 {
    let Some(schedule) = SCHEDULE.get(0) else {
        return 0;
    };
    for more in 0..3 {
        let frame = scratch.frames[more];
        if frame >= schedule.start && frame < schedule.end {
            return more as u64;
        }
    }
    0
}

/// Walks the frames of an interpreter, see [`python::begin`]; before [`walk_user`].
#[inline(always)]
pub fn begin_python(tid: u32, tgid: u32, slot: Slot) -> u64 {
    let Some(scratch) = SCRATCH.get_ptr_mut(slot as u32) else {
        return 0;
    };
    // SAFETY: a per-CPU element of this program class.
    python::begin(unsafe { &mut *scratch }, tid, tgid, slot)
}

/// Walks a user stack of the current thread. Returns the content hash, and whether a later walk may
/// find more.
#[inline(always)]
pub fn walk_user(tid: u32, tgid: u32, regs: &UserRegisters, slot: Slot) -> (u64, bool) {
    if regs.ip == 0 {
        // There is none: a thread of the kernel's.
        return (0, false);
    }
    let Some(scratch) = SCRATCH.get_ptr_mut(slot as u32) else {
        return (0, false);
    };
    // SAFETY: a per-CPU element of this program class.
    let scratch = unsafe { &mut *scratch };
    unwind::walk(scratch, tgid, regs, slot);
    let stop = forgotten(&scratch.walk.stop);
    let hash = forgotten(&scratch.walk.hash);
    let (hash, begun) = python::add(scratch, tid, hash, slot);
    scratch.record.frames = forgotten(&scratch.walk.frames) as u16;
    scratch.record.python = forgotten(&scratch.python.frames) as u8;
    scratch.record.stop = stop as u8;
    send(slot as u32, tgid, hash);
    let partial = stop == Stop::Pending as u32 || stop == Stop::NoMapping as u32;
    (hash, partial || !begun)
}

/// Hashes the kernel's frames that were walked into this slot.
///
/// VERIFIER: a global function, which is looked at once and by itself. Inlined, a loop that ends at the last
/// frame leaves one path for each number of frames, each of which goes on to the end of the program (over
/// 1,000,000 instructions), and one over all of `MAX_FRAMES` was a third of `sched_switch`: 36 ms at every
/// attach, and 250 ns a walk.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn kernel_stack_hash(slot: u32) -> u64 {
    let Some(scratch) = SCRATCH.get_ptr_mut(slot) else {
        return 0;
    };
    // SAFETY: a per-CPU element of this program class.
    let scratch = unsafe { &*scratch };
    let frames = scratch.record.frames as usize;
    let mut hash = hash_start(0);
    for i in 0..MAX_FRAMES {
        if i >= frames {
            break;
        }
        hash = hash_step(hash, scratch.frames[opaque(i) & MAX_FRAMES]);
    }
    hash
}

/// Sends the stack that was walked into this slot if it is new.
#[inline(always)]
fn send(slot: u32, tgid: u32, hash: u64) {
    if SEEN.get_ptr(&hash).is_none() {
        send_stack(slot, tgid, hash);
    }
}

/// Sends the stack that was walked into this slot.
///
/// VERIFIER: a global function, as `kernel_stack_hash`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn send_stack(slot: u32, tgid: u32, hash: u64) -> u64 {
    let Some(scratch) = SCRATCH.get_ptr_mut(slot) else {
        return 0;
    };
    // SAFETY: a per-CPU element of this program class.
    let scratch = unsafe { &mut *scratch };
    let frames = scratch.record.frames;
    let python = scratch.record.python;
    let stop = scratch.record.stop;
    scratch.record = StackRecord {
        header: RecordHeader {
            kind: record::STACK,
            pad: 0,
            at_ns: now_ns(),
        },
        id: hash,
        tgid,
        frames,
        python,
        stop,
    };
    if SEEN.insert(&hash, &1, BPF_NOEXIST as u64).is_err() {
        // Unless another CPU was first and sends it.
        if SEEN.get_ptr(&hash).is_none() {
            lose(Loss::StackSeenFull);
        }
        return 0;
    }
    if let Some(count) = GENERATED.get_ptr_mut(record::STACK) {
        // SAFETY: a per-CPU element.
        unsafe { *count += 1 };
    }
    // VERIFIER: the length is masked, not compared: a comparison made on a copy in another register
    // is forgotten by 5.10.
    let native = (frames as u64 & MAX_FRAMES as u64) * 8;
    let interpreted = (python as u64 & MAX_PYTHON_FRAMES as u64) * 8;
    if interpreted != 0 {
        // SAFETY: there is room for all of both.
        unsafe {
            let to = (&raw mut scratch.frames).byte_add(native as usize);
            copy(
                to.cast(),
                (&raw const scratch.python.words).cast(),
                interpreted as u32,
            );
            let to = (&raw mut scratch.frames)
                .byte_add(native as usize)
                .byte_add(interpreted as usize);
            copy(
                to.cast(),
                (&raw const scratch.python.prints).cast(),
                interpreted as u32,
            );
        }
    }
    let length = size_of::<StackRecord>() as u64 + native + 2 * interpreted;
    // SAFETY: at most the whole scratch.
    let result = unsafe {
        bpf_ringbuf_output(
            (&raw const EVENTS).cast_mut().cast(),
            (&raw mut *scratch).cast(),
            length,
            NO_WAKEUP,
        )
    };
    if result != 0 {
        lose(Loss::RingFull);
        // Not sent: the next one with this content tries again.
        let _ = SEEN.remove(&hash);
    }
    0
}
