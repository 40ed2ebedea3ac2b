//! What a thread can measure of itself: a consistent reading of the wall clock, its CPU time and
//! its time in the run queue, so that the time it was blocked is the difference of two readings.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;

/// From linux/perf_event.h.
const PERF_TYPE_SOFTWARE: u64 = 1;
const PERF_COUNT_SW_TASK_CLOCK: u64 = 1;

/// The calling thread at one instant.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reading {
    /// CLOCK_MONOTONIC.
    pub wall_ns: u64,
    /// CLOCK_THREAD_CPUTIME_ID.
    pub cpu_ns: u64,
    /// Time on a CPU, whoever had it meanwhile ([`OnCpu`]).
    pub on_cpu_ns: u64,
    /// Second field of schedstat.
    pub runq_ns: u64,
}

impl Reading {
    /// What a hypervisor and interrupts took since `before` while the thread was on a CPU, at most. The scheduler's
    /// clock of the thread may stand still then, and to a ledger the thread runs: 50 ms of 780 once, 5 of 80 in a
    /// thread that is moved a thousand times.
    pub fn taken_ns(&self, before: &Reading) -> u64 {
        let on_cpu = self.on_cpu_ns - before.on_cpu_ns;
        on_cpu.saturating_sub(self.cpu_ns - before.cpu_ns)
    }
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
    on_cpu: OnCpu,
}

impl Clock {
    /// For the calling thread.
    pub fn new() -> io::Result<Self> {
        let schedstat = File::open("/proc/thread-self/schedstat")?;
        let on_cpu = OnCpu::new()?;
        Ok(Clock { schedstat, on_cpu })
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
            let on_cpu_ns = self.on_cpu.ns()?;
            if self.schedstat()?.wait_ns == before {
                return Ok(Reading {
                    wall_ns,
                    cpu_ns,
                    on_cpu_ns,
                    runq_ns: before,
                });
            }
        }
    }
}

/// How long the calling thread was on a CPU, by the kernel's clock for performance events
/// (PERF_COUNT_SW_TASK_CLOCK, perf_event_open(2)). It runs from one switch to the next, and on while a tracer's
/// program at the switch does: some 3 µs a switch more than the thread had.
struct OnCpu {
    before_ns: u64,
    event: Option<File>,
}

impl OnCpu {
    fn new() -> io::Result<Self> {
        // perf_event_attr as it was first: type and size, config, and nothing else asked for.
        let mut attributes = [0u64; 8];
        attributes[0] = PERF_TYPE_SOFTWARE | (size_of_val(&attributes) as u64) << 32;
        attributes[1] = PERF_COUNT_SW_TASK_CLOCK;
        let before_ns = clock_ns(libc::CLOCK_THREAD_CPUTIME_ID);
        // SAFETY: `attributes` is valid for the size it tells; this thread, on any CPU, in no group.
        let event = unsafe {
            let attributes = attributes.as_ptr();
            libc::syscall(libc::SYS_perf_event_open, attributes, 0, -1, -1, 0)
        };
        let event = match event {
            fd @ 0.. => {
                // SAFETY: just made, owned by nobody else.
                Some(unsafe { File::from_raw_fd(fd as i32) })
            }
            _ => match io::Error::last_os_error() {
                // Nobody but root may, on most hosts. The scheduler's clock is the same while nobody takes the CPU.
                e if e.kind() == io::ErrorKind::PermissionDenied => None,
                e => return Err(e),
            },
        };
        Ok(OnCpu { before_ns, event })
    }

    fn ns(&self) -> io::Result<u64> {
        let Some(mut event) = self.event.as_ref() else {
            return Ok(clock_ns(libc::CLOCK_THREAD_CPUTIME_ID));
        };
        let mut ns = [0; 8];
        event.read_exact(&mut ns)?;
        Ok(self.before_ns + u64::from_ne_bytes(ns))
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
