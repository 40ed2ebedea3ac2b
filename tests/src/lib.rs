//! What the tests of the whole program stand on: the workloads they trace, the runner of the agent,
//! and the comparison of its ledger with what a workload measured itself.

use std::time::Duration;

#[cfg(feature = "harness")]
pub mod agent;
#[cfg(feature = "harness")]
pub mod traced;
pub mod truth;
pub mod workloads;

/// How long a test waits for what takes no time by itself.
pub const PATIENCE: Duration = Duration::from_secs(20);
