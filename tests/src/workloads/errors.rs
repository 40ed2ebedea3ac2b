//! Opens a file that is not there, again and again.

use std::io;
use std::time::Instant;

use super::gate::{Gate, Options, join, thread};

pub fn run(options: &Options, gate: &Gate) -> io::Result<String> {
    gate.open()?;
    let deadline = options.deadline();
    let failed = join(thread("errors", move || open_missing_config(deadline))?)?;
    Ok(format!("{{\"errors\":{failed}}}"))
}

#[inline(never)]
fn open_missing_config(deadline: Instant) -> u64 {
    let mut failed = 0;
    while Instant::now() < deadline {
        for _ in 0..64 {
            // SAFETY: a path with its end; the call fails, so there is no fd to close.
            let fd = unsafe { libc::open(c"/nonexistent/config".as_ptr(), libc::O_RDONLY) };
            failed += u64::from(fd < 0);
        }
    }
    failed
}
