//! Bottlenecks somebody can act on.

use serde::Serialize;

use super::{Growth, LockOwner, Process, Site, Stamp, Window};

/// Low, medium, high.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Low,
    Medium,
    High,
}

/// Whether a finding is in this window for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    New,
    Ongoing,
    Resolved,
}

/// A bottleneck somebody can act on.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    #[serde(flatten)]
    pub stamp: Stamp,
    #[serde(flatten)]
    pub who: Process,
    pub window: Window,
    /// Stable over windows and runs: category, program and subject hashed.
    pub id: String,
    /// The rule: `lock_contention`, `disk_wait`, ...
    pub category: String,
    /// `caching`, `database_performance`, `api_response`, `system_bottleneck`, `ml_performance`.
    pub area: String,
    pub impact: Level,
    pub effort: Level,
    /// 0 to 1.
    pub confidence: f64,
    pub delegate_to: String,
    /// What it is about: a lock, a peer, a device, a function.
    pub subject: String,
    pub title: String,
    pub evidence: Vec<Evidence>,
    /// Upper bound of the thread time a fix saves, per second of wall time.
    pub gain_bound_ns_per_s: u64,
    /// In order.
    pub recommendations: Vec<String>,
    pub state: State,
    /// `ts` of the window it was first found in.
    pub since: String,
    /// Id of the finding of the same process and window that this one follows from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caused_by: Option<String>,
    /// Stacks the finding rests on, largest first.
    pub stacks: Vec<Site>,
    /// Memory that grew: who touched it first, largest first.
    pub growth: Vec<Growth>,
    /// When what it takes is used up, at the rate it was used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exhausted_in_ns: Option<u64>,
    /// Of a lock: who held it longest while others waited, what it did meanwhile, and where.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<LockOwner>,
}

/// A measured figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evidence {
    pub name: String,
    pub value: f64,
    /// `ns`, `ns/s`, `bytes`, `bytes/s`, `count`, `1/s`, `ratio`.
    pub unit: String,
    /// Observations behind it.
    pub samples: u64,
}
