//! Statements that take long: by their 95th percentile, or because they take much of the wall time.
//!
//! Seen: latencies by shape, as the target waited for them (client) or took for them (server).
//!
//! Thresholds: the 95th percentile that was asked for (`[targets]`, `[[target]]`, `--target`), else one
//! of 200 ms, from which people feel a wait; or a quarter of the wall
//! time with a median of 1 ms, for below that a statement is asked often rather than slow. For the
//! second reason alone the impact stays low, medium from a median of 10 ms: a server whose clients do
//! nothing but ask is busy with something, whatever it is.
//!
//! Bound: all of its time, without what it spent behind other requests of its connection, and no more
//! than the threads had: a client waits and works, a server has its lifetime.
//!
//! Cannot be known: whether a statement that takes long does so on purpose (a sleep, a long poll, a
//! report at night). Commands that wait for events are left out by name.

use super::settings::{Share, Time, thresholds};
use super::statements::{
    self, asking, in_hand_ns, is_client, is_judged, living, other_end, service, shown,
};
use super::view::{View, mean, ratio};
use super::{Candidate, Explain, evidence, n_plus_one};
use crate::model::{Level, StatementRow};
use crate::sink::units;

thresholds! {
    /// From this 95th percentile a statement is slow, where no target for its 95th percentile is set.
    slow_p95: Time = Time(200_000_000),
    /// From this share of the wall time it is worth a look too,
    wall_share: Share = Share(0.25),
    /// if it takes this long in the median: below, it is asked often rather than slow.
    wall_median: Time = Time(1_000_000),
}

/// From this median, then, it may matter more than a little.
const SLOW_MEDIAN_NS: u64 = 10_000_000;
const MAX_FINDINGS: usize = 3;
/// Exchanges from which a 95th percentile is not just the largest value.
const ENOUGH: u64 = 20;
/// Two or three may be chance.
const SOME: u64 = 3;

pub const EXPLAIN: Explain = Explain {
    looks_at: "statements and requests that take long, as the target waited for them (client) or took for them (server)",
    numbers: &[
        (
            "p95",
            "95 of 100 take less; below 20 answers it is the slowest",
        ),
        ("median", "half of them take less"),
        ("max", "the slowest one of the window"),
        (
            "time",
            "time they took together, a second, without what they spent behind other requests of their connection",
        ),
        ("rate", "how many a second"),
        (
            "mean_first_byte",
            "time until the first byte of the answer, on average",
        ),
        (
            "share_queued",
            "part of their time spent behind earlier requests of the same connection",
        ),
    ],
    bound: "all of its time, without what it spent behind other requests of its \
               connection, and no more than the threads had.",
    confidence: "0.85 from 20 answers, 0.7 from 3, 0.5 below; 0.15 less where it is told for \
               its share of the time alone. It may take long on purpose.",
    next: "Look at the plan of the statement (EXPLAIN) with the values that are slow, and at `first_byte` and `queued` of its row in `statements`; trace the server if it can be.",
};

pub fn find(view: &View) -> Vec<Candidate> {
    let rows = view.statements().filter(|row| is_judged(row));
    let found = rows.filter_map(|row| {
        let slow = row.latency.p95_ns >= slow_p95_ns(view, row);
        (slow || takes_much(view, row)).then(|| candidate(view, row, slow))
    });
    statements::largest(found.collect(), MAX_FINDINGS)
}

/// From which 95th percentile a statement is slow: what was asked for comes before what is usual.
fn slow_p95_ns(view: &View, row: &StatementRow) -> u64 {
    let target = view.settings.targets.of(row).p95;
    target
        .unwrap_or(view.settings.rules.slow_statement.slow_p95)
        .0
}

fn takes_much(view: &View, row: &StatementRow) -> bool {
    let set = &view.settings.rules.slow_statement;
    ratio(in_hand_ns(row), view.wall_ns()) >= set.wall_share.0
        && row.latency.p50_ns >= set.wall_median.0
        && !n_plus_one::is_run(view, row)
}

fn candidate(view: &View, row: &StatementRow, slow: bool) -> Candidate {
    let client = is_client(&row.role);
    let stake = if client { asking } else { living };
    let mut found = statements::about(view, row, in_hand_ns(row), stake);
    found.peer = client.then(|| row.peer.clone());
    found.confidence = match row.count {
        n if n >= ENOUGH => 0.85,
        n if n >= SOME => 0.7,
        _ => 0.5,
    };
    if slow && row.count >= SOME {
        found.always = Some(Level::Low);
    }
    if !slow {
        found.confidence -= 0.15;
        found.impact_cap = match row.latency.p50_ns {
            ns if ns >= SLOW_MEDIAN_NS => Level::Medium,
            _ => Level::Low,
        };
    }
    let latency = &row.latency;
    let (what, ns) = match slow {
        true => ("95th percentile", latency.p95_ns),
        false => ("median", latency.p50_ns),
    };
    found.title = format!(
        "`{}` takes {} ({what}) {} {}: {} times a second, {:.0} % of wall time",
        shown(&row.text),
        units::duration(ns),
        if client { "on" } else { "for" },
        other_end(&row.role, &row.protocol, &row.peer),
        units::rate(row.count as f64 * 1e9 / view.wall_ns().max(1) as f64),
        ratio(in_hand_ns(row), view.wall_ns()) * 100.0,
    );
    let n = latency.count;
    let queued = ratio(row.queued.sum_ns, latency.sum_ns);
    let first_byte = mean(row.first_byte.sum_ns, row.first_byte.count);
    found.evidence = vec![
        evidence("p95", latency.p95_ns as f64, "ns", n),
        evidence("median", latency.p50_ns as f64, "ns", n),
        evidence("max", latency.max_ns as f64, "ns", n),
        evidence("time", view.per_s(in_hand_ns(row)) as f64, "ns/s", n),
        evidence("rate", view.per_s(row.count) as f64, "1/s", n),
        evidence("mean_first_byte", first_byte as f64, "ns", n),
        evidence("share_queued", queued, "ratio", n),
    ];
    found.recommendations = recommendations(row, client);
    found
}

fn recommendations(row: &StatementRow, client: bool) -> Vec<String> {
    let mut out = Vec::new();
    let area = service(&row.protocol).map_or("", |service| service.area);
    let commits = ["COMMIT", "END"].iter().any(|s| row.text.starts_with(s));
    if statements::is_pipelined(row) {
        out.push("Much of it is spent behind other requests of the same connection: use more connections, or look at those requests");
    }
    if row.first_byte.sum_ns < row.latency.sum_ns / 2 {
        out.push("Most of it is between the answer's first byte and its last: fetch fewer rows and columns, in pages");
    }
    match area {
        _ if commits => {
            out.push("A commit waits for the log to be on disk: commit more work at once, or look at the log's device");
        }
        super::services::DATABASE => {
            out.push("Look at its plan (EXPLAIN): a missing index, rows read and thrown away, a wait for a lock held by another transaction");
            out.push("Fetch less, or keep the result where it is asked for again and again");
        }
        super::services::CACHING => {
            out.push("Look for large values and for commands that walk over many keys (KEYS, SMEMBERS, LRANGE of all)");
        }
        _ => out.push("Look at what the peer does with the time: trace it as well"),
    }
    if client && super::services::is_local(&row.peer) {
        out.push("The server runs on this host: trace it as well, with a -p of its own");
    }
    out.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::DATABASE_SPECIALIST;
    use crate::detect::settings::Settings;
    use crate::detect::targets::{Limits, Percentile, Single};
    use crate::fixtures::{asked, asking_report, report, thread};

    const REPORT: &str = "SELECT sum(amount) FROM orders";

    #[test]
    fn a_slow_statement_is_found_with_all_of_its_time() {
        let slow = asked(REPORT, 3, 300_000_000);
        let report = asking_report(920_000_000, vec![slow, asked("SELECT ?", 10, 1_000_000)]);
        let found = find(&View::new(&report));
        let [found] = &found[..] else {
            panic!("{} findings", found.len());
        };
        assert_eq!(found.bound_ns, 900_000_000);
        assert_eq!(found.delegate, DATABASE_SPECIALIST);
        assert_eq!(found.impact_cap, Level::High);
        assert_eq!(found.always, Some(Level::Low));
        assert_eq!(
            found.title,
            "`SELECT sum(amount) FROM orders` takes 300 ms (95th percentile) on PostgreSQL at \
             10.0.0.9:5432: 3.00 times a second, 90 % of wall time"
        );
    }

    #[test]
    fn slow_is_told_by_the_95th_percentile() {
        let with = |p95_ns| {
            let mut row = asked(REPORT, 100, 1_000_000);
            row.latency.p95_ns = p95_ns;
            find(&View::new(&asking_report(100_000_000, vec![row]))).len()
        };
        assert_eq!((with(199_999_999), with(200_000_000)), (0, 1));
    }

    #[test]
    fn what_is_slow_can_be_set() {
        let report = asking_report(100_000_000, vec![asked(REPORT, 10, 9_000_000)]);
        let found = |slow_p95_ns, wall_share, wall_median_ns| {
            let mut settings = Settings::default();
            settings.rules.slow_statement = Thresholds {
                slow_p95: Time(slow_p95_ns),
                wall_share: Share(wall_share),
                wall_median: Time(wall_median_ns),
            };
            find(&View::with(&report, &settings)).len()
        };
        assert_eq!(found(9_000_001, 0.10, 9_000_000), 0);
        assert_eq!(found(9_000_000, 0.10, 9_000_000), 1);
        assert_eq!(found(9_000_001, 0.09, 9_000_000), 1);
        assert_eq!(found(9_000_001, 0.09, 9_000_001), 0);
    }

    #[test]
    fn a_target_of_the_statement_comes_before_the_threshold() {
        let report = asking_report(100_000_000, vec![asked(REPORT, 10, 9_000_000)]);
        let found = |target_ns| {
            let mut settings = Settings::default();
            settings.rules.slow_statement.wall_share = Share(1.0);
            settings.rules.slow_statement.slow_p95 = Time(9_000_000);
            let limits = Limits {
                p95: Some(Time(target_ns)),
                ..Limits::NONE
            };
            settings.targets.single = vec![Single::statement(REPORT, limits)];
            find(&View::with(&report, &settings)).len()
        };
        // Slower than usual, and allowed to be.
        assert_eq!(found(9_000_001), 0);
        assert_eq!(found(9_000_000), 1);
        // A target of another percentile says nothing of this one.
        let mut settings = Settings::default();
        settings.rules.slow_statement.slow_p95 = Time(9_000_000);
        settings.targets.all.set(Percentile::P99, Time(1));
        assert_eq!(find(&View::with(&report, &settings)).len(), 1);
    }

    #[test]
    fn much_of_the_wall_time_is_a_lesser_reason() {
        let with = |count, ns| {
            let report = asking_report(900_000_000, vec![asked(REPORT, count, ns)]);
            find(&View::new(&report)).first().map(|f| f.impact_cap)
        };
        assert_eq!(with(400, 2_000_000), Some(Level::Low));
        assert_eq!(with(40, 20_000_000), Some(Level::Medium));
        // Asked often, and quick.
        assert_eq!(with(10_000, 80_000), None);
        // Slow, and asked seldom.
        assert_eq!(with(10, 20_000_000), None);
    }

    #[test]
    fn waiting_for_an_event_is_not_slow() {
        let mut row = asked("BLPOP queue#1", 1, 900_000_000);
        row.protocol = "redis".into();
        assert!(find(&View::new(&asking_report(900_000_000, vec![row]))).is_empty());
    }

    #[test]
    fn a_servers_time_is_all_it_had_locks_of_its_own_included() {
        let mut row = asked("UPDATE stock SET n = ? WHERE id = ?", 2, 450_000_000);
        row.role = "server".into();
        row.peer = "10.0.0.7".into();
        let mut report = report("postgres", vec![thread(1, &[("idle", 1_000_000_000)])]);
        report.statements = asking_report(0, vec![row]).statements;
        let found = find(&View::new(&report));
        assert_eq!(found[0].bound_ns, 900_000_000);
        assert_eq!(found[0].peer, None);
        assert!(
            found[0]
                .title
                .contains(" for PostgreSQL clients at 10.0.0.7")
        );
    }
}
