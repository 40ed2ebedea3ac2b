//! Who holds a lock that others wait for, since when, and what it did meanwhile.
//!
//! A futex tells the kernel nothing of its owner, but many locks keep the owner's thread id beside
//! the futex word: [`Word::of`] says where, by operation and expected value, and [`Word::owner`]
//! reads it out of the words there. What is read is a number in a program's memory; only if it is
//! the id of a thread of the same process does it count.

use crate::{class, futex, wire};

/// Words read from the futex on: enough for both layouts of glibc.
pub const WORDS: usize = 5;

/// How an owner is known, in [`LockHoldTotals::source`].
pub mod source {
    /// It ended a wait: it let go.
    pub const WAKER: u8 = 0;
    /// The owner field of glibc's `pthread_mutex_t`, or the word of a robust or musl mutex.
    pub const MUTEX_WORD: u8 = 1;
    /// The futex word of a PI mutex.
    pub const PI_WORD: u8 = 2;
    /// The writer field of glibc's `pthread_rwlock_t`.
    pub const RWLOCK_WORD: u8 = 3;

    /// Output names, by number.
    pub const NAMES: [&str; 4] = ["waker", "mutex_word", "pi_word", "rwlock_word"];
}

/// Where a lock keeps its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Word {
    /// Nowhere that is known: Rust's and Go's locks.
    None = 0,
    /// In the futex word, low 30 bits (`FUTEX_TID_MASK`), which is a PI mutex.
    Pi = 1,
    /// The same of a robust or musl mutex.
    Robust = 2,
    /// glibc's `struct __pthread_mutex_s` (`sysdeps/nptl/bits/struct_mutex.h`): lock, count, owner,
    /// users, kind. The futex is the first.
    Mutex = 3,
    /// glibc's `struct __pthread_rwlock_arch_t` (`bits/struct_rwlock.h`): readers, writers, the two
    /// futexes at 8 and 12, two pads, the writer at 24.
    RwLock = 4,
}

impl Word {
    /// By what a thread that waits asked the kernel for.
    ///
    /// glibc waits for a mutex with `FUTEX_WAIT` and, with a deadline, by the real-time clock with
    /// `FUTEX_WAIT_BITSET`; always for 2. Rust's `Mutex` waits for 2 as well, by `FUTEX_WAIT_BITSET`
    /// without a clock; what follows its word is the program's data. For 3 only glibc's rwlock waits.
    pub const fn of(op: u32, value: u32) -> Word {
        const PRIVATE: u32 = 128;
        const CLOCK_REALTIME: u32 = 256;
        let private = op & PRIVATE != 0;
        match op & futex::CMD_MASK {
            futex::LOCK_PI | futex::LOCK_PI2 => Word::Pi,
            futex::WAIT if value == 2 && private => Word::Mutex,
            futex::WAIT_BITSET if value == 2 && private && op & CLOCK_REALTIME != 0 => Word::Mutex,
            futex::WAIT | futex::WAIT_BITSET if value == 3 && private => Word::RwLock,
            futex::WAIT if value >> 31 != 0 && value != u32::MAX => Word::Robust,
            _ => Word::None,
        }
    }

    /// The thread id the words from the futex on name; 0 for none.
    pub const fn owner(self, words: &[u32; WORDS]) -> u32 {
        const FUTEX_TID_MASK: u32 = 0x3fff_ffff;
        const EBUSY: u32 = 16;
        match self {
            Word::None => 0,
            Word::Pi => words[0] & FUTEX_TID_MASK,
            // musl's plain mutex has this in place of an id.
            Word::Robust if words[0] & FUTEX_TID_MASK == EBUSY => 0,
            Word::Robust => words[0] & FUTEX_TID_MASK,
            Word::Mutex => {
                let [_, _, owner, users, kind] = *words;
                // A mutex that is held has a user, and a kind has the bits of `PTHREAD_MUTEX_*` alone
                // (`nptl/pthreadP.h`): what else waits so (a lock inside libc, Go's) passes by chance.
                if users == 0 || users > 0xffff || kind > 0x3ff {
                    return 0;
                }
                owner
            }
            // From the futex at 12 the writer is three words on, from that at 8 four; the third from
            // there is a pad, which is 0.
            Word::RwLock if words[3] != 0 => words[3],
            Word::RwLock => words[4],
        }
    }

    /// See [`source`].
    pub const fn source(self) -> u8 {
        match self {
            Word::None => source::WAKER,
            Word::Pi => source::PI_WORD,
            Word::Robust | Word::Mutex => source::MUTEX_WORD,
            Word::RwLock => source::RWLOCK_WORD,
        }
    }
}

/// What an owner does while others wait, in groups of ledger classes.
pub mod activity {
    pub const CPU: usize = 0;
    pub const RUNQ: usize = 1;
    pub const LOCK: usize = 2;
    pub const DISK: usize = 3;
    pub const NET: usize = 4;
    pub const TIMER: usize = 5;
    pub const IDLE: usize = 6;
    /// Everything else.
    pub const OTHER: usize = 7;
    /// How many there are. A power of two.
    pub const COUNT: usize = 8;

    /// Output names, by number: those of the classes; `net` is all of `net.*`.
    pub const NAMES: [&str; COUNT] = [
        "cpu", "runq", "lock", "disk", "net", "timer", "idle", "other",
    ];
}

/// The group of a class.
pub const fn activity_of(class: u8) -> usize {
    match class {
        class::CPU => activity::CPU,
        class::RUNQ => activity::RUNQ,
        class::LOCK => activity::LOCK,
        class::DISK => activity::DISK,
        class::NET_TCP..=class::NET_SEND | class::NET_POSTGRESQL..=class::NET_KAFKA => {
            activity::NET
        }
        class::TIMER => activity::TIMER,
        class::IDLE => activity::IDLE,
        _ => activity::OTHER,
    }
}

/// Key of `inner_tids`: a thread by its id in its own pid namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InnerTid {
    /// In the initial namespace.
    pub tgid: u32,
    /// In its own, as a lock's word has it.
    pub tid: u32,
}
wire!(InnerTid => 8);

/// Key of `lock_holds`: who held which lock while others waited, and where.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LockHoldKey {
    /// Futex address.
    pub address: u64,
    /// Content hash of the user stack that let go, 0 for none.
    pub release_stack: u64,
    /// Content hash of the user stack at which the owner was last blocked meanwhile, where it was so
    /// for a good part of the hold; else 0.
    pub blocked_stack: u64,
    pub owner_tid: u32,
    /// Histogram slot of the owner's process.
    pub slot: u16,
    /// Class of that block, [`class::UNKNOWN`] for none.
    pub blocked_class: u8,
    pub pad: u8,
}
wire!(LockHoldKey => 32);

/// Value of `lock_holds`. Cumulative.
///
/// A hold counts from when its owner was woken out of its own wait for the lock, or from when the
/// first of those who wait began to, if that is later, to the wake-up of the next: time nobody
/// waited is not in it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LockHoldTotals {
    pub count: u64,
    pub sum_ns: u64,
    pub max_ns: u64,
    /// What the owner did, where it was known from the beginning of the hold; see [`activity`].
    pub activity_ns: [u64; activity::COUNT],
    /// How many of `count` the lock's word told of while somebody began to wait.
    pub told: u64,
    /// The last such word, see [`source`].
    pub source: u64,
}
wire!(LockHoldTotals => 8 * (3 + activity::COUNT + 2));

#[cfg(test)]
mod tests {
    use super::*;

    const PRIVATE: u32 = 128;
    const REALTIME: u32 = 256;
    const OWNER: u32 = 4711;

    #[test]
    fn operation_and_value_tell_where_a_lock_keeps_its_owner() {
        for (op, value, word, lock) in [
            (futex::WAIT | PRIVATE, 2, Word::Mutex, "glibc mutex"),
            (
                futex::WAIT_BITSET | PRIVATE | REALTIME,
                2,
                Word::Mutex,
                "glibc mutex with a deadline",
            ),
            (futex::WAIT_BITSET | PRIVATE, 2, Word::None, "Rust mutex"),
            (futex::WAIT, 2, Word::None, "glibc mutex between processes"),
            (
                futex::WAIT_BITSET | PRIVATE,
                3,
                Word::RwLock,
                "glibc rwlock",
            ),
            (futex::LOCK_PI | PRIVATE, 0, Word::Pi, "PI mutex"),
            (
                futex::LOCK_PI2 | PRIVATE,
                0,
                Word::Pi,
                "PI mutex with a deadline",
            ),
            (
                futex::WAIT,
                0x8000_0000 | OWNER,
                Word::Robust,
                "robust mutex",
            ),
            (futex::WAIT | PRIVATE, u32::MAX, Word::None, "parked thread"),
            (
                futex::WAIT_BITSET | PRIVATE,
                0x7fff_ffff,
                Word::None,
                "Rust rwlock",
            ),
            (
                futex::WAIT_BITSET | PRIVATE | REALTIME,
                0,
                Word::None,
                "glibc condition variable",
            ),
        ] {
            assert_eq!(Word::of(op, value), word, "{lock}");
        }
    }

    #[test]
    fn a_mutex_names_its_owner_only_where_the_words_are_those_of_a_mutex() {
        let owner = |words| Word::Mutex.owner(&words);
        assert_eq!(owner([2, 0, OWNER, 1, 0]), OWNER, "normal");
        assert_eq!(owner([2, 3, OWNER, 1, 1]), OWNER, "recursive");
        assert_eq!(owner([2, 0, 0, 0, 0]), 0, "free by now");
        assert_eq!(
            owner([2, 0, OWNER, 0, 0]),
            0,
            "no user: not a mutex of glibc"
        );
        assert_eq!(
            owner([2, 0, OWNER, 1, 0x5555]),
            0,
            "no kind of a mutex has such bits"
        );
        assert_eq!(
            owner([2, 1, OWNER, 0x7f12, 0x7f12]),
            0,
            "a FILE's lock: an address"
        );
    }

    #[test]
    fn the_writer_of_an_rwlock_is_found_from_both_of_its_futexes() {
        // readers, writers, wrphase_futex, writers_futex, pad3, pad4, cur_writer, shared
        let lock = [0, 1, 3, 3, 0, 0, OWNER, 0];
        let from = |at: usize| core::array::from_fn(|i| lock[at + i]);
        assert_eq!(Word::RwLock.owner(&from(2)), OWNER);
        assert_eq!(Word::RwLock.owner(&from(3)), OWNER);
    }

    #[test]
    fn the_futex_word_of_a_pi_mutex_is_its_owner_and_flags() {
        assert_eq!(Word::Pi.owner(&[0x8000_0000 | OWNER, 0, 0, 0, 0]), OWNER);
        assert_eq!(
            Word::Robust.owner(&[0xc000_0000 | OWNER, 0, 9, 9, 9]),
            OWNER
        );
        let plain_of_musl = [0x8000_0010, 0, 0, 0, 0];
        assert_eq!(Word::Robust.owner(&plain_of_musl), 0);
        assert_eq!(Word::None.owner(&[OWNER; WORDS]), 0);
    }

    #[test]
    fn every_class_has_its_group() {
        assert_eq!(activity_of(class::NET_REDIS), activity::NET);
        assert_eq!(activity_of(class::NET_CONNECT), activity::NET);
        assert_eq!(activity_of(class::IPC), activity::OTHER);
        assert_eq!(activity_of(class::FAULT), activity::OTHER);
        for (i, name) in activity::NAMES.iter().enumerate().take(activity::OTHER) {
            let class = crate::CLASS_NAMES.iter().position(|c| c == name);
            let class = class.unwrap_or(class::NET_TCP as usize);
            assert_eq!(activity_of(class as u8), i, "{name}");
        }
    }
}
