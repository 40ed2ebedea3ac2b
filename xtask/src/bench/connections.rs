//! Very many connections to one server: what they cost the agent in memory.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// Connections held open at once. README and the target promise a bound for so many.
pub const CONNECTIONS: usize = 10_000;
/// For their descriptors and those of the bench itself.
const DESCRIPTORS: u64 = CONNECTIONS as u64 + 1_000;
const COMMAND: &[u8] = b"*2\r\n$3\r\nGET\r\n$9\r\nkey:00001\r\n";
/// What a server that has no such key answers.
const ANSWER: &[u8] = b"$-1\r\n";

/// Open connections to a Redis server.
pub struct Connections {
    open: Vec<TcpStream>,
}

impl Connections {
    /// # Errors
    /// Where this process may not have so many files, or the server refuses one.
    pub fn open(port: u16) -> Result<Self> {
        raise_descriptor_limit().with_context(|| {
            format!("{DESCRIPTORS} open files are needed: raise the hard limit (ulimit -Hn)")
        })?;
        let connect = |_| TcpStream::connect((Ipv4Addr::LOCALHOST, port));
        let open: io::Result<Vec<TcpStream>> = (0..CONNECTIONS).map(connect).collect();
        Ok(Connections {
            open: open.context("connecting")?,
        })
    }

    /// Sends a command on each and reads each answer, again and again; how many commands that were.
    ///
    /// # Errors
    /// Where a connection fails or answers something else.
    pub fn ask(&mut self, time: Duration) -> Result<usize> {
        let started = Instant::now();
        let mut asked = 0;
        while started.elapsed() < time {
            for connection in &mut self.open {
                connection.write_all(COMMAND).context("sending")?;
            }
            for connection in &mut self.open {
                let mut answer = [0; ANSWER.len()];
                connection.read_exact(&mut answer).context("receiving")?;
                if answer != ANSWER {
                    bail!("the server answered {:?}", String::from_utf8_lossy(&answer));
                }
            }
            asked += self.open.len();
        }
        Ok(asked)
    }
}

/// The soft limit up to what is needed; the hard one stays.
fn raise_descriptor_limit() -> io::Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the struct is written to and outlives the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if limit.rlim_cur >= DESCRIPTORS {
        return Ok(());
    }
    limit.rlim_cur = DESCRIPTORS;
    // SAFETY: the struct outlives the call.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
