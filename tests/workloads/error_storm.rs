//! Each request looks for its template along a path of folders that do not have it; the twin remembers
//! where it is not.

use std::io;
use std::time::Duration;

use super::row::{ENGINEER, Job, Program, Row, Worth, nothing};
use super::shift::work;

pub const ROW: Row = Row {
    name: "error storm",
    unit: "request",
    category: "error_storm",
    about: "ENOENT from openat",
    delegate: ENGINEER,
    worth: Worth::Time,
    realtime: true,
    program: Program::Rust(run),
    stage: nothing,
};

const EVERY: Duration = Duration::from_millis(5);
const LOOKED_FOR: usize = 10_000;

fn run(job: &Job) -> io::Result<()> {
    let sick = job.health.is_sick();
    work(1, EVERY, |_| {
        let mut known_missing = false;
        Ok(move || {
            if sick || !known_missing {
                known_missing = look_for_templates();
            }
            Ok(())
        })
    })
}

/// Whether none of them is there.
#[inline(never)]
fn look_for_templates() -> bool {
    (0..LOOKED_FOR).all(|_| {
        // SAFETY: a path with its end; the call fails, so there is no descriptor to close.
        let fd = unsafe { libc::open(c"/nonexistent/template".as_ptr(), libc::O_RDONLY) };
        fd < 0
    })
}
