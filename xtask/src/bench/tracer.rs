//! Who traces: the agent in its modes, and the peers, each told to begin and end, with the moment
//! it is attached known and not guessed.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::setup;

const ATTACH_LIMIT: Duration = Duration::from_secs(30);
const STOP_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);
/// Looks in a row at which the number of perf events must be the same.
const STEADY_LOOKS: u32 = 6;

/// A way of tracing a process.
#[derive(Clone, Debug)]
pub struct Tracer {
    pub name: &'static str,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Agent {
        program: PathBuf,
        arguments: &'static [&'static str],
    },
    Bpftrace {
        script: PathBuf,
    },
    PerfTrace,
}

pub const LEDGER: &str = "perf-agent, ledger alone";
pub const DEFAULT: &str = "perf-agent";
pub const FULL: &str = "perf-agent --syscalls full";
pub const OFFCPU_SUM: &str = "bpftrace off-CPU sum";
pub const OFFCPU_STACKS: &str = "bpftrace off-CPU with stacks";
pub const SYSCALLS: &str = "bpftrace syscall histogram";
pub const PERF_TRACE: &str = "perf trace -s";

/// All tracers this machine has; the names of those it lacks.
pub fn all(agent: &Path, scripts: &Path) -> (Vec<Tracer>, Vec<&'static str>) {
    let modes: [(&str, &[&str]); 3] = [
        (
            LEDGER,
            &["--stacks", "off", "--syscalls", "off", "--sockets", "off"],
        ),
        (DEFAULT, &[]),
        (FULL, &["--syscalls", "full"]),
    ];
    let mut tracers: Vec<Tracer> = modes
        .into_iter()
        .map(|(name, arguments)| Tracer {
            name,
            kind: Kind::Agent {
                program: agent.to_path_buf(),
                arguments,
            },
        })
        .collect();
    let mut lacking = Vec::new();
    let peers = [
        (OFFCPU_SUM, Some("offcpu_sum.bt")),
        (OFFCPU_STACKS, Some("offcpu_stacks.bt")),
        (SYSCALLS, Some("syscalls.bt")),
        (PERF_TRACE, None),
    ];
    for (name, script) in peers {
        let (program, kind) = match script {
            Some(script) => {
                let script = scripts.join(script);
                ("bpftrace", Kind::Bpftrace { script })
            }
            None => ("perf", Kind::PerfTrace),
        };
        match setup::find_program(program) {
            Some(_) => tracers.push(Tracer { name, kind }),
            None => lacking.push(name),
        }
    }
    (tracers, lacking)
}

/// A tracer at work.
pub struct Running {
    name: &'static str,
    child: Child,
    lines: Receiver<String>,
    /// From its start until it was attached.
    pub attach: Duration,
}

impl Tracer {
    /// Starts it on a process and waits until it is attached.
    ///
    /// # Errors
    /// Where it cannot be started, ends early, or is not attached in time.
    pub fn start(&self, pid: u32) -> Result<Running> {
        let started = Instant::now();
        let mut child = self
            .command(pid)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {}", self.name))?;
        let stdout = child.stdout.take().context("the tracer has an output")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // What else it says would only fill the memory of this process.
                let kept = line == "attached"
                    || line.contains(r#""type":"hello""#)
                    || line.contains(r#""type":"coverage""#);
                if kept && sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut running = Running {
            name: self.name,
            child,
            lines,
            attach: Duration::ZERO,
        };
        match self.kind {
            Kind::Agent { .. } => running.wait_for_lines(1)?,
            // One line is printed for each tick of an interval that is attached with the rest.
            Kind::Bpftrace { .. } => running.wait_for_lines(3)?,
            Kind::PerfTrace => running.wait_for_perf_events()?,
        }
        running.attach = started.elapsed();
        Ok(running)
    }

    fn command(&self, pid: u32) -> Command {
        let pid = pid.to_string();
        match &self.kind {
            Kind::Agent { program, arguments } => {
                let mut command = Command::new(program);
                command.args(["trace", "-p", &pid, "--format", "ndjson"]);
                command.args(*arguments);
                command
            }
            Kind::Bpftrace { script } => {
                let mut command = Command::new("bpftrace");
                command.args(["-q", "-B", "none"]).arg(script).arg(pid);
                command
            }
            Kind::PerfTrace => {
                let mut command = Command::new("perf");
                command.args(["trace", "-s", "-p", &pid, "-o", "/dev/null"]);
                command
            }
        }
    }
}

impl Running {
    /// Ends it as Ctrl-C would; the coverage lines an agent wrote.
    ///
    /// # Errors
    /// Where it does not end.
    pub fn stop(mut self) -> Result<Vec<serde_json::Value>> {
        // SAFETY: a signal to a child of ours that was not waited for; the number is its own.
        unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGINT) };
        let deadline = Instant::now() + STOP_LIMIT;
        while self.child.try_wait().context("waiting")?.is_none() {
            if Instant::now() > deadline {
                bail!("{} does not end", self.name);
            }
            thread::sleep(POLL);
        }
        Ok(self
            .lines
            .try_iter()
            .filter_map(|line| serde_json::from_str(&line).ok())
            .filter(|line: &serde_json::Value| line["type"] == "coverage")
            .collect())
    }

    /// Resident memory in bytes, as the kernel tells it now.
    pub fn rss_bytes(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let kilobytes = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))?
            .trim()
            .strip_suffix("kB")?;
        Some(kilobytes.trim().parse::<u64>().ok()? * 1024)
    }

    fn wait_for_lines(&mut self, count: usize) -> Result<()> {
        for _ in 0..count {
            match self.lines.recv_timeout(ATTACH_LIMIT) {
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => bail!("{} is not attached in time", self.name),
                Err(RecvTimeoutError::Disconnected) => bail!("{} ended early", self.name),
            }
        }
        Ok(())
    }

    /// It says nothing before its end; its open perf events tell.
    fn wait_for_perf_events(&mut self) -> Result<()> {
        let deadline = Instant::now() + ATTACH_LIMIT;
        let (mut last, mut steady) = (0, 0);
        while steady < STEADY_LOOKS {
            if self.child.try_wait().context("waiting")?.is_some() {
                bail!("{} ended early", self.name);
            }
            if Instant::now() > deadline {
                bail!("{} is not attached in time", self.name);
            }
            let open = perf_events(self.child.id());
            steady = if open > 0 && open == last {
                steady + 1
            } else {
                0
            };
            last = open;
            thread::sleep(POLL);
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn perf_events(pid: u32) -> usize {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return 0;
    };
    descriptors
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.to_string_lossy().contains("[perf_event]"))
        .count()
}
