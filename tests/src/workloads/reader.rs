//! Sends the server of `--connect` (`ADDRESS@REQUEST`, the request in hexadecimal digits) its request, and
//! reads all that comes.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use super::gate::{Gate, Options};

/// Captured whole, and one piece each.
const PIECE: usize = 16 << 10;

pub fn run(options: &Options, gate: &Gate) -> io::Result<String> {
    let told = options.connect.as_deref().and_then(|to| to.split_once('@'));
    let missing = || io::Error::other("--connect ADDRESS@REQUEST is missing");
    let (address, request) = told.ok_or_else(missing)?;
    let request =
        bytes_of(request).ok_or_else(|| io::Error::other("the request is not hexadecimal"))?;
    gate.open()?;
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(&request)?;
    let (mut bytes, mut piece) = (0, vec![0; PIECE]);
    loop {
        match stream.read(&mut piece)? {
            0 => return Ok(format!("{{\"bytes\":{bytes}}}")),
            n => bytes += n,
        }
    }
}

fn bytes_of(digits: &str) -> Option<Vec<u8>> {
    let pairs = digits.as_bytes().chunks(2);
    pairs
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}
