//! Each session is kept for ever; the twin keeps the last of them.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use super::row::{ENGINEER, Job, Program, Row, Worth, nothing};
use super::shift::{kept, work};

pub const ROW: Row = Row {
    name: "memory growth",
    unit: "session",
    category: "memory_growth",
    // Without its path: the compiler may make one function of it and its like in another workload.
    about: "::keep_session`",
    delegate: ENGINEER,
    worth: Worth::Memory,
    realtime: true,
    program: Program::Rust(run),
    stage: nothing,
};

const EVERY: Duration = Duration::from_millis(4);
const SESSION_BYTES: usize = 64 << 10;
/// What the twin keeps.
const MOST: usize = 64;

fn run(job: &Job) -> io::Result<()> {
    let most = if job.health.is_sick() {
        usize::MAX
    } else {
        MOST
    };
    work(1, EVERY, |_| {
        let mut sessions = VecDeque::new();
        Ok(move || {
            keep_session(&mut sessions, most);
            kept(sessions.len() * SESSION_BYTES);
            Ok(())
        })
    })
}

#[inline(never)]
fn keep_session(sessions: &mut VecDeque<Box<[u8]>>, most: usize) {
    sessions.push_back(vec![1u8; SESSION_BYTES].into_boxed_slice());
    if sessions.len() > most {
        sessions.pop_front();
    }
}
