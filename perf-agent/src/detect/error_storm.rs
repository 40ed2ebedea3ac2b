//! CPU time spent on system calls that fail.

use super::settings::{Share, thresholds};
use super::syscall_storm::{cheap_ns, kernel_part};
use super::view::{View, cpu, is_poll, ratio};
use super::{Candidate, Explain, evidence};
use crate::model::{Level, SyscallRow};
use crate::sink::units;

thresholds! {
    /// Fewer failures of a call a second are everyday life.
    min_errors_per_s: u64 = 100,
    /// So is a smaller share of the calls.
    min_share: Share = Share(0.1),
    /// Answers that say "not yet" (EAGAIN, EINTR, ETIMEDOUT, ...) count only from this many a second,
    extreme_per_s: u64 = 10_000,
    /// and where nearly every call gets one.
    extreme_share: Share = Share(0.9),
}

/// "Not yet", not "no": non-blocking I/O, timed waits and signals answer so in good health.
const NOT_YET: &[&str] = &["EAGAIN", "EWOULDBLOCK", "EINTR", "ETIMEDOUT", "EINPROGRESS"];
/// Calls that exist to wait, beside polls: a "not yet" of theirs never counts.
const WAITING_CALLS: &[&str] = &["futex", "futex_waitv", "io_uring_enter", "rt_sigtimedwait"];
/// Findings a window, largest first.
const MAX_FINDINGS: usize = 2;

pub const EXPLAIN: Explain = Explain {
    looks_at: "system calls that fail, and the CPU time they take",
    numbers: &[
        ("errors", "failures a second, by the error named"),
        ("share_of_calls", "part of the calls that fail so"),
        ("median_call", "how long such a call takes"),
        ("kernel_cpu", "most of the CPU time that can be theirs"),
    ],
    bound: "the kernel's part of the CPU time of the calls that fail, at the mean of all \
               calls of that kind.",
    confidence: "0.75: a call that failed did nothing, so leaving it out costs nothing; how \
               long those that fail take is an estimate.",
    next: "Find the caller in the stacks shown and stop it from asking for what is not there; keep negative answers.",
};

pub fn find(view: &View) -> Vec<Candidate> {
    let mut found: Vec<Candidate> = view
        .rows()
        .iter()
        .flat_map(|row| row.errors.iter().map(move |(errno, n)| (row, errno, *n)))
        .filter(|(row, errno, n)| is_storm(view, row, errno, *n))
        .map(|(row, errno, n)| candidate(view, row, errno, n))
        .collect();
    found.sort_by_key(|b| std::cmp::Reverse(b.bound_ns));
    found.truncate(MAX_FINDINGS);
    found
}

fn is_storm(view: &View, row: &SyscallRow, errno: &str, errors: u64) -> bool {
    let set = &view.settings.rules.error_storm;
    let (rate, share) = (view.per_s(errors), ratio(errors, row.count));
    if NOT_YET.contains(&errno) {
        return rate >= set.extreme_per_s
            && share >= set.extreme_share.0
            && !is_poll(&row.name)
            && !WAITING_CALLS.contains(&row.name.as_str());
    }
    rate >= set.min_errors_per_s && share >= set.min_share.0
}

fn candidate(view: &View, row: &SyscallRow, errno: &str, errors: u64) -> Candidate {
    let share_of_calls = ratio(errors, row.count);
    let errors_ns = (cheap_ns(row) as f64 * share_of_calls) as u64;
    let bound_ns = kernel_part(view, errors, errors_ns);
    let share = view.share_of(cpu) * ratio(bound_ns, view.cpu_ns());
    let mut found = Candidate::new(format!("{}: {errno}", row.name), bound_ns, share);
    // A failed call did nothing, so leaving it out costs nothing; the time per call is an estimate.
    found.confidence = 0.75;
    found.effort = Level::Low;
    found.impact_cap = view.cpu_impact_cap();
    found.title = format!(
        "Gets {errno} from {} {} times a second ({:.0} % of the calls)",
        row.name,
        units::count(view.per_s(errors)),
        share_of_calls * 100.0
    );
    let samples = row.latency.count;
    found.evidence = vec![
        evidence("errors", view.per_s(errors) as f64, "1/s", errors),
        evidence("share_of_calls", share_of_calls, "ratio", row.count),
        evidence("median_call", row.latency.p50_ns as f64, "ns", samples),
        evidence("kernel_cpu", view.per_s(bound_ns) as f64, "ns/s", samples),
    ];
    found.recommendations = vec![
        advice(errno, &row.name),
        "Log the arguments of a failing call once, to see who makes it".to_owned(),
    ];
    found
}

fn advice(errno: &str, call: &str) -> String {
    match errno {
        "ENOENT" | "ENOTDIR" => {
            "Remember what does not exist; shorten the search path it is looked for in".to_owned()
        }
        "EAGAIN" | "EWOULDBLOCK" => {
            format!("Wait until the descriptor is ready (epoll) instead of trying {call} again")
        }
        "ECONNREFUSED" | "ECONNRESET" | "EPIPE" | "EHOSTUNREACH" | "ENETUNREACH" => {
            "The peer is gone: check it, and back off between attempts".to_owned()
        }
        "EACCES" | "EPERM" => {
            "Fix the permission, or stop trying after the first refusal".to_owned()
        }
        "EBADF" => {
            "Descriptors are used after they were closed, or closed by guess: keep track of them"
                .to_owned()
        }
        "EMFILE" | "ENFILE" => {
            "Descriptors run out: look for a leak, or raise the limit".to_owned()
        }
        "ENOSYS" | "EOPNOTSUPP" | "EINVAL" => {
            format!("{call} is not supported so: test for it once and remember the answer")
        }
        _ => format!("Find out why {call} fails, and stop calling it where it will fail again"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{report, row, syscalls, thread};
    use crate::model::ProcessReport;

    fn failing(name: &str, errno: &str, errors: u64, count: u64) -> ProcessReport {
        let times = [("cpu.user", 200_000_000), ("cpu.kernel", 800_000_000)];
        let mut report = report("app", vec![thread(1, &times)]);
        let mut calls = row(name, count, 2_000, 0);
        calls.errors.insert(errno.into(), errors);
        let others = row("close", count, 2_000, 0);
        report.syscalls = Some(syscalls(vec![calls, others]));
        report
    }

    #[test]
    fn failing_opens_are_bound_by_their_part_of_the_kernel_time() {
        let report = failing("openat", "ENOENT", 90_000, 100_000);
        let found = find(&View::new(&report));
        assert_eq!(found.len(), 1);
        // 90,000 calls of 2 µs, and 1 µs each for entry and exit; that is below their part of the
        // kernel time (half of it is openat's, nine tenths of that failed).
        assert_eq!(found[0].bound_ns, 270_000_000);
        assert_eq!(found[0].key, "openat: ENOENT");
        assert_eq!(
            found[0].title,
            "Gets ENOENT from openat 90,000 times a second (90 % of the calls)"
        );
        let figures: Vec<(f64, u64)> = found[0]
            .evidence
            .iter()
            .map(|e| (e.value, e.samples))
            .collect();
        assert_eq!(figures[0], (90_000.0, 90_000));
        assert_eq!(figures[1], (0.9, 100_000));
        assert!(found[0].recommendations[0].contains("does not exist"));
    }

    #[test]
    fn not_yet_is_no_error_unless_extreme() {
        for (name, errno, errors, findings) in [
            ("read", "EAGAIN", 50_000, 0),
            ("read", "EAGAIN", 99_000, 1),
            ("futex", "EAGAIN", 99_000, 0),
            ("futex", "ETIMEDOUT", 99_000, 0),
            ("epoll_wait", "EINTR", 99_000, 0),
            ("openat", "ENOENT", 9_000, 0),
        ] {
            let report = failing(name, errno, errors, 100_000);
            assert_eq!(
                find(&View::new(&report)).len(),
                findings,
                "{name} {errno} {errors}"
            );
        }
    }
}
