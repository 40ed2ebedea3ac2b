//! Transactions held open while their client does something else.
//!
//! Seen: for how long a server waited, inside a transaction, for its client's next statement; from
//! either end of the connection. Such a transaction keeps its locks, and keeps old rows from being
//! cleaned up.
//!
//! Threshold: a quarter of the window on one connection, and 10 ms after each statement on average.
//! A busy client leaves gaps between the statements of a transaction too, of micro- to a few
//! milliseconds.
//!
//! Bound: the time itself, of the connections over the threshold: for so long a connection (and in
//! PostgreSQL a whole process) was taken up without doing anything. What others waited for its locks is
//! not known here, so the impact is medium at most.

use super::settings::{Share, Time, thresholds};
use super::statements::{self, by_ends, is_client, living};
use super::view::{View, mean, ratio};
use super::{Candidate, Explain, evidence};
use crate::model::{ConnectionRow, Level};
use crate::sink::units;

thresholds! {
    /// Part of the window for which a connection was idle in a transaction,
    min_share: Share = Share(0.25),
    /// with gaps of this length after its statements on average: a busy client leaves short ones.
    min_gap: Time = Time(10_000_000),
}

const MAX_FINDINGS: usize = 2;

pub const EXPLAIN: Explain = Explain {
    looks_at: "the time a server waits, inside a transaction, for the next statement of its client, seen from either end",
    numbers: &[
        (
            "idle_in_transaction",
            "time the connections named were idle in a transaction, a second, summed over them",
        ),
        ("connections", "how many of them"),
        (
            "longest",
            "the most that one of them was idle so, in the window",
        ),
        ("mean_gap", "time idle in a transaction for each exchange"),
    ],
    bound: "the time itself, of the connections over the threshold; what others are seen \
               to wait for its rows takes its place where that is more.",
    confidence: "0.8: the time is measured, that nobody needs it is not known.",
    next: "Find what the client does between its statements: its classes in `ledger`, and `perf-agent profile -p PID` of it.",
};

pub fn find(view: &View) -> Vec<Candidate> {
    let ends = by_ends(view).into_iter();
    let found = ends.filter_map(|(ends, mut connections)| {
        connections.retain(|connection| is_held(view, connection));
        (!connections.is_empty()).then(|| candidate(view, ends, &connections))
    });
    statements::largest(found.collect(), MAX_FINDINGS)
}

fn is_held(view: &View, connection: &ConnectionRow) -> bool {
    let idle_ns = connection.idle_in_transaction_ns;
    let set = &view.settings.rules.idle_in_transaction;
    ratio(idle_ns, view.wall_ns()) >= set.min_share.0
        && idle_ns / connection.exchanges.max(1) >= set.min_gap.0
}

fn candidate(view: &View, ends: statements::Ends, held: &[&ConnectionRow]) -> Candidate {
    let idle_ns: u64 = held.iter().map(|c| c.idle_in_transaction_ns).sum();
    let longest_ns = held.iter().map(|c| c.idle_in_transaction_ns).max();
    let exchanges: u64 = held.iter().map(|c| c.exchanges).sum();
    let mut found = statements::between(view, ends, idle_ns, living);
    let (n, plural) = (held.len(), if held.len() == 1 { "" } else { "s" });
    let client = is_client(ends.0);
    found.impact_cap = Level::Medium;
    found.confidence = 0.8;
    found.title = format!(
        "{n} connection{plural} {} {} idle in a transaction for {:.0} % of the time",
        if client { "to" } else { "of" },
        found.subject,
        100.0 * ratio(idle_ns, view.wall_ns()) / n as f64,
    );
    let samples = exchanges.max(1);
    found.evidence = vec![
        evidence(
            "idle_in_transaction",
            view.per_s(idle_ns) as f64,
            "ns/s",
            samples,
        ),
        evidence("connections", n as f64, "count", n as u64),
        evidence("longest", longest_ns.unwrap_or(0) as f64, "ns", n as u64),
        evidence("mean_gap", mean(idle_ns, samples) as f64, "ns", samples),
    ];
    let first = match client {
        true => "End the transaction before other work: calls to other services, files, computing",
        false => {
            "Find what these clients do between their statements: they hold locks meanwhile (trace one of them)"
        }
    };
    found.recommendations = vec![
        first.to_owned(),
        "Read what is needed before the transaction begins, and write in one short one".to_owned(),
        format!(
            "Set a limit on the server (idle_in_transaction_session_timeout) above {}",
            units::duration(mean(idle_ns, samples))
        ),
    ];
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::DATABASE_SPECIALIST;
    use crate::fixtures::{asked, asking_report, connected};
    use crate::model::ProcessReport;

    fn holding(idle_ns: u64, exchanges: u64) -> ProcessReport {
        let mut report = asking_report(10_000_000, vec![asked("UPDATE t SET n = ?", 4, 1_000_000)]);
        report.connections.as_mut().unwrap().connections = vec![ConnectionRow {
            idle_in_transaction_ns: idle_ns,
            ..connected("10.0.0.9:5432", exchanges)
        }];
        report
    }

    #[test]
    fn a_transaction_left_open_is_found() {
        let report = holding(800_000_000, 4);
        let found = find(&View::new(&report));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].bound_ns, 800_000_000);
        assert_eq!(found[0].delegate, DATABASE_SPECIALIST);
        assert_eq!(
            found[0].title,
            "1 connection to PostgreSQL at 10.0.0.9:5432 idle in a transaction for 80 % of the time"
        );
        assert_eq!(found[0].evidence[3].value, 200_000_000.0);
    }

    #[test]
    fn one_without_any_statement_in_the_window_is_found_too() {
        assert_eq!(find(&View::new(&holding(1_000_000_000, 0))).len(), 1);
    }

    #[test]
    fn gaps_between_the_statements_of_a_busy_client_are_fine() {
        assert!(find(&View::new(&holding(600_000_000, 100))).is_empty());
        assert!(find(&View::new(&holding(200_000_000, 2))).is_empty());
        assert!(find(&View::new(&holding(0, 2))).is_empty());
    }
}
