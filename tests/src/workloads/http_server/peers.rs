//! Connections of a handler to a PostgreSQL and a Redis server, which wait for each answer.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

/// A session with a PostgreSQL server that trusts everybody.
pub struct Postgres(BufReader<UnixStream>);

impl Postgres {
    pub fn connect(socket: &str) -> io::Result<Self> {
        let mut session = Postgres(BufReader::new(UnixStream::connect(socket)?));
        let parameters = b"user\0postgres\0database\0postgres\0\0";
        let mut startup = (parameters.len() as u32 + 8).to_be_bytes().to_vec();
        // Protocol 3.0.
        startup.extend(196_608u32.to_be_bytes());
        startup.extend(parameters);
        session.0.get_mut().write_all(&startup)?;
        session.ready()?;
        Ok(session)
    }

    /// A simple query, until the server is ready again.
    pub fn query(&mut self, text: &str) -> io::Result<()> {
        let mut message = vec![b'Q'];
        message.extend((text.len() as u32 + 5).to_be_bytes());
        message.extend(text.as_bytes());
        message.push(0);
        self.0.get_mut().write_all(&message)?;
        self.ready()
    }

    fn ready(&mut self) -> io::Result<()> {
        loop {
            let mut head = [0; 5];
            self.0.read_exact(&mut head)?;
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
            let mut body = vec![0; length.saturating_sub(4) as usize];
            self.0.read_exact(&mut body)?;
            match head[0] {
                b'Z' => return Ok(()),
                b'E' => return Err(io::Error::other(String::from_utf8_lossy(&body))),
                _ => {}
            }
        }
    }
}

/// A connection to a Redis server.
pub struct Redis(BufReader<TcpStream>);

impl Redis {
    pub fn connect(port: &str) -> io::Result<Self> {
        let connection = TcpStream::connect(format!("127.0.0.1:{port}"))?;
        connection.set_nodelay(true)?;
        Ok(Redis(BufReader::new(connection)))
    }

    /// Sends commands at once and reads as many replies, which are of one line each.
    pub fn ask(&mut self, commands: &[&str]) -> io::Result<()> {
        let text = commands.join("\r\n") + "\r\n";
        self.0.get_mut().write_all(text.as_bytes())?;
        let mut reply = String::new();
        for command in commands {
            reply.clear();
            self.0.read_line(&mut reply)?;
            if reply.is_empty() || reply.starts_with('-') {
                return Err(io::Error::other(format!("redis: {command}: {reply:?}")));
            }
        }
        Ok(())
    }

    /// Looks for a key that is not there.
    pub fn get(&mut self) -> io::Result<()> {
        let command = b"*2\r\n$3\r\nGET\r\n$7\r\nnothing\r\n";
        self.0.get_mut().write_all(command)?;
        let mut reply = String::new();
        self.0.read_line(&mut reply)?;
        match reply.as_str() {
            "$-1\r\n" => Ok(()),
            other => Err(io::Error::other(format!("redis: {other:?}"))),
        }
    }
}
