//! Computes, in one function with a name.

use std::hint::black_box;
use std::io;
use std::time::Instant;

use super::gate::{Gate, Options, join, thread};

/// The function the time is spent in.
pub const HOT_FUNCTION: &str = "multiply_matrices_forever";

pub fn run(options: &Options, gate: &Gate) -> io::Result<String> {
    gate.open()?;
    let deadline = options.deadline();
    let rounds = join(thread("cpu", move || multiply_matrices_forever(deadline))?)?;
    Ok(format!("{{\"rounds\":{rounds}}}"))
}

/// Everything is done here and nothing called, so that the samples fall into this frame.
#[unsafe(no_mangle)]
#[inline(never)]
fn multiply_matrices_forever(deadline: Instant) -> u64 {
    let mut rounds = 0u64;
    let mut state = 1u64;
    loop {
        let mut i = 0u32;
        while i < 2_000_000 {
            state = (state ^ (state << 13)) ^ (state >> 7);
            state ^= state << 17;
            i += 1;
        }
        black_box(state);
        rounds += 1;
        if Instant::now() >= deadline {
            return rounds;
        }
    }
}
