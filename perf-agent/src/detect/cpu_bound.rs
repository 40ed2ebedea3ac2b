//! Threads that have no time left because they compute: the hot function, and the cores it takes.
//!
//! CPU time alone is no bottleneck. It becomes one in a thread that is on the CPU, or waiting for
//! one, for most of its life; the time of such threads is the bound.

use std::collections::BTreeMap;

use super::settings::{Share, thresholds};
use super::view::{View, cpu, demand, hot_function, ratio};
use super::{Candidate, Explain, evidence, top_stacks};
use crate::model::{Level, Site, ThreadLedger};
use crate::sink::units;

thresholds! {
    /// From this share of its life on the CPU or waiting for one a thread counts as computing.
    busy: Share = Share(0.5),
    /// A function is worth naming from this share of the samples; below, the profile is flat and the
    /// function in front changes from window to window.
    hot: Share = Share(0.2),
}

/// Samples that a share can be trusted from: at 20, ±22 percentage points (95 %).
const ENOUGH_SAMPLES: u64 = 20;
/// From this ratio of lock waits it causes to its CPU time, a thread computes inside a critical
/// section, and the lock is the bottleneck rather than the computing.
const HOLDS_LOCK: f64 = 0.25;

pub const EXPLAIN: Explain = Explain {
    looks_at: "threads that are on a CPU, or waiting for one, for most of their life, and processes that come and go",
    numbers: &[
        ("cpu_time", "CPU time of the threads that compute, a second"),
        ("cores_used", "the same, in cores"),
        (
            "hottest_function_share",
            "part of the CPU samples that fell into the function named",
        ),
        ("kernel_share", "part of the CPU time spent in the kernel"),
        ("busy_threads", "how many threads compute"),
        (
            "busiest_thread_demand",
            "part of its life the busiest of them ran or wanted to",
        ),
        (
            "lock_waits_caused",
            "time others waited for a lock that these threads released",
        ),
        ("processes", "short-lived processes started a second"),
    ],
    bound: "CPU time of the threads that compute for most of their life; of processes that \
               come and go, theirs.",
    confidence: "0.9 where such a thread is on a CPU or waiting for one for nine tenths of its \
               life, 0.7 from three quarters, 0.5 below: one with time to spare may not be \
               what is waited for. Less where no function can be named, and half where it \
               computes while others wait for its lock. 0.6 for processes that come and go.",
    next: "See the hot call paths: `perf-agent profile -p PID`. Then make that code do less, or spread it over threads.",
};

pub fn find(view: &View) -> Vec<Candidate> {
    let mut found = Vec::new();
    found.extend(threads(view));
    found.extend(short_lived(view));
    found
}

/// The hottest function, its samples, and all samples.
struct Hottest {
    function: Option<String>,
    share: f64,
    samples: u64,
}

fn is_cpu(class: &str) -> bool {
    class.starts_with("cpu.")
}

fn hottest(view: &View) -> Hottest {
    let mut by_function: BTreeMap<String, u64> = BTreeMap::new();
    let (mut sites_ns, mut samples) = (0, 0);
    for site in view.sites(is_cpu) {
        sites_ns += site.sum_ns;
        samples += site.count;
        if let Some(function) = hot_function(site) {
            *by_function.entry(function).or_default() += site.sum_ns;
        }
    }
    let rest = &view.profile.rest;
    let rest_ns: u64 = rest
        .iter()
        .filter(|(class, _)| is_cpu(class))
        .map(|(_, ns)| ns)
        .sum();
    let top = by_function.into_iter().max_by_key(|(_, ns)| *ns);
    let share = top
        .as_ref()
        .map_or(0.0, |(_, ns)| ratio(*ns, sites_ns + rest_ns));
    Hottest {
        function: top
            .map(|(name, _)| name)
            .filter(|_| share >= view.settings.rules.cpu_bound.hot.0),
        share,
        samples,
    }
}

fn threads(view: &View) -> Option<Candidate> {
    let busy_from = view.settings.rules.cpu_bound.busy.0;
    let all = &view.ledger.threads;
    let busy: Vec<&ThreadLedger> = all.iter().filter(|t| demand(t) >= busy_from).collect();
    let bound_ns: u64 = busy.iter().map(|t| cpu(&t.classes)).sum();
    let saturation = view.saturation();
    if bound_ns == 0 || saturation < busy_from {
        return None;
    }
    let hot = hottest(view);
    let key = hot.function.clone().unwrap_or_else(|| "cpu".to_owned());
    let mut found = Candidate::new(key, bound_ns, view.share_of(cpu));
    let lock_ns = lock_waits_caused(view, &busy);
    found.confidence = confidence(saturation, &hot, ratio(lock_ns, bound_ns));
    found.impact_cap = view.cpu_impact_cap();
    let cores = ratio(bound_ns, view.wall_ns());
    let kernel_share = ratio(view.class("cpu.kernel"), view.cpu_ns());
    let percent = units::percent((hot.share * 1e4) as u64, 10_000);
    (found.subject, found.title) = match &hot.function {
        Some(name) => (
            name.clone(),
            format!("Computes on {cores:.2} cores; {percent} of it in `{name}`"),
        ),
        None => (
            "no single function".to_owned(),
            format!("Computes on {cores:.2} cores; no single function stands out"),
        ),
    };
    found.evidence = vec![
        evidence("cpu_time", view.per_s(bound_ns) as f64, "ns/s", hot.samples),
        evidence("cores_used", cores, "ratio", hot.samples),
        evidence("hottest_function_share", hot.share, "ratio", hot.samples),
        evidence("kernel_share", kernel_share, "ratio", hot.samples),
        evidence(
            "busy_threads",
            busy.len() as f64,
            "count",
            busy.len() as u64,
        ),
        evidence("busiest_thread_demand", saturation, "ratio", 1),
    ];
    if lock_ns > 0 {
        let value = view.per_s(lock_ns) as f64;
        found
            .evidence
            .push(evidence("lock_waits_caused", value, "ns/s", 1));
    }
    found.recommendations = recommendations(&hot, kernel_share, busy.len(), lock_ns > 0);
    let of_hot = |site: &&Site| hot.function.is_none() || hot_function(site) == hot.function;
    found.stacks = top_stacks(view.sites(is_cpu).filter(of_hot));
    Some(found)
}

/// A saturated thread is a fact (0.9); one with time to spare may not be what is waited for. Where
/// no function can be named the advice is vague, and where the threads compute while others wait
/// for their lock the lock is the better lead.
fn confidence(saturation: f64, hot: &Hottest, lock_ratio: f64) -> f64 {
    let mut confidence = match saturation {
        s if s >= 0.90 => 0.9,
        s if s >= 0.75 => 0.7,
        _ => 0.5,
    };
    if hot.function.is_none() || hot.samples < ENOUGH_SAMPLES {
        confidence *= 0.8;
    }
    if lock_ratio >= HOLDS_LOCK {
        confidence *= 0.5;
    }
    confidence
}

/// Time others waited for a lock that one of `threads` released in the end.
fn lock_waits_caused(view: &View, threads: &[&ThreadLedger]) -> u64 {
    let locks = &view.profile.locks;
    locks
        .iter()
        .flat_map(|lock| &lock.wakers)
        .filter(|waker| threads.iter().any(|t| t.tid == waker.waker_tid))
        .map(|waker| waker.sum_ns)
        .sum()
}

fn recommendations(hot: &Hottest, kernel: f64, threads: usize, locks: bool) -> Vec<String> {
    let mut out = Vec::new();
    if kernel >= 0.5 {
        out.push(format!(
            "{:.0} % of the CPU time is in the kernel: look at the system calls and page faults first",
            kernel * 100.0
        ));
    }
    out.push(match &hot.function {
        Some(name) => format!("Optimise `{name}` or call it less: start with the stacks shown"),
        None => {
            "Take a longer profile, with symbols installed, to find what to optimise".to_owned()
        }
    });
    if locks {
        out.push(
            "Move computing out of the critical section: other threads wait for it".to_owned(),
        );
    }
    if threads == 1 {
        out.push("Spread the work over more threads: a single one carries it".to_owned());
    }
    out
}

/// Processes that come and go: starting them is often most of what they cost.
fn short_lived(view: &View) -> Option<Candidate> {
    let gone = view.ledger.process.short_lived.as_ref()?;
    let bound_ns = cpu(&gone.classes);
    let mut found = Candidate::new("short-lived processes", bound_ns, 0.0);
    found.share = ratio(bound_ns, view.wall_ns()).min(1.0);
    found.impact_cap = Level::Medium;
    found.confidence = 0.6;
    let rate = view.per_s(gone.processes);
    let program = gone.comms.iter().max_by_key(|(_, count)| **count);
    let program = program.map_or("processes", |(name, _)| name.as_str());
    found.title = format!(
        "Starts {rate} short-lived processes a second, mostly `{program}`, which compute on {:.2} cores",
        ratio(bound_ns, view.wall_ns()),
    );
    found.evidence = vec![
        evidence(
            "cpu_time",
            view.per_s(bound_ns) as f64,
            "ns/s",
            gone.processes,
        ),
        evidence("processes", rate as f64, "1/s", gone.processes),
    ];
    found.recommendations = vec![
        format!("Do the work of `{program}` in the process itself, or in one that stays"),
        "Start processes with vfork or posix_spawn, statically linked where possible".to_owned(),
    ];
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{frame, report, site, thread};
    use crate::model::{Lock, ProcessReport, Waker};

    fn spinning() -> ProcessReport {
        let mut report = report(
            "spin",
            vec![
                thread(1, &[("cpu.user", 980_000_000), ("runq", 20_000_000)]),
                thread(2, &[("cpu.user", 990_000_000), ("cpu.kernel", 10_000_000)]),
                thread(3, &[("cpu.user", 1_000_000), ("idle", 999_000_000)]),
            ],
        );
        let mut hot = site("cpu.user", "", 180, 1_773_900_000, None);
        hot.user_stack = vec![frame("crunch", "/usr/bin/spin")];
        let mut cold = site("cpu.user", "", 20, 197_100_000, None);
        cold.user_stack = vec![frame("other", "/usr/bin/spin")];
        report.profile.sites = vec![hot, cold];
        report.profile.rest.insert("cpu.kernel".into(), 10_000_000);
        report
    }

    #[test]
    fn two_spinning_threads_are_bound_by_their_cpu_time_and_name_the_function() {
        let report = spinning();
        let found = find(&View::new(&report));
        assert_eq!(found.len(), 1);
        let found = &found[0];
        assert_eq!(found.bound_ns, 1_980_000_000);
        assert_eq!(found.subject, "crunch");
        assert_eq!(found.confidence, 0.9);
        assert_eq!(found.impact_cap, Level::High);
        assert!(
            found.title.contains("1.98 cores") && found.title.contains("90 %"),
            "{}",
            found.title
        );
        let value = |name: &str| {
            let e = found.evidence.iter().find(|e| e.name == name).unwrap();
            (e.value, e.samples)
        };
        assert_eq!(value("cpu_time"), (1.98e9, 200));
        assert_eq!(value("busy_threads"), (2.0, 2));
        assert_eq!(value("hottest_function_share").1, 200);
        assert!((value("hottest_function_share").0 - 0.8955).abs() < 1e-3);
        assert_eq!(found.stacks.len(), 1);
    }

    #[test]
    fn threads_with_time_to_spare_are_no_bottleneck() {
        let report = report(
            "server",
            vec![
                thread(1, &[("cpu.user", 300_000_000), ("idle", 700_000_000)]),
                thread(2, &[("cpu.user", 400_000_000), ("net.tcp", 600_000_000)]),
            ],
        );
        assert!(find(&View::new(&report)).is_empty());
    }

    #[test]
    fn computing_while_others_wait_for_the_lock_halves_the_confidence() {
        let mut report = spinning();
        report.profile.locks = vec![Lock {
            address: "0x1000".into(),
            waits: 10,
            sum_ns: 900_000_000,
            max_ns: 90_000_000,
            wakers: vec![Waker {
                waker_tid: 1,
                waker_comm: "thread-1".into(),
                waiter_tid: 9,
                waiter_comm: "thread-9".into(),
                count: 10,
                sum_ns: 900_000_000,
            }],
            ..Lock::default()
        }];
        let found = find(&View::new(&report));
        assert_eq!(found[0].confidence, 0.45);
        assert!(
            found[0]
                .evidence
                .iter()
                .any(|e| e.name == "lock_waits_caused" && e.value == 9e8)
        );
    }

    #[test]
    fn many_short_lived_processes_are_one_finding() {
        let mut report = report("sh", vec![thread(1, &[("child", 1_000_000_000)])]);
        report.ledger.process.short_lived = Some(crate::model::ShortLived {
            processes: 1_000,
            threads: 1_000,
            lifetime_ns: 900_000_000,
            classes: crate::fixtures::classes(&[("cpu.user", 500_000_000)]),
            residual_ns: 0,
            comms: [("true".to_owned(), 1_000)].into(),
        });
        let found = find(&View::new(&report));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].bound_ns, 500_000_000);
        assert!(
            found[0]
                .title
                .contains("1000 short-lived processes a second, mostly `true`")
        );
    }
}
