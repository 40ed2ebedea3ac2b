//! The loads of `cargo xtask bench`, whose cost for one step is known to a nanosecond or so.
//!
//! ```text
//! bench_load read         reads one byte of /dev/zero; a step is one call
//! bench_load compute      computes 30 calls deep; a step is 10 µs in which nothing comes between
//! bench_load ping-pong    passes a byte between two threads on one CPU; a step is a round trip
//! ```
//!
//! It prints `ready`, then for each line of standard input, a number of milliseconds, runs for
//! that time and prints `{"steps":N,"cpu_ns":N,"ns_per_step":X}`. The time is that of the process
//! on its CPU, so that other work of the machine does not count; one of the threads always runs,
//! so undisturbed it is the wall time. Between two lines the load sleeps in a read of standard
//! input, which is what an idle target is.

use std::{
    hint::black_box,
    io::{self, BufRead as _, Write as _},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// Steps between two looks at the clock.
const BATCH: u32 = 256;

/// What comes between two readings of the clock from here on is an interrupt: they are 30 to 60 ns apart.
const INTERRUPT: Duration = Duration::from_nanos(500);
/// And from here on another program, or a hypervisor.
const ANOTHER: Duration = Duration::from_millis(1);
const COMPUTE_STEP: Duration = Duration::from_micros(10);

/// One step of a load.
type Step = Box<dyn FnMut() -> io::Result<()>>;

/// Runs a load for a time; how many steps that were, and the CPU time they took.
type Run = Box<dyn FnMut(Duration) -> Result<(u64, u64)>>;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    pin().context("pinning to a CPU")?;
    let mut run = match (arguments.next().as_deref(), arguments.next()) {
        (Some("read"), None) => in_steps(read_step()?),
        (Some("compute"), None) => Box::new(|time| Ok(compute(black_box(30), time))),
        (Some("ping-pong"), None) => in_steps(ping_pong_step()?),
        _ => bail!("usage: bench_load read|compute|ping-pong"),
    };
    println!("ready");
    for line in io::stdin().lock().lines() {
        let line = line.context("reading standard input")?;
        let milliseconds = line
            .trim()
            .parse()
            .with_context(|| format!("{line:?} is not a number of milliseconds"))?;
        let (steps, cpu_ns) = run(Duration::from_millis(milliseconds))?;
        let mut out = io::stdout().lock();
        writeln!(
            out,
            r#"{{"steps":{steps},"cpu_ns":{cpu_ns},"ns_per_step":{:.2}}}"#,
            cpu_ns as f64 / steps as f64
        )?;
        out.flush()?;
    }
    Ok(())
}

fn in_steps(mut step: Step) -> Run {
    Box::new(move |time| {
        let started = Instant::now();
        let cpu_started_ns = cpu_ns()?;
        let mut steps = 0;
        loop {
            for _ in 0..BATCH {
                step()?;
            }
            steps += u64::from(BATCH);
            if started.elapsed() >= time {
                return Ok((steps, cpu_ns()? - cpu_started_ns));
            }
        }
    })
}

fn read_step() -> Result<Step> {
    let zero = open(c"/dev/zero").context("opening /dev/zero")?;
    Ok(Box::new(move || read_byte(zero)))
}

/// Looks at the clock all the time, `depth` calls deep. Only what comes between counts against a step: by how much
/// a fixed piece of work becomes slower says less, as the speed of a virtual CPU moves by more than samples take
/// (3 to 7 µs for the same work from one second to the next).
#[inline(never)]
fn compute(depth: u32, time: Duration) -> (u64, u64) {
    if depth > 0 {
        return black_box(compute(depth - 1, time));
    }
    let (mut own, mut taken) = (Duration::ZERO, Duration::ZERO);
    let started = Instant::now();
    let mut last = started;
    while last - started < time {
        let now = Instant::now();
        match now - last {
            between if between < INTERRUPT => own += between,
            between if between < ANOTHER => taken += between,
            _ => {}
        }
        last = now;
    }
    let steps = own.as_nanos() / COMPUTE_STEP.as_nanos();
    (steps as u64, (own + taken).as_nanos() as u64)
}

/// The other thread answers each byte with a byte, until the first thread's end of the pipe is
/// closed by the end of the process.
fn ping_pong_step() -> Result<Step> {
    let (ping_read, ping_write) = pipe()?;
    let (pong_read, pong_write) = pipe()?;
    thread::Builder::new()
        .name("pong".to_owned())
        .spawn(
            move || {
                while read_byte(ping_read).is_ok() && write_byte(pong_write).is_ok() {}
            },
        )
        .context("starting a thread")?;
    Ok(Box::new(move || {
        write_byte(ping_write)?;
        read_byte(pong_read)
    }))
}

/// CPU time of all threads of this process.
fn cpu_ns() -> io::Result<u64> {
    // SAFETY: a timespec is plain integers, for which zero is a value.
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: the timespec is written to and outlives the call.
    checked(unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) } as isize)?;
    Ok(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// Pins this thread, and those it starts, to the first CPU it may use.
fn pin() -> io::Result<()> {
    // SAFETY: a CPU set is a plain bit mask, for which zero is the empty one.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the mask is written to, outlives the call, and its size is given.
    checked(unsafe { libc::sched_getaffinity(0, size_of_val(&set), &mut set) } as isize)?;
    let first = (0..libc::CPU_SETSIZE as usize)
        // SAFETY: the CPU is within the mask.
        .find(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) })
        .ok_or_else(|| io::Error::other("this process may use no CPU"))?;
    // SAFETY: as above.
    unsafe { libc::CPU_ZERO(&mut set) };
    // SAFETY: the CPU is within the mask.
    unsafe { libc::CPU_SET(first, &mut set) };
    // SAFETY: the mask outlives the call, and its size is given.
    checked(unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) } as isize)?;
    Ok(())
}

fn open(path: &std::ffi::CStr) -> io::Result<i32> {
    // SAFETY: the path ends with a zero byte.
    let fd = unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    checked(fd as isize)?;
    Ok(fd)
}

fn pipe() -> io::Result<(i32, i32)> {
    let mut fds = [0; 2];
    // SAFETY: the array has room for both descriptors.
    checked(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) } as isize)?;
    Ok((fds[0], fds[1]))
}

fn read_byte(fd: i32) -> io::Result<()> {
    let mut byte = 0u8;
    // SAFETY: one byte is written to one byte of room.
    match checked(unsafe { libc::read(fd, (&raw mut byte).cast(), 1) })? {
        1 => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn write_byte(fd: i32) -> io::Result<()> {
    // SAFETY: one byte is read from one byte.
    checked(unsafe { libc::write(fd, (&raw const fd).cast(), 1) })?;
    Ok(())
}

fn checked(result: isize) -> io::Result<isize> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}
