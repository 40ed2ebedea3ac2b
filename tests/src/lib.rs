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
pub mod http_client;
#[cfg(feature = "harness")]
pub mod loop_device;
#[cfg(feature = "harness")]
pub mod proxy;
#[cfg(feature = "harness")]
pub mod relay;
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
pub struct Alone {
    _tracing: MutexGuard<'static, ()>,
    /// The weight of this session's group of processes before.
    autogroup: Option<String>,
}

/// Where a session has a group of its own (`CONFIG_SCHED_AUTOGROUP`), niceness counts within it alone, and
/// this is the niceness of the group: sched(7).
const AUTOGROUP: &str = "/proc/self/autogroup";

/// Waits until no other test of this process traces.
pub fn alone() -> Alone {
    const BEFORE_OTHERS: i32 = -10;
    static TRACING: Mutex<()> = Mutex::new(());
    let tracing = TRACING.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: takes no pointers; 0 is the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, BEFORE_OTHERS) };
    let before = std::fs::read_to_string(AUTOGROUP).ok();
    let before = before.and_then(|text| Some(text.split_once(" nice ")?.1.trim().to_owned()));
    let raised = std::fs::write(AUTOGROUP, "-20").is_ok();
    Alone {
        _tracing: tracing,
        autogroup: before.filter(|_| raised),
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        if let Some(nice) = &self.autogroup {
            // Only to leave the session as it was.
            _ = std::fs::write(AUTOGROUP, nice);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// Cargo finds a test without an entry too, and runs it among those that need no privilege.
    #[test]
    fn every_test_says_what_it_needs() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let manifest = std::fs::read_to_string(here.join("Cargo.toml")).unwrap();
        let files = here.join("tests").read_dir().unwrap();
        let silent = files
            .map(|file| file.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
            .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
            .filter(|name| {
                let entry = format!("[[test]]\nname = \"{name}\"\nrequired-features = ");
                !manifest.contains(&entry)
            })
            .collect::<Vec<_>>();
        assert_eq!(silent, [""; 0], "without `required-features` in Cargo.toml");
    }
}
