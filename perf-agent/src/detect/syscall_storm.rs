//! CPU time that goes into entering the kernel: very many cheap calls, above all small reads and
//! writes.

use super::settings::{Share, thresholds};
use super::view::{View, cpu, is_poll, mean, ratio};
use super::{Candidate, Explain, evidence, top_stacks};
use crate::model::{Level, SyscallRow};
use crate::sink::units;

thresholds! {
    /// Fewer calls a second are no storm: at the 0.2 to 1 µs that entry and exit cost, this many are
    /// 0.2 to 1 % of a core.
    min_calls_per_s: u64 = 10_000,
    /// Kernel share of the CPU time below which the calls are not what the CPU time goes into.
    min_kernel_share: Share = Share(0.25),
    /// Reads and writes of fewer bytes on average are small: entry and exit cost as much as copying
    /// some 4 KiB, so at an eighth of that nine tenths of the call are overhead.
    small_bytes: u64 = 512,
}

/// Most that entry and exit cost, under virtualization and with all mitigations.
const ENTRY_NS: u64 = 1_000;
/// Calls that take longer at the median do work or wait; entering is not what they cost.
const CHEAP_NS: u64 = 20_000;

/// CPU time of a row by its median: sums hold waits as well.
pub fn cheap_ns(row: &SyscallRow) -> u64 {
    if row.latency.p50_ns <= CHEAP_NS {
        row.count.saturating_mul(row.latency.p50_ns)
    } else {
        0
    }
}

/// Kernel CPU time for which a number of cheap calls can answer: their part, by median duration, of
/// all of it, and no more than they can have taken with entry and exit, which the median lacks.
pub fn kernel_part(view: &View, calls: u64, calls_ns: u64) -> u64 {
    let all_ns: u64 = view.rows().iter().map(cheap_ns).sum();
    let part_ns = (view.class("cpu.kernel") as f64 * ratio(calls_ns, all_ns)) as u64;
    part_ns.min(calls_ns.saturating_add(calls.saturating_mul(ENTRY_NS)))
}

pub const EXPLAIN: Explain = Explain {
    looks_at: "the cheap system call that takes most CPU time, where a good part of the CPU time is in the kernel",
    numbers: &[
        ("calls", "calls a second"),
        ("median_call", "how long one takes"),
        ("kernel_share", "part of the CPU time spent in the kernel"),
        ("kernel_cpu", "CPU time a second that can be theirs"),
        ("mean_size", "bytes moved by one"),
    ],
    bound: "the kernel's part of the CPU time of these calls, from the length of those \
               timed.",
    confidence: "0.85 for small reads and writes, which can nearly always be joined; 0.6 in an \
               event loop, where that takes the help of the peers; 0.5 for other calls, of \
               which it is not known whether they can be saved.",
    next: "Find the caller in the stacks shown; buffer, batch, or keep the result. `--syscalls full` counts exactly.",
};

pub fn find(view: &View) -> Vec<Candidate> {
    let set = &view.settings.rules.syscall_storm;
    let kernel_share = ratio(view.class("cpu.kernel"), view.cpu_ns());
    let top = view.rows().iter().max_by_key(|row| cheap_ns(row));
    match top {
        Some(row)
            if view.per_s(row.count) >= set.min_calls_per_s
                && cheap_ns(row) > 0
                && kernel_share >= set.min_kernel_share.0 =>
        {
            vec![candidate(view, row, kernel_share)]
        }
        _ => Vec::new(),
    }
}

/// Whether the process waits for many peers at once and answers each: its calls are as small as
/// the messages, and only the peers can make them larger.
fn is_event_loop(view: &View, row: &SyscallRow) -> bool {
    let rows = view.rows().iter();
    let polls: u64 = rows
        .filter(|row| is_poll(&row.name))
        .map(|row| row.count)
        .sum();
    polls * 2 >= row.count
}

fn candidate(view: &View, row: &SyscallRow, kernel_share: f64) -> Candidate {
    let bound_ns = kernel_part(view, row.count, cheap_ns(row));
    let share = view.share_of(cpu) * ratio(bound_ns, view.cpu_ns());
    let mut found = Candidate::new(&row.name, bound_ns, share);
    let size = mean(row.bytes, row.count);
    let small = row.bytes > 0 && size < view.settings.rules.syscall_storm.small_bytes;
    let looping = is_event_loop(view, row);
    let rate = units::count(view.per_s(row.count));
    // Small reads and writes can nearly always be joined. In an event loop that takes the peers'
    // help; of other calls it is not known whether they can be saved at all.
    (found.confidence, found.effort) = match (small, looping) {
        (true, false) => (0.85, Level::Low),
        (true, true) => (0.6, Level::Medium),
        (false, _) => (0.5, Level::Medium),
    };
    found.impact_cap = view.cpu_impact_cap();
    let moved = match row.bytes {
        0 => String::new(),
        _ => format!(", {} each", units::bytes(size)),
    };
    found.title = format!(
        "Calls {} {rate} times a second{moved}; {:.0} % of the CPU time is in the kernel",
        row.name,
        kernel_share * 100.0
    );
    let samples = row.latency.count;
    found.evidence = vec![
        evidence("calls", view.per_s(row.count) as f64, "1/s", samples),
        evidence("median_call", row.latency.p50_ns as f64, "ns", samples),
        evidence("kernel_share", kernel_share, "ratio", samples),
        evidence("kernel_cpu", view.per_s(bound_ns) as f64, "ns/s", samples),
    ];
    if row.bytes > 0 {
        let value = ratio(row.bytes, row.count);
        found
            .evidence
            .push(evidence("mean_size", value, "bytes", samples));
    }
    found.recommendations = recommendations(&row.name, small, looping);
    let of_call = |name: &Option<String>| name.as_deref() == Some(row.name.as_str());
    let sites = view.sites(|class| class == "cpu.kernel");
    found.stacks = top_stacks(sites.filter(|site| of_call(&site.syscall)));
    found
}

fn recommendations(name: &str, small: bool, looping: bool) -> Vec<String> {
    let texts: Vec<String> = match (small, looping) {
        (true, false) => vec![
            format!("Buffer: one {name} of 4 KiB or more instead of many small ones"),
            "Use the vectored calls (readv, writev) or io_uring for what lies apart".to_owned(),
        ],
        (true, true) => vec![
            "Have clients pipeline or batch, so that one call carries several messages".to_owned(),
            "Answer all that came in before polling again".to_owned(),
        ],
        (false, _) => vec![
            format!("Find out why {name} is called so often: start with the stacks shown"),
            "Keep the result where it does not change; batch where the call allows it".to_owned(),
        ],
    };
    texts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{report, row, syscalls, thread};
    use crate::model::ProcessReport;

    fn byte_reader() -> ProcessReport {
        let times = [("cpu.user", 300_000_000), ("cpu.kernel", 700_000_000)];
        let mut report = report("dd", vec![thread(1, &times)]);
        report.syscalls = Some(syscalls(vec![
            row("read", 900_000, 400, 900_000),
            row("write", 900_000, 200, 900_000),
            row("nanosleep", 5, 50_000_000, 0),
        ]));
        report
    }

    #[test]
    fn reading_byte_by_byte_is_bound_by_its_part_of_the_kernel_time() {
        let report = byte_reader();
        let found = find(&View::new(&report));
        assert_eq!(found.len(), 1);
        let bound = found[0].bound_ns;
        assert!(bound.abs_diff(700_000_000 * 2 / 3) <= 1, "{bound}");
        assert_eq!(found[0].key, "read");
        assert_eq!((found[0].confidence, found[0].effort), (0.85, Level::Low));
        assert_eq!(
            found[0].title,
            "Calls read 900 k times a second, 1 B each; 70 % of the CPU time is in the kernel"
        );
        assert_eq!(found[0].evidence[0].value, 900_000.0);
        assert_eq!(found[0].evidence[0].samples, 900_000);
        assert_eq!(found[0].evidence[4].value, 1.0);
    }

    #[test]
    fn the_small_messages_of_an_event_loop_are_the_clients_to_change() {
        let mut report = byte_reader();
        if let Some(syscalls) = &mut report.syscalls {
            syscalls.syscalls.push(row("epoll_wait", 500_000, 100, 0));
        }
        let found = find(&View::new(&report));
        assert_eq!((found[0].confidence, found[0].effort), (0.6, Level::Medium));
    }

    #[test]
    fn few_calls_long_calls_and_user_code_are_no_storm() {
        let with = |rows, user, kernel| {
            let times = [("cpu.user", user), ("cpu.kernel", kernel)];
            let mut report = report("app", vec![thread(1, &times)]);
            report.syscalls = Some(syscalls(rows));
            find(&View::new(&report)).len()
        };
        const MS: u64 = 1_000_000;
        assert_eq!(
            with(vec![row("read", 9_000, 400, 9_000)], 300 * MS, 700 * MS),
            0
        );
        assert_eq!(
            with(
                vec![row("read", 20_000, 30_000, 20_000)],
                300 * MS,
                700 * MS
            ),
            0
        );
        assert_eq!(
            with(vec![row("read", 90_000, 400, 90_000)], 900 * MS, 100 * MS),
            0
        );
        assert_eq!(with(vec![], 300 * MS, 700 * MS), 0);
        assert_eq!(
            with(vec![row("read", 90_000, 400, 90_000)], 300 * MS, 700 * MS),
            1
        );
    }
}
