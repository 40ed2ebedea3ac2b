//! A hundred calls a millisecond, however long they take.

use std::io;
use std::time::{Duration, Instant};

use super::gate::{Gate, Options, join, thread};

const BATCH: u64 = 100;

pub fn run(options: &Options, gate: &Gate) -> io::Result<String> {
    gate.open()?;
    let deadline = options.deadline();
    let calls = join(thread("paced-calls", move || call_at_a_rate(deadline))?)?;
    Ok(format!("{{\"getppid\":{calls}}}"))
}

#[inline(never)]
fn call_at_a_rate(deadline: Instant) -> u64 {
    let (began, mut calls) = (Instant::now(), 0);
    while Instant::now() < deadline {
        for _ in 0..BATCH {
            // SAFETY: takes nothing, cannot fail.
            unsafe { libc::syscall(libc::SYS_getppid) };
        }
        calls += BATCH;
        let due = began + Duration::from_millis(calls / BATCH);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    calls
}
