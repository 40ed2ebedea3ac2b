//! User stacks, walked by the tables that user space compiles from `.eh_frame` and by frame
//! pointers where no table covers the code.
//!
//! The walk is two functions the verifier looks at once each, whoever calls them (global functions
//! of one integer, 5.6 and later): their state lies in a per-CPU element, not in arguments. One step
//! takes some 80 ns: it finds the mapping, the row in force and its rule, and reads two words.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    macros::map,
    maps::{Array, HashMap, PerCpuArray},
};
use perf_ebpf_common::{
    loss::Loss,
    signals::{
        RecordHeader,
        ledger::Returns,
        python::Python,
        record,
        stacks::{MAX_FRAMES, hash_start, hash_step},
        unwind::{
            BLOCK_WORDS, Block, EXACT, MAX_OBJECTS, MAX_RANGES, MAX_RULES, MAX_SPACES,
            MISS_INTERVAL_NS, Missed, Object, PAGE_SHIFT, PENDING, Range, Rule, Space, Stop, cfa,
            fp, rule_at,
        },
    },
};

use crate::{
    file::NO_WAKEUP,
    prelude::*,
    registers::UserRegisters,
    shared_maps::{EVENTS, GENERATED},
    signals::stacks::{SCRATCH, Scratch, Slot},
};

/// Space of each process that user space made one for, by tgid. A hash: process ids reach 4,194,304.
#[map(name = "unwind_processes")]
static PROCESSES: HashMap<u32, u32> = HashMap::with_max_entries(16384, 0);

#[map(name = "unwind_spaces")]
static SPACES: Array<Space> = Array::with_max_entries(MAX_SPACES, 0);

#[map(name = "unwind_objects")]
static OBJECTS: Array<Object> = Array::with_max_entries(MAX_OBJECTS, 0);

#[map(name = "unwind_rules")]
static RULES: Array<Rule> = Array::with_max_entries(MAX_RULES, 0);

/// Rows and indices of all objects: the memory bound of the tables. Its size is set at load.
#[map(name = "unwind_words")]
static WORDS: Array<Block> = Array::with_max_entries(1, 0);

/// Walks by [`Stop`].
#[map(name = "stack_walks")]
static WALKS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Stop::COUNT as u32, 0);

/// State of a walk.
#[repr(C)]
pub struct Walk {
    ip: u64,
    sp: u64,
    fp: u64,
    /// Content hash of the frames so far.
    pub hash: u64,
    /// Mapping found last: mostly the next frame's as well.
    start: u64,
    end: u64,
    origin: u64,
    object: u32,
    space: u32,
    pub tgid: u32,
    pub frames: u32,
    /// See [`Stop`].
    pub stop: u32,
    /// `ip` is no return address, but the very instruction.
    exact: u32,
    /// `ip` was found by frame pointers, which may be wrong.
    guessed: u32,
    /// arm64: the link register of the innermost frame is still to be used.
    has_link: u32,
    link: u64,
    /// Where the return addresses were, from the stack pointer the walk began with.
    pub returns: Returns,
    first_sp: u64,
    /// The code of the interpreter's loop, both 0 where there is none.
    eval_start: u64,
    eval_last: u64,
    /// Frames in it so far.
    pub evals: u64,
}

/// Frames taken in one call of a function.
const SOME_FRAMES: usize = 16;

/// The step has found the caller.
const GO_ON: u64 = u64::MAX;

/// Walks the user stack that begins at `regs`, into the scratch of `slot`.
#[inline(always)]
pub fn walk(scratch: &mut Scratch, tgid: u32, regs: &UserRegisters, slot: Slot) {
    let w = &mut scratch.walk;
    w.ip = regs.ip;
    w.sp = regs.sp;
    w.fp = regs.fp;
    w.link = regs.link;
    w.has_link = cfg!(bpf_target_arch = "aarch64") as u32;
    w.returns = Returns::NONE;
    w.first_sp = regs.sp;
    w.hash = hash_start(tgid);
    w.start = 0;
    w.end = 0;
    w.tgid = tgid;
    w.frames = 0;
    w.exact = 1;
    w.guessed = 0;
    w.evals = 0;
    (w.eval_start, w.eval_last) = match scratch.python.space {
        0 => (0, 0),
        space => python_at(space).map_or((0, 0), |python| {
            (
                python.eval_start,
                python.eval_start + python.eval_length - 1,
            )
        }),
    };
    // SAFETY: the value is an integer written whole.
    (w.space, w.stop) = match unsafe { PROCESSES.get(&tgid) } {
        Some(0) => (0, Stop::NoTables as u32),
        Some(space) => (*space, Stop::TooManyFrames as u32),
        None => (0, Stop::Pending as u32),
    };
    unwind_user(slot as u32);
    if let Some(count) = WALKS.get_ptr_mut(forgotten(&scratch.walk.stop)) {
        // SAFETY: a per-CPU element; the clock's interrupt may lose one count.
        unsafe { *count += 1 };
    }
}

/// The space of a process, if an interpreter is mapped in it, else 0.
#[inline(always)]
pub fn python_of(tgid: u32) -> u32 {
    // SAFETY: the value is an integer written whole.
    let Some(space) = (unsafe { PROCESSES.get(&tgid) }) else {
        return 0;
    };
    match python_at(*space) {
        Some(python) if python.eval_length != 0 => *space,
        _ => 0,
    }
}

/// Where things are in the interpreter of a space.
#[inline(always)]
pub fn python_at(space: u32) -> Option<&'static Python> {
    let space = SPACES.get_ptr(space)?;
    // SAFETY: a live map value, which is not changed while a process has it.
    Some(unsafe { &(*space).python })
}

/// A new process has its parent's mappings until it executes a program.
#[inline(always)]
pub fn forked(parent_tgid: u32, tgid: u32) {
    // SAFETY: the value is an integer written whole.
    if let Some(space) = unsafe { PROCESSES.get(&parent_tgid) } {
        let _ = PROCESSES.insert(&tgid, space, BPF_NOEXIST as u64);
    }
}

/// The process's mappings are gone.
#[inline(always)]
pub fn executed(tgid: u32) {
    let _ = PROCESSES.remove(&tgid);
}

/// All steps of a walk.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn unwind_user(slot: u32) -> u64 {
    for _ in 0..MAX_FRAMES / SOME_FRAMES + 1 {
        let stop = unwind_some(slot);
        if stop != GO_ON {
            if let Some(scratch) = SCRATCH.get_ptr_mut(slot) {
                // SAFETY: a per-CPU element of this program class.
                let w = unsafe { &mut (*scratch).walk };
                // What there are no tables for is not told apart further.
                if w.space != 0 {
                    w.stop = stop as u32;
                }
            }
            return 0;
        }
    }
    0
}

/// Some steps of a walk.
///
/// VERIFIER: which looks at as many instructions for 8 times 16 steps as for 24.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn unwind_some(slot: u32) -> u64 {
    for _ in 0..SOME_FRAMES {
        let stop = unwind_step(slot);
        if stop != GO_ON {
            return stop;
        }
    }
    GO_ON
}

/// Takes one frame and finds its caller; what ended the walk, or [`GO_ON`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn unwind_step(slot: u32) -> u64 {
    let Some(scratch) = SCRATCH.get_ptr_mut(slot) else {
        return Stop::BadRead as u64;
    };
    // SAFETY: a per-CPU element of this program class.
    let scratch = unsafe { &mut *scratch };
    let w = &mut scratch.walk;
    if w.frames as usize >= MAX_FRAMES {
        return Stop::TooManyFrames as u64;
    }
    // A return address points behind the call, which may be the last instruction of its function.
    let pc = w.ip - (w.exact == 0) as u64;
    let known = find_range(w, pc);
    if !known && w.frames != 0 && w.space != 0 {
        return no_mapping(w);
    }
    let frame = if w.exact != 0 && w.frames != 0 {
        w.ip | EXACT
    } else {
        w.ip
    };
    scratch.frames[opaque(w.frames as usize) & MAX_FRAMES] = frame;
    w.hash = hash_step(w.hash, frame);
    w.frames += 1;
    w.evals += at_most(w.eval_start, w.ip) & at_most(w.ip, w.eval_last) & 1;
    w.exact = 0;
    if !known && w.space != 0 {
        return no_mapping(w);
    }
    if w.object == PENDING {
        return Stop::Pending as u64;
    }
    match rule_of(w, pc) {
        Some(rule) if rule.cfa != cfa::NONE => by_rule(w, rule, pc),
        Some(_) => by_frame_pointer(w),
        None => Stop::NoRow as u64,
    }
}

/// Whether `pc` is in a mapping, which is then in `w`.
#[inline(always)]
fn find_range(w: &mut Walk, pc: u64) -> bool {
    if pc >= w.start && pc < w.end {
        return true;
    }
    w.object = 0;
    if w.space == 0 {
        return false;
    }
    let Some(space) = SPACES.get_ptr(w.space) else {
        return false;
    };
    // Unused ranges begin at the last address, so all are searched, without a branch on the count.
    let mut low = 0;
    let mut step = MAX_RANGES as u64 / 2;
    while step > 0 {
        // SAFETY: of a live map value.
        let start = unsafe { (*range_at(space, low + step)).start };
        low += step & at_most(start, pc);
        step /= 2;
    }
    // SAFETY: of a live map value.
    let range = unsafe { &*range_at(space, low) };
    let end = range.start.wrapping_add((range.pages as u64) << PAGE_SHIFT);
    if pc < range.start || pc >= end {
        return false;
    }
    w.start = range.start;
    w.end = end;
    w.origin = range.origin;
    w.object = range.object;
    true
}

/// All ones where `a <= b`, else 0, without a branch. Right where the two differ by less than 2^63:
/// user addresses, and what is past the last of them.
///
/// VERIFIER: of a comparison the compiler makes a branch, and the verifier follows both sides of
/// each step of a search (over 1,000,000 instructions).
#[inline(always)]
fn at_most(a: u64, b: u64) -> u64 {
    !(opaque((opaque(b.wrapping_sub(a) as usize) as i64 >> 63) as usize) as u64)
}

#[inline(always)]
fn range_at(space: *const Space, index: u64) -> *const Range {
    let index = opaque(index as usize) & (MAX_RANGES - 1);
    // SAFETY: masked to the array's length.
    unsafe { (&raw const (*space).ranges).cast::<Range>().add(index) }
}

/// The rule for an address in the mapping in `w`.
#[inline(always)]
fn rule_of(w: &Walk, pc: u64) -> Option<&'static Rule> {
    let number = if w.object == 0 {
        0
    } else {
        let object = OBJECTS.get(w.object)?;
        let word = |at: u32| {
            let block = WORDS.get_ptr(at / BLOCK_WORDS as u32)?;
            let index = opaque(at as usize) & (BLOCK_WORDS - 1);
            // SAFETY: masked to the array's length.
            Some(unsafe { *(&raw const (*block).words).cast::<u32>().add(index) })
        };
        rule_at(object, pc.wrapping_sub(w.origin), word, |a, b| {
            at_most(a.into(), b.into()) as u32
        })?
    };
    RULES.get(number)
}

/// Unwinds a frame by its rule.
#[inline(always)]
fn by_rule(w: &mut Walk, rule: &Rule, pc: u64) -> u64 {
    let offset = (rule.cfa_offset as i64 * 8) as u64;
    let extra = rule.extra as i64 as u64;
    let base = match rule.cfa {
        cfa::SP | cfa::DEREF_SP | cfa::PLT => w.sp,
        cfa::FP | cfa::DEREF_FP => w.fp,
        cfa::SIGNAL => return by_signal_frame(w),
        cfa::END => return Stop::Complete as u64,
        _ => return Stop::Unsupported as u64,
    };
    let mut frame = base.wrapping_add(offset);
    let mut return_address = frame.wrapping_sub(8);
    if rule.cfa == cfa::DEREF_SP || rule.cfa == cfa::DEREF_FP {
        let Some(word) = user::<u64>(frame) else {
            return Stop::BadRead as u64;
        };
        frame = word.wrapping_add(extra << 3);
        return_address = frame.wrapping_sub(8);
    } else if rule.cfa == cfa::PLT {
        if pc & 15 >= extra {
            frame = frame.wrapping_add(8);
        }
        return_address = frame.wrapping_sub(8);
    } else if cfg!(bpf_target_arch = "aarch64") {
        return_address = frame.wrapping_add(extra << 3);
    }
    let in_link = cfg!(bpf_target_arch = "aarch64") && extra == 0;
    // Only a leaf of arm64 may have a frame without a word.
    if frame < w.sp || (frame == w.sp && !in_link) {
        return Stop::CfaBackwards as u64;
    }
    let ip = if in_link {
        if w.has_link == 0 {
            return Stop::Unsupported as u64;
        }
        w.link
    } else {
        let Some(ip) = user::<u64>(return_address) else {
            return Stop::BadRead as u64;
        };
        remember(w, return_address);
        ip
    };
    let saved = match rule.fp {
        fp::SAME => 0,
        fp::AT_CFA => frame.wrapping_add((rule.fp_offset as i64 * 8) as u64),
        fp::AT_FP => w.fp.wrapping_add((rule.fp_offset as i64 * 8) as u64),
        // No frame below the first page: what needs it cannot be read.
        _ => {
            w.fp = 0;
            0
        }
    };
    if saved != 0 {
        let Some(word) = user::<u64>(saved) else {
            return Stop::BadRead as u64;
        };
        w.fp = word;
    }
    w.guessed = 0;
    go_to(w, ip, frame)
}

/// Remembers where the return address of the frame taken last is, for the memo. A place too far up
/// for it is left out.
#[inline(always)]
fn remember(w: &mut Walk, address: u64) {
    let word = address.wrapping_sub(w.first_sp) >> 3;
    let frame = opaque(w.frames.wrapping_sub(1) as usize);
    if word < Returns::WORDS as u64 && frame < Returns::FRAMES {
        w.returns.places[frame] = word as u8;
        if w.returns.words <= word as u8 {
            w.returns.words = word as u8 + 1;
        }
    }
}

/// Goes to the caller.
#[inline(always)]
fn go_to(w: &mut Walk, ip: u64, sp: u64) -> u64 {
    w.has_link = 0;
    w.sp = sp;
    w.ip = without_signature(ip);
    if w.ip == 0 {
        return Stop::Complete as u64;
    }
    GO_ON
}

/// Unwinds a frame by its frame pointer: on both architectures it points at the caller's, and the
/// return address lies above.
#[inline(always)]
fn by_frame_pointer(w: &mut Walk) -> u64 {
    if w.fp == 0 && w.frames > 1 {
        // What ends a chain of frame pointers by convention.
        return Stop::Complete as u64;
    }
    let Some([fp, ip]) = user::<[u64; 2]>(w.fp) else {
        return Stop::NoRow as u64;
    };
    let sp = w.fp.wrapping_add(16);
    if sp <= w.sp {
        return Stop::NoRow as u64;
    }
    remember(w, w.fp.wrapping_add(8));
    w.fp = fp;
    w.guessed = 1;
    go_to(w, ip, sp)
}

/// Unwinds the trampoline a signal handler returns to: the kernel put the interrupted registers
/// where the stack pointer is (`struct rt_sigframe` in the kernel's `signal.c`).
#[inline(always)]
fn by_signal_frame(w: &mut Walk) -> u64 {
    // x86-64: `uc_mcontext` of the `ucontext` at the stack pointer. arm64: a `siginfo` of 128 bytes,
    // then a `ucontext` whose registers begin 184 bytes in, behind the fault address.
    #[cfg(bpf_target_arch = "x86_64")]
    let (fp, sp, ip) = (120, 160, 168);
    #[cfg(bpf_target_arch = "aarch64")]
    let (fp, sp, ip) = (312 + 29 * 8, 312 + 31 * 8, 312 + 32 * 8);
    let (Some(fp), Some(sp), Some(ip)) = (
        user::<u64>(w.sp.wrapping_add(fp)),
        user::<u64>(w.sp.wrapping_add(sp)),
        user::<u64>(w.sp.wrapping_add(ip)),
    ) else {
        return Stop::BadRead as u64;
    };
    w.fp = fp;
    // The handler may have had a stack of its own, so this one may lie anywhere.
    w.sp = sp;
    w.ip = ip;
    w.exact = 1;
    w.has_link = 0;
    w.guessed = 0;
    GO_ON
}

/// An address without the signature that arm64's pointer authentication puts into its high bits.
#[inline(always)]
fn without_signature(ip: u64) -> u64 {
    if cfg!(bpf_target_arch = "aarch64") {
        ip & ((1 << 48) - 1)
    } else {
        ip
    }
}

/// Tells user space, so that it reads the mappings again.
#[inline(always)]
fn no_mapping(w: &Walk) -> u64 {
    if w.guessed != 0 {
        return Stop::NoRow as u64;
    }
    let Some(space) = SPACES.get_ptr_mut(w.space) else {
        return Stop::NoMapping as u64;
    };
    let now = now_ns();
    // SAFETY: a live map value; of two CPUs that race here both may tell.
    let missed_ns = unsafe { &mut (*space).missed_ns };
    if now.wrapping_sub(*missed_ns) < MISS_INTERVAL_NS {
        return Stop::NoMapping as u64;
    }
    *missed_ns = now;
    let record = Missed {
        header: RecordHeader {
            kind: record::UNWIND_MISSED,
            pad: 0,
            at_ns: now,
        },
        address: w.ip,
        tgid: w.tgid,
        pad: 0,
    };
    if let Some(count) = GENERATED.get_ptr_mut(record::UNWIND_MISSED) {
        // SAFETY: a per-CPU element.
        unsafe { *count += 1 };
    }
    if EVENTS.output::<Missed>(&record, NO_WAKEUP).is_err() {
        lose(Loss::RingFull);
    }
    Stop::NoMapping as u64
}
