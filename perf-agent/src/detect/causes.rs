//! What follows from what: findings of one process and window that are one story.
//!
//! A slow statement keeps the connections of a pool busy, and the pool delays the requests: three findings,
//! of which one is to be acted on. The others name it (`caused_by`) and are told below it. A link is made
//! where the evidence of both speaks of the same call, statement, peer, lock or thread; each effect has one
//! cause, the largest that qualifies, and the links of [`LINKS`] lead in no circle.

use std::collections::BTreeMap;

use super::view::{View, class, cpu, net};
use super::{Candidate, Rule, evidence, score};
use crate::model::{Finding, Level, LockOwner};

/// What a finding's evidence may have besides that of its rule.
pub const NUMBERS: &[(&str, &str)] = &[(
    "follows_from_it",
    "time of the findings that name this one as their cause, a second; part of its bound",
)];

/// How the time of an effect stands to that of its cause.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Time {
    /// It is the same time, or part of it.
    Same,
    /// Others lose it besides: a fix gains both.
    Besides,
    /// It is what a fix gains: what the cause takes itself is spent elsewhere then.
    Instead,
}

struct Link {
    causes: &'static [&'static str],
    effect: &'static str,
    /// Whether the one follows from the other.
    holds: fn(&View, cause: &Candidate, effect: &Candidate) -> bool,
    time: Time,
}

/// Waits and work that can be what a thread does while it holds something that others want.
const WAITS: &[&str] = &[
    "disk_wait",
    "page_faults",
    "network_wait",
    "slow_statement",
    "n_plus_one",
];

/// Waits for peers.
const ASKS: &[&str] = &[
    "cache_misses",
    "network_wait",
    "slow_statement",
    "n_plus_one",
];

/// In the order in which they are tried.
const LINKS: &[Link] = &[
    link(&["error_storm"], "syscall_storm", same_call, Time::Same),
    link(&["error_storm"], "cpu_bound", most_of, Time::Same),
    link(&["syscall_storm"], "cpu_bound", most_of, Time::Same),
    link(&["page_faults"], "cpu_bound", most_of, Time::Same),
    link(&["run_queue"], "cpu_bound", starved_by_quota, Time::Same),
    link(
        &["idle_in_transaction"],
        "slow_statement",
        waits_for_rows,
        Time::Instead,
    ),
    link(
        &["cache_misses"],
        "slow_statement",
        asked_for_it,
        Time::Same,
    ),
    link(&["cache_misses"], "n_plus_one", asked_for_it, Time::Same),
    link(&["cache_misses"], "chatty", asked_for_it, Time::Same),
    link(&["cache_misses"], "network_wait", asked_for_it, Time::Same),
    link(&["network_wait"], "slow_statement", lesser_part, Time::Same),
    link(&["gpu_wait"], "sleep_poll", same_place, Time::Same),
    link(WAITS, "lock_contention", while_held, Time::Besides),
    link(
        &["slow_statement", "n_plus_one"],
        "pool_saturation",
        keeps_connections,
        Time::Besides,
    ),
    link(
        &["pool_saturation", "lock_contention", "database_locks"],
        "slow_statement",
        delays,
        Time::Same,
    ),
    link(ASKS, "slow_statement", delays_by_asking, Time::Same),
    link(
        &["slow_statement", "n_plus_one"],
        "target_missed",
        same_statement,
        Time::Same,
    ),
    link(
        &[
            "pool_saturation",
            "lock_contention",
            "database_locks",
            "cache_misses",
        ],
        "target_missed",
        delays,
        Time::Same,
    ),
    link(WAITS, "target_missed", delays, Time::Same),
    link(
        &["run_queue", "cpu_bound"],
        "target_missed",
        delays,
        Time::Same,
    ),
];

const fn link(
    causes: &'static [&'static str],
    effect: &'static str,
    holds: fn(&View, &Candidate, &Candidate) -> bool,
    time: Time,
) -> Link {
    Link {
        causes,
        effect,
        holds,
        time,
    }
}

/// The cause of each candidate, by its place, where another one is it. What others lose by a cause goes into
/// its bound.
pub fn link_all(view: &View, found: &mut [(&Rule, Candidate)]) -> Vec<Option<usize>> {
    let links: Vec<_> = (0..found.len())
        .map(|effect| cause_of(view, found, effect))
        .collect();
    // (time, share of a thread, whether in place of its own) of what follows, by cause.
    let mut follows: BTreeMap<usize, (u64, f64, bool)> = BTreeMap::new();
    for (effect, link) in links.iter().enumerate() {
        if let Some((cause, time)) = link.filter(|(_, time)| *time != Time::Same) {
            let effect = &found[effect].1;
            let sum = follows.entry(cause).or_default();
            sum.0 += effect.bound_ns;
            sum.1 = sum.1.max(effect.share);
            sum.2 |= time == Time::Instead;
        }
    }
    for (cause, (ns, share, instead)) in follows {
        let cause = &mut found[cause].1;
        cause.bound_ns = match instead {
            true => cause.bound_ns.max(ns),
            false => cause.bound_ns.saturating_add(ns),
        }
        .min(view.lifetime_ns());
        cause.share = cause.share.max(share);
        // A rule caps the impact of what nobody is known to wait for.
        cause.impact_cap = Level::High;
        let value = view.per_s(ns) as f64;
        cause
            .evidence
            .push(evidence(NUMBERS[0].0, value, "ns/s", 1));
    }
    links.into_iter().map(|link| Some(link?.0)).collect()
}

/// The largest cause by the first link that holds.
fn cause_of(view: &View, found: &[(&Rule, Candidate)], effect: usize) -> Option<(usize, Time)> {
    let (rule, candidate) = &found[effect];
    let links = LINKS.iter().filter(|link| link.effect == rule.name);
    links
        .filter_map(|link| {
            let causes = found.iter().enumerate().filter(|(at, (rule, cause))| {
                *at != effect
                    && link.causes.contains(&rule.name)
                    && (link.holds)(view, cause, candidate)
            });
            let largest = causes.max_by_key(|(_, (_, cause))| cause.bound_ns)?;
            Some((largest.0, link.time))
        })
        .next()
}

/// The findings worth most first, each with what follows from it right behind.
pub fn in_order(mut findings: Vec<Finding>) -> Vec<Finding> {
    findings.sort_by(|a, b| score(b).total_cmp(&score(a)));
    let there = |pid: u32, id: &str| findings.iter().any(|f| f.who.pid == pid && f.id == id);
    let mut effects: BTreeMap<(u32, String), Vec<Finding>> = BTreeMap::new();
    let mut roots = Vec::new();
    let linked: Vec<bool> = findings
        .iter()
        .map(|f| f.caused_by.as_ref().is_some_and(|id| there(f.who.pid, id)))
        .collect();
    for (finding, linked) in findings.into_iter().zip(linked) {
        match &finding.caused_by {
            Some(cause) if linked => {
                let key = (finding.who.pid, cause.clone());
                effects.entry(key).or_default().push(finding);
            }
            _ => roots.push(finding),
        }
    }
    // From the end: what is taken next is last.
    roots.reverse();
    let mut ordered = Vec::new();
    while let Some(finding) = roots.pop() {
        let key = (finding.who.pid, finding.id.clone());
        roots.extend(effects.remove(&key).into_iter().flatten().rev());
        ordered.push(finding);
    }
    ordered
}

/// Failing calls are calls.
fn same_call(_: &View, cause: &Candidate, effect: &Candidate) -> bool {
    let call = cause.key.split(": ").next();
    call == Some(effect.key.as_str()) && cause.bound_ns >= effect.bound_ns / 2
}

fn most_of(_: &View, cause: &Candidate, effect: &Candidate) -> bool {
    cause.bound_ns >= effect.bound_ns / 2
}

/// The largest place of the one is a place of the other.
fn same_place(_: &View, cause: &Candidate, effect: &Candidate) -> bool {
    let largest = effect.stacks.first();
    largest.is_some_and(|site| cause.stacks.iter().any(|s| s.user_stack == site.user_stack))
}

/// A thread that hardly gets a CPU looks busy because it wants one.
fn starved_by_quota(_: &View, cause: &Candidate, effect: &Candidate) -> bool {
    cause.key == "quota" && cause.bound_ns >= effect.bound_ns
}

/// A statement that locks rows, beside connections that keep theirs locked while they do nothing.
fn waits_for_rows(_: &View, cause: &Candidate, effect: &Candidate) -> bool {
    const LOCKING: &[&str] = &["UPDATE", "DELETE", "INSERT", "MERGE", "REPLACE", "LOCK"];
    let text = effect.subject.as_str();
    let locks = LOCKING.iter().any(|start| text.starts_with(start));
    same_server(cause, effect) && (locks || text.contains("FOR UPDATE"))
}

fn same_server(cause: &Candidate, effect: &Candidate) -> bool {
    cause.server.is_some() && cause.server == effect.server
}

/// What is asked elsewhere for want of it in the cache, and the look-ups themselves.
fn asked_for_it(_: &View, cause: &Candidate, effect: &Candidate) -> bool {
    let server = effect.server.as_ref();
    server.is_some_and(|server| cause.brings.contains(server))
        && cause.bound_ns >= effect.bound_ns / 2
}

/// The statement to begin with, of waits that are told as a whole because it seems to matter little.
fn lesser_part(view: &View, cause: &Candidate, effect: &Candidate) -> bool {
    same_server(cause, effect)
        && effect.impact(view) == Level::Low
        && effect.bound_ns >= cause.bound_ns / 2
}

/// What the holder of a lock does: by the stack, where the function that takes the lock is in it, or else
/// because the thread that lets go of it hardly does anything else.
fn while_held(view: &View, cause: &Candidate, effect: &Candidate) -> bool {
    let taken_in = |name: &str| {
        let frames = cause.stacks.iter().flat_map(|site| &site.user_stack);
        frames.map(|frame| frame.name.as_str()).any(|n| n == name)
    };
    taken_in(&effect.key)
        || effect.owner.as_ref().is_some_and(|owner| {
            let told = mostly_did(owner, cause);
            told.unwrap_or_else(|| mostly_does(view, owner.owner_tid, cause))
        })
}

/// Whether the holder of a lock mostly did what a candidate is about while others waited; `None` where what
/// it did is not known.
fn mostly_did(owner: &LockOwner, cause: &Candidate) -> Option<bool> {
    let known: u64 = owner.meanwhile.values().sum::<u64>() - class(&owner.meanwhile, "unknown");
    let kind = match (&cause.server, cause.stacks.first()) {
        (Some(_), _) => "net",
        (None, Some(site)) => match site.class.split('.').next() {
            Some("fault") | None => "other",
            Some(kind) => kind,
        },
        (None, None) => return None,
    };
    (known > 0).then(|| class(&owner.meanwhile, kind) >= known / 2)
}

/// Whether the time of a thread that is neither idle nor waiting for a lock is mostly of a candidate's kind.
fn mostly_does(view: &View, tid: u32, cause: &Candidate) -> bool {
    let Some(thread) = view.ledger.threads.iter().find(|t| t.tid == tid) else {
        return false;
    };
    let classes = &thread.classes;
    let of_kind = match (&cause.server, cause.stacks.first()) {
        (Some(_), _) => net(classes),
        (None, Some(site)) => class(classes, &site.class),
        (None, None) => 0,
    };
    let waits = ["disk", "fault", "timer", "runq"];
    let all: u64 = waits.iter().map(|name| class(classes, name)).sum();
    of_kind > 0 && of_kind >= (all + net(classes) + cpu(classes)) / 2
}

/// The connections of a pool are busy with it, for the better part.
fn keeps_connections(view: &View, cause: &Candidate, effect: &Candidate) -> bool {
    let rows = view.statements().filter(|row| row.role == "client");
    let of_server = rows.filter(|row| effect.server.as_ref() == Some(&row.peer));
    let busy_ns: u64 = of_server.map(super::statements::in_hand_ns).sum();
    same_server(cause, effect) && cause.bound_ns >= busy_ns / 2 && cause.impact(view) > Level::Low
}

/// Both are of one row of `statements`.
fn same_statement(_: &View, cause: &Candidate, effect: &Candidate) -> bool {
    cause.key == effect.key
}

/// Whoever answers waits so, and for no less than the answers are late.
fn delays(view: &View, cause: &Candidate, effect: &Candidate) -> bool {
    is_answering(effect)
        && !is_answering(cause)
        && cause.impact(view) > Level::Low
        && cause.bound_ns >= effect.bound_ns / 2
}

fn delays_by_asking(view: &View, cause: &Candidate, effect: &Candidate) -> bool {
    cause.server.is_some() && delays(view, cause, effect)
}

/// Whether it is about what the target is asked, not what it asks.
fn is_answering(candidate: &Candidate) -> bool {
    candidate.key.starts_with("server ")
}
