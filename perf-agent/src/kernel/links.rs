//! Which program goes to which hook, what each is needed for, and the links that hold them there.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{
    Btf, Ebpf,
    programs::{
        PerfEvent,
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
    pub signal: &'static str,
    /// Whether nothing works without it.
    pub required: bool,
}

/// Frequency of the CPU clock: 99 and not 100, so that it does not beat with periodic work.
pub const SAMPLE_HZ: u64 = 99;

const CPU_CLOCK: &str = "cpu_clock";
const SYSCALL_HOOKS: [&str; 2] = ["sys_exit", "sys_enter"];

/// Every program, in the order of attaching: lifecycle first, then what opens an interval's end
/// before what begins one.
pub const PROGRAMS: &[Program] = &[
    Program {
        name: "sched_process_fork",
        signal: "lifecycle",
        required: true,
    },
    Program {
        name: "sched_wakeup_new",
        signal: "lifecycle",
        required: true,
    },
    Program {
        name: "sched_process_exec",
        signal: "lifecycle",
        required: true,
    },
    Program {
        name: "inet_sock_set_state",
        signal: "listeners",
        required: false,
    },
    Program {
        name: "sched_waking",
        signal: "ledger",
        required: true,
    },
    Program {
        name: "sched_switch",
        signal: "ledger",
        required: true,
    },
    Program {
        name: CPU_CLOCK,
        signal: "cpu",
        required: false,
    },
    Program {
        name: "block_rq_insert",
        signal: "block_io",
        required: false,
    },
    Program {
        name: "block_rq_issue",
        signal: "block_io",
        required: false,
    },
    Program {
        name: "block_rq_complete",
        signal: "block_io",
        required: false,
    },
    Program {
        name: "sys_enter",
        signal: "syscalls",
        required: false,
    },
    Program {
        name: "sys_exit",
        signal: "syscalls",
        required: false,
    },
];

/// Links held, and why a program that is not loaded is not.
#[derive(Default)]
pub struct Links {
    tracepoints: HashMap<&'static str, BtfTracePointLinkId>,
    clocks: Vec<PerfEventLinkId>,
    refused: HashMap<&'static str, String>,
}

impl Links {
    /// Loads every program. An optional one that is refused is noted.
    ///
    /// On all CPUs: the verifier takes 85 of the 200 ms of an attach (46 of them for `sched_switch`)
    /// and does not keep one program waiting for another.
    pub fn load(&mut self, ebpf: &mut Ebpf, btf: &Btf) -> Result<()> {
        let mut results: HashMap<&str, Result<()>> = load_all(ebpf, btf).into_iter().collect();
        for program in PROGRAMS {
            let result = results
                .remove(program.name)
                .unwrap_or_else(|| Err(anyhow!("program {} is missing", program.name)));
            if let Err(e) = result {
                if program.required {
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
            if SYSCALL_HOOKS.contains(&program.name) || self.refused.contains_key(program.name) {
                continue;
            }
            let attached = if program.name == CPU_CLOCK {
                self.attach_clocks(ebpf)
            } else {
                self.attach_tracepoint(ebpf, program.name)
            };
            if let Err(e) = attached {
                if program.required {
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
            let refused = self.refused.get(program.name);
            let how = if program.name == CPU_CLOCK {
                format!("cpu-clock on each CPU, {SAMPLE_HZ} Hz")
            } else {
                format!("tp_btf/{}", program.name)
            };
            let reason = refused.cloned().unwrap_or(how);
            match states.iter_mut().find(|s| s.name == program.signal) {
                Some(state) if state.on && refused.is_none() => {
                    state.reason.push_str(", ");
                    state.reason.push_str(&reason);
                }
                Some(state) if state.on => {
                    state.on = false;
                    state.reason = reason;
                }
                Some(_) => {}
                None => states.push(SignalState {
                    name: program.signal.to_owned(),
                    on: refused.is_none(),
                    reason,
                }),
            }
        }
        states
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
                    SamplePolicy::Frequency(SAMPLE_HZ),
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
        for name in SYSCALL_HOOKS {
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

fn tracepoint<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut BtfTracePoint> {
    ebpf.program_mut(name)
        .with_context(|| format!("program {name} is missing"))?
        .try_into()
        .with_context(|| format!("program {name}"))
}

fn load_all(ebpf: &mut Ebpf, btf: &Btf) -> Vec<(&'static str, Result<()>)> {
    let mut waiting: Vec<(&'static str, &mut aya::programs::Program)> = ebpf
        .programs_mut()
        .filter_map(|(name, program)| {
            let known = PROGRAMS.iter().find(|p| p.name == name)?;
            Some((known.name, program))
        })
        .collect();
    // Taken from the end: what takes longest first.
    waiting.sort_by_key(|(name, _)| (*name == "sched_switch", *name == "sched_waking", *name));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.min(waiting.len());
    let waiting = Mutex::new(waiting);
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop();
    std::thread::scope(|scope| {
        let work = || {
            let mut done = Vec::new();
            while let Some((name, program)) = next() {
                done.push((name, load_one(program, btf, name)));
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

fn load_one(program: &mut aya::programs::Program, btf: &Btf, name: &'static str) -> Result<()> {
    let what = || format!("loading {name}");
    if name == CPU_CLOCK {
        let program: &mut PerfEvent = program.try_into()?;
        return program.load().with_context(what);
    }
    let program: &mut BtfTracePoint = program.try_into()?;
    program.load(name, btf).with_context(what)
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
                .map(|name| format!(
                    "Program {{ name: \"{name}\", signal: \"…\", required: false }}, "
                ))
                .collect::<String>()
        );
        assert!(gone.is_empty(), "take out of PROGRAMS: {gone:?}");
    }
}
