//! Frames of CPython, read from the interpreter's own list of them.
//!
//! A thread's list is found once, by its `pthread_self()`, and remembered. Two chains of Python calls
//! can share one native stack, so the list is walked for every stack of a process with an
//! interpreter; what the native walk would find is still remembered beside it. As in [`super::unwind`]
//! each step is a function that the verifier looks at once.

use core::ffi::c_void;

use aya_ebpf::{
    helpers::generated::{bpf_get_current_task, bpf_probe_read_user},
    macros::map,
    maps::{LruHashMap, PerCpuArray},
};
use perf_ebpf_common::{
    offsets::ABSENT,
    signals::{
        python::{
            CODE_NAMES, ENTRY, FRAME_BYTES, MAX_PYTHON_FRAMES, NO_FIELD, OWNED_BY_C_STACK, Python,
            Stop, UNIT_MAX, code_print, entry, parts, word,
        },
        stacks::hash_step,
    },
};

use crate::{
    prelude::*,
    signals::{
        stacks::{SCRATCH, Scratch, Slot},
        unwind::python_of,
    },
};

/// The interpreter's state of each thread, by thread id. One that is forgotten is looked for again,
/// and one that is no longer right is noticed.
#[map(name = "python_threads")]
static THREADS: LruHashMap<u32, u64> = LruHashMap::with_max_entries(16384, 0);

/// Walks by [`Stop`].
#[map(name = "python_walks")]
static WALKS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Stop::COUNT as u32, 0);

/// Threads of all interpreters of a process that are looked at. One takes 50 ns, once a thread.
const MAX_THREADS: u32 = 512;
/// Of them, and of frames, in one call of a function.
const SOME_THREADS: u32 = 16;
const SOME_FRAMES: u32 = 16;

/// State of a walk.
#[repr(C)]
pub struct PythonWalk {
    /// `pthread_self()`.
    thread_id: u64,
    /// Of the interpreter: where the search stands, then the thread found. 0: none.
    interpreter: u64,
    thread: u64,
    frame: u64,
    /// Content hash of the words.
    hash: u64,
    /// The address space, 0 where there is no interpreter in it.
    pub space: u32,
    pub frames: u32,
    stop: u32,
    /// One frame of the interpreter.
    raw: [u64; FRAME_BYTES / 8],
    /// One more than is ever filled, so that a masked index stays inside.
    pub words: [u64; MAX_PYTHON_FRAMES + 1],
    /// See `code_print`, of each word.
    pub prints: [u64; MAX_PYTHON_FRAMES + 1],
}

/// There is more to come.
const GO_ON: u64 = u64::MAX;
/// The thread was found.
const FOUND: u64 = 0;

/// Walks the frames of the current thread, if its interpreter's state is known already. Returns what
/// tells one chain of calls from another, 0 where there is none. Before [`add`].
#[inline(always)]
pub fn begin(scratch: &mut Scratch, tid: u32, tgid: u32, slot: Slot) -> u64 {
    let w = &mut scratch.python;
    w.frames = 0;
    w.thread = 0;
    w.space = python_of(tgid);
    if w.space == 0 || offset!(task_fsbase) == ABSENT {
        w.space = 0;
        return 0;
    }
    // SAFETY: no arguments.
    let task = unsafe { bpf_get_current_task() };
    w.thread_id = kernel(task + offset!(task_fsbase) as u64).unwrap_or(0);
    // SAFETY: the value is an integer written whole.
    let Some(thread) = (unsafe { THREADS.get(&tid) }) else {
        return 0;
    };
    w.thread = *thread;
    python_frames(slot as u32)
}

/// Adds the frames to a native stack that was walked, and their identity to its `hash`: where the
/// interpreter's loop is on it. False where [`begin`] did not know of them: what it returned is then not
/// this stack's.
#[inline(always)]
pub fn add(scratch: &mut Scratch, tid: u32, hash: u64, slot: Slot) -> (u64, bool) {
    if scratch.python.space == 0 {
        return (hash, true);
    }
    if forgotten(&scratch.walk.evals) == 0 {
        // The thread has called no Python, or is not the interpreter's at all.
        scratch.python.frames = 0;
        return (hash, true);
    }
    let begun = forgotten(&scratch.python.thread) != 0;
    if !begun {
        if python_thread(slot as u32) != FOUND {
            count(Stop::NoThread as u32);
            return (hash, false);
        }
        let thread = forgotten(&scratch.python.thread);
        let _ = THREADS.insert(&tid, &thread, 0);
        python_frames(slot as u32);
    }
    count(forgotten(&scratch.python.stop));
    scratch.python.hash = hash;
    python_identity(slot as u32);
    (forgotten(&scratch.python.hash), begun)
}

#[inline(always)]
fn count(stop: u32) {
    if let Some(count) = WALKS.get_ptr_mut(stop) {
        // SAFETY: a per-CPU element; the clock's interrupt may lose one count.
        unsafe { *count += 1 };
    }
}

/// The walk of a slot, and where things are in this interpreter.
#[inline(always)]
fn state(slot: u32) -> Option<(&'static mut PythonWalk, &'static Python)> {
    let scratch = SCRATCH.get_ptr_mut(slot)?;
    // SAFETY: a per-CPU element of this program class.
    let w = unsafe { &mut (*scratch).python };
    let python = super::unwind::python_at(w.space)?;
    Some((w, python))
}

/// Looks for the current thread among those of all interpreters; [`FOUND`] or not.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn python_thread(slot: u32) -> u64 {
    let Some((w, python)) = state(slot) else {
        return 1;
    };
    w.interpreter = user(python.runtime + python.interpreters as u64).unwrap_or(0);
    w.thread = user(w.interpreter + python.interpreter_threads as u64).unwrap_or(0);
    for _ in 0..MAX_THREADS / SOME_THREADS {
        let found = python_some_threads(slot);
        if found != GO_ON {
            return found;
        }
    }
    1
}

/// Looks at some threads.
///
/// VERIFIER: which looks at as many instructions for 32 times 16 threads as for 48.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn python_some_threads(slot: u32) -> u64 {
    for _ in 0..SOME_THREADS {
        let found = python_thread_step(slot);
        if found != GO_ON {
            return found;
        }
    }
    GO_ON
}

/// Looks at one thread, and goes to the next.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn python_thread_step(slot: u32) -> u64 {
    let Some((w, python)) = state(slot) else {
        return 1;
    };
    if w.thread == 0 {
        w.interpreter = user(w.interpreter + python.interpreter_next as u64).unwrap_or(0);
        if w.interpreter == 0 {
            return 1;
        }
        w.thread = user(w.interpreter + python.interpreter_threads as u64).unwrap_or(0);
        return GO_ON;
    }
    // A thread may have a state in each interpreter; the one it is in has frames.
    if user::<u64>(w.thread + python.thread_id as u64) == Some(w.thread_id)
        && current_frame(w, python) != 0
    {
        return FOUND;
    }
    w.thread = user(w.thread + python.thread_next as u64).unwrap_or(0);
    GO_ON
}

/// The innermost frame of the thread in `w`.
#[inline(always)]
fn current_frame(w: &PythonWalk, python: &Python) -> u64 {
    let at: u64 = user(w.thread + python.thread_frame as u64).unwrap_or(0);
    if python.indirect_frame == NO_FIELD || at == 0 {
        return at;
    }
    user(at + python.indirect_frame as u64).unwrap_or(0)
}

/// All frames of the thread in `w`, if it still is the current one. Returns the hash of their words,
/// 0 where there are none.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn python_frames(slot: u32) -> u64 {
    let Some((w, python)) = state(slot) else {
        return 0;
    };
    w.frames = 0;
    w.hash = 1;
    w.stop = Stop::TooManyFrames as u32;
    let own = user::<u64>(w.thread + python.thread_id as u64) == Some(w.thread_id);
    w.frame = if own { current_frame(w, python) } else { 0 };
    if w.frame == 0 {
        w.thread = 0;
        return 0;
    }
    for _ in 0..MAX_PYTHON_FRAMES {
        let stop = python_step(slot);
        if stop != GO_ON {
            w.stop = stop as u32;
            return w.hash;
        }
    }
    w.hash
}

/// Takes one frame and goes to its caller; what ended the walk, or [`GO_ON`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn python_step(slot: u32) -> u64 {
    let Some((w, python)) = state(slot) else {
        return Stop::BadRead as u64;
    };
    let raw = (&raw mut w.raw).cast::<u8>();
    // VERIFIER: masked, not compared, see `stacks::send_stack`.
    let size = (opaque(python.frame_size as usize) & (FRAME_BYTES - 1)) as u32;
    // SAFETY: less than the buffer has.
    if unsafe { bpf_probe_read_user(raw.cast(), size, w.frame as *const c_void) } != 0 {
        return Stop::BadRead as u64;
    }
    let at = |offset: u16, size: usize| {
        let offset = opaque(offset as usize) & (FRAME_BYTES - size);
        // SAFETY: masked to the buffer.
        unsafe { raw.add(offset) }
    };
    // SAFETY: inside the buffer, and aligned by the mask.
    let (code, back, instruction, mark) = unsafe {
        (
            *at(python.frame_code, 8).cast::<u64>(),
            *at(python.frame_back, 8).cast::<u64>(),
            *at(python.frame_instruction, 8).cast::<u64>(),
            *at(python.frame_entry, 1),
        )
    };
    let frame = if python.entry == entry::SHIM && mark == OWNED_BY_C_STACK {
        ENTRY
    } else {
        let is_entry = python.entry == entry::EACH || (python.entry == entry::MARKED && mark != 0);
        word(code, unit(python, code, instruction), is_entry)
    };
    w.words[opaque(w.frames as usize) & MAX_PYTHON_FRAMES] = frame;
    w.frames += 1;
    w.hash = hash_step(w.hash, frame);
    w.frame = back;
    if back == 0 {
        Stop::Complete as u64
    } else {
        GO_ON
    }
}

/// The code unit an instruction is.
#[inline(always)]
fn unit(python: &Python, code: u64, instruction: u64) -> u64 {
    let distance = if python.code_start == NO_FIELD {
        instruction as i32 as i64
    } else {
        instruction.wrapping_sub(code + python.code_start as u64) as i64
    };
    // Before the first one while a frame begins.
    let unit = (distance >> (python.instruction_shift & 63)).max(0) as u64;
    unit.min(UNIT_MAX)
}

/// Mixes the frames into the hash, and what tells their code objects from others that stood at the
/// same addresses before.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn python_identity(slot: u32) -> u64 {
    for i in 0..MAX_PYTHON_FRAMES as u32 / SOME_FRAMES + 1 {
        if python_some_identity(slot, i * SOME_FRAMES) == 0 {
            break;
        }
    }
    0
}

/// Some of them, see [`python_some_threads`]; 0 behind the last.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn python_some_identity(slot: u32, first: u32) -> u64 {
    for i in 0..SOME_FRAMES {
        if python_identity_step(slot, first + i) == 0 {
            return 0;
        }
    }
    1
}

/// One of them; 0 behind the last.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn python_identity_step(slot: u32, i: u32) -> u64 {
    let Some((w, python)) = state(slot) else {
        return 0;
    };
    if i >= w.frames {
        return 0;
    }
    let word = w.words[opaque(i as usize) & MAX_PYTHON_FRAMES];
    let (code, ..) = parts(word);
    // Of a frame without code nothing can be read.
    let names = user::<[u64; CODE_NAMES]>(code + python.code_names as u64).unwrap_or_default();
    let print = code_print(names);
    w.prints[opaque(i as usize) & MAX_PYTHON_FRAMES] = print;
    w.hash = hash_step(hash_step(w.hash, word), print);
    1
}
