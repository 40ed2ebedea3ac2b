//! Bottlenecks: rules over one window of one process, pure functions of the report.
//!
//! A rule is one file here and one entry in [`RULES`]. It proposes [`Candidate`]s; what is the same
//! for all of them happens here: the floor (`min_gain`), the impact, the stable id, the order, and
//! what became of findings from window to window.

mod cache_misses;
mod chatty;
mod connection_churn;
mod cpu_bound;
mod disk_wait;
mod error_storm;
pub mod explain;
mod idle_in_transaction;
mod lock_contention;
mod lock_holder;
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

use crate::hash::fnv1a;
use crate::model::{Evidence, Finding, Level, LockOwner, Site, State, WindowReport};
use explain::Explain;
use settings::Settings;
use view::View;

pub(crate) use view::{hot_function, is_own};

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

/// Windows shorter than this are not judged: a burst in the last few milliseconds of a trace would
/// read as a saturated process.
const MIN_WINDOW_NS: u64 = 50_000_000;
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
    effort: Level,
    confidence: f64,
    /// Keeps a finding that is there already, and begins none.
    only_if_known: bool,
    evidence: Vec<Evidence>,
    recommendations: Vec<String>,
    stacks: Vec<Site>,
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
            effort: Level::Medium,
            confidence: 0.5,
            only_if_known: false,
            evidence: Vec::new(),
            recommendations: Vec::new(),
            stacks: Vec::new(),
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

/// What a fix is worth: gain × confidence ÷ effort. Findings are ordered by it.
pub fn score(finding: &Finding) -> f64 {
    let effort = match finding.effort {
        Level::Low => 1.0,
        Level::Medium => 2.0,
        Level::High => 4.0,
    };
    finding.gain_bound_ns_per_s as f64 * finding.confidence / effort
}

/// A finding of an earlier window.
struct Known {
    finding: Finding,
    absent: u32,
}

/// Applies the rules, window by window.
#[derive(Default)]
pub struct Detector {
    delegates: BTreeMap<String, String>,
    settings: Settings,
    known: BTreeMap<(u32, String), Known>,
}

impl Detector {
    pub fn new() -> Self {
        Detector::default()
    }

    /// Findings for a delegate go to somebody else, by name.
    pub fn with_delegates(delegates: impl IntoIterator<Item = (String, String)>) -> Self {
        Detector {
            delegates: delegates.into_iter().collect(),
            ..Detector::default()
        }
    }

    /// With thresholds and targets of the user's.
    pub fn with_settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// The findings of a window, those worth most first, then the resolved ones.
    pub fn window(&mut self, report: &WindowReport) -> Vec<Finding> {
        if report.coverage.window.length_ns() < MIN_WINDOW_NS {
            return Vec::new();
        }
        let mut findings = BTreeMap::new();
        for process in &report.processes {
            let view = View::with(process, &self.settings);
            let off = |rule: &&Rule| self.settings.off.iter().any(|off| off.0 == rule.name);
            let found = RULES
                .iter()
                .filter(|rule| !off(rule))
                .flat_map(|rule| (rule.find)(&view).into_iter().map(move |c| (rule, c)));
            for (rule, candidate) in without_what_others_explain(&view, found.collect()) {
                self.keep(rule, &view, candidate, &mut findings);
            }
        }
        let resolved = self.age(report, &findings);
        let mut findings: Vec<Finding> = findings.into_values().collect();
        findings.sort_by(|a, b| score(b).total_cmp(&score(a)));
        findings.extend(resolved);
        findings
    }

    /// Turns a candidate above the floor into a finding. Of two with one id the larger stays.
    fn keep(
        &self,
        rule: &Rule,
        view: &View,
        candidate: Candidate,
        findings: &mut BTreeMap<(u32, String), Finding>,
    ) {
        let wall_ns = view.wall_ns();
        let least_ns = self.settings.general.min_gain.0 * wall_ns as f64;
        let pays = candidate.bound_ns > 0 && candidate.bound_ns as f64 >= least_ns;
        if wall_ns == 0 || !pays && candidate.always.is_none() {
            return;
        }
        let who = view.who().clone();
        let hash = fnv1a(&[rule.name, &who.comm, &candidate.key]);
        let key = (who.pid, format!("{hash:016x}"));
        let known = self.known.get(&key);
        if candidate.only_if_known && known.is_none() {
            return;
        }
        let bound = view.per_s(candidate.bound_ns);
        if findings
            .get(&key)
            .is_some_and(|other| other.gain_bound_ns_per_s >= bound)
        {
            return;
        }
        let finding = Finding {
            stamp: view.ledger.stamp.clone(),
            window: view.ledger.window,
            id: key.1.clone(),
            category: rule.name.to_owned(),
            area: candidate.area.to_owned(),
            impact: candidate.impact(view),
            effort: candidate.effort,
            confidence: (candidate.confidence * 100.0).round().clamp(0.0, 100.0) / 100.0,
            delegate_to: self
                .delegates
                .get(candidate.delegate)
                .map_or(candidate.delegate, String::as_str)
                .to_owned(),
            subject: candidate.subject,
            title: candidate.title,
            evidence: candidate.evidence,
            gain_bound_ns_per_s: bound,
            recommendations: candidate.recommendations,
            state: match known {
                Some(_) => State::Ongoing,
                None => State::New,
            },
            since: known
                .map_or(&view.ledger.stamp.ts, |k| &k.finding.since)
                .clone(),
            stacks: candidate.stacks,
            owner: candidate.owner,
            who,
        };
        findings.insert(key, finding);
    }

    /// Remembers this window's findings and returns those that have been gone long enough.
    fn age(
        &mut self,
        report: &WindowReport,
        findings: &BTreeMap<(u32, String), Finding>,
    ) -> Vec<Finding> {
        let resolved_after = self.settings.general.resolved_after;
        let mut resolved = Vec::new();
        self.known.retain(|key, known| {
            if findings.contains_key(key) {
                return true;
            }
            known.absent += 1;
            if known.absent < resolved_after {
                return true;
            }
            let mut finding = known.finding.clone();
            finding.stamp = report.coverage.stamp.clone();
            finding.window = report.coverage.window;
            finding.state = State::Resolved;
            // Lines speak of their own window, and in this one there is nothing to gain.
            finding.gain_bound_ns_per_s = 0;
            let windows = u64::from(known.absent);
            finding.evidence = vec![evidence(
                "windows_without_it",
                windows as f64,
                "count",
                windows,
            )];
            finding.stacks.clear();
            finding.owner = None;
            resolved.push(finding);
            false
        });
        for (key, finding) in findings {
            // The stacks are large, and a resolved finding has none.
            let mut finding = finding.clone();
            finding.stacks.clear();
            finding.owner = None;
            self.known.insert(key.clone(), Known { finding, absent: 0 });
        }
        resolved
    }
}

#[cfg(test)]
mod tests;
