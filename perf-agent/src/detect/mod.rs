//! Bottlenecks: rules over one window of one process, pure functions of the report.
//!
//! A rule is one file here and one entry in [`RULES`]. It proposes [`Candidate`]s; what is the same
//! for all of them happens here: the floor (`min_gain`), the impact, the stable id, the order, and
//! what became of findings from window to window; in [`causes`], which of them follow from others.

mod budget_exceeded;
mod cache_misses;
mod causes;
mod chatty;
mod connection_churn;
mod cpu_bound;
mod database_locks;
mod detector;
mod disk_wait;
mod error_storm;
pub mod explain;
mod gil;
mod gpu_wait;
mod idle_in_transaction;
mod lock_contention;
mod lock_holder;
mod memory_growth;
mod n_plus_one;
mod network_wait;
mod page_faults;
mod pool_saturation;
mod retransmits;
mod run_queue;
mod services;
pub mod settings;
mod sleep_poll;
mod slow_statement;
mod statement_errors;
mod statements;
mod syscall_storm;
mod target_missed;
pub mod targets;
mod view;

use std::collections::BTreeMap;

use crate::model::{Evidence, Finding, Growth, Level, LockOwner, Site};
use explain::Explain;
use view::View;

pub use budget_exceeded::Budget;
pub use detector::Detector;
pub(crate) use view::{hot_function, in_fault, is_own, label};

/// A rule: looks at one process in one window.
pub struct Rule {
    /// The finding's `category`.
    pub name: &'static str,
    find: fn(&View) -> Vec<Candidate>,
    /// What `perf-agent explain` says of it.
    pub explain: Explain,
}

/// Every rule.
pub const RULES: &[Rule] = &[
    Rule {
        name: "cpu_bound",
        find: cpu_bound::find,
        explain: cpu_bound::EXPLAIN,
    },
    Rule {
        name: "run_queue",
        find: run_queue::find,
        explain: run_queue::EXPLAIN,
    },
    Rule {
        name: "lock_contention",
        find: lock_contention::find,
        explain: lock_contention::EXPLAIN,
    },
    Rule {
        name: "database_locks",
        find: database_locks::find,
        explain: database_locks::EXPLAIN,
    },
    Rule {
        name: "disk_wait",
        find: disk_wait::find,
        explain: disk_wait::EXPLAIN,
    },
    Rule {
        name: "page_faults",
        find: page_faults::find,
        explain: page_faults::EXPLAIN,
    },
    Rule {
        name: "gpu_wait",
        find: gpu_wait::find,
        explain: gpu_wait::EXPLAIN,
    },
    Rule {
        name: "memory_growth",
        find: memory_growth::find,
        explain: memory_growth::EXPLAIN,
    },
    Rule {
        name: "network_wait",
        find: network_wait::find,
        explain: network_wait::EXPLAIN,
    },
    Rule {
        name: "syscall_storm",
        find: syscall_storm::find,
        explain: syscall_storm::EXPLAIN,
    },
    Rule {
        name: "error_storm",
        find: error_storm::find,
        explain: error_storm::EXPLAIN,
    },
    Rule {
        name: "sleep_poll",
        find: sleep_poll::find,
        explain: sleep_poll::EXPLAIN,
    },
    Rule {
        name: "target_missed",
        find: target_missed::find,
        explain: target_missed::EXPLAIN,
    },
    Rule {
        name: "budget_exceeded",
        find: budget_exceeded::find,
        explain: budget_exceeded::EXPLAIN,
    },
    Rule {
        name: "slow_statement",
        find: slow_statement::find,
        explain: slow_statement::EXPLAIN,
    },
    Rule {
        name: "n_plus_one",
        find: n_plus_one::find,
        explain: n_plus_one::EXPLAIN,
    },
    Rule {
        name: "chatty",
        find: chatty::find,
        explain: chatty::EXPLAIN,
    },
    Rule {
        name: "idle_in_transaction",
        find: idle_in_transaction::find,
        explain: idle_in_transaction::EXPLAIN,
    },
    Rule {
        name: "connection_churn",
        find: connection_churn::find,
        explain: connection_churn::EXPLAIN,
    },
    Rule {
        name: "pool_saturation",
        find: pool_saturation::find,
        explain: pool_saturation::EXPLAIN,
    },
    Rule {
        name: "statement_errors",
        find: statement_errors::find,
        explain: statement_errors::EXPLAIN,
    },
    Rule {
        name: "cache_misses",
        find: cache_misses::find,
        explain: cache_misses::EXPLAIN,
    },
    Rule {
        name: "retransmits",
        find: retransmits::find,
        explain: retransmits::EXPLAIN,
    },
];

/// Who acts on a finding by default.
pub const PERFORMANCE_ENGINEER: &str = "performance-engineer";
pub const DATABASE_SPECIALIST: &str = "database-specialist";
/// All of them.
pub const DELEGATES: &[&str] = &[PERFORMANCE_ENGINEER, DATABASE_SPECIALIST, "ml-orchestrator"];

/// Stacks shown with a finding.
const MAX_STACKS: usize = 3;

/// What a rule proposes.
struct Candidate {
    area: &'static str,
    delegate: &'static str,
    /// What the id is made of besides category and program: the part of the subject that is the
    /// same in the next run (a function, not an address).
    key: String,
    subject: String,
    title: String,
    /// Upper bound of the thread time in the window that a fix saves.
    bound_ns: u64,
    /// Share of the time of the thread it hits most (see [`View::share_of`]): what the impact
    /// comes from.
    share: f64,
    /// The impact is at most this, where the rule knows why it cannot matter more.
    impact_cap: Level,
    /// Told even below the floor, with at least this impact: what it is worth is not time of the
    /// target's threads, or the user asked to be told.
    always: Option<Level>,
    /// The peer whose waits it explains.
    peer: Option<String>,
    /// The peer that the target asks, of what is said about asking it.
    server: Option<String>,
    /// Peers that are asked because of it.
    brings: Vec<String>,
    effort: Level,
    confidence: f64,
    /// Keeps a finding that is there already, and begins none.
    only_if_known: bool,
    evidence: Vec<Evidence>,
    recommendations: Vec<String>,
    stacks: Vec<Site>,
    growth: Vec<Growth>,
    exhausted_in_ns: Option<u64>,
    /// Of a lock: the thread that held it longest.
    owner: Option<LockOwner>,
}

impl Candidate {
    /// The defaults of most rules: the system, the performance engineer, medium effort.
    fn new(key: impl Into<String>, bound_ns: u64, share: f64) -> Self {
        let key = key.into();
        Candidate {
            area: "system_bottleneck",
            delegate: PERFORMANCE_ENGINEER,
            subject: key.clone(),
            key,
            title: String::new(),
            bound_ns,
            share,
            impact_cap: Level::High,
            always: None,
            peer: None,
            server: None,
            brings: Vec::new(),
            effort: Level::Medium,
            confidence: 0.5,
            only_if_known: false,
            evidence: Vec::new(),
            recommendations: Vec::new(),
            stacks: Vec::new(),
            growth: Vec::new(),
            exhausted_in_ns: None,
            owner: None,
        }
    }

    fn impact(&self, view: &View) -> Level {
        let (wall_ns, lifetime_ns) = (view.wall_ns(), view.lifetime_ns());
        let of_time = impact(self.bound_ns, wall_ns, lifetime_ns, self.share);
        self.always
            .map_or(of_time, |least| of_time.max(least))
            .min(self.impact_cap)
    }
}

/// One cause is one finding: drops the waits for a peer where rules that look at what was said to it
/// explain at least half of them, unless they all say that it matters little and the waits do not.
fn without_what_others_explain<'a>(
    view: &View,
    mut found: Vec<(&'a Rule, Candidate)>,
) -> Vec<(&'a Rule, Candidate)> {
    let mut explained: BTreeMap<String, (u64, Level)> = BTreeMap::new();
    for (rule, candidate) in &found {
        if let (Some(peer), true) = (&candidate.peer, rule.name != "network_wait") {
            let (bound_ns, level) = explained.entry(peer.clone()).or_insert((0, Level::Low));
            *bound_ns += candidate.bound_ns;
            *level = candidate.impact(view).max(*level);
        }
    }
    found.retain(|(rule, candidate)| {
        let peer = candidate
            .peer
            .as_ref()
            .filter(|_| rule.name == "network_wait");
        peer.and_then(|peer| explained.get(peer))
            .is_none_or(|(bound_ns, level)| {
                let lesser = *level == Level::Low && candidate.impact(view) > Level::Low;
                *bound_ns < candidate.bound_ns / 2 || lesser
            })
    });
    found
}

/// A figure of evidence.
fn evidence(name: &str, value: f64, unit: &str, samples: u64) -> Evidence {
    Evidence {
        name: name.to_owned(),
        value: if value.is_finite() { value } else { 0.0 },
        unit: unit.to_owned(),
        samples,
    }
}

/// The largest sites, copied into a finding.
fn top_stacks<'a>(sites: impl IntoIterator<Item = &'a Site>) -> Vec<Site> {
    let mut sites: Vec<&Site> = sites.into_iter().collect();
    sites.sort_by_key(|b| std::cmp::Reverse(b.sum_ns));
    sites.into_iter().take(MAX_STACKS).cloned().collect()
}

/// How much a finding matters.
///
/// High: a thread spends 40 % or more of its time so, or the process loses a whole core and a
/// quarter of its thread time. Medium: 15 %, or a core and a tenth. Both only above 5 % (high: 10 %)
/// of wall time, so that one short-lived thread does not raise an alarm. Everything else that
/// passes the floor is low: a healthy server waits a little for all kinds of things.
fn impact(bound_ns: u64, wall_ns: u64, lifetime_ns: u64, share: f64) -> Level {
    let of_wall = bound_ns as f64 / wall_ns.max(1) as f64;
    let of_lifetime = bound_ns as f64 / lifetime_ns.max(1) as f64;
    if of_wall >= 0.10 && (share >= 0.40 || of_wall >= 1.0 && of_lifetime >= 0.25) {
        Level::High
    } else if of_wall >= 0.05 && (share >= 0.15 || of_wall >= 1.0 && of_lifetime >= 0.10) {
        Level::Medium
    } else {
        Level::Low
    }
}

/// What is used up within this time comes before everything that only takes time.
const URGENT_NS: u64 = 3_600_000_000_000;

/// What a fix is worth: gain × confidence ÷ effort. Findings are ordered by it.
///
/// Of a process that is about to be killed for want of memory the time a fix saves says nothing, and
/// would put it last: what is used up within the hour goes first, the soonest before the others.
pub fn score(finding: &Finding) -> f64 {
    if let Some(left_ns) = finding.exhausted_in_ns.filter(|ns| *ns < URGENT_NS) {
        // More than any gain: a second a second of a million threads is 1e15.
        return 1e18 * (2.0 - left_ns as f64 / URGENT_NS as f64);
    }
    let effort = match finding.effort {
        Level::Low => 1.0,
        Level::Medium => 2.0,
        Level::High => 4.0,
    };
    finding.gain_bound_ns_per_s as f64 * finding.confidence / effort
}

#[cfg(test)]
mod tests;
