//! A page of a log is written byte by byte; the twin writes it at once.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::path::Path;
use std::time::Duration;

use super::row::{ENGINEER, Job, Program, Row, Stage, Worth};
use super::shift::work;

pub const ROW: Row = Row {
    name: "tiny writes",
    unit: "page of log",
    category: "syscall_storm",
    about: "Calls write",
    delegate: ENGINEER,
    worth: Worth::Time,
    realtime: true,
    program: Program::Rust(run),
    stage: |stage: &mut Stage| stage.directory().map(drop),
};

const EVERY: Duration = Duration::from_millis(5);
const PAGE: [u8; 16 << 10] = [b'x'; 16 << 10];

fn run(job: &Job) -> io::Result<()> {
    let path = Path::new(job.argument(0)?).join("log");
    let sick = job.health.is_sick();
    work(1, EVERY, |_| {
        let mut file = File::create(&path)?;
        Ok(move || {
            // The same page again: nothing that waits for the disk.
            file.rewind()?;
            match sick {
                true => log_bytes(&mut file),
                false => file.write_all(&PAGE),
            }
        })
    })
}

#[inline(never)]
fn log_bytes(file: &mut File) -> io::Result<()> {
    PAGE.iter().try_for_each(|byte| file.write_all(&[*byte]))
}
