//! Applies the rules, window by window: what becomes of candidates, and of findings.

use std::collections::BTreeMap;

use super::settings::Settings;
use super::view::View;
use super::{Candidate, RULES, Rule, causes, evidence, without_what_others_explain};
use crate::hash::fnv1a;
use crate::model::{Finding, State, WindowReport};

/// Windows shorter than this are not judged: a burst in the last few milliseconds of a trace would
/// read as a saturated process.
const MIN_WINDOW_NS: u64 = 50_000_000;
/// Part of the floor down to which a finding that is there is kept: what is near the floor would come and
/// go with every window.
const KEPT_ABOVE: f64 = 0.5;

/// The stable id: category, program, and what the rule says is the same in the next run.
fn id(rule: &Rule, view: &View, key: &str) -> String {
    format!("{:016x}", fnv1a(&[rule.name, &view.who().comm, key]))
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
            let mut found = without_what_others_explain(&view, found.collect());
            found.retain(|(rule, candidate)| self.is_told(rule, &view, candidate));
            let causes = causes::link_all(&view, &mut found);
            let ids: Vec<String> = found
                .iter()
                .map(|(rule, c)| id(rule, &view, &c.key))
                .collect();
            for ((rule, candidate), cause) in found.into_iter().zip(causes) {
                let caused_by = cause.map(|at| ids[at].clone());
                self.keep(rule, &view, candidate, caused_by, &mut findings);
            }
        }
        let resolved = self.age(report, &findings);
        let mut findings = causes::in_order(findings.into_values().collect());
        findings.extend(resolved);
        findings
    }

    fn known(&self, rule: &Rule, view: &View, candidate: &Candidate) -> Option<&Known> {
        let key = (view.who().pid, id(rule, view, &candidate.key));
        self.known.get(&key)
    }

    /// Whether a candidate is above the floor, and may begin where it is not there yet.
    fn is_told(&self, rule: &Rule, view: &View, candidate: &Candidate) -> bool {
        let known = self.known(rule, view, candidate).is_some();
        let wall_ns = view.wall_ns();
        let floor = self.settings.general.min_gain.0 * if known { KEPT_ABOVE } else { 1.0 };
        let pays = candidate.bound_ns > 0 && candidate.bound_ns as f64 >= floor * wall_ns as f64;
        wall_ns > 0 && (pays || candidate.always.is_some()) && (known || !candidate.only_if_known)
    }

    /// Turns a candidate into a finding. Of two with one id the larger stays.
    fn keep(
        &self,
        rule: &Rule,
        view: &View,
        candidate: Candidate,
        caused_by: Option<String>,
        findings: &mut BTreeMap<(u32, String), Finding>,
    ) {
        let who = view.who().clone();
        let key = (who.pid, id(rule, view, &candidate.key));
        let known = self.known.get(&key);
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
            caused_by,
            stacks: candidate.stacks,
            owner: candidate.owner,
            growth: candidate.growth,
            exhausted_in_ns: candidate.exhausted_in_ns,
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
            finding.caused_by = None;
            let windows = u64::from(known.absent);
            finding.evidence = vec![evidence(
                "windows_without_it",
                windows as f64,
                "count",
                windows,
            )];
            finding.stacks.clear();
            finding.owner = None;
            finding.growth.clear();
            finding.exhausted_in_ns = None;
            resolved.push(finding);
            false
        });
        for (key, finding) in findings {
            // The stacks are large, and a resolved finding has none.
            let mut finding = finding.clone();
            finding.stacks.clear();
            finding.owner = None;
            finding.growth.clear();
            self.known.insert(key.clone(), Known { finding, absent: 0 });
        }
        resolved
    }
}
