//! A program that keeps what it allocates, and its twin that allocates as much and lets go of it.

use std::collections::VecDeque;
use std::hint::black_box;
use std::io;
use std::time::{Duration, Instant};

use super::gate::{Gate, Options, join, thread};

/// 16 MiB a second, in pieces that come from the heap's top.
const PIECE_BYTES: usize = 64 << 10;
const PIECES: usize = 4;
const PERIOD: Duration = Duration::from_nanos(15_625_000);
/// What the twin keeps: it is there after four seconds.
const MOST_PIECES: usize = 1024;

type Piece = Box<[u8]>;

/// Grows for as long as it runs.
pub fn grow(options: &Options, gate: &Gate) -> io::Result<String> {
    run(options, gate, usize::MAX)
}

/// Fills a cache of a fixed size, and replaces what is in it from then on.
pub fn steady(options: &Options, gate: &Gate) -> io::Result<String> {
    run(options, gate, MOST_PIECES)
}

fn run(options: &Options, gate: &Gate, most: usize) -> io::Result<String> {
    gate.open()?;
    let deadline = options.deadline();
    let (kept, sessions) = join(thread("memory", move || {
        let mut sessions = VecDeque::new();
        let mut kept = 0;
        let mut next = Instant::now();
        while next < deadline {
            for _ in 0..PIECES {
                keep_session(&mut sessions, most);
                kept += PIECE_BYTES;
            }
            black_box(render_answer(kept));
            next += PERIOD;
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        (kept, sessions)
    })?)?;
    let held = sessions.len() * PIECE_BYTES;
    // Kept until the process ends, which looks at it after this.
    std::mem::forget(sessions);
    Ok(format!(
        "{{\"allocated_bytes\":{kept},\"held_bytes\":{held}}}"
    ))
}

#[inline(never)]
fn keep_session(sessions: &mut VecDeque<Piece>, most: usize) {
    sessions.push_back(touched());
    if sessions.len() > most {
        sessions.pop_front();
    }
}

/// Memory that is given back at once, and is never the heap's top: small, so that the allocator has
/// it at hand the next time.
#[inline(never)]
fn render_answer(kept: usize) -> String {
    format!("{kept} bytes are kept")
}

#[inline(always)]
fn touched() -> Piece {
    vec![1u8; PIECE_BYTES].into_boxed_slice()
}

/// Sizes that [`allocations`] makes by function and kind, and how many of each: 64 MiB are kept and
/// 192 MiB are freed.
pub const KEPT_BYTES: usize = 4096;
pub const KEPT: usize = 16384;
pub const PASSING_BYTES: usize = 24 << 10;
pub const PASSING: usize = 8192;

/// Allocates known sums by two functions: what one makes is kept, what the other makes is freed.
pub fn allocations(_: &Options, gate: &Gate) -> io::Result<String> {
    gate.open()?;
    let mut kept = Vec::with_capacity(KEPT);
    for i in 0..KEPT {
        leak_records(&mut kept);
        if i % (KEPT / PASSING) == 0 {
            churn_buffers();
        }
    }
    std::mem::forget(kept);
    Ok(format!(
        "{{\"kept_bytes\":{},\"freed_bytes\":{}}}",
        KEPT * KEPT_BYTES,
        PASSING * PASSING_BYTES
    ))
}

#[inline(never)]
fn leak_records(kept: &mut Vec<Vec<u8>>) {
    kept.push(black_box(Vec::with_capacity(KEPT_BYTES)));
}

#[inline(never)]
fn churn_buffers() {
    drop(black_box(Vec::<u8>::with_capacity(PASSING_BYTES)));
}
