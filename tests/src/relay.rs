//! Passes connections on to a server and counts what passes, as bytes.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// One that listens on a free port of the loopback until the process ends.
pub struct Relay {
    pub port: u16,
    /// Connections there were.
    connections: Arc<AtomicU64>,
    /// Bytes that came from clients, and from the server.
    bytes: Arc<[AtomicU64; 2]>,
    /// Directions of connections that have not ended.
    open: Arc<AtomicU64>,
}

impl Relay {
    /// # Panics
    /// Where it cannot listen.
    pub fn start(server_port: u16) -> Relay {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let relay = Relay {
            port,
            connections: Arc::default(),
            bytes: Arc::default(),
            open: Arc::default(),
        };
        let (connections, bytes) = (relay.connections.clone(), relay.bytes.clone());
        let open = relay.open.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let server = TcpStream::connect(("127.0.0.1", server_port)).expect("the server");
                // Each piece as it comes, like the peers' own.
                for end in [&client, &server] {
                    end.set_nodelay(true).expect("a socket");
                }
                connections.fetch_add(1, Ordering::SeqCst);
                open.fetch_add(2, Ordering::SeqCst);
                for (way, from, to) in [(0, &client, &server), (1, &server, &client)] {
                    let from = from.try_clone().expect("a socket");
                    let to = to.try_clone().expect("a socket");
                    let (bytes, open) = (bytes.clone(), open.clone());
                    thread::spawn(move || {
                        pass(from, to, &bytes[way]);
                        open.fetch_sub(1, Ordering::SeqCst);
                    });
                }
            }
        });
        relay
    }

    /// Connections it passed on so far.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::SeqCst)
    }

    /// Bytes from clients and from the server, once all connections have ended. Those of the server are what
    /// a client read if it reads to the end.
    pub fn bytes(&self) -> [u64; 2] {
        crate::servers::until("the end of the connections", || {
            self.open.load(Ordering::SeqCst) == 0
        });
        [0, 1].map(|way| self.bytes[way].load(Ordering::SeqCst))
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, count: &AtomicU64) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        count.fetch_add(n as u64, Ordering::SeqCst);
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    // Either may be closed already.
    _ = to.shutdown(Shutdown::Write);
}
