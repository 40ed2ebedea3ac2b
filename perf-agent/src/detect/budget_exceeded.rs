//! A process that takes more CPU time or memory than it was given: which, by how far, since when.
//!
//! Looked at are the ledger's CPU time of the window and the resident memory at its end, against
//! `[budget]`. Use between the part of a budget that counts as met and the budget itself keeps a finding
//! that is there and begins none.
//!
//! Bound: the CPU time over the budget; none for memory, which is worth something else than time.

use serde::Deserialize;

use super::settings::{Share, Size, thresholds};
use super::view::{View, cpu, hot_function, ratio};
use super::{Candidate, Explain, evidence, top_stacks};
use crate::model::Level;
use crate::sink::units;

thresholds! {
    /// A budget counts as kept again below this share of it.
    met_below: Share = Share(0.9),
}

/// What a process may take; no budget where none is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Budget {
    /// CPUs, on average over a window.
    pub cpu: Option<Cpus>,
    /// Resident memory at the end of a window.
    pub rss: Option<Size>,
}

impl Budget {
    pub const NONE: Budget = Budget {
        cpu: None,
        rss: None,
    };
}

/// A number of CPUs above zero.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "f64")]
pub struct Cpus(pub f64);

impl TryFrom<f64> for Cpus {
    type Error = String;

    fn try_from(cpus: f64) -> Result<Self, String> {
        match cpus.is_finite() && cpus > 0.0 {
            true => Ok(Cpus(cpus)),
            false => Err(format!("{cpus} is no number of CPUs: use one above 0")),
        }
    }
}

pub const EXPLAIN: Explain = Explain {
    looks_at: "CPU time and resident memory of the process, against the budget that was set",
    numbers: &[
        ("used", "CPUs in this window, or memory at its end"),
        ("budget", "what it was given"),
        ("times_the_budget", "the first by the second"),
    ],
    bound: "the CPU time over the budget; none for memory, which is worth something else \
               than time.",
    confidence: "0.9: both are measured.",
    next: "For CPU time see `profile` and the functions named here; for memory, what grows with time or \
           load. If the budget is too small for what the program has to do, raise it.",
};

pub fn find(view: &View) -> Vec<Candidate> {
    let budget = view.settings.budget;
    let of_cpu = budget.cpu.and_then(|cpus| cpu_time(view, cpus.0));
    let of_rss = budget
        .rss
        .zip(view.ledger.memory.as_ref())
        .and_then(|(most, held)| memory(view, held.resident_bytes, most.0));
    of_cpu.into_iter().chain(of_rss).collect()
}

/// What is the same for both; `None` where the budget is kept.
fn candidate(view: &View, what: &str, times: f64, bound_ns: u64) -> Option<Candidate> {
    if times < view.settings.rules.budget_exceeded.met_below.0 {
        return None;
    }
    let share = view.share_of(cpu) * ratio(bound_ns, cpu(&view.ledger.process.classes));
    let mut found = Candidate::new(format!("{what} budget"), bound_ns, share);
    found.only_if_known = times <= 1.0;
    found.always = Some(match times {
        t if t >= 2.0 => Level::High,
        t if t >= 1.25 => Level::Medium,
        _ => Level::Low,
    });
    found.confidence = 0.9;
    Some(found)
}

fn cpu_time(view: &View, budget: f64) -> Option<Candidate> {
    let used_ns = cpu(&view.ledger.process.classes);
    let used = ratio(used_ns, view.wall_ns());
    let given_ns = (budget * view.wall_ns() as f64) as u64;
    let over_ns = used_ns.saturating_sub(given_ns);
    let mut found = candidate(view, "CPU", used / budget, over_ns)?;
    let samples = view.ledger.cpu_split.user_samples + view.ledger.cpu_split.kernel_samples;
    found.title = format!(
        "{used:.2} CPUs used, {:.2} times the budget of {budget:.2}",
        used / budget
    );
    found.evidence = vec![
        evidence("used", used, "count", samples),
        evidence("budget", budget, "count", samples),
        evidence("times_the_budget", used / budget, "ratio", samples),
    ];
    let on_cpu = |class: &str| class.starts_with("cpu.");
    let hottest = view.sites(on_cpu).max_by_key(|site| site.sum_ns);
    found.recommendations = match hottest.and_then(hot_function) {
        Some(function) => vec![format!("Begin with `{function}`, which uses most of it")],
        None => vec!["See `perf-agent profile --mode cpu` for what uses it".to_owned()],
    };
    found.stacks = top_stacks(view.sites(on_cpu));
    Some(found)
}

fn memory(view: &View, bytes: u64, budget: u64) -> Option<Candidate> {
    let times = ratio(bytes, budget);
    let mut found = candidate(view, "memory", times, 0)?;
    found.title = format!(
        "{} resident, {times:.2} times the budget of {}",
        units::bytes(bytes),
        units::bytes(budget)
    );
    found.evidence = vec![
        evidence("used", bytes as f64, "bytes", 1),
        evidence("budget", budget as f64, "bytes", 1),
        evidence("times_the_budget", times, "ratio", 1),
    ];
    found.recommendations =
        vec!["See whether it grows from window to window, and with what".to_owned()];
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::settings::Settings;
    use crate::fixtures::{report, thread};
    use crate::model::Memory;

    const MS: u64 = 1_000_000;

    fn found(cpu_ms: u64, rss_mib: u64, budget: Budget) -> Vec<Candidate> {
        let classes = [("cpu.user", cpu_ms * MS), ("idle", (1_000 - cpu_ms) * MS)];
        let mut report = report("web", vec![thread(1, &classes)]);
        report.ledger.memory = Some(Box::new(Memory {
            resident_bytes: rss_mib << 20,
            ..Memory::default()
        }));
        let settings = Settings {
            budget,
            ..Settings::default()
        };
        find(&View::with(&report, &settings))
    }

    fn both() -> Budget {
        Budget {
            cpu: Some(Cpus(0.5)),
            rss: Some(Size(512 << 20)),
        }
    }

    #[test]
    fn nothing_is_said_without_a_budget_or_within_it() {
        assert_eq!(found(999, 4096, Budget::NONE).len(), 0);
        assert_eq!(found(440, 450, both()).len(), 0);
    }

    #[test]
    fn what_is_over_its_budget_says_how_far() {
        let found = found(830, 768, both());
        let titles: Vec<&str> = found.iter().map(|f| f.title.as_str()).collect();
        assert_eq!(
            titles,
            [
                "0.83 CPUs used, 1.66 times the budget of 0.50",
                "768 MiB resident, 1.50 times the budget of 512 MiB"
            ]
        );
        assert_eq!(found[0].bound_ns, 330 * MS);
        assert_eq!(
            (found[0].always, found[1].always),
            (Some(Level::Medium), Some(Level::Medium))
        );
        assert!(found.iter().all(|f| !f.only_if_known));
        let values: Vec<(&str, f64)> = found[1]
            .evidence
            .iter()
            .map(|e| (e.name.as_str(), e.value))
            .collect();
        assert_eq!(values[0], ("used", 805_306_368.0));
        assert_eq!(values[1], ("budget", 536_870_912.0));
        assert_eq!(values[2], ("times_the_budget", 1.5));
    }

    #[test]
    fn what_is_near_its_budget_keeps_a_finding_and_begins_none() {
        let found = found(460, 480, both());
        assert_eq!(found.len(), 2);
        assert!(found.iter().all(|f| f.only_if_known));
    }
}
