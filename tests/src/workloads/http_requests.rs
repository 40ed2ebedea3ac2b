//! Asks the HTTP server of `--connect` for what [`REQUESTS`] has, on three connections with one, four
//! and sixteen requests in flight: a round before the gate, so that the connections are old when it
//! opens, and one behind it. What was answered behind it is told by request and status.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use super::gate::{Gate, Options};

/// Method, target and further lines of what `servers::Nginx` is asked for.
const REQUESTS: [(&str, &str, &str); 9] = [
    ("GET", "/small", ""),
    ("GET", "/large", ""),
    ("HEAD", "/large", ""),
    ("GET", "/nothing", ""),
    ("GET", "/missing", ""),
    ("GET", "/chunked", "Accept-Encoding: gzip\r\n"),
    (
        "GET",
        "/small?id=7",
        "If-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT\r\n",
    ),
    ("GET", "/broken", ""),
    ("POST", "/small", "Content-Length: 5\r\n\r\nwords"),
];
const DEPTHS: [usize; 3] = [1, 4, 16];
/// Requests of a connection and round; a multiple of every depth.
const REQUESTS_A_ROUND: usize = 720;

type Counts = BTreeMap<String, u64>;

pub fn run(options: &Options, gate: &Gate) -> io::Result<String> {
    let address = options
        .connect
        .clone()
        .ok_or_else(|| io::Error::other("--connect is missing"))?;
    let mut connections = Vec::new();
    for depth in DEPTHS {
        let mut connection = BufReader::new(TcpStream::connect(&address)?);
        connection.get_ref().set_nodelay(true)?;
        round(&mut connection, depth, &mut Counts::new())?;
        connections.push((connection, depth));
    }
    gate.open()?;
    let mut counts = Counts::new();
    for (connection, depth) in &mut connections {
        round(connection, *depth, &mut counts)?;
    }
    let fields: Vec<String> = counts.iter().map(|(k, n)| format!("\"{k}\":{n}")).collect();
    Ok(format!("{{{}}}", fields.join(",")))
}

fn round(server: &mut BufReader<TcpStream>, depth: usize, counts: &mut Counts) -> io::Result<()> {
    for first in (0..REQUESTS_A_ROUND).step_by(depth) {
        let batch: Vec<_> = (first..first + depth)
            .map(|i| &REQUESTS[i % REQUESTS.len()])
            .collect();
        let mut text = String::new();
        for (method, target, lines) in &batch {
            text += &format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n{lines}");
            text += if *method == "POST" { "" } else { "\r\n" };
        }
        // Some in two pieces, cut anywhere.
        let cut = if first % 3 == 0 {
            first * 7 % text.len()
        } else {
            0
        };
        server.get_mut().write_all(&text.as_bytes()[..cut])?;
        server.get_mut().write_all(&text.as_bytes()[cut..])?;
        for (method, target, _) in batch {
            let status = answer(server, *method == "HEAD")?;
            let path = target.split('?').next().unwrap_or_default();
            *counts
                .entry(format!("{method} {path} {status}"))
                .or_default() += 1;
        }
    }
    Ok(())
}

/// Reads an answer; its status.
fn answer(server: &mut impl BufRead, head: bool) -> io::Result<u16> {
    let wrong = |what: &str| io::Error::other(format!("not an answer: {what:?}"));
    let first = line(server)?;
    let status = first
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3)?.parse().ok())
        .ok_or_else(|| wrong(&first))?;
    let (mut length, mut chunked) = (0, false);
    loop {
        let field = line(server)?.to_ascii_lowercase();
        if field.is_empty() {
            break;
        }
        if let Some(n) = field.strip_prefix("content-length: ") {
            length = n.parse().map_err(|_| wrong(&field))?;
        }
        chunked |= field == "transfer-encoding: chunked";
    }
    if head || status == 204 || status == 304 {
        return Ok(status);
    }
    if !chunked {
        pass(server, length)?;
        return Ok(status);
    }
    loop {
        let size = line(server)?;
        let size = u64::from_str_radix(&size, 16).map_err(|_| wrong(&size))?;
        pass(server, size)?;
        line(server)?;
        if size == 0 {
            return Ok(status);
        }
    }
}

fn line(server: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    server.read_line(&mut line)?;
    let whole = line.strip_suffix("\r\n");
    whole
        .map(str::to_owned)
        .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

fn pass(server: &mut impl Read, bytes: u64) -> io::Result<()> {
    let passed = io::copy(&mut server.take(bytes), &mut io::sink())?;
    if passed == bytes {
        Ok(())
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}
