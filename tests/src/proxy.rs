//! A connection's bytes on their way between a client and a server, as a decoder sees them.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use perf_agent::decode::{Decoder, Direction, Joined, Options, Output, PROTOCOLS, Protocol};

/// What was decoded of all connections, with what was not told apart.
pub type Shared = Arc<Mutex<Output>>;

/// Passes connections on to a server and decodes them.
pub struct Proxy {
    pub port: u16,
    pub output: Shared,
    pub bytes: Arc<Mutex<[u64; 2]>>,
}

type Side = Arc<Mutex<Box<dyn Decoder + Send>>>;

impl Proxy {
    /// Listens on a free port of the loopback, until the process ends.
    pub fn start(protocol: Protocol, server_port: u16) -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let output = Arc::new(Mutex::new(Output::new(Options { raw: true })));
        let bytes = Arc::new(Mutex::new([0; 2]));
        let (shared, seen) = (output.clone(), bytes.clone());
        thread::spawn(move || {
            let start = Instant::now();
            for client in listener.incoming().map_while(Result::ok) {
                let address = SocketAddr::from(([127, 0, 0, 1], server_port));
                let server = TcpStream::connect(address).expect("the server");
                let entry = PROTOCOLS.iter().find(|e| e.protocol == protocol);
                let decoder = (entry.expect("in the registry").decoder)(Joined::AtStart);
                let decoder: Side = Arc::new(Mutex::new(decoder));
                let ways = [
                    (Direction::Request, &client, &server),
                    (Direction::Response, &server, &client),
                ];
                for (direction, from, to) in ways {
                    let (from, to) = (from.try_clone(), to.try_clone());
                    let (from, to) = (from.expect("a socket"), to.expect("a socket"));
                    let (decoder, output, seen) = (decoder.clone(), shared.clone(), seen.clone());
                    thread::spawn(move || {
                        pass(direction, from, to, start, &decoder, &output, &seen)
                    });
                }
            }
        });
        Proxy {
            port,
            output,
            bytes,
        }
    }

    /// Count, errors, hits and misses by text; what else happened is an error.
    pub fn counts(&self) -> Vec<(String, [u64; 4])> {
        let output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        assert_eq!(output.anomalies, []);
        let mut counts = std::collections::BTreeMap::<String, [u64; 4]>::new();
        for exchange in &output.exchanges {
            let [count, errors, hits, misses] = counts
                .entry(output.text_of(exchange.text).to_owned())
                .or_default();
            *count += 1;
            *errors += u64::from(exchange.error.is_some());
            *hits += u64::from(exchange.hits);
            *misses += u64::from(exchange.misses);
        }
        counts.into_iter().collect()
    }

    /// Bytes decoded and bytes seen.
    pub fn decoded(&self) -> ([u64; 2], [u64; 2]) {
        let output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        (output.decoded, *seen)
    }
}

fn pass(
    direction: Direction,
    mut from: TcpStream,
    mut to: TcpStream,
    start: Instant,
    decoder: &Side,
    output: &Shared,
    seen: &Mutex<[u64; 2]>,
) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        // Decoded before it is passed on: an answer cannot overtake its request.
        {
            let mut decoder = decoder.lock().unwrap_or_else(PoisonError::into_inner);
            let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
            let at_ns = start.elapsed().as_nanos() as u64;
            decoder.bytes(direction, at_ns, &buffer[..n], &mut output);
            seen.lock().unwrap_or_else(PoisonError::into_inner)[direction as usize] += n as u64;
        }
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    // Either may be closed already.
    _ = to.shutdown(Shutdown::Write);
}
