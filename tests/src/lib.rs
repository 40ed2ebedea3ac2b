//! What the tests of the whole program stand on: the workloads they trace, the runner of the agent,
//! and the comparison of its ledger with what a workload measured itself.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

#[cfg(feature = "harness")]
pub mod agent;
#[cfg(feature = "harness")]
pub mod capture;
#[cfg(feature = "harness")]
pub mod gallery;
#[cfg(feature = "harness")]
pub mod proxy;
#[cfg(feature = "harness")]
#[path = "../workloads/mod.rs"]
pub mod rows;
#[cfg(feature = "harness")]
pub mod servers;
#[cfg(feature = "harness")]
pub mod traced;
pub mod truth;
pub mod workloads;

/// How long a test waits for what takes no time by itself.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Held by a test that traces: two traces at once would be in each other's way, and so would the
/// loads they watch. What else runs on the machine comes after the calling thread and the programs
/// it starts, where privilege allows that.
pub fn alone() -> MutexGuard<'static, ()> {
    const BEFORE_OTHERS: i32 = -10;
    static TRACING: Mutex<()> = Mutex::new(());
    let guard = TRACING.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: takes no pointers; 0 is the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, BEFORE_OTHERS) };
    guard
}
