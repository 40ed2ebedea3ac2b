//! Each record of a batch is made durable by itself; the twin makes the batch durable (group commit).

use std::fs::File;
use std::io::{self, Seek, Write};
use std::path::Path;
use std::time::Duration;

use super::row::{ENGINEER, Job, Program, Row, Stage, Worth};
use super::shift::work;

pub const ROW: Row = Row {
    name: "fsync per record",
    unit: "batch of records",
    category: "disk_wait",
    about: "fdatasync of",
    delegate: ENGINEER,
    worth: Worth::Time,
    realtime: true,
    program: Program::Rust(run),
    stage: |stage: &mut Stage| stage.directory().map(drop),
};

const EVERY: Duration = Duration::from_millis(100);
const RECORDS: usize = 400;
const RECORD: [u8; 512] = [3; 512];

fn run(job: &Job) -> io::Result<()> {
    let path = Path::new(job.argument(0)?).join("journal");
    let sick = job.health.is_sick();
    work(1, EVERY, |_| {
        let mut file = File::create(&path)?;
        Ok(move || {
            file.rewind()?;
            commit_records(&mut file, sick)
        })
    })
}

#[inline(never)]
fn commit_records(file: &mut File, each: bool) -> io::Result<()> {
    for _ in 0..RECORDS {
        file.write_all(&RECORD)?;
        if each {
            file.sync_data()?;
        }
    }
    file.sync_data()
}
