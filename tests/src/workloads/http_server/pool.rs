//! A thread for each connection, and a few sessions of a PostgreSQL server that they share: `/report/N?pg=MS`
//! has one of them sleep, `/now/N` is answered at once. How long its threads waited for a session, and for
//! its answers, is told in the end.

use std::io::{self, BufReader};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::super::clock::clock_ns;
use super::super::gate::{Gate, Options, join, thread};
use super::peers::Postgres;
use super::{answer, listen, read};

pub fn run(options: &Options, gate: &Gate) -> io::Result<String> {
    let (listener, peers) = listen(options)?;
    let missing = || io::Error::other("--connect PORT@POSTGRES@SESSIONS@CONNECTIONS is missing");
    let [postgres, numbers @ ..] = &peers[..] else {
        return Err(missing());
    };
    let numbers: Vec<usize> = numbers.iter().filter_map(|n| n.parse().ok()).collect();
    let &[sessions, connections] = &numbers[..] else {
        return Err(missing());
    };
    gate.open()?;
    let free: io::Result<Vec<Postgres>> =
        (0..sessions).map(|_| Postgres::connect(postgres)).collect();
    let pool = Arc::new(Pool {
        free: Mutex::new(free?),
        given_back: Condvar::new(),
        waited_ns: AtomicU64::new(0),
        asked_ns: AtomicU64::new(0),
    });
    let mut threads = Vec::new();
    for i in 1..connections {
        let (connection, _) = listener.accept()?;
        let pool = pool.clone();
        let serves = move || serve(connection, &pool);
        threads.push(thread(&format!("serves-{i}"), serves)?);
    }
    // One by this thread, which would wait for the others in a futex as they do for a session.
    serve(listener.accept()?.0, &pool)?;
    for thread in threads {
        join(thread)??;
    }
    let of = |sum: &AtomicU64| sum.load(Ordering::Relaxed);
    let (waited, asked) = (of(&pool.waited_ns), of(&pool.asked_ns));
    Ok(format!("{{\"waited_ns\":{waited},\"asked_ns\":{asked}}}"))
}

/// Until the client goes.
fn serve(connection: TcpStream, pool: &Pool) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let mut connection = BufReader::new(connection);
    while let Some(request) = read(&mut connection)? {
        if request.path.starts_with("/report/") {
            pool.ask(&format!("SELECT pg_sleep({}e-3)", request.number("pg")))?;
        }
        answer(&mut connection, "done")?;
    }
    Ok(())
}

struct Pool {
    free: Mutex<Vec<Postgres>>,
    given_back: Condvar,
    waited_ns: AtomicU64,
    asked_ns: AtomicU64,
}

impl Pool {
    fn ask(&self, query: &str) -> io::Result<()> {
        let now = || clock_ns(libc::CLOCK_MONOTONIC);
        let began = now();
        let mut session = self.wait_for_session();
        let got = now();
        let result = session.query(query);
        self.waited_ns.fetch_add(got - began, Ordering::Relaxed);
        self.asked_ns.fetch_add(now() - got, Ordering::Relaxed);
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(session);
        drop(free);
        self.given_back.notify_one();
        result
    }

    #[inline(never)]
    fn wait_for_session(&self) -> Postgres {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(session) = free.pop() {
                return session;
            }
            let woken = self.given_back.wait(free);
            free = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }
}
