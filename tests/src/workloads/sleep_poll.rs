//! Looks every millisecond whether there is work. There never is.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::gate::{Gate, Options, join, thread};

static WORK_IS_HERE: AtomicBool = AtomicBool::new(false);

pub fn run(options: &Options, gate: &Gate) -> io::Result<String> {
    gate.open()?;
    let deadline = options.deadline();
    let polls = join(thread("sleep-poll", move || poll_for_work(deadline))?)?;
    Ok(format!("{{\"polls\":{polls}}}"))
}

#[inline(never)]
fn poll_for_work(deadline: Instant) -> u64 {
    let mut polls = 0;
    while Instant::now() < deadline && !WORK_IS_HERE.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(1));
        polls += 1;
    }
    polls
}
