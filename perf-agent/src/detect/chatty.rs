//! Many small round trips where few would do.
//!
//! Seen, for a client: either the target serves requests and makes ten and more round trips to one
//! peer for each of them; or its round trips to a peer on another host take at least half of their
//! time on the way there and back, whatever the server does. At least 200 a second either way: fewer
//! are no chatter.
//!
//! Not told: what [`super::n_plus_one`] explains, pipelined requests, and a program on the server's
//! own host that serves nobody (a load generator, a batch job): a round trip there is a pair of
//! wake-ups, and `network_wait` has what it waits.
//!
//! Bound: where requests are served, all round trips but one for each; else the way there and back,
//! once for each.
//!
//! Cannot be known: which round trips depend on the answer before. The way is taken to be the shortest
//! time a connection was made in, or acknowledged in; of connections older than the trace only the
//! latter is known, which a server that answers before it acknowledges makes look longer.

use super::settings::{Share, thresholds};
use super::statements::{self, Ends, asking, by_ends, in_hand_ns, is_client, statements_of};
use super::view::{View, mean, ratio};
use super::{Candidate, Explain, evidence, n_plus_one, services};
use crate::model::ConnectionRow;
use crate::sink::units;

thresholds! {
    /// Fewer round trips to a peer a second are no chatter.
    min_per_s: u64 = 200,
    /// Round trips to a peer for each request served,
    per_request: u64 = 10,
    /// or the part of a round trip's time that the way there and back takes.
    way_share: Share = Share(0.5),
}

const MAX_FINDINGS: usize = 2;

/// Round trips to one peer.
struct Trips {
    count: u64,
    /// Of all of them.
    time_ns: u64,
    /// There and back, at the least; and whether a connection was seen being made.
    way_ns: Option<u64>,
    measured: bool,
}

pub const EXPLAIN: Explain = Explain {
    looks_at: "round trips of a client to one peer: how many for each request it serves, and how much of their time is the way there and back",
    numbers: &[
        (
            "round_trips_per_request",
            "round trips for each request the target served",
        ),
        (
            "round_trips",
            "round trips a second, without those that n_plus_one tells of",
        ),
        (
            "mean_round_trip",
            "length of one, with the time the server took",
        ),
        ("time", "time of all of them, a second"),
        (
            "there_and_back",
            "the way alone: the least time a connection took to be made, or data to be acknowledged",
        ),
    ],
    bound: "where requests are served, all round trips but one for each; else the way \
               there and back, once for each.",
    confidence: "0.7 where requests are served, 0.75 where the way is the larger part and was \
               measured, 0.5 where it follows from acknowledgements alone: which round trips \
               depend on the answer before is not known.",
    next: "See in `statements` which ones are asked most and do not need the answer of the one before: they can go together.",
};

pub fn find(view: &View) -> Vec<Candidate> {
    let set = &view.settings.rules.chatty;
    let served = view.statements().filter(|row| !is_client(&row.role));
    let served: u64 = served.map(|row| row.count).sum();
    let ends = by_ends(view).into_iter().filter(|(e, _)| is_client(e.0));
    let found = ends.filter_map(|(ends, connections)| {
        let trips = trips(view, ends, &connections);
        if view.per_s(trips.count) < set.min_per_s {
            return None;
        }
        if served > 0 && trips.count >= served.saturating_mul(set.per_request) {
            return Some(per_request(view, ends, &trips, served));
        }
        let way_ns = trips.way_ns.filter(|_| !services::is_local(ends.2))?;
        let far = ratio(way_ns, mean(trips.time_ns, trips.count)) >= set.way_share.0;
        far.then(|| far_away(view, ends, &trips, way_ns))
    });
    statements::largest(found.collect(), MAX_FINDINGS)
}

fn trips(view: &View, ends: Ends, connections: &[&ConnectionRow]) -> Trips {
    let (mut count, mut time_ns) = (0, 0);
    let rows = statements_of(view, ends);
    for row in rows.filter(|row| statements::is_judged(row) && !statements::is_pipelined(row)) {
        let elsewhere = match n_plus_one::is_run(view, row) {
            true => n_plus_one::spared(row),
            false => 0,
        };
        let left = row.count - elsewhere;
        count += left;
        time_ns += mean(in_hand_ns(row), row.count) * left;
    }
    let made = connections.iter().filter_map(|c| c.connect_ns).min();
    let acknowledged = connections.iter().filter_map(|c| c.rtt_min_ns).min();
    Trips {
        count,
        time_ns,
        way_ns: made.into_iter().chain(acknowledged).min(),
        measured: made.is_some(),
    }
}

fn per_request(view: &View, ends: Ends, trips: &Trips, served: u64) -> Candidate {
    let each = trips.count as f64 / served as f64;
    let spared = trips.count.saturating_sub(served) as f64 / trips.count as f64;
    let bound_ns = (trips.time_ns as f64 * spared) as u64;
    let mut found = candidate(view, ends, trips, bound_ns);
    found.confidence = 0.7;
    found.title = format!(
        "Makes {each:.0} round trips to {} for each request it serves: {} a second, {} each",
        found.subject,
        units::count(view.per_s(trips.count)),
        units::duration(mean(trips.time_ns, trips.count)),
    );
    let figure = evidence("round_trips_per_request", each, "count", served);
    found.evidence.insert(0, figure);
    found
}

fn far_away(view: &View, ends: Ends, trips: &Trips, way_ns: u64) -> Candidate {
    let bound_ns = trips.count.saturating_mul(way_ns).min(trips.time_ns);
    let mut found = candidate(view, ends, trips, bound_ns);
    found.confidence = if trips.measured { 0.75 } else { 0.5 };
    found.title = format!(
        "Makes {} round trips a second to {}, {} of the {} of each on the way there and back",
        units::count(view.per_s(trips.count)),
        found.subject,
        units::duration(way_ns),
        units::duration(mean(trips.time_ns, trips.count)),
    );
    found
}

fn candidate(view: &View, ends: Ends, trips: &Trips, bound_ns: u64) -> Candidate {
    let mut found = statements::between(view, ends, bound_ns, asking);
    found.peer = Some(ends.2.to_owned());
    let each = mean(trips.time_ns, trips.count);
    found.evidence = vec![
        evidence(
            "round_trips",
            view.per_s(trips.count) as f64,
            "1/s",
            trips.count,
        ),
        evidence("mean_round_trip", each as f64, "ns", trips.count),
        evidence(
            "time",
            view.per_s(trips.time_ns) as f64,
            "ns/s",
            trips.count,
        ),
    ];
    if let Some(way_ns) = trips.way_ns {
        let figure = evidence("there_and_back", way_ns as f64, "ns", 1);
        found.evidence.push(figure);
    }
    found.recommendations = [
        "Ask for several things at once: pipelines, commands for many keys, one statement for many rows, stored procedures",
        "Send what does not depend on each other at the same time, on several connections",
        "Keep what is asked for again and again in the process for a short time",
    ]
    .map(str::to_owned)
    .to_vec();
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{asked, asking_report, connected};
    use crate::model::{ProcessReport, StatementRow};

    /// 900 round trips of half a millisecond, and so many requests served.
    fn chatting(served: u64) -> ProcessReport {
        let mut rows: Vec<StatementRow> = (0..9)
            .map(|n| asked(&format!("SELECT a{n} FROM t WHERE id = ?"), 100, 500_000))
            .collect();
        if served > 0 {
            rows.push(StatementRow {
                role: "server".into(),
                protocol: "http".into(),
                peer: "10.0.0.7".into(),
                ..asked("GET /cart", served, 10_000_000)
            });
        }
        let mut report = asking_report(500_000_000, rows);
        report.connections.as_mut().unwrap().connections = vec![connected("10.0.0.9:5432", 900)];
        report
    }

    #[test]
    fn many_round_trips_for_a_request_are_found() {
        let report = chatting(30);
        let found = find(&View::new(&report));
        assert_eq!(found.len(), 1);
        // All but one of 30 for each request.
        assert_eq!(found[0].bound_ns, 435_000_000);
        assert_eq!(
            found[0].title,
            "Makes 30 round trips to PostgreSQL at 10.0.0.9:5432 for each request it serves: 900 a \
             second, 500 µs each"
        );
    }

    #[test]
    fn a_few_for_each_request_are_fine() {
        assert!(find(&View::new(&chatting(300))).is_empty());
        assert!(find(&View::new(&chatting(0))).is_empty());
    }

    #[test]
    fn a_long_way_is_chatter_whoever_asks() {
        let mut report = chatting(0);
        let far = |report: &mut ProcessReport, way_ns| {
            let connections = &mut report.connections.as_mut().unwrap().connections;
            connections[0].connect_ns = Some(way_ns);
            connections[0].rtt_min_ns = Some(way_ns + 1);
        };
        far(&mut report, 400_000);
        let found = find(&View::new(&report));
        assert_eq!(found[0].bound_ns, 360_000_000);
        assert_eq!(found[0].confidence, 0.75);
        assert_eq!(
            found[0].title,
            "Makes 900 round trips a second to PostgreSQL at 10.0.0.9:5432, 400 µs of the 500 µs of \
             each on the way there and back"
        );
        // The server takes the time, not the way.
        far(&mut report, 200_000);
        assert!(find(&View::new(&report)).is_empty());
    }

    #[test]
    fn what_is_an_n_plus_one_is_not_chatter_as_well() {
        let mut report = chatting(30);
        let rows = &mut report.statements.as_mut().unwrap().statements;
        rows[0].count = 30;
        rows[1] = StatementRow {
            runs: 30,
            run_exchanges: 870,
            longest_run: 29,
            led_by: Some(rows[0].text.clone()),
            ..asked("SELECT b FROM t WHERE id = ?", 870, 500_000)
        };
        rows.truncate(2);
        rows.push(StatementRow {
            role: "server".into(),
            ..asked("GET /", 30, 1)
        });
        assert!(n_plus_one::is_run(
            &View::new(&report),
            &report.statements.as_ref().unwrap().statements[1]
        ));
        assert!(find(&View::new(&report)).is_empty());
    }
}
