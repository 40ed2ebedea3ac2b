//! What a thread can measure of itself: a consistent reading of the wall clock, its CPU time and
//! its time in the run queue, so that the time it was blocked is the difference of two readings.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The calling thread at one instant.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reading {
    /// CLOCK_MONOTONIC.
    pub wall_ns: u64,
    /// CLOCK_THREAD_CPUTIME_ID.
    pub cpu_ns: u64,
    /// Second field of schedstat.
    pub runq_ns: u64,
}

/// First two fields of a schedstat file: time on the CPU and in the run queue. The first is as old
/// as the last scheduler tick for a thread that runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Schedstat {
    pub run_ns: u64,
    pub wait_ns: u64,
}

/// Reads the calling thread's clocks. Not to be sent to another thread: it holds the file of this
/// one.
pub struct Clock {
    schedstat: File,
}

impl Clock {
    /// For the calling thread.
    pub fn new() -> io::Result<Self> {
        let schedstat = File::open("/proc/thread-self/schedstat")?;
        Ok(Clock { schedstat })
    }

    /// The scheduler's own figures for this thread.
    pub fn schedstat(&self) -> io::Result<Schedstat> {
        let mut buffer = [0u8; 128];
        let length = self.schedstat.read_at(&mut buffer, 0)?;
        let text = String::from_utf8_lossy(&buffer[..length]);
        let mut fields = text.split_ascii_whitespace().map(str::parse);
        match (fields.next(), fields.next()) {
            (Some(Ok(run_ns)), Some(Ok(wait_ns))) => Ok(Schedstat { run_ns, wait_ns }),
            _ => Err(io::Error::other(format!("schedstat says {text:?}"))),
        }
    }

    /// All clocks at one instant: read again where the thread was preempted between them.
    pub fn read(&self) -> io::Result<Reading> {
        loop {
            let before = self.schedstat()?.wait_ns;
            let wall_ns = clock_ns(libc::CLOCK_MONOTONIC);
            let cpu_ns = clock_ns(libc::CLOCK_THREAD_CPUTIME_ID);
            if self.schedstat()?.wait_ns == before {
                return Ok(Reading {
                    wall_ns,
                    cpu_ns,
                    runq_ns: before,
                });
            }
        }
    }
}

/// A POSIX clock in nanoseconds.
pub fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is a valid timespec; the clocks used exist on every Linux.
    unsafe { libc::clock_gettime(clock, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
