//! Runs the rows of the gallery ([`crate::rows`]) under the agent and holds its findings against what the
//! programs counted themselves.

mod measure;
mod table;

use std::panic::{self, AssertUnwindSafe};

use serde_json::Value;

use crate::rows::row::{Health, Row, Servers, Worth};
use measure::{Measured, measure};
pub use table::table;

/// How far the bound may be from the gain, as a factor either way.
const FACTOR: f64 = 2.0;

/// What was found of a row.
pub struct Outcome {
    pub name: &'static str,
    pub unit: &'static str,
    pub worth: Worth,
    /// What a unit of work takes (nanoseconds, or bytes) the sick program and its twin.
    pub per_unit: (f64, f64),
    /// The findings of the sick program in the last window, in their order.
    pub sick: Vec<Found>,
    /// The findings of its twin in any window.
    pub healthy: Vec<Found>,
    /// Nanoseconds or bytes a second that the healthy twin did without, for the work of the sick one.
    pub gained_per_s: f64,
    /// What is not as it should be; empty of a row that is right.
    pub wrong: Vec<String>,
}

/// The part of a finding that rows are judged by.
#[derive(Clone, Debug)]
pub struct Found {
    pub category: String,
    pub delegate: String,
    pub impact: String,
    pub title: String,
    /// Whether it follows from another one.
    pub follows: bool,
    /// Nanoseconds or bytes a second.
    pub bound_per_s: f64,
}

impl Found {
    fn of(finding: &Value, worth: Worth) -> Found {
        let text = |name: &str| finding[name].as_str().unwrap_or_default().to_owned();
        Found {
            category: text("category"),
            delegate: text("delegate_to"),
            impact: text("impact"),
            title: text("title"),
            follows: finding["caused_by"].is_string(),
            bound_per_s: match worth {
                Worth::Time => finding["gain_bound_ns_per_s"].as_f64(),
                Worth::Memory => figure(finding, "growth"),
            }
            .unwrap_or(0.0),
        }
    }
}

fn figure(finding: &Value, name: &str) -> Option<f64> {
    let figures = finding["evidence"].as_array()?;
    figures.iter().find(|figure| figure["name"] == name)?["value"].as_f64()
}

impl Outcome {
    pub fn first(&self) -> Option<&Found> {
        self.sick.first()
    }

    /// The twin's finding of the highest impact.
    pub fn twins_worst(&self) -> Option<&Found> {
        let level = |found: &&Found| {
            ["low", "medium", "high"]
                .iter()
                .position(|l| *l == found.impact)
        };
        self.healthy.iter().rev().max_by_key(level)
    }

    /// The bound by the gain.
    pub fn ratio(&self) -> Option<f64> {
        let bound = self.first()?.bound_per_s;
        (self.gained_per_s > 0.0).then(|| bound / self.gained_per_s)
    }
}

/// Runs a row, the sick program and its twin.
pub fn run(row: &Row, servers: &mut Servers) -> Outcome {
    let both = panic::catch_unwind(AssertUnwindSafe(|| {
        let sick = measure(row, Health::Sick, servers)?;
        let healthy = measure(row, Health::Healthy, servers)?;
        anyhow::Ok((sick, healthy))
    }));
    let failed = |what: String| Outcome {
        name: row.name,
        unit: row.unit,
        worth: row.worth,
        per_unit: (0.0, 0.0),
        sick: Vec::new(),
        healthy: Vec::new(),
        gained_per_s: 0.0,
        wrong: vec![what],
    };
    match both {
        Ok(Ok((sick, healthy))) => judge(row, &sick, &healthy),
        Ok(Err(e)) => failed(format!("{e:#}")),
        Err(panic) => failed(said(panic.as_ref())),
    }
}

/// What a panic said.
fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    text.unwrap_or_else(|| "a panic without words".to_owned())
}

fn judge(row: &Row, sick: &Measured, healthy: &Measured) -> Outcome {
    let found = |finding: &Value| Found::of(finding, row.worth);
    let mut outcome = Outcome {
        name: row.name,
        unit: row.unit,
        worth: row.worth,
        per_unit: (sick.per_unit(), healthy.per_unit()),
        sick: sick.findings.iter().map(found).collect(),
        healthy: healthy
            .earlier
            .iter()
            .chain(&healthy.findings)
            .map(found)
            .collect(),
        gained_per_s: (sick.per_unit() - healthy.per_unit()) * sick.units_per_s(),
        wrong: Vec::new(),
    };
    let mut wrong = Vec::new();
    match outcome.first() {
        None => wrong.push(format!("nothing found, not {}", row.category)),
        Some(found) if found.category != row.category => {
            wrong.push(format!("{} first, not {}", found.category, row.category));
        }
        Some(found) if found.delegate != row.delegate => {
            wrong.push(format!("for {}, not {}", found.delegate, row.delegate));
        }
        Some(found) if !found.title.contains(row.about) => {
            wrong.push(format!("nothing of {:?} in {:?}", row.about, found.title));
        }
        Some(_) => {}
    }
    match outcome.ratio() {
        Some(ratio) if (1.0 / FACTOR..=FACTOR).contains(&ratio) => {}
        Some(ratio) => wrong.push(format!("the bound is {ratio:.2} times the gain")),
        None => wrong.push("no bound to compare with the gain".to_owned()),
    }
    if let Some(found) = outcome.twins_worst().filter(|found| found.impact != "low") {
        wrong.push(format!("the twin has {} {}", found.impact, found.category));
    }
    outcome.wrong = wrong;
    outcome
}
