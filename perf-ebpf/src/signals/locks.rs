//! Locks that threads wait for: since when somebody holds them, who it is, what he does meanwhile,
//! and where he lets go.
//!
//! A hold begins when the first thread begins to wait, or when the thread that has the lock next is
//! woken out of its own wait for it; it ends with the wake-up of the next that waits. Both are events
//! of the scheduler, and so is what the owner does between them: its account at the beginning is
//! subtracted from that at the end. Locks nobody waits for never reach the kernel.

use aya_ebpf::{
    helpers::generated::bpf_get_current_pid_tgid,
    macros::map,
    maps::{Array, HashMap},
};
use perf_ebpf_common::{
    class,
    loss::Loss,
    offsets::ABSENT,
    signals::{
        ledger::{ThreadState, detail, thread_state},
        locks::{
            InnerTid, LockHoldKey, LockHoldTotals, WORDS, Word, activity, activity_of, source,
        },
        stacks::{hash_start, hash_step},
    },
    sys,
};

use crate::{
    prelude::*,
    registers::Registers,
    shared_maps::{self, sys_kind},
    signals::{ledger::thread, stacks},
};

/// A lock somebody waits for, or did last.
///
/// Several CPUs write it without a lock of their own (5.10 lets no tracing program take one): a hold
/// may lose a few ns to a race, or its owner. The number of those who wait is added to atomically.
#[repr(C)]
pub struct HeldLock {
    /// Hash of process and address.
    key: u64,
    /// When the hold began.
    since_ns: u64,
    /// The owner's account then, by [`activity`]; at the end of the hold what came since.
    activity_ns: [u64; activity::COUNT],
    /// Who has it, as far as is known: told by its word, handed over, or the last to let go. 0 for
    /// nobody.
    owner_tid: u32,
    /// Threads that wait.
    waiters: u32,
    /// Who let go last.
    released_by: u32,
    /// Whether `activity_ns` is the owner's.
    known: u8,
    /// Whether the owner was woken to take it and has done nothing yet that shows it did.
    handed: u8,
    /// See [`source`].
    source: u8,
    pad: u8,
}

/// Locks that are waited for, by hash, with two places for each: no element is ever freed, so that none
/// can be another lock's while a thread counts itself in, as may happen with elements of a hash map
/// (and a lookup here is under 1 ns). A power of two.
const HELD_LOCKS: u32 = 1024;

#[map(name = "held_locks")]
static HELD: Array<HeldLock> = Array::with_max_entries(HELD_LOCKS, 0);

/// Holds by lock, owner and places.
#[map(name = "lock_holds")]
static HOLDS: HashMap<LockHoldKey, LockHoldTotals> = HashMap::with_max_entries(2048, 0);

/// Threads in pid namespaces by the id they have there.
#[map(name = "inner_tids")]
static INNER_TIDS: HashMap<InnerTid, u32> = HashMap::with_max_entries(4096, 0);

/// Who has a lock.
#[derive(Clone, Copy)]
struct Owner {
    /// 0 for nobody that is known.
    tid: u32,
    source: u8,
}

const NOBODY: Owner = Owner {
    tid: 0,
    source: source::WAKER,
};

#[inline(always)]
fn key_of(t: &ThreadState) -> u64 {
    hash_step(hash_start(t.tgid), t.site.detail[0])
}

/// The first or second place of a lock, by `way` 1 or 2.
#[inline(always)]
fn place(key: u64, way: u8) -> Option<&'static mut HeldLock> {
    let index = (key >> 32) as u32 ^ (way as u32 & 1);
    let element = HELD.get_ptr_mut(index & (HELD_LOCKS - 1))?;
    // SAFETY: a live map value; what races is said at [`HeldLock`].
    Some(unsafe { &mut *element })
}

/// The place for one more that waits for a lock: where it is already, else one nobody waits at.
#[inline(always)]
fn free_place(key: u64) -> u8 {
    let (Some(first), Some(second)) = (place(key, 1), place(key, 2)) else {
        return 0;
    };
    if first.key == key {
        1
    } else if second.key == key {
        2
    } else if first.waiters == 0 {
        1
    } else if second.waiters == 0 {
        2
    } else {
        0
    }
}

/// The current thread is about to be blocked and waits for a lock.
///
/// A wait and the release that ends it cost about 80 ns more with all that is here: two threads that wake
/// each other out of a futex spent 1,000 to 1,390 ns in kernel programs for two of each, 900 to 1,200
/// without (on a busy machine).
#[inline(never)]
pub fn wait_begins(t: &mut ThreadState, task: Typed, now: u64) {
    let key = key_of(t);
    let way = free_place(key);
    if way == 0 {
        lose(Loss::HeldLockTaken);
        return;
    }
    let Some(lock) = place(key, way) else {
        return;
    };
    let told = owner_by_word(t, &Registers::of(task));
    if forgotten(&lock.waiters) == 0 {
        // Of a lock that does not tell, the last to let go is the best guess; only where it is he
        // that lets go again does what he did count.
        let last = Owner {
            tid: if lock.key == key { lock.owner_tid } else { 0 },
            source: source::WAKER,
        };
        lock.key = key;
        hold_begins(lock, t, if told.tid != 0 { told } else { last }, now);
    } else if told.tid == 0 && lock.owner_tid == t.tid {
        // It was woken to take the lock, and another thread was faster.
        hold_begins(lock, t, NOBODY, now);
    } else if told.tid != 0 && told.tid != lock.owner_tid {
        hold_begins(lock, t, told, now);
    } else if told.tid != 0 {
        lock.source = told.source;
        lock.handed = 0;
    }
    // SAFETY: a field of a live map value.
    unsafe { add32(&raw mut lock.waiters, 1) };
    t.lock_wait = way;
}

/// What the lock's own words say, if it is a thread of the same process.
#[inline(always)]
fn owner_by_word(t: &ThreadState, regs: &Registers) -> Owner {
    let word = Word::of(regs.arg1() as u32, regs.arg2() as u32);
    if word == Word::None {
        return NOBODY;
    }
    let Some(words) = user::<[u32; WORDS]>(t.site.detail[0]) else {
        return NOBODY;
    };
    let mut tid = word.owner(&words);
    if tid != 0 && t.inner_tid != 0 {
        let key = InnerTid { tgid: t.tgid, tid };
        // SAFETY: the value is an integer written whole.
        tid = unsafe { INNER_TIDS.get(&key) }.copied().unwrap_or(0);
    }
    match shared_maps::thread(tid) {
        // SAFETY: a live map value; the process of a thread does not change.
        Some(owner) if unsafe { (*owner).tgid } == t.tgid => Owner {
            tid,
            source: word.source(),
        },
        _ => NOBODY,
    }
}

/// Somebody has the lock from now on, as far as those who wait are concerned.
#[inline(always)]
fn hold_begins(lock: &mut HeldLock, waiter: &ThreadState, owner: Owner, now: u64) {
    lock.since_ns = now;
    lock.handed = 0;
    lock.known = 0;
    lock.source = owner.source;
    lock.owner_tid = if owner.tid == waiter.tid {
        0
    } else {
        owner.tid
    };
}

/// The current thread is blocked; its wait may have begun a hold, whose owner's account is read.
///
/// Not before the thread's stack is walked, and not at once then: owner and waiter often come out of one
/// barrier, so that the owner's account is just being written (a first block takes over 2 us) as the wait
/// begins. Missed were one in 500 accounts before the walk, one in 3,000 behind it.
#[inline(never)]
pub fn owner_is_read(t: &ThreadState, now: u64) {
    let way = t.lock_wait;
    if way == 0 {
        return;
    }
    let key = key_of(t);
    let Some(lock) = place(key, way) else {
        return;
    };
    let began_by_this = lock.key == key && forgotten(&lock.since_ns) == now && lock.known == 0;
    let Some(owner) = thread(lock.owner_tid) else {
        return;
    };
    if !began_by_this {
        return;
    }
    // Up to 2 us, as asking for the time takes 30 ns.
    for _ in 0..64 {
        if forgotten(&owner.seq) == forgotten(&owner.seq_tail) {
            break;
        }
        now_ns();
    }
    let known = account(owner, now, &mut lock.activity_ns, 0);
    // Let go of meanwhile, the next hold's account was here.
    let same = forgotten(&lock.since_ns) == now;
    lock.known = if same { known } else { 0 };
}

/// A thread that waited for a lock is woken: by the current thread, if that lets go of it.
#[inline(never)]
pub fn woken(t: &mut ThreadState, now: u64) {
    let way = t.lock_wait;
    if way == 0 {
        return;
    }
    gone(t);
    let key = key_of(t);
    let Some(lock) = place(key, way) else {
        return;
    };
    // SAFETY: no arguments.
    let releaser_tid = (unsafe { bpf_get_current_pid_tgid() }) as u32;
    // A timeout or a signal wakes from an interrupt or out of another call.
    if releaser_tid == 0 || lock.key != key {
        return;
    }
    let regs = Registers::of_current();
    if sys_kind(regs.nr()) != sys::FUTEX || regs.arg0() != t.site.detail[0] {
        return;
    }
    let Some(releaser) = thread(releaser_tid) else {
        return;
    };
    if lock.handed != 0 && lock.released_by == releaser_tid && lock.owner_tid != releaser_tid {
        // One release frees several, as that of a writer all readers.
        lock.owner_tid = 0;
        lock.known = 0;
        return;
    }
    hold_ends(lock, releaser, &regs, t.site.detail[0], now);
    lock.released_by = releaser_tid;
    if forgotten(&lock.waiters) != 0 {
        hand_over(lock, t, now);
    } else {
        lock.owner_tid = releaser_tid;
        lock.source = source::WAKER;
        lock.handed = 0;
    }
}

/// The woken thread is the next to have the lock, if no other is faster.
#[inline(always)]
fn hand_over(lock: &mut HeldLock, next: &ThreadState, now: u64) {
    lock.since_ns = now;
    lock.handed = 1;
    lock.source = source::WAKER;
    lock.owner_tid = next.tid;
    lock.known = account(next, now, &mut lock.activity_ns, 0);
}

/// A thread no longer waits for its lock.
#[inline(always)]
pub fn gone(t: &mut ThreadState) {
    let way = t.lock_wait;
    if way == 0 {
        return;
    }
    t.lock_wait = 0;
    if let Some(lock) = place(key_of(t), way) {
        // SAFETY: a field of a live map value. All ones is minus one.
        unsafe { add32(&raw mut lock.waiters, u32::MAX) };
    }
}

/// The current thread, `releaser`, let go of a lock: adds the hold to the totals.
#[inline(always)]
fn hold_ends(
    lock: &mut HeldLock,
    releaser: &mut ThreadState,
    regs: &Registers,
    address: u64,
    now: u64,
) {
    let own = lock.owner_tid == releaser.tid;
    let length = if now > lock.since_ns {
        now - lock.since_ns
    } else {
        0
    };
    let known =
        own && lock.known != 0 && account(releaser, now, &mut lock.activity_ns, length) != 0;
    let mut key = LockHoldKey {
        address,
        release_stack: 0,
        blocked_stack: 0,
        owner_tid: releaser.tid,
        slot: releaser.slot,
        blocked_class: class::UNKNOWN,
        pad: 0,
    };
    if setting!(stacks) != 0 {
        key.release_stack = stacks::of_release(releaser, regs);
        let blocked = activity_of(releaser.site.class) & (activity::COUNT - 1);
        // Time of that kind in the hold means that the last block, which the site is of, was in it.
        if known && lock.activity_ns[blocked] > length / 4 && blocked > activity::RUNQ {
            key.blocked_stack = releaser.site.user_stack;
            key.blocked_class = releaser.site.class;
        }
    }
    let told = if own && lock.source != source::WAKER {
        lock.source as u64
    } else {
        0
    };
    add_hold(&key, lock, length, known, told);
}

/// VERIFIER: a function of its own: the stacks of all calls of a walk together are at most 512 bytes, and
/// what is needed here is not to be on them meanwhile (544 bytes otherwise).
#[inline(never)]
fn add_hold(key: &LockHoldKey, lock: &HeldLock, length: u64, known: bool, told: u64) {
    let empty = LockHoldTotals::default();
    let Some(totals) = element(&HOLDS, key, &empty, Loss::LockHoldsFull) else {
        return;
    };
    // SAFETY: a live map value.
    unsafe {
        add(&raw mut (*totals).count, 1);
        add(&raw mut (*totals).sum_ns, length);
        raise(&raw mut (*totals).max_ns, length);
        if known {
            let to = (&raw mut (*totals).activity_ns).cast::<u64>();
            for group in 0..activity::COUNT {
                add(to.add(group), lock.activity_ns[group]);
            }
        }
        if told != 0 {
            add(&raw mut (*totals).told, 1);
            (*totals).source = told;
        }
    }
}

/// A thread's account up to `now` by [`activity`]. With a `length`, what came since the account in
/// `out`, in all at most that. 0 where the account could not be read: another CPU was at it.
#[inline(never)]
fn account(t: &ThreadState, now: u64, out: &mut [u64; activity::COUNT], length: u64) -> u8 {
    let seq = forgotten(&t.seq);
    let since = forgotten(&t.since_ns);
    let open = if now > since { now - since } else { 0 };
    let current = match forgotten(&t.state) {
        thread_state::ON_CPU => class::CPU,
        thread_state::QUEUED => class::RUNQ,
        thread_state::BLOCKED => forgotten(&t.site.class),
        // Seeded: what it does is not known until its first event.
        _ => return 0,
    };
    let mut sums = [0u64; activity::COUNT];
    let mut class = 0;
    while class < class::COUNT {
        sums[activity_of(class as u8)] += forgotten(&t.spent_ns[class]);
        class += 1;
    }
    if forgotten(&t.seq_tail) != seq {
        return 0;
    }
    let current = activity_of(current);
    let mut left = length;
    for group in 0..activity::COUNT {
        let mut sum = sums[group];
        if group == current {
            sum += open;
        }
        if length != 0 {
            // What is put right at a switch-out moves time between classes, also back.
            sum = sum.wrapping_sub(out[group]);
            if sum > left {
                sum = if (sum as i64) < 0 { 0 } else { left };
            }
            left -= sum;
        }
        out[group] = sum;
    }
    1
}

/// A thread was made, in a pid namespace perhaps: its id there, and the way back from it.
#[inline(always)]
pub fn inner_tid(task: Typed, tid: u32, tgid: u32) -> u32 {
    if offset!(task_thread_pid) == ABSENT || offset!(pid_level) == ABSENT {
        return 0;
    }
    let pid: Typed = field(task, offset!(task_thread_pid));
    let level: u32 = field(pid, offset!(pid_level));
    if level == 0 {
        return 0;
    }
    let number = offset!(pid_numbers) + level * offset!(upid_size) + offset!(upid_nr);
    let Some(inner) = kernel::<u32>(pid as u64 + number as u64) else {
        return 0;
    };
    if INNER_TIDS
        .insert(&InnerTid { tgid, tid: inner }, &tid, 0)
        .is_err()
    {
        lose(Loss::InnerTidsFull);
    }
    inner
}

/// A thread ended.
#[inline(always)]
pub fn ended(t: &ThreadState) {
    if t.inner_tid != 0 {
        let _ = INNER_TIDS.remove(&InnerTid {
            tgid: t.tgid,
            tid: t.inner_tid,
        });
    }
}

/// Whether the thread, just found blocked, waits for a lock whose address is known.
#[inline(always)]
pub fn waits(t: &ThreadState) -> bool {
    t.site.class == class::LOCK && t.site.detail_kind == detail::FUTEX
}
