//! Statements and routes that take longer than was asked for: which percentile, by how far, since
//! when.
//!
//! Looked at are the rows of `statements`, and of `requests` where the target is the server, against `[targets]`, `[[target]]` and
//! `--target`. Latencies are between those that count as missed and those that count as met for a
//! while before a finding goes: one near its target would come and go with every window.

use std::borrow::Cow;

use super::settings::{Share, thresholds};
use super::targets::Percentile;
use super::view::{View, ratio};
use super::{Candidate, Explain, evidence, statements};
use crate::model::{Latency, Level, RequestRow, StatementRow};
use crate::sink::units;

thresholds! {
    /// Answers in a window from which it is judged (p99: 100 at least). The 95th percentile of fewer
    /// than 20 is their largest, so one slow answer would decide. Of 20 it takes two: a statement with
    /// half as many slow answers as its target allows gets there by chance in 9 % of the windows, with
    /// 100 answers in 4 %.
    min_samples: u64 = 20,
    /// A missed target counts as met again below this share of it.
    met_below: Share = Share(0.9),
}

pub const EXPLAIN: Explain = Explain {
    looks_at: "latencies of statements and routes, as the target waited for them (client) or took for \
               them (server), against the targets that were set",
    numbers: &[
        ("measured", "the percentile in this window, right to 1/32"),
        ("target", "what was asked for"),
        ("times_the_target", "the first by the second"),
        ("answers", "answers a second"),
        ("median", "of the same answers"),
    ],
    bound: "the most by which answers can have been over the target, together: those \
               between two percentiles count as the upper one.",
    confidence: "0.9 where the next lower percentile is over the target too, else 0.6: with few \
               answers one percentile alone is over by chance.",
    next: "See whether the time goes into the answer itself or into waiting behind others: `queued` \
           and `first_byte` of its row in `statements`, and the other findings of the process.",
};

/// Percentiles are within this part of the exact value.
const ERROR_PART: u64 = 32;

pub fn find(view: &View) -> Vec<Candidate> {
    let rows = rows(view);
    let rows = rows.iter().filter(|row| statements::is_judged(row));
    rows.filter_map(|row| candidate(view, row, &worst(view, row)?))
        .collect()
}

/// What is held against the limits: a client's statements by peer, and what a server answers whoever
/// asked, as a route that many hosts ask for has few answers for each of them.
fn rows<'a>(view: &View<'a>) -> Vec<Cow<'a, StatementRow>> {
    let mut rows: Vec<Cow<StatementRow>> = Vec::new();
    for row in view.statements() {
        let all = request(view, row);
        let Some(all) = all else {
            rows.push(Cow::Borrowed(row));
            continue;
        };
        let same = |r: &&mut Cow<StatementRow>| {
            (&r.role, &r.protocol, &r.text) == (&row.role, &row.protocol, &row.text)
        };
        if let Some(sum) = rows.iter_mut().find(same) {
            let sum = sum.to_mut();
            sum.queued.sum_ns += row.queued.sum_ns;
            sum.peer.clear();
        } else {
            rows.push(Cow::Owned(StatementRow {
                count: all.count,
                latency: all.latency,
                ..row.clone()
            }));
        }
    }
    rows
}

/// All requests of a server's row.
fn request<'a>(view: &View<'a>, row: &StatementRow) -> Option<&'a RequestRow> {
    let is_it = |r: &&RequestRow| (&r.protocol, &r.text) == (&row.protocol, &row.text);
    view.requests()
        .find(is_it)
        .filter(|_| !statements::is_client(&row.role))
}

/// A percentile against its limit.
struct Missed {
    percentile: Percentile,
    limit_ns: u64,
    measured_ns: u64,
}

impl Missed {
    fn times(&self) -> f64 {
        ratio(self.measured_ns, self.limit_ns)
    }

    /// Whether it is over the limit for sure, whatever the error of the histogram.
    fn surely(&self) -> bool {
        self.measured_ns - self.measured_ns / ERROR_PART > self.limit_ns
    }
}

/// The limit a row is furthest over, or nearest to.
fn worst(view: &View, row: &StatementRow) -> Option<Missed> {
    let least = view.settings.rules.target_missed.min_samples;
    let limits = view.settings.targets.of(row).each();
    limits
        .filter(|(percentile, _)| row.latency.count >= least.max(percentile.least_samples()))
        .map(|(percentile, limit_ns)| Missed {
            percentile,
            limit_ns,
            measured_ns: percentile.of(&row.latency),
        })
        .max_by(|a, b| a.times().total_cmp(&b.times()))
}

fn candidate(view: &View, row: &StatementRow, missed: &Missed) -> Option<Candidate> {
    let times = missed.times();
    if times < view.settings.rules.target_missed.met_below.0 {
        return None;
    }
    let excess_ns = most_over(&row.latency, missed.limit_ns);
    let client = statements::is_client(&row.role);
    let bound_ns = excess_ns.min(row.latency.sum_ns);
    let mut found = statements::about(view, row, bound_ns, statements::living);
    found.only_if_known = !missed.surely();
    found.always = Some(match times {
        t if t >= 2.0 => Level::High,
        t if t >= 1.25 => Level::Medium,
        _ => Level::Low,
    });
    found.confidence = confidence(&row.latency, missed);
    found.title = title(row, missed, client);
    let answers = row.latency.count;
    found.evidence = vec![
        evidence("measured", missed.measured_ns as f64, "ns", answers),
        evidence("target", missed.limit_ns as f64, "ns", answers),
        evidence("times_the_target", times, "ratio", answers),
        evidence("answers", view.per_s(answers) as f64, "1/s", answers),
        evidence("median", row.latency.p50_ns as f64, "ns", answers),
    ];
    found.recommendations = spent(view, row).into_iter().collect();
    found.recommendations.extend(recommendations(row, client));
    Some(found)
}

/// A percentile alone over its limit happens by chance in every second window of a statement that just
/// meets its target. With the next lower one over it as well, twice as many answers are late as are
/// allowed: by chance in 8 % of windows with 20 answers, in 1 % of those with 100.
fn confidence(latency: &Latency, missed: &Missed) -> f64 {
    let below = missed.percentile.below();
    match below.is_some_and(|p| p.of(latency) > missed.limit_ns) {
        true => 0.9,
        false => 0.6,
    }
}

/// The most by which answers can have been over a limit, together: each is at most the percentile
/// above it.
fn most_over(latency: &Latency, limit_ns: u64) -> u64 {
    let bands = [
        (0.50, latency.p50_ns),
        (0.40, latency.p90_ns),
        (0.05, latency.p95_ns),
        (0.04, latency.p99_ns),
        (0.01, latency.max_ns),
    ];
    let over = bands.map(|(share, most_ns)| share * most_ns.saturating_sub(limit_ns) as f64);
    (over.iter().sum::<f64>() * latency.count as f64) as u64
}

fn title(row: &StatementRow, missed: &Missed, client: bool) -> String {
    let by = match (client, row.peer.is_empty()) {
        (true, false) => format!(" of {}", row.peer),
        (false, false) => format!(" for {}", row.peer),
        _ => String::new(),
    };
    format!(
        "{} of `{}`{by} is {}, {:.2} times the target of {}",
        missed.percentile.name(),
        statements::shown(&row.text),
        units::duration(missed.measured_ns),
        missed.times(),
        units::duration(missed.limit_ns),
    )
}

/// What the requests of a server's row spend most of their time in, where that is known of half of them.
fn spent(view: &View, row: &StatementRow) -> Option<String> {
    let row = request(view, row)?;
    let (class, ns) = row.ledger.classes.iter().max_by_key(|(_, ns)| **ns)?;
    if 2 * row.attributed < row.count || row.attributed == 0 {
        return None;
    }
    let asked = row.downstream.iter();
    let asked = asked.filter(|peer| class.strip_prefix("net.") == Some(&peer.protocol));
    let asked: u64 = asked.map(|peer| peer.count).sum();
    let statements = match asked {
        0 => String::new(),
        n => format!(", for {:.1} statements", n as f64 / row.attributed as f64),
    };
    Some(format!(
        "Begin with `{class}`: {} of the {} a request takes on average{statements} (`requests` has the rest)",
        units::duration(ns / row.attributed),
        units::duration(row.ledger.latency_ns / row.attributed),
    ))
}

fn recommendations(row: &StatementRow, client: bool) -> Vec<String> {
    let mut out = Vec::new();
    if row.queued.sum_ns * 2 > row.latency.sum_ns {
        out.push(
            "Most of it is spent behind earlier requests of the same connection: use more connections, or smaller pipelines"
                .to_owned(),
        );
    }
    out.push(match (client, row.protocol.as_str()) {
        (true, "http" | "http2") => {
            "Trace the server that answers: this process only waits for it".to_owned()
        }
        (false, "http" | "http2") => {
            "Look at what the threads that serve this route wait for: the other findings of the process, and `profile`".to_owned()
        }
        (_, "redis" | "memcached") => {
            "Look for large values and for commands that walk many keys".to_owned()
        }
        _ => "Look at the plan of the statement (EXPLAIN): missing index, rows read for nothing, locks".to_owned(),
    });
    out.push(
        "If the target is not meant for it, give it one of its own in the config file".to_owned(),
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::DATABASE_SPECIALIST;
    use crate::detect::settings::{Settings, Time};
    use crate::detect::targets::{Limits, Targets};
    use crate::fixtures::{self, classes, report, statement, thread, window};
    use crate::model::{ProcessReport, Requests, Statements};

    const MS: u64 = 1_000_000;

    fn settings(p95_ms: u64) -> Settings {
        let mut all = Limits::NONE;
        all.set(Percentile::P95, Time(p95_ms * MS));
        Settings {
            targets: Targets {
                all,
                single: Vec::new(),
            },
            ..Settings::default()
        }
    }

    fn serving(rows: Vec<StatementRow>) -> ProcessReport {
        let mut report = report("web", vec![thread(1, &[("idle", 1_000 * MS)])]);
        report.statements = Some(Statements {
            stamp: report.ledger.stamp.clone(),
            who: report.ledger.who.clone(),
            window: window(),
            statements: rows,
        });
        report
    }

    fn route(count: u64, p90_ms: u64, p95_ms: u64) -> StatementRow {
        let mut row = statement("GET /orders/*", count, 10 * MS);
        (row.role, row.protocol) = ("server".into(), "http".into());
        row.peer = "10.0.0.7".into();
        row.latency = Latency {
            count,
            sum_ns: count * 20 * MS,
            p50_ns: 10 * MS,
            p90_ns: p90_ms * MS,
            p95_ns: p95_ms * MS,
            p99_ns: 400 * MS,
            max_ns: 500 * MS,
        };
        row
    }

    fn found(row: StatementRow) -> Vec<Candidate> {
        let (report, settings) = (serving(vec![row]), settings(200));
        find(&View::with(&report, &settings))
    }

    #[test]
    fn a_route_over_its_target_says_how_far() {
        let found = found(route(100, 50, 350));
        assert_eq!(found.len(), 1);
        assert_eq!(
            found[0].title,
            "p95 of `GET /orders/*` for 10.0.0.7 is 350 ms, 1.75 times the target of 200 ms"
        );
        assert_eq!(found[0].subject, "GET /orders/*");
        assert_eq!(found[0].delegate, super::super::PERFORMANCE_ENGINEER);
        assert_eq!(found[0].area, "api_response");
        assert_eq!(found[0].always, Some(Level::Medium));
        assert_eq!(found[0].confidence, 0.6);
        assert!(!found[0].only_if_known);
        // 5 at most 150 ms over, 4 at most 200 ms, one at most 300 ms; but one thread lived for 1 s.
        assert_eq!(found[0].bound_ns, 1_000 * MS);
        assert_eq!(
            most_over(&route(100, 50, 350).latency, 200 * MS),
            1_850 * MS
        );
        let values: Vec<(&str, f64, u64)> = found[0]
            .evidence
            .iter()
            .map(|e| (e.name.as_str(), e.value, e.samples))
            .collect();
        assert_eq!(values[0], ("measured", 350e6, 100));
        assert_eq!(values[1], ("target", 200e6, 100));
        assert_eq!(values[2], ("times_the_target", 1.75, 100));
    }

    #[test]
    fn twice_as_many_late_answers_as_allowed_are_no_chance() {
        assert_eq!(found(route(100, 201, 350))[0].confidence, 0.9);
    }

    #[test]
    fn too_few_answers_are_not_judged() {
        assert_eq!(found(route(19, 50, 350)).len(), 0);
        assert_eq!(found(route(20, 50, 350)).len(), 1);
    }

    #[test]
    fn what_the_error_of_the_histogram_allows_is_not_missed_and_is_not_met_either() {
        for (p95_ms, states) in [
            (179, None),
            (181, Some(true)),
            (206, Some(true)),
            (207, Some(false)),
        ] {
            let known = found(route(100, 50, p95_ms))
                .first()
                .map(|f| f.only_if_known);
            assert_eq!(known, states, "{p95_ms}");
        }
    }

    #[test]
    fn a_route_is_judged_by_all_who_ask_for_it() {
        let rows = ["10.0.0.7", "10.0.0.8"].map(|peer| StatementRow {
            peer: peer.into(),
            ..route(15, 50, 350)
        });
        let (mut report, settings) = (serving(rows.into()), settings(200));
        assert_eq!(find(&View::with(&report, &settings)).len(), 0);
        let mut all = fixtures::request("GET /orders/*");
        (all.count, all.latency) = (30, route(30, 50, 350).latency);
        (all.attributed, all.ledger.latency_ns) = (20, 20 * 100 * MS);
        all.ledger.classes = classes(&[("cpu", 20 * 10 * MS), ("net.postgresql", 20 * 90 * MS)]);
        all.downstream[0].count = 240;
        report.requests = Some(Requests {
            stamp: report.ledger.stamp.clone(),
            who: report.ledger.who.clone(),
            window: window(),
            requests: vec![all],
        });
        let found = find(&View::with(&report, &settings));
        assert_eq!(found.len(), 1);
        assert_eq!(
            found[0].title,
            "p95 of `GET /orders/*` is 350 ms, 1.75 times the target of 200 ms"
        );
        assert_eq!(found[0].evidence[0].samples, 30);
        assert_eq!(
            found[0].recommendations[0],
            "Begin with `net.postgresql`: 90.0 ms of the 100 ms a request takes on average, \
             for 12.0 statements (`requests` has the rest)"
        );
    }

    #[test]
    fn a_database_is_for_its_specialist() {
        let mut row = route(100, 50, 350);
        row.protocol = "postgresql".into();
        let one = &found(row.clone())[0];
        assert_eq!(
            (one.delegate, one.area),
            (DATABASE_SPECIALIST, "database_performance")
        );
        row.protocol = "redis".into();
        let other = &found(row.clone())[0];
        assert_eq!(
            (other.delegate, other.area),
            (DATABASE_SPECIALIST, "caching")
        );
        row.text = "(other statements)".into();
        assert_eq!(found(row).len(), 0);
    }

    #[test]
    fn the_percentile_furthest_over_is_told() {
        let mut settings = settings(200);
        settings.targets.all.set(Percentile::P50, Time(5 * MS));
        let report = serving(vec![route(100, 50, 350)]);
        let found = find(&View::with(&report, &settings));
        assert!(
            found[0].title.starts_with("p50 of `GET /orders/*`"),
            "{}",
            found[0].title
        );
    }
}
