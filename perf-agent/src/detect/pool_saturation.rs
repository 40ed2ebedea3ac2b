//! Every connection to a server is busy all the time, and threads wait for one.
//!
//! Seen, for a client: connections to one peer with a request in flight for 85 % of the window, more
//! threads than connections, and other threads asleep on futexes for a second and more in each second
//! of wall time, in waits that end about as often as requests do.
//!
//! Told only of protocols with one request at a time on a connection.
//!
//! Bound: what threads waited on futexes, and no more than those without a connection could.
//!
//! Cannot be known: whether it is a connection they wait for, and not for work of another kind: that
//! looks the same, so the confidence is low and the impact medium at most. Nor what a pool has besides: one that
//! hands out the connection it got back last keeps a few busy under requests that come as evenly as a clock ticks,
//! and those it has never used since the attach are not seen. Programs whose tasks wait without blocking a thread
//! (Go, asyncio, Node) do not show it.

use super::settings::{Share, thresholds};
use super::statements::{
    self, Ends, asking, by_ends, in_hand_ns, is_client, living, statements_of,
};
use super::view::{View, ratio};
use super::{Candidate, Explain, evidence, top_stacks};
use crate::model::{ConnectionRow, Level, Site};
use crate::sink::units;

thresholds! {
    /// Part of the time for which the connections to a server have a request in flight.
    utilisation: Share = Share(0.85),
}

/// Requests that may be made with one connection before it is given back.
const MAX_REQUESTS_PER_WAIT: u64 = 20;
const ONE_AT_A_TIME: &[&str] = &["postgresql", "mysql", "redis", "memcached", "http"];

pub const EXPLAIN: Explain = Explain {
    looks_at: "clients whose connections to a server all have a request in flight nearly all the time, while other threads of theirs wait",
    numbers: &[
        ("connections", "connections in use"),
        (
            "utilisation",
            "part of the time they have a request in flight",
        ),
        (
            "in_flight_at_end",
            "requests without an answer when the window ended",
        ),
        ("threads", "threads that lived for most of the window"),
        (
            "waiting_threads",
            "threads asleep on futexes at a time, on average",
        ),
        (
            "asking",
            "time the threads worked or waited for peers, a second",
        ),
    ],
    bound: "what threads waited on futexes, and no more than those without a connection \
               could.",
    confidence: "0.5: waiting for work of another kind looks the same.",
    next: "See in the stacks shown whether the threads wait in the pool of the driver. If so, shorten what holds the connections before making the pool larger.",
};

pub fn find(view: &View) -> Vec<Candidate> {
    let waits: Vec<&Site> = view
        .sites(|class| class == "lock" || class == "idle")
        .filter(|site| site.count > 0 && site.syscall.as_deref() == Some("futex"))
        .collect();
    by_ends(view)
        .into_iter()
        .filter(|(ends, _)| is_client(ends.0) && ONE_AT_A_TIME.contains(&ends.1))
        .filter_map(|(ends, connections)| pool(view, ends, &connections, &waits))
        .collect()
}

fn pool(
    view: &View,
    ends: Ends,
    connections: &[&ConnectionRow],
    waits: &[&Site],
) -> Option<Candidate> {
    let wall_ns = view.wall_ns();
    let used = connections
        .iter()
        .filter(|c| !c.closed && c.exchanges + c.in_flight > 0);
    let size = used.count() as u64;
    let threads = view.settled_threads().count() as u64;
    let rows = || statements_of(view, ends).filter(|row| statements::is_judged(row));
    let busy_ns: u64 = rows().map(in_hand_ns).sum();
    let requests: u64 = rows().map(|row| row.count).sum();
    let wait_ns: u64 = waits.iter().map(|site| site.sum_ns).sum();
    let ended: u64 = waits.iter().map(|site| site.count).sum();
    let utilisation = ratio(busy_ns, size.saturating_mul(wall_ns));
    let saturated = size > 0
        && threads > size
        && utilisation >= view.settings.rules.pool_saturation.utilisation.0
        && wait_ns >= wall_ns
        && ended.saturating_mul(MAX_REQUESTS_PER_WAIT) >= requests;
    if !saturated {
        return None;
    }
    let bound_ns = wait_ns.min((threads - size).saturating_mul(wall_ns));
    let mut found = statements::between(view, ends, bound_ns, living);
    found.impact_cap = Level::Medium;
    found.confidence = 0.5;
    found.title = format!(
        "All {size} connections to {} are busy {:.0} % of the time, and threads wait {}",
        found.subject,
        utilisation.min(1.0) * 100.0,
        units::duration_per_s(view.per_s(bound_ns)),
    );
    let in_flight: u64 = connections.iter().map(|c| c.in_flight).sum();
    found.evidence = vec![
        evidence("connections", size as f64, "count", size),
        evidence("utilisation", utilisation.min(1.0), "ratio", requests),
        evidence("in_flight_at_end", in_flight as f64, "count", 1),
        evidence("threads", threads as f64, "count", threads),
        evidence("waiting_threads", ratio(wait_ns, wall_ns), "count", ended),
        evidence(
            "asking",
            view.per_s(asking(&view.ledger.process.classes)) as f64,
            "ns/s",
            requests,
        ),
    ];
    found.recommendations = [
        "Make the statements shorter first: the pool is as large as they are slow",
        "Give a connection back as soon as its statement is done, and hold none across other work",
        "Then allow more connections, as far as the server has CPUs and disks for them",
    ]
    .map(str::to_owned)
    .to_vec();
    found.stacks = top_stacks(waits.iter().copied());
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{asked, asking_report, connected, site, thread};
    use crate::model::ProcessReport;

    /// Two connections, each with a request for nine tenths of the second, and six threads of which
    /// four wait.
    fn saturated() -> ProcessReport {
        let mut report = asking_report(0, vec![asked("SELECT ?", 180, 10_000_000)]);
        let threads = (1..=6).map(|tid| {
            thread(
                tid,
                &[("idle", 700_000_000), ("net.postgresql", 300_000_000)],
            )
        });
        report.ledger = crate::fixtures::report("app", threads.collect()).ledger;
        report.connections.as_mut().unwrap().connections = vec![connected("10.0.0.9:5432", 90); 2];
        report.profile.sites = vec![site("idle", "futex", 180, 3_900_000_000, None)];
        report
    }

    #[test]
    fn busy_connections_and_waiting_threads_are_a_pool_that_is_too_small() {
        let report = saturated();
        let found = find(&View::new(&report));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].bound_ns, 3_900_000_000);
        assert_eq!(
            found[0].title,
            "All 2 connections to PostgreSQL at 10.0.0.9:5432 are busy 90 % of the time, and threads \
             wait 3.90 s/s"
        );
    }

    #[test]
    fn a_pool_with_room_or_without_waiters_is_fine() {
        let none = |change: fn(&mut ProcessReport)| {
            let mut report = saturated();
            change(&mut report);
            find(&View::new(&report)).is_empty()
        };
        // A third connection, hardly used.
        assert!(none(|r| {
            let connections = &mut r.connections.as_mut().unwrap().connections;
            connections.push(connected("10.0.0.9:5432", 1));
        }));
        // Nobody waits; or what they wait for does not come with the requests.
        assert!(none(|r| r.profile.sites.clear()));
        assert!(none(|r| r.profile.sites[0].count = 2));
        // A thread for each connection.
        assert!(none(|r| r.ledger.threads.truncate(2)));
    }
}
