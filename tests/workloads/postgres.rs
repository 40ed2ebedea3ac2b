//! As much of a PostgreSQL client as the gallery needs: one query at a time in the simple protocol, over
//! the server's Unix socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// A connection, logged in.
pub struct Client(UnixStream);

impl Client {
    /// Connects as the superuser, whom the server of the tests trusts.
    ///
    /// # Errors
    /// Where the server refuses or is not there.
    pub fn connect(socket: impl AsRef<Path>) -> io::Result<Client> {
        let mut client = Client(UnixStream::connect(socket)?);
        let mut startup = 196_608u32.to_be_bytes().to_vec();
        startup.extend(b"user\0postgres\0database\0postgres\0\0");
        client.send(&startup)?;
        client.answer()?;
        Ok(client)
    }

    /// The first column of what a query returns.
    ///
    /// # Errors
    /// Where the connection is lost or the server says that something is wrong.
    pub fn query(&mut self, sql: &str) -> io::Result<Vec<String>> {
        let mut body = sql.as_bytes().to_vec();
        body.push(0);
        let mut message = vec![b'Q'];
        message.extend((body.len() as u32 + 4).to_be_bytes());
        message.extend(body);
        self.0.write_all(&message)?;
        self.answer()
    }

    fn send(&mut self, body: &[u8]) -> io::Result<()> {
        let mut message = (body.len() as u32 + 4).to_be_bytes().to_vec();
        message.extend(body);
        self.0.write_all(&message)
    }

    /// Reads messages up to the one that says the server is ready for the next query.
    fn answer(&mut self) -> io::Result<Vec<String>> {
        let mut input = io::BufReader::new(&self.0);
        let mut rows = Vec::new();
        let mut refused = None;
        loop {
            let mut head = [0; 5];
            input.read_exact(&mut head)?;
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
            let mut body = vec![0; (length as usize).saturating_sub(4)];
            input.read_exact(&mut body)?;
            match head[0] {
                b'D' => rows.extend(first_column(&body)),
                b'E' => refused = Some(String::from_utf8_lossy(&body).replace('\0', " ")),
                b'Z' => return refused.map_or(Ok(rows), |what| Err(io::Error::other(what))),
                _ => {}
            }
        }
    }
}

/// Of a `DataRow`: the number of columns, then length and text of each.
fn first_column(row: &[u8]) -> Option<String> {
    let length = u32::from_be_bytes(row.get(2..6)?.try_into().ok()?) as usize;
    let text = row.get(6..6 + length)?;
    Some(String::from_utf8_lossy(text).into_owned())
}
