//! The file's own shape, table by table, and what becomes of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, de};

use super::{Config, nearest};
use crate::detect::{
    Budget, DELEGATES,
    settings::{RuleName, Rules, Settings, Share, Time, general},
    targets::{Limits, Single, Targets},
};

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    delegates: BTreeMap<Delegate, String>,
    findings: Findings,
    targets: Limits,
    target: Vec<Target>,
    budget: Budget,
    rules: Rules,
}

/// `[findings]`: the thresholds of all rules and which rules are off. Flattening would lose the check
/// for unknown keys.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Findings {
    min_gain: Share,
    resolved_after: u32,
    off: Vec<RuleName>,
}

impl Default for Findings {
    fn default() -> Self {
        Findings {
            min_gain: general::Thresholds::DEFAULT.min_gain,
            resolved_after: general::Thresholds::DEFAULT.resolved_after,
            off: Vec::new(),
        }
    }
}

/// A delegate that is known by this name.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Delegate(String);

impl<'de> Deserialize<'de> for Delegate {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let name = String::deserialize(from)?;
        if DELEGATES.contains(&name.as_str()) {
            return Ok(Delegate(name));
        }
        let near = nearest(&name, DELEGATES.iter().copied());
        let text = format!("no delegate is called `{name}`{near}");
        Err(de::Error::custom(text))
    }
}

/// `[[target]]`.
#[derive(Deserialize)]
#[serde(try_from = "RawTarget")]
struct Target(Single);

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawTarget {
    statement: Option<String>,
    route: Option<String>,
    p50: Option<Time>,
    p90: Option<Time>,
    p95: Option<Time>,
    p99: Option<Time>,
}

impl TryFrom<RawTarget> for Target {
    type Error = &'static str;

    fn try_from(raw: RawTarget) -> Result<Self, Self::Error> {
        let (p50, p90, p95, p99) = (raw.p50, raw.p90, raw.p95, raw.p99);
        let limits = Limits { p50, p90, p95, p99 };
        if limits == Limits::NONE {
            return Err("this target has no limit: set p50, p90, p95 or p99");
        }
        match (raw.statement, raw.route) {
            (Some(statement), None) => Ok(Target(Single::statement(&statement, limits))),
            (None, Some(route)) => Ok(Target(Single::route(&route, limits))),
            _ => Err("a target is for a `statement` or for a `route`: set one of the two"),
        }
    }
}

pub fn parse(text: &str) -> Result<Config, toml::de::Error> {
    let file: File = toml::from_str(text)?;
    let delegates = file.delegates.into_iter();
    Ok(Config {
        delegates: delegates.map(|(from, to)| (from.0, to)).collect(),
        settings: Settings {
            general: general::Thresholds {
                min_gain: file.findings.min_gain,
                resolved_after: file.findings.resolved_after,
            },
            off: file.findings.off,
            rules: file.rules,
            targets: Targets {
                all: file.targets,
                single: file.target.into_iter().map(|t| t.0).collect(),
            },
            budget: file.budget,
        },
    })
}
