//! Locks of each kind, held for a known time by a thread of a known name that sleeps, computes or
//! waits for the disk meanwhile, while another waits; all by the program's own clock.

use std::cell::UnsafeCell;
use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::clock::{Clock, clock_ns};
use super::gate::{Gate, Options, join, thread};

const ROUNDS: u32 = 8;
const HELD: Duration = Duration::from_millis(20);
/// Disks differ by a factor of a thousand, and there are those in memory.
const DISK_AT_MOST: Duration = Duration::from_millis(100);
/// How long each thread of the convoy holds its lock, in ms.
const CONVOY_MS: [u64; 3] = [2, 4, 6];
const CONVOY_ROUNDS: u32 = 30;
/// System calls that a thread waits in, by number, as `/proc` has them.
const FUTEX: i64 = libc::SYS_futex;

/// How the two threads take a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Mutex,
    /// The one that waits sets a deadline.
    Timed,
    Recursive,
    Robust,
    /// Made for several processes, which changes how its waiters are found.
    Shared,
    Pi,
    /// A reader waits for a writer.
    Read,
    /// A writer waits for a writer.
    Write,
    /// A writer waits for a reader.
    Reader,
    Rust,
}

impl Kind {
    fn is_rwlock(self) -> bool {
        matches!(self, Kind::Read | Kind::Write | Kind::Reader)
    }
}

const KINDS: [(&str, Kind); 10] = [
    ("mutex", Kind::Mutex),
    ("timed", Kind::Timed),
    ("nested", Kind::Recursive),
    ("robust", Kind::Robust),
    ("shared", Kind::Shared),
    ("pi", Kind::Pi),
    ("read", Kind::Read),
    ("write", Kind::Write),
    ("reader", Kind::Reader),
    ("rust", Kind::Rust),
];

/// What a thread does while it holds a lock.
type Work = fn(&mut File) -> io::Result<()>;

const WORKS: [(&str, &str, Work); 3] = [
    ("timer", "nap_with_the_lock", nap_with_the_lock),
    ("cpu", "compute_with_the_lock", compute_with_the_lock),
    ("disk", "flush_log", flush_log),
];

pub fn run(options: &Options, gate: &Gate) -> io::Result<String> {
    gate.open()?;
    let mut rows = Vec::new();
    for (name, kind) in KINDS {
        for work in WORKS {
            rows.push(duel(name, kind, work, &options.directory)?);
        }
    }
    for (name, kind) in [("mutex", Kind::Mutex), ("rust", Kind::Rust)] {
        rows.extend(convoy(name, kind)?);
    }
    rows.push(condition()?);
    Ok(format!("[{}]", rows.join(",")))
}

/// Looks like glibc's mutex to who takes a Rust mutex for one: users, owner, kind.
struct Bait([u32; 8]);

/// The locks, of which one is used; pinned in an `Arc`.
struct AnyLock {
    kind: Kind,
    mutex: UnsafeCell<libc::pthread_mutex_t>,
    rwlock: UnsafeCell<libc::pthread_rwlock_t>,
    rust: Mutex<Bait>,
}

// SAFETY: only handed to pthread functions, which are made for it.
unsafe impl Sync for AnyLock {}
// SAFETY: as above; it is in an Arc and does not move.
unsafe impl Send for AnyLock {}

/// An error number as a `Result`, for pthread functions.
fn done(error: i32) -> io::Result<()> {
    match error {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

impl AnyLock {
    /// `bait` is a thread that never holds it.
    fn new(kind: Kind, bait: u32) -> io::Result<Arc<AnyLock>> {
        let lock = Arc::new(AnyLock {
            kind,
            mutex: UnsafeCell::new(libc::PTHREAD_MUTEX_INITIALIZER),
            rwlock: UnsafeCell::new(libc::PTHREAD_RWLOCK_INITIALIZER),
            rust: Mutex::new(Bait([0, bait, 1, 0, bait, 1, 0, bait])),
        });
        let mut attributes = std::mem::MaybeUninit::uninit();
        let attributes = attributes.as_mut_ptr();
        // SAFETY: initialised before it is used; the mutex is in its place and not in use yet.
        unsafe {
            done(libc::pthread_mutexattr_init(attributes))?;
            done(match kind {
                Kind::Recursive => {
                    libc::pthread_mutexattr_settype(attributes, libc::PTHREAD_MUTEX_RECURSIVE)
                }
                Kind::Robust => {
                    libc::pthread_mutexattr_setrobust(attributes, libc::PTHREAD_MUTEX_ROBUST)
                }
                Kind::Shared => {
                    libc::pthread_mutexattr_setpshared(attributes, libc::PTHREAD_PROCESS_SHARED)
                }
                Kind::Pi => {
                    libc::pthread_mutexattr_setprotocol(attributes, libc::PTHREAD_PRIO_INHERIT)
                }
                _ => 0,
            })?;
            done(libc::pthread_mutex_init(lock.mutex.get(), attributes))?;
        }
        // Never freed: each lock has an address of its own.
        std::mem::forget(lock.clone());
        Ok(lock)
    }

    /// Where it is, and its length.
    fn place(&self) -> (usize, usize) {
        match self.kind {
            kind if kind.is_rwlock() => (self.rwlock.get() as usize, size_of_val(&self.rwlock)),
            Kind::Rust => (&raw const self.rust as usize, size_of_val(&self.rust)),
            _ => (self.mutex.get() as usize, size_of_val(&self.mutex)),
        }
    }

    /// Runs `job` with the lock taken by its holder.
    fn hold<T>(&self, job: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.with(job, |lock| match lock.kind {
            // SAFETY: initialised, in an Arc that outlives the call.
            Kind::Read | Kind::Write => unsafe { libc::pthread_rwlock_wrlock(lock.rwlock.get()) },
            // SAFETY: as above.
            Kind::Reader => unsafe { libc::pthread_rwlock_rdlock(lock.rwlock.get()) },
            // SAFETY: as above.
            _ => unsafe { libc::pthread_mutex_lock(lock.mutex.get()) },
        })
    }

    /// Takes the lock as the one that waits does, and lets go.
    #[inline(never)]
    fn wait(&self) -> io::Result<()> {
        self.with(|| Ok(()), take_waiting)
    }

    fn with<T>(
        &self,
        job: impl FnOnce() -> io::Result<T>,
        take: impl FnOnce(&AnyLock) -> i32,
    ) -> io::Result<T> {
        if self.kind == Kind::Rust {
            let guard = self.rust.lock().unwrap_or_else(PoisonError::into_inner);
            let result = job();
            black_box(guard.0);
            return result;
        }
        done(take(self))?;
        let result = job();
        // SAFETY: taken by this thread.
        done(unsafe {
            match self.kind {
                kind if kind.is_rwlock() => libc::pthread_rwlock_unlock(self.rwlock.get()),
                _ => libc::pthread_mutex_unlock(self.mutex.get()),
            }
        })?;
        result
    }
}

fn take_waiting(lock: &AnyLock) -> i32 {
    let deadline = libc::timespec {
        tv_sec: libc::time_t::MAX,
        tv_nsec: 0,
    };
    // SAFETY: initialised, in an Arc that outlives the call.
    unsafe {
        match lock.kind {
            Kind::Read => libc::pthread_rwlock_rdlock(lock.rwlock.get()),
            Kind::Write | Kind::Reader => libc::pthread_rwlock_wrlock(lock.rwlock.get()),
            Kind::Timed => libc::pthread_mutex_timedlock(lock.mutex.get(), &raw const deadline),
            _ => libc::pthread_mutex_lock(lock.mutex.get()),
        }
    }
}

fn now() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

/// Id of the calling thread.
pub fn tid() -> u32 {
    // SAFETY: no arguments.
    (unsafe { libc::gettid() }).cast_unsigned()
}

/// Until a thread of this process is blocked in a futex call on a word of the lock.
pub fn until_blocked(tid: u64, (address, length): (usize, usize)) -> io::Result<()> {
    loop {
        let call = std::fs::read_to_string(format!("/proc/self/task/{tid}/syscall"))?;
        let mut words = call.split_whitespace();
        let number = words.next().and_then(|w| w.parse::<i64>().ok());
        let word = words.next().and_then(|w| w.strip_prefix("0x"));
        let word = word.and_then(|w| usize::from_str_radix(w, 16).ok());
        if number == Some(FUTEX) && word.is_some_and(|w| w.wrapping_sub(address) < length) {
            return Ok(());
        }
    }
}

/// What one thread did with a lock.
#[derive(Default)]
struct Held {
    tid: u32,
    count: u32,
    /// From when it knew the other was blocked, or from when it had the lock, to its letting go.
    ns: u64,
    /// Of that, CPU time.
    cpu_ns: u64,
    /// And what was taken from it on the CPU, at most.
    taken_ns: u64,
    /// Time in the run queue from its first hold to behind its last, by the scheduler's own count.
    runq_ns: u64,
}

/// One thread holds, one waits.
fn duel(
    name: &str,
    kind: Kind,
    (class, function, work): (&str, &str, Work),
    directory: &Path,
) -> io::Result<String> {
    let lock = AnyLock::new(kind, std::process::id())?;
    let place = lock.place();
    let path = directory.join(format!("held-locks-{}", std::process::id()));
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .open(&path)?;
    let turn = Arc::new((Barrier::new(2), AtomicU64::new(0)));
    let (a, b) = (turn.clone(), lock.clone());
    let waiter = thread(&format!("{name}-{class}-w"), move || {
        a.1.store(tid().into(), Ordering::Relaxed);
        let mut waited = 0;
        for _ in 0..ROUNDS {
            a.0.wait();
            let before = now();
            b.wait()?;
            waited += now() - before;
            a.0.wait();
        }
        Ok::<u64, io::Error>(waited)
    })?;
    let holder = thread(&format!("{name}-{class}-h"), move || {
        let mut held = Held {
            tid: tid(),
            ..Held::default()
        };
        let clock = Clock::new()?;
        let queued = clock.schedstat()?.wait_ns;
        for _ in 0..ROUNDS {
            lock.hold(|| {
                turn.0.wait();
                until_blocked(turn.1.load(Ordering::Relaxed), place)?;
                let began = clock.read()?;
                work(&mut file)?;
                held.count += 1;
                let ended = clock.read()?;
                held.cpu_ns += ended.cpu_ns - began.cpu_ns;
                held.taken_ns += ended.taken_ns(&began);
                held.ns += ended.wall_ns - began.wall_ns;
                Ok(())
            })?;
            turn.0.wait();
        }
        held.runq_ns = clock.schedstat()?.wait_ns - queued;
        Ok::<Held, io::Error>(held)
    })?;
    let held = join(holder)??;
    let waited_ns = join(waiter)??;
    std::fs::remove_file(path)?;
    Ok(format!(
        "{{\"lock\":\"{name}\",\"class\":\"{class}\",\"function\":\"{function}\",\"address\":{},\
         \"length\":{},\"owner\":{},\"holds\":{},\"held_ns\":{},\"cpu_ns\":{},\"taken_ns\":{},\"runq_ns\":{},\"waited_ns\":{waited_ns}}}",
        place.0, place.1, held.tid, held.count, held.ns, held.cpu_ns, held.taken_ns, held.runq_ns
    ))
}

#[inline(never)]
fn nap_with_the_lock(_: &mut File) -> io::Result<()> {
    std::thread::sleep(HELD);
    Ok(())
}

#[inline(never)]
fn compute_with_the_lock(_: &mut File) -> io::Result<()> {
    let end = clock_ns(libc::CLOCK_THREAD_CPUTIME_ID) + HELD.as_nanos() as u64;
    while clock_ns(libc::CLOCK_THREAD_CPUTIME_ID) < end {
        black_box((0..20_000u64).fold(1u64, |a, b| black_box(a.wrapping_mul(31) ^ b)));
    }
    Ok(())
}

#[inline(never)]
fn flush_log(file: &mut File) -> io::Result<()> {
    let began = now();
    let cpu = || clock_ns(libc::CLOCK_THREAD_CPUTIME_ID);
    let cpu_before = cpu();
    let spent = || {
        let all = now() - began;
        (all, all - (cpu() - cpu_before))
    };
    loop {
        file.write_all(&[7u8; 32 << 10])?;
        file.sync_all()?;
        let (all, blocked) = spent();
        if blocked >= HELD.as_nanos() as u64 || all >= DISK_AT_MOST.as_nanos() as u64 {
            return Ok(());
        }
    }
}

/// Three threads hand one lock on, each of which holds it for another time; somebody always waits.
fn convoy(name: &str, kind: Kind) -> io::Result<Vec<String>> {
    let lock = AnyLock::new(kind, std::process::id())?;
    let place = lock.place();
    let threads = CONVOY_MS.map(|ms| {
        let lock = lock.clone();
        thread(&format!("{name}-convoy-{ms}"), move || {
            let mut held = Held {
                tid: tid(),
                ..Held::default()
            };
            for _ in 0..CONVOY_ROUNDS {
                lock.hold(|| {
                    let began = now();
                    std::thread::sleep(Duration::from_millis(ms));
                    held.count += 1;
                    held.ns += now() - began;
                    Ok(())
                })?;
                // Lets the next have it: an unfair mutex would be taken again at once.
                std::thread::sleep(Duration::from_micros(500));
            }
            Ok::<Held, io::Error>(held)
        })
    });
    let mut rows = Vec::new();
    for (thread, ms) in threads.into_iter().zip(CONVOY_MS) {
        let held = join(thread?)??;
        rows.push(format!(
            "{{\"lock\":\"{name}\",\"class\":\"convoy\",\"address\":{},\"length\":{},\"owner\":{},\
             \"holds\":{},\"held_ns\":{},\"slept_ms\":{ms}}}",
            place.0, place.1, held.tid, held.count, held.ns
        ));
    }
    Ok(rows)
}

/// A wait for a condition that looks like one for a lock: Rust's `Condvar` counts how often it was
/// notified, and the third wait is for the value 2. Who notifies holds nothing.
fn condition() -> io::Result<String> {
    let state = Arc::new((Mutex::new(0u32), Condvar::new()));
    let place = (&raw const state.1 as usize, size_of_val(&state.1));
    let own = u64::from(tid());
    let begun = Arc::new(AtomicU32::new(0));
    let (notifier_state, waits) = (state.clone(), begun.clone());
    let notifier = thread("notifier", move || {
        for round in 1..=3 {
            // One that is being woken, by a message to its CPU, counts as blocked in its last wait.
            while waits.load(Ordering::Acquire) < round {
                std::hint::spin_loop();
            }
            until_blocked(own, place)?;
            *notifier_state
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = round;
            notifier_state.1.notify_one();
        }
        Ok::<u32, io::Error>(tid())
    })?;
    for round in 1..=3 {
        let guard = state.0.lock().unwrap_or_else(PoisonError::into_inner);
        begun.store(round, Ordering::Release);
        let guard = state.1.wait_while(guard, |done| *done < round);
        drop(guard.unwrap_or_else(PoisonError::into_inner));
    }
    let notifier = join(notifier)??;
    Ok(format!(
        "{{\"lock\":\"condition\",\"class\":\"condition\",\"address\":{},\"length\":{},\"owner\":{notifier}}}",
        place.0, place.1
    ))
}
