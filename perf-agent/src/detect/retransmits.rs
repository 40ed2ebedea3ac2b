//! A path that loses segments, or takes much longer than it has to.
//!
//! Seen, by peer: segments sent again; the smoothed round-trip time of the window beside the smallest
//! one of the connection.
//!
//! Thresholds: five segments sent again and 1 % of the segments there were at the least (by bytes, and
//! one for each exchange); a few at the end of a connection are nothing. A round trip of three times the
//! smallest and 50 ms more: a peer that acknowledges late (40 ms on Linux) looks like a longer way.
//!
//! Bound: for segments, 200 ms each, the least time after which a lost one is sent again without other
//! signs; for round trips, what they take more, once for each exchange. Both no more than a client's
//! threads waited for the network; a server's threads hardly wait for it, its clients do, so its impact
//! is low.
//!
//! Cannot be known: where on the path it happens; how many segments there were; a longer way from a
//! peer that acknowledges later than that.

use super::settings::{Share, Time, thresholds};
use super::statements::{Ends, host, is_client};
use super::view::{View, mean, net, ratio};
use super::{Candidate, Explain, evidence};
use crate::model::{ConnectionRow, Level};
use crate::sink::units;
use std::collections::BTreeMap;

thresholds! {
    /// Segments sent again in a window,
    min_retransmits: u64 = 5,
    /// and their share of the segments there were.
    min_share: Share = Share(0.01),
    /// A round trip is long at so many times the connection's smallest one,
    times_longer: u64 = 3,
    /// if it is longer by this much: a peer may acknowledge late.
    longer_by: Time = Time(50_000_000),
}

/// Payload of a segment on an Ethernet.
const SEGMENT_BYTES: u64 = 1448;
/// Linux's least retransmission timeout.
const TIMEOUT_NS: u64 = 200_000_000;
const MAX_FINDINGS: usize = 2;

/// What went on with one peer.
#[derive(Default)]
struct Path {
    connections: u64,
    retransmits: u64,
    segments: u64,
    /// Connections whose round trips take longer than they have to: by how much, over their exchanges.
    slower: u64,
    slower_exchanges: u64,
    excess_ns: u64,
    rtt_ns: u64,
    rtt_min_ns: u64,
}

pub const EXPLAIN: Explain = Explain {
    looks_at: "segments of TCP sent again, and round trips far above the smallest one of their connection, by host",
    numbers: &[
        ("retransmits", "segments sent again, a second"),
        (
            "share_of_segments",
            "the same as a part of all segments there were at the least, told by bytes and exchanges",
        ),
        (
            "round_trip",
            "the smoothed round trip of the connections on which it is long, 0 if there is none",
        ),
        (
            "least_round_trip",
            "the smallest one of the same connections",
        ),
        ("connections", "connections to that host"),
    ],
    bound: "200 ms for each segment sent again, and what round trips take more; no more \
               than threads waited for the network.",
    confidence: "0.7 for segments sent again, which the kernel counts; 0.5 for round trips \
               alone, as the peer may acknowledge later.",
    next: "Find where on the path segments are dropped or queued: `ethtool -S` and `tc -s qdisc` on both ends, `mtr` between them.",
};

pub fn find(view: &View) -> Vec<Candidate> {
    let set = &view.settings.rules.retransmits;
    let mut paths: BTreeMap<Ends, Path> = BTreeMap::new();
    for connection in view.connections() {
        let ends = (connection.role.as_str(), "", host(&connection.peer));
        paths.entry(ends).or_default().add(connection, set);
    }
    let paths = paths
        .iter()
        .filter(|(ends, path)| !ends.2.is_empty() && (path.loses(set) || path.slower > 0));
    let found = paths.map(|(ends, path)| candidate(view, *ends, path));
    super::statements::largest(found.collect(), MAX_FINDINGS)
}

impl Path {
    fn add(&mut self, c: &ConnectionRow, set: &Thresholds) {
        self.connections += 1;
        self.retransmits += c.retransmits;
        self.segments += c.tx_bytes.div_ceil(SEGMENT_BYTES).max(c.exchanges).max(1);
        let (Some(rtt_ns), Some(least_ns)) = (c.rtt_ns, c.rtt_min_ns) else {
            return;
        };
        let excess_ns = rtt_ns.saturating_sub(least_ns);
        let long = rtt_ns >= least_ns.saturating_mul(set.times_longer);
        if c.exchanges > 0 && long && excess_ns >= set.longer_by.0 {
            self.slower += 1;
            self.slower_exchanges += c.exchanges;
            self.excess_ns += excess_ns.saturating_mul(c.exchanges);
            self.rtt_ns += rtt_ns;
            self.rtt_min_ns += least_ns;
        }
    }

    fn loses(&self, set: &Thresholds) -> bool {
        self.retransmits >= set.min_retransmits.max(1) && self.loss() >= set.min_share.0
    }

    fn loss(&self) -> f64 {
        ratio(self.retransmits, self.segments + self.retransmits)
    }
}

fn candidate(view: &View, (role, _, peer): Ends, path: &Path) -> Candidate {
    let waited_ns = net(&view.ledger.process.classes);
    let resent_ns = path.retransmits.saturating_mul(TIMEOUT_NS);
    let bound_ns = path.excess_ns.saturating_add(resent_ns).min(waited_ns);
    let share = view.share_of(net) * ratio(bound_ns, waited_ns);
    let mut found = Candidate::new(format!("{role} {peer}"), bound_ns, share);
    found.subject = format!("the path to {peer}");
    found.effort = Level::High;
    let set = &view.settings.rules.retransmits;
    found.confidence = if path.retransmits >= set.min_retransmits {
        0.7
    } else {
        0.5
    };
    if path.loses(set) {
        found.always = Some(Level::Low);
    }
    if !is_client(role) {
        found.impact_cap = Level::Low;
    }
    let (rtt_ns, least_ns) = (
        mean(path.rtt_ns, path.slower),
        mean(path.rtt_min_ns, path.slower),
    );
    let mut says = Vec::new();
    if path.retransmits > 0 {
        says.push(format!(
            "{} segments a second are sent again ({:.1} %)",
            units::rate(path.retransmits as f64 * 1e9 / view.wall_ns().max(1) as f64),
            path.loss() * 100.0
        ));
    }
    if path.slower > 0 {
        says.push(format!(
            "a round trip takes {} where {} would do",
            units::duration(rtt_ns),
            units::duration(least_ns)
        ));
    }
    found.title = format!("On the path to {peer} {}", says.join("; "));
    let n = path.connections;
    found.evidence = vec![
        evidence(
            "retransmits",
            view.per_s(path.retransmits) as f64,
            "1/s",
            path.retransmits,
        ),
        evidence("share_of_segments", path.loss(), "ratio", path.segments),
        evidence("round_trip", rtt_ns as f64, "ns", path.slower_exchanges),
        evidence(
            "least_round_trip",
            least_ns as f64,
            "ns",
            path.slower_exchanges,
        ),
        evidence("connections", n as f64, "count", n),
    ];
    found.recommendations = [
        "Look where segments are dropped: queues and errors of the interfaces (ethtool -S, tc -s qdisc), limits of a virtual network",
        "See whether the link or the peer is overloaded: a queue that is full makes round trips long before it loses",
        "Send less: compress, fetch fewer columns, keep large transfers off this path",
    ]
    .map(str::to_owned)
    .to_vec();
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::PERFORMANCE_ENGINEER;
    use crate::fixtures::{asking_report, connected};
    use crate::model::ProcessReport;

    fn with(connection: ConnectionRow) -> ProcessReport {
        let mut report = asking_report(800_000_000, Vec::new());
        report.connections.as_mut().unwrap().connections = vec![connection];
        report
    }

    fn path() -> ConnectionRow {
        ConnectionRow {
            tx_bytes: 144_800,
            rtt_ns: Some(12_000_000),
            rtt_min_ns: Some(10_000_000),
            ..connected("10.0.0.9:5432", 50)
        }
    }

    #[test]
    fn segments_sent_again_are_found() {
        let lossy = with(ConnectionRow {
            retransmits: 25,
            ..path()
        });
        let found = find(&View::new(&lossy));
        assert_eq!(found.len(), 1);
        // 25 timeouts are five seconds; the thread waited 0.8.
        assert_eq!(found[0].bound_ns, 800_000_000);
        assert_eq!(found[0].delegate, PERFORMANCE_ENGINEER);
        assert_eq!(
            found[0].title,
            "On the path to 10.0.0.9 25.0 segments a second are sent again (20.0 %)"
        );
    }

    #[test]
    fn a_round_trip_far_above_the_smallest_is_found() {
        let slow = with(ConnectionRow {
            rtt_ns: Some(110_000_000),
            exchanges: 5,
            ..path()
        });
        let found = find(&View::new(&slow));
        assert_eq!(found[0].bound_ns, 500_000_000);
        assert_eq!(
            found[0].title,
            "On the path to 10.0.0.9 a round trip takes 110 ms where 10.0 ms would do"
        );
    }

    #[test]
    fn a_path_in_good_health_gives_nothing() {
        assert!(find(&View::new(&with(path()))).is_empty());
        // A few of many.
        let few = ConnectionRow {
            retransmits: 20,
            tx_bytes: 10_000_000,
            ..path()
        };
        assert!(find(&View::new(&with(few))).is_empty());
        let two = ConnectionRow {
            retransmits: 2,
            ..path()
        };
        assert!(find(&View::new(&with(two))).is_empty());
        // Acknowledged late.
        let late = ConnectionRow {
            rtt_ns: Some(41_000_000),
            rtt_min_ns: Some(20_000),
            ..path()
        };
        assert!(find(&View::new(&with(late))).is_empty());
    }

    #[test]
    fn a_server_does_not_wait_for_it_itself() {
        let lossy = with(ConnectionRow {
            role: "server".into(),
            peer: "10.0.0.7:4711".into(),
            retransmits: 25,
            ..path()
        });
        let found = find(&View::new(&lossy));
        assert_eq!(found[0].impact_cap, Level::Low);
        assert_eq!(found[0].always, Some(Level::Low));
    }
}
