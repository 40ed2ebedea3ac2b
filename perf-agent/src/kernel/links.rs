//! Which program goes to which hook, what each is needed for, and the links that hold them there.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{
    Btf, Ebpf,
    programs::{
        PerfEvent, UProbe,
        perf_event::{
            PerfEventConfig, PerfEventLinkId, PerfEventScope, SamplePolicy, SoftwareEvent,
        },
        tp_btf::{BtfTracePoint, BtfTracePointLinkId},
    },
};

use crate::model::SignalState;

/// One program of the object. Its name is its hook's.
pub struct Program {
    pub name: &'static str,
    /// The hook, where its name is not the program's.
    pub hook: &'static str,
    pub signal: &'static str,
    pub need: Need,
}

/// What happens where the kernel does not have a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing works without it.
    Required,
    /// Its signal is off without it.
    Signal,
    /// Its signal lacks something without it.
    Detail,
    /// Stands in for another program, and is only attached where that one is refused.
    Instead(&'static str),
}

impl Program {
    const fn new(name: &'static str, signal: &'static str, need: Need) -> Program {
        Program {
            name,
            hook: name,
            signal,
            need,
        }
    }

    pub fn is_uprobe(&self) -> bool {
        [TLS, ALLOCATIONS].contains(&self.signal)
    }
}

/// Frequency of the CPU clock: 99 and not 100, so that it does not beat with periodic work.
pub const SAMPLE_HZ: u32 = 99;

/// Signals whose programs are uprobes: attached by file, see [`super::uprobes`].
pub const TLS: &str = "tls";
pub const ALLOCATIONS: &str = "allocations";

const CPU_CLOCK: &str = "cpu_clock";
const MEMORY_HOOK: &str = "rss_stat";
const SYSCALL_HOOKS: [&str; 2] = ["sys_exit", "sys_enter"];
/// The second stands for both: a kernel has them together or not at all.
const SOCKETS_INSTEAD: &str = "sys_exit_sockets";
const SOCKET_HOOKS: [&str; 2] = ["sock_send_length", "sock_recv_length"];

/// Every program, in the order of attaching: lifecycle first, then what opens an interval's end
/// before what begins one.
pub const PROGRAMS: &[Program] = &[
    Program::new("sched_process_fork", "lifecycle", Need::Required),
    Program::new("sched_wakeup_new", "lifecycle", Need::Required),
    Program::new("sched_process_exec", "lifecycle", Need::Required),
    Program::new("inet_sock_set_state", "listeners", Need::Signal),
    Program::new("sched_waking", "ledger", Need::Required),
    Program::new("sched_switch", "ledger", Need::Required),
    Program::new(CPU_CLOCK, "cpu", Need::Signal),
    Program::new("block_rq_insert", "block_io", Need::Signal),
    Program::new("block_rq_issue", "block_io", Need::Signal),
    Program::new("block_rq_merge", "block_io", Need::Detail),
    Program::new("block_rq_complete", "block_io", Need::Signal),
    Program::new(MEMORY_HOOK, "memory", Need::Signal),
    Program::new("tcp_destroy_sock", "sockets", Need::Detail),
    Program::new("tcp_retransmit_skb", "sockets", Need::Detail),
    Program::new("tcp_receive_reset", "sockets", Need::Detail),
    Program::new("tcp_send_reset", "sockets", Need::Detail),
    Program::new(SOCKET_HOOKS[0], "sockets", Need::Detail),
    Program::new(SOCKET_HOOKS[1], "sockets", Need::Detail),
    Program {
        hook: "sys_exit",
        ..Program::new(SOCKETS_INSTEAD, "sockets", Need::Instead(SOCKET_HOOKS[1]))
    },
    Program::new("tls_read", TLS, Need::Detail),
    Program::new("tls_read_ex", TLS, Need::Detail),
    Program::new("tls_write", TLS, Need::Detail),
    Program::new("tls_write_ex", TLS, Need::Detail),
    Program::new("tls_return", TLS, Need::Detail),
    Program::new("alloc_malloc", ALLOCATIONS, Need::Detail),
    Program::new("alloc_calloc", ALLOCATIONS, Need::Detail),
    Program::new("alloc_realloc", ALLOCATIONS, Need::Detail),
    Program::new("alloc_free", ALLOCATIONS, Need::Detail),
    Program::new("alloc_return", ALLOCATIONS, Need::Detail),
    Program::new("sys_enter", "syscalls", Need::Signal),
    Program::new("sys_exit", "syscalls", Need::Signal),
];

/// Links held, and why a program that is not loaded is not.
#[derive(Default)]
pub struct Links {
    /// Of the CPU clock, a second.
    samples: u32,
    tracepoints: HashMap<&'static str, BtfTracePointLinkId>,
    clocks: Vec<PerfEventLinkId>,
    refused: HashMap<&'static str, String>,
}

impl Links {
    /// None yet; the CPU clock will sample so often a second.
    pub fn new(samples: u32) -> Links {
        Links {
            samples,
            ..Links::default()
        }
    }

    /// Loads the programs but those of `without`, the signals that are not wanted. An optional one that
    /// is refused is noted. One that stands in for another is only loaded where it is needed, unless
    /// `every` one is asked for.
    pub fn load(
        &mut self,
        ebpf: &mut Ebpf,
        btf: &Btf,
        without: &[&str],
        every: bool,
    ) -> Result<()> {
        for program in PROGRAMS.iter().filter(|p| off(p, without)) {
            let why = match program.signal {
                TLS => "not asked for: --tls on reads what OpenSSL encrypts".to_owned(),
                ALLOCATIONS => "not asked for: `profile --mode alloc` samples them".to_owned(),
                signal => format!("off by --{signal} off"),
            };
            self.refused.insert(program.name, why);
        }
        let stands_in = |p: &Program| matches!(p.need, Need::Instead(_));
        self.load_those(ebpf, btf, |p| !off(p, without) && (every || !stands_in(p)))?;
        if every {
            return Ok(());
        }
        let needed: Vec<&str> = PROGRAMS
            .iter()
            .filter(|p| !off(p, without))
            .filter(|p| matches!(p.need, Need::Instead(of) if self.refused.contains_key(of)))
            .map(|p| p.name)
            .collect();
        for program in PROGRAMS.iter().filter(|p| stands_in(p)) {
            if !needed.contains(&program.name) {
                self.refused.entry(program.name).or_default();
            }
        }
        if needed.is_empty() {
            return Ok(());
        }
        self.load_those(ebpf, btf, |p| needed.contains(&p.name))
    }

    /// Loads some programs, on all CPUs: the verifier takes 150 ms of CPU time for all of them (48 for
    /// `sched_switch`) and does not keep one program waiting for another.
    fn load_those(
        &mut self,
        ebpf: &mut Ebpf,
        btf: &Btf,
        wanted: impl Fn(&Program) -> bool,
    ) -> Result<()> {
        let mut results: HashMap<&str, Result<()>> =
            load_all(ebpf, btf, &wanted).into_iter().collect();
        for program in PROGRAMS.iter().filter(|p| wanted(p)) {
            let result = results
                .remove(program.name)
                .unwrap_or_else(|| Err(anyhow!("program {} is missing", program.name)));
            if let Err(e) = result {
                if program.need == Need::Required {
                    return Err(e);
                }
                self.refused.insert(program.name, format!("{e:#}"));
            }
        }
        Ok(())
    }

    /// Attaches all but the system call hooks; says how each signal stands.
    pub fn attach_all(&mut self, ebpf: &mut Ebpf) -> Result<Vec<SignalState>> {
        for program in PROGRAMS {
            if program.is_uprobe()
                || SYSCALL_HOOKS.contains(&program.name)
                || self.refused.contains_key(program.name)
            {
                continue;
            }
            let attached = if program.name == CPU_CLOCK {
                self.attach_clocks(ebpf)
            } else {
                self.attach_tracepoint(ebpf, program.name)
            };
            if let Err(e) = attached {
                if program.need == Need::Required {
                    return Err(e);
                }
                self.refused.insert(program.name, format!("{e:#}"));
            }
        }
        Ok(self.states())
    }

    fn states(&self) -> Vec<SignalState> {
        let mut states: Vec<SignalState> = Vec::new();
        for program in PROGRAMS {
            if !program.is_uprobe() && !states.iter().any(|s| s.name == program.signal) {
                states.push(self.state(program.signal));
            }
        }
        states
    }

    /// How a signal is attached, and what it lacks or why it is off.
    fn state(&self, signal: &str) -> SignalState {
        let (mut on, mut how, mut lacks) = (true, Vec::new(), Vec::new());
        for program in PROGRAMS.iter().filter(|p| p.signal == signal) {
            let Some(why) = self.refused.get(program.name) else {
                how.push(match program.name {
                    CPU_CLOCK => format!("cpu-clock on each CPU, {} Hz", self.samples),
                    MEMORY_HOOK => format!("tp_btf/{MEMORY_HOOK} while a target grows"),
                    _ => format!("tp_btf/{}", program.hook),
                });
                continue;
            };
            match program.need {
                Need::Instead(_) if why.is_empty() => {}
                Need::Instead(_) => lacks.push(why.clone()),
                Need::Detail if self.stood_in_for(program.name) => {}
                Need::Detail => lacks.push(why.clone()),
                Need::Required | Need::Signal => {
                    on = false;
                    lacks.insert(0, why.clone());
                }
            }
        }
        if how.is_empty() {
            on = false;
        }
        let reason = match (on, lacks.is_empty()) {
            (true, true) => how.join(", "),
            (true, false) => format!("{}; without {}", how.join(", "), lacks.join(", ")),
            (false, _) => lacks.first().cloned().unwrap_or_default(),
        };
        SignalState {
            name: signal.to_owned(),
            on,
            reason,
        }
    }

    /// Why a program is not loaded.
    pub fn refusal(&self, name: &str) -> Option<&str> {
        self.refused.get(name).map(String::as_str)
    }

    /// Whether the socket hooks have their stand-in, which serves both.
    fn stood_in_for(&self, name: &str) -> bool {
        SOCKET_HOOKS.contains(&name) && !self.refused.contains_key(SOCKETS_INSTEAD)
    }

    fn attach_tracepoint(&mut self, ebpf: &mut Ebpf, name: &'static str) -> Result<()> {
        let program = tracepoint(ebpf, name)?;
        let link = program
            .attach()
            .with_context(|| format!("attaching to {name}"))?;
        self.tracepoints.insert(name, link);
        Ok(())
    }

    fn attach_clocks(&mut self, ebpf: &mut Ebpf) -> Result<()> {
        let program: &mut PerfEvent = ebpf
            .program_mut(CPU_CLOCK)
            .context("program cpu_clock is missing")?
            .try_into()
            .context("program cpu_clock")?;
        let cpus = aya::util::online_cpus().map_err(|(what, e)| anyhow::anyhow!("{what}: {e}"))?;
        for cpu in cpus {
            let link = program
                .attach(
                    PerfEventConfig::Software(SoftwareEvent::CpuClock),
                    PerfEventScope::AllProcessesOneCpu { cpu },
                    SamplePolicy::Frequency(self.samples.into()),
                    false,
                )
                .with_context(|| format!("opening the clock of CPU {cpu}"))?;
            self.clocks.push(link);
        }
        Ok(())
    }

    /// Attaches (exit first, so that no entry is left without its exit) or detaches the system call
    /// hooks.
    pub fn set_syscalls(&mut self, ebpf: &mut Ebpf, on: bool) -> Result<()> {
        SYSCALL_HOOKS
            .into_iter()
            .try_for_each(|name| self.set(ebpf, name, on))
    }

    /// Attaches or detaches the hook of memory growth; one that is refused stays so.
    pub fn set_memory(&mut self, ebpf: &mut Ebpf, on: bool) -> Result<()> {
        if self.refused.contains_key(MEMORY_HOOK) {
            return Ok(());
        }
        self.set(ebpf, MEMORY_HOOK, on)
    }

    fn set(&mut self, ebpf: &mut Ebpf, name: &'static str, on: bool) -> Result<()> {
        if on {
            if let Some(why) = self.refused.get(name) {
                bail!("{why}");
            }
            if !self.tracepoints.contains_key(name) {
                self.attach_tracepoint(ebpf, name)?;
            }
        } else if let Some(link) = self.tracepoints.remove(name) {
            tracepoint(ebpf, name)?
                .detach(link)
                .with_context(|| format!("detaching {name}"))?;
        }
        Ok(())
    }

    /// Detaches everything, lifecycle last.
    pub fn detach_all(&mut self, ebpf: &mut Ebpf) {
        for program in PROGRAMS.iter().rev() {
            let detached = match self.tracepoints.remove(program.name) {
                Some(link) => {
                    tracepoint(ebpf, program.name).and_then(|p| p.detach(link).context("detaching"))
                }
                None => Ok(()),
            };
            if let Err(e) = detached {
                tracing::debug!(program = program.name, "{e:#}");
            }
        }
        if let Some(Ok(program)) = ebpf.program_mut(CPU_CLOCK).map(<&mut PerfEvent>::try_from) {
            for link in self.clocks.drain(..) {
                if let Err(e) = program.detach(link) {
                    tracing::debug!("cpu_clock: {e}");
                }
            }
        }
    }

    /// See [`super::Kernel::run_time`].
    pub fn run_time(&self, ebpf: &Ebpf) -> (u64, u64) {
        let mut sum = (0, 0);
        for program in PROGRAMS {
            if let Some(program) = ebpf.program(program.name)
                && let Ok(fd) = program.fd()
                && let Some((ns, runs)) = super::raw::program_run_time(fd)
            {
                sum = (sum.0 + ns, sum.1 + runs);
            }
        }
        sum
    }
}

/// Whether a program goes with a signal that is not wanted; plaintext goes with the sockets.
fn off(program: &Program, without: &[&str]) -> bool {
    without.contains(&program.signal) || (program.signal == TLS && without.contains(&"sockets"))
}

fn tracepoint<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut BtfTracePoint> {
    ebpf.program_mut(name)
        .with_context(|| format!("program {name} is missing"))?
        .try_into()
        .with_context(|| format!("program {name}"))
}

fn load_all(
    ebpf: &mut Ebpf,
    btf: &Btf,
    wanted: impl Fn(&Program) -> bool,
) -> Vec<(&'static str, Result<()>)> {
    let mut waiting: Vec<(&'static Program, &mut aya::programs::Program)> = ebpf
        .programs_mut()
        .filter_map(|(name, program)| {
            let known = PROGRAMS.iter().find(|p| p.name == name)?;
            wanted(known).then_some((known, program))
        })
        .collect();
    // Taken from the end: what takes longest first.
    const LONGEST: [&str; 6] = [
        CPU_CLOCK,
        MEMORY_HOOK,
        "sock_send_length",
        "sock_recv_length",
        "sched_waking",
        "sched_switch",
    ];
    waiting.sort_by_key(|(p, _)| (LONGEST.iter().position(|name| *name == p.name), p.name));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.min(waiting.len());
    let waiting = Mutex::new(waiting);
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop();
    std::thread::scope(|scope| {
        let work = || {
            let mut done = Vec::new();
            while let Some((known, program)) = next() {
                done.push((known.name, load_one(program, btf, known)));
            }
            done
        };
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut done = work();
        for other in others {
            // One that panicked leaves its program among the missing.
            done.extend(other.join().unwrap_or_default());
        }
        done
    })
}

fn load_one(program: &mut aya::programs::Program, btf: &Btf, known: &Program) -> Result<()> {
    let what = || format!("loading {}", known.name);
    if known.name == CPU_CLOCK {
        let program: &mut PerfEvent = program.try_into()?;
        return program.load().with_context(what);
    }
    if known.is_uprobe() {
        let program: &mut UProbe = program.try_into()?;
        return program.load().with_context(what);
    }
    let program: &mut BtfTracePoint = program.try_into()?;
    program.load(known.hook, btf).with_context(what)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    /// Names of the functions below `directory` that an attribute of aya makes programs of.
    fn programs_of_the_kernel_side(directory: &Path, found: &mut BTreeSet<String>) {
        const KINDS: [&str; 7] = [
            "#[btf_tracepoint",
            "#[perf_event",
            "#[raw_tracepoint",
            "#[tracepoint",
            "#[uprobe",
            "#[uretprobe",
            "#[kprobe",
        ];
        for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                programs_of_the_kernel_side(&entry.path(), found);
                continue;
            }
            let text = fs::read_to_string(entry.path()).unwrap();
            let mut lines = text.lines().map(str::trim);
            while let Some(line) = lines.next() {
                if KINDS.iter().any(|kind| line.starts_with(kind)) {
                    let function = lines.find_map(|l| l.split_once("fn ")?.1.split('(').next());
                    found.insert(function.expect("a function below the attribute").to_owned());
                }
            }
        }
    }

    #[test]
    fn every_program_of_the_kernel_side_is_registered() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../perf-ebpf/src");
        let mut found = BTreeSet::new();
        programs_of_the_kernel_side(&source, &mut found);
        let registered: BTreeSet<String> = PROGRAMS.iter().map(|p| p.name.to_owned()).collect();
        assert_eq!(registered.len(), PROGRAMS.len(), "a program is named twice");
        let missing: Vec<_> = found.difference(&registered).collect();
        let gone: Vec<_> = registered.difference(&found).collect();
        assert!(
            missing.is_empty(),
            "add to PROGRAMS: {}",
            missing
                .iter()
                .map(|name| format!("Program::new(\"{name}\", \"…\", Need::Signal), "))
                .collect::<String>()
        );
        assert!(gone.is_empty(), "take out of PROGRAMS: {gone:?}");
    }
}
