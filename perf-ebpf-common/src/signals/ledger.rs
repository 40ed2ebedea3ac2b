//! The ledger: one [`ThreadState`] a thread, moved from class to class by scheduler events.
//!
//! Invariant: `sum(spent_ns) + unaccounted_ns == since_ns - start_ns`, at every moment outside an
//! update. Every transition adds exactly `now - since_ns` to one of them and sets `since_ns = now`.

use super::{sockets::Connection, tls::TlsCall};
use crate::{class, histogram::BUCKETS, wire};

/// Key of where a thread blocked: used in the map `sites` and inside [`ThreadState`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SiteKey {
    /// Content hash of the kernel stack, 0 for none.
    pub kernel_stack: u64,
    /// Content hash of the user stack, 0 for none.
    pub user_stack: u64,
    /// By `detail_kind`: the futex address; the peer's address; inode and device.
    pub detail: [u64; 2],
    /// Histogram slot of the process.
    pub slot: u16,
    /// System call number, `sys::NR_NONE` outside one. For class `CPU`: 0 sampled in user mode,
    /// 1 in kernel mode.
    pub nr: u16,
    /// Remote port of an inet peer, fd of a file.
    pub port: u16,
    pub class: u8,
    /// See [`detail`].
    pub detail_kind: u8,
}
wire!(SiteKey => 40);

impl SiteKey {
    pub const EMPTY: SiteKey = SiteKey {
        kernel_stack: 0,
        user_stack: 0,
        detail: [0; 2],
        slot: 0,
        nr: crate::sys::NR_NONE,
        port: 0,
        class: class::UNKNOWN,
        detail_kind: detail::NONE,
    };

    /// What is waited for is the peer of a connection, and time of this class.
    #[inline(always)]
    pub fn wait_for(&mut self, connection: &Connection, class: u8) {
        self.class = class;
        self.detail = connection.peer;
        self.detail_kind = connection.peer_kind;
        self.port = connection.peer_port;
    }
}

/// What [`SiteKey::detail`] holds.
pub mod detail {
    pub const NONE: u8 = 0;
    /// `[0]`: user address of the futex word.
    pub const FUTEX: u8 = 1;
    /// `[0]`: IPv4 address in its low 32 bits, network order.
    pub const INET4: u8 = 2;
    /// Both words: IPv6 address, network order.
    pub const INET6: u8 = 3;
    /// `[0]`: identity of the server's bound address, see [`super::UnixName`].
    pub const UNIX: u8 = 4;
    /// `[0]`: inode number, `[1]`: kernel device number (`MKDEV`).
    pub const FILE: u8 = 5;
}

/// Value of `sites`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SiteTotals {
    pub count: u64,
    pub sum_ns: u64,
    pub max_ns: u64,
}
wire!(SiteTotals => 24);

/// A stack taken before at the same place of the same thread.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackMemo {
    /// Mix of system call, user ip, user sp and what Python code runs; 0 is empty.
    pub key: u64,
    pub kernel_stack: u64,
    pub user_stack: u64,
    /// Mix of the words at `returns`.
    pub print: u64,
    pub returns: Returns,
}
wire!(StackMemo => 48);

impl StackMemo {
    /// All zeros: the compiler would build anything else on the stack, of which there is too little.
    pub const EMPTY: StackMemo = StackMemo {
        key: 0,
        kernel_stack: 0,
        user_stack: 0,
        print: 0,
        returns: Returns {
            places: [0; Returns::FRAMES],
            words: 0,
        },
    };
}

/// Where the return addresses of the innermost frames lie, in words from the stack pointer.
///
/// Two calls from one function to another have the same stack pointer inside: only these words tell
/// them apart (14 % of the blocks of a program that locks at several places of one function).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Returns {
    pub places: [u8; Returns::FRAMES],
    /// Words from the stack pointer up to the last place.
    pub words: u8,
}
wire!(Returns => 16);

impl Returns {
    /// Frames looked at.
    pub const FRAMES: usize = 15;
    /// Words of the stack looked at; as a place: none. One less than a power of two.
    pub const WORDS: usize = 127;
    pub const NONE: Returns = Returns {
        places: [Self::WORDS as u8; Self::FRAMES],
        words: 0,
    };
}

/// Slots of a thread's stack memo. A power of two.
pub const MEMO_SLOTS: usize = 8;

/// Sockets remembered for a thread that waits for several at once. A power of two.
pub const ASKED: usize = 8;

/// What a thread is doing, in [`ThreadState::state`].
pub mod thread_state {
    pub const ON_CPU: u8 = 0;
    pub const QUEUED: u8 = 1;
    pub const BLOCKED: u8 = 2;
    /// Seeded at attach, no event seen yet.
    pub const SEEDED: u8 = 3;
}

/// One thread of the target; value of the map `threads`, keyed by its id in the initial namespace.
///
/// Written by one CPU at a time (the scheduler orders a thread's events). User space reads it
/// without a lock: a writer sets `seq_tail` first and `seq` last, a reader's copy runs the other
/// way, so `seq == seq_tail` means an untorn copy.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ThreadState {
    pub seq: u64,
    /// Start of the open interval.
    pub since_ns: u64,
    /// When the trace began to account for the thread.
    pub start_ns: u64,
    /// Closed intervals, by class.
    pub spent_ns: [u64; class::COUNT],
    /// Closed intervals nothing could be said of: the residual.
    pub unaccounted_ns: u64,
    /// Length of the last closed interval, its class in `last_class`.
    pub last_ns: u64,
    /// Set by a wake-up that came while the switch-out was still under way.
    pub woken_ns: u64,
    /// Counts the notes in `woken_ns`; what it is for is the fence that counting is.
    pub fences: u64,
    /// When the thread's histograms move from its parent's slot to its own process's.
    pub promote_at_ns: u64,
    /// Context switches away, voluntary and not.
    pub switches: u64,
    /// `task->se.sum_exec_runtime` at the last switch away.
    pub runtime_ns: u64,
    /// `task->sched_info.run_delay` at the last switch away, `u64::MAX` before the first.
    pub run_delay_ns: u64,
    /// `spent_ns[RUNQ]` and `spent_ns[CPU]` at that time.
    pub runq_before_ns: u64,
    pub cpu_before_ns: u64,
    /// The fd's file seen last, with what it is: saves walking it again.
    pub file: u64,
    /// Its `struct sock`, 0 where it is no stream socket.
    pub file_sk: u64,
    /// Sockets on which this thread sent something as a client, until an answer came; slots are
    /// emptied when they are looked at.
    pub asked: [u64; ASKED],
    /// Socket on which this thread last received something as a client.
    pub answered_sk: u64,
    /// Length and end of the block before, where that was a wait for anything at all: until the next one, or
    /// until what comes on a connection shows what was waited for.
    pub idle_ns: u64,
    pub idle_until_ns: u64,
    /// Open site (valid while `state` is `BLOCKED`).
    pub site: SiteKey,
    pub memo: [StackMemo; MEMO_SLOTS],
    /// Entry of the system call in flight, 0 for none.
    pub sys_enter_ns: u64,
    /// `since_ns` of the account that user space was told last, see [`super::requests`].
    pub told_ns: u64,
    /// Samples of the cpu-clock, in user and in kernel mode.
    pub samples_user: u64,
    pub samples_kernel: u64,
    /// Valid while `tls_call` is not 0.
    pub tls: TlsCall,
    pub tid: u32,
    pub tgid: u32,
    pub sys_nr: u32,
    pub file_port: u16,
    pub slot: u16,
    pub file_detail: [u64; 2],
    /// See [`thread_state`].
    pub state: u8,
    pub last_class: u8,
    pub file_kind: u8,
    pub file_detail_kind: u8,
    /// Class of a block whose wake-up was not told, plus one; 0 for none.
    pub missed_wake_class: u8,
    /// Class of the block that the last wake-up ended, plus one; 0 where there was none since the
    /// last switch away.
    pub woken_from: u8,
    /// See [`super::tls::call`].
    pub tls_call: u8,
    /// Slot of `memo` that is given up next.
    pub memo_next: u8,
    /// 1 or 2, the place where it is counted among those who wait for a lock; else 0.
    pub lock_wait: u8,
    pub pad: [u8; 3],
    /// Its id in its own pid namespace, 0 in the initial one.
    pub inner_tid: u32,
    pub seq_tail: u64,
}
wire!(ThreadState => 8 * (3 + class::COUNT + 11) + 8 + 8 * ASKED + 24 + 40 + 48 * MEMO_SLOTS + 32 + 40 + 16 + 16 + 8 + 8 + 8);

/// Histograms of one process, an element of the memory-mapped array `histograms`. Cumulative.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ClassHistograms {
    /// Completed intervals by class and bucket. Wraps; differences are taken modulo 2^32.
    pub buckets: [[u32; BUCKETS]; class::COUNT],
    pub sum_ns: [u64; class::COUNT],
    /// Largest since user space last set it to 0. Two CPUs may race to store it and the smaller may
    /// win: it is then at most one interval short.
    pub max_ns: [u64; class::COUNT],
}
wire!(ClassHistograms => (4 * BUCKETS + 16) * class::COUNT);

/// Number of histogram slots: processes with histograms of their own at one time. Slot 0 is shared
/// by all processes past that number.
pub const SLOTS: u32 = 128;

/// Counters of the target's threads by the low bits of their ids. A power of two.
pub const TARGET_SLOTS: u32 = 16384;

/// The counter of a thread id.
#[must_use]
pub const fn target_slot(tid: u32) -> u32 {
    tid & (TARGET_SLOTS - 1)
}

/// Key of `wakers`: who ended whose wait for a lock.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WakerKey {
    /// Futex address.
    pub address: u64,
    pub waker_tid: u32,
    pub waiter_tid: u32,
    pub waiter_tgid: u32,
    /// Waker's process, 0 where the wake came from an interrupt or a timeout.
    pub waker_tgid: u32,
}
wire!(WakerKey => 24);

/// Key of `listeners`: a TCP port some socket of a network namespace listens on.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenerKey {
    /// Inode number of the network namespace.
    pub netns: u32,
    pub port: u32,
}
wire!(ListenerKey => 8);

/// Longest Unix socket path, `sun_path` in `include/uapi/linux/un.h`.
pub const UNIX_PATH_MAX: usize = 108;

/// Ring record: the name a Unix socket is bound to, sent once for each.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct UnixName {
    pub header: super::RecordHeader,
    /// Identity used in [`SiteKey::detail`].
    pub id: u64,
    /// Bytes of `path` used. A leading NUL marks an abstract name.
    pub len: u32,
    pub path: [u8; UNIX_PATH_MAX],
}
wire!(UnixName => 16 + 8 + 4 + UNIX_PATH_MAX);
