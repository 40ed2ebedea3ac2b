//! Many workers share two connections; the twin has one for each.

use std::io;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::postgres::Client;
use super::row::{DATABASE, Job, Program, Row, with_postgres};
use super::shift::work;

pub const ROW: Row = Row {
    name: "pool too small",
    unit: "query",
    category: "pool_saturation",
    about: "All 2 connections to PostgreSQL",
    delegate: DATABASE,
    program: Program::Rust(run),
    stage: with_postgres,
};

const WORKERS: usize = 32;
/// Together a quarter more than two connections can do.
const EVERY: Duration = Duration::from_millis(65);
/// Takes a while, and no CPU.
const QUERY: &str = "SELECT pg_sleep(0.005)";

/// Connections that nobody has.
struct Pool {
    free: Mutex<Vec<Client>>,
    given_back: Condvar,
}

impl Pool {
    #[inline(never)]
    fn wait_for_connection(&self) -> Client {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(client) = free.pop() {
                return client;
            }
            let woken = self.given_back.wait(free);
            free = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn give_back(&self, client: Client) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(client);
        self.given_back.notify_one();
    }
}

fn run(job: &Job) -> io::Result<()> {
    let size = if job.health.is_sick() { 2 } else { WORKERS };
    let socket = job.argument(0)?;
    let clients: io::Result<Vec<Client>> = (0..size).map(|_| Client::connect(socket)).collect();
    let pool = Pool {
        free: Mutex::new(clients?),
        given_back: Condvar::new(),
    };
    work(WORKERS, EVERY, |_| {
        Ok(|| {
            let mut database = pool.wait_for_connection();
            let result = database.query(QUERY).map(drop);
            pool.give_back(database);
            result
        })
    })
}
