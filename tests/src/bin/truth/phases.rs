//! What each thread does. Every wait that takes a set time is inside `Meter::blocked`, under the
//! class the ledger is to give it.

use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::FromRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use perf_agent_tests::workloads::clock::clock_ns;
use perf_agent_tests::workloads::measured::Measured;
use perf_agent_tests::workloads::meter::{Account, Meter};

use super::event_loop;

pub const NAP_ARGUMENT: &str = "--nap-as-a-child";

const SPIN: Duration = Duration::from_millis(300);
const KERNEL: Duration = Duration::from_millis(200);
const SLEEP_PIECES: u32 = 8;
const SLEEP_PIECE: Duration = Duration::from_millis(50);
const MUTEX_HELD: Duration = Duration::from_millis(250);
const ANSWER_AFTER: Duration = Duration::from_millis(350);
/// How long the servers wait for their request.
pub const ASK_AFTER: Duration = Duration::from_millis(60);
const CHILD_SLEEPS: Duration = Duration::from_millis(200);
const NOTIFIED_AFTER: Duration = Duration::from_millis(300);
const PIPE_WRITTEN_AFTER: Duration = Duration::from_millis(150);
/// The fsync thread goes on until it was blocked so long, or for so long at most: disks differ by
/// a factor of a thousand, and there are those in memory.
const FSYNC_BLOCKED: Duration = Duration::from_millis(100);
const FSYNC_AT_MOST: Duration = Duration::from_millis(500);

/// Starts every thread, waits for them and collects their accounts.
pub fn run_all(meter: &mut Meter, directory: &Path) -> io::Result<Vec<Account>> {
    let tcp = TcpListener::bind("127.0.0.1:0")?;
    let tcp_address = tcp.local_addr()?;
    let slow = TcpListener::bind("127.0.0.1:0")?;
    let slow_address = slow.local_addr()?;
    let unix_path = std::env::temp_dir().join(format!("truth-{}.sock", std::process::id()));
    let unix = UnixListener::bind(&unix_path)?;
    let (pipe_out, pipe_in) = pipe()?;
    let signals = Arc::new(Signals::default());
    let (a, b) = (signals.clone(), signals.clone());
    let (path, client_path) = (directory.to_owned(), unix_path.clone());

    let jobs: Vec<Measured> = vec![
        start(meter, "spin", |_| spin())?,
        start(meter, "kernel", |_| kernel())?,
        start(meter, "sleep", sleep)?,
        start(meter, "tcp-server", move |m| {
            let (stream, _) = m.blocked("idle", || tcp.accept())?;
            serve(m, stream)
        })?,
        start(meter, "tcp", move |m| {
            ask(m, "net.tcp", TcpStream::connect(tcp_address)?)
        })?,
        start(meter, "unix-server", move |m| {
            let (stream, _) = m.blocked("idle", || unix.accept())?;
            serve(m, stream)
        })?,
        start(meter, "unix", move |m| {
            ask(m, "net.unix", UnixStream::connect(client_path)?)
        })?,
        start(meter, "fsync", move |m| fsync(m, &path))?,
        start(meter, "child", child)?,
        start(meter, "spawn", spawn)?,
        start(meter, "condvar", move |m| a.wait(m))?,
        start(meter, "condvar-c", move |m| b.wait_c(m))?,
        start(meter, "notifier", move |m| signals.notify(m))?,
        start(meter, "pipe", move |m| pipe_read(m, pipe_out))?,
        start(meter, "pipe-writer", move |m| pipe_write(m, pipe_in))?,
        start(meter, "epoll", event_loop::quiet)?,
        start(meter, "loop-server", move |m| {
            let (stream, _) = m.blocked("idle", || slow.accept())?;
            serve(m, stream)
        })?,
        start(meter, "loop", move |m| {
            event_loop::many_peers(m, slow_address)
        })?,
        hold_locks(meter)?,
    ];
    let mut accounts = Vec::new();
    for job in jobs {
        accounts.append(&mut join(meter, job)?);
    }
    std::fs::remove_file(unix_path)?;
    Ok(accounts)
}

/// A thread of that name with an account of its own.
fn start(
    starter: &mut Meter,
    name: &'static str,
    job: impl FnOnce(&mut Meter) -> io::Result<()> + Send + 'static,
) -> io::Result<Measured> {
    start_with_others(starter, name, |meter| job(meter).map(|()| Vec::new()))
}

/// As [`start`], for a job that brings the accounts of others too.
fn start_with_others(
    starter: &mut Meter,
    name: &'static str,
    job: impl FnOnce(&mut Meter) -> io::Result<Vec<Account>> + Send + 'static,
) -> io::Result<Measured> {
    starter.blocked("idle", || Measured::start(name, job))
}

fn join(meter: &mut Meter, thread: Measured) -> io::Result<Vec<Account>> {
    meter.blocked("idle", || thread.accounts())
}

pub fn nap(meter: &mut Meter, length: Duration) -> io::Result<()> {
    meter.blocked("timer", || {
        thread::sleep(length);
        Ok(())
    })
}

fn thread_cpu() -> Duration {
    Duration::from_nanos(clock_ns(libc::CLOCK_THREAD_CPUTIME_ID))
}

fn spin() -> io::Result<()> {
    let end = thread_cpu() + SPIN;
    while thread_cpu() < end {
        black_box((0..20_000u64).fold(1u64, |a, b| black_box(a.wrapping_mul(31) ^ b)));
    }
    Ok(())
}

/// Reading zeroes is almost all `clear_user` in the kernel.
fn kernel() -> io::Result<()> {
    let mut zero = File::open("/dev/zero")?;
    let mut buffer = vec![0u8; 1 << 20];
    let end = thread_cpu() + KERNEL;
    while thread_cpu() < end {
        zero.read_exact(&mut buffer)?;
    }
    black_box(&buffer);
    Ok(())
}

fn sleep(meter: &mut Meter) -> io::Result<()> {
    (0..SLEEP_PIECES).try_for_each(|_| nap(meter, SLEEP_PIECE))
}

/// One request, one answer.
fn ask(meter: &mut Meter, class: &'static str, mut stream: impl Read + Write) -> io::Result<()> {
    nap(meter, ASK_AFTER)?;
    stream.write_all(b"?")?;
    meter.blocked(class, || stream.read_exact(&mut [0]))
}

fn serve(meter: &mut Meter, mut stream: impl Read + Write) -> io::Result<()> {
    meter.blocked("idle", || stream.read_exact(&mut [0]))?;
    nap(meter, ANSWER_AFTER)?;
    stream.write_all(b"!")
}

fn fsync(meter: &mut Meter, directory: &Path) -> io::Result<()> {
    let path: PathBuf = directory.join(format!("truth-{}.data", std::process::id()));
    let mut file = meter.blocked("disk", || {
        OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .open(&path)
    })?;
    let began = Instant::now();
    while meter.so_far("disk") < FSYNC_BLOCKED && began.elapsed() < FSYNC_AT_MOST {
        meter.blocked("disk", || file.write_all(&[7u8; 32 << 10]))?;
        meter.blocked("disk", || file.sync_all())?;
    }
    meter.blocked("disk", || {
        drop(file);
        std::fs::remove_file(&path)
    })
}

/// A plain fork. It copies the address space under a lock that the other threads need as well, so it
/// is not to lose the CPU meanwhile.
fn child(meter: &mut Meter) -> io::Result<()> {
    schedule(libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, 1);
    let pid = meter.blocked("child", || {
        // SAFETY: between fork and _exit the child calls async-signal-safe functions only.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            raw_sleep(CHILD_SLEEPS);
            // SAFETY: ends the child without running the parent's exit handlers.
            unsafe { libc::_exit(0) };
        }
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(pid)
    })?;
    schedule(libc::SCHED_OTHER, 0);
    meter.blocked("child", || wait_for(pid))
}

/// Needs privilege; without it, nothing changes.
fn schedule(policy: i32, priority: i32) {
    let parameter = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: `parameter` is valid; 0 is the calling thread.
    unsafe { libc::sched_setscheduler(0, policy, &raw const parameter) };
}

fn wait_for(pid: libc::pid_t) -> io::Result<()> {
    let mut status = 0;
    // SAFETY: `status` is valid for writing; `pid` is a child of this process.
    if unsafe { libc::wait4(pid, &raw mut status, 0, std::ptr::null_mut()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn raw_sleep(length: Duration) {
    let time = libc::timespec {
        tv_sec: length.as_secs() as libc::time_t,
        tv_nsec: length.subsec_nanos().into(),
    };
    // SAFETY: `time` is valid; the remainder is not asked for.
    unsafe { libc::nanosleep(&raw const time, std::ptr::null_mut()) };
}

/// A child made the usual way (`posix_spawn`), which runs this program again.
fn spawn(meter: &mut Meter) -> io::Result<()> {
    let program = std::env::current_exe()?;
    let mut child = meter.blocked("child", || Command::new(program).arg(NAP_ARGUMENT).spawn())?;
    let status = meter.blocked("child", || child.wait())?;
    if status.success() {
        Ok(())
    } else {
        Err(io::Error::other(format!("the child ended with {status}")))
    }
}

/// What the program does when run by [`spawn`].
pub fn nap_as_a_program() -> ExitCode {
    raw_sleep(CHILD_SLEEPS);
    ExitCode::SUCCESS
}

/// A pthread mutex or condition at a fixed address.
struct Pinned<T>(std::cell::UnsafeCell<T>);

// SAFETY: only handed to pthread functions, which are made for it.
unsafe impl<T> Sync for Pinned<T> {}
// SAFETY: as above; they are in an Arc and do not move.
unsafe impl<T> Send for Pinned<T> {}

/// A flag with a condition variable, once of the standard library and once of pthread.
struct Signals {
    flag: Mutex<bool>,
    condition: Condvar,
    flag_c: Pinned<bool>,
    mutex_c: Pinned<libc::pthread_mutex_t>,
    condition_c: Pinned<libc::pthread_cond_t>,
}

impl Default for Signals {
    fn default() -> Self {
        Signals {
            flag: Mutex::new(false),
            condition: Condvar::new(),
            flag_c: Pinned(false.into()),
            mutex_c: Pinned(libc::PTHREAD_MUTEX_INITIALIZER.into()),
            condition_c: Pinned(libc::PTHREAD_COND_INITIALIZER.into()),
        }
    }
}

fn poisoned<T>(_: T) -> io::Error {
    io::Error::other("the other thread panicked")
}

impl Signals {
    fn wait(&self, meter: &mut Meter) -> io::Result<()> {
        meter.blocked("idle", || {
            let guard = self.flag.lock().map_err(poisoned)?;
            let guard = self
                .condition
                .wait_while(guard, |set| !*set)
                .map_err(poisoned)?;
            drop(guard);
            Ok(())
        })
    }

    fn wait_c(&self, meter: &mut Meter) -> io::Result<()> {
        meter.blocked("idle", || {
            // SAFETY: initialised, never moved; the flag is touched under the mutex only.
            unsafe {
                libc::pthread_mutex_lock(self.mutex_c.0.get());
                while !*self.flag_c.0.get() {
                    libc::pthread_cond_wait(self.condition_c.0.get(), self.mutex_c.0.get());
                }
                libc::pthread_mutex_unlock(self.mutex_c.0.get());
            }
            Ok(())
        })
    }

    fn notify(&self, meter: &mut Meter) -> io::Result<()> {
        nap(meter, NOTIFIED_AFTER)?;
        *self.flag.lock().map_err(poisoned)? = true;
        self.condition.notify_all();
        // SAFETY: as in `wait_c`.
        unsafe {
            libc::pthread_mutex_lock(self.mutex_c.0.get());
            *self.flag_c.0.get() = true;
            libc::pthread_mutex_unlock(self.mutex_c.0.get());
            libc::pthread_cond_signal(self.condition_c.0.get());
        }
        Ok(())
    }
}

fn pipe() -> io::Result<(File, File)> {
    let mut fds = [0; 2];
    // SAFETY: room for two fds.
    if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, owned by nobody else.
    Ok(unsafe { (File::from_raw_fd(fds[0]), File::from_raw_fd(fds[1])) })
}

fn pipe_read(meter: &mut Meter, mut out: File) -> io::Result<()> {
    meter.blocked("ipc", || out.read_exact(&mut [0]))
}

fn pipe_write(meter: &mut Meter, mut into: File) -> io::Result<()> {
    nap(meter, PIPE_WRITTEN_AFTER)?;
    into.write_all(b".")
}

/// The holder takes both locks, then starts those who wait for them.
fn hold_locks(starter: &mut Meter) -> io::Result<Measured> {
    start_with_others(starter, "holder", |meter| {
        let locks = Arc::new((
            Mutex::new(()),
            Pinned(std::cell::UnsafeCell::new(libc::PTHREAD_MUTEX_INITIALIZER)),
        ));
        let guard = locks.0.lock().map_err(poisoned)?;
        let mutex_c = locks.1.0.get();
        // SAFETY: initialised, in an Arc that outlives both threads.
        unsafe { libc::pthread_mutex_lock(mutex_c) };
        let (a, b) = (locks.clone(), locks.clone());
        let waiters = [
            start(meter, "mutex", move |m| {
                m.blocked("lock", || a.0.lock().map(drop).map_err(poisoned))
            })?,
            start(meter, "mutex-c", move |m| {
                m.blocked("lock", || {
                    // SAFETY: as above; unlocked by the thread that locked it.
                    unsafe {
                        libc::pthread_mutex_lock(b.1.0.get());
                        libc::pthread_mutex_unlock(b.1.0.get());
                    }
                    Ok(())
                })
            })?,
        ];
        nap(meter, MUTEX_HELD)?;
        drop(guard);
        // SAFETY: locked above, by this thread.
        unsafe { libc::pthread_mutex_unlock(mutex_c) };
        let mut accounts = Vec::new();
        for waiter in waiters {
            accounts.append(&mut join(meter, waiter)?);
        }
        Ok(accounts)
    })
}
