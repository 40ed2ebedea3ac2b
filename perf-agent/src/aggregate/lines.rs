//! Puts a window's figures into lines.

use std::collections::{BTreeMap, HashMap};

use perf_ebpf_common::{CLASS_NAMES, class};

use super::{
    profile::ProcessProfile,
    syscalls::ProcessCalls,
    threads::{Account, Threads},
};
use crate::{
    drain::{EndFact, Start, WindowFact},
    model::{
        AgentCost, BlockIo, Body, Bye, Coverage, Finding, Hello, Ledger, Line, Process,
        ProcessReport, Profile, RequestCoverage, SignalState, SocketCoverage, StackMemoCoverage,
        Stamp, Syscalls, Throttled, Window, WindowReport,
    },
    signals::{histograms::Histograms, latency},
};

/// The first line.
pub fn hello(start: &Start, threads: &Threads) -> Hello {
    let mut signals: Vec<SignalState> = start
        .signals
        .iter()
        .map(|(name, on, reason)| SignalState {
            name: name.clone(),
            on: *on,
            reason: reason.clone(),
        })
        .collect();
    if let Some(state) = signals.iter_mut().find(|s| s.name == "syscalls" && s.on) {
        match start.syscalls.as_str() {
            "off" => {
                state.on = false;
                "off by --syscalls off".clone_into(&mut state.reason);
            }
            mode => state.reason = format!("{mode}: {}", state.reason),
        }
    }
    Hello {
        stamp: super::clock::stamp(start, start.monotonic_ns),
        agent: start.agent.clone(),
        kernel: start.kernel.clone(),
        arch: start.arch.clone(),
        cpus: start.cpus,
        targets: start
            .targets
            .iter()
            .map(|pid| Process {
                pid: *pid,
                comm: threads.comm_of(*pid),
            })
            .collect(),
        follow_children: start.follow_children,
        interval_ns: start.interval_ns,
        signals,
    }
}

/// What every line of a window has in common.
pub struct Context<'a> {
    pub stamp: &'a Stamp,
    pub window: Window,
}

impl Context<'_> {
    /// The lines of one process.
    pub fn process(
        &self,
        account: &Account,
        histograms: Option<&Histograms>,
        profile: ProcessProfile,
        calls: Option<ProcessCalls>,
        block_io: Vec<BlockIo>,
        throttled: Option<Throttled>,
    ) -> ProcessReport {
        let (stamp, who, window) = (self.stamp.clone(), account.who.clone(), self.window);
        let mut process = account.ledger.clone();
        let mut faults = account.faults;
        (faults.cpu_ns, faults.cpu_samples) = profile.fault_cpu;
        if let Some(h) = histograms {
            for i in (0..class::COUNT).filter(|i| *i != class::UNKNOWN as usize) {
                let buckets: Vec<(usize, u64)> = h.of_class(i as u8).collect();
                let summary = latency::summary(buckets.iter().copied(), h.sum_ns[i], h.max_ns[i]);
                if summary.count > 0 {
                    process.latency.insert(CLASS_NAMES[i].to_owned(), summary);
                }
            }
        }
        ProcessReport {
            ledger: Ledger {
                stamp: stamp.clone(),
                who: who.clone(),
                window,
                process,
                threads: account.threads.clone(),
                cpu_split: account.split.clone(),
                schedstat: account.check,
                faults,
                memory: None,
                block_io,
                throttled,
            },
            syscalls: calls.map(|c| Syscalls {
                stamp: stamp.clone(),
                who: who.clone(),
                window,
                mode: c.mode,
                fraction: c.fraction,
                slices: c.slices,
                hook_ns: c.hook.map(|(ns, _)| ns),
                slowdown: c.hook.map(|(_, factor)| factor),
                syscalls: c.rows,
            }),
            profile: Profile {
                stamp,
                who,
                window,
                sites: profile.sites,
                rest: profile.rest,
                locks: profile.locks,
                growth: Vec::new(),
                accelerator: profile.accelerator,
            },
            connections: None,
            statements: None,
            allocations: Vec::new(),
            requests: None,
        }
    }
}

/// Throttling of a process's cgroup in the window.
pub fn throttled(pid: u32, before: &WindowFact, now: &WindowFact) -> Option<Throttled> {
    let (cgroup, periods, throttled, ns) = now.throttled.get(&pid)?;
    let was = before
        .throttled
        .get(&pid)
        .map_or((*periods, *throttled, *ns), |b| (b.1, b.2, b.3));
    Some(Throttled {
        cgroup: cgroup.clone(),
        periods: periods.saturating_sub(was.0),
        throttled_periods: throttled.saturating_sub(was.1),
        throttled_ns: ns.saturating_sub(was.2),
    })
}

/// What the window's figures rest on. Cumulative figures of the kernel side are subtracted.
pub fn coverage(
    stamp: &Stamp,
    window: Window,
    processes: &[ProcessReport],
    (before, now): (&WindowFact, &WindowFact),
    damaged: u64,
) -> Coverage {
    let short = |p: &ProcessReport| p.ledger.process.short_lived.clone().unwrap_or_default();
    let frames = || {
        processes
            .iter()
            .flat_map(|p| &p.profile.sites)
            .flat_map(|s| s.user_stack.iter().chain(&s.kernel_stack))
    };
    let mut lost = difference(&now.lost, &before.lost);
    if damaged > 0 {
        lost.insert("damaged_records".to_owned(), damaged);
    }
    let memo: Vec<u64> = now
        .memo
        .iter()
        .zip(&before.memo)
        .map(|(n, b)| n.saturating_sub(*b))
        .collect();
    let fraction = now.bpf_counted_ns as f64 / window.length_ns().max(1) as f64;
    Coverage {
        stamp: stamp.clone(),
        window,
        lifetime_ns: processes
            .iter()
            .map(|p| p.ledger.process.lifetime_ns + short(p).lifetime_ns)
            .sum(),
        residual_ns: processes
            .iter()
            .map(|p| p.ledger.process.residual_ns + short(p).residual_ns)
            .sum(),
        generated: now.generated.saturating_sub(before.generated),
        received: now.received.saturating_sub(before.received),
        lost,
        inferred: difference(&now.inferred, &before.inferred),
        stack_walks: difference(&now.stack_walks, &before.stack_walks),
        python_walks: difference(&now.python_walks, &before.python_walks),
        bytes_seen: 0,
        bytes_decoded: 0,
        sockets: SocketCoverage::default(),
        requests: RequestCoverage::default(),
        frames: frames().count() as u64,
        unsymbolized_frames: frames().filter(|f| !f.symbolized).count() as u64,
        stack_memo: StackMemoCoverage {
            hits: memo[0],
            walks: memo[1],
            checked: memo[2],
            mismatched: memo[3],
        },
        maps: now.map_entries.clone(),
        agent: AgentCost {
            cpu_ns: now.agent_cpu_ns.saturating_sub(before.agent_cpu_ns),
            bpf_ns: if fraction > 0.0 {
                (now.bpf_ns as f64 / fraction) as u64
            } else {
                0
            },
            bpf_fraction: fraction.min(1.0),
            rss_bytes: now.agent_rss_bytes,
        },
        streams: Vec::new(),
    }
}

fn difference(
    now: &BTreeMap<String, u64>,
    before: &BTreeMap<String, u64>,
) -> BTreeMap<String, u64> {
    now.iter()
        .map(|(k, n)| {
            (
                k.clone(),
                n.saturating_sub(before.get(k).copied().unwrap_or(0)),
            )
        })
        .filter(|(_, n)| *n > 0)
        .collect()
}

/// A window's lines, findings last but for the coverage.
pub fn in_order(report: WindowReport, findings: Vec<Finding>) -> Vec<Line> {
    let mut lines = Vec::new();
    for process in report.processes {
        lines.push(Line::new(Body::Ledger(process.ledger)));
        lines.extend(process.syscalls.map(|s| Line::new(Body::Syscalls(s))));
        if !process.profile.sites.is_empty() || !process.profile.growth.is_empty() {
            lines.push(Line::new(Body::Profile(process.profile)));
        }
        lines.extend(process.connections.map(|c| Line::new(Body::Connections(c))));
        lines.extend(process.statements.map(|s| Line::new(Body::Statements(s))));
        lines.extend(process.requests.map(|r| Line::new(Body::Requests(r))));
    }
    lines.extend(findings.into_iter().map(|f| Line::new(Body::Finding(f))));
    lines.push(Line::new(Body::Coverage(report.coverage)));
    lines
}

/// Sums over the whole trace.
#[derive(Default)]
pub struct Totals {
    pub hello_said: bool,
    windows: u64,
    lifetime_ns: u64,
    residual_ns: u64,
    lost: HashMap<String, u64>,
}

impl Totals {
    pub fn add(&mut self, report: &WindowReport) {
        self.windows += 1;
        self.lifetime_ns += report.coverage.lifetime_ns;
        self.residual_ns += report.coverage.residual_ns;
        for (name, n) in &report.coverage.lost {
            *self.lost.entry(name.clone()).or_default() += n;
        }
    }

    /// The last line.
    pub fn bye(&self, stamp: Stamp, end: &EndFact, last: &WindowFact) -> Bye {
        Bye {
            stamp,
            reason: end.reason.clone(),
            windows: self.windows,
            lifetime_ns: self.lifetime_ns,
            residual_ns: self.residual_ns,
            generated: last.generated,
            received: last.received,
            lost: self.lost.iter().map(|(k, n)| (k.clone(), *n)).collect(),
            streams: Vec::new(),
            exit_code: end.exit_code,
        }
    }
}
