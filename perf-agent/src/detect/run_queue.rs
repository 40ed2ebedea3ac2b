//! Threads that could run and get no CPU: too many of them, too few CPUs, or a CPU quota.

use super::settings::{Share, Time, thresholds};
use super::view::{View, class, ratio};
use super::{Candidate, Explain, evidence};
use crate::model::{Level, Throttled};
use crate::sink::units;

thresholds! {
    /// From this 99th percentile waits are pressure. Below, they are what every wake-up costs: some
    /// microseconds until the CPU has switched.
    pressure_p99: Time = Time(1_000_000),
    /// So they are from this share of the time wanted on a CPU.
    pressure_share: Share = Share(0.2),
}

pub const EXPLAIN: Explain = Explain {
    looks_at: "threads that could run and have no CPU",
    numbers: &[
        ("wait", "thread time in the run queue, a second"),
        ("wait_p99", "99 of 100 waits are shorter"),
        ("wait_max", "the longest one"),
        (
            "share_of_busiest_waiter",
            "part of its life the thread that waits most spends so",
        ),
        (
            "throttled_periods",
            "part of the CPU quota’s periods that were cut short",
        ),
        (
            "throttled",
            "how long the cgroup was held back, over all its CPUs",
        ),
    ],
    bound: "time in the run queue.",
    confidence: "0.95 where a quota holds the threads back, which the kernel counts; else 0.8 \
               under pressure and 0.4 without: the wait is measured, whether it can be saved \
               depends on what else the host runs.",
    next: "Look at what else runs on these CPUs (`top`, `cpu.stat` of the cgroup), then give more CPU or run less at once.",
};

pub fn find(view: &View) -> Vec<Candidate> {
    let runq_ns = view.class("runq");
    if runq_ns == 0 {
        return Vec::new();
    }
    let share = view.share_of(|classes| class(classes, "runq"));
    let mut found = Candidate::new("runq", runq_ns, share);
    let latency = view.latency("runq").copied().unwrap_or_default();
    let throttled = view.ledger.throttled.as_ref();
    let throttled = throttled.filter(|throttled| throttled.throttled_periods > 0);
    let set = &view.settings.rules.run_queue;
    let pressure = latency.p99_ns >= set.pressure_p99.0
        || ratio(runq_ns, runq_ns + view.cpu_ns()) >= set.pressure_share.0;
    let rate = units::duration_per_s(view.per_s(runq_ns));
    let p99 = units::duration(latency.p99_ns);
    found.evidence = vec![
        evidence("wait", view.per_s(runq_ns) as f64, "ns/s", latency.count),
        evidence("wait_p99", latency.p99_ns as f64, "ns", latency.count),
        evidence("wait_max", latency.max_ns as f64, "ns", latency.count),
        evidence("share_of_busiest_waiter", share, "ratio", latency.count),
    ];
    match throttled {
        Some(throttled) => quota(&mut found, throttled, &rate),
        None => {
            found.subject = "run queue".to_owned();
            found.title = format!("Threads wait {rate} for a CPU (p99 {p99})");
            // The wait is measured; whether it can be saved depends on the rest of the host.
            found.confidence = if pressure { 0.8 } else { 0.4 };
            if !pressure {
                found.impact_cap = Level::Low;
            }
            found.recommendations = vec![
                "See what else runs on these CPUs and move, limit or deprioritise it".to_owned(),
                "Run no more busy threads than there are CPUs".to_owned(),
                "Give the host or container more CPUs, or widen the CPU affinity".to_owned(),
            ];
        }
    }
    vec![found]
}

/// Throttled threads are runnable all the while: their wait is in `runq`, the reason is the quota.
fn quota(found: &mut Candidate, throttled: &Throttled, rate: &str) {
    let cgroup = &throttled.cgroup;
    let (cut, periods) = (throttled.throttled_periods, throttled.periods);
    found.key = "quota".to_owned();
    found.subject = format!("CPU quota of {cgroup}");
    found.title = format!(
        "Quota throttling: {cut} of {periods} periods of {cgroup} were cut short; threads wait {rate} for a CPU"
    );
    found.confidence = 0.95;
    found.effort = Level::Low;
    found.evidence.push(evidence(
        "throttled_periods",
        ratio(cut, periods),
        "ratio",
        periods,
    ));
    let throttled_ns = throttled.throttled_ns as f64;
    found
        .evidence
        .push(evidence("throttled", throttled_ns, "ns", cut));
    found.recommendations = vec![
        format!("Raise the CPU quota of {cgroup} (cpu.max, or the container's CPU limit)"),
        "Run fewer threads at the same time, so that a period's quota is not gone at once"
            .to_owned(),
        "Allow bursts (cpu.max.burst) where the load comes in peaks".to_owned(),
    ];
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{latency, report, thread};
    use crate::model::{Latency, ProcessReport};

    fn waiting(runq_ns: u64, p99_ns: u64) -> ProcessReport {
        let times = [("cpu.user", 1_000_000_000 - runq_ns), ("runq", runq_ns)];
        let mut report = report("app", vec![thread(1, &times), thread(2, &times)]);
        let runq = Latency {
            p99_ns,
            ..latency(400)
        };
        report.ledger.process.latency.insert("runq".into(), runq);
        report
    }

    #[test]
    fn waits_for_a_cpu_are_the_bound() {
        let report = waiting(400_000_000, 8_000_000);
        let found = find(&View::new(&report));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].bound_ns, 800_000_000);
        assert_eq!(found[0].share, 0.4);
        assert_eq!(found[0].confidence, 0.8);
        assert_eq!(
            found[0].title,
            "Threads wait 800 ms/s for a CPU (p99 8.00 ms)"
        );
        assert_eq!(found[0].evidence[1].value, 8e6);
        assert_eq!(found[0].evidence[1].samples, 400);
    }

    #[test]
    fn a_quota_is_named_as_the_reason() {
        let mut report = waiting(400_000_000, 60_000_000);
        report.ledger.throttled = Some(Throttled {
            cgroup: "/app.slice".into(),
            periods: 10,
            throttled_periods: 9,
            throttled_ns: 800_000_000,
        });
        let found = find(&View::new(&report));
        assert!(
            found[0]
                .title
                .starts_with("Quota throttling: 9 of 10 periods of /app.slice"),
            "{}",
            found[0].title
        );
        assert_eq!(found[0].effort, Level::Low);
        let periods = found[0]
            .evidence
            .iter()
            .find(|e| e.name == "throttled_periods")
            .unwrap();
        assert_eq!((periods.value, periods.samples), (0.9, 10));
    }

    #[test]
    fn what_every_wake_up_costs_is_low_and_no_wait_is_nothing() {
        let report = waiting(20_000_000, 40_000);
        let found = find(&View::new(&report));
        assert_eq!(found[0].impact_cap, Level::Low);
        assert_eq!(found[0].confidence, 0.4);
        let none = crate::fixtures::report("app", vec![thread(1, &[("idle", 1_000_000_000)])]);
        assert!(find(&View::new(&none)).is_empty());
    }
}
