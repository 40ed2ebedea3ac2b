//! Frames of the CPython interpreter: where they are in its memory, and what of them is in a stack.
//!
//! Python code has no frames of its own on the C stack: since 3.11 one call of the interpreter's loop
//! runs a whole chain of Python functions. So the kernel side walks the interpreter's list of frames
//! as well and appends it to the native stack; user space puts the two together.

use super::stacks::hash_step;
use crate::wire;

/// Most frames of the interpreter in one stack; one less than a power of two.
pub const MAX_PYTHON_FRAMES: usize = 127;

/// Most bytes of a frame that are read at once; a power of two.
pub const FRAME_BYTES: usize = 128;

/// Offset of a field that this version does not have.
pub const NO_FIELD: u16 = u16::MAX;

/// How the frames end that one call of the interpreter's loop runs.
pub mod entry {
    /// Each call runs one frame (up to 3.10).
    pub const EACH: u16 = 0;
    /// The outermost of them is marked (3.11).
    pub const MARKED: u16 = 1;
    /// Behind the outermost there is a frame without code (from 3.12 on).
    pub const SHIM: u16 = 2;
}

/// `FRAME_OWNED_BY_CSTACK`: the owner of a frame without code.
pub const OWNED_BY_C_STACK: u8 = 3;

/// Where things are in an interpreter's memory; part of [`super::unwind::Space`]. Offsets in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Python {
    /// Address of `_PyRuntime`.
    pub runtime: u64,
    /// Address and length of `_PyEval_EvalFrameDefault`; a length of 0: no Python here.
    pub eval_start: u64,
    pub eval_length: u64,
    /// The list of interpreters in `_PyRuntime`, and of threads in one.
    pub interpreters: u16,
    pub interpreter_next: u16,
    pub interpreter_threads: u16,
    pub thread_next: u16,
    /// `pthread_self()` of the thread.
    pub thread_id: u16,
    /// The current frame, or what points at it.
    pub thread_frame: u16,
    /// The current frame in what `thread_frame` points at, or [`NO_FIELD`].
    pub indirect_frame: u16,
    /// How much of a frame is read.
    pub frame_size: u16,
    pub frame_back: u16,
    pub frame_code: u16,
    /// The instruction: a pointer where `code_start` is a field, else a number.
    pub frame_instruction: u16,
    /// A byte that tells by [`entry`] where a call of the loop began.
    pub frame_entry: u16,
    /// See [`entry`].
    pub entry: u16,
    /// First instruction in a code object, or [`NO_FIELD`].
    pub code_start: u16,
    /// By how many bits the instruction is shifted right, to count in code units of two bytes.
    pub instruction_shift: u16,
    /// First of the pointers in a code object that tell it from others: file, name and so on.
    pub code_names: u16,
}
wire!(Python => 56);

/// Pointers at [`Python::code_names`] that are part of a stack's identity.
pub const CODE_NAMES: usize = 4;

/// A frame as one word of a stack record: the code object's address (48 bits), in its lowest bit
/// [`ENTRY`], and above it the code unit under way. Without an address: no frame, but the end of those
/// that one call of the loop runs.
pub const fn word(code: u64, unit: u64, is_entry: bool) -> u64 {
    (code & CODE_MASK) | (unit << UNIT_SHIFT) | is_entry as u64
}

/// The outermost frame that a call of the interpreter's loop runs.
pub const ENTRY: u64 = 1;
/// Objects lie at multiples of eight bytes.
pub const CODE_MASK: u64 = ((1 << UNIT_SHIFT) - 1) & !7;
const UNIT_SHIFT: u32 = 48;
/// A code unit past what a word has room for.
pub const UNIT_MAX: u64 = 0xffff;

/// The code object's address, the code unit, and whether it is an entry.
pub const fn parts(word: u64) -> (u64, u64, bool) {
    (word & CODE_MASK, word >> UNIT_SHIFT, word & ENTRY != 0)
}

/// What tells a code object from another that stood at its address before: its pointers at
/// [`Python::code_names`]. Read with the stack, because the object may be gone when it is named.
#[inline(always)]
pub const fn code_print(names: [u64; CODE_NAMES]) -> u64 {
    let [a, b, c, d] = names;
    hash_step(hash_step(hash_step(hash_step(0, a), b), c), d)
}

/// Why a walk of Python frames ended; index into `python_walks`. Numbers are written to recordings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stop {
    /// At the outermost frame.
    Complete = 0,
    /// The interpreter's loop is on the native stack, and no thread of the interpreter's is this one.
    NoThread = 1,
    /// A frame could not be read.
    BadRead = 2,
    TooManyFrames = 3,
}

impl Stop {
    pub const COUNT: usize = 4;
    pub const ALL: [Stop; Stop::COUNT] = [
        Stop::Complete,
        Stop::NoThread,
        Stop::BadRead,
        Stop::TooManyFrames,
    ];

    /// Name in `coverage.python_walks`.
    pub const fn name(self) -> &'static str {
        match self {
            Stop::Complete => "complete",
            Stop::NoThread => "no_thread",
            Stop::BadRead => "bad_read",
            Stop::TooManyFrames => "too_many_frames",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_listed_in_the_order_of_their_numbers() {
        for (i, stop) in Stop::ALL.iter().enumerate() {
            assert_eq!(*stop as usize, i, "{}", stop.name());
        }
    }

    #[test]
    fn a_word_holds_code_unit_and_entry() {
        let code = 0x7f12_3456_7890;
        assert_eq!(parts(word(code, 513, true)), (code, 513, true));
        assert_eq!(parts(word(code, UNIT_MAX, false)), (code, UNIT_MAX, false));
        assert_eq!(parts(ENTRY), (0, 0, true));
    }
}
