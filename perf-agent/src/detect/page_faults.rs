//! Page faults: threads asleep until a page is read back, and CPU time spent on mapping fresh ones.

use super::view::{View, class, cpu, in_fault, mean, own_function, ratio};
use super::{Candidate, Explain, evidence, top_stacks};
use crate::model::Level;
use crate::sink::units;

/// Most that a minor fault costs: entry, zeroing or copying a page, mapping it. 0.5 to 1 µs on
/// bare hardware, up to twice that under virtualization. Only used as a bound, and never more than
/// the kernel CPU time there was.
const MINOR_FAULT_NS: u64 = 2_000;

/// Samples in faults from which their CPU time is taken as measured (a relative error of 1/√10).
const MIN_SAMPLES: u64 = 10;

pub const EXPLAIN: Explain = Explain {
    looks_at: "time asleep until a page is read, and CPU time spent on mapping pages",
    numbers: &[
        ("major_faults", "faults a second that had to read"),
        ("minor_faults", "faults a second that had not to"),
        ("asleep", "thread time asleep in faults, a second"),
        ("mean_sleep", "length of one sleep"),
        ("cpu", "CPU time in faults, a second, measured by samples"),
        (
            "cpu_bound",
            "the most it can be, where too few samples fell",
        ),
    ],
    bound: "time asleep for pages, and CPU time in faults.",
    confidence: "0.85 of the time asleep, which is measured; 0.75 of the CPU time where enough \
               samples fell into faults, 0.5 where it is an estimate for each fault.",
    next: "Asleep: look for memory pressure. On the CPU: find who maps and unmaps again and again (`perf-agent profile`).",
};

pub fn find(view: &View) -> Vec<Candidate> {
    let faults = &view.ledger.faults;
    let blocked_ns = view.class("fault");
    let most_ns = (faults.minor * MINOR_FAULT_NS).min(view.class("cpu.kernel"));
    let measured = faults.cpu_ns.filter(|_| faults.cpu_samples >= MIN_SAMPLES);
    let cpu_ns = measured.unwrap_or(most_ns);
    let bound_ns = blocked_ns + cpu_ns;
    if bound_ns == 0 {
        return Vec::new();
    }
    let blocked_share = ratio(blocked_ns, bound_ns);
    let cpu_share = view.share_of(cpu) * ratio(cpu_ns, view.cpu_ns());
    let share = view.share_of(|classes| class(classes, "fault")) + cpu_share;
    // A fault that reads takes no less CPU time than one that does not: where it is not asleep (a disk
    // that answers at once, a CPU that a hypervisor has meanwhile), most of the time is of the more numerous.
    let reads = blocked_share >= 0.5 || faults.major > faults.minor;
    let key = if reads { "stall" } else { "minor" };
    let mut found = Candidate::new(key, bound_ns, share);
    // Time asleep is measured; so is the CPU time where enough samples fell, else it is an estimate.
    let of_cpu = if measured.is_some() { 0.75 } else { 0.5 };
    found.confidence = 0.85 * blocked_share + of_cpu * (1.0 - blocked_share);
    let mut sites: Vec<_> = view
        .sites(|class| class == "cpu.kernel")
        .filter(|site| in_fault(site))
        .collect();
    if reads {
        sites.extend(view.sites(|class| class == "fault"));
    }
    found.stacks = top_stacks(sites);
    let mostly = match found.stacks.first().and_then(own_function) {
        Some(function) => format!(", most of it in `{function}`"),
        None => String::new(),
    };
    let (minor, major) = (view.per_s(faults.minor), view.per_s(faults.major));
    if reads {
        found.subject = "page-fault stalls".to_owned();
        found.title = format!(
            "Threads {} in page faults ({} major faults a second){mostly}",
            match blocked_share >= 0.5 {
                true => format!("sleep {}", units::duration_per_s(view.per_s(blocked_ns))),
                false => format!("spend {}", units::duration_per_s(view.per_s(bound_ns))),
            },
            units::count(major),
        );
        found.recommendations = lines(&[
            "Check for memory pressure: swap use, the cgroup's memory.high and memory.max, other \
             programs that take the page cache",
            "Read or map the data ahead of need (MAP_POPULATE, madvise WILLNEED), or pin it (mlock)",
            "Replace mmap by reads of its own where latency matters",
        ]);
    } else {
        found.subject = "minor page faults".to_owned();
        found.impact_cap = view.cpu_impact_cap().min(Level::Medium);
        found.title = format!(
            "Takes {} minor page faults a second{mostly}: memory is mapped afresh over and over",
            units::count(minor),
        );
        found.recommendations = lines(&[
            "Reuse buffers instead of allocating and freeing large ones",
            "Let the allocator keep freed memory (glibc: MALLOC_TRIM_THRESHOLD_, \
             MALLOC_MMAP_THRESHOLD_; jemalloc: dirty_decay_ms)",
            "Use huge pages for large heaps (madvise HUGEPAGE)",
        ]);
    }
    let waits = view.latency("fault").copied().unwrap_or_default();
    found.evidence = vec![
        evidence("major_faults", major as f64, "1/s", faults.major),
        evidence("minor_faults", minor as f64, "1/s", faults.minor),
        evidence("asleep", view.per_s(blocked_ns) as f64, "ns/s", waits.count),
        evidence(
            "mean_sleep",
            mean(waits.sum_ns, waits.count) as f64,
            "ns",
            waits.count,
        ),
        match measured {
            Some(ns) => evidence("cpu", view.per_s(ns) as f64, "ns/s", faults.cpu_samples),
            None => evidence("cpu_bound", view.per_s(cpu_ns) as f64, "ns/s", faults.minor),
        },
    ];
    vec![found]
}

fn lines(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{frame, latency, report, site, thread};
    use crate::model::{Faults, Latency};

    #[test]
    fn sleeping_in_major_faults_is_the_bound() {
        let times = [("cpu.user", 500_000_000), ("fault", 500_000_000)];
        let mut report = report("app", vec![thread(1, &times)]);
        report.ledger.faults = Faults {
            minor: 0,
            major: 250,
            blocked_ns: 500_000_000,
            ..Faults::default()
        };
        let waits = Latency {
            sum_ns: 500_000_000,
            ..latency(250)
        };
        report.ledger.process.latency.insert("fault".into(), waits);
        let found = find(&View::new(&report));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].bound_ns, 500_000_000);
        assert_eq!(found[0].share, 0.5);
        assert_eq!(found[0].confidence, 0.85);
        assert_eq!(
            found[0].title,
            "Threads sleep 500 ms/s in page faults (250 major faults a second)"
        );
        assert_eq!(found[0].evidence[3].value, 2e6);
    }

    #[test]
    fn minor_faults_are_bound_by_what_they_can_cost_and_by_the_kernel_time_there_was() {
        let times = [("cpu.user", 700_000_000), ("cpu.kernel", 300_000_000)];
        let mut report = report("app", vec![thread(1, &times)]);
        report.ledger.faults.minor = 100_000;
        assert_eq!(find(&View::new(&report))[0].bound_ns, 200_000_000);
        report.ledger.faults.minor = 1_000_000;
        let found = find(&View::new(&report));
        assert_eq!(found[0].bound_ns, 300_000_000);
        assert_eq!(found[0].confidence, 0.5);
        assert_eq!(found[0].impact_cap, Level::Medium);
    }

    #[test]
    fn the_cpu_time_of_faults_is_what_was_sampled_where_enough_samples_fell() {
        let times = [("cpu.user", 200_000_000), ("cpu.kernel", 800_000_000)];
        let mut report = report("app", vec![thread(1, &times)]);
        report.ledger.faults = Faults {
            minor: 100_000,
            cpu_ns: Some(300_000_000),
            cpu_samples: 30,
            ..Faults::default()
        };
        assert_eq!(find(&View::new(&report))[0].bound_ns, 300_000_000);
        report.ledger.faults.cpu_samples = 3;
        assert_eq!(find(&View::new(&report))[0].bound_ns, 200_000_000);
    }

    #[test]
    fn faults_that_read_without_sleep_are_no_minor_ones() {
        let times = [("cpu.kernel", 900_000_000), ("fault", 100_000_000)];
        let mut report = report("app", vec![thread(1, &times)]);
        report.ledger.faults = Faults {
            minor: 10,
            major: 5_000,
            blocked_ns: 100_000_000,
            cpu_ns: Some(800_000_000),
            cpu_samples: 80,
        };
        let found = find(&View::new(&report));
        assert_eq!(
            found[0].title,
            "Threads spend 900 ms/s in page faults (5,000 major faults a second)"
        );
        assert_eq!(
            (found[0].key.as_str(), found[0].bound_ns),
            ("stall", 900_000_000)
        );
        report.ledger.faults.minor = 5_000;
        assert_eq!(find(&View::new(&report))[0].key, "minor");
    }

    #[test]
    fn the_stacks_are_of_the_faults_and_the_largest_names_the_function() {
        let kernel = |function: &str, entry: &str, ns| {
            let mut site = site("cpu.kernel", "", 10, ns, None);
            site.user_stack = vec![frame(function, "/usr/bin/app")];
            site.kernel_stack = vec![frame("work", "[kernel]"), frame(entry, "[kernel]")];
            site
        };
        let times = [("cpu.user", 200_000_000), ("cpu.kernel", 800_000_000)];
        let mut report = report("app", vec![thread(1, &times)]);
        report.ledger.faults.minor = 100_000;
        report.profile.sites = vec![
            kernel("app::send", "do_syscall_64", 500_000_000),
            kernel("app::map", "asm_exc_page_fault", 100_000_000),
            kernel("app::fill", "handle_mm_fault", 200_000_000),
        ];
        let found = find(&View::new(&report));
        assert_eq!(found[0].stacks.len(), 2);
        assert_eq!(
            found[0].title,
            "Takes 100 k minor page faults a second, most of it in `app::fill`: memory is mapped \
             afresh over and over"
        );
    }

    #[test]
    fn a_process_without_faults_gives_nothing() {
        let report = report("app", vec![thread(1, &[("cpu.kernel", 1_000_000_000)])]);
        assert!(find(&View::new(&report)).is_empty());
    }
}
