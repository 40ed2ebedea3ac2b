//! A thousand children a second that end at once.

use std::io;
use std::time::{Duration, Instant};

use super::gate::{Gate, Options, check};

const PER_SECOND: u32 = 1_000;

/// Forks from the main thread and reaps each child before the next.
pub fn run(options: &Options, gate: &Gate) -> io::Result<String> {
    gate.open()?;
    let began = Instant::now();
    let deadline = options.deadline();
    let mut children = 0u32;
    while Instant::now() < deadline {
        // SAFETY: the child calls `_exit` only.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(0) };
        }
        check(pid)?;
        // SAFETY: a child of this process; its status is not wanted.
        check(unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) })?;
        children += 1;
        let due = began + Duration::from_secs(1) * children / PER_SECOND;
        if let Some(early) = due.checked_duration_since(Instant::now()) {
            std::thread::sleep(early);
        }
    }
    let took = began.elapsed().as_nanos();
    Ok(format!("{{\"children\":{children},\"took_ns\":{took}}}"))
}
