//! `--exec DELEGATE=CMD`: a process that is given one delegate's findings on its standard input.
//!
//! It is started before the trace, and again when it ends before its time, later each time. What it
//! had not read by then is counted: the kernel says how much of the pipe was left.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd},
        unix::{fs::OpenOptionsExt as _, process::CommandExt as _},
    },
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{
    Limits,
    queue::{Item, Next, Queue, Text},
};
use crate::model::{Body, Line, StreamCoverage};

/// Pause before it is started again: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A process that lived this long is not one that cannot start.
const LIVED: Duration = Duration::from_secs(10);
/// How often a process that is given nothing is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Time to end between SIGTERM and being left behind.
const AFTER_SIGTERM: Duration = Duration::from_secs(1);
/// What a pipe holds by default; lines further back than that have been read.
const PIPE_BYTES: usize = 64 << 10;

/// What its thread and the trace share.
struct Shared {
    delegate: String,
    command: String,
    queue: Queue,
    hello: OnceLock<Text>,
    running: Mutex<Running>,
    up: AtomicBool,
    restarts: AtomicU64,
}

#[derive(Default)]
struct Running {
    /// Of the child that runs; taken back before it is reaped, so that the id is its own.
    pid: Option<u32>,
    /// Whatever runs, or begins to, has to end.
    asked_to_end: bool,
}

impl Running {
    /// Asks the process and those it started to end, where it has to.
    fn ask(&self) {
        if let (true, Some(pid)) = (self.asked_to_end, self.pid) {
            // SAFETY: no memory is touched. It is our child, in a group of its own, and not reaped as
            // long as its id is here.
            unsafe { libc::kill(-(pid as i32), libc::SIGTERM) };
        }
    }
}

/// A process that receives findings.
pub struct Exec {
    shared: Arc<Shared>,
    ended: mpsc::Receiver<()>,
    patience: Duration,
}

impl Exec {
    /// Starts the thread that starts the process.
    ///
    /// # Errors
    /// There can be no thread.
    pub fn open(delegate: &str, command: &str, limits: Limits) -> Result<Exec> {
        let shared = Arc::new(Shared {
            delegate: delegate.to_owned(),
            command: command.to_owned(),
            queue: Queue::new(limits.queue_bytes),
            hello: OnceLock::new(),
            running: Mutex::default(),
            up: AtomicBool::new(false),
            restarts: AtomicU64::new(0),
        });
        let (sender, ended) = mpsc::channel();
        let of_thread = shared.clone();
        thread::Builder::new()
            .name("exec".into())
            .spawn(move || {
                keep_running(&of_thread);
                let _ = sender.send(());
            })
            .context("starting a thread")?;
        Ok(Exec {
            shared,
            ended,
            patience: limits.patience,
        })
    }

    /// Takes what is for it: the first line, the last, and the findings of its delegate.
    pub fn line(&self, line: &Line, text: &Text) {
        let shared = &self.shared;
        match &line.body {
            Body::Hello(_) => {
                let _ = shared.hello.set(text.clone());
            }
            Body::Finding(f) if f.delegate_to == shared.delegate => {
                shared.queue.push(text, &f.stamp, self.patience);
            }
            Body::Bye(_) => shared.queue.push_always(text),
            _ => {}
        }
    }

    /// Sums since the start.
    pub fn coverage(&self) -> StreamCoverage {
        let counts = self.shared.queue.counts();
        StreamCoverage {
            stream: "exec".to_owned(),
            name: self.shared.delegate.clone(),
            readers: self.shared.up.load(Relaxed).into(),
            refused: 0,
            lines: counts.lines,
            dropped: counts.dropped,
            restarts: self.shared.restarts.load(Relaxed),
        }
    }

    /// Nothing more comes: it gets what is left, then the end of its input.
    pub fn close(&self) {
        self.shared.queue.close();
    }

    /// Waits until it has ended; from `deadline` on it is asked to, and then left behind.
    pub fn wait(&self, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now());
        // An error is the end of the thread as well.
        if self.ended.recv_timeout(left) != Err(mpsc::RecvTimeoutError::Timeout) {
            return;
        }
        tracing::warn!("{self} takes too long to end: SIGTERM");
        self.shared.terminate();
        if self.ended.recv_timeout(AFTER_SIGTERM) == Err(mpsc::RecvTimeoutError::Timeout) {
            tracing::warn!("{self} does not end on SIGTERM either, and is left behind");
        }
    }
}

impl std::fmt::Display for Exec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.shared.fmt(f)
    }
}

impl std::fmt::Display for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the command for {} (`{}`)", self.delegate, self.command)
    }
}

impl Shared {
    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_running(&self, pid: Option<u32>) {
        self.up.store(pid.is_some(), Relaxed);
        let mut running = self.running();
        running.pid = pid;
        running.ask();
    }

    /// Asks the process to end: the one that runs, or is just being started.
    fn terminate(&self) {
        let mut running = self.running();
        running.asked_to_end = true;
        running.ask();
    }

    fn spawn(&self) -> io::Result<(Child, ChildStdin)> {
        let mut command = Command::new("sh");
        command.arg("-c").arg(&self.command).stdin(Stdio::piped());
        // Standard output carries the lines of the trace. A group of its own: Ctrl-C ends the trace,
        // and the end of the trace ends the process.
        command.process_group(0);
        command.stdout(io::stderr().as_fd().try_clone_to_owned()?);
        let mut child = command.spawn()?;
        let input = child.stdin.take();
        let input = input.ok_or_else(|| io::Error::other("it has no standard input"))?;
        self.set_running(Some(child.id()));
        Ok((child, input))
    }

    /// Counts lines that reach no process any more.
    fn at_the_end(&self, lines: u64) {
        if lines > 0 {
            tracing::warn!("{self}: {lines} lines did not reach it");
            self.queue.unread(lines, 0);
        }
    }

    /// Waits for the end of a child; none of its ids is used after.
    fn reap(&self, child: &mut Child) -> io::Result<ExitStatus> {
        look_at(child.id(), 0);
        self.set_running(None);
        child.wait()
    }
}

/// Asks for the end of a child and leaves its id in place; whether it has ended.
fn look_at(pid: u32, flags: libc::c_int) -> bool {
    // SAFETY: all zeroes is a valid value of this plain C struct.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOWAIT | flags;
    loop {
        // SAFETY: `info` is valid for writes.
        let told = unsafe { libc::waitid(libc::P_PID, pid, &mut info, flags) };
        match told {
            0 => break,
            _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            // There is no such child.
            _ => return true,
        }
    }
    // SAFETY: filled in by waitid, or zero where nothing ended.
    unsafe { info.si_pid() != 0 }
}

fn has_ended(pid: u32) -> bool {
    look_at(pid, libc::WNOHANG)
}

/// How a child's life ended.
enum End {
    /// It was given all there was; what of that it did not read is known once it has ended.
    Fed(Written, io::Result<File>),
    /// Before its time.
    Died,
}

fn keep_running(shared: &Shared) {
    let mut pause = FIRST_PAUSE;
    loop {
        let began = Instant::now();
        let said = match shared.spawn() {
            Ok((mut child, input)) => {
                let end = feed(shared, &child, input);
                let status = shared.reap(&mut child);
                if let End::Fed(written, reader) = end {
                    shared.at_the_end(reader.map_or(0, |pipe| written.unread(&pipe).0));
                    return;
                }
                status.map_or_else(|e| e.to_string(), |s| format!("ended with {s}"))
            }
            Err(e) => format!("cannot be started: {e}"),
        };
        if began.elapsed() >= LIVED {
            pause = FIRST_PAUSE;
        }
        tracing::warn!("{shared} {said}; again in {} ms", pause.as_millis());
        // One that ends at the end is not started again; one that was to be started then, is.
        let was_closed = shared.queue.wait_closed(Duration::ZERO);
        let closed = was_closed || shared.queue.wait_closed(pause);
        let lines = shared.queue.waiting();
        if was_closed || (closed && lines == 0) {
            shared.at_the_end(lines);
            return;
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
        shared.restarts.fetch_add(1, Relaxed);
    }
}

/// Gives a child its lines until it dies or there are no more; then its input has ended.
fn feed(shared: &Shared, child: &Child, input: ChildStdin) -> End {
    let mut pipe = Pipe::new(input);
    let mut greeting = shared.hello.get();
    let mut greeted = false;
    loop {
        let next = shared.queue.pop(LOOK);
        // Looked up after the queue: what is in it came after the greeting.
        greeting = greeting.or_else(|| shared.hello.get());
        let mut written = Ok(());
        if let (false, Some(hello)) = (greeted, greeting) {
            greeted = true;
            written = pipe.write(hello, Part::Greeting);
        }
        if let (Ok(()), Next::Item(item)) = (&written, &next) {
            let part = match item {
                Item::Line(_) => Part::Line,
                Item::Dropped(lines, _) => Part::Dropped(*lines),
            };
            written = pipe.write(&item.text(), part);
        }
        match next {
            Next::Item(item) if written.is_err() => {
                let (lines, told) = pipe.unread();
                shared.queue.unread(lines, told);
                shared.queue.put_back(item);
                return End::Died;
            }
            Next::Item(_) => {}
            Next::End if written.is_ok() => return pipe.end(),
            _ if written.is_err() || has_ended(child.id()) => {
                let (lines, told) = pipe.unread();
                shared.queue.unread(lines, told);
                return End::Died;
            }
            _ => {}
        }
    }
}

/// What a piece of a child's input is.
#[derive(Clone, Copy)]
enum Part {
    Greeting,
    Line,
    /// Word of so many lines that are missing.
    Dropped(u64),
}

/// The writing end of a child's input.
struct Pipe {
    input: ChildStdin,
    written: Written,
}

/// What was written to a pipe lately.
#[derive(Default)]
struct Written {
    /// Length of each piece that may not have been read yet.
    sent: VecDeque<(usize, Part)>,
    sent_bytes: usize,
    /// Bytes of a line that could not be written whole.
    partial: usize,
}

impl Pipe {
    fn new(input: ChildStdin) -> Pipe {
        Pipe {
            input,
            written: Written::default(),
        }
    }

    fn write(&mut self, text: &[u8], part: Part) -> io::Result<()> {
        let mut written = 0;
        while written < text.len() {
            match self.input.write(&text[written..]) {
                Ok(n) => written += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    self.written.partial = written;
                    return Err(e);
                }
            }
        }
        self.written.add(text.len(), part);
        Ok(())
    }

    /// See [`Written::unread`].
    fn unread(&self) -> (u64, u64) {
        self.written.unread(&self.input)
    }

    /// Ends the input. A reading end of our own keeps what is in the pipe when the child is gone.
    fn end(self) -> End {
        let reader = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(format!("/proc/self/fd/{}", self.input.as_raw_fd()));
        End::Fed(self.written, reader)
    }
}

impl Written {
    fn add(&mut self, length: usize, part: Part) {
        self.sent.push_back((length, part));
        self.sent_bytes += length;
        while let Some((length, _)) = self.sent.front()
            && self.sent_bytes - length >= PIPE_BYTES
        {
            self.sent_bytes -= length;
            self.sent.pop_front();
        }
    }

    /// What is still in the pipe, at least in part, by one of its ends: lines, and the lines that others
    /// told to be missing.
    fn unread(&self, pipe: &impl AsRawFd) -> (u64, u64) {
        let mut unread: libc::c_int = 0;
        // SAFETY: the descriptor is open, and `unread` is valid for writes.
        let told = unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &mut unread) };
        let unread = usize::try_from(unread).unwrap_or(0);
        let mut unread = if told == 0 {
            unread.saturating_sub(self.partial)
        } else {
            0
        };
        let (mut lines, mut told) = (0, 0);
        for (length, part) in self.sent.iter().rev() {
            if unread == 0 {
                break;
            }
            unread = unread.saturating_sub(*length);
            match part {
                Part::Greeting => {}
                Part::Line => lines += 1,
                Part::Dropped(missing) => told += missing,
            }
        }
        (lines, told)
    }
}
