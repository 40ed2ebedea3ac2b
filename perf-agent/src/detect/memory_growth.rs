//! Memory that grows window after window: it ends at a limit, and the process with it.
//!
//! A fix saves no thread time to speak of (the page faults of the growth, which is the bound), so the
//! finding is told whatever that comes to, and its impact is how soon the memory is used up.

use super::settings::{Share, Time, thresholds};
use super::view::{View, innermost_own};
use super::{Candidate, Explain, evidence};
use crate::model::{Growth, Level, Memory, MemoryTrend};
use crate::sink::units;

thresholds! {
    /// Windows of growth from which it counts as steady.
    windows: u64 = 5,
    /// Time they must span: a start, or one burst, does not last that long.
    span: Time = Time(4_000_000_000),
    /// Share of the windows that must end with more memory than they began with.
    rising: Share = Share(0.8),
    /// Bytes it must have grown by: allocators take and keep a few MiB as they please.
    least_bytes: u64 = 4 << 20,
    /// Share of the growth that must fall into the last half of the windows. Steady growth has half
    /// there, what warms up and comes to rest less and less.
    late: Share = Share(0.35),
    /// A finding matters most if the memory is used up within this time, and little after a day.
    soon: Time = Time(3_600_000_000_000),
}

/// Share of the growth that may have been given back in between.
const FALLEN: f64 = 0.2;
/// Most that the fault on a fresh page costs, see `page_faults`.
const FAULT_NS: u64 = 2_000;
const PAGE_BYTES: u64 = 4096;
const DAY_NS: u64 = 86_400_000_000_000;
/// Windows from which nothing but growth explains it.
const SURE_WINDOWS: f64 = 30.0;
/// Growth from which the shares of the stacks are trusted: eight samples.
const ENOUGH_BYTES: u64 = 4 << 20;

pub const EXPLAIN: Explain = Explain {
    looks_at: "anonymous, shared and swapped memory of the process, window after window, and what bounds it",
    numbers: &[
        ("growth", "how fast it grew over the windows looked at"),
        ("grown", "by how much it grew over them"),
        ("held", "what it has now that cannot be dropped"),
        (
            "rising_windows",
            "share of the windows that ended with more",
        ),
        (
            "touched",
            "memory that became resident in the window, what left again included",
        ),
        ("left", "what is left of the nearest limit"),
        ("exhausted_in", "when it is used up at this rate"),
    ],
    bound: "CPU time of the page faults it takes to grow: little. What it is worth is that \
               the process is not killed, so the impact is how soon the memory is used up.",
    confidence: "from 0.5 for growth that has just begun to 0.9 for one that lasts, less the \
               part that was given back in between: that may be a heap before its collection.",
    next: "`perf-agent profile -p PID --mode alloc` names who allocated what is not freed; the stacks here are of who touched it first.",
};

pub fn find(view: &View) -> Vec<Candidate> {
    let set = &view.settings.rules.memory_growth;
    let Some(memory) = &view.ledger.memory else {
        return Vec::new();
    };
    let Some(trend) = memory.trend.filter(|t| is_steady(t, set)) else {
        return Vec::new();
    };
    vec![candidate(view, memory, &trend, set)]
}

fn is_steady(trend: &MemoryTrend, set: &Thresholds) -> bool {
    let Ok(change) = u64::try_from(trend.change_bytes) else {
        return false;
    };
    let of_change = |bytes: f64| bytes / change.max(1) as f64;
    trend.windows >= set.windows
        && trend.length_ns >= set.span.0
        && change >= set.least_bytes
        && trend.rising as f64 >= set.rising.0 * trend.windows as f64
        && of_change(trend.fallen_bytes as f64) <= FALLEN
        && of_change(trend.late_bytes as f64) >= set.late.0
}

fn candidate(view: &View, memory: &Memory, trend: &MemoryTrend, set: &Thresholds) -> Candidate {
    let change = trend.change_bytes.max(0) as u64;
    let rate = change as f64 * 1e9 / trend.length_ns.max(1) as f64;
    let left = memory.limit.left_bytes;
    let exhausted_in_ns = (left as f64 / rate.max(1.0) * 1e9) as u64;
    let growth = &view.profile.growth;
    let own = growth.first().and_then(|g| innermost_own(&g.user_stack));
    let pages = (memory.grown_bytes.unwrap_or(0) / PAGE_BYTES).min(view.ledger.faults.minor);
    let bound_ns = (pages * FAULT_NS).min(view.class("cpu.kernel"));
    let mut found = Candidate::new(own.clone().unwrap_or_default(), bound_ns, 0.0);
    let impact = match exhausted_in_ns {
        ns if ns < set.soon.0 => Level::High,
        ns if ns < DAY_NS => Level::Medium,
        _ => Level::Low,
    };
    (found.always, found.impact_cap) = (Some(impact), impact);
    found.exhausted_in_ns = Some(exhausted_in_ns);
    // What lasts is no start; what is given back in part may be a heap before its collection.
    let lasting = (trend.windows as f64 / SURE_WINDOWS).min(1.0);
    let given_back = trend.fallen_bytes as f64 / change.max(1) as f64;
    found.confidence = (0.5 + 0.4 * lasting) * (1.0 - given_back);
    found.subject = match &own {
        Some(function) => format!("memory touched first in `{function}`"),
        None => "memory".to_owned(),
    };
    found.title = title(
        memory,
        trend,
        rate as u64,
        exhausted_in_ns,
        growth,
        own.as_deref(),
    );
    found.evidence = numbers(memory, trend, rate, exhausted_in_ns);
    found.recommendations = recommendations(memory, own.as_deref());
    found.growth.clone_from(growth);
    found
}

fn title(
    memory: &Memory,
    trend: &MemoryTrend,
    rate: u64,
    exhausted_in_ns: u64,
    growth: &[Growth],
    own: Option<&str>,
) -> String {
    let all: u64 = growth.iter().map(|g| g.total_bytes).sum();
    let first = growth.first().map_or(0, |g| g.total_bytes);
    let whose = match own {
        Some(function) if all >= ENOUGH_BYTES => {
            format!(
                ", {} of it touched first in `{function}`",
                units::percent(first, all)
            )
        }
        Some(function) => format!(", mostly touched first in `{function}`"),
        None => String::new(),
    };
    let limit = match &memory.limit.cgroup {
        Some(path) => format!("the limit of cgroup {path}"),
        None => "the end of the host's memory".to_owned(),
    };
    format!(
        "Memory grows by {}/s, for {} so far{whose}: {limit} is {} away at this rate",
        units::bytes(rate),
        units::duration(trend.length_ns),
        units::duration(exhausted_in_ns),
    )
}

fn numbers(
    memory: &Memory,
    trend: &MemoryTrend,
    rate: f64,
    exhausted_in_ns: u64,
) -> Vec<crate::model::Evidence> {
    let windows = trend.windows;
    let rising = trend.rising as f64 / windows.max(1) as f64;
    vec![
        evidence("growth", rate, "bytes/s", windows),
        evidence("grown", trend.change_bytes as f64, "bytes", windows),
        evidence("held", memory.held_bytes() as f64, "bytes", 1),
        evidence("rising_windows", rising, "ratio", windows),
        evidence(
            "touched",
            memory.grown_bytes.unwrap_or(0) as f64,
            "bytes",
            1,
        ),
        evidence("left", memory.limit.left_bytes as f64, "bytes", 1),
        evidence("exhausted_in", exhausted_in_ns as f64, "ns", windows),
    ]
}

fn recommendations(memory: &Memory, own: Option<&str>) -> Vec<String> {
    let whose = own.map_or(String::new(), |f| format!(", beginning with `{f}`"));
    let bound = match &memory.limit.cgroup {
        Some(_) => "cgroup kills it (memory.max)",
        None => "host begins to swap or kills it",
    };
    vec![
        format!(
            "Find what is kept and never given back{whose}: a cache or queue without a bound, a list that is only added to, a leak"
        ),
        "`perf-agent profile --mode alloc` shows allocations that were not freed, by stack"
            .to_owned(),
        format!("Bound it by size or age, before the {bound}"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{frame, full_growth, full_memory, report, thread};
    use crate::model::ProcessReport;

    const MIB: u64 = 1 << 20;

    fn growing() -> ProcessReport {
        let times = [("cpu.user", 700_000_000), ("cpu.kernel", 300_000_000)];
        let mut report = report("app", vec![thread(1, &times)]);
        report.ledger.memory = Some(Box::new(full_memory()));
        report.ledger.faults.minor = 600;
        report.profile.growth = vec![
            Growth {
                samples: 18,
                total_bytes: 18 * MIB,
                user_stack: vec![
                    frame("__libc_malloc", "/usr/lib/libc.so.6"),
                    frame("app::keep", "/usr/bin/app"),
                ],
                ..full_growth()
            },
            Growth {
                samples: 2,
                total_bytes: 2 * MIB,
                ..full_growth()
            },
        ];
        report
    }

    fn changed(change: impl Fn(&mut MemoryTrend)) -> Vec<Candidate> {
        let mut report = growing();
        change(
            report
                .ledger
                .memory
                .as_mut()
                .unwrap()
                .trend
                .as_mut()
                .unwrap(),
        );
        find(&View::new(&report))
    }

    #[test]
    fn steady_growth_is_found_with_who_grows_and_when_it_ends() {
        let found = &find(&View::new(&growing()))[0];
        assert_eq!(
            found.title,
            "Memory grows by 2.00 MiB/s, for 10.0 s so far, 90 % of it touched first in `app::keep`: \
             the limit of cgroup /system.slice/server.service is 236 s away at this rate"
        );
        assert_eq!(found.exhausted_in_ns, Some(236_000_000_000));
        assert_eq!(
            (found.always, found.impact_cap),
            (Some(Level::High), Level::High)
        );
        // 2 MiB in the window are 512 faults.
        assert_eq!(found.bound_ns, 512 * FAULT_NS);
        assert_eq!(found.growth.len(), 2);
        assert_eq!(found.key, "app::keep");
    }

    #[test]
    fn a_start_a_burst_a_cache_that_fills_and_a_heap_that_is_collected_are_not_steady() {
        assert_eq!(changed(|_| ()).len(), 1);
        assert!(changed(|t| t.windows = 4).is_empty());
        assert!(changed(|t| t.length_ns = 3_900_000_000).is_empty());
        assert!(changed(|t| t.rising = 7).is_empty());
        assert!(changed(|t| t.late_bytes = 6 << 20).is_empty());
        assert!(changed(|t| t.fallen_bytes = 5 << 20).is_empty());
        assert!(changed(|t| t.change_bytes = 3 << 20).is_empty());
        assert!(changed(|t| t.change_bytes = -(20 << 20)).is_empty());
    }

    #[test]
    fn what_lasts_for_a_day_matters_little() {
        let mut report = growing();
        // A day of 2 MiB/s is 169 GiB.
        for (left_gib, want) in [(5, Level::High), (100, Level::Medium), (170, Level::Low)] {
            report.ledger.memory.as_mut().unwrap().limit.left_bytes = left_gib << 30;
            let found = find(&View::new(&report));
            assert_eq!(found[0].impact_cap, want, "{left_gib} GiB");
        }
    }

    #[test]
    fn without_a_stack_it_is_told_all_the_same() {
        let mut report = growing();
        report.profile.growth.clear();
        let found = find(&View::new(&report));
        assert_eq!(found[0].subject, "memory");
        report.ledger.memory = None;
        assert!(find(&View::new(&report)).is_empty());
    }
}
