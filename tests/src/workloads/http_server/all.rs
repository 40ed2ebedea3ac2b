//! One thread for all connections, as an asynchronous server has it. `/now/N` is answered at once;
//! `/pair/N` when two of them have been read, in their order.

use std::io::{self, BufReader};
use std::net::TcpStream;
use std::os::fd::AsRawFd;

use super::super::gate::{Gate, Options, check};
use super::{CONNECTIONS, answer, listen, read};

pub fn run(options: &Options, gate: &Gate) -> io::Result<String> {
    let (listener, _) = listen(options)?;
    gate.open()?;
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        let (connection, _) = listener.accept()?;
        connection.set_nodelay(true)?;
        connections.push(Some(BufReader::new(connection)));
    }
    let mut paired = Vec::new();
    let mut served = 0;
    while connections.iter().any(Option::is_some) {
        for i in readable(&connections)? {
            let Some(connection) = &mut connections[i] else {
                continue;
            };
            match read(connection)? {
                None => connections[i] = None,
                Some(request) if request.path.starts_with("/pair/") => paired.push(i),
                Some(_) => {
                    answer(connection, "now")?;
                    served += 1;
                }
            }
            if paired.len() < 2 {
                continue;
            }
            for i in paired.drain(..) {
                if let Some(connection) = &mut connections[i] {
                    answer(connection, "both")?;
                    served += 1;
                }
            }
        }
    }
    Ok(format!("{{\"served\":{served}}}"))
}

/// Which connections have something to read or have ended.
fn readable(connections: &[Option<BufReader<TcpStream>>]) -> io::Result<Vec<usize>> {
    let entry = |connection: &Option<BufReader<TcpStream>>| libc::pollfd {
        fd: connection.as_ref().map_or(-1, |c| c.get_ref().as_raw_fd()),
        events: libc::POLLIN,
        revents: 0,
    };
    let mut entries: Vec<libc::pollfd> = connections.iter().map(entry).collect();
    // SAFETY: the entries are valid for the length of the call.
    check(unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, -1) })?;
    let ready = entries.iter().enumerate().filter(|(_, e)| e.revents != 0);
    Ok(ready.map(|(i, _)| i).collect())
}
