//! The gallery as a Markdown table.

use std::fmt::Write;

use super::{Found, Outcome};

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
            found(|f| ms(f.bound_ns_per_s)),
            ms(outcome.gained_ns_per_s),
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

fn ms(ns_per_s: f64) -> String {
    format!("{:.0} ms/s", ns_per_s / 1e6)
}
