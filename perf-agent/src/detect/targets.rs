//! What response times are asked for: percentiles of all statements and routes, or of single ones.

use serde::Deserialize;

use super::settings::Time;
use crate::{
    decode::{
        route,
        sql::{self, Syntax},
    },
    model::{Latency, StatementRow},
};

/// The percentiles a target can be set for, lowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Percentile {
    P50,
    P90,
    P95,
    P99,
}

impl Percentile {
    pub const ALL: [Percentile; 4] = [
        Percentile::P50,
        Percentile::P90,
        Percentile::P95,
        Percentile::P99,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Percentile::P50 => "p50",
            Percentile::P90 => "p90",
            Percentile::P95 => "p95",
            Percentile::P99 => "p99",
        }
    }

    pub fn of(self, latency: &Latency) -> u64 {
        match self {
            Percentile::P50 => latency.p50_ns,
            Percentile::P90 => latency.p90_ns,
            Percentile::P95 => latency.p95_ns,
            Percentile::P99 => latency.p99_ns,
        }
    }

    /// Samples from which it is not merely the largest of them.
    pub fn least_samples(self) -> u64 {
        match self {
            Percentile::P50 => 2,
            Percentile::P90 => 10,
            Percentile::P95 => 20,
            Percentile::P99 => 100,
        }
    }

    /// The next lower one.
    pub fn below(self) -> Option<Percentile> {
        Percentile::ALL.into_iter().rev().find(|p| *p < self)
    }
}

/// Limits of latencies, by percentile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    pub p50: Option<Time>,
    pub p90: Option<Time>,
    pub p95: Option<Time>,
    pub p99: Option<Time>,
}

impl Limits {
    pub const NONE: Limits = Limits {
        p50: None,
        p90: None,
        p95: None,
        p99: None,
    };

    fn of(&mut self, percentile: Percentile) -> &mut Option<Time> {
        match percentile {
            Percentile::P50 => &mut self.p50,
            Percentile::P90 => &mut self.p90,
            Percentile::P95 => &mut self.p95,
            Percentile::P99 => &mut self.p99,
        }
    }

    pub fn set(&mut self, percentile: Percentile, limit: Time) {
        *self.of(percentile) = Some(limit);
    }

    /// Every limit that is set, in nanoseconds.
    pub fn each(mut self) -> impl Iterator<Item = (Percentile, u64)> {
        Percentile::ALL
            .into_iter()
            .filter_map(move |p| self.of(p).map(|limit| (p, limit.0)))
    }

    /// With those of another that are set there.
    fn overridden_by(mut self, mut other: Limits) -> Limits {
        for percentile in Percentile::ALL {
            if let Some(limit) = *other.of(percentile) {
                self.set(percentile, limit);
            }
        }
        self
    }
}

/// The targets of single statements and routes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Single {
    /// Texts of rows it is for.
    texts: Vec<String>,
    limits: Limits,
}

impl Single {
    /// For a statement as it is shown, or with literals in it.
    pub fn statement(text: &str, limits: Limits) -> Single {
        let shapes =
            [Syntax::POSTGRESQL, Syntax::MYSQL].map(|s| sql::shape(text.as_bytes(), s, false));
        let mut texts = vec![text.to_owned()];
        texts.extend(shapes);
        texts.dedup();
        Single { texts, limits }
    }

    /// For a method and path, as shown or with identifiers or names in place of `*`.
    pub fn route(text: &str, limits: Limits) -> Single {
        let shape = match text.split_once(' ') {
            Some((method, path)) => format!("{method} {}", route::route(path.trim().as_bytes())),
            None => text.to_owned(),
        };
        let mut texts = vec![text.to_owned(), shape];
        texts.dedup();
        Single { texts, limits }
    }
}

/// All that is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Targets {
    /// For whatever has no target of its own.
    pub all: Limits,
    pub single: Vec<Single>,
}

impl Targets {
    pub const NONE: Targets = Targets {
        all: Limits::NONE,
        single: Vec::new(),
    };

    /// The limits a row is held to: its own, and those for all where it has none.
    pub fn of(&self, row: &StatementRow) -> Limits {
        let own = self.single.iter().filter(|s| s.texts.contains(&row.text));
        own.fold(self.all, |limits, single| {
            limits.overridden_by(single.limits)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::statement;

    fn p95(ns: u64) -> Limits {
        Limits {
            p95: Some(Time(ns)),
            ..Limits::NONE
        }
    }

    fn limits(targets: &Targets, text: &str) -> Vec<(Percentile, u64)> {
        targets.of(&statement(text, 1, 1)).each().collect()
    }

    #[test]
    fn a_target_of_its_own_comes_before_that_of_all() {
        let mut all = p95(200);
        all.set(Percentile::P99, Time(900));
        let targets = Targets {
            all,
            single: vec![Single::statement(
                "SELECT name FROM t WHERE id = 7",
                p95(50),
            )],
        };
        assert_eq!(
            limits(&targets, "SELECT name FROM t WHERE id = ?"),
            [(Percentile::P95, 50), (Percentile::P99, 900)]
        );
        assert_eq!(
            limits(&targets, "SELECT ?"),
            [(Percentile::P95, 200), (Percentile::P99, 900)]
        );
        assert_eq!(limits(&Targets::NONE, "SELECT ?"), []);
    }

    #[test]
    fn routes_are_named_as_shown_or_as_frameworks_write_them() {
        for text in [
            "GET /users/*/orders",
            "GET /users/:id/orders",
            "GET /users/{id}/orders",
            "GET /users/42/orders",
        ] {
            let targets = Targets {
                single: vec![Single::route(text, p95(50))],
                ..Targets::NONE
            };
            assert_eq!(limits(&targets, "GET /users/*/orders").len(), 1, "{text}");
            assert_eq!(limits(&targets, "POST /users/*/orders").len(), 0, "{text}");
        }
    }

    #[test]
    fn fewer_samples_than_a_percentile_needs_make_it_the_largest() {
        for percentile in Percentile::ALL {
            let q: f64 = percentile.name()[1..].parse::<f64>().unwrap() / 100.0;
            let rank = |n: u64| (n as f64 * q).ceil() as u64;
            let least = percentile.least_samples();
            assert!(rank(least) < least, "{percentile:?}");
            assert_eq!(rank(least - 1), least - 1, "{percentile:?}");
        }
    }
}
