//! Windows added up: what the summary shows of a trace, or of the last window alone.

use std::collections::BTreeMap;

use super::peers::Peers;
use super::requests::Requests;
use crate::detect;
use crate::model::{
    Body, Classes, Coverage, Detail, Faults, Finding, Frame, Hello, Latency, Ledger, Process,
    Profile, ShortLived, Site, State as FindingState, SyscallRow, Syscalls, ThreadLedger,
    Throttled,
};

/// Rows kept of one kind in one process; beyond, the smallest are given up and counted. A trace of
/// days then takes no more memory than one of minutes.
const MAX_ROWS: usize = 4096;
/// Processes kept.
const MAX_PROCESSES: usize = 1024;

/// Classes in which nothing is waited for that could come sooner.
const IDLE: &[&str] = &["idle", "child", "stopped", "timer"];

/// Time that is neither idle nor asleep on purpose.
pub fn busy_ns(classes: &Classes) -> u64 {
    let busy = classes.iter().filter(|(name, _)| !is_idle(name));
    busy.map(|(_, ns)| ns).sum()
}

pub fn is_idle(class: &str) -> bool {
    IDLE.contains(&class)
}

/// Latency over several windows: sums and maxima add up, percentiles do not. The 99th percentile
/// of the whole is at most the largest one of a window.
#[derive(Clone, Copy, Default)]
pub struct LatencySum {
    pub count: u64,
    pub sum_ns: u64,
    pub p99_ns: u64,
    pub max_ns: u64,
    /// Windows that had any; from two on `p99_ns` is a bound.
    pub windows: u64,
}

impl LatencySum {
    pub fn add(&mut self, other: &Latency) {
        if other.count == 0 {
            return;
        }
        self.count += other.count;
        self.sum_ns += other.sum_ns;
        self.p99_ns = self.p99_ns.max(other.p99_ns);
        self.max_ns = self.max_ns.max(other.max_ns);
        self.windows += 1;
    }

    pub fn mean_ns(&self) -> u64 {
        self.sum_ns.checked_div(self.count).unwrap_or(0)
    }
}

/// One system call over several windows.
#[derive(Default)]
pub struct SyscallSum {
    pub count: u64,
    /// Sum of squares of the windows' errors: they are independent.
    error_squared: f64,
    pub errors: BTreeMap<String, u64>,
    pub latency: LatencySum,
    pub bytes: u64,
}

impl SyscallSum {
    fn add(&mut self, row: &SyscallRow) {
        self.count += row.count;
        self.error_squared += row.count_error.map_or(0.0, |error| (error as f64).powi(2));
        add_all(&mut self.errors, &row.errors);
        self.latency.add(&row.latency);
        self.bytes += row.bytes;
    }

    /// Half width of the 95 % confidence interval of the count; 0 where it is exact.
    pub fn count_error(&self) -> u64 {
        self.error_squared.sqrt().round() as u64
    }

    /// Time in the call, by the mean of those timed.
    pub fn time_ns(&self) -> u64 {
        let timed = self.latency.count.max(1) as f64;
        (self.latency.sum_ns as f64 * self.count as f64 / timed) as u64
    }
}

/// One lock over several windows.
#[derive(Default)]
pub struct LockSum {
    pub waits: u64,
    pub sum_ns: u64,
    pub max_ns: u64,
    /// Time it was held while others waited.
    pub hold_ns: u64,
    /// Of that, what each thread held, by (tid, name).
    pub holders: BTreeMap<(u32, String), HolderSum>,
}

/// One holder of a lock over several windows.
#[derive(Default)]
pub struct HolderSum {
    pub hold_ns: u64,
    pub meanwhile: Classes,
}

/// A finding over several windows.
pub struct FindingSum {
    /// As it was in the window where it weighed most.
    pub peak: Finding,
    pub windows: u64,
    /// Gain bound × length, over the windows it was in.
    bound_ns: f64,
}

impl FindingSum {
    /// Upper bound of the gain per second over `wall_ns`, windows without the finding included.
    pub fn bound_ns_per_s(&self, wall_ns: u64) -> u64 {
        (self.bound_ns / wall_ns.max(1) as f64) as u64
    }

    /// What orders findings: as in a window, with the bound of the whole.
    pub fn score(&self) -> f64 {
        // What is about to be used up is not ordered by its gain.
        if self.peak.exhausted_in_ns.is_some() {
            return detect::score(&self.peak);
        }
        let peak = self.peak.gain_bound_ns_per_s.max(1) as f64;
        detect::score(&self.peak) / peak * self.bound_ns
    }
}

/// A place, whatever the window.
type SiteKey = (
    String,
    Option<String>,
    Option<Detail>,
    Vec<Frame>,
    Vec<Frame>,
);

/// Requests of one device and operation over several windows.
#[derive(Default)]
pub struct BlockIoSum {
    pub requests: u64,
    pub bytes: u64,
    /// Of the requests whose end was told.
    pub latency: LatencySum,
}

/// One process over several windows.
#[derive(Default)]
pub struct ProcessSum {
    pub who: Process,
    pub lifetime_ns: u64,
    pub residual_ns: u64,
    pub classes: Classes,
    pub latency: BTreeMap<String, LatencySum>,
    pub threads: BTreeMap<u32, ThreadLedger>,
    pub short_lived: ShortLived,
    pub faults: Faults,
    pub block_io: BTreeMap<(String, String), BlockIoSum>,
    pub throttled: Option<Throttled>,
    /// `full` or `sampled`, and the smallest share of a window in which calls were counted.
    pub syscall_mode: Option<(String, f64)>,
    pub syscalls: BTreeMap<String, SyscallSum>,
    pub sites: BTreeMap<SiteKey, Site>,
    pub locks: BTreeMap<String, LockSum>,
    pub findings: BTreeMap<String, FindingSum>,
    /// Rows given up for want of room.
    pub given_up: u64,
}

impl ProcessSum {
    /// Findings with how deep they stand below the one they follow from (0: from none): those worth most
    /// first, each with what follows from it right behind.
    pub fn ranked_findings(&self) -> Vec<(&FindingSum, usize)> {
        let cause = |sum: &FindingSum| {
            let id = sum.peak.caused_by.as_ref()?;
            self.findings.get(id).map(|cause| cause.peak.id.clone())
        };
        let mut by_cause: BTreeMap<Option<String>, Vec<&FindingSum>> = BTreeMap::new();
        for sum in self.findings.values() {
            by_cause.entry(cause(sum)).or_default().push(sum);
        }
        // The last of these comes next.
        let mut below = |cause: Option<String>, depth| {
            let mut group = by_cause.remove(&cause).unwrap_or_default();
            group.sort_by(|a, b| a.score().total_cmp(&b.score()));
            group.into_iter().map(move |sum| (sum, depth))
        };
        let mut next: Vec<_> = below(None, 0).collect();
        let mut ranked = Vec::new();
        while let Some((sum, depth)) = next.pop() {
            ranked.push((sum, depth));
            next.extend(below(Some(sum.peak.id.clone()), depth + 1));
        }
        ranked
    }

    pub fn busy_ns(&self) -> u64 {
        busy_ns(&self.classes)
    }

    fn add_ledger(&mut self, ledger: &Ledger) {
        self.lifetime_ns += ledger.process.lifetime_ns;
        self.residual_ns += ledger.process.residual_ns;
        add_all(&mut self.classes, &ledger.process.classes);
        for (class, latency) in &ledger.process.latency {
            self.latency.entry(class.clone()).or_default().add(latency);
        }
        for thread in &ledger.threads {
            self.add_thread(thread);
        }
        self.given_up += shrink(&mut self.threads, |thread| busy_ns(&thread.classes));
        if let Some(short_lived) = &ledger.process.short_lived {
            self.add_short_lived(short_lived);
        }
        self.faults.minor += ledger.faults.minor;
        self.faults.major += ledger.faults.major;
        self.faults.blocked_ns += ledger.faults.blocked_ns;
        self.faults.cpu_samples += ledger.faults.cpu_samples;
        if let Some(cpu_ns) = ledger.faults.cpu_ns {
            *self.faults.cpu_ns.get_or_insert_default() += cpu_ns;
        }
        for io in &ledger.block_io {
            let key = (io.device.clone(), io.operation.clone());
            let sum = self.block_io.entry(key).or_default();
            sum.requests += io.requests;
            sum.bytes += io.bytes;
            sum.latency.add(&io.latency);
        }
        if let Some(now) = &ledger.throttled {
            let sum = self.throttled.get_or_insert_default();
            sum.cgroup.clone_from(&now.cgroup);
            sum.periods += now.periods;
            sum.throttled_periods += now.throttled_periods;
            sum.throttled_ns += now.throttled_ns;
        }
    }

    fn add_thread(&mut self, thread: &ThreadLedger) {
        let sum = self.threads.entry(thread.tid).or_default();
        sum.tid = thread.tid;
        sum.comm.clone_from(&thread.comm);
        sum.lifetime_ns += thread.lifetime_ns;
        sum.residual_ns += thread.residual_ns;
        sum.switches += thread.switches;
        sum.exited = thread.exited;
        add_all(&mut sum.classes, &thread.classes);
    }

    fn add_short_lived(&mut self, now: &ShortLived) {
        let sum = &mut self.short_lived;
        sum.processes += now.processes;
        sum.threads += now.threads;
        sum.lifetime_ns += now.lifetime_ns;
        sum.residual_ns += now.residual_ns;
        add_all(&mut sum.classes, &now.classes);
        add_all(&mut sum.comms, &now.comms);
        self.given_up += shrink(&mut sum.comms, |count| *count);
    }

    fn add_syscalls(&mut self, syscalls: &Syscalls) {
        let fraction = match &self.syscall_mode {
            Some((_, fraction)) => fraction.min(syscalls.fraction),
            None => syscalls.fraction,
        };
        self.syscall_mode = Some((syscalls.mode.clone(), fraction));
        for row in &syscalls.syscalls {
            self.syscalls.entry(row.name.clone()).or_default().add(row);
        }
    }

    fn add_profile(&mut self, profile: &Profile) {
        for site in &profile.sites {
            let key = (
                site.class.clone(),
                site.syscall.clone(),
                site.detail.clone(),
                site.user_stack.clone(),
                site.kernel_stack.clone(),
            );
            let sum = self.sites.entry(key).or_insert_with(|| Site {
                count: 0,
                sum_ns: 0,
                max_ns: 0,
                ..site.clone()
            });
            sum.count += site.count;
            sum.sum_ns += site.sum_ns;
            sum.max_ns = sum.max_ns.max(site.max_ns);
        }
        self.given_up += shrink(&mut self.sites, |site| site.sum_ns);
        for lock in &profile.locks {
            let sum = self.locks.entry(lock.address.clone()).or_default();
            sum.waits += lock.waits;
            sum.sum_ns += lock.sum_ns;
            sum.max_ns = sum.max_ns.max(lock.max_ns);
            sum.hold_ns += lock.hold_ns;
            for owner in &lock.owners {
                let key = (owner.owner_tid, owner.owner_comm.clone());
                let holder = sum.holders.entry(key).or_default();
                holder.hold_ns += owner.hold_ns;
                for (class, ns) in &owner.meanwhile {
                    *holder.meanwhile.entry(class.clone()).or_default() += ns;
                }
            }
        }
        self.given_up += shrink(&mut self.locks, |lock| lock.sum_ns);
    }

    fn add_finding(&mut self, finding: &Finding) {
        if finding.state == FindingState::Resolved {
            return;
        }
        let bound_ns = finding.gain_bound_ns_per_s as f64 * finding.window.length_ns() as f64;
        let sum = self
            .findings
            .entry(finding.id.clone())
            .or_insert_with(|| FindingSum {
                peak: finding.clone(),
                windows: 0,
                bound_ns: 0.0,
            });
        sum.windows += 1;
        sum.bound_ns += bound_ns;
        if finding.gain_bound_ns_per_s > sum.peak.gain_bound_ns_per_s {
            sum.peak = finding.clone();
        }
        self.given_up += shrink(&mut self.findings, |finding| finding.bound_ns as u64);
    }
}

/// All that was fed so far.
#[derive(Default)]
pub struct State {
    pub hello: Option<Hello>,
    /// Why the trace ended.
    pub ended: Option<String>,
    pub windows: u64,
    pub wall_ns: u64,
    pub coverage: Coverage,
    pub processes: BTreeMap<u32, ProcessSum>,
    pub peers: Peers,
    pub requests: Requests,
    /// Processes given up for want of room.
    pub given_up: u64,
}

impl State {
    /// Adds a line. True where it ends a window.
    pub fn add(&mut self, body: &Body) -> bool {
        match body {
            Body::Hello(hello) => self.hello = Some(hello.clone()),
            Body::Ledger(ledger) => self.process(&ledger.who).add_ledger(ledger),
            Body::Syscalls(syscalls) => self.process(&syscalls.who).add_syscalls(syscalls),
            Body::Profile(profile) => self.process(&profile.who).add_profile(profile),
            Body::Connections(line) => self.peers.add_connections(line),
            Body::Statements(line) => self.peers.add_statements(line),
            Body::Requests(line) => self.requests.add(line),
            Body::Finding(finding) => self.process(&finding.who).add_finding(finding),
            Body::Coverage(coverage) => {
                self.add_coverage(coverage);
                return true;
            }
            // Never for a sink that takes all it is given.
            Body::Dropped(_) => {}
            Body::Bye(bye) => self.ended = Some(bye.reason.clone()),
        }
        false
    }

    fn process(&mut self, who: &Process) -> &mut ProcessSum {
        if !self.processes.contains_key(&who.pid) {
            self.given_up += shrink_to(&mut self.processes, MAX_PROCESSES, ProcessSum::busy_ns);
        }
        let process = self.processes.entry(who.pid).or_default();
        process.who = who.clone();
        process
    }

    fn add_coverage(&mut self, now: &Coverage) {
        self.windows += 1;
        self.wall_ns += now.window.length_ns();
        let sum = &mut self.coverage;
        sum.lifetime_ns += now.lifetime_ns;
        sum.residual_ns += now.residual_ns;
        sum.generated += now.generated;
        sum.received += now.received;
        add_all(&mut sum.lost, &now.lost);
        sum.bytes_seen += now.bytes_seen;
        sum.bytes_decoded += now.bytes_decoded;
        sum.sockets.tls_unreadable_bytes += now.sockets.tls_unreadable_bytes;
        sum.sockets
            .unreadable_tls
            .clone_from(&now.sockets.unreadable_tls);
        add_all(&mut sum.sockets.anomalies, &now.sockets.anomalies);
        sum.requests.served += now.requests.served;
        sum.requests.attributed += now.requests.attributed;
        sum.requests.calls += now.requests.calls;
        sum.requests.calls_elsewhere += now.requests.calls_elsewhere;
        add_all(&mut sum.requests.unattributed, &now.requests.unattributed);
        sum.frames += now.frames;
        sum.unsymbolized_frames += now.unsymbolized_frames;
        sum.stack_memo.hits += now.stack_memo.hits;
        sum.stack_memo.walks += now.stack_memo.walks;
        sum.stack_memo.checked += now.stack_memo.checked;
        sum.stack_memo.mismatched += now.stack_memo.mismatched;
        add_all(&mut sum.stack_walks, &now.stack_walks);
        add_all(&mut sum.python_walks, &now.python_walks);
        sum.agent.cpu_ns += now.agent.cpu_ns;
        sum.agent.bpf_ns += now.agent.bpf_ns;
        sum.agent.rss_bytes = sum.agent.rss_bytes.max(now.agent.rss_bytes);
    }

    /// Processes, the busiest first.
    pub fn ranked(&self) -> Vec<&ProcessSum> {
        let mut ranked: Vec<&ProcessSum> = self.processes.values().collect();
        ranked.sort_by_key(|p| (std::cmp::Reverse((p.busy_ns(), p.lifetime_ns)), p.who.pid));
        ranked
    }
}

/// Adds counts by name.
pub fn add_all(into: &mut BTreeMap<String, u64>, from: &BTreeMap<String, u64>) {
    for (name, value) in from {
        match into.get_mut(name) {
            Some(sum) => *sum += value,
            None => {
                into.insert(name.clone(), *value);
            }
        }
    }
}

pub fn shrink<K: Ord + Clone, V>(rows: &mut BTreeMap<K, V>, weight: impl Fn(&V) -> u64) -> u64 {
    shrink_to(rows, MAX_ROWS, weight)
}

/// Where there are `max` rows or more, keeps the heavier half and returns how many were given up.
fn shrink_to<K: Ord + Clone, V>(
    rows: &mut BTreeMap<K, V>,
    max: usize,
    weight: impl Fn(&V) -> u64,
) -> u64 {
    if rows.len() < max {
        return 0;
    }
    let mut weights: Vec<u64> = rows.values().map(&weight).collect();
    weights.sort_unstable();
    let least = weights[weights.len() / 2];
    let before = rows.len();
    let mut room = max / 2;
    rows.retain(|_, row| {
        let keep = weight(row) >= least && room > 0;
        room -= usize::from(keep);
        keep
    });
    (before - rows.len()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{full_lines, minimal_lines};

    #[test]
    fn windows_add_up_and_percentiles_become_bounds() {
        let mut state = State::default();
        for line in full_lines().iter().chain(&full_lines()) {
            state.add(&line.body);
        }
        assert_eq!((state.windows, state.wall_ns), (2, 2_000_000_000));
        let process = &state.processes[&4242];
        assert_eq!(process.lifetime_ns, 2_000);
        assert_eq!(process.classes["cpu.user"], 1_800);
        assert_eq!(process.threads[&4242].lifetime_ns, 2_000);
        let cpu = &process.latency["cpu"];
        assert_eq!((cpu.count, cpu.sum_ns, cpu.windows), (4, 4_000, 2));
        let read = &process.syscalls["read"];
        assert_eq!((read.count, read.errors["EAGAIN"]), (200, 8));
        assert_eq!(read.count_error(), 10, "7 and 7 in quadrature");
        assert_eq!(read.time_ns(), 200_000, "scaled up from the calls timed");
        assert_eq!(process.sites.len(), 4);
        assert!(process.sites.values().all(|site| site.sum_ns == 600));
        let finding = &process.findings["0123456789abcdef"];
        assert_eq!(finding.windows, 2);
        assert_eq!(finding.bound_ns_per_s(state.wall_ns), 420_000_000);
        assert_eq!(finding.bound_ns_per_s(2 * state.wall_ns), 210_000_000);
        assert_eq!(state.coverage.lost["ring_full"], 2);
        assert_eq!(state.ended.as_deref(), Some("duration"));
    }

    #[test]
    fn a_window_ends_with_its_coverage() {
        let mut state = State::default();
        let ends: Vec<bool> = minimal_lines().iter().map(|l| state.add(&l.body)).collect();
        assert_eq!(
            ends,
            [
                false, false, false, false, false, false, false, false, true, false, false
            ]
        );
    }

    #[test]
    fn rows_beyond_the_limit_go_by_weight_and_are_counted() {
        let mut rows: BTreeMap<u32, u64> = (0..100).map(|i| (i, u64::from(i))).collect();
        assert_eq!(shrink_to(&mut rows, 101, |w| *w), 0);
        assert_eq!(shrink_to(&mut rows, 100, |w| *w), 50);
        assert_eq!(rows.keys().min(), Some(&50));
        let mut same: BTreeMap<u32, u64> = (0..100).map(|i| (i, 7)).collect();
        assert_eq!(shrink_to(&mut same, 100, |w| *w), 50);
    }
}
