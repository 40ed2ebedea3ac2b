//! An account is booked on, and another service asked while the transaction is open, so that the others
//! wait for the row; the twin asks first. The other service is a sleep.

use std::io;
use std::thread;
use std::time::Duration;

use super::postgres::Client;
use super::row::{DATABASE, Job, Program, Row, Worth, with_postgres};
use super::shift::work;

pub const ROW: Row = Row {
    name: "idle in transaction",
    unit: "booking",
    category: "idle_in_transaction",
    about: "idle in a transaction",
    delegate: DATABASE,
    worth: Worth::Time,
    realtime: true,
    program: Program::Rust(run),
    stage: with_postgres,
};

const WORKERS: usize = 3;
/// Together a little more than one after the other can book.
const EVERY: Duration = Duration::from_millis(110);
const ASKING: Duration = Duration::from_millis(40);

fn run(job: &Job) -> io::Result<()> {
    let sick = job.health.is_sick();
    work(WORKERS, EVERY, |_| {
        let mut database = Client::connect(job.argument(0)?)?;
        // What a commit waits for is another row's trouble.
        database.query("SET synchronous_commit = off")?;
        Ok(move || {
            if !sick {
                thread::sleep(ASKING);
            }
            database.query("BEGIN")?;
            database.query("UPDATE pgbench_branches SET bbalance = bbalance + 1 WHERE bid = 1")?;
            if sick {
                thread::sleep(ASKING);
            }
            database.query("COMMIT").map(drop)
        })
    })
}
