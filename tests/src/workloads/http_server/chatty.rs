//! Asks Redis for a dozen things for each request: one after the other, or all at once.

use std::io::{self, BufReader};

use super::super::gate::{Gate, Options};
use super::peers::Redis;
use super::{answer, listen, read};

/// What it asks for each request. No two are of one shape: that would be another finding.
const COMMANDS: [&str; 12] = [
    "PING",
    "GET cart",
    "STRLEN cart",
    "EXISTS cart",
    "TTL cart",
    "TYPE cart",
    "LLEN orders",
    "SCARD tags",
    "HLEN user",
    "ZCARD scores",
    "DBSIZE",
    "LASTSAVE",
];

/// Serves one connection: `/each` waits for each answer, `/together` for all of them.
pub fn run(options: &Options, gate: &Gate) -> io::Result<String> {
    let (listener, peers) = listen(options)?;
    let port = peers.first().map_or("", String::as_str);
    let mut redis = Redis::connect(port)?;
    gate.open()?;
    let (stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let mut connection = BufReader::new(stream);
    let mut served = 0;
    while let Some(request) = read(&mut connection)? {
        let at_once = if request.path == "/each" {
            1
        } else {
            COMMANDS.len()
        };
        for commands in COMMANDS.chunks(at_once) {
            redis.ask(commands)?;
        }
        served += 1;
        answer(&mut connection, "")?;
    }
    Ok(format!("{{\"served\":{served}}}"))
}
