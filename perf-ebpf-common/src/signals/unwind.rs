//! Unwind tables: what user space compiles from `.eh_frame`, and the kernel side walks user stacks
//! by.
//!
//! A process has an address space ([`Space`]): its executable mappings, each with the [`Object`]
//! that covers it. An object is sorted rows, one word each (address within its segment, number of a
//! [`Rule`]), and an index that tells for each segment of [`SEGMENT_BYTES`] which rows are in it.
//! Rows and indices of all objects lie in one array of [`Block`]s.

use super::{RecordHeader, python::Python};
use crate::wire;

/// Words of a [`Block`].
pub const BLOCK_WORDS: usize = 1024;

/// An element of the array `unwind_words`. As large as this, because the kernel rounds elements up
/// to eight bytes and charges one lookup each.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Block {
    pub words: [u32; BLOCK_WORDS],
}
wire!(Block => 4 * BLOCK_WORDS);

const SEGMENT_SHIFT: u32 = 8;

/// Bytes of code for which the index has one word: small, so that a search has few steps.
pub const SEGMENT_BYTES: u64 = 1 << SEGMENT_SHIFT;

/// Objects with tables at one time; number 0 means none.
pub const MAX_OBJECTS: u32 = 4096;

/// Different rules at one time: what a row has room for.
pub const MAX_RULES: u32 = 1 << 16;

/// An element of `unwind_objects`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Object {
    /// Word at which the rows begin.
    pub rows: u32,
    /// Word at which the index begins.
    pub index: u32,
    /// Segments; the index has one word more.
    pub segments: u32,
    pub pad: u32,
}
wire!(Object => 16);

/// How to find the canonical frame address (the caller's stack pointer).
pub mod cfa {
    /// No table covers the address.
    pub const NONE: u8 = 0;
    /// Stack pointer plus `cfa_offset`.
    pub const SP: u8 = 1;
    /// Frame pointer plus `cfa_offset`.
    pub const FP: u8 = 2;
    /// The word at stack pointer plus `cfa_offset`, plus `extra`.
    pub const DEREF_SP: u8 = 3;
    /// The word at frame pointer plus `cfa_offset`, plus `extra`.
    pub const DEREF_FP: u8 = 4;
    /// An entry of a procedure linkage table (x86-64): stack pointer plus `cfa_offset`, and eight
    /// more from byte `extra` of the entry on.
    pub const PLT: u8 = 5;
    /// The trampoline a signal handler returns to: the interrupted registers lie on the stack.
    pub const SIGNAL: u8 = 6;
    /// The outermost frame.
    pub const END: u8 = 7;
    /// The debug information says it in a way that is not handled.
    pub const UNSUPPORTED: u8 = 8;
}

/// How to find the caller's frame pointer.
pub mod fp {
    pub const SAME: u8 = 0;
    /// In the word at the canonical frame address plus `fp_offset`.
    pub const AT_CFA: u8 = 1;
    /// In the word at this frame's frame pointer plus `fp_offset`.
    pub const AT_FP: u8 = 2;
    /// It cannot be known.
    pub const LOST: u8 = 3;
}

/// How one frame is unwound; an element of `unwind_rules`. Offsets are in words of eight bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rule {
    /// See [`cfa`].
    pub cfa: u8,
    /// See [`fp`].
    pub fp: u8,
    pub cfa_offset: i16,
    pub fp_offset: i16,
    /// Second operand of the kinds of [`cfa`] that have one. For SP and FP where the return address
    /// lies, from the canonical frame address on: -1 on x86-64; 0 on arm64 where it still is in the
    /// link register.
    pub extra: i16,
}
wire!(Rule => 8);

/// An executable mapping.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Range {
    pub start: u64,
    /// Address at which the object's table begins in this process.
    pub origin: u64,
    pub pages: u32,
    /// Number of the object; 0: no table (code made at run time), [`PENDING`].
    pub object: u32,
}
wire!(Range => 24);

/// The table of a mapping is being built.
pub const PENDING: u32 = u32::MAX;

impl Range {
    /// Past the last one.
    pub const UNUSED: Range = Range {
        start: 1 << 62,
        origin: 0,
        pages: 0,
        object: 0,
    };
}

/// Mappings of one address space. A power of two.
pub const MAX_RANGES: usize = 512;

/// Address spaces at one time; number 0 means that there is none for a process.
pub const MAX_SPACES: u32 = 128;

/// Page size the ranges are counted in, whatever the kernel's is.
pub const PAGE_SHIFT: u32 = 12;

/// An element of `unwind_spaces`: sorted, the rest [`Range::UNUSED`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Space {
    /// When the kernel side last told of an address that is in none of them.
    pub missed_ns: u64,
    /// The interpreter that is mapped there.
    pub python: Python,
    pub ranges: [Range; MAX_RANGES],
}
wire!(Space => 8 + 56 + 24 * MAX_RANGES);

/// Least time between two [`Missed`] records of one space.
pub const MISS_INTERVAL_NS: u64 = 100_000_000;

/// Ring record: code of a process is in no mapping known of.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missed {
    pub header: RecordHeader,
    pub address: u64,
    pub tgid: u32,
    pub pad: u32,
}
wire!(Missed => 32);

/// Set in a frame's address where it is the very instruction that a signal interrupted, not a return
/// address.
pub const EXACT: u64 = 1 << 63;

/// Why a walk ended; index into `stack_walks`. Numbers are written to recordings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stop {
    /// At the outermost frame.
    Complete = 0,
    /// An address in no executable mapping known of.
    NoMapping = 1,
    /// No table covers the code, and frame pointers led nowhere.
    NoRow = 2,
    /// The stack could not be read: not in memory, or not a stack.
    BadRead = 3,
    /// The debug information says it in a way that is not handled.
    Unsupported = 4,
    TooManyFrames = 5,
    /// The caller's stack pointer was not above the callee's.
    CfaBackwards = 6,
    /// Tables are being built: after the attach, after exec.
    Pending = 7,
    /// There is no room for this process's tables: frame pointers only.
    NoTables = 8,
}

impl Stop {
    pub const COUNT: usize = 9;
    pub const ALL: [Stop; Stop::COUNT] = [
        Stop::Complete,
        Stop::NoMapping,
        Stop::NoRow,
        Stop::BadRead,
        Stop::Unsupported,
        Stop::TooManyFrames,
        Stop::CfaBackwards,
        Stop::Pending,
        Stop::NoTables,
    ];

    /// Name in `coverage.stack_walks`.
    pub const fn name(self) -> &'static str {
        match self {
            Stop::Complete => "complete",
            Stop::NoMapping => "no_mapping",
            Stop::NoRow => "no_row",
            Stop::BadRead => "bad_read",
            Stop::Unsupported => "unsupported",
            Stop::TooManyFrames => "too_many_frames",
            Stop::CfaBackwards => "cfa_backwards",
            Stop::Pending => "pending",
            Stop::NoTables => "no_tables",
        }
    }
}

/// A row's word.
pub const fn row(address: u64, rule: u16) -> u32 {
    (((address & (SEGMENT_BYTES - 1)) as u32) << 16) | rule as u32
}

/// Number of the rule in force `offset` bytes behind the start of an object's table. The first row
/// of every object is one of rule 0, so that there always is a row before.
///
/// `word` reads a word of all tables, `None` where that fails. `at_most(a, b)` is all ones where
/// `a <= b`, else 0; in it lies that the kernel side has no branch here: the verifier would follow
/// both sides of each (over 1,000,000 instructions).
#[inline(always)]
pub fn rule_at(
    object: &Object,
    offset: u64,
    word: impl Fn(u32) -> Option<u32>,
    at_most: impl Fn(u32, u32) -> u32,
) -> Option<u32> {
    let segment = offset >> SEGMENT_SHIFT;
    if segment >= object.segments as u64 {
        return Some(0);
    }
    let at = object.index.wrapping_add(segment as u32);
    let low = word(at)?;
    let count = word(at.wrapping_add(1))?.wrapping_sub(low);
    // The row before a segment's first began in an earlier one and is still in force.
    let before = object.rows.wrapping_add(low).wrapping_sub(1);
    let key = (offset & (SEGMENT_BYTES - 1)) as u32;
    let mut found = 0u32;
    let mut step = 1 << (SEGMENT_SHIFT - 1);
    while step > 0 {
        let probe = found + step;
        let address = word(before.wrapping_add(probe))? >> 16;
        found += step & at_most(probe, count) & at_most(address, key);
        step >>= 1;
    }
    Some(word(before.wrapping_add(found))? & 0xffff)
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    #[test]
    fn reasons_are_listed_in_the_order_of_their_numbers() {
        for (i, stop) in Stop::ALL.iter().enumerate() {
            assert_eq!(*stop as usize, i, "{}", stop.name());
        }
    }

    #[test]
    fn the_row_in_force_is_found_in_every_segment() {
        let rows = [(0, 0), (16, 1), (250, 2), (256, 3), (1280, 4), (1281, 0)];
        let mut words: Vec<u32> = rows.iter().map(|(a, r)| row(*a, *r)).collect();
        let index = words.len() as u32;
        words.extend([1, 3, 4, 4, 4, 4, 6]);
        words.extend([0; 300]);
        let object = Object {
            rows: 0,
            index,
            segments: 6,
            pad: 0,
        };
        let word = |at: u32| words.get(at as usize).copied();
        let find = |offset| {
            rule_at(
                &object,
                offset,
                word,
                |a, b| if a <= b { u32::MAX } else { 0 },
            )
        };
        for (offset, rule) in [
            (0, 0),
            (15, 0),
            (16, 1),
            (249, 1),
            (250, 2),
            (255, 2),
            (256, 3),
            (512, 3),
            (1279, 3),
            (1280, 4),
            (1281, 0),
            (1535, 0),
            (1536, 0),
            (u64::MAX, 0),
        ] {
            assert_eq!(find(offset), Some(rule), "at {offset}");
        }
    }
}
