//! Asks the server of `--connect` for one byte after another, and waits for each.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use super::gate::{Gate, Options, join, thread};

pub fn run(options: &Options, gate: &Gate) -> io::Result<String> {
    let address = options
        .connect
        .clone()
        .ok_or_else(|| io::Error::other("--connect is missing"))?;
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    gate.open()?;
    let deadline = options.deadline();
    let asked = join(thread("tcp-client", move || {
        query_remote_service(&mut stream, deadline)
    })?)??;
    Ok(format!("{{\"requests\":{asked}}}"))
}

#[inline(never)]
fn query_remote_service(stream: &mut TcpStream, deadline: Instant) -> io::Result<u64> {
    let mut asked = 0;
    while Instant::now() < deadline {
        stream.write_all(b"?")?;
        stream.read_exact(&mut [0])?;
        asked += 1;
    }
    Ok(asked)
}
