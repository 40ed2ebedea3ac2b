//! An HTTP/1.1 client that waits for each answer.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

/// A connection to a server on this host.
pub struct Client(BufReader<TcpStream>);

impl Client {
    /// # Panics
    /// Where nobody listens, as all that follows where the server goes.
    pub fn connect(port: u16) -> Client {
        let connection = TcpStream::connect(("127.0.0.1", port));
        let connection = connection.unwrap_or_else(|e| panic!("port {port}: {e}"));
        // It only delays what is sent.
        _ = connection.set_nodelay(true);
        Client(BufReader::new(connection))
    }

    /// Sends a request, with a `traceparent` where a trace id is given.
    pub fn send(&mut self, target: &str, trace_id: Option<&str>) {
        let parent = trace_id
            .map(|id| format!("traceparent: 00-{id}-00f067aa0ba902b7-01\r\n"))
            .unwrap_or_default();
        let request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n{parent}\r\n");
        let sent = self.0.get_mut().write_all(request.as_bytes());
        sent.unwrap_or_else(|e| panic!("{target}: {e}"));
    }

    /// The body of the next answer.
    pub fn receive(&mut self) -> String {
        let (mut line, mut length) = (String::new(), 0);
        while line != "\r\n" {
            line.clear();
            let read = self.0.read_line(&mut line);
            assert!(matches!(read, Ok(1..)), "the server went: {read:?}");
            if let Some(n) = line.strip_prefix("Content-Length: ") {
                length = n.trim().parse().unwrap_or(0);
            }
        }
        let mut body = vec![0; length];
        let read = self.0.read_exact(&mut body);
        read.unwrap_or_else(|e| panic!("the server went: {e}"));
        String::from_utf8_lossy(&body).into_owned()
    }

    pub fn ask(&mut self, target: &str) -> String {
        self.send(target, None);
        self.receive()
    }
}
