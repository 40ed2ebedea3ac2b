//! Measures what the syscalls signal adds to a call of a traced thread: on a thread of our own, with
//! the two hooks on and off.

use std::time::Instant;

use anyhow::{Context as _, Result};

use super::{monotonic_ns, seeding::seeded_state};
use crate::{drain::slots, kernel::Kernel};

/// Calls timed together, and how often: the least of them had no interruption. 2 × 40 × 50 calls
/// take under 2 ms.
const CALLS: u32 = 50;
const ROUNDS: u32 = 40;

/// Nanoseconds added to each call, entry and exit together. With warm caches, so it is the least a
/// call pays.
///
/// Runs before the scheduler's hooks are attached, so that nothing of the thread used is told but
/// its calls, which go to the slot that is nobody's.
///
/// # Errors
/// The kernel refuses the hooks.
pub(super) fn measure(kernel: &mut Kernel) -> Result<u64> {
    let plain = ns_per_call();
    let pid = std::process::id();
    // SAFETY: takes nothing, cannot fail.
    let tid = unsafe { libc::gettid() } as u32;
    let state = seeded_state(pid, tid, slots::SHARED, monotonic_ns());
    kernel
        .maps
        .add_thread(&state)
        .context("adding the agent's thread")?;
    let hooked = kernel.set_syscalls(true).map(|()| ns_per_call());
    let off = kernel.set_syscalls(false);
    kernel
        .maps
        .remove_thread(tid)
        .context("removing the agent's thread")?;
    off?;
    Ok(hooked?.saturating_sub(plain))
}

fn ns_per_call() -> u64 {
    let round = |_| {
        let start = Instant::now();
        for _ in 0..CALLS {
            // SAFETY: takes nothing, cannot fail.
            unsafe { libc::syscall(libc::SYS_getppid) };
        }
        start.elapsed().as_nanos() as u64
    };
    let least = (0..ROUNDS).map(round).min().unwrap_or(0);
    least / u64::from(CALLS)
}
