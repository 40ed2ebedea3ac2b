//! Call stacks, sent once each and referred to by content.

use super::RecordHeader;
use crate::wire;

/// Most frames of one stack.
pub const MAX_FRAMES: usize = 127;

/// Ring record: a stack not seen before, followed by `frames` addresses (u64), innermost first, and
/// `python` words of the interpreter's frames (see [`super::python::word`]), innermost first too, and
/// for each of them its [`super::python::code_print`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackRecord {
    pub header: RecordHeader,
    /// Content hash, see [`hash_step`].
    pub id: u64,
    /// Process whose address space the addresses are in; 0 for a kernel stack.
    pub tgid: u32,
    pub frames: u16,
    pub python: u8,
    /// Why the walk of a user stack ended, see [`super::unwind::Stop`].
    pub stop: u8,
}
wire!(StackRecord => 32);

/// Start of a content hash; the process is mixed in because equal addresses of two programs are
/// different code.
pub const fn hash_start(tgid: u32) -> u64 {
    0x9e37_79b9_7f4a_7c15 ^ (tgid as u64)
}

/// Mixes one frame into a content hash (the multiply-rotate step of wyhash's family; 64 bits keep
/// the chance of a collision among a million stacks under 3e-8).
#[inline(always)]
pub const fn hash_step(hash: u64, frame: u64) -> u64 {
    let mixed = (hash ^ frame).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed ^ (mixed >> 32)
}

/// Counters of the stack memo, an entry of the per-CPU map `memo_stats`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoStats {
    /// Blocks that took their stacks from the memo.
    pub hits: u64,
    /// Blocks whose stacks were walked.
    pub walks: u64,
    /// Hits walked again to check.
    pub checked: u64,
    /// Checks whose user stack or kernel stack differed.
    pub mismatched: u64,
}
wire!(MemoStats => 32);
