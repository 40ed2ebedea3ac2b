//! As much of a Redis client as the gallery needs: one command at a time.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;

/// A connection.
pub struct Client(BufReader<TcpStream>);

impl Client {
    /// # Errors
    /// Where the server is not there.
    pub fn connect(address: &str) -> io::Result<Client> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Ok(Client(BufReader::new(stream)))
    }

    /// The string a command returns; none where there is none.
    ///
    /// # Errors
    /// Where the connection is lost or the server says that something is wrong.
    pub fn ask(&mut self, words: &[&str]) -> io::Result<Option<String>> {
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request += &format!("${}\r\n{word}\r\n", word.len());
        }
        self.0.get_mut().write_all(request.as_bytes())?;
        let mut head = String::new();
        self.0.read_line(&mut head)?;
        let head = head.trim_end();
        match head.split_at_checked(1) {
            Some(("$", "-1")) => Ok(None),
            Some(("$", length)) => {
                let length: usize = length.parse().map_err(io::Error::other)?;
                let mut text = vec![0; length + 2];
                self.0.read_exact(&mut text)?;
                Ok(Some(String::from_utf8_lossy(&text[..length]).into_owned()))
            }
            Some(("+" | ":", text)) => Ok(Some(text.to_owned())),
            _ => Err(io::Error::other(format!("{words:?}: {head}"))),
        }
    }
}
