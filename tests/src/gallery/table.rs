//! The gallery as a Markdown table.

use std::fmt::Write;

use super::{Found, Outcome};
use crate::rows::row::Worth;

/// A table with a row for each outcome.
pub fn table(outcomes: &[Outcome]) -> String {
    let mut text = String::from(
        "| sick program | first finding | for | bound | the twin gains | ratio | the twin's worst |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for outcome in outcomes {
        let found = |cell: fn(&Found) -> String| outcome.first().map_or_else(none, cell);
        let ratio = outcome.ratio().map_or_else(none, |r| format!("{r:.2}"));
        // Writing to a String cannot fail.
        _ = writeln!(
            text,
            "| {}{} | {} | {} | {} | {} | {ratio} | {} |",
            outcome.name,
            if outcome.wrong.is_empty() {
                ""
            } else {
                " **wrong**"
            },
            found(|f| format!("`{}` ({})", f.category, f.impact)),
            found(|f| f.delegate.clone()),
            outcome
                .first()
                .map_or_else(none, |f| rate(outcome.worth, f.bound_per_s)),
            rate(outcome.worth, outcome.gained_per_s),
            outcome
                .twins_worst()
                .map_or_else(none, |f| format!("{} (`{}`)", f.impact, f.category)),
        );
    }
    text
}

fn none() -> String {
    "none".to_owned()
}

fn rate(worth: Worth, per_s: f64) -> String {
    match worth {
        Worth::Time => format!("{:.0} ms/s", per_s / 1e6),
        Worth::Memory => format!("{:.1} MiB/s", per_s / f64::from(1 << 20)),
    }
}
