//! HTTP servers that know where the time of their requests went, on the first port of `--connect`: with
//! [`threads`] for each connection, with a single thread for [`all`] of them, and with a [`pool`] of sessions
//! that its threads share; and one that is [`chatty`].

pub mod all;
pub mod chatty;
mod peers;
pub mod pool;
pub mod threads;

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};

use super::gate::Options;

/// Connections a server takes, but for that with a pool; it ends when they have.
pub const CONNECTIONS: usize = 3;

/// A request's path, and the numbers in its query.
struct Request {
    path: String,
    numbers: BTreeMap<String, u64>,
}

impl Request {
    /// A number of its query; 0 where it has none of this name.
    fn number(&self, name: &str) -> u64 {
        self.numbers.get(name).copied().unwrap_or(0)
    }
}

/// Listens on the first part of `--connect`; the other parts.
fn listen(options: &Options) -> io::Result<(TcpListener, Vec<String>)> {
    let connect = options.connect.clone().unwrap_or_default();
    let mut parts = connect.split('@').map(str::to_owned);
    let port = parts.next().and_then(|port| port.parse().ok());
    let port: u16 = port.ok_or_else(|| io::Error::other("--connect PORT[@PEER…] is missing"))?;
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    Ok((listener, parts.collect()))
}

/// The next request of a connection; `None` at its end.
fn read(connection: &mut BufReader<TcpStream>) -> io::Result<Option<Request>> {
    let mut first = String::new();
    if connection.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    let mut field = String::new();
    while field != "\r\n" {
        field.clear();
        if connection.read_line(&mut field)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let target = first.split(' ').nth(1).unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let numbers = query.split('&').filter_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        Some((name.to_owned(), value.parse().ok()?))
    });
    Ok(Some(Request {
        path: path.to_owned(),
        numbers: numbers.collect(),
    }))
}

/// Answers in one piece.
fn answer(connection: &mut BufReader<TcpStream>, body: &str) -> io::Result<()> {
    let length = body.len();
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}");
    connection.get_mut().write_all(answer.as_bytes())
}
