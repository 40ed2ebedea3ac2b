//! The findings of a process.

use super::state::{FindingSum, ProcessSum, State};
use crate::model::{Evidence, Level};
use crate::sink::text::{Style, Text, plain};
use crate::sink::units;

/// Shown of those that follow from no other.
const FINDINGS: usize = 5;

/// The findings worth most, each with what follows from it below. Live without advice and evidence: the
/// ledger below must fit as well.
pub fn findings(text: &mut Text, process: &ProcessSum, state: &State, live: bool) {
    let ranked = process.ranked_findings();
    if ranked.is_empty() {
        return;
    }
    text.heading("Findings", "");
    let causes = ranked.iter().filter(|(_, depth)| *depth == 0).count();
    let mut number = 0;
    for (sum, depth) in &ranked {
        if *depth == 0 {
            number += 1;
        }
        if number > FINDINGS {
            break;
        }
        finding(text, sum, (number, *depth), state, live);
    }
    if causes > FINDINGS {
        let more = causes - FINDINGS;
        text.line([(Style::Dim, format!("    … and {more} smaller ones"))]);
    }
}

/// One of them: its number, or below its cause without one and without advice.
fn finding(
    text: &mut Text,
    sum: &FindingSum,
    (number, depth): (usize, usize),
    state: &State,
    live: bool,
) {
    let finding = &sum.peak;
    let indent = " ".repeat(3 * depth);
    let begins = match depth {
        0 => format!("    {number}. "),
        _ => format!("    {indent}└ "),
    };
    text.line([
        plain(begins),
        (
            level_style(finding.impact),
            level(finding.impact).to_owned(),
        ),
        plain(format!("  {}", finding.title)),
    ]);
    if depth > 0 {
        return;
    }
    let mut facts = vec![format!(
        "gain at most {}",
        units::duration_per_s(sum.bound_ns_per_s(state.wall_ns))
    )];
    if state.windows > 1 {
        facts.push(format!("in {} of {} windows", sum.windows, state.windows));
    }
    facts.push(format!("confidence {:.0} %", finding.confidence * 100.0));
    facts.push(format!("effort {}", level(finding.effort)));
    facts.push(format!("for {}", finding.delegate_to));
    text.line([plain(format!("       {}", facts.join(" · ")))]);
    if live {
        return;
    }
    if let Some(first) = finding.recommendations.first() {
        text.line([plain(format!("       → {first}"))]);
    }
    let evidence: Vec<String> = finding.evidence.iter().map(figure).collect();
    text.line([(Style::Dim, format!("       {}", evidence.join(" · ")))]);
}

fn level(level: Level) -> &'static str {
    match level {
        Level::Low => "low",
        Level::Medium => "medium",
        Level::High => "high",
    }
}

fn level_style(level: Level) -> Style {
    match level {
        Level::Low => Style::Plain,
        Level::Medium => Style::Yellow,
        Level::High => Style::Red,
    }
}

/// `mean wait 16.0 ms`.
fn figure(evidence: &Evidence) -> String {
    let value = evidence.value.max(0.0);
    let shown = match evidence.unit.as_str() {
        "ns" => units::duration(value as u64),
        "ns/s" => units::duration_per_s(value as u64),
        "bytes" => units::bytes(value as u64),
        "1/s" => format!("{}/s", units::rate(value)),
        "ratio" => format!("{value:.2}"),
        _ => units::count(value as u64),
    };
    format!("{} {shown}", evidence.name.replace('_', " "))
}
