//! Opens, uses and closes a connection a thousand times a second, to a server of its own.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::gate::{Gate, Options, join, thread};

const EACH: Duration = Duration::from_millis(1);

pub fn run(options: &Options, gate: &Gate) -> io::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let server = thread("churn-server", move || serve(&listener))?;
    gate.open()?;
    let deadline = options.deadline();
    let connections = join(thread("churn-client", move || connect(address, deadline))?)??;
    join(server)??;
    Ok(format!("{{\"connections\":{connections}}}"))
}

/// Answers each connection once, until one asks for the end.
fn serve(listener: &TcpListener) -> io::Result<()> {
    loop {
        let (mut stream, _) = listener.accept()?;
        let mut asked = [0];
        stream.read_exact(&mut asked)?;
        stream.write_all(&asked)?;
        if asked == *b"!" {
            return Ok(());
        }
    }
}

fn connect(address: SocketAddr, deadline: Instant) -> io::Result<u64> {
    let (start, mut connections) = (Instant::now(), 0);
    loop {
        let last = Instant::now() >= deadline;
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(if last { b"!" } else { b"?" })?;
        stream.read_exact(&mut [0])?;
        connections += 1;
        if last {
            return Ok(connections);
        }
        // Behind schedule it does not wait.
        let next = start + EACH * connections as u32;
        sleep(next.saturating_duration_since(Instant::now()));
    }
}
