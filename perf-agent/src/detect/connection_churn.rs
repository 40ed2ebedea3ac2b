//! A connection for each query, or nearly: made, used once or twice, and closed.
//!
//! Seen: connections of the window that were both opened and closed in it, by peer. The end of some
//! Unix sockets is not told; where ten ended, those that were opened count. Of a server with a process
//! for each connection these live too short to have lines, so it is seen at the client.
//!
//! Threshold: ten such connections a second with three exchanges or fewer each, and no more exchanges
//! than that for each on the peer's other connections together: a pool that is filled, or a few
//! short connections beside many reused ones, is no churn.
//!
//! Bound: for a client what its threads waited for peers beyond the answers to statements (connecting,
//! encryption, logging in), at least the time the connections took to be made; for a server what it
//! worked beyond them, and low impact, for the clients are to change.
//!
//! Cannot be known: more than the 100 connections of a window that moved most bytes: the rate is a least
//! one. What a login costs the server's other processes.

use super::settings::thresholds;
use super::statements::{
    self, Ends, asking, by_ends, in_hand_ns, is_client, statements_of, working,
};
use super::view::{View, net, ratio};
use super::{Candidate, Explain, evidence};
use crate::model::{ConnectionRow, Level};
use crate::sink::units;

thresholds! {
    /// Connections to a peer a second that are made and closed again,
    min_per_s: u64 = 10,
    /// with at most so many exchanges each.
    max_exchanges: u64 = 3,
}

const MIN_COUNT: u64 = 10;
const MAX_FINDINGS: usize = 2;

pub const EXPLAIN: Explain = Explain {
    looks_at: "connections that are made, used for very few exchanges and closed, by peer",
    numbers: &[
        (
            "connections",
            "such connections a second, at the least: a window has the 100 that moved most bytes",
        ),
        ("exchanges_per_connection", "exchanges on one, on average"),
        (
            "beyond_statements",
            "time a client waited for peers, or a server worked, beyond the statements, a second: connecting, encrypting, logging in",
        ),
        (
            "in_statements",
            "time of the statements themselves, a second",
        ),
        (
            "connecting",
            "time until the connections were made, a second",
        ),
    ],
    bound: "for a client what its threads waited for peers beyond the answers to \
               statements, for a server what it worked beyond them.",
    confidence: "0.75: what a connection costs is what is left, not measured by itself.",
    next: "See where the program opens its connections, and keep them in a pool; of a driver, see whether its pool is on and large enough.",
};

pub fn find(view: &View) -> Vec<Candidate> {
    let set = &view.settings.rules.connection_churn;
    let ends = by_ends(view).into_iter();
    let found = ends.filter_map(|(ends, connections)| {
        let unix = ends.2.starts_with(['/', '@']);
        let mut short = connections.clone();
        short.retain(|c| c.opened && c.closed);
        let ended = short.len() as u64;
        if unix {
            short.clone_from(&connections);
            short.retain(|c| c.opened);
        }
        let n = short.len() as u64;
        let used: u64 = short.iter().map(|c| c.exchanges).sum();
        let all: u64 = connections.iter().map(|c| c.exchanges).sum();
        let churn = ended >= MIN_COUNT
            && view.per_s(ended) >= set.min_per_s
            && used > 0
            && all <= n.saturating_mul(set.max_exchanges);
        churn.then(|| candidate(view, ends, &short, used))
    });
    statements::largest(found.collect(), MAX_FINDINGS)
}

fn candidate(view: &View, ends: Ends, short: &[&ConnectionRow], used: u64) -> Candidate {
    let client = is_client(ends.0);
    let n = short.len() as u64;
    let connect_ns: u64 = short.iter().filter_map(|c| c.connect_ns).sum();
    let bound_ns = beyond_statements(view, client).max(connect_ns);
    let stake = if client { asking } else { working };
    let mut found = statements::between(view, ends, bound_ns, stake);
    if client {
        found.peer = Some(ends.2.to_owned());
    } else {
        found.impact_cap = Level::Low;
    }
    let each = ratio(used, n);
    found.effort = Level::Low;
    found.confidence = 0.75;
    found.title = format!(
        "{} {} for {each:.1} exchanges each: at least {} a second",
        if client {
            "Connects anew to"
        } else {
            "Is connected to anew by"
        },
        found.subject,
        units::count(view.per_s(n)),
    );
    let times = statements_of(view, ends).map(in_hand_ns).sum::<u64>();
    found.evidence = vec![
        evidence("connections", view.per_s(n) as f64, "1/s", n),
        evidence("exchanges_per_connection", each, "count", n),
        evidence(
            "beyond_statements",
            view.per_s(found.bound_ns) as f64,
            "ns/s",
            n,
        ),
        evidence("in_statements", view.per_s(times) as f64, "ns/s", used),
        evidence("connecting", view.per_s(connect_ns) as f64, "ns/s", n),
    ];
    let first = match client {
        true => "Keep connections open and reuse them: a pool in the program",
        false => "Let the clients keep their connections: a pool in them",
    };
    found.recommendations = vec![
        first.to_owned(),
        "Where many short processes ask, put a pooler in front of the server (PgBouncer, ProxySQL), or use persistent connections".to_owned(),
    ];
    found
}

/// What threads waited for peers (client), or worked (server), beyond statements.
fn beyond_statements(view: &View, client: bool) -> u64 {
    let rows = view
        .statements()
        .filter(|row| is_client(&row.role) == client);
    let in_hand: u64 = rows.map(in_hand_ns).sum();
    let classes = &view.ledger.process.classes;
    let all = if client {
        net(classes)
    } else {
        working(classes)
    };
    all.saturating_sub(in_hand)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{asked, asking_report, connected};
    use crate::model::ProcessReport;

    const PEER: &str = "10.0.0.9:5432";

    fn short(exchanges: u64) -> ConnectionRow {
        ConnectionRow {
            opened: true,
            closed: true,
            connect_ns: Some(100_000),
            ..connected(PEER, exchanges)
        }
    }

    fn report(connections: Vec<ConnectionRow>) -> ProcessReport {
        let statements = connections.iter().map(|c| c.exchanges).sum();
        let rows = vec![asked("SELECT ?", statements, 1_000_000)];
        let mut report = asking_report(600_000_000, rows);
        report.connections.as_mut().unwrap().connections = connections;
        report
    }

    #[test]
    fn a_connection_for_each_query_is_found_with_what_is_beyond_the_queries() {
        let report = report(vec![short(1); 50]);
        let found = find(&View::new(&report));
        assert_eq!(found.len(), 1);
        // 600 ms of waits, 50 of which for answers.
        assert_eq!(found[0].bound_ns, 550_000_000);
        assert_eq!(found[0].peer.as_deref(), Some(PEER));
        assert_eq!(
            found[0].title,
            "Connects anew to PostgreSQL at 10.0.0.9:5432 for 1.0 exchanges each: at least 50 a second"
        );
    }

    #[test]
    fn a_pool_that_is_filled_or_emptied_is_fine() {
        let opened = ConnectionRow {
            closed: false,
            ..short(1)
        };
        let closed = ConnectionRow {
            opened: false,
            ..short(1)
        };
        let none = |connections| find(&View::new(&report(connections))).is_empty();
        assert!(none(vec![opened; 50]));
        assert!(none(vec![closed; 50]));
    }

    #[test]
    fn the_end_of_some_unix_sockets_is_not_told() {
        let unix = |closed| ConnectionRow {
            closed,
            peer: "/run/postgresql/.s.PGSQL.5432".into(),
            connect_ns: None,
            ..short(1)
        };
        let mut connections = vec![unix(true); 20];
        connections.extend(vec![unix(false); 30]);
        let found = find(&View::new(&report(connections.clone())));
        assert_eq!(found[0].evidence[0].value, 50.0);
        assert!(find(&View::new(&report(connections.split_off(11)))).is_empty());
    }

    #[test]
    fn connections_that_are_used_are_fine() {
        let none = |connections| find(&View::new(&report(connections))).is_empty();
        assert!(none(vec![short(20); 50]));
        // Short ones beside a busy one.
        let mut beside = vec![short(1); 50];
        beside.push(connected(PEER, 500));
        assert!(none(beside));
        assert!(none(vec![short(1); 9]));
        assert!(none(vec![short(0); 50]));
    }

    #[test]
    fn at_the_server_it_is_of_low_impact() {
        let server = ConnectionRow {
            role: "server".into(),
            peer: "10.0.0.7:4711".into(),
            ..short(1)
        };
        let report = report(vec![server; 50]);
        let found = find(&View::new(&report));
        assert_eq!(found[0].impact_cap, Level::Low);
        assert!(
            found[0]
                .title
                .starts_with("Is connected to anew by PostgreSQL clients at 10.0.0.7 ")
        );
    }
}
