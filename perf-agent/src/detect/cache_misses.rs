//! A cache that is asked for what it does not have.
//!
//! Seen: look-ups that found something and those that found nothing, as Redis and memcached answer
//! them; at the client and at the server.
//!
//! Threshold: a hundred look-ups a second, more than half of which find nothing. A cache that pays has
//! a ratio of 0.8 and more; between the two lie caches of large sets that still save work.
//!
//! Bound: the time of the look-ups in vain and, at a client, of the statements that were asked about as often
//! as look-ups found nothing: those get the value elsewhere, and keep it. What else it costs to get the
//! value is not known; the finding is told for that even where the bound is little.
//!
//! Cannot be known: whether it is used as a cache. Locks, counters, queues and "have I seen this?" find
//! nothing in good health.

use std::collections::BTreeMap;

use super::settings::{Share, thresholds};
use super::statements::{self, Ends, asking, in_hand_ns, is_client, shown, working};
use super::view::{View, ratio};
use super::{Candidate, Explain, evidence};
use crate::model::{Level, StatementRow};
use crate::sink::units;

thresholds! {
    /// Fewer look-ups a second are not judged.
    min_per_s: u64 = 100,
    /// Part of the look-ups that find something, below which the cache hardly pays.
    min_hit_ratio: Share = Share(0.5),
}

/// Statements asked as often as look-ups find nothing, within this part of it, follow from that.
const AS_OFTEN: u64 = 4;
/// Below this it hardly ever helps.
const HOPELESS_RATIO: f64 = 0.10;

pub const EXPLAIN: Explain = Explain {
    looks_at: "look-ups in Redis and memcached that find nothing",
    numbers: &[
        ("hit_ratio", "part of the look-ups that found something"),
        ("hits", "look-ups that found something, a second"),
        ("misses", "look-ups that found nothing, a second"),
        ("time_in_vain", "time of the latter, a second"),
        (
            "time_elsewhere",
            "time of the statements asked as often as look-ups find nothing, a second: to get the values elsewhere, and to keep them",
        ),
    ],
    bound: "the time of the look-ups in vain and, at a client, of the statements that were \
               asked about as often.",
    confidence: "0.6: it may be used as something else than a cache.",
    next: "Compare the keys asked for (`statements`, with hits and misses of each) with those that are set, and with expiry and eviction on the server. Where nothing is to be found on purpose (locks, sets of what was seen), leave the rule out or set its threshold.",
};

pub fn find(view: &View) -> Vec<Candidate> {
    let mut peers: BTreeMap<Ends, Vec<&StatementRow>> = BTreeMap::new();
    for row in view.statements().filter(|row| row.hits + row.misses > 0) {
        peers
            .entry((&row.role, &row.protocol, &row.peer))
            .or_default()
            .push(row);
    }
    let peers = peers.into_iter();
    peers
        .filter_map(|(ends, rows)| candidate(view, ends, &rows))
        .collect()
}

fn candidate(view: &View, ends: Ends, rows: &[&StatementRow]) -> Option<Candidate> {
    let hits: u64 = rows.iter().map(|row| row.hits).sum();
    let misses: u64 = rows.iter().map(|row| row.misses).sum();
    let hit_ratio = ratio(hits, hits + misses);
    let set = &view.settings.rules.cache_misses;
    if view.per_s(hits + misses) < set.min_per_s || hit_ratio >= set.min_hit_ratio.0 {
        return None;
    }
    let client = is_client(ends.0);
    let in_vain =
        |row: &&StatementRow| in_hand_ns(row) as f64 * ratio(row.misses, row.hits + row.misses);
    let vain_ns = rows.iter().map(in_vain).sum::<f64>() as u64;
    let elsewhere: Vec<&StatementRow> = match client {
        true => asked_elsewhere(view, misses).collect(),
        false => Vec::new(),
    };
    let elsewhere_ns: u64 = elsewhere.iter().map(|row| in_hand_ns(row)).sum();
    let stake = if client { asking } else { working };
    let mut found = statements::between(view, ends, vain_ns + elsewhere_ns, stake);
    found.brings = elsewhere.iter().map(|row| row.peer.clone()).collect();
    found.brings.extend(found.server.clone());
    found.always = Some(match hit_ratio {
        r if r < HOPELESS_RATIO => Level::Medium,
        _ => Level::Low,
    });
    found.confidence = 0.6;
    let worst = rows.iter().max_by_key(|row| row.misses)?;
    found.title = format!(
        "{:.0} % of the look-ups {} {} find something: {} of {} a second find nothing, most in `{}`",
        hit_ratio * 100.0,
        if client { "in" } else { "of" },
        found.subject,
        units::count(view.per_s(misses)),
        units::count(view.per_s(hits + misses)),
        shown(&worst.text),
    );
    found.evidence = vec![
        evidence("hit_ratio", hit_ratio, "ratio", hits + misses),
        evidence("hits", view.per_s(hits) as f64, "1/s", hits),
        evidence("misses", view.per_s(misses) as f64, "1/s", misses),
        evidence("time_in_vain", view.per_s(vain_ns) as f64, "ns/s", misses),
        evidence(
            "time_elsewhere",
            view.per_s(elsewhere_ns) as f64,
            "ns/s",
            misses,
        ),
    ];
    found.recommendations = [
        "Compare the keys that are asked for with those that are set: another prefix, another version, set too late",
        "Look at expiry and eviction (INFO stats, stats): values may be gone before they are asked for",
        "Keep \"there is none\" as a value too, where that is asked for again and again",
    ]
    .map(str::to_owned)
    .to_vec();
    Some(found)
}

/// What a client asks about as often as its look-ups find nothing, here or elsewhere.
fn asked_elsewhere<'a>(view: &View<'a>, misses: u64) -> impl Iterator<Item = &'a StatementRow> {
    view.statements().filter(move |row| {
        is_client(&row.role)
            && row.hits + row.misses == 0
            && row.count.abs_diff(misses) <= misses / AS_OFTEN
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::DATABASE_SPECIALIST;
    use crate::fixtures::{asked, asking_report};
    use crate::model::ProcessReport;

    fn looking_up(hits: u64, misses: u64) -> ProcessReport {
        let get = StatementRow {
            protocol: "redis".into(),
            peer: "10.0.0.9:6379".into(),
            hits,
            misses,
            ..asked("GET user#1", hits + misses, 100_000)
        };
        asking_report(500_000_000, vec![get, asked("SELECT ?", 1, 1)])
    }

    #[test]
    fn a_cache_that_does_not_have_it_is_found() {
        let report = looking_up(500, 1_500);
        let found = find(&View::new(&report));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].bound_ns, 150_000_000);
        assert_eq!(found[0].area, "caching");
        assert_eq!(found[0].delegate, DATABASE_SPECIALIST);
        assert_eq!(found[0].always, Some(Level::Low));
        assert_eq!(
            found[0].title,
            "25 % of the look-ups in Redis at 10.0.0.9:6379 find something: 1,500 of 2,000 a second \
             find nothing, most in `GET user#1`"
        );
        assert_eq!(
            find(&View::new(&looking_up(50, 1_950)))[0].always,
            Some(Level::Medium)
        );
    }

    #[test]
    fn what_is_asked_elsewhere_as_often_is_what_a_miss_costs() {
        let mut report = looking_up(0, 100);
        let fetch = asked("SELECT total FROM t WHERE id = ?", 90, 3_000_000);
        let other = asked("SELECT now()", 10, 9_000_000);
        let rows = &mut report.statements.as_mut().unwrap().statements;
        rows.extend([fetch.clone(), other]);
        let found = find(&View::new(&report));
        assert_eq!(found[0].bound_ns, 100 * 100_000 + 90 * 3_000_000);
        assert_eq!(found[0].brings, [fetch.peer, "10.0.0.9:6379".to_owned()]);
    }

    #[test]
    fn a_cache_that_has_it_gives_nothing() {
        assert!(find(&View::new(&looking_up(2_000, 0))).is_empty());
        assert!(find(&View::new(&looking_up(1_000, 1_000))).is_empty());
        assert!(find(&View::new(&looking_up(0, 99))).is_empty());
    }
}
