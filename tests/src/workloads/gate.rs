//! How a workload and the test that runs it keep step: lines over standard input and output.
//!
//! `readv` and `writev` are used, which no workload uses otherwise, so that the gate does not
//! disturb the counts of the calls that are counted.

use std::io;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What the command line of a workload says.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long workloads without a fixed amount of work go on.
    pub seconds: f64,
    /// Where files are made.
    pub directory: PathBuf,
    /// A block device to write to.
    pub device: Option<PathBuf>,
    /// Where on it, in bytes.
    pub offset: u64,
    /// `address:port` of a server to talk to.
    pub connect: Option<String>,
    /// Where to listen for a client.
    pub listen: Option<String>,
    /// Does not wait for the first line.
    pub now: bool,
    /// Waits for a line when the work is done.
    pub hold: bool,
    /// Leaves standard output alone.
    pub quiet: bool,
    /// Has a CPU whenever it wants one: for work that waits for something else.
    pub realtime: bool,
}

impl Options {
    /// Reads what follows the workload's name.
    pub fn parse(mut arguments: impl Iterator<Item = String>) -> io::Result<Self> {
        let mut options = Options {
            seconds: 3.0,
            directory: PathBuf::from("."),
            device: None,
            offset: 0,
            connect: None,
            listen: None,
            now: false,
            hold: false,
            quiet: false,
            realtime: false,
        };
        while let Some(argument) = arguments.next() {
            let mut value = || {
                let missing = || io::Error::other(format!("{argument} needs a value"));
                arguments.next().ok_or_else(missing)
            };
            match argument.as_str() {
                "--seconds" => options.seconds = value()?.parse().map_err(io::Error::other)?,
                "--dir" => options.directory = value()?.into(),
                "--device" => options.device = Some(value()?.into()),
                "--offset" => options.offset = value()?.parse().map_err(io::Error::other)?,
                "--connect" => options.connect = Some(value()?),
                "--listen" => options.listen = Some(value()?),
                "--now" => options.now = true,
                "--hold" => options.hold = true,
                "--quiet" => options.quiet = true,
                "--realtime" => options.realtime = true,
                other => return Err(io::Error::other(format!("unknown option {other}"))),
            }
        }
        Ok(options)
    }

    /// Applies what concerns the process as a whole, before it has threads.
    pub fn apply(&self) -> io::Result<()> {
        if self.realtime {
            let first = libc::sched_param { sched_priority: 1 };
            // SAFETY: `first` is valid; 0 is the calling thread, which those it starts inherit from.
            check(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const first) })?;
        }
        Ok(())
    }

    /// When the work ends, if it begins now.
    pub fn deadline(&self) -> Instant {
        Instant::now() + Duration::from_secs_f64(self.seconds)
    }
}

/// The two places where a workload waits for the test.
pub struct Gate {
    now: bool,
    hold: bool,
    quiet: bool,
}

impl Gate {
    pub fn new(options: &Options) -> Self {
        Gate {
            now: options.now,
            hold: options.hold,
            quiet: options.quiet,
        }
    }

    /// Announces the process and waits until it may begin.
    pub fn open(&self) -> io::Result<()> {
        self.say(&format!("READY {}\n", std::process::id()))?;
        if self.now { Ok(()) } else { wait_for_line() }
    }

    /// Tells what was done, and waits to be dismissed where that is asked for.
    pub fn close(&self, done: &str) -> io::Result<()> {
        self.say(&format!("DONE {done}\n"))?;
        if self.hold { wait_for_line() } else { Ok(()) }
    }

    fn say(&self, text: &str) -> io::Result<()> {
        if self.quiet { Ok(()) } else { say(text) }
    }
}

fn say(text: &str) -> io::Result<()> {
    let part = libc::iovec {
        iov_base: text.as_ptr().cast_mut().cast(),
        iov_len: text.len(),
    };
    // SAFETY: one part, valid for the length of the call; it is only read.
    let written = unsafe { libc::writev(1, &raw const part, 1) };
    if written == text.len() as isize {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Until a line, or the end of the input.
fn wait_for_line() -> io::Result<()> {
    loop {
        let mut byte = 0u8;
        let part = libc::iovec {
            iov_base: (&raw mut byte).cast(),
            iov_len: 1,
        };
        // SAFETY: one part of one byte, valid for the length of the call.
        match unsafe { libc::readv(0, &raw const part, 1) } {
            0 => return Ok(()),
            1 if byte == b'\n' => return Ok(()),
            1 => {}
            _ => return Err(io::Error::last_os_error()),
        }
    }
}

/// Starts a named thread.
pub fn thread<T: Send + 'static>(
    name: &str,
    job: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(job)
}

/// Waits for a thread started by [`thread`].
pub fn join<T>(thread: JoinHandle<T>) -> io::Result<T> {
    thread
        .join()
        .map_err(|_| io::Error::other("a thread of the workload panicked"))
}

/// The last error as a `Result`, for a call that returns -1.
pub fn check(result: i32) -> io::Result<i32> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
