//! Figures to text: medians of pairs, the table, and the targets beside what was measured.

use std::fmt::Write as _;

/// The same thing measured untraced, then traced, right after each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    pub untraced: f64,
    pub traced: f64,
}

/// All pairs of one load under one tracer.
#[derive(Clone, Debug)]
pub struct Row {
    pub load: &'static str,
    pub tracer: &'static str,
    /// Of the figures in `pairs`.
    pub unit: &'static str,
    pub pairs: Vec<Pair>,
    /// Events the agent says it lost, over all pairs.
    pub lost: u64,
}

impl Row {
    pub fn untraced(&self) -> f64 {
        median(self.pairs.iter().map(|pair| pair.untraced))
    }

    pub fn traced(&self) -> f64 {
        median(self.pairs.iter().map(|pair| pair.traced))
    }

    /// Median of the differences, each within its pair: a machine that slows down meanwhile
    /// changes both figures of a pair.
    pub fn added(&self) -> f64 {
        median(self.differences())
    }

    /// Median of traced / untraced.
    pub fn kept(&self) -> f64 {
        median(self.pairs.iter().map(|pair| pair.traced / pair.untraced))
    }

    fn differences(&self) -> impl Iterator<Item = f64> {
        self.pairs.iter().map(|pair| pair.traced - pair.untraced)
    }
}

/// One promise beside what was measured.
#[derive(Clone, Debug)]
pub struct Target {
    pub what: &'static str,
    /// `None` where it was not measured: the peer is not installed, or the load was left out.
    pub measured: Option<f64>,
    pub unit: &'static str,
    pub bound: Bound,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Target {
    fn verdict(&self) -> &'static str {
        let met = match (self.measured, self.bound) {
            (None, _) => return "not measured",
            (Some(measured), Bound::AtMost(bound)) => measured <= bound,
            (Some(measured), Bound::AtLeast(bound)) => measured >= bound,
        };
        if met { "met" } else { "MISSED" }
    }
}

/// Middle of the values, mean of the two middle ones of an even number; NaN of none.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[count / 2],
        count => (values[count / 2 - 1] + values[count / 2]) / 2.0,
    }
}

/// Both tables as text, or as Markdown.
pub fn render(rows: &[Row], targets: &[Target], markdown: bool) -> String {
    let mut text = table(
        &[
            "load",
            "traced by",
            "untraced",
            "traced",
            "added",
            "from .. to",
            "ratio",
            "unit",
        ],
        rows.iter().map(cells).collect(),
        markdown,
    );
    text.push('\n');
    text.push_str(&table(
        &["target", "measured", "bound", "unit", ""],
        targets.iter().map(target_cells).collect(),
        markdown,
    ));
    text
}

fn cells(row: &Row) -> Vec<String> {
    let lowest = row.differences().fold(f64::INFINITY, f64::min);
    let highest = row.differences().fold(f64::NEG_INFINITY, f64::max);
    vec![
        row.load.to_owned(),
        row.tracer.to_owned(),
        figure(row.untraced()),
        figure(row.traced()),
        figure(row.added()),
        format!("{} .. {}", figure(lowest), figure(highest)),
        format!("{:.3}", row.kept()),
        row.unit.to_owned(),
    ]
}

fn target_cells(target: &Target) -> Vec<String> {
    let bound = match target.bound {
        Bound::AtMost(bound) => format!("<= {bound}"),
        Bound::AtLeast(bound) => format!(">= {bound}"),
    };
    vec![
        target.what.to_owned(),
        target
            .measured
            .map_or_else(|| "-".to_owned(), |measured| format!("{measured:.3}")),
        bound,
        target.unit.to_owned(),
        target.verdict().to_owned(),
    ]
}

fn figure(value: f64) -> String {
    if value.abs() < 100.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
}

fn table(head: &[&str], rows: Vec<Vec<String>>, markdown: bool) -> String {
    let head: Vec<String> = head.iter().map(|&cell| cell.to_owned()).collect();
    let widths: Vec<usize> = (0..head.len())
        .map(|column| {
            let cells = rows.iter().chain([&head]);
            cells.map(|row| row[column].len()).max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    let mut line = |row: &[String]| {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        let _ = match markdown {
            true => writeln!(text, "| {} |", cells.join(" | ")),
            false => writeln!(text, "{}", cells.join("  ").trim_end()),
        };
    };
    line(&head);
    let rule: Vec<String> = widths.iter().map(|&width| "-".repeat(width)).collect();
    line(&rule);
    for row in &rows {
        line(row);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        let pair = |untraced, traced| Pair { untraced, traced };
        Row {
            load: "read",
            tracer: "nobody",
            unit: "ns",
            pairs: vec![pair(100.0, 150.0), pair(200.0, 260.0), pair(100.0, 110.0)],
            lost: 0,
        }
    }

    #[test]
    fn added_is_the_median_of_the_differences_within_pairs() {
        assert_eq!(row().added(), 50.0);
        assert_eq!(row().untraced(), 100.0);
        assert_eq!(row().traced(), 150.0);
        assert_eq!(row().kept(), 1.3);
    }

    #[test]
    fn the_median_of_an_even_number_is_between_the_two_middle_ones() {
        assert_eq!(median([4.0, 1.0, 2.0, 9.0].into_iter()), 3.0);
        assert!(median([].into_iter()).is_nan());
    }

    #[test]
    fn a_target_that_was_not_measured_is_not_met() {
        let target = |measured, bound| Target {
            what: "x",
            measured,
            unit: "",
            bound,
        };
        assert_eq!(target(None, Bound::AtMost(1.0)).verdict(), "not measured");
        assert_eq!(target(Some(1.0), Bound::AtMost(1.0)).verdict(), "met");
        assert_eq!(target(Some(1.1), Bound::AtMost(1.0)).verdict(), "MISSED");
        assert_eq!(target(Some(0.9), Bound::AtLeast(1.0)).verdict(), "MISSED");
        assert_eq!(
            target(Some(f64::NAN), Bound::AtMost(1.0)).verdict(),
            "MISSED"
        );
    }

    #[test]
    fn markdown_has_a_rule_below_its_head() {
        let text = render(&[row()], &[], true);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("| load | traced by |"), "{text}");
        assert!(lines[1].starts_with("| ---- | ---"), "{text}");
        assert!(lines[2].contains("| 10.0 .. 60.0 |"), "{text}");
    }
}
