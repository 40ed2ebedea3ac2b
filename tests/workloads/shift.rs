//! A shift of workers, each of whom gets a unit of work when it falls due, or as soon as the one before
//! is done. What a unit took is what a program of the gallery is judged by.
//!
//! Between units they wait on a condition variable, as the workers of a server do.

use std::hint::black_box;
use std::io::{self, BufRead, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Tells all workers that the shift is over.
#[derive(Default)]
struct Whistle {
    blown: Mutex<bool>,
    heard: Condvar,
}

impl Whistle {
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.blown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn blow(&self) {
        *self.lock() = true;
        self.heard.notify_all();
    }

    /// Waits until `due`; whether the shift goes on.
    fn wait_until(&self, due: Instant) -> bool {
        let mut blown = self.lock();
        loop {
            let left = due.saturating_duration_since(Instant::now());
            if *blown || left.is_zero() {
                return !*blown;
            }
            let woken = self.heard.wait_timeout(blown, left);
            blown = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// What one worker did.
#[derive(Clone, Copy, Debug, Default)]
struct Done {
    units: u64,
    busy: Duration,
}

/// Memory in use, of programs that are judged by that.
static KEPT_BYTES: AtomicUsize = AtomicUsize::new(0);

/// Tells how much memory is in use now.
pub fn kept(bytes: usize) {
    KEPT_BYTES.store(bytes, Ordering::Relaxed);
}

/// Says that the program is ready, and from the first line of standard input to the second has `workers`
/// threads do a unit of work `every` so often each, by what `hire` makes for it. Then prints units,
/// time spent in them, wall time and memory kept.
///
/// # Errors
/// The first of any unit.
pub fn work<J: FnMut() -> io::Result<()>>(
    workers: usize,
    every: Duration,
    hire: impl Fn(usize) -> io::Result<J> + Sync,
) -> io::Result<()> {
    say(&format!("READY {}", std::process::id()))?;
    wait_for_line()?;
    let whistle = Whistle::default();
    let begun = Instant::now();
    let results = thread::scope(|scope| {
        let threads = (0..workers).map(|i| {
            let (whistle, hire) = (&whistle, &hire);
            // Not all at the same moment.
            let first = begun + every * i as u32 / workers as u32;
            thread::Builder::new()
                .name(format!("worker-{i}"))
                .spawn_scoped(scope, move || keep_at_it(hire(i)?, first, every, whistle))
        });
        let threads: Vec<_> = threads.collect::<io::Result<_>>()?;
        wait_for_line()?;
        whistle.blow();
        let ends = threads.into_iter().map(|thread| {
            let panicked = |_| io::Error::other("a worker panicked");
            thread.join().map_err(panicked)?
        });
        ends.collect::<io::Result<Vec<Done>>>()
    })?;
    let wall = begun.elapsed();
    let units: u64 = results.iter().map(|done| done.units).sum();
    let busy: Duration = results.iter().map(|done| done.busy).sum();
    say(&format!(
        "DONE {{\"units\":{units},\"busy_ns\":{},\"wall_ns\":{},\"kept_bytes\":{}}}",
        busy.as_nanos(),
        wall.as_nanos(),
        KEPT_BYTES.load(Ordering::Relaxed),
    ))
}

/// The day of one worker.
fn keep_at_it(
    mut unit: impl FnMut() -> io::Result<()>,
    first: Instant,
    every: Duration,
    whistle: &Whistle,
) -> io::Result<Done> {
    let mut done = Done::default();
    let mut due = first;
    while whistle.wait_until(due) {
        let begun = Instant::now();
        unit()?;
        done.busy += begun.elapsed();
        done.units += 1;
        // What could not be kept up with is not made up for later.
        due = (due + every).max(Instant::now());
    }
    Ok(done)
}

fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

/// Until a line, or the end of the input.
fn wait_for_line() -> io::Result<()> {
    io::stdin().lock().read_line(&mut String::new()).map(drop)
}

/// Steps of [`compute`] that take a millisecond: the fewest of some tries, so that others on the machine
/// count little.
pub fn steps_per_ms() -> u64 {
    const STEPS: u64 = 100_000;
    let once = || {
        let begun = Instant::now();
        compute(STEPS);
        begun.elapsed()
    };
    let fastest = (0..20).map(|_| once()).min().unwrap_or_default();
    STEPS * 1_000_000 / (fastest.as_nanos() as u64).max(1)
}

/// Computes for so many steps.
#[inline(never)]
pub fn compute(steps: u64) {
    let mut state = 1u64;
    for _ in 0..steps {
        state = black_box(state.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (state >> 29));
    }
}
