//! Many workers share two connections; the twin has one for each.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::postgres::Client;
use super::row::{DATABASE, Job, Program, Row, Worth, with_postgres};
use super::shift::work;

pub const ROW: Row = Row {
    name: "pool too small",
    unit: "query",
    category: "pool_saturation",
    about: "All 2 connections to PostgreSQL",
    delegate: DATABASE,
    worth: Worth::Time,
    realtime: true,
    program: Program::Rust(run),
    stage: with_postgres,
};

const WORKERS: usize = 32;
/// Together a quarter more than two connections can do.
const EVERY: Duration = Duration::from_millis(65);
/// Takes a while, and no CPU.
const QUERY: &str = "SELECT pg_sleep(0.005)";

/// Connections that nobody has, and who waits for one, first come first. They are used in turn: of a pool that
/// hands out the one it got back last, units as evenly spread as these use three, all the time, and the others
/// are not seen.
struct State {
    free: VecDeque<Client>,
    waiting: VecDeque<SyncSender<Client>>,
}

struct Pool(Mutex<State>);

impl Pool {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline(never)]
    fn wait_for_connection(&self) -> io::Result<Client> {
        let mut state = self.lock();
        if let Some(client) = state.free.pop_front() {
            return Ok(client);
        }
        let (hand_over, client) = mpsc::sync_channel(1);
        state.waiting.push_back(hand_over);
        drop(state);
        client.recv().map_err(io::Error::other)
    }

    fn give_back(&self, client: Client) {
        let mut state = self.lock();
        match state.waiting.pop_front() {
            // Whoever waits, waits until it comes.
            Some(next) => _ = next.send(client),
            None => state.free.push_back(client),
        }
    }
}

fn run(job: &Job) -> io::Result<()> {
    let size = if job.health.is_sick() { 2 } else { WORKERS };
    let socket = job.argument(0)?;
    let clients: io::Result<VecDeque<Client>> =
        (0..size).map(|_| Client::connect(socket)).collect();
    let pool = Pool(Mutex::new(State {
        free: clients?,
        waiting: VecDeque::new(),
    }));
    work(WORKERS, EVERY, |_| {
        Ok(|| {
            let mut database = pool.wait_for_connection()?;
            let result = database.query(QUERY).map(drop);
            pool.give_back(database);
            result
        })
    })
}
