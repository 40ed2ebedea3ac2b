//! Ends of one connection that read all that comes: `reader` sends the server of `--connect` its request,
//! `sink` answers the first piece of a client of `--listen`. Both options are `ADDRESS@BYTES`, the bytes that are
//! sent in hexadecimal digits.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};

use super::gate::{Gate, Options};

/// Captured whole, and one piece each.
const PIECE: usize = 16 << 10;

pub fn read(options: &Options, gate: &Gate) -> io::Result<String> {
    let (address, request) = told(options.connect.as_deref())?;
    gate.open()?;
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(&request)?;
    to_end(stream, 0)
}

pub fn sink(options: &Options, gate: &Gate) -> io::Result<String> {
    let (address, answer) = told(options.listen.as_deref())?;
    let listener = TcpListener::bind(address)?;
    gate.open()?;
    let (mut stream, _) = listener.accept()?;
    let first = stream.read(&mut vec![0; PIECE])?;
    stream.write_all(&answer)?;
    to_end(stream, first)
}

/// Reads to the end; `before` bytes were read already.
fn to_end(mut stream: TcpStream, before: usize) -> io::Result<String> {
    let (mut bytes, mut piece) = (before, vec![0; PIECE]);
    loop {
        match stream.read(&mut piece)? {
            0 => return Ok(format!("{{\"bytes\":{bytes}}}")),
            n => bytes += n,
        }
    }
}

fn told(option: Option<&str>) -> io::Result<(&str, Vec<u8>)> {
    option
        .and_then(|to| to.split_once('@'))
        .and_then(|(address, digits)| Some((address, bytes_of(digits)?)))
        .ok_or_else(|| io::Error::other("ADDRESS@HEXADECIMAL is missing"))
}

fn bytes_of(digits: &str) -> Option<Vec<u8>> {
    let pairs = digits.as_bytes().chunks(2);
    pairs
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}
