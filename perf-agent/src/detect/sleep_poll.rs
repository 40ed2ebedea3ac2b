//! Time lost to looking again later: sleeps between pieces of work, and wake-ups for nothing.
//!
//! A thread that works and sleeps in turn could work on: its sleep is the bound. A thread that
//! wakes up only to find nothing to do costs the CPU time it wakes up for. A long sleep of a thread
//! that does nothing else is neither.

use super::settings::{Share, Time, thresholds};
use super::view::{View, class, cpu, is_poll, mean, net, own_function, ratio};
use super::{Candidate, Explain, evidence, top_stacks};
use crate::model::{Classes, Evidence, Level, Site, ThreadLedger};
use crate::sink::units;

thresholds! {
    /// A sleep shorter than this, on average, is a poll: nobody schedules work every 20 ms.
    short_sleep: Time = Time(20_000_000),
    /// Short sleeps or wake-ups a second from which they are a habit.
    often_per_s: u64 = 20,
    /// Share of its life a thread must work for its sleep to be in the way of something.
    works: Share = Share(0.05),
}

/// The same where the sleeps are long: a thread that does a little every second is in good health.
const WORKS_LONG: f64 = 0.25;
/// Share of its life a thread with long sleeps must sleep for that to dominate.
const DOMINATES: f64 = 0.5;
/// A wake-up that is followed by more CPU time than this did something.
const NOTHING_NS: u64 = 100_000;
/// Other system calls per poll below which a process only polls.
const OTHER_CALLS: f64 = 0.2;

pub const EXPLAIN: Explain = Explain {
    looks_at: "threads that work and sleep in turn, and threads that wake up and find nothing to do",
    numbers: &[
        (
            "sleep",
            "thread time slept between pieces of work, a second",
        ),
        ("sleeps", "sleeps that ended, a second"),
        ("mean_sleep", "length of one"),
        (
            "work_share_of_busiest",
            "part of its life the busiest of the threads works",
        ),
        (
            "cpu_time",
            "CPU and run-queue time of the wake-ups, a second",
        ),
        ("wake_ups", "wake-ups a second"),
        ("cpu_per_wake_up", "CPU time of one"),
        ("threads", "how many threads do so"),
    ],
    bound: "time slept between pieces of work, or the CPU time of the wake-ups for \
               nothing.",
    confidence: "0.3 for short sleeps and 0.2 for others: a program may keep to a pace on \
               purpose. 0.7 for wake-ups for nothing.",
    next: "Find the sleep in the stacks shown and wait for the event itself; where it paces on purpose, check the pace.",
};

pub fn find(view: &View) -> Vec<Candidate> {
    let mut found = Vec::new();
    found.extend(sleeps_between_work(view));
    found.extend(wakes_for_nothing(view));
    found
}

/// All that is neither sleep nor waiting for work. Nor is waiting for a lock work that a sleep is in the
/// way of: threads that sleep while they hold one sleep on behalf of those that wait for it, and it is
/// the lock that is told of.
fn work(classes: &Classes) -> u64 {
    let waits = ["runq", "disk", "fault", "ipc", "gpu"];
    let waited: u64 = waits.iter().map(|name| class(classes, name)).sum();
    cpu(classes) + net(classes) + waited
}

fn works(thread: &ThreadLedger) -> f64 {
    ratio(work(&thread.classes), thread.lifetime_ns)
}

fn sleeps(thread: &ThreadLedger) -> f64 {
    ratio(class(&thread.classes, "timer"), thread.lifetime_ns)
}

/// Sleeps that ended, and their mean.
fn timers(view: &View) -> (u64, u64) {
    let latency = view.latency("timer").copied().unwrap_or_default();
    (latency.count, mean(latency.sum_ns, latency.count))
}

fn sleeps_between_work(view: &View) -> Option<Candidate> {
    let set = &view.settings.rules.sleep_poll;
    let (count, mean_ns) = timers(view);
    let short = mean_ns < set.short_sleep.0 && view.per_s(count) >= set.often_per_s;
    let alternates = |thread: &&ThreadLedger| match short {
        true => works(thread) >= set.works.0,
        false => works(thread) >= WORKS_LONG && sleeps(thread) >= DOMINATES,
    };
    let threads: Vec<&ThreadLedger> = view.settled_threads().filter(alternates).collect();
    let sleep = |thread: &ThreadLedger| class(&thread.classes, "timer");
    let bound_ns: u64 = threads.iter().map(|thread| sleep(thread)).sum();
    if count == 0 || bound_ns == 0 {
        return None;
    }
    let share = threads.iter().map(|t| sleeps(t)).fold(0.0, f64::max);
    let busiest = threads.iter().map(|t| works(t)).fold(0.0, f64::max);
    let mut found = habit(view, bound_ns, share, "timer", "sleep between work");
    // Whether anything waited for the sleeper is not known, and pacing is often meant: a wait whose
    // cause is known comes first at the same bound.
    found.confidence = if short { 0.3 } else { 0.2 };
    found.effort = Level::Medium;
    found.impact_cap = match busiest {
        b if b >= WORKS_LONG => Level::Medium,
        _ => Level::Low,
    };
    found.title = format!(
        "Threads sleep {} between pieces of work: {} sleeps a second, {} each",
        units::duration_per_s(view.per_s(bound_ns)),
        units::count(view.per_s(count)),
        units::duration(mean_ns),
    );
    found.evidence = vec![
        evidence("sleep", view.per_s(bound_ns) as f64, "ns/s", count),
        evidence("sleeps", view.per_s(count) as f64, "1/s", count),
        evidence("mean_sleep", mean_ns as f64, "ns", count),
        evidence("work_share_of_busiest", busiest, "ratio", count),
        counted_threads(&threads),
    ];
    found.recommendations = vec![
        "Wait for the event itself (condition variable, eventfd, epoll) instead of sleeping and looking".to_owned(),
        "Where the sleep limits a rate on purpose, check that the rate is still the one wanted".to_owned(),
    ];
    Some(found)
}

/// Threads that wake up often and hardly do anything before they wait again.
fn wakes_for_nothing(view: &View) -> Option<Candidate> {
    let set = &view.settings.rules.sleep_poll;
    let (count, mean_ns) = timers(view);
    let timer_polls = mean_ns < set.short_sleep.0 && view.per_s(count) >= set.often_per_s;
    let idle: Vec<&Site> = polling_sites(view);
    if !timer_polls && idle.is_empty() {
        return None;
    }
    // With a sleep of its own, work between makes it a case for `sleeps_between_work`.
    let by_sleep = |thread: &ThreadLedger| {
        timer_polls && sleeps(thread) >= DOMINATES && works(thread) < set.works.0
    };
    let by_poll = |thread: &ThreadLedger| {
        let idle_ns = class(&thread.classes, "idle");
        !idle.is_empty() && ratio(idle_ns, thread.lifetime_ns) >= DOMINATES
    };
    let nothing = |thread: &&ThreadLedger| {
        (by_sleep(thread) || by_poll(thread))
            && view.per_s(thread.switches) >= set.often_per_s
            && mean(cpu(&thread.classes), thread.switches) <= NOTHING_NS
    };
    let threads: Vec<&ThreadLedger> = view.settled_threads().filter(nothing).collect();
    let spent = |thread: &ThreadLedger| cpu(&thread.classes) + class(&thread.classes, "runq");
    let bound_ns: u64 = threads.iter().map(|thread| spent(thread)).sum();
    let wakes: u64 = threads.iter().map(|thread| thread.switches).sum();
    if bound_ns == 0 {
        return None;
    }
    let class = if idle.is_empty() { "timer" } else { "idle" };
    let share = view.share_of(cpu);
    let mut found = habit(view, bound_ns, share, class, "wake-ups for nothing");
    found.confidence = 0.7;
    // CPU time of threads that have plenty to spare.
    found.impact_cap = Level::Low;
    found.title = format!(
        "Threads wake up {} times a second and find nothing to do, for {} of CPU time",
        units::count(view.per_s(wakes)),
        units::duration_per_s(view.per_s(bound_ns)),
    );
    found.evidence = vec![
        evidence("cpu_time", view.per_s(bound_ns) as f64, "ns/s", wakes),
        evidence("wake_ups", view.per_s(wakes) as f64, "1/s", wakes),
        evidence("cpu_per_wake_up", mean(bound_ns, wakes) as f64, "ns", wakes),
        counted_threads(&threads),
    ];
    found.recommendations = vec![
        "Wait without a timeout, and have whoever brings work wake the thread".to_owned(),
        "Where a timeout is needed, make it longer, or back off while nothing comes".to_owned(),
    ];
    Some(found)
}

/// Waits for work that end soon and often, in a process that makes hardly any other call: the
/// timeout ended them, not work. Needs the syscalls signal; without it a busy server looks alike.
fn polling_sites<'a>(view: &View<'a>) -> Vec<&'a Site> {
    let set = &view.settings.rules.sleep_poll;
    let polls_or_waits = |name: &str| is_poll(name) || name == "futex";
    let (mut polls, mut others) = (0u64, 0u64);
    for row in view.rows() {
        if polls_or_waits(&row.name) {
            polls += row.count;
        } else {
            others += row.count;
        }
    }
    if polls == 0 || ratio(others, polls) >= OTHER_CALLS {
        return Vec::new();
    }
    view.sites(|class| class == "idle")
        .filter(|site| site.syscall.as_deref().is_some_and(polls_or_waits))
        .filter(|site| site.count > 0 && mean(site.sum_ns, site.count) < set.short_sleep.0)
        .filter(|site| view.per_s(site.count) >= set.often_per_s)
        .collect()
}

/// A finding with key, subject and stacks from the largest sites of a class.
fn habit(view: &View, bound_ns: u64, share: f64, class: &str, what: &str) -> Candidate {
    let sites = || view.sites(|name| name == class);
    let top = sites().max_by_key(|site| site.sum_ns);
    let subject = match top.and_then(own_function) {
        Some(function) => format!("{what} in `{function}`"),
        None => what.to_owned(),
    };
    let mut found = Candidate::new(subject, bound_ns, share);
    found.stacks = top_stacks(sites());
    found
}

fn counted_threads(threads: &[&ThreadLedger]) -> Evidence {
    let n = threads.len();
    evidence("threads", n as f64, "count", n as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{frame, latency, report, row, site, syscalls, thread};
    use crate::model::{Latency, ProcessReport};

    fn sleeping(work_ns: u64, count: u64, mean_ns: u64) -> ProcessReport {
        let times = [("cpu.user", work_ns), ("timer", 1_000_000_000 - work_ns)];
        let mut report = report("app", vec![thread(1, &times)]);
        report.ledger.threads[0].switches = count;
        let timer = Latency {
            sum_ns: count * mean_ns,
            ..latency(count)
        };
        report.ledger.process.latency.insert("timer".into(), timer);
        let mut asleep = site(
            "timer",
            "clock_nanosleep",
            count,
            1_000_000_000 - work_ns,
            None,
        );
        asleep.user_stack = vec![
            frame("clock_nanosleep", "/lib/libc.so.6"),
            frame("wait_for_job", "/usr/bin/app"),
        ];
        report.profile.sites = vec![asleep];
        report
    }

    #[test]
    fn sleeps_between_work_are_bound_by_the_sleep() {
        let report = sleeping(300_000_000, 700, 1_000_000);
        let found = find(&View::new(&report));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].bound_ns, 700_000_000);
        assert_eq!(found[0].subject, "sleep between work in `wait_for_job`");
        assert_eq!(found[0].confidence, 0.3);
        assert_eq!(
            found[0].title,
            "Threads sleep 700 ms/s between pieces of work: 700 sleeps a second, 1.00 ms each"
        );
        assert_eq!(found[0].evidence[3].value, 0.3);
    }

    #[test]
    fn a_thread_that_wakes_up_for_nothing_costs_its_cpu_time() {
        let report = sleeping(20_000_000, 900, 1_088_000);
        let found = find(&View::new(&report));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].bound_ns, 20_000_000);
        assert_eq!(found[0].impact_cap, Level::Low);
        assert!(
            found[0].title.contains("wake up 900 times a second"),
            "{}",
            found[0].title
        );
    }

    fn polling(other_calls: u64) -> ProcessReport {
        let times = [("cpu.user", 30_000_000), ("idle", 970_000_000)];
        let mut report = report("app", vec![thread(1, &times)]);
        report.ledger.threads[0].switches = 2_000;
        report.profile.sites = vec![site("idle", "epoll_wait", 2_000, 970_000_000, None)];
        report.syscalls = Some(syscalls(vec![
            row("epoll_wait", 2_000, 485_000, 0),
            row("read", other_calls, 1_000, 0),
        ]));
        report
    }

    #[test]
    fn short_timeouts_are_told_from_a_server_by_what_follows_them() {
        let found = find(&View::new(&polling(10)));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].bound_ns, 30_000_000);
        assert!(find(&View::new(&polling(2_000))).is_empty());
        let mut uncounted = polling(10);
        uncounted.syscalls = None;
        assert!(find(&View::new(&uncounted)).is_empty());
    }

    #[test]
    fn a_plain_long_sleep_is_nothing() {
        for (work_ns, count, mean_ns) in [
            (0, 0, 0),
            (1_000_000, 1, 999_000_000),
            (100_000_000, 2, 450_000_000),
        ] {
            let report = sleeping(work_ns, count, mean_ns);
            assert!(find(&View::new(&report)).is_empty(), "{work_ns} {count}");
        }
        let dominated = sleeping(400_000_000, 6, 100_000_000);
        let found = find(&View::new(&dominated));
        assert_eq!(found[0].bound_ns, 600_000_000);
        assert_eq!(found[0].confidence, 0.2);
    }
}
