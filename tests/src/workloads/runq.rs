//! Four threads that compute on one CPU: three of them always wait for it.

use std::hint::black_box;
use std::io;
use std::time::Instant;

use super::gate::{Gate, Options, join, thread};
use super::migrate::{allowed_cpus, pin_to};

const THREADS: usize = 4;

pub fn run(options: &Options, gate: &Gate) -> io::Result<String> {
    let cpu = allowed_cpus()?[0];
    gate.open()?;
    let deadline = options.deadline();
    let threads = (0..THREADS)
        .map(|i| {
            thread(&format!("runq-{i}"), move || {
                pin_to(cpu)?;
                compute(deadline);
                io::Result::Ok(())
            })
        })
        .collect::<io::Result<Vec<_>>>()?;
    for t in threads {
        join(t)??;
    }
    Ok(format!("{{\"cpu\":{cpu},\"threads\":{THREADS}}}"))
}

#[inline(never)]
fn compute(deadline: Instant) {
    while Instant::now() < deadline {
        black_box((0..20_000u64).fold(1u64, |a, b| black_box(a.wrapping_mul(31) ^ b)));
    }
}
