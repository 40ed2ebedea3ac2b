//! One statement over and over where one would do: a list is fetched, then something for each of its
//! rows (N+1), or rows are written one by one.
//!
//! Seen: runs of five and more exchanges of one shape on one connection, one after the other, that a
//! statement of another shape led to and that ended in the window. The target may be the client that
//! asks or the server that is asked.
//!
//! Not told: runs of pipelined requests, which wait for one round trip together; runs whose leader
//! was not seen in the window (a program that asks one statement for ever after it started); runs
//! after what only sets up a session.
//!
//! Bound: all of a run's exchanges but one, at the mean or, where that is more, at the median: (k − 1)
//! exchanges of k. On a busy host a few that took long are most of the time, so that the median alone
//! would be no bound. One statement for all rows takes longer than one for a single row, so less is
//! gained.
//!
//! Cannot be known: whether the rows could have been asked for together (each may depend on the one
//! before), and two shapes in turn within one loop, which make no run.

use super::settings::thresholds;
use super::statements::{self, asking, in_hand_ns, is_client, service, shown, working};
use super::view::{View, mean, ratio};
use super::{Candidate, Explain, evidence};
use crate::model::{Level, StatementRow};
use crate::sink::units;

thresholds! {
    /// Mean length of a statement's runs, in exchanges, from which they are told. Runs of fewer than
    /// five are not counted at all.
    min_run: u64 = 5,
}

const MAX_FINDINGS: usize = 3;
/// What begins a session and leads to nothing.
const SESSION: &[&str] = &[
    "SET ", "SHOW ", "RESET ", "DISCARD ", "USE ", "SELECT ?", "AUTH", "HELLO", "CLIENT", "PING",
    "CONFIG", "INFO", "COMMAND", "hello", "isMaster", "ping",
];
/// Shapes that write.
const WRITES: &[&str] = &[
    "INSERT", "UPDATE", "DELETE", "REPLACE", "MERGE", "SET ", "HSET",
];
/// Rows from which a run is hardly chance.
const LONG_RUN: u64 = 20;

pub const EXPLAIN: Explain = Explain {
    looks_at: "statements asked again and again on one connection, one after the other, after a statement of another shape that led to them",
    numbers: &[
        ("run_length", "how often in a row, on average"),
        ("longest_run", "the longest run of the window"),
        ("runs", "runs that ended, a second"),
        ("median", "half of the single statements take less"),
        (
            "time",
            "time the statement took altogether, a second, in runs or not",
        ),
        ("share_in_runs", "part of its exchanges that were in runs"),
    ],
    bound: "all of a run's exchanges but one, at the mean or, where that is more, at the \
               median.",
    confidence: "0.85 for long runs, 0.7 for others: each row may depend on the one before.",
    next: "Find the loop: the stacks shown with the finding are where the client waits for the answers. Then ask for all rows at once.",
};

pub fn find(view: &View) -> Vec<Candidate> {
    let rows = view.statements().filter(|row| is_run(view, row));
    let found = rows.map(|row| candidate(view, row)).collect();
    statements::largest(found, MAX_FINDINGS)
}

/// Whether a statement was asked in runs that another one led to.
pub fn is_run(view: &View, row: &StatementRow) -> bool {
    let Some(led_by) = &row.led_by else {
        return false;
    };
    let setup = SESSION.iter().any(|start| led_by.starts_with(start));
    let leader = view.statements().any(|other| {
        other.text == *led_by
            && (&other.role, &other.protocol, &other.peer) == (&row.role, &row.protocol, &row.peer)
    });
    let min_run = view.settings.rules.n_plus_one.min_run;
    let long = row.runs > 0 && row.run_exchanges >= row.runs.saturating_mul(min_run);
    long && !setup && leader && !statements::is_pipelined(row) && statements::is_judged(row)
}

/// Exchanges of the window that one for each run would spare.
pub fn spared(row: &StatementRow) -> u64 {
    row.run_exchanges.saturating_sub(row.runs).min(row.count)
}

fn candidate(view: &View, row: &StatementRow) -> Candidate {
    let client = is_client(&row.role);
    let bound_ns = spared(row)
        .saturating_mul(row.latency.p50_ns.max(mean(in_hand_ns(row), row.count)))
        .min(in_hand_ns(row));
    let stake = if client { asking } else { working };
    let mut found = statements::about(view, row, bound_ns, stake);
    let each = row.run_exchanges as f64 / row.runs.max(1) as f64;
    let led_by = row.led_by.as_deref().unwrap_or_default();
    found.peer = client.then(|| row.peer.clone());
    found.confidence = if each >= LONG_RUN as f64 { 0.85 } else { 0.7 };
    let asks = match client {
        true => format!(
            "Asks {}",
            statements::other_end(&row.role, &row.protocol, &row.peer)
        ),
        false => format!(
            "Is asked by {}",
            statements::other_end(&row.role, &row.protocol, &row.peer)
        ),
    };
    found.title = format!(
        "{asks} `{}` {each:.0} times in a row after each `{}`: {} times a second, {} each",
        shown(&row.text),
        shown(led_by),
        units::rate(row.run_exchanges as f64 * 1e9 / view.wall_ns().max(1) as f64),
        units::duration(row.latency.p50_ns),
    );
    found.evidence = vec![
        evidence("run_length", each, "count", row.runs),
        evidence("longest_run", row.longest_run as f64, "count", row.runs),
        evidence("runs", view.per_s(row.runs) as f64, "1/s", row.runs),
        evidence("median", row.latency.p50_ns as f64, "ns", row.count),
        evidence(
            "time",
            view.per_s(in_hand_ns(row)) as f64,
            "ns/s",
            row.count,
        ),
        evidence(
            "share_in_runs",
            ratio(row.run_exchanges, row.count.max(row.run_exchanges)),
            "ratio",
            row.count,
        ),
    ];
    found.recommendations = recommendations(row, client);
    found.effort = Level::Medium;
    found
}

fn recommendations(row: &StatementRow, client: bool) -> Vec<String> {
    let writes = WRITES.iter().any(|start| row.text.starts_with(start));
    let area = service(&row.protocol).map_or("", |service| service.area);
    let mut out = match (area, writes) {
        (super::services::CACHING, _) => {
            vec![
                "Use a command for many keys (MGET, get of several keys), or send them in one pipeline",
            ]
        }
        (super::services::API, _) => {
            vec!["Ask for all of them in one request, or for several at the same time"]
        }
        (_, true) => {
            vec![
                "Write the rows with one statement: INSERT of several rows, COPY, UPDATE … FROM, or a batch of the driver",
            ]
        }
        _ => vec![
            "Fetch the rows with the list: a join, or one statement with WHERE … IN (…) for all of them",
            "In an object-relational mapper: load the relation eagerly (select_related, includes, JOIN FETCH, preload)",
        ],
    };
    if !client {
        out.push(
            "It is the clients' code that is to change: trace one of them to see where it asks",
        );
    }
    out.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::DATABASE_SPECIALIST;
    use crate::fixtures::{asked, asking_report};
    use crate::model::Latency;

    const LIST: &str = "SELECT id FROM orders";
    const ONE: &str = "SELECT * FROM items WHERE order_id = ?";

    /// Ten lists, and 50 single rows after each.
    fn rows() -> Vec<StatementRow> {
        let single = StatementRow {
            runs: 10,
            run_exchanges: 500,
            longest_run: 50,
            led_by: Some(LIST.into()),
            ..asked(ONE, 500, 1_000_000)
        };
        vec![asked(LIST, 10, 2_000_000), single]
    }

    #[test]
    fn single_rows_after_a_list_are_found_with_all_but_one_as_the_gain() {
        let report = asking_report(600_000_000, rows());
        let found = find(&View::new(&report));
        let [found] = &found[..] else {
            panic!("{} findings", found.len());
        };
        assert_eq!(found.bound_ns, 490_000_000);
        assert_eq!(found.delegate, DATABASE_SPECIALIST);
        assert_eq!(found.subject, ONE);
        assert_eq!(found.evidence[0].value, 50.0);
        assert_eq!(
            found.title,
            "Asks PostgreSQL at 10.0.0.9:5432 `SELECT * FROM items WHERE order_id = ?` 50 times in \
             a row after each `SELECT id FROM orders`: 500 times a second, 1.00 ms each"
        );
        // 600 ms of waits in a thread of one second.
        assert!((found.share - 0.49).abs() < 1e-9, "{}", found.share);
    }

    #[test]
    fn one_statement_for_all_rows_gives_nothing() {
        let all = asked("SELECT * FROM items WHERE order_id IN (?)", 10, 5_000_000);
        let report = asking_report(70_000_000, vec![asked(LIST, 10, 2_000_000), all]);
        assert!(find(&View::new(&report)).is_empty());
    }

    #[test]
    fn what_only_looks_like_it_gives_nothing() {
        let gives = |change: fn(&mut Vec<StatementRow>)| {
            let mut rows = rows();
            change(&mut rows);
            find(&View::new(&asking_report(600_000_000, rows))).len()
        };
        assert_eq!(gives(|_| ()), 1);
        // A loop for ever after the program's start.
        assert_eq!(gives(|rows| rows.truncate(1)), 0);
        assert_eq!(gives(|rows| drop(rows.remove(0))), 0);
        // The leader sets up the session.
        assert_eq!(
            gives(|rows| {
                rows[0].text = "SET search_path TO ?".into();
                rows[1].led_by = Some(rows[0].text.clone());
            }),
            0
        );
        // Sent without waiting: a pipeline.
        assert_eq!(
            gives(|rows| rows[1].queued = Latency {
                sum_ns: 400_000_000,
                ..rows[1].latency
            }),
            0
        );
        // The same leader, of another server.
        assert_eq!(gives(|rows| rows[0].peer = "10.0.0.8:5432".into()), 0);
    }

    #[test]
    fn the_few_that_took_long_are_part_of_the_bound() {
        let mut rows = rows();
        rows[1].latency.p50_ns = 300_000;
        let found = find(&View::new(&asking_report(600_000_000, rows)));
        assert_eq!(found[0].bound_ns, 490_000_000);
    }

    #[test]
    fn a_run_longer_than_the_window_is_bounded_by_the_windows_time() {
        let mut rows = rows();
        rows[1].runs = 1;
        rows[1].run_exchanges = 100_000;
        let found = find(&View::new(&asking_report(800_000_000, rows)));
        assert_eq!(found[0].bound_ns, 500_000_000);
    }

    #[test]
    fn a_server_sees_it_too_and_names_the_clients() {
        let mut report = asking_report(0, rows());
        for row in &mut report.statements.as_mut().unwrap().statements {
            row.role = "server".into();
            row.peer = "10.0.0.7".into();
        }
        report.ledger = crate::fixtures::report(
            "postgres",
            vec![crate::fixtures::thread(
                1,
                &[("cpu.user", 300_000_000), ("idle", 700_000_000)],
            )],
        )
        .ledger;
        let found = find(&View::new(&report));
        // No more than the server worked.
        assert_eq!(found[0].bound_ns, 300_000_000);
        assert!(
            found[0]
                .title
                .starts_with("Is asked by PostgreSQL clients at 10.0.0.7 `SELECT * "),
            "{}",
            found[0].title
        );
    }
}
