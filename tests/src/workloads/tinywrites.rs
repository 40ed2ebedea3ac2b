//! Writes a file byte by byte.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::time::Instant;

use super::gate::{Gate, Options, join, thread};

pub fn run(options: &Options, gate: &Gate) -> io::Result<String> {
    gate.open()?;
    let null = OpenOptions::new().write(true).open("/dev/null")?;
    let deadline = options.deadline();
    let writes = join(thread("tinywrites", move || {
        write_unbuffered_log(null, deadline)
    })?)??;
    Ok(format!("{{\"writes\":{writes}}}"))
}

#[inline(never)]
fn write_unbuffered_log(mut file: File, deadline: Instant) -> io::Result<u64> {
    let mut writes = 0;
    while Instant::now() < deadline {
        for _ in 0..64 {
            file.write_all(b"x")?;
        }
        writes += 64;
    }
    Ok(writes)
}
