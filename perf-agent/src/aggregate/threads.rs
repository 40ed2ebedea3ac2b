//! Accounts of threads and processes from window to window.

use std::collections::{BTreeMap, HashMap, HashSet};

use perf_ebpf_common::{
    class,
    signals::{
        ledger::{SiteKey, ThreadState, thread_state},
        lifecycle::{Exec, ThreadExited, ThreadStarted},
    },
};

use super::split::{Split, add_classes, classes, split};
use crate::{
    drain::{SeededFact, ThreadFact},
    model::{
        Classes, CpuSplit, Faults, Process, ProcessLedger, SchedstatCheck, ShortLived,
        ThreadLedger, Window,
    },
    signals::{ledger::Totals, records::comm},
};

/// Program names kept of short-lived processes, the most frequent ones.
const MAX_COMMS: usize = 10;

#[derive(Default)]
struct Thread {
    comm: String,
    state: Option<ThreadState>,
    exited_ns: Option<u64>,
    seeded: Option<u8>,
    /// At the end of the window before.
    totals: Totals,
    samples: (u64, u64),
    switches: u64,
    /// Created under the trace: its figures in `/proc` began with zero.
    born: Option<Born>,
    proc_now: Option<ThreadFact>,
    proc_before: Option<ThreadFact>,
}

#[derive(Clone, Copy)]
struct Born {
    at_ns: u64,
    tgid: u32,
}

#[derive(Default)]
struct Proc {
    comm: String,
    /// Nearest ancestor with lines of its own when it was forked, 0 for none.
    line: u32,
    /// Named by the agent (seeded, or lived long enough): has lines of its own.
    settled: bool,
    /// Its name was counted among the short-lived ones.
    counted: bool,
}

/// One process's part of a window.
pub struct Account {
    pub who: Process,
    pub ledger: ProcessLedger,
    pub threads: Vec<ThreadLedger>,
    pub split: CpuSplit,
    pub check: SchedstatCheck,
    pub faults: Faults,
    /// Names of threads, for locks.
    pub comms: HashMap<u32, String>,
}

/// All threads of the target.
#[derive(Default)]
pub struct Threads {
    threads: HashMap<u32, Thread>,
    /// Threads that ended in this window. Apart, because their ids may be in use again.
    ended: Vec<(u32, Thread)>,
    processes: BTreeMap<u32, Proc>,
}

/// Changes of one thread in a window.
struct Change {
    tid: u32,
    tgid: u32,
    comm: String,
    totals: Totals,
    lifetime_ns: u64,
    samples: (u64, u64),
    switches: u64,
    exited: bool,
    born_in_window: bool,
}

impl Threads {
    pub fn process(&mut self, pid: u32, comm: &str) {
        let p = self.processes.entry(pid).or_default();
        comm.clone_into(&mut p.comm);
        p.settled = true;
    }

    pub fn comm_of(&self, pid: u32) -> String {
        self.processes
            .get(&pid)
            .map(|p| p.comm.clone())
            .unwrap_or_default()
    }

    pub fn started(&mut self, r: &ThreadStarted) {
        let parent = self.processes.get(&r.parent_tgid);
        let line = match parent {
            Some(p) if !p.settled => p.line,
            _ => r.parent_tgid,
        };
        let comm = parent.map(|p| p.comm.clone()).unwrap_or_default();
        let p = self.processes.entry(r.tgid).or_insert_with(|| Proc {
            comm,
            line,
            ..Proc::default()
        });
        let comm = p.comm.clone();
        self.threads.insert(
            r.tid,
            Thread {
                comm,
                born: Some(Born {
                    at_ns: r.header.at_ns,
                    tgid: r.tgid,
                }),
                ..Thread::default()
            },
        );
    }

    pub fn exited(&mut self, r: &ThreadExited) {
        let mut t = self.threads.remove(&r.thread.tid).unwrap_or_default();
        t.comm = comm(&r.comm);
        t.state = Some(r.thread);
        t.exited_ns = Some(r.header.at_ns);
        t.proc_now = Some(ThreadFact {
            tid: r.thread.tid,
            pid: r.thread.tgid,
            comm: t.comm.clone(),
            run_ns: r.sum_exec_runtime_ns,
            wait_ns: r.run_delay_ns,
            minor_faults: r.minor_faults,
            major_faults: r.major_faults,
            ..ThreadFact::default()
        });
        if let Some(p) = self.processes.get_mut(&r.thread.tgid)
            && !p.settled
            && r.thread.tid == r.thread.tgid
        {
            p.comm.clone_from(&t.comm);
        }
        self.ended.push((r.thread.tid, t));
    }

    pub fn exec(&mut self, r: &Exec) {
        if r.old_tid != r.tgid
            && let Some(t) = self.threads.remove(&r.old_tid)
        {
            self.threads.insert(r.tgid, t);
        }
        let p = self.processes.entry(r.tgid).or_default();
        p.comm = comm(&r.comm);
        if let Some(t) = self.threads.get_mut(&r.tgid) {
            t.comm.clone_from(&p.comm);
        }
    }

    /// A thread's account as the map held it at the end of the window. It may have ended between
    /// that read and the last look at the ring: its end is final.
    pub fn read(&mut self, state: ThreadState) {
        let is_final = self.ended.iter().rev().any(|(tid, t)| {
            *tid == state.tid && t.state.is_some_and(|s| s.start_ns == state.start_ns)
        });
        if is_final {
            return;
        }
        self.threads.entry(state.tid).or_default().state = Some(state);
        self.processes.entry(state.tgid).or_default();
    }

    pub fn proc(&mut self, fact: &ThreadFact) {
        let t = self.threads.entry(fact.tid).or_default();
        t.comm.clone_from(&fact.comm);
        if t.born.is_some() || t.proc_before.is_some() {
            t.proc_now = Some(fact.clone());
        } else {
            t.proc_before = Some(fact.clone());
        }
    }

    pub fn seeded(&mut self, fact: &SeededFact) {
        self.threads.entry(fact.tid).or_default().seeded = Some(fact.class);
    }

    /// Sites of open intervals: time since they began, up to `end_ns`.
    pub fn open_sites(&self, end_ns: u64) -> HashMap<SiteKey, u64> {
        let mut open = HashMap::new();
        for t in self.threads.values() {
            if let Some(s) = &t.state
                && s.state == thread_state::BLOCKED
                && (s.site.kernel_stack, s.site.user_stack, s.site.detail_kind) != (0, 0, 0)
            {
                *open.entry(s.site).or_default() += end_ns.saturating_sub(s.since_ns);
            }
        }
        open
    }

    /// Closes a window: what each process did in it.
    pub fn window(&mut self, window: Window) -> Vec<Account> {
        let mut changes: Vec<Change> = Vec::new();
        let mut checks: HashMap<u32, SchedstatCheck> = HashMap::new();
        let mut faults: HashMap<u32, Faults> = HashMap::new();
        let mut ticks: HashMap<u32, (u64, u64)> = HashMap::new();
        let ended = self.ended.iter_mut().map(|(tid, t)| (*tid, t));
        for (tid, t) in self
            .threads
            .iter_mut()
            .map(|(tid, t)| (*tid, t))
            .chain(ended)
        {
            let Some(change) = t.change(tid, window) else {
                continue;
            };
            let pid = change.tgid;
            t.compare(&change, checks.entry(pid).or_default());
            t.count_faults(faults.entry(pid).or_default());
            let sum = ticks.entry(pid).or_default();
            let delta = t.ticks();
            *sum = (sum.0 + delta.0, sum.1 + delta.1);
            changes.push(change);
        }
        changes.sort_by_key(|c| (c.tgid, c.tid));
        let mut accounts = self.collect(&changes, &ticks);
        for account in &mut accounts {
            account.check = checks.remove(&account.who.pid).unwrap_or_default();
            account.faults = faults.remove(&account.who.pid).unwrap_or_default();
            account.faults.blocked_ns = account
                .ledger
                .classes
                .get("fault")
                .copied()
                .unwrap_or_default();
        }
        self.end_window(window.end_ns);
        accounts
    }

    fn end_window(&mut self, end_ns: u64) {
        // The ring is read a little after the window's end: who ended in between has a rest of its
        // life in the next one, and was compared and counted already.
        self.ended.retain(|(_, t)| t.exited_ns > Some(end_ns));
        let mut alive = HashSet::new();
        for (_, t) in &mut self.ended {
            t.proc_now = None;
            alive.extend(t.state.map(|s| s.tgid));
        }
        self.threads.retain(|_, t| {
            t.proc_before = t.proc_now.take().or(t.proc_before.take());
            // One that is in no map any more ended, and its record was lost (and counted). One that began
            // behind the window's end may be in none yet.
            let begun = t.born.filter(|born| born.at_ns > end_ns);
            let tgid = t.state.take().map(|s| s.tgid).or(begun.map(|b| b.tgid));
            alive.extend(tgid);
            tgid.is_some()
        });
        self.processes.retain(|pid, _| alive.contains(pid));
    }

    /// The process whose line a process's time is in: its own, or that of the ancestor it is still
    /// counted under.
    fn line_of(&self, pid: u32) -> u32 {
        match self.processes.get(&pid) {
            Some(p) if !p.settled && self.processes.contains_key(&p.line) => p.line,
            _ => pid,
        }
    }

    fn collect(&mut self, changes: &[Change], ticks: &HashMap<u32, (u64, u64)>) -> Vec<Account> {
        let mut accounts: BTreeMap<u32, Account> = BTreeMap::new();
        let mut groups: BTreeMap<u32, Vec<&Change>> = BTreeMap::new();
        for change in changes {
            groups.entry(change.tgid).or_default().push(change);
        }
        for (pid, threads) in groups {
            let line = self.line_of(pid);
            let samples = threads
                .iter()
                .fold((0, 0), |s, c| (s.0 + c.samples.0, s.1 + c.samples.1));
            let split = split(samples, ticks.get(&pid).copied().unwrap_or_default());
            let comm = self.comm_of(line);
            let account = accounts.entry(line).or_insert_with(|| Account {
                who: Process { pid: line, comm },
                ledger: ProcessLedger::default(),
                threads: Vec::new(),
                split: CpuSplit::default(),
                check: SchedstatCheck::default(),
                faults: Faults::default(),
                comms: HashMap::new(),
            });
            if line == pid {
                account.fill(&threads, split);
            } else {
                let name = self.comm_of(pid);
                let first = self
                    .processes
                    .get_mut(&pid)
                    .is_some_and(|p| !std::mem::replace(&mut p.counted, true));
                account.fold(&threads, &split, first.then_some(name));
                // Its locks are in the same line.
                let names = threads.iter().map(|c| (c.tid, c.comm.clone()));
                account.comms.extend(names);
            }
        }
        accounts.into_values().collect()
    }
}

impl Thread {
    fn change(&mut self, tid: u32, window: Window) -> Option<Change> {
        let state = self.state.as_ref()?;
        let exited = self.exited_ns.filter(|at| *at <= window.end_ns);
        let end = exited.unwrap_or(window.end_ns);
        let totals = Totals::at(state, end, self.seeded);
        let samples = (state.samples_user, state.samples_kernel);
        let change = Change {
            tid,
            tgid: state.tgid,
            comm: self.comm.clone(),
            totals: totals.since(&self.totals),
            lifetime_ns: end.saturating_sub(state.start_ns.max(window.start_ns)),
            samples: (
                samples.0.saturating_sub(self.samples.0),
                samples.1.saturating_sub(self.samples.1),
            ),
            switches: state.switches.saturating_sub(self.switches),
            exited: exited.is_some(),
            born_in_window: self.born.is_some() && state.start_ns >= window.start_ns,
        };
        // A thread older than the window began it where the window before ended; one whose whole
        // life lies after the window's end has nothing here yet.
        self.totals = totals;
        self.samples = samples;
        self.switches = state.switches;
        Some(change)
    }

    /// Adds the scheduler's own figures where they are known at both ends.
    fn compare(&self, change: &Change, check: &mut SchedstatCheck) {
        let Some((now, run_before, wait_before)) = self
            .proc_pair(|f| (f.run_ns, f.wait_ns))
            .map(|(now, (r, w))| (now, r, w))
        else {
            return;
        };
        check.threads += 1;
        check.ledger_cpu_ns += change.totals.spent_ns[class::CPU as usize];
        check.ledger_runq_ns += change.totals.spent_ns[class::RUNQ as usize];
        check.kernel_cpu_ns += now.run_ns.saturating_sub(run_before);
        check.kernel_runq_ns += now.wait_ns.saturating_sub(wait_before);
    }

    fn count_faults(&self, faults: &mut Faults) {
        if let Some((now, before)) = self.proc_pair(|f| (f.minor_faults, f.major_faults)) {
            faults.minor += now.minor_faults.saturating_sub(before.0);
            faults.major += now.major_faults.saturating_sub(before.1);
        }
    }

    /// What `/proc` says now, and two of its figures at the window's begin.
    fn proc_pair(
        &self,
        pick: impl Fn(&ThreadFact) -> (u64, u64),
    ) -> Option<(&ThreadFact, (u64, u64))> {
        let before = match &self.proc_before {
            Some(before) => pick(before),
            None if self.born.is_some() => (0, 0),
            None => return None,
        };
        Some((self.proc_now.as_ref()?, before))
    }

    fn ticks(&self) -> (u64, u64) {
        match (&self.proc_now, &self.proc_before) {
            (Some(now), Some(before)) => (
                now.user_ticks.saturating_sub(before.user_ticks),
                now.kernel_ticks.saturating_sub(before.kernel_ticks),
            ),
            _ => (0, 0),
        }
    }
}

impl Change {
    fn classes(&self, process: &Split) -> Classes {
        classes(&self.totals, self.samples, process)
    }

    fn residual_ns(&self, classes: &Classes) -> u64 {
        self.lifetime_ns.abs_diff(classes.values().sum())
    }
}

impl Account {
    /// Fills in a process with lines of its own.
    fn fill(&mut self, threads: &[&Change], process: Split) {
        for c in threads {
            let classes = c.classes(&process);
            let residual_ns = c.residual_ns(&classes);
            add_classes(&mut self.ledger.classes, &classes);
            self.ledger.lifetime_ns += c.lifetime_ns;
            self.ledger.residual_ns += residual_ns;
            self.ledger.switches += c.switches;
            self.ledger.threads_exited += u64::from(c.exited);
            self.ledger.threads_started += u64::from(c.born_in_window);
            self.comms.insert(c.tid, c.comm.clone());
            self.threads.push(ThreadLedger {
                tid: c.tid,
                comm: c.comm.clone(),
                lifetime_ns: c.lifetime_ns,
                classes,
                residual_ns,
                switches: c.switches,
                exited: c.exited,
            });
        }
        self.split = CpuSplit {
            source: process.source.to_owned(),
            user_samples: threads.iter().map(|c| c.samples.0).sum(),
            kernel_samples: threads.iter().map(|c| c.samples.1).sum(),
        };
    }

    /// Adds a process without lines of its own. `name` is given the first time.
    fn fold(&mut self, threads: &[&Change], process: &Split, name: Option<String>) {
        let short = self
            .ledger
            .short_lived
            .get_or_insert_with(ShortLived::default);
        for c in threads {
            let classes = c.classes(process);
            short.residual_ns += c.residual_ns(&classes);
            add_classes(&mut short.classes, &classes);
            short.lifetime_ns += c.lifetime_ns;
            short.threads += 1;
        }
        if let Some(name) = name {
            short.processes += 1;
            if short.comms.len() < MAX_COMMS || short.comms.contains_key(&name) {
                *short.comms.entry(name).or_default() += 1;
            }
        }
    }
}
