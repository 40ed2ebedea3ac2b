//! Requests that end with an error, by SQLSTATE, errno or status.
//!
//! Threshold: five and more in the window with the same code, and a twentieth of all that is asked of
//! the peer. Fewer are everyday life: a value that is there already, a transaction to be repeated.
//! Redirections of a cluster are no errors, nor is what a script that is not loaded yet answers.
//!
//! Bound: the time of the exchanges that failed, at their statements' mean. What a retry or the work
//! around it costs is not known, so the finding is told even where this is little.

use std::collections::BTreeMap;

use super::settings::{Share, thresholds};
use super::statements::{self, Ends, asking, in_hand_ns, is_client, shown, working};
use super::view::{View, mean, ratio};
use super::{Candidate, Explain, evidence};
use crate::model::{Level, StatementRow};
use crate::sink::units;

thresholds! {
    /// Errors with the same code in a window,
    min_errors: u64 = 5,
    /// and their share of all that is asked of the peer.
    min_share: Share = Share(0.05),
}

/// From these shares it is of medium and of high impact, whatever the time.
const MEDIUM_SHARE: f64 = 0.10;
const HIGH_SHARE: f64 = 0.50;
/// Answers that a client in good health gets too.
const EVERYDAY: &[&str] = &["MOVED", "ASK", "NOSCRIPT", "404", "304", "401"];
const MAX_FINDINGS: usize = 2;

/// Errors with one code, from one peer.
#[derive(Default)]
struct Errors<'a> {
    count: u64,
    time_ns: u64,
    /// The statement with most of them, and how many.
    worst: Option<(&'a StatementRow, u64)>,
}

pub const EXPLAIN: Explain = Explain {
    looks_at: "answers that are errors, by peer and code (SQLSTATE, errno, status or the first word), without those that clients in good health get",
    numbers: &[
        ("errors", "answers with this code a second"),
        (
            "share_of_requests",
            "part of all that was asked of the peer that ends so",
        ),
        (
            "time",
            "time of the exchanges that failed, a second; what repeating them costs is not in it",
        ),
    ],
    bound: "the time of the exchanges that failed, at their statements' mean; told even \
               where that is little.",
    confidence: "0.8: the errors are counted, what a retry costs is not.",
    next: "Look up the code and the statement named, and see in `errors_by_code` of `statements` which others get it too.",
};

pub fn find(view: &View) -> Vec<Candidate> {
    let set = &view.settings.rules.statement_errors;
    let mut asked: BTreeMap<Ends, u64> = BTreeMap::new();
    let mut errors: BTreeMap<(Ends, &str), Errors> = BTreeMap::new();
    for row in view.statements() {
        let ends: Ends = (&row.role, &row.protocol, &row.peer);
        *asked.entry(ends).or_default() += row.count;
        for (code, n) in &row.errors_by_code {
            if EVERYDAY.contains(&code.as_str()) {
                continue;
            }
            let sum = errors.entry((ends, code)).or_default();
            sum.count += n;
            sum.time_ns += mean(in_hand_ns(row), row.count).saturating_mul(*n);
            if sum.worst.is_none_or(|(_, most)| *n > most) {
                sum.worst = Some((row, *n));
            }
        }
    }
    let found = errors.into_iter().filter_map(|((ends, code), errors)| {
        let all = asked.get(&ends).copied().unwrap_or(0);
        let many = errors.count >= set.min_errors && ratio(errors.count, all) >= set.min_share.0;
        many.then(|| candidate(view, ends, code, &errors, all))
    });
    let mut found: Vec<(u64, Candidate)> = found.collect();
    found.sort_by_key(|(errors, _)| std::cmp::Reverse(*errors));
    found.truncate(MAX_FINDINGS);
    found.into_iter().map(|(_, found)| found).collect()
}

fn candidate(view: &View, ends: Ends, code: &str, errors: &Errors, all: u64) -> (u64, Candidate) {
    let client = is_client(ends.0);
    let stake = if client { asking } else { working };
    let mut found = statements::between(view, ends, errors.time_ns, stake);
    let share = ratio(errors.count, all);
    found.always = Some(match share {
        s if s >= HIGH_SHARE => Level::High,
        s if s >= MEDIUM_SHARE => Level::Medium,
        _ => Level::Low,
    });
    found.key = format!("{} {code}", found.key);
    found.confidence = 0.8;
    found.effort = Level::Low;
    let other_end = std::mem::replace(&mut found.subject, format!("error {code}"));
    let mut of = String::new();
    if let Some((row, n)) = errors.worst {
        found.subject = format!("error {code} of {}", shown(&row.text));
        of = format!(
            ", {:.0} % of them to `{}`",
            100.0 * ratio(n, errors.count),
            shown(&row.text)
        );
    }
    found.title = format!(
        "{} error {code} {} times a second ({:.0} % of the requests){of}",
        match client {
            true => format!("Gets from {other_end}"),
            false => format!("Answers {other_end} with"),
        },
        units::rate(errors.count as f64 * 1e9 / view.wall_ns().max(1) as f64),
        share * 100.0,
    );
    found.evidence = vec![
        evidence(
            "errors",
            view.per_s(errors.count) as f64,
            "1/s",
            errors.count,
        ),
        evidence("share_of_requests", share, "ratio", all),
        evidence(
            "time",
            view.per_s(found.bound_ns) as f64,
            "ns/s",
            errors.count,
        ),
    ];
    found.recommendations = vec![
        advice(ends.1, code).to_owned(),
        "Log one failing request with its answer, to see who makes it".to_owned(),
    ];
    (errors.count, found)
}

/// What a code asks for: SQLSTATE classes of PostgreSQL, errno of MySQL, first words of Redis.
fn advice(protocol: &str, code: &str) -> &'static str {
    match (protocol, code) {
        ("postgresql", "40P01") | ("mysql", "1213") => {
            "Transactions lock each other out: take rows in one order, and keep transactions short"
        }
        ("postgresql", "40001") | ("mysql", "1205") => {
            "Transactions get in each other's way: make them shorter, or the isolation level lower"
        }
        ("postgresql", "23505") | ("mysql", "1062") => {
            "What is inserted is there already: use ON CONFLICT (ON DUPLICATE KEY), or ask first"
        }
        ("postgresql", code) if code.starts_with("42") => {
            "The statement does not fit the schema or the rights: correct it, or do not send it"
        }
        ("mysql", "1046" | "1054" | "1064" | "1142" | "1146") => {
            "The statement does not fit the schema or the rights: correct it, or do not send it"
        }
        ("postgresql", "53300") | ("mysql", "1040") => {
            "The server has no connection left: use smaller pools, or a pooler before the server"
        }
        ("postgresql", "57014") => {
            "Statements are cancelled, mostly by a timeout: look at why they take so long"
        }
        ("postgresql", "25P02") => {
            "Statements go on in a transaction that has failed: roll it back at the first error"
        }
        ("redis", "OOM") | ("memcached", "SERVER_ERROR") => {
            "The cache is full: give it memory, or let it evict"
        }
        ("redis", "WRONGTYPE") => "A key holds another type than the command expects",
        ("http", code) if code.starts_with('5') => {
            "The server fails: look at its log, and at what it waits for"
        }
        _ => "Look up the code, and stop sending what cannot succeed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{asked, asking_report};

    fn failing(count: u64, errors: &[(&str, u64)]) -> StatementRow {
        StatementRow {
            errors: errors.iter().map(|(_, n)| n).sum(),
            errors_by_code: errors.iter().map(|(c, n)| ((*c).into(), *n)).collect(),
            ..asked("INSERT INTO t VALUES (?)", count, 1_000_000)
        }
    }

    #[test]
    fn errors_are_found_by_code_with_the_time_they_took() {
        let rows = vec![
            failing(100, &[("23505", 60), ("40001", 2)]),
            asked("SELECT ?", 100, 1_000_000),
        ];
        let report = asking_report(300_000_000, rows);
        let found = find(&View::new(&report));
        let [found] = &found[..] else {
            panic!("{} findings", found.len());
        };
        assert_eq!(found.bound_ns, 60_000_000);
        assert_eq!(found.always, Some(Level::Medium));
        assert_eq!(found.subject, "error 23505 of INSERT INTO t VALUES (?)");
        assert_eq!(
            found.title,
            "Gets from PostgreSQL at 10.0.0.9:5432 error 23505 60.0 times a second (30 % of the \
             requests), 100 % of them to `INSERT INTO t VALUES (?)`"
        );
        assert!(found.recommendations[0].contains("ON CONFLICT"));
    }

    #[test]
    fn the_share_is_of_all_requests_of_the_peer() {
        let level = |errors, others| {
            let rows = vec![
                failing(errors, &[("XX000", errors)]),
                asked("SELECT ?", others, 1_000),
            ];
            find(&View::new(&asking_report(0, rows)))
                .first()
                .and_then(|f| f.always)
        };
        assert_eq!(level(50, 50), Some(Level::High));
        assert_eq!(level(10, 90), Some(Level::Medium));
        assert_eq!(level(5, 95), Some(Level::Low));
        assert_eq!(level(5, 96), None);
        assert_eq!(level(4, 0), None);
    }

    #[test]
    fn answers_of_good_health_give_nothing() {
        assert!(
            find(&View::new(&asking_report(
                0,
                vec![asked("SELECT ?", 100, 1)]
            )))
            .is_empty()
        );
        let mut moved = failing(100, &[("MOVED", 100)]);
        moved.protocol = "redis".into();
        assert!(find(&View::new(&asking_report(0, vec![moved]))).is_empty());
    }
}
