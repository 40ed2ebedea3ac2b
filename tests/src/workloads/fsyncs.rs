//! Writes a little and makes it durable, again and again.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, Write};
use std::time::Instant;

use super::gate::{Gate, Options, join, thread};

pub fn run(options: &Options, gate: &Gate) -> io::Result<String> {
    let path = options
        .directory
        .join(format!("workload-fsyncs-{}", std::process::id()));
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path)?;
    gate.open()?;
    let deadline = options.deadline();
    let fsyncs = join(thread("fsyncs", move || {
        commit_transactions(file, deadline)
    })?)??;
    std::fs::remove_file(path)?;
    Ok(format!("{{\"fsyncs\":{fsyncs}}}"))
}

#[inline(never)]
fn commit_transactions(mut file: File, deadline: Instant) -> io::Result<u64> {
    let mut fsyncs = 0;
    while Instant::now() < deadline {
        if fsyncs % 256 == 0 {
            file.rewind()?;
        }
        file.write_all(&[3u8; 32 << 10])?;
        file.sync_all()?;
        fsyncs += 1;
    }
    Ok(fsyncs)
}
