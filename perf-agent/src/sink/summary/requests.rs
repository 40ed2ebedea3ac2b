//! Requests that the target answered, over all processes: the slowest routes, and where their time
//! went.

use std::{cmp::Reverse, collections::BTreeMap};

use super::state::{LatencySum, add_all, shrink};
use crate::model::{Classes, RequestCoverage, RequestRow, Requests as Line};
use crate::sink::text::{Style, Text, plain};
use crate::sink::units;

const ROUTES: usize = 5;
/// Parts shown of where a route's time went.
const PARTS: usize = 4;
/// Parts below this share of it are left out.
const SMALL_PART: u64 = 50;

/// A route or statement over several windows and processes.
#[derive(Default)]
struct RouteSum {
    latency: LatencySum,
    p95_ns: u64,
    errors: u64,
    attributed: u64,
    unattributed: BTreeMap<String, u64>,
    /// Of those that are attributed.
    latency_ns: u64,
    classes: Classes,
    /// Statements asked of others, by protocol.
    asked: BTreeMap<String, u64>,
}

/// See the module.
#[derive(Default)]
pub struct Requests {
    routes: BTreeMap<(String, String), RouteSum>,
    pub given_up: u64,
}

impl Requests {
    pub fn add(&mut self, line: &Line) {
        for row in &line.requests {
            let key = (row.protocol.clone(), row.text.clone());
            self.routes.entry(key).or_default().add(row);
        }
        self.given_up += shrink(&mut self.routes, |route| route.latency.sum_ns);
    }

    /// The slowest routes.
    pub fn section(&self, text: &mut Text) {
        if self.routes.is_empty() {
            return;
        }
        text.gap();
        text.heading(
            "Requests",
            "the slowest, with where the thread that answered spent a request's time",
        );
        let mut routes: Vec<_> = self.routes.iter().collect();
        routes.sort_by_key(|(key, route)| (Reverse(route.p95_ns), *key));
        for ((protocol, shape), route) in routes.iter().take(ROUTES) {
            text.line([
                plain(format!("    p95 {}  {protocol} ", route.p95())),
                (Style::Bold, super::peers::cut(shape)),
                (Style::Dim, format!("  {}", route.counts())),
            ]);
            text.line([plain(format!("        {}", route.parts()))]);
        }
        if routes.len() > ROUTES {
            let more = routes.len() - ROUTES;
            text.line([(Style::Dim, format!("    … and {more} more routes"))]);
        }
    }
}

impl RouteSum {
    fn add(&mut self, row: &RequestRow) {
        self.latency.add(&row.latency);
        self.p95_ns = self.p95_ns.max(row.latency.p95_ns);
        self.errors += row.errors;
        self.attributed += row.attributed;
        add_all(&mut self.unattributed, &row.unattributed);
        self.latency_ns += row.ledger.latency_ns;
        add_all(&mut self.classes, &row.ledger.classes);
        for peer in &row.downstream {
            *self.asked.entry(peer.protocol.clone()).or_default() += peer.count;
        }
    }

    fn p95(&self) -> String {
        let shown = units::duration(self.p95_ns);
        match self.latency.windows {
            0 | 1 => shown,
            _ => format!("≤ {shown}"),
        }
    }

    /// `412 requests, mean 100 ms, 3 failed`.
    fn counts(&self) -> String {
        let mut counts = format!(
            "{} requests, mean {}",
            units::count(self.latency.count),
            units::duration(self.latency.mean_ns())
        );
        if self.errors > 0 {
            counts += &format!(", {} failed", units::count(self.errors));
        }
        counts
    }

    /// `80.0 ms net.postgresql (12.0 statements), 20.0 ms lock`, of the mean request; why there is
    /// nothing to say where none is attributed.
    fn parts(&self) -> String {
        if self.attributed == 0 {
            return format!("not attributed: {}", reasons(&self.unattributed));
        }
        let mut parts: Vec<(&String, u64)> = self.classes.iter().map(|(k, ns)| (k, *ns)).collect();
        parts.sort_by_key(|(class, ns)| (Reverse(*ns), *class));
        let large = |ns: u64| ns * SMALL_PART >= self.latency_ns;
        let shown: Vec<String> = parts
            .into_iter()
            .filter(|(_, ns)| large(*ns))
            .take(PARTS)
            .map(|(class, ns)| {
                let mean = units::duration(ns / self.attributed);
                format!("{mean} {class}{}", self.statements(class))
            })
            .collect();
        let mut parts = shown.join(", ");
        if self.attributed < self.latency.count {
            let share = units::percent(self.attributed, self.latency.count);
            let reasons = reasons(&self.unattributed);
            parts += &format!("  [{share} of the requests; others {reasons}]");
        }
        parts
    }

    /// How many statements a request has for a class that waits for a protocol's servers.
    fn statements(&self, class: &str) -> String {
        let protocol = class.strip_prefix("net.");
        match protocol.and_then(|protocol| self.asked.get(protocol)) {
            Some(count) => {
                let each = *count as f64 / self.attributed.max(1) as f64;
                format!(" ({each:.1} statements)")
            }
            None => String::new(),
        }
    }
}

fn reasons(unattributed: &BTreeMap<String, u64>) -> String {
    let reasons = unattributed.iter();
    let reasons: Vec<String> = reasons
        .map(|(reason, n)| format!("{} {}", reason.replace('_', " "), units::count(*n)))
        .collect();
    reasons.join(", ")
}

/// `98 % of 1,234 requests attributed, 40 of 5,000 calls for none of them`.
pub fn coverage(requests: &RequestCoverage) -> Option<String> {
    let elsewhere = match requests.calls_elsewhere {
        0 => String::new(),
        n => format!(
            ", {} of {} calls for none of them",
            units::count(n),
            units::count(requests.calls)
        ),
    };
    (requests.served > 0).then(|| {
        format!(
            "{} of {} requests attributed{elsewhere}",
            units::percent(requests.attributed, requests.served),
            units::count(requests.served)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{latency, request};

    #[test]
    fn calls_that_are_of_no_request_are_told() {
        let mut seen = RequestCoverage {
            served: 200,
            attributed: 200,
            calls: 5_000,
            ..RequestCoverage::default()
        };
        let told = |seen: &RequestCoverage| coverage(seen).unwrap();
        assert_eq!(told(&seen), "100 % of 200 requests attributed");
        seen.calls_elsewhere = 40;
        assert_eq!(
            told(&seen),
            "100 % of 200 requests attributed, 40 of 5,000 calls for none of them"
        );
    }

    #[test]
    fn a_route_says_where_a_requests_time_went() {
        let mut sum = RouteSum::default();
        let mut row = request("GET /orders/*");
        (row.count, row.latency, row.attributed) = (4, latency(4), 2);
        row.ledger.latency_ns = 200_000_000;
        row.ledger.classes = crate::fixtures::classes(&[
            ("net.postgresql", 160_000_000),
            ("lock", 36_000_000),
            ("cpu", 3_999_999),
            ("runq", 1),
        ]);
        row.downstream[0].protocol = "postgresql".into();
        row.downstream[0].count = 25;
        row.unattributed = BTreeMap::from([("not_seen".into(), 2)]);
        sum.add(&row);
        assert_eq!(
            sum.parts(),
            "80.0 ms net.postgresql (12.5 statements), 18.0 ms lock  \
             [50 % of the requests; others not seen 2]"
        );
        row.attributed = 0;
        row.unattributed = BTreeMap::from([("interleaved".into(), 4)]);
        let mut sum = RouteSum::default();
        sum.add(&row);
        assert_eq!(sum.parts(), "not attributed: interleaved 4");
    }
}
