//! memcached, and a load on it.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use super::{Running, free_port, spawn, until};

/// A memcached server, and its port.
pub fn memcached() -> (Running, u16) {
    let port = free_port();
    let mut command = Command::new("memcached");
    command.args(["-l", "127.0.0.1", "-u", "nobody", "-p", &port.to_string()]);
    let server = spawn(command, "memcached", None);
    until("memcached", || {
        TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    (server, port)
}

/// A thread that sets and gets a value of memcached, until dropped.
pub struct MemcachedLoad {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

/// Starts it.
pub fn memcached_load(port: u16) -> MemcachedLoad {
    let stop = Arc::new(AtomicBool::new(false));
    let told = stop.clone();
    let thread = thread::spawn(move || {
        const ASKED: &[u8] = b"set item 0 0 5\r\nvalue\r\nget item\r\n";
        const ANSWER: &[u8] = b"STORED\r\nVALUE item 0 5\r\nvalue\r\nEND\r\n";
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        let mut answer = [0; ANSWER.len()];
        while !told.load(Ordering::Relaxed) {
            stream.write_all(ASKED)?;
            stream.read_exact(&mut answer)?;
            assert_eq!(answer, ANSWER);
        }
        Ok(())
    });
    MemcachedLoad {
        stop,
        thread: Some(thread),
    }
}

impl Drop for MemcachedLoad {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(Ok(Err(e))) = self.thread.take().map(JoinHandle::join) {
            eprintln!("the load on memcached: {e}");
        }
    }
}
