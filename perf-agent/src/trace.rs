//! Drives a live trace: the ring on a clock, windows at their ends, slices of the syscalls signal,
//! and every way to stop.

use std::{
    io,
    process::{Child, ExitStatus},
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
    time::{Instant, sleep_until},
};

use crate::{
    aggregate::Pipeline,
    cli::{Collect, Switch, SyscallMode},
    decode,
    drain::{
        EndFact, Fact, Frame, Start,
        codec::Writer,
        live::{Live, monotonic_ns},
        slices::Slices,
    },
    kernel::LoadOptions,
    sink::{Sink, reader_gone},
    symbolize::namer::Namer,
    target::Target,
};

/// How often the ring is emptied. At 1,000 processes a second it fills 70 KiB in that time, of
/// 1 MiB.
const POLL: Duration = Duration::from_millis(100);
/// The same while the data ring fills to more than a quarter in that time.
const HURRIED_POLL: Duration = Duration::from_millis(10);

/// Takes the frames of a trace.
pub trait Consumer {
    /// Takes frames in order.
    ///
    /// # Errors
    /// What was written to failed; [`reader_gone`] tells the harmless case.
    fn frames(&mut self, frames: Vec<Frame>) -> io::Result<()>;
    /// No more will come.
    ///
    /// # Errors
    /// As [`Consumer::frames`].
    fn finish(&mut self) -> io::Result<()>;
}

/// Turns frames into lines.
pub struct Lines {
    pub pipeline: Pipeline,
    pub sink: Box<dyn Sink>,
}

impl Consumer for Lines {
    fn frames(&mut self, frames: Vec<Frame>) -> io::Result<()> {
        for frame in &frames {
            for line in self.pipeline.frame(frame) {
                self.sink.line(&line)?;
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        self.sink.finish()
    }
}

/// Writes frames to a recording.
pub struct Recording<W: io::Write> {
    writer: Option<Writer<W>>,
}

impl<W: io::Write> Recording<W> {
    /// Writes the header.
    ///
    /// # Errors
    /// That of the writer.
    pub fn new(out: W) -> io::Result<Self> {
        Ok(Recording {
            writer: Some(Writer::new(out)?),
        })
    }
}

impl<W: io::Write> Consumer for Recording<W> {
    fn frames(&mut self, frames: Vec<Frame>) -> io::Result<()> {
        if let Some(writer) = &mut self.writer {
            for frame in &frames {
                writer.frame(frame)?;
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        match self.writer.take() {
            Some(writer) => writer.finish()?.flush(),
            None => Ok(()),
        }
    }
}

/// Why a trace ended, as `bye` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Duration,
    TargetExit,
    Interrupt,
    Terminate,
}

impl Reason {
    fn name(self) -> &'static str {
        match self {
            Reason::Duration => "duration",
            Reason::TargetExit => "target_exit",
            Reason::Interrupt => "interrupt",
            Reason::Terminate => "terminate",
        }
    }
}

/// Loads, attaches, traces until something ends it, and flushes.
///
/// # Errors
/// The target is not there, the kernel refuses, or the output fails.
pub fn run(target: Target, collect: &Collect, consumer: &mut dyn Consumer) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(trace(target, collect, consumer))
}

async fn trace(target: Target, collect: &Collect, consumer: &mut dyn Consumer) -> Result<()> {
    let children = !collect.no_children;
    let pids = target.processes(children)?;
    // Before the attach, so that a signal during it ends the trace in order.
    let mut stops = Stops {
        interrupt: signal(SignalKind::interrupt()).context("handling SIGINT")?,
        terminate: signal(SignalKind::terminate()).context("handling SIGTERM")?,
    };
    let start = Start {
        agent: env!("CARGO_PKG_VERSION").to_owned(),
        follow_children: children,
        interval_ns: collect.interval.as_nanos() as u64,
        syscalls: mode_name(collect.syscalls).to_owned(),
        ..Start::default()
    };
    let namer = Namer::start(collect.inlines == Switch::On, &collect.debug_dirs)
        .context("starting the thread that names stacks")?;
    let decode = decode::Options {
        raw: collect.unsafe_raw,
    };
    let mut options = load_options(collect);
    if let Target::Command(held) = &target {
        options.command = Some(held.program());
    }
    let mut live = Live::attach(&options, namer, decode, &pids, start)?;
    let mut session = Session {
        slices: match collect.syscalls {
            SyscallMode::Sampled => Some(Slices::new(monotonic_ns())),
            _ => None,
        },
        next_window: Instant::now() + collect.interval,
        ends: collect.duration.map(|d| Instant::now() + d),
        interval: collect.interval,
        command: None,
        exited: None,
    };
    if collect.syscalls == SyscallMode::Full {
        live.set_syscalls(true)?;
    }
    let target = match target {
        Target::Command(held) => {
            session.command = Some(held.pid);
            session.exited = Some(wait_for(held.release()?));
            Target::Pids(Vec::new())
        }
        other => other,
    };
    let outcome = session.run(&mut live, &target, &mut stops, consumer).await;
    let reason = match outcome {
        Ok(reason) => reason,
        // Nobody reads any more: a success, with nobody to say goodbye to.
        Err(Stop::Output(e)) if reader_gone(&e) => return Ok(()),
        Err(Stop::Output(e)) => return Err(e).context("writing the output"),
        Err(Stop::Trace(e)) => return Err(e),
    };
    let exit_code = session.end_command(reason).await;
    live.finish().await?;
    let mut frames = live.take();
    frames.push(Frame::Fact(Fact::End(EndFact {
        reason: reason.name().to_owned(),
        exit_code,
    })));
    match consumer.frames(frames).and_then(|()| consumer.finish()) {
        Err(e) if !reader_gone(&e) => Err(e).context("writing the output"),
        _ => Ok(()),
    }
}

fn load_options(collect: &Collect) -> LoadOptions {
    let default = LoadOptions::default();
    let sizes = collect.sizes;
    LoadOptions {
        follow_children: !collect.no_children,
        stacks: collect.stacks == Switch::On,
        frequency: collect.frequency,
        ring_bytes: sizes.ring_bytes.unwrap_or(default.ring_bytes),
        max_threads: sizes.max_threads.unwrap_or(default.max_threads),
        max_sites: sizes.max_sites.unwrap_or(default.max_sites),
        capture_bytes: match collect.sockets {
            Switch::On => sizes.capture_bytes.unwrap_or(default.capture_bytes),
            Switch::Off => 0,
        },
        data_ring_bytes: sizes.data_ring_bytes.unwrap_or(default.data_ring_bytes),
        max_connections: sizes.max_connections.unwrap_or(default.max_connections),
        tls: collect.tls == Switch::On,
        allocations: collect.alloc_bytes,
        command: None,
        every_program: false,
        unwind_bytes: sizes.unwind_bytes.unwrap_or(default.unwind_bytes),
        memo_check_one_in: sizes.memo_check_one_in.unwrap_or(default.memo_check_one_in),
        debug: tracing::enabled!(target: "perf_ebpf", tracing::Level::DEBUG),
    }
}

fn mode_name(mode: SyscallMode) -> &'static str {
    match mode {
        SyscallMode::Sampled => "sampled",
        SyscallMode::Full => "full",
        SyscallMode::Off => "off",
    }
}

struct Stops {
    interrupt: Signal,
    terminate: Signal,
}

/// What ended a trace before its time.
enum Stop {
    Trace(anyhow::Error),
    Output(io::Error),
}

impl From<anyhow::Error> for Stop {
    fn from(e: anyhow::Error) -> Self {
        Stop::Trace(e)
    }
}

struct Session {
    slices: Option<Slices>,
    next_window: Instant,
    ends: Option<Instant>,
    interval: Duration,
    /// Process id of a command that the trace started.
    command: Option<u32>,
    exited: Option<oneshot::Receiver<io::Result<ExitStatus>>>,
}

impl Session {
    async fn run(
        &mut self,
        live: &mut Live,
        target: &Target,
        stops: &mut Stops,
        consumer: &mut dyn Consumer,
    ) -> Result<Reason, Stop> {
        let mut next_poll = Instant::now() + POLL;
        loop {
            consumer.frames(live.take()).map_err(Stop::Output)?;
            let wake = [
                Some(next_poll),
                Some(self.next_window),
                self.ends,
                self.next_switch(),
            ]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(next_poll);
            tokio::select! {
                _ = stops.interrupt.recv() => return Ok(Reason::Interrupt),
                _ = stops.terminate.recv() => return Ok(Reason::Terminate),
                named = live.named() => named?,
                () = sleep_until(wake) => {}
            }
            let now = Instant::now();
            if self.ends.is_some_and(|at| now >= at) {
                return Ok(Reason::Duration);
            }
            self.switch_slice(live)?;
            if now >= next_poll {
                let hurry = live.poll();
                next_poll = now + if hurry { HURRIED_POLL } else { POLL };
                if !live.alive() && target.matching().is_empty() {
                    return Ok(Reason::TargetExit);
                }
            }
            if now >= self.next_window {
                self.window(live, target)?;
            }
        }
    }

    fn window(&mut self, live: &mut Live, target: &Target) -> Result<()> {
        live.window()?;
        for pid in target.matching() {
            if live.follows(pid) {
                continue;
            }
            live.note_sockets(pid);
            if let Err(e) = live.seed(pid) {
                tracing::debug!(pid, "{e:#}");
            }
        }
        // A host that stood still does not get all the windows it missed one after another, nor a
        // short one that is soon over: the window after a late one has its whole length.
        let (next, now) = (self.next_window + self.interval, Instant::now());
        self.next_window = match next < now + self.interval / 2 {
            true => now + self.interval,
            false => next,
        };
        Ok(())
    }

    fn next_switch(&self) -> Option<Instant> {
        let (at, _) = self.slices.as_ref()?.next();
        Some(Instant::now() + Duration::from_nanos(at.saturating_sub(monotonic_ns())))
    }

    fn switch_slice(&mut self, live: &mut Live) -> Result<()> {
        if let Some(slices) = &mut self.slices {
            let (at, on) = slices.next();
            if monotonic_ns() >= at {
                if let Err(e) = live.set_syscalls(on) {
                    // Said in `hello` already; the rest of the trace goes on.
                    tracing::debug!("syscalls: {e:#}");
                    self.slices = None;
                    return Ok(());
                }
                slices.switched();
            }
        }
        Ok(())
    }

    /// Ends a command that the trace started, and gives its exit code.
    async fn end_command(&mut self, reason: Reason) -> Option<i32> {
        use std::os::unix::process::ExitStatusExt as _;
        let (pid, exited) = (self.command?, self.exited.as_mut()?);
        let patience = Duration::from_secs(2);
        if reason != Reason::TargetExit {
            send(pid, libc::SIGTERM);
        }
        let status = match tokio::time::timeout(patience, &mut *exited).await {
            Ok(status) => status,
            Err(_) => {
                send(pid, libc::SIGKILL);
                exited.await
            }
        };
        let status = status.ok()?.ok()?;
        status.code().or_else(|| Some(128 + status.signal()?))
    }
}

fn send(pid: u32, signal: i32) {
    // SAFETY: no memory is touched. The process is our own child and not yet reaped, so the id is
    // still its.
    unsafe { libc::kill(pid as i32, signal) };
}

/// Reaps a child on a thread of its own.
fn wait_for(mut child: Child) -> oneshot::Receiver<io::Result<ExitStatus>> {
    let (sender, receiver) = oneshot::channel();
    std::thread::spawn(move || {
        let _ = sender.send(child.wait());
    });
    receiver
}
